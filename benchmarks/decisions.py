"""What each rule's setting is worth on images it has not seen: `python -m benchmarks.decisions --csv FILE`.

The images of a table (FlexyFace's CSV, or one of `flexy export`) are dealt into two halves, again and again. One half
names a setting by each rule; the other says what it is worth: the mean overall score of the k images with the nearest
settings (log2 of steps and of effective guidance, each in shares of its range). Rules are the lead, the best, 25 steps
at guidance 7 and, where `--baseline` is a checkout of commit 8f2bc01, its best and its quickest, on the same halves and
with the same weights. Overall is in standard deviations between images. Intervals are 95 % over splits: these share
their images, so that they are about this table and not about others like it. By how much the response at the lead is
above its worth is set beside two causes: the optimism of having selected it, as estimated, and how far a mean over the
nearest images flattens the response, by the model of the other half. The band is for the expected score; a mean of k
images scatters around that, and a second count of what lies inside allows for it. Prints a table and whether each claim
is met, and writes benchmarks/results/decisions.json.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks import Claim, argument_parser, print_claims, write_results
from flexy_assets.sweep import analysis
from flexy_assets.sweep.analysis import METRIC_LABELS, SCORES_TABLE_SCHEMA
from flexy_assets.sweep.analysis.basis_functions import to_coordinates
from flexy_assets.sweep.analysis.response_model import fit_response
from flexy_assets.sweep.analysis.rows import add_weighted_overall, float_column
from flexy_assets.sweep.analysis.times import fit_times

Floats = NDArray[np.float64]

RULE_OF_THUMB: Final = (25, 7.0)
BASELINE_SCRIPT: Final = """
import json, sys
import polars as pl
from flexy_assets.sweep import analysis
for path in sys.argv[2:]:
    scores = pl.read_parquet(path)
    spots = analysis.sweet_spots(scores, analysis.regression(scores), json.loads(sys.argv[1]))
    print(json.dumps({row["target"]: [row["steps"], row["guidance"]] for row in spots.iter_rows(named=True)}))
"""
"""The best and the quickest setting of each file's images, by the functions of commit 8f2bc01."""

BASELINE_ROWS: Final = {"best": "overall", "quickest": "value"}


def read_table(path: Path) -> pl.DataFrame:
    """Return the rows of a CSV as the images of one engine."""
    table = pl.read_csv(path)
    ids = {"image_id": [f"{index:06d}" for index in range(table.height)], "engine": ["table"] * table.height}
    table = table.with_columns(pl.Series(name, values) for name, values in ids.items())
    absent = [pl.lit(None).alias(name) for name in SCORES_TABLE_SCHEMA if name not in table.columns]
    return table.with_columns(absent).select(list(SCORES_TABLE_SCHEMA)).cast(SCORES_TABLE_SCHEMA, strict=False)


def deal_halves(rows: int, splits: int, seed: int) -> list[NDArray[np.bool_]]:
    """Return (rows,) which images name the setting, of each split."""
    halves = []
    for split in range(splits):
        half = np.zeros(rows, dtype=bool)
        half[np.random.default_rng([seed, split]).permutation(rows)[: rows // 2]] = True
        halves.append(half)
    return halves


def run_baseline(folder: Path, halves: list[pl.DataFrame], weights: dict[str, float]) -> list[dict[str, list[Any]]]:
    """Return the settings that the checkout names from each half."""
    with TemporaryDirectory() as place:
        paths = [Path(place) / f"{index}.parquet" for index in range(len(halves))]
        for half, path in zip(halves, paths, strict=True):
            half.write_parquet(path)
        command = [sys.executable, "-c", BASELINE_SCRIPT, json.dumps(weights), *map(str, paths)]
        environment = os.environ | {"PYTHONPATH": str(folder.resolve())}
        printed = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in printed.stdout.splitlines()]


def mean_and_interval(values: Floats) -> tuple[float, float, float]:
    """Return the mean of values (splits,) and its 95 % interval."""
    reach = 1.96 * float(values.std(ddof=1)) / np.sqrt(len(values))
    return float(values.mean()), float(values.mean()) - reach, float(values.mean()) + reach


def main() -> int:
    parser = argument_parser(__doc__, "decisions")
    parser.add_argument("--csv", type=Path, required=True, help="the table")
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--seed", type=int, default=18, help="of the splits")
    parser.add_argument("--nearest", type=int, default=60, help="images whose mean is a setting's worth")
    parser.add_argument("--baseline", type=Path, help="a checkout of commit 8f2bc01")
    parser.add_argument("--equal", action="store_true", help="weigh all metrics equally instead of by default")
    parser.add_argument("--permutations", type=int, default=0, help="times to permute the rows with their ids")
    options = parser.parse_args()
    scores = analysis.measured_images(read_table(options.csv))
    weights, notes = analysis.weigh_metrics(scores, dict.fromkeys(METRIC_LABELS, 1.0) if options.equal else None)
    print("; ".join([f"{METRIC_LABELS[metric]} {share:.2f}" for metric, share in weights.items()] + notes))
    scored = add_weighted_overall(scores, weights)
    overall = float_column(scored, "overall")
    places = to_coordinates(float_column(scored, "steps"), float_column(scored, "guidance"))
    extent = np.ptp(places, axis=0)
    low, high = places.min(axis=0), places.max(axis=0)
    halves = deal_halves(scores.height, options.splits, options.seed)

    def find_nearest(half: NDArray[np.bool_], setting: Any) -> NDArray[np.intp]:
        """Return the images of the other half that are nearest to a setting."""
        distance = np.hypot(*((places[~half] - to_coordinates(*setting)) / extent).T)
        return np.flatnonzero(~half)[np.argsort(distance, kind="stable")[: options.nearest]]

    def worth(half: NDArray[np.bool_], setting: Any) -> float:
        """Return what a setting is worth on the other half."""
        return float(overall[find_nearest(half, setting)].mean())

    def flattening(half: NDArray[np.bool_], setting: Any) -> float:
        """Return what the other half's response is higher at a setting than on average over the nearest images."""
        response = fit_response("table", "overall", scored.filter(pl.Series(~half)))
        at, around = to_coordinates([setting[0]], [setting[1]]), places[find_nearest(half, setting)]
        return float(response.predict(at)[0] - response.predict(around).mean())

    advice, optimism = [], []
    for half in halves:
        spots = analysis.find_sweet_spots(analysis.fit_responses(scores.filter(pl.Series(half)), weights))
        advice.append(analysis.describe_advice(spots)["table"])
        optimism.append(spots.row(by_predicate=pl.col("target") == "value", named=True)["optimism"])
    named = [index for index, each in enumerate(advice) if each["lead"]]
    settings: dict[str, list[Any]] = {
        rule: [(advice[index][rule]["steps"], advice[index][rule]["guidance"]) for index in named]
        for rule in ("lead", "best")
    }
    settings["25 steps at 7"] = [RULE_OF_THUMB] * len(named)
    if options.baseline:
        baseline = run_baseline(options.baseline, [scores.filter(pl.Series(halves[i])) for i in named], weights)
        settings |= {f"baseline {name}": [each[key] for each in baseline] for name, key in BASELINE_ROWS.items()}
    kept = {
        rule: np.array([worth(halves[index], setting) for index, setting in zip(named, chosen, strict=True)])
        for rule, chosen in settings.items()
    }
    results: dict[str, Any] = {"weights": weights, "splits": options.splits, "named": len(named), "rules": {}}
    for rule, chosen in settings.items():
        steps = np.array([setting[0] for setting in chosen])
        at = to_coordinates(steps, np.array([setting[1] for setting in chosen]))
        ends = np.isclose(at, low, atol=0.02) | np.isclose(at, high, atol=0.02)
        row: dict[str, Any] = {"kept": mean_and_interval(kept[rule])}
        row["lead less this"] = mean_and_interval(kept["lead"] - kept[rule])
        row |= {"steps": np.quantile(steps, [0.1, 0.5, 0.9]).tolist(), "corners": float(ends.all(axis=1).mean())}
        results["rules"][rule] = row
        kept_text, gain = (f"{v[0]:+.3f} ({v[1]:+.3f} to {v[2]:+.3f})" for v in (row["kept"], row["lead less this"]))
        print(f"{rule:18} {kept_text}, lead less this {gain}, steps {row['steps']}, corners {row['corners']:.0%}")
    leads = [advice[index]["lead"] for index in named]
    promised, band_low, band_high = (np.array([lead[name] for lead in leads]) for name in ("predicted", "low", "high"))
    steps, corners = (results["rules"]["lead"][name] for name in ("steps", "corners"))
    time_model = fit_times(scores)
    thumb_seconds = time_model.predict(np.array([25.0]), np.array([7.0]))[0] if time_model else np.nan
    seconds = float(np.mean([lead["seconds"] or np.nan for lead in leads]) / thumb_seconds)
    inside = float(((band_low <= kept["lead"]) & (kept["lead"] <= band_high)).mean())
    nearest = [find_nearest(halves[index], setting) for index, setting in zip(named, settings["lead"], strict=True)]
    scatter = np.array([1.96 * overall[each].std(ddof=1) / np.sqrt(len(each)) for each in nearest])
    error = kept["lead"] - promised
    reach = np.hypot(np.where(error > 0, band_high - promised, promised - band_low), scatter)
    inside_with_scatter = float((np.abs(error) <= reach).mean())
    promise = float(-error.mean())
    selected = float(np.mean([optimism[index] for index in named]))
    flat = [flattening(halves[index], setting) for index, setting in zip(named, settings["lead"], strict=True)]
    flattened = float(np.mean(flat))
    total = promise + selected
    print(
        f"the response at the lead less its worth {total:+.3f}: optimism {selected:+.3f}, flattening {flattened:+.3f}"
    )
    results |= {"seconds of 25 steps'": seconds, "inside its band": inside, "promised less kept": promise}
    results |= {"inside with scatter": inside_with_scatter, "optimism": selected, "flattening": flattened}
    claims: list[Claim] = [
        ("halves that name a setting", f"{len(named)} of {options.splits}", "all", len(named) == options.splits),
        ("lead's seconds, of 25 steps'", f"{seconds:.2f}", "≤ 0.9", seconds <= 0.9),
        ("90 % of splits to 10 %, steps", f"{steps[2] / steps[0]:.2f}", "≤ 1.7", steps[2] / steps[0] <= 1.7),
        ("leads in a corner", f"{corners:.0%}", "0%", not corners),
        ("promised less kept, SD", f"{promise:+.3f}", "≤ 0.03", promise <= 0.03),
        ("held-out value inside the band", f"{inside:.2f}", "≥ 0.93", inside >= 0.93),
        ("the same, with its own scatter", f"{inside_with_scatter:.2f}", "≥ 0.93", inside_with_scatter >= 0.93),
    ]
    for rule, least in {"baseline best": 0.03, "baseline quickest": 0.04, "25 steps at 7": -0.03}.items():
        if rule in settings:
            mean, from_, to = results["rules"][rule]["lead less this"]
            met = mean >= least and (from_ > 0 or least < 0)
            claims.append((f"lead less {rule}", f"{mean:+.3f} ({from_:+.3f} to {to:+.3f})", f"≥ {least}", met))
    if options.permutations:
        same = count_same_advice(scores, weights, options.permutations)
        results["same after permutation"] = same
        count = f"{same} of {options.permutations}"
        claims.append(("same answer, rows permuted", count, "all", same == options.permutations))
    write_results(options.out, results)
    return print_claims(claims)


def count_same_advice(scores: pl.DataFrame, weights: dict[str, float], permutations: int) -> int:
    """Return how often the advice stays the same when the rows are shuffled and their ids drawn again."""

    def advise(table: pl.DataFrame) -> Any:
        return analysis.describe_advice(analysis.find_sweet_spots(analysis.fit_responses(table, weights)))

    answer, same = advise(scores), 0
    for seed in range(permutations):
        shuffled = scores.sample(fraction=1, shuffle=True, seed=seed)
        same += advise(shuffled.with_columns(image_id=scores["image_id"])) == answer
    return same


if __name__ == "__main__":
    sys.exit(main())
