"""The demo report's conclusions against the rule of its drawn world: `python -m benchmarks.truth`.

The rule reads images without a model: whether an image shows the prompt (agreement), and its distance from a clean
drawing (deviation). Its overall score of an image is the mean of both in standard deviations, as the report's is of
the four metrics, which are independent of it. The ground truth is the rule's mean score over a grid of settings, on
scenes and seeds of no sweep. The demo, and sweeps like it with other seeds, are run by the command; of their tables
these claims are checked: the region of the best overall score contains the rule's best settings, the interval of
"beyond N steps" contains the rule's, and the demo's best settings are better than few steps and than high guidance,
and no worse than many steps. Prints each claim with its value and writes benchmarks/results/truth.json. With its
defaults it takes half an hour on one core.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from benchmarks import ROOT, Claim, argument_parser, environment_without, print_claims, run_python, write_results
from benchmarks.mini_quality import difference
from flexy_assets.sweep.analysis.response import MIN_GAIN_SD
from resources.engines import Engine
from resources.mini.evaluation import accuracy
from resources.models import registry
from resources.settings import Settings

Floats = NDArray[np.float64]

STEPS = (4, 6, 8, 11, 15, 20, 28, 40)
GUIDANCES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
DEMO = ("--engine", "mini_sdxl", "--images", "120", "--steps", "4:40:4", "--sampling", "even", "--batch-size", "40")
"""Options of `flexy sweep new` for a sweep like the demo's."""


def rule_scores(engine: Engine, settings: list[tuple[int, float]], images: int, turn: int) -> Floats:
    """Return (settings, 2, images): agreement and minus deviation; image i has the same scene and seed everywhere."""
    scenes = accuracy.held_out_scenes(images, turn)
    results = []
    for steps, guidance in settings:
        readings = accuracy.read_generated_images(engine, scenes, steps, guidance, first_seed=2_000_000 + turn * images)
        agreement = accuracy.attribute_agreement(scenes, readings)["mean"]
        results.append([agreement, -np.array([reading.deviation for reading in readings])])
    return np.array(results)


def saturation_step(curve: Floats, least_gain: float) -> int:
    """Return the number of steps beyond which one more gains less than `least_gain`, of a mean over `STEPS`."""
    every = np.arange(STEPS[0], STEPS[-1] + 1)
    paying = np.flatnonzero(np.diff(PchipInterpolator(np.log2(STEPS), curve)(np.log2(every))) >= least_gain)
    return int(every[paying[-1]]) + 1 if len(paying) else STEPS[0]


def mean_over_guidance(overall: Floats) -> Floats:
    """Return (steps, …), the mean of (steps, guidances, …) over guidance, uniform from lowest to highest."""
    return np.trapezoid(overall, GUIDANCES, axis=1) / (GUIDANCES[-1] - GUIDANCES[0])


def overall_rows(folder: Path, arguments: list[str] | None) -> dict[str, dict[str, Any]]:
    """Run the demo, or a sweep with these options, in its own home; return the overall score's table rows."""
    environment = environment_without("FLEXY_", "DAGSTER_") | {"FLEXY_HOME": str(folder), "DAGSTER_HOME": str(ROOT)}
    environment["FLEXY_DAGSTER_STORAGE"] = str(folder / "dagster")

    def flexy(*command: str) -> dict[str, Any]:
        return dict(json.loads(run_python("flexy_assets.cli.app", *command, "--json", env=environment)))

    if arguments is None:
        flexy("demo")
    else:
        flexy("sweep", "run", flexy("sweep", "new", *arguments)["run"])
    names = ("sweet_spots", "diminishing_returns")
    read = {name: pl.read_parquet(folder / "assets" / f"{name}.parquet") for name in names}
    return {name: table.row(by_predicate=pl.col("target") == "overall", named=True) for name, table in read.items()}


def region_contains(region: list[dict[str, Any]], steps: int, guidance: float) -> bool:
    """Whether the region contains these settings, or the nearest ones of its grid."""
    apart = [abs(np.log2(cell["steps"] / steps)) + abs(cell["guidance"] - guidance) / 11 for cell in region]
    return bool(apart and min(apart) <= 0.15)


def main() -> None:
    parser = argument_parser(__doc__, "truth")
    parser.add_argument("--images", type=int, default=96, help="images per setting of the ground truth")
    parser.add_argument("--sweeps", type=int, default=9, help="sweeps in addition to the demo")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    engine = registry.find_engine("mini_sdxl", Settings.read({})).load()

    truth = rule_scores(engine, [(s, g) for s in STEPS for g in GUIDANCES], options.images, turn=2)
    truth = truth.reshape(len(STEPS), len(GUIDANCES), 2, options.images)
    spread = truth.std(axis=(0, 1, 3))
    overall = (truth / spread[:, None]).mean(axis=2)
    least_gain = MIN_GAIN_SD * float(overall.std())
    means = overall.mean(axis=2)
    row, column = np.unravel_index(means.argmax(), means.shape)
    best = STEPS[row], GUIDANCES[column]
    resampled = [overall[..., rng.integers(options.images, size=options.images)].mean(axis=2) for _ in range(1000)]
    saturates = saturation_step(mean_over_guidance(means), least_gain)
    saturations = [saturation_step(mean_over_guidance(sample), least_gain) for sample in resampled]
    low, high = np.quantile(saturations, [0.025, 0.975])
    print("the rule's overall score, SD; rows are steps, columns guidance")
    print("steps " + "".join(f"{guidance:7g}" for guidance in GUIDANCES))
    for steps, scores in zip(STEPS, means - means.max(), strict=True):
        print(f"{steps:5} " + "".join(f"{score:7.2f}" for score in scores))
    print(f"best: {best[0]} steps at guidance {best[1]:g}; beyond {saturates} ({low:.0f}–{high:.0f}) little gained")

    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for index in range(options.sweeps + 1):
            arguments = [*DEMO, "--seed", str(index)] if index else None
            results.append(overall_rows(Path(temporary, str(index)), arguments))
    inside, held = [], []
    for index, rows_of in enumerate(results):
        spot, returns = rows_of["sweet_spots"], rows_of["diminishing_returns"]
        inside.append(region_contains(spot["region"] or [], *best))
        held.append((returns["low"] or 0) <= saturates <= (returns["high"] or STEPS[-1]))
        print(
            f"{f'sweep of seed {index}' if index else 'the demo':16} best {spot['steps']} steps, guidance "
            f"{spot['guidance']}, region {spot['steps_low']}–{spot['steps_high']} × {spot['guidance_low']}–"
            f"{spot['guidance_high']} ({spot['region_share']:.2f} of the tried settings): {inside[-1]}; "
            f"beyond {returns['beyond']} ({returns['low']}–{returns['high']}): {held[-1]}"
        )
    claims: list[Claim] = [
        ("the demo: the rule's best settings lie in its region", str(inside[0]), "", inside[0]),
        ("the demo: the rule's N lies in its interval of 'beyond N'", str(held[0]), "", held[0]),
    ]
    for claim, values in (("region", inside), ("'beyond N'", held)):
        count = sum(values)
        claims.append((f"all sweeps: {claim}", f"{count} of {len(values)}", "≥ 90 %", count >= 0.9 * len(values)))

    steps, guidance = results[0]["sweet_spots"]["steps"], results[0]["sweet_spots"]["guidance"]
    others = {"4 steps": (4, guidance), "guidance 12": (steps, 12.0), "40 steps": (40, guidance)}
    tried = rule_scores(engine, [(steps, guidance), *others.values()], 2 * options.images, turn=3)
    own, *rest = (tried / spread[:, None]).mean(axis=1)
    for name, other in zip(others, rest, strict=True):
        gain, more = difference(own, other), name == "40 steps"
        met = gain["low"] >= -least_gain * (STEPS[-1] - steps) if more else gain["low"] > 0
        threshold = f"less than {least_gain:.3f} SD a step lost" if more else "better"
        claim = f"the demo's best, {steps} steps at guidance {guidance:g}, against {name}: {threshold}"
        claims.append((claim, "{mean:+.2f} SD ({low:+.2f} to {high:+.2f})".format(**gain), "", met))
    status = print_claims(claims)
    results_by_part = {
        "truth": {"steps": STEPS, "guidances": GUIDANCES, "overall": means.tolist(), "beyond": saturates},
        "sweeps": [t["diminishing_returns"] | t["sweet_spots"] | {"region": None} for t in results],
        "claims": {claim: figure for claim, figure, *_ in claims},
    }
    write_results(options.out, results_by_part)
    sys.exit(status)


if __name__ == "__main__":
    main()
