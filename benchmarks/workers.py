"""Two scoring processes on one Postgres compared with one: `python -m benchmarks.workers`.

Each process scores an adopted FlexyFace table without any score, every metric, with mini models; first one alone,
then two started together, each time on a table of its own. Counted are the seconds from the start of the work to
its end, loading the models included, and whether every score was computed exactly once. On a
Postgres that FLEXY_DATABASE_URL names (an empty database on it is made and dropped). Prints a table and writes
benchmarks/results/workers.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks import argument_parser, require_postgres, timed, write_results
from flexy_assets.scoring import missing_scores
from flexy_assets.scoring.work import Work
from flexy_assets.storage.adoption import adopt_rows, batch_names
from resources.metrics.sweep import METRICS
from resources.settings import Settings
from tests.support import flexyface
from tests.support.databases import empty


def score_until_done() -> int:
    """Score what is missing and not locked by another process; return the number of scores computed."""
    work = Work.from_settings(Settings.read())
    with work.database.begin(reading=True) as connection:
        keys = batch_names(connection)
    print("ready", flush=True)
    sys.stdin.readline()
    done = 0
    # Repeat while anything is left: images that the other process embedded can be scored only now.
    while True:
        list(missing_scores.embed_images(work, keys, lambda _: None))
        outcomes = (missing_scores.score_images(work, metric, keys, lambda _: None) for metric in METRICS.values())
        now = sum(outcome.done for partitions in outcomes for _, outcome in partitions)
        done += now
        if not now:
            return done


def measure(workers: int, images: int, folder: Path) -> dict[str, Any]:
    """Return seconds and scores of so many processes on their own table."""
    with empty(folder) as database:
        flexyface.bring(database, folder / "pictures", goes=[images], scored=0)
        chosen = {
            "FLEXY_HOME": str(folder),
            "FLEXY_IMAGES": str(folder / "pictures"),
            "FLEXY_MODELS": "mini",
            "FLEXY_DATABASE_URL": database.url.render_as_string(hide_password=False),
            "FLEXY_PROMPT_COLUMN": flexyface.PROMPT_COLUMN,
            "FLEXY_BATCH_SIZE": "100",
            "OMP_NUM_THREADS": "1",
        }
        adopt_rows(database, Settings.read(chosen))
        command = [sys.executable, "-m", __spec__.name, "--work"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(command, env=os.environ | chosen, **pipes) for _ in range(workers)]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        done, seconds = timed(lambda: [int(process.communicate()[0]) for process in processes])
        with database.begin(reading=True) as connection:
            rows = connection.scalar(sa.text("SELECT count(*) FROM image_scores WHERE value IS NOT NULL"))
            most = connection.scalar(sa.text("SELECT max(attempts) FROM image_scores"))
    assert (rows, most, sum(done)) == (4 * images, 1, 4 * images), (rows, most, done)
    return {"workers": workers, "seconds": seconds, "scores": done}


def main() -> None:
    parser = argument_parser(__doc__, "workers")
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(score_until_done())
        return
    require_postgres()
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(workers, options.images, Path(folder, str(workers))) for workers in (1, 2)]
    alone, together = (entry["seconds"] for entry in runs)
    print(f"{options.images} images, four mini scorers, every score computed once")
    for entry in runs:
        each = " + ".join(map(str, entry["scores"]))
        print(f"{entry['workers']} workers: {entry['seconds']:7.2f} s   scores {each}")
    print(f"throughput of two against one: {alone / together:.2f}   (required: at least 1)")
    write_results(options.out, {"images": options.images, "runs": runs})


if __name__ == "__main__":
    main()
