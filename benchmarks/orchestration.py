"""What orchestration costs over a bare loop: `python benchmarks/orchestration.py`.

The same 2,000 pictures are scored with the same mini scorers twice, each in a process of its own: by a bare loop
that reads, prepares and scores batch by batch and keeps the numbers in memory, and by `heal_scores`, from the
question what is missing to the last committed row, on an adopted FlexyFace table without any score, with claims,
chunks, records and Dagster's events. Both load their models; importing is counted for neither. In turns, three
times; the ratio is of the medians. On a private Postgres where one is named by FLEXY_DATABASE_URL (an empty
database on it is made and dropped), else on SQLite. Prints a table and writes benchmarks/results/orchestration.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import flexyface
import numpy as np
from databases import empty

from resources.database import Database
from resources.images import ImageStore
from resources.models import registry
from resources.models.slot import ModelSlot
from resources.settings import Settings


def bare(pictures: Path, prompt: str) -> float:
    """Seconds for all four scores of every picture in the folder, in batches, in memory."""
    settings, slot, store = Settings.read(), ModelSlot(), ImageStore(str(pictures))
    import torch  # noqa: F401
    import transformers  # noqa: F401

    names = sorted(path.name for path in pictures.iterdir())
    began = time.perf_counter()
    scores: dict[str, list[Any]] = {}
    clip = slot.get(registry.scorer("clip", settings))
    size, vectors = clip.images_a_call, []
    for start in range(0, len(names), size):
        vectors.append(clip.images([clip.prepare(store.read(name)) for name in names[start : start + size]]))
    seen, (said,) = np.concatenate(vectors), clip.texts([prompt])
    scores["clip_score"] = list(seen.astype(np.float64) @ said.astype(np.float64))
    for metric, scorer in (("aesthetic_score", "aesthetic_v1"), ("aes_v2_score", "aesthetic_v2")):
        scores[metric] = list(slot.get(registry.scorer(scorer, settings)).marks(seen))
    hps = slot.get(registry.scorer("hps", settings))
    size, scores["hps_v2_score"] = hps.images_a_call, []
    for start in range(0, len(names), size):
        prepared = [hps.prepare(store.read(name)) for name in names[start : start + size]]
        scores["hps_v2_score"] += list(hps.scores(prepared, [prompt] * len(prepared)))
    seconds = time.perf_counter() - began
    assert all(len(values) == len(names) for values in scores.values())
    return seconds


def healed() -> float:
    """Seconds for the same through `heal_scores` on the table that FLEXY_DATABASE_URL names."""
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from flexy_assets.definitions import defs
    from flexy_assets.execution import dagster_instance, run_job
    from flexy_assets.sweep import jobs

    settings = Settings.read()
    database = Database(settings.database_url)
    with dagster_instance(settings) as instance:
        began = time.perf_counter()
        request = jobs.request(instance, database, ImageStore(settings.images), settings)
        result = run_job(instance, defs, "heal_scores", request.run_config)
        seconds = time.perf_counter() - began
    assert result.success
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--part", choices=["bare", "healed"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(bare(Path(os.environ["FLEXY_IMAGES"]), "a red circle") if options.part == "bare" else healed())
        return
    taken: dict[str, list[float]] = {"bare": [], "healed": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(options.turns):
            home = Path(folder, str(turn))
            with empty(home) as database:
                flexyface.bring(database, home / "pictures", goes=[options.images], scored=0)
                url = database.url.render_as_string(hide_password=False)
                chosen = {"FLEXY_HOME": str(home), "FLEXY_IMAGES": str(home / "pictures"), "FLEXY_MODELS": "mini"}
                chosen |= {"FLEXY_DATABASE_URL": url, "FLEXY_PROMPT_COLUMN": flexyface.PROMPT_COLUMN}
                environment = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"} | chosen
                for part, seconds in taken.items():
                    command = [sys.executable, __file__, "--part", part]
                    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                    seconds.append(float(done.stdout.split()[-1]))
                kind = database.url.get_backend_name()
    middle = {part: statistics.median(seconds) for part, seconds in taken.items()}
    ratio = middle["healed"] / middle["bare"]
    print(f"{options.images} images, four mini scorers, results in {kind}")
    for part, seconds in taken.items():
        print(f"{part:8} {middle[part]:7.2f} s   ({', '.join(f'{s:.2f}' for s in seconds)})")
    print(f"orchestrated / bare: {ratio:.3f}   (asked: at most 1.10)")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    answer = {"images": options.images, "database": kind, "seconds": taken, "ratio": ratio}
    (results / "orchestration.json").write_text(json.dumps(answer, indent=2) + "\n")


if __name__ == "__main__":
    main()
