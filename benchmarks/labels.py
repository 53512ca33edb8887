"""A Label Studio project put right, whole, killed and with a judge that is ill: `python -m benchmarks.labels`.

Drawn projects, mini models, and `flexy labels import` and `run` as processes of their own, each in a home of its own.

- `--tasks 12`: seconds of import and run, and how each task ended.
- `--killed 500`: pictures come from a server, marks from a judge, both on loopback and counting. The import is killed
  (SIGKILL) at 3 of 10 pictures, the run at 4 of 10 swaps and, in the next try, at 4 of 10 judged faces; then both are
  run to their end. Counted is what was asked for again although it was in the table (a picture, a swap) or on disk (a
  judge's answer) when the process died, which must be 0; and, apart, what had left the server whole and was not
  there yet: up to four pictures are under way at a time, and one answer.
- `--ill 40`: 3 of 10 of the judge's calls go wrong in eight ways, then none. Each mark in the table is held against
  the mean of what the judge answered about exactly those pixels; the rest must be NULL with a reason, the next run
  must ask for what is missing and nothing else, and then nothing may be missing.

A part of 0 tasks is left out. Prints a table and writes benchmarks/results/labels.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resources.label_studio.export import strip_signature
from resources.mini.faces import write_face_example
from tests.support.judged import READINGS, check_judge_scores, rows, scores
from tests.support.servers import FaceJudgeServer, ImageServer, running

ROOT = Path(__file__).parent.parent
JUDGE = "gemini/gemini-3.5-flash"
PICTURES = ("character_image_url", "init_image_url", "mask_image_url", "image_url")


class Flexy:
    """`flexy labels` on a home of its own."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        clean = ("FLEXY_", "DAGSTER_", "LABEL_STUDIO_", "GEMINI_", "MOONDREAM_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(clean)}
        where = {"FLEXY_HOME": str(home), "FLEXY_MODELS": "mini", "PYTHONPATH": str(ROOT)}
        self.environment = inherited | where | environment

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flexy_assets.cli.app", "inpaint", *arguments, "--json"]
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, text=True)

    def __call__(self, *arguments: str) -> dict[str, Any]:
        """What the command says at its end."""
        process = self.start(*arguments)
        said, _ = process.communicate()
        if process.returncode:
            sys.exit(f"flexy labels {arguments[0]} ended with status {process.returncode}: {said}")
        return json.loads(said)

    def killed(self, *arguments: str, table: str, where: str, least: float) -> None:
        """Start the command, and kill it when so many such rows are in the table."""
        process = self.start(*arguments)
        try:
            while self.count(table, where) < least:
                if process.poll() is not None:
                    sys.exit(f"flexy labels {arguments[0]} ended before it was killed")
                time.sleep(0.02)
        finally:
            process.kill()
            process.communicate()

    def count(self, table: str, where: str) -> int:
        found = rows(self.home, f"SELECT count(*) AS n FROM {table} WHERE {where}")
        return found[0]["n"] if found else 0


def whole(tasks: int, folder: Path) -> dict[str, Any]:
    """Import and run, undisturbed."""
    flexy, file = Flexy(folder / "home"), str(write_face_example(folder / "project", tasks, seed=11))
    began = time.monotonic()
    flexy("import", file)
    imported = time.monotonic()
    ended = flexy("run")
    return {
        "tasks": tasks,
        "seconds to import": round(imported - began, 1),
        "seconds to run": round(time.monotonic() - imported, 1),
        **endings(tasks, ended),
    }


def endings(tasks: int, ended: Mapping[str, Any]) -> dict[str, Any]:
    """How tasks ended; lost are those that neither have a picture nor a reason."""
    reasons = Counter(ended["left"].values())
    done = {one["id"] for one in ended["selected"]} | {name for name, reason in ended["left"].items() if reason}
    return {
        "selected": len(ended["selected"]),
        **{f"left: {reason}": count for reason, count in reasons.items()},
        "lost": tasks - len(done),
    }


def served(file: Path, site: ImageServer) -> dict[str, str]:
    """Put an export's pictures on the site; what each is known by in `label_pictures`, by its path there."""
    exported, known = json.loads(file.read_text()), {}
    for task in exported:
        for name in PICTURES:
            path = f"/{task['data'][name]}"
            url = site.url(path, (file.parent / path[1:]).read_bytes())
            task["data"][name] = url
            known[path] = hashlib.sha256(strip_signature(url).encode()).hexdigest()
    file.write_text(json.dumps(exported))
    return known


@dataclass(frozen=True)
class Moment:
    """When a command is killed: as soon as so many of a table's rows to come are there."""

    command: str
    table: str
    share: float
    where: str = "true"


MOMENTS = (
    Moment("import", "label_pictures", 0.3),
    Moment("run", "face_swaps", 0.4),
    Moment("run", "image_scores", 0.4, "metric = 'judge_identity' AND value IS NOT NULL"),
)


def killed(tasks: int, folder: Path) -> dict[str, Any]:
    """Killed at each of these moments, and then to the end."""
    with running(ImageServer()) as site, running(FaceJudgeServer()) as judge_server:
        file = write_face_example(folder / "project", tasks, seed=12)
        known = served(file, site)
        judge = {"FLEXY_JUDGE": "gemini", "FLEXY_JUDGE_URL": judge_server.url}
        flexy = Flexy(folder / "home", FLEXY_ALLOWED_HOSTS=site.host, **judge)
        kept: list[Kept] = []
        began = time.monotonic()

        def kill_and_end(*command: str) -> dict[str, Any]:
            for moment in MOMENTS:
                if moment.command == command[0]:
                    least = moment.share * (len(known) if moment.table == "label_pictures" else tasks)
                    flexy.killed(*command, table=moment.table, where=moment.where, least=least)
                    kept.append(Kept(flexy.home, site, judge_server, known))
            return flexy(*command)

        imported = kill_and_end("import", str(file))
        ended = kill_and_end("run")
        seconds = time.monotonic() - began
        last = Kept(flexy.home, site, judge_server, known)
        answers, shown = sum(map(len, judge_server.answers.values())), len(judge_server.answers)
        under_way = sum(each.answers_given - each.answers_kept for each in kept)
        return {
            "tasks": tasks,
            "seconds": round(seconds, 1),
            "when killed": [str(each) for each in kept],
            "pictures": len(known),
            "pictures asked for again that were in the table": sum(each.asked_again(last) for each in kept),
            "pictures given whole twice, under way at the kill": site.delivered.total() - len(known),
            "swaps made again that were in the table": sum(each.swapped_again(last) for each in kept),
            "questions to the judge": READINGS * shown,
            "answers asked for again that were on disk": answers - READINGS * shown - under_way,
            "answers given twice, under way at the kill": under_way,
            "marks that are not the judge's": len(check_judge_scores(flexy.home, judge_server, JUDGE).wrong),
            "tasks imported": imported["tasks"],
            **endings(tasks, ended),
        }


class Kept:
    """What was there at a moment, when nothing was at work."""

    def __init__(self, home: Path, site: ImageServer, judge_server: FaceJudgeServer, known: Mapping[str, str]) -> None:
        time.sleep(0.5)  # the servers may still be answering the dead
        there = {row["address_sha256"] for row in rows(home, "SELECT address_sha256 FROM label_pictures")}
        self.pictures = {path: site.requested[path] for path, address in known.items() if address in there}
        self.swaps = {row["task"]: row for row in rows(home, "SELECT * FROM face_swaps")}
        self.answers_kept = sum(file.name[0] != "." for file in (home / "judgements").glob("*/*/*.json"))
        self.answers_given = sum(map(len, judge_server.answers.values()))

    def asked_again(self, later: Kept) -> int:
        return sum(later.pictures[path] - asked for path, asked in self.pictures.items())

    def swapped_again(self, later: Kept) -> int:
        return sum(later.swaps[task] != row for task, row in self.swaps.items())

    def __str__(self) -> str:
        return f"{len(self.pictures)} pictures, {len(self.swaps)} swaps, {self.answers_kept} answers"


def ill(tasks: int, folder: Path) -> dict[str, Any]:
    """A judge of whose calls 3 of 10 go wrong, then none."""
    with running(FaceJudgeServer(seed=1, fault_rate=0.3, hang_seconds=2.0)) as judge_server:
        judge = {"FLEXY_JUDGE": "gemini", "FLEXY_JUDGE_URL": judge_server.url, "FLEXY_JUDGE_TIMEOUT": "1"}
        flexy = Flexy(folder / "home", **judge)
        flexy("import", str(write_face_example(folder / "project", tasks, seed=13)))
        refined = ("run", "--editor", "mini_instruct", "--steps", "4", "--budget", "2")
        first = flexy(*refined)
        before, there = check_judge_scores(flexy.home, judge_server, JUDGE), scores(flexy.home)
        said, calls, ailments = (
            sum(map(len, judge_server.answers.values())),
            judge_server.calls,
            dict(judge_server.faults),
        )
        judge_server.fault_rate = 0
        ended = flexy(*refined)
        after, then = check_judge_scores(flexy.home, judge_server, JUDGE), scores(flexy.home)
        asked, healed = judge_server.calls - calls, len(after.answered)
        flexy(*refined)
        judged = {key: row for key, row in there.items() if key[1].startswith("judge_") and row["value"] is not None}
        return {
            "tasks": tasks,
            "candidates": len(before.answered | before.unanswered | before.wrong),
            "calls": calls,
            "of these wrong": sum(ailments.values()),
            **{f"wrong: {ailment}": count for ailment, count in ailments.items()},
            "answered": len(before.answered),
            "NULL with a reason": len(before.unanswered),
            "invented": len(before.wrong) + len(after.wrong),
            "said to be unanswered": first["unanswered"],
            "answered after the next run": healed,
            "calls of the next run": asked,
            "calls of these that were not missing": asked - (READINGS * healed - said),
            "marks of the first run that changed": sum(then[key] != row for key, row in judged.items()),
            "calls of a third run": judge_server.calls - calls - asked,
            **endings(tasks, ended),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=12)
    parser.add_argument("--killed", type=int, default=500)
    parser.add_argument("--ill", type=int, default=40)
    options = parser.parse_args()
    parts = {"whole": (whole, options.tasks), "ill": (ill, options.ill), "killed": (killed, options.killed)}
    found: dict[str, Any] = {}
    for part, (measure, tasks) in parts.items():
        if tasks:
            with tempfile.TemporaryDirectory() as folder:
                found[part] = measure(tasks, Path(folder))
            for name, figure in found[part].items():
                shown = "; ".join(figure) if isinstance(figure, list) else figure
                print(f"{part:8} {name:52} {shown}", flush=True)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "labels.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
