"""Overhead of orchestration over a bare loop: `python -m benchmarks.orchestration`.

The same 2,000 pictures are scored with the same mini scorers twice, each in a process of its own: by a bare loop
that opens each file once, scores it four times and keeps the numbers in memory, and by `backfill_scores`, from the
question what is missing to the last committed row, on an adopted FlexyFace table without any score, with claims,
chunks, records and Dagster's events. Both load their models; importing is counted for neither. With pictures of
FlexyFace's size, and with the smallest, where nothing but orchestration is left; in turns, three times; the ratio is
of the medians. On a private Postgres where one is named by FLEXY_DATABASE_URL (an empty database on it is made and
dropped), else on SQLite. Prints a table and writes benchmarks/results/orchestration.json.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import argument_parser, environment_without, run_python, write_results
from resources.database import Database
from resources.images import ImageStore
from resources.metrics.sweep import METRICS
from resources.mini.world import SIDE
from resources.models import registry
from resources.settings import Settings
from tests.support import flexyface
from tests.support.databases import empty

SIDES = (512, SIDE)
"""Pixels along each side of the pictures: FlexyFace's, and the mini engine's."""


def import_scorers() -> None:
    """Import the scorers' modules, which would otherwise happen at their first use."""
    for scorer in {metric.scorer or metric.name for metric in METRICS.values()}:
        import_module(registry.MODELS[scorer].loader.partition(":")[0])


def time_bare_loop(pictures: Path, prompt: str) -> float:
    """Return the seconds for all four scores of every image in the folder, batch by batch, in memory."""
    import_scorers()
    settings, store = Settings.read(), ImageStore(str(pictures))
    names = sorted(path.name for path in pictures.iterdir())
    began = time.perf_counter()
    clip, v1, v2, hps = (
        registry.find_scorer(s, settings).load() for s in ("clip", "aesthetic_v1", "aesthetic_v2", "hps")
    )
    (text_vector,) = clip.texts([prompt])
    scores: list[tuple[float, ...]] = []
    for start in range(0, len(names), clip.batch_size):
        images = [store.read(name) for name in names[start : start + clip.batch_size]]
        vectors = clip.images([clip.prepare(image) for image in images])
        preferred = hps.scores([hps.prepare(image) for image in images], [prompt] * len(images))
        agreement = vectors.astype(np.float64) @ text_vector.astype(np.float64)
        scores += zip(agreement, v1.score_embeddings(vectors), v2.score_embeddings(vectors), preferred, strict=True)
    seconds = time.perf_counter() - began
    assert np.isfinite(scores).all() and len(scores) == len(names)
    return seconds


def time_backfill() -> float:
    """Return the seconds for the same by `backfill_scores` on the database of FLEXY_DATABASE_URL."""
    import_scorers()
    from flexy_assets.definitions import build_definitions

    settings = Settings.read()
    defs = build_definitions(settings)
    from flexy_assets.execution import dagster_instance, run_job
    from flexy_assets.sweep import jobs

    database = Database(settings.database_url)
    with dagster_instance(settings) as instance:
        began = time.perf_counter()
        request = jobs.request_backfill(instance, database, ImageStore(settings.images), settings)
        result = run_job(instance, defs, "backfill_scores", request.run_config)
        seconds = time.perf_counter() - began
    assert result.success
    return seconds


def main() -> None:
    parser = argument_parser(__doc__, "orchestration")
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--part", choices=["bare", "backfill"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        bare = options.part == "bare"
        print(time_bare_loop(Path(os.environ["FLEXY_IMAGES"]), "a red circle") if bare else time_backfill())
        return
    results = [measure(options.images, side, options.turns) for side in options.sides]
    print(f"{options.images} images, four mini scorers, results in {results[0]['database']}")
    for entry in results:
        for part, seconds in entry["seconds"].items():
            each = ", ".join(f"{s:.2f}" for s in seconds)
            print(f"{entry['side']:4}²  {part:8} {statistics.median(seconds):7.2f} s   ({each})")
        print(f"{entry['side']:4}²  orchestrated / bare: {entry['ratio']:.3f}   (required: at most 1.10)")
    write_results(options.out, results)


def measure(images: int, side: int, turns: int) -> dict[str, Any]:
    """Return the seconds of both, alternating, with `images` images of `side` pixels along each side."""
    times: dict[str, list[float]] = {"bare": [], "backfill": []}
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        for turn in range(turns):
            home = Path(folder, str(turn))
            with empty(home) as database:
                flexyface.bring(database, pictures, goes=[images], scored=0, side=side)
                url = database.url.render_as_string(hide_password=False)
                chosen = {"FLEXY_HOME": str(home), "FLEXY_IMAGES": str(pictures), "FLEXY_MODELS": "mini"}
                chosen |= {"FLEXY_DATABASE_URL": url, "FLEXY_PROMPT_COLUMN": flexyface.PROMPT_COLUMN}
                environment = environment_without("DAGSTER_HOME") | chosen
                for part, seconds in times.items():
                    printed = run_python(__spec__.name, "--part", part, env=environment, stderr=subprocess.DEVNULL)
                    seconds.append(float(printed.split()[-1]))
                kind = database.url.get_backend_name()
    bare, backfill = (statistics.median(seconds) for seconds in times.values())
    return {"images": images, "side": side, "database": kind, "seconds": times, "ratio": backfill / bare}


if __name__ == "__main__":
    main()
