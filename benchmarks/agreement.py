"""Recognising who made existing scores, at FlexyFace's size: `python -m benchmarks.agreement`.

2,000 images on FlexyFace's tables, 1,865 with CLIP score and aesthetic V1, without the columns of V2 and HPS. Once the
existing scores were made by CLIP without QuickGELU and LAION's MLP (mini weights): 64 of them must tell so, nothing
that was there may change, and every filled score must be that variant's. Once they are random: nothing may be written
to their columns, with one message and exit status 2, and the asset check must fail. On SQLite, or on the Postgres that
FLEXY_DATABASE_URL names. Prints a table and writes benchmarks/results/agreement.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa

from benchmarks import ROOT, Claim, argument_parser, environment_without, print_claims, timed, write_results
from flexy_assets.scoring.work import Work
from flexy_assets.sweep.checks import MetricScores, known_maker
from resources.database import Database
from resources.metrics.sweep import METRICS
from resources.settings import Settings
from tests.support import flexyface
from tests.support.databases import empty

OLD = ("clip_score", "aesthetic_score")
MISSING = {"clip_score": 135, "aesthetic_score": 135, "aes_v2_score": 2000, "hps_v2_score": 2000}


def read_columns(database: Database) -> dict[str, tuple[float | None, ...]]:
    """Return the first two scores by the image's file."""
    with database.begin(reading=True) as connection:
        rows = connection.execute(sa.text(f"SELECT image_path, {', '.join(OLD)} FROM bench_run_results"))
        return {Path(path).name: tuple(scores) for path, *scores in rows}


def measure(made_by: flexyface.Maker | None, scored: int = flexyface.SCORED) -> dict[str, Any]:
    """Return what a backfill does to a database whose existing scores were made by `made_by`."""
    with tempfile.TemporaryDirectory() as folder, empty(Path(folder)) as database:
        home = Path(folder)
        flexyface.bring(database, home / "pictures", scored=scored, made_by=made_by)
        before = read_columns(database)
        if scored > flexyface.SCORED:
            return {"scores": before}
        variables = {
            "FLEXY_HOME": folder,
            "FLEXY_DATABASE_URL": database.url.render_as_string(hide_password=False),
            "FLEXY_IMAGES": str(home / "pictures"),
            "FLEXY_MODELS": "mini",
        }
        environment = environment_without("FLEXY_", "DAGSTER_") | variables
        command = [sys.executable, "-m", "flexy_assets.cli.app", "backfill", "--json"]
        done, seconds = timed(
            lambda: subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        )
        after, work = read_columns(database), Work.from_settings(Settings.read(variables))
        os.environ |= {"DAGSTER_HOME": str(ROOT), "FLEXY_DAGSTER_STORAGE": str(home / "dagster")}
        with dg.DagsterInstance.get() as instance:
            runs = len(instance.get_runs())
        checks = [known_maker(MetricScores(METRICS[name], work.database, work.settings)) for name in OLD]
        return json.loads(done.stdout) | {
            "exit": done.returncode,
            "messages": done.stderr.splitlines()[-1:],
            "seconds": seconds,
            "runs": runs,
            "failed_checks": sum(check.error is not None for check in checks),
            "changed": sum(
                old is not None and new != old
                for path, scores in before.items()
                for old, new in zip(scores, after[path], strict=True)
            ),
            "written": sum(old is None and new is not None for p in before for old, new in zip(before[p], after[p])),  # noqa: B905
            "scores": after,
        }


def claims(known: dict[str, Any], whole: dict[str, Any], unknown: dict[str, Any]) -> list[Claim]:
    """Return (claim, figure, threshold, met) for each claim."""
    largest = max(
        abs(ours - theirs) if ours is not None else float("inf")
        for path, scores in whole["scores"].items()
        for ours, theirs in zip(known["scores"][path], scores, strict=True)
    )
    variants = [known["agreement"][name]["variant"] for name in OLD]
    sampled = [known["agreement"][name]["sampled"] for name in OLD]
    return [
        (
            "the variant is recognised",
            ", ".join(variants),
            "clip_gelu, + mlp",
            variants[1] == "clip_gelu + aesthetic_v1",
        ),
        ("from so many scores", f"{sampled}", "64", sampled == [64, 64]),
        ("existing scores changed", f"{known['changed']}", "0", known["changed"] == 0),
        ("scores filled", f"{known['filled']}", "all", known["filled"] == MISSING),
        ("filled scores differ from that variant's by at most", f"{largest:.1e}", "≤ 1e-4", largest <= 1e-4),
        ("Dagster runs", f"{known['runs']}", "≤ 4", known["runs"] <= 4),
        ("unknown maker: scores written to its columns", f"{unknown['written']}", "0", unknown["written"] == 0),
        ("unknown maker: existing scores changed", f"{unknown['changed']}", "0", unknown["changed"] == 0),
        ("unknown maker: exit status", f"{unknown['exit']}", "2", unknown["exit"] == 2),
        ("unknown maker: messages", f"{len(unknown['messages'])}", "1", len(unknown["messages"]) == 1),
        ("unknown maker: failed asset checks", f"{unknown['failed_checks']}", "2", unknown["failed_checks"] == 2),
    ]


def main() -> None:
    options = argument_parser(__doc__, "agreement").parse_args()
    known, unknown = measure(flexyface.OPEN_CLIP), measure(None)
    found = claims(known, measure(flexyface.OPEN_CLIP, scored=2000), unknown)
    status = print_claims(found)
    print(f"seconds of the two backfills: {known['seconds']:.0f} and {unknown['seconds']:.0f}")
    print(*unknown["messages"])
    write_results(options.out, [{"claim": claim, "figure": figure, "met": met} for claim, figure, _, met in found])
    sys.exit(status)


if __name__ == "__main__":
    main()
