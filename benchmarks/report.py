"""The sweep's report on large sweeps: `python -m benchmarks.report`.

Makes sweeps of 2,000 and of 100,000 rows (two engines, four runs, 40 prompts) whose images are like photographs, and
measures for each, in a process of its own: seconds of the analysis, of the thumbnails and of the page, the page's size
and the peak memory. Then the milliseconds that a newly started Chromium takes from navigation to load and until the
first plot is drawn (median of five; none without a Chromium).
Targets: 2,000 rows within 60 s and 15 MB, opening within 2 s; 100,000 rows within 5 minutes and 2 GB.
Prints a table and writes benchmarks/results/report.json.
"""

import argparse
import json
import resource
import statistics
import tempfile
from collections.abc import Callable
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from benchmarks import argument_parser, run_python, timed, write_results
from flexy_assets.reporting.text_tables import format_text_table
from flexy_assets.reporting.thumbnails import make_thumbnails
from flexy_assets.sweep.analysis import METRIC_LABELS, SCORES_TABLE_SCHEMA, AnalysisTables
from flexy_assets.sweep.report import build, points
from resources.images import ImageStore
from tests.support.browser import Browser, program

DISTINCT_IMAGES = 64
"""Image files; further rows get links to the same files."""


def photograph(seed: int, side: int = 512) -> Image.Image:
    """Return waves of colour, discs, 1/f² texture and sensor noise: an image that compresses like a photograph."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    light = np.full((side, side, 3), 128.0)
    for _ in range(8):
        across, down = rng.normal(0, 3, 2)
        light += np.sin(2 * np.pi * (across * x + down * y + rng.random()))[..., None] * rng.normal(0, 20, 3)
    for _ in range(8):
        disc = (x - rng.random()) ** 2 + (y - rng.random()) ** 2 < rng.uniform(0.05, 0.3) ** 2
        light += disc[..., None] * rng.normal(0, 40, 3)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = 1
    texture = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(side, side))) / frequency)
    light += 30 * (texture / texture.std())[..., None] + rng.normal(0, 8, light.shape)
    return Image.fromarray(light.clip(0, 255).astype(np.uint8))


def sweep(images: int, seed: int = 0) -> pl.DataFrame:
    """Return scores of two engines in four runs, 40 prompts, with a best setting that the engines do not share."""
    rng = np.random.default_rng(seed)
    index = np.arange(images)
    steps, guidance = rng.integers(4, 61, images), rng.uniform(0.5, 12, images).round(2)
    best = np.where(index % 2, 5.0, 7.0)
    surface = -(np.log2(steps / 24) ** 2) - ((guidance - best) / 4) ** 2
    prompts = [f"a photograph of subject {n} in the light of an early morning, 35 mm" for n in range(40)]
    return pl.DataFrame(
        {
            "image_id": [f"{n:08d}-0000-4000-8000-000000000000" for n in index],
            "run_id": [f"{n % 4 + 1:08d}-0000-4000-8000-000000000000" for n in index],
            "batch": [f"{n % 4 + 1:08d}_{n // 400:04d}" for n in index],
            "engine": [("realvis_xl", "sd3_medium")[n % 2] for n in index],
            "prompt": [prompts[n // 4 % 40] for n in index],
            "steps": steps,
            "guidance": guidance,
            "seed": rng.integers(0, 2**31, images),
            "elapsed_ms": 200 + 50 * steps + rng.integers(0, 40, images),
            "image_path": [f"{n // 400:04d}/{n:06d}.png" for n in index],
            **{metric: 5 + surface + rng.normal(0, 1, images) for metric in METRIC_LABELS},
        },
        schema_overrides=SCORES_TABLE_SCHEMA,
    )


def write_images(folder: Path, paths: list[str]) -> None:
    """Write an image at each of the paths."""
    for index, path in enumerate(paths):
        (folder / path).parent.mkdir(exist_ok=True)
        if index < DISTINCT_IMAGES:
            photograph(index).save(folder / path)
        else:
            (folder / path).hardlink_to(folder / paths[index % DISTINCT_IMAGES])


def measure(folder: Path, rows: int) -> dict[str, float]:
    """Measure one report, which is left in the folder as `report.html`."""
    figures: dict[str, float] = {}

    def measured(what: str, call: Callable[[], Any]) -> Any:
        result, seconds = timed(call)
        figures[f"{what}, s"] = round(seconds, 2)
        return result

    scores = sweep(rows)
    tables = measured("analysis", lambda: AnalysisTables.of(scores))
    needed = measured("the images to show", lambda: build.sweep_thumbnails_needed(scores))
    shown = scores.filter(pl.col("image_id").is_in(needed))
    paths = shown["image_path"].to_list()
    write_images(folder, paths)
    store = ImageStore(str(folder))
    small = measured("thumbnails", lambda: make_thumbnails(store.read, paths, points.MAX_BYTES))
    thumbnails = {image_id: small[path] for image_id, path in zip(shown["image_id"], paths, strict=True)}
    page = measured("page", lambda: build.render_sweep_report(scores, tables, thumbnails))
    (folder / "report.html").write_text(page, encoding="utf-8")
    figures["all, s"] = round(sum(figures.values()), 2)
    return figures | {
        "images": len(thumbnails),
        "bytes a thumbnail": round(statistics.mean(map(len, thumbnails.values()))),
        "longer side of a thumbnail, px": max(Image.open(BytesIO(next(iter(thumbnails.values())))).size),
        "page, MB": round(len(page.encode()) / 1e6, 2),
        "highest memory, MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def measure_opening(page: Path, times: int = 5) -> dict[str, float | None]:
    """Return milliseconds from navigation in a Chromium that has just been started."""
    loads, plots = [], []
    for _ in range(times if program() else 0):
        with closing(Browser(str(program()))) as browser:
            browser.open(page)
            loads.append(browser.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
            plots.append(browser.evaluate(FIRST_PLOT))
    times_of = {"load, ms": loads, "first plot, ms": plots}
    return {name: round(statistics.median(each)) if each else None for name, each in times_of.items()}


FIRST_PLOT = """new Promise(done => {
  const look = () => document.querySelector(".plot .point") ? done(performance.now()) : requestAnimationFrame(look);
  look();
})"""


def main() -> None:
    parser = argument_parser(__doc__, "report")
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000, 100_000])
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.rows[0])))
        return
    results: dict[int, dict[str, float | None]] = {}
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            figures = json.loads(run_python(__spec__.name, "--only", folder, "--rows", rows))
            results[rows] = figures | measure_opening(Path(folder) / "report.html")
    names = next(iter(results.values()))
    columns = {f"{rows:,} rows": figures for rows, figures in results.items()}
    print(format_text_table([{"": name} | {rows: columns[rows][name] for rows in columns} for name in names]))
    write_results(options.out, results)


if __name__ == "__main__":
    main()
