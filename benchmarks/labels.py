"""Inpainting of a Label Studio project, undisturbed, killed and with a faulty judge: `python -m benchmarks.labels`.

Drawn projects, mini models, and `flexy inpaint import` and `run` as separate processes, each in its own home.

- `--tasks 12`: seconds of import and run, and how each task ended.
- `--killed 500`: a server on loopback serves the images and another is the judge; both count requests. The import is
  killed (SIGKILL) at 3 of 10 images, the run at 4 of 10 swaps and, when restarted, at 4 of 10 judged faces; then both
  run to their end. Requests for what was in the table (an image, a swap) or on disk (a judge's answer) when the process
  was killed must be 0; responses in transit at the kill, up to four images and one answer, are counted separately.
- `--faulty 40`: 3 of 10 of the judge's calls fail in eight ways, then none. Each score in the table is compared with
  the mean of the judge's answers about exactly those pixels; the others must be NULL with an error, the next run must
  request the missing ones and nothing else, and then nothing may be missing.

A part with 0 tasks is skipped. Prints a table and writes benchmarks/results/labels.json.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import ROOT, argument_parser, environment_without, print_figures, timed, write_results
from resources.label_studio.export import strip_signature
from resources.mini.faces import write_face_example
from tests.support.judged import READINGS, check_judge_scores, rows, scores
from tests.support.servers import FaceJudgeServer, ImageServer, running

JUDGE = "gemini/gemini-3.5-flash"
IMAGE_FIELDS = ("character_image_url", "init_image_url", "mask_image_url", "image_url")


class InpaintCommand:
    """`flexy inpaint` on its own home."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        inherited = environment_without("FLEXY_", "DAGSTER_", "LABEL_STUDIO_", "GEMINI_", "MOONDREAM_")
        own = {"FLEXY_HOME": str(home), "FLEXY_MODELS": "mini", "PYTHONPATH": str(ROOT)}
        self.environment = inherited | own | environment

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flexy_assets.cli.app", "inpaint", *arguments, "--json"]
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, text=True)

    def __call__(self, *arguments: str) -> dict[str, Any]:
        """Run the command and return its JSON document."""
        process = self.start(*arguments)
        output, _ = process.communicate()
        if process.returncode:
            sys.exit(f"flexy inpaint {arguments[0]} ended with status {process.returncode}: {output}")
        return json.loads(output)

    def killed(self, *arguments: str, table: str, where: str, least: float) -> None:
        """Start the command, and kill it when `least` such rows are in the table."""
        process = self.start(*arguments)
        try:
            while self.count(table, where) < least:
                if process.poll() is not None:
                    sys.exit(f"flexy inpaint {arguments[0]} ended before it was killed")
                time.sleep(0.02)
        finally:
            process.kill()
            process.communicate()

    def count(self, table: str, where: str) -> int:
        return sum(row["n"] for row in rows(self.home, f"SELECT count(*) AS n FROM {table} WHERE {where}"))


def measure_whole_run(tasks: int, folder: Path) -> dict[str, Any]:
    """Import and run without disturbance."""
    flexy, file = InpaintCommand(folder / "home"), str(write_face_example(folder / "project", tasks, seed=11))
    _, import_seconds = timed(lambda: flexy("import", file))
    ended, seconds = timed(lambda: flexy("run"))
    times = {"seconds to import": round(import_seconds, 1), "seconds to run": round(seconds, 1)}
    return {"tasks": tasks, **times, **count_outcomes(tasks, ended)}


def count_outcomes(tasks: int, ended: Mapping[str, Any]) -> dict[str, Any]:
    """Count the tasks by outcome; lost are those with neither an image nor a reason."""
    reasons = Counter(ended["left"].values())
    done = {task["id"] for task in ended["selected"]} | {name for name, reason in ended["left"].items() if reason}
    return {
        "selected": len(ended["selected"]),
        **{f"left: {reason}": count for reason, count in reasons.items()},
        "lost": tasks - len(done),
    }


def serve_images(file: Path, site: ImageServer) -> dict[str, str]:
    """Serve an export's images from the site; return their keys in `label_pictures` by path."""
    exported, known = json.loads(file.read_text()), {}
    for task in exported:
        for name in IMAGE_FIELDS:
            path = f"/{task['data'][name]}"
            url = site.url(path, (file.parent / path[1:]).read_bytes())
            task["data"][name] = url
            known[path] = hashlib.sha256(strip_signature(url).encode()).hexdigest()
    file.write_text(json.dumps(exported))
    return known


KILL_POINTS = (
    ("import", "label_pictures", 0.3, "true"),
    ("run", "face_swaps", 0.4, "true"),
    ("run", "image_scores", 0.4, "metric = 'judge_identity' AND value IS NOT NULL"),
)
"""A command is killed when this share of a table's expected rows are in it: those where a condition holds."""


def measure_killed_run(tasks: int, folder: Path) -> dict[str, Any]:
    """Kill the commands at each of `KILL_POINTS`, then run them to the end."""
    with running(ImageServer()) as site, running(FaceJudgeServer()) as judge_server:
        file = write_face_example(folder / "project", tasks, seed=12)
        known = serve_images(file, site)
        judge = {"FLEXY_JUDGE": "gemini", "FLEXY_JUDGE_URL": judge_server.url}
        flexy = InpaintCommand(folder / "home", FLEXY_ALLOWED_HOSTS=site.host, **judge)
        snapshots: list[Progress] = []
        start = time.monotonic()

        def kill_and_end(*command: str) -> dict[str, Any]:
            for name, table, share, where in KILL_POINTS:
                if name == command[0]:
                    least = share * (len(known) if table == "label_pictures" else tasks)
                    flexy.killed(*command, table=table, where=where, least=least)
                    snapshots.append(Progress(flexy.home, site, judge_server, known))
            return flexy(*command)

        imported = kill_and_end("import", str(file))
        ended = kill_and_end("run")
        seconds = time.monotonic() - start
        last = Progress(flexy.home, site, judge_server, known)
        questions = READINGS * len(judge_server.answers)
        under_way = sum(each.answers_given - each.answers_kept for each in snapshots)
        return {
            "tasks": tasks,
            "seconds": round(seconds, 1),
            "when killed": [str(each) for each in snapshots],
            "pictures": len(known),
            "images requested again that were in the table": sum(each.requested_again(last) for each in snapshots),
            "images served twice, in transit at the kill": site.delivered.total() - len(known),
            "swaps repeated that were in the table": sum(each.swapped_again(last) for each in snapshots),
            "questions to the judge": questions,
            "answers requested again that were on disk": last.answers_given - questions - under_way,
            "answers given twice, in transit at the kill": under_way,
            "scores that are not the judge's": len(check_judge_scores(flexy.home, judge_server, JUDGE).wrong),
            "tasks imported": imported["tasks"],
            **count_outcomes(tasks, ended),
        }


class Progress:
    """The rows, files and requests at a moment when no command runs."""

    def __init__(self, home: Path, site: ImageServer, judge_server: FaceJudgeServer, known: Mapping[str, str]) -> None:
        time.sleep(0.5)  # the servers may still answer the killed process
        stored = {row["address_sha256"] for row in rows(home, "SELECT address_sha256 FROM label_pictures")}
        self.pictures = {path: site.requested[path] for path, address in known.items() if address in stored}
        self.swaps = {row["task"]: row for row in rows(home, "SELECT * FROM face_swaps")}
        self.answers_kept = sum(file.name[0] != "." for file in (home / "judgements").glob("*/*/*.json"))
        self.answers_given = sum(map(len, judge_server.answers.values()))

    def requested_again(self, later: Progress) -> int:
        return sum(later.pictures[path] - count for path, count in self.pictures.items())

    def swapped_again(self, later: Progress) -> int:
        return sum(later.swaps[task] != row for task, row in self.swaps.items())

    def __str__(self) -> str:
        return f"{len(self.pictures)} pictures, {len(self.swaps)} swaps, {self.answers_kept} answers"


def measure_faulty_judge(tasks: int, folder: Path) -> dict[str, Any]:
    """Run with a judge of which 3 of 10 calls fail, then with a sound one."""
    with running(FaceJudgeServer(seed=1, fault_rate=0.3, hang_seconds=2.0)) as judge_server:
        judge = {"FLEXY_JUDGE": "gemini", "FLEXY_JUDGE_URL": judge_server.url, "FLEXY_JUDGE_TIMEOUT": "1"}
        flexy = InpaintCommand(folder / "home", **judge)
        flexy("import", str(write_face_example(folder / "project", tasks, seed=13)))
        refined = ("run", "--editor", "mini_instruct", "--steps", "4", "--budget", "2")
        first = flexy(*refined)
        before, first_scores = check_judge_scores(flexy.home, judge_server, JUDGE), scores(flexy.home)
        answers_before = sum(map(len, judge_server.answers.values()))
        calls, faults = judge_server.calls, dict(judge_server.faults)
        judge_server.fault_rate = 0
        ended = flexy(*refined)
        after, second_scores = check_judge_scores(flexy.home, judge_server, JUDGE), scores(flexy.home)
        requested, answered = judge_server.calls - calls, len(after.answered)
        flexy(*refined)
        judged = {k: row for k, row in first_scores.items() if k[1].startswith("judge_") and row["value"] is not None}
        return {
            "tasks": tasks,
            "candidates": len(before.answered | before.unanswered | before.wrong),
            "calls": calls,
            "of these failed": sum(faults.values()),
            **{f"failed: {fault}": count for fault, count in faults.items()},
            "answered": len(before.answered),
            "NULL with a reason": len(before.unanswered),
            "invented": len(before.wrong) + len(after.wrong),
            "reported as unanswered": first["unanswered"],
            "answered after the next run": answered,
            "calls of the next run": requested,
            "calls of these that were not missing": requested - (READINGS * answered - answers_before),
            "scores of the first run that changed": sum(second_scores[key] != row for key, row in judged.items()),
            "calls of a third run": judge_server.calls - calls - requested,
            **count_outcomes(tasks, ended),
        }


def main() -> None:
    parser = argument_parser(__doc__, "labels")
    parser.add_argument("--tasks", type=int, default=12)
    parser.add_argument("--killed", type=int, default=500)
    parser.add_argument("--faulty", type=int, default=40)
    options = parser.parse_args()
    parts = {
        "whole": (measure_whole_run, options.tasks),
        "faulty": (measure_faulty_judge, options.faulty),
        "killed": (measure_killed_run, options.killed),
    }
    results: dict[str, Any] = {}
    for part, (measure, tasks) in parts.items():
        if tasks:
            with tempfile.TemporaryDirectory() as folder:
                results[part] = measure(tasks, Path(folder))
            print_figures({f"{part:8} {name}": figure for name, figure in results[part].items()})
    write_results(options.out, results)


if __name__ == "__main__":
    main()
