"""The sweep's analysis on synthetic sweeps with known ground truth: `python -m benchmarks.surfaces`.

200 synthetic sweeps, 40 of each kind (saturating, peaked, flat, interacting, heteroscedastic), of 300 to 2,000 images
each, half of them with prompts that repeat and differ; images at one setting differ by 0.7 to 4 times the surface's
own deviation. Beside them, sweeps whose best lies in a corner or on a plateau, small ones, ones with a metric twice,
and ones whose rows are permuted. Claims: the true optimum is inside the stated region at least 93 % of the time, flat
sweeps are reported as flat at least 90 %, the true number of steps beyond which one more does not pay is inside its
interval at least 93 %, and 95 % intervals cover 95 ± 2 % (those of correlations on 1,000 flat sweeps). Also shown is
the size of regions and intervals. Then the time and memory of all tables and the report at 2,000 and 100,000 rows,
each in a separate process. The analysis was tuned on seeds below 1,000 and from 1,000,000 on; these are others.
Prints a table and writes benchmarks/results/surfaces.json.
"""

import json
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks import argument_parser, run_python, timed, write_results
from flexy_assets.sweep import analysis
from flexy_assets.sweep.analysis import SCORES_TABLE_SCHEMA
from flexy_assets.sweep.analysis.sweet_spots import advise
from flexy_assets.sweep.analysis.times import fit_times

Floats = NDArray[np.float64]
Surface = Callable[[Any, Any], Floats]

SURFACE_KINDS = ("saturating", "peaked", "flat", "interacting", "heteroscedastic")
EDGE_KINDS = ("corner", "plateau")
PERMUTATIONS = 20
REDUNDANT = 0.96
"""Correlation of a metric with the one that it repeats: that of the aesthetic heads V1 and V2."""
CORRELATION = 0.5
"""Planted between CLIP's and V1's noise, within prompts and between them."""


@dataclass(frozen=True)
class Sweep:
    """A synthetic sweep, its expected CLIP score at any settings, and the least gain per step that pays."""

    scores: pl.DataFrame
    surface: Surface
    least_gain: float
    prompts: int


def random_surface(kind: str, rng: np.random.Generator) -> Surface:
    """Return a random surface of the kind, over steps and effective guidance, between about 0 and 1.

    In half of them the effect of guidance is uniform in its logarithm, in the others in guidance itself.
    """
    peak_steps, width = np.log2(rng.uniform(10, 45)), rng.uniform(1.2, 3)
    peak_guidance, breadth = rng.uniform(1.5, 10), rng.uniform(3, 8)
    pace, tilt, weight = rng.uniform(5, 15), rng.uniform(0.5, 2), rng.uniform(0.2, 1)

    def saturating(steps: Floats, guidance: Floats) -> Floats:
        return 1 - np.exp(-steps / pace) + weight * (1 - np.exp(-((guidance - peak_guidance) ** 2) / breadth**2)) * -1

    def peaked(steps: Floats, guidance: Floats) -> Floats:
        return -(((np.log2(steps) - peak_steps) / width) ** 2) - ((guidance - peak_guidance) / breadth) ** 2

    def interacting(steps: Floats, guidance: Floats) -> Floats:
        best = peak_guidance + tilt * (np.log2(steps) - 4)
        return 1.5 * (1 - np.exp(-steps / pace)) - ((guidance - best) / breadth) ** 2

    def rising(steps: Floats, guidance: Floats) -> Floats:
        return np.log2(steps / 4) / 4 + weight * guidance / 12

    def level(steps: Floats, guidance: Floats) -> Floats:
        return 2 - np.exp(-((steps / pace) ** 2)) - weight * np.exp(-((guidance / tilt) ** 2) / 4)

    surfaces: dict[str, Surface] = {
        "corner": rising,
        "plateau": level,
        "saturating": saturating,
        "peaked": peaked,
        "flat": lambda steps, guidance: np.zeros(np.broadcast(steps, guidance).shape),
        "interacting": interacting,
        "heteroscedastic": peaked if rng.random() < 0.5 else saturating,
    }
    chosen, in_octaves = surfaces[kind], rng.random() < 0.5

    def surface(steps: Any, guidance: Any) -> Floats:
        effective = np.maximum(np.asarray(guidance, float), 1)
        return chosen(np.asarray(steps, float), 1 + 11 * np.log(effective) / np.log(12) if in_octaves else effective)

    return surface


def synthetic_sweep(kind: str, seed: int, images: int | None = None, prompts: int | None = None) -> Sweep:
    """Return a sweep of the kind; `prompts` 0 gives every image its own prompt."""
    rng = np.random.default_rng([seed, (*SURFACE_KINDS, *EDGE_KINDS).index(kind)])
    n = int(rng.integers(300, 2001)) if images is None else images
    if prompts is None:
        prompts = int(np.exp(rng.uniform(np.log(8), np.log(150)))) if rng.random() < 0.5 else 0
    raw = random_surface(kind, rng)
    steps, guidance = rng.integers(4, 61, n), rng.uniform(0.5, 12, n).round(2)
    spread = float(np.std(raw(steps, guidance)))
    scale = 0.02 / spread if spread > 0 else 0.0

    def surface(steps: Any, guidance: Any) -> Floats:
        return 0.25 + scale * raw(steps, guidance)

    ratio = np.exp(rng.uniform(np.log(0.7), np.log(4)))
    noise = 0.02 * ratio * np.ones(n)
    if kind == "heteroscedastic":
        noise *= np.exp(
            rng.uniform(0.2, 0.5) * (2 * (np.log2(steps) - 4) / 4 - (guidance - 6) / 6) * rng.choice([-1, 1])
        )
    number = rng.integers(0, prompts, n) if prompts else np.arange(n)
    level = 0.02 * rng.uniform(0.3, 2) * rng.standard_normal((2, number.max() + 1)) * (prompts > 0)
    own = rng.standard_normal((2, n))
    other = CORRELATION * own[0] + np.sqrt(1 - CORRELATION**2) * own[1]
    other_level = CORRELATION * level[0] + np.sqrt(1 - CORRELATION**2) * level[1]
    middle = float(rng.integers(8, 40))
    scores = pl.DataFrame(
        {
            "image_id": [f"{index:06d}" for index in range(n)],
            "run_id": ["4b7193fd"] * n,
            "batch": ["4b7193fd_0000"] * n,
            "engine": [kind] * n,
            "prompt": [f"prompt {index}" for index in number],
            "steps": steps,
            "guidance": guidance,
            "seed": np.arange(n),
            "elapsed_ms": (200 + 50 * steps * (1 + (guidance > 1)) + rng.normal(0, 20, n)).astype(int),
            "image_path": [f"{index}.webp" for index in range(n)],
            "clip_score": surface(steps, guidance) + noise * own[0] + level[0][number],
            "aesthetic_score": 5 + 20 * (0.02 * ratio * other + other_level[number]),
        },
    )
    scores = scores.with_columns(pl.lit(None).alias(name) for name in SCORES_TABLE_SCHEMA if name not in scores.columns)
    # Half a step's gain short of what the curve gains at some number of steps: the truth is then that number.
    across = np.linspace(1, 12, 111)[None, :]
    gains = np.diff(surface(np.arange(middle, middle + 3)[:, None], across).mean(axis=1))
    least = float(gains.mean()) if gains.mean() > 1e-5 else 0.0005
    return Sweep(scores.select(list(SCORES_TABLE_SCHEMA)).cast(dict(SCORES_TABLE_SCHEMA)), surface, least, prompts)


def evaluate_analysis(sweep: Sweep) -> dict[str, Any]:
    """Return the analysis of the sweep's CLIP score compared with the ground truth."""
    scores, surface = sweep.scores.with_columns(aesthetic_score=None), sweep.surface
    responses = [each for each in analysis.fit_responses(scores) if each.target == "clip_score"]
    spot = analysis.find_sweet_spots(responses).row(0, named=True)
    curves, effects = analysis.response_table(responses), analysis.effects_table(responses)
    returns = analysis.diminishing_returns_table(responses, {"clip_score": sweep.least_gain})
    beyond = returns.row(0, named=True)
    grid_steps, grid_guidance = (
        curves.filter(curve="surface")[name].unique().sort().to_numpy() for name in ("steps", "guidance")
    )
    across = np.linspace(grid_guidance[0], grid_guidance[-1], 13)[None, :]
    along = np.geomspace(grid_steps[0], grid_steps[-1], 21)[:, None]
    result: dict[str, Any] = {"images": scores.height, "prompts": sweep.prompts, "flat": not responses[0].moves}
    result |= {"r2": responses[0].r2, "reason": spot["reason"], "region": None}

    def curve(steps: Floats) -> Floats:
        return surface(steps[:, None], across).mean(axis=1)

    def over(guidance: Floats) -> Floats:
        return surface(along, guidance[None, :]).mean(axis=0)

    # The best of all settings in the range, and the setting of the grid that is nearest to it.
    every = np.arange(grid_steps[0], grid_steps[-1] + 1)
    fine = np.linspace(grid_guidance[0], grid_guidance[-1], 221)
    heights = surface(every[:, None], fine[None, :])
    row, column = np.unravel_index(heights.argmax(), heights.shape)
    if spot["steps"] is not None:
        nearest = tuple(
            grid[np.abs(np.log2(grid / best)).argmin()]
            for grid, best in ((grid_steps, every[row]), (grid_guidance, fine[column]))
        )
        deviation, truth = responses[0].deviation, float(surface(spot["steps"], spot["guidance"]))
        result["promise"] = (spot["predicted"] - truth) / deviation
        result["promise, uncorrected"] = result["promise"] + spot["optimism"] / deviation
        result["promise inside"] = spot["low"] <= truth <= spot["high"]
        result["edge said"] = "edge" in (spot["note"] or "")
        inside = {(cell["steps"], cell["guidance"]) for cell in spot["region"]}
        result |= {"region": nearest in inside, "share": spot["region_share"]}
        result["regret"] = float(heights.max() - surface(spot["steps"], spot["guidance"])) / (np.ptp(heights) or 1.0)
        lead_steps, lead_guidance, seconds = find_lead(responses[0])
        loss = float(heights.max() - surface(lead_steps, lead_guidance))
        result |= {"lead regret": loss / (np.ptp(heights) or 1.0), "time share": seconds / spot["seconds"]}
    paying = np.flatnonzero(np.diff(curve(every.astype(float))) >= sweep.least_gain)
    truth = int(every[paying[-1]]) + 1 if len(paying) else int(every[0])
    low, high = beyond["low"], beyond["high"] if beyond["high"] is not None else int(every[-1])
    result |= {"beyond": low <= truth <= high, "beyond width": high - low, "beyond truth": truth}
    result["beyond said"] = (beyond["low"], beyond["beyond"], beyond["high"])

    def coverage(rows: pl.DataFrame, prefix: str, truths: Floats) -> float:
        low, high = (rows[f"{prefix}{end}"].to_numpy() for end in ("low", "high"))
        return float(((low <= truths) & (truths <= high)).mean())

    reach = 0.005 * np.ptp(grid_guidance)
    for name in ("steps", "guidance", "surface"):
        rows = curves.filter(curve=name)
        s, g = (rows[setting].cast(pl.Float64).to_numpy() for setting in ("steps", "guidance"))
        if name == "surface":
            result["surface band"] = coverage(rows, "", surface(s, g))
            continue
        if name == "steps":
            start = np.minimum(s, grid_steps[-1] - 1)
            values, slopes = curve(s), curve(start + 1) - curve(start)
        else:
            g0, g1 = np.clip(g - reach, grid_guidance[0], None), np.clip(g + reach, None, grid_guidance[-1])
            values, slopes = over(g), (over(g1) - over(g0)) / (g1 - g0)
        result |= {f"{name} band": coverage(rows, "", values), f"{name} slope": coverage(rows, "slope_", slopes)}
    for effect in effects.iter_rows(named=True):
        s = np.array([effect["steps_from"], effect["steps_to"]], float)
        g = np.array([effect["guidance_from"], effect["guidance_to"]])
        change = {
            "steps": np.diff(curve(s))[0],
            "guidance": np.diff(over(g))[0],
            "interaction": np.diff(np.diff(surface(s[:, None], g[None, :]), axis=0))[0, 0],
        }[effect["effect"]]
        result[f"{effect['effect']} effect"] = bool(effect["low"] <= change <= effect["high"])
        result[f"{effect['effect']} p"] = effect["p"]
    return result


def find_lead(response: analysis.FittedResponse) -> tuple[float, float, float]:
    """Return the lead of a response that names one: its steps, guidance and seconds."""
    grid, time_model = analysis.make_grid(response.rows), fit_times(response.rows)
    assert time_model is not None
    steps, guidance = grid.flat()
    seconds = time_model.predict(steps, guidance)
    lead = advise(response, grid, response.columns(grid.pairs), seconds, {}).lead
    return float(steps[lead]), float(guidance[lead]), float(seconds[lead])


def evaluate_small(job: tuple[str, int]) -> dict[str, Any]:
    """Return whether a sweep of 16 to 60 images and 1 to 6 prompts names a setting, and whether its region misses."""
    kind, seed = job
    rng = np.random.default_rng([7, seed])
    images, prompts = int(rng.integers(16, 61)), int(rng.integers(1, 7))
    return {"kind": kind, **evaluate_analysis(synthetic_sweep(kind, seed, images, prompts))}


def is_same_permuted(job: tuple[str, int]) -> bool:
    """Return whether a sweep's advice stays the same with its rows shuffled and their ids drawn again."""
    scores = synthetic_sweep(*job, images=300).scores

    def find_spots(table: pl.DataFrame) -> pl.DataFrame:
        return analysis.find_sweet_spots(analysis.fit_responses(table))

    expected = find_spots(scores)
    shuffled = (scores.sample(fraction=1, shuffle=True, seed=seed) for seed in range(PERMUTATIONS))
    return all(find_spots(table.with_columns(image_id=scores["image_id"])).equals(expected) for table in shuffled)


def evaluate_redundant(job: tuple[str, int]) -> dict[str, Any]:
    """Return how a sweep's advice changes when a metric is there a second time, all but the same."""
    scores = synthetic_sweep(*job, images=600).scores
    noise = np.random.default_rng(job[1]).standard_normal(scores.height)
    again = pl.Series(noise * float(scores["aesthetic_score"].std() or 0) * np.sqrt(1 / REDUNDANT**2 - 1))
    twice = scores.with_columns(aes_v2_score=pl.col("aesthetic_score") + again)
    once, both = (
        analysis.describe_advice(analysis.find_sweet_spots(analysis.fit_responses(table)))[job[0]]["lead"]
        for table in (scores, twice)
    )
    shared = analysis.weigh_metrics(twice)[0]["clip_score"] == analysis.weigh_metrics(scores)[0]["clip_score"]
    moved = abs(np.log2(both["steps"] / once["steps"])) if once and both else None
    return {"shared": shared, "same named": bool(once) == bool(both), "octaves": moved}


def evaluate_job(job: tuple[str, int]) -> dict[str, Any]:
    """Return the evaluation of one sweep of a kind and seed."""
    kind, seed = job
    return {"kind": kind, "seed": seed, **evaluate_analysis(synthetic_sweep(kind, seed))}


def evaluate_correlations(seed: int) -> dict[str, Any]:
    """Return whether each interval of a known correlation in a flat sweep of 300 to 2,000 images contains it."""
    sweep = synthetic_sweep("flat", seed)
    pairs = {(row["left"], row["right"]): row for row in analysis.correlate_metrics(sweep.scores).iter_rows(named=True)}
    pair, none = pairs["clip_score", "aesthetic_score"], pairs["steps", "clip_score"]
    result: dict[str, Any] = {"repeating prompts": sweep.prompts > 0}
    ranks = 6 / np.pi * np.arcsin(CORRELATION / 2)
    for name, truth in (("pearson", CORRELATION), ("spearman", ranks), ("within", CORRELATION)):
        for row, value, words in ((pair, truth, "metrics"), (none, 0.0, "steps")):
            if row[name] is not None:
                result[f"{name}, {words}"] = row[f"{name}_low"] <= value <= row[f"{name}_high"]
    return result


def measure_cost(rows: int) -> dict[str, float]:
    """Return the seconds of each table and the report at so many rows, and the process' peak memory."""
    from flexy_assets.sweep.report import build

    half, other = (synthetic_sweep("interacting", seed, rows // 2, prompts) for seed, prompts in ((0, 0), (1, 60)))
    other_scores = other.scores.with_columns(image_id="b" + pl.col("image_id"), engine=pl.lit("other"))
    noise = np.random.default_rng(0).standard_normal((2, rows // 2 * 2))
    scores = pl.concat([half.scores, other_scores]).with_columns(
        aes_v2_score=pl.Series(noise[0]), hps_v2_score=pl.col("clip_score") + pl.Series(0.02 * noise[1])
    )
    tables: dict[str, pl.DataFrame] = {}
    responses, seconds = timed(lambda: analysis.fit_responses(scores))
    figures = {"fit": seconds}

    def measure(name: str, function: Callable[..., pl.DataFrame], *arguments: Any) -> None:
        tables[name], figures[name] = timed(lambda: function(*arguments))

    measure("correlations", analysis.correlate_metrics, scores)
    measure("components", analysis.principal_components, scores)
    measure("times", analysis.times_table, scores)
    measure("regression", analysis.regression_table, responses)
    measure("response", analysis.response_table, responses)
    measure("effects", analysis.effects_table, responses)
    measure("returns", analysis.diminishing_returns_table, responses)
    measure("front", analysis.find_pareto_front, responses)
    measure("spots", analysis.find_sweet_spots, responses)
    measure("comparison", analysis.compare_groups, scores, responses)
    figures["all tables, s"] = sum(figures.values())
    report = partial(build.render_sweep_report, scores, analysis.AnalysisTables(**tables), {})
    figures["report"] = timed(report)[1]
    return figures | {"memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def mean_with_interval(values: pl.Series) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval: Wilson's for booleans, else the normal one.

    NaN of fewer than two values.
    """
    from scipy.stats import binomtest

    known = values.drop_nulls()
    if len(known) < 2:
        return np.nan, np.nan, np.nan
    if known.dtype == pl.Boolean:
        ends = binomtest(int(known.sum()), len(known)).proportion_ci(0.95, "wilson")
        return float(known.mean()), float(ends.low), float(ends.high)
    reach = 1.96 * float(known.std()) / np.sqrt(len(known))
    return float(known.mean()), float(known.mean()) - reach, float(known.mean()) + reach


def main() -> None:
    parser = argument_parser(__doc__, "surfaces")
    parser.add_argument("--sweeps", type=int, default=40, help="sweeps of each kind")
    parser.add_argument("--correlations", type=int, default=1000, help="flat sweeps to evaluate correlations on")
    parser.add_argument("--small", type=int, default=80, help="small sweeps of each kind")
    parser.add_argument(
        "--permuted", type=int, default=4, help="sweeps of each kind to permute, and to repeat a metric in"
    )
    parser.add_argument("--seed", type=int, default=20_000, help="seed of the first sweep")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="*", default=(2_000, 100_000), help="rows to measure time at")
    parser.add_argument("--spent", type=int, help="only measure time at so many rows and print it as JSON")
    options = parser.parse_args()
    if options.spent:
        print(json.dumps(measure_cost(options.spent)))
        return
    jobs = [(kind, options.seed + index) for kind in SURFACE_KINDS for index in range(options.sweeps)]
    seeds = range(options.seed, options.seed + options.correlations)
    with ProcessPoolExecutor(options.workers) as pool:
        evaluations = pl.DataFrame(list(pool.map(evaluate_job, jobs)), infer_schema_length=None)
        evaluations = evaluations.with_columns(pl.col("region").cast(pl.Boolean))
        pairs = list(pool.map(evaluate_correlations, seeds, chunksize=20))
        small_jobs = [(kind, options.seed + index) for kind in SURFACE_KINDS for index in range(options.small)]
        small_rows = list(pool.map(evaluate_small, small_jobs))
        few = [(kind, options.seed + index) for kind in SURFACE_KINDS for index in range(options.permuted)]
        same = list(pool.map(is_same_permuted, few))
        redundant = pl.DataFrame(list(pool.map(evaluate_redundant, few)), infer_schema_length=None)
        edge_jobs = [(kind, options.seed + index) for kind in EDGE_KINDS for index in range(options.sweeps)]
        edges = pl.DataFrame(list(pool.map(evaluate_job, edge_jobs)), infer_schema_length=None)
        edges = edges.with_columns(pl.col("region").cast(pl.Boolean))
    small = pl.DataFrame(small_rows, infer_schema_length=None).with_columns(pl.col("region").cast(pl.Boolean))
    correlations = pl.DataFrame(pairs, infer_schema_length=None)
    moving, flat = evaluations.filter(pl.col("kind") != "flat"), evaluations.filter(kind="flat")
    stated = moving.drop_nulls("region")
    series: dict[str, pl.Series] = {
        "optimum inside the region": stated["region"],
        "flat reported as flat": flat["flat"],
        "not flat reported as not flat": ~moving["flat"],
        "true steps inside 'beyond'": evaluations["beyond"],
        "region's share of what was tried": stated["share"],
        "regions below half of it": stated["share"] < 0.5,
        "stated best's loss, of the surface's range": stated["regret"],
        "lead's loss, of the surface's range": stated["lead regret"],
        "lead's time, of the best's": stated["time share"],
        "stated best's promise less its worth, SD": stated["promise"],
        "the same without its correction, SD": stated["promise, uncorrected"],
        "stated best's worth inside its band": stated["promise inside"].cast(pl.Boolean),
        "not flat and a setting is named": moving["region"].is_not_null(),
        "small sweeps: a setting is named": small["region"].is_not_null(),
        "small sweeps: named, and the region misses the truth": ~small["region"].fill_null(True),
        "rows permuted 20 times: the same advice": pl.Series(same),
        "a metric twice: it shares its weight": redundant["shared"],
        "a metric twice: a setting is named as before": redundant["same named"],
        "a metric twice: the lead's steps move, octaves": redundant["octaves"],
        "'beyond' interval's share of the steps": moving["beyond width"] / 56,
    }
    for kind in EDGE_KINDS:
        of_kind = edges.filter(kind=kind)
        named, unnamed = of_kind.drop_nulls("region"), of_kind.filter(pl.col("region").is_null())
        series |= {
            f"{kind}: a setting is named": of_kind["region"].is_not_null(),
            f"{kind}: optimum inside the region": named["region"],
            f"{kind}: lead's loss, of the surface's range": named["lead regret"],
            f"{kind}: lead's time, of the best's": named["time share"],
            f"{kind}: the best is said to be at an edge": named["edge said"].cast(pl.Boolean),
            f"{kind}: not named, as there is no bend": unnamed["reason"].cast(pl.String).str.contains("bend"),
        }
    covered = [name for name in evaluations.columns if name.endswith((" band", " slope", " effect"))]
    repetition = {"prompts repeat": True, "no prompt repeats": False}
    for words, repeating in repetition.items():
        rows = evaluations.filter((pl.col("prompts") > 0) == repeating)
        series |= {f"{name}, {words}": rows[name] for name in covered}
    for words, repeating in repetition.items():
        rows = correlations.filter(pl.col("repeating prompts") == repeating)
        names = [name for name in rows.columns[1:] if rows[name].count()]
        series |= {f"correlation: {name}, {words}": rows[name] for name in names}
    figures = {name: mean_with_interval(values) for name, values in series.items()}
    kinds = {
        kind: {n: mean_with_interval(rows[n]) for n in ("flat", "region", "share", "beyond")}
        for (kind,), rows in moving.partition_by("kind", maintain_order=True, as_dict=True).items()
    }
    for name, (mean, low, high) in figures.items():
        print(f"{name:56} {mean:6.3f} ({low:.3f} to {high:.3f})")
    for kind, of_kind in kinds.items():
        print(f"{kind:16}", ", ".join(f"{name} {mean:.3f}" for name, (mean, _, _) in of_kind.items()))
    times = {rows: json.loads(run_python(__spec__.name, "--spent", rows)) for rows in options.rows}
    for rows, seconds in times.items():
        print(f"{rows:,} rows:", ", ".join(f"{name} {figure:.1f}" for name, figure in seconds.items()))
    results = {"sweeps": len(jobs), "seed": options.seed, "figures": figures, "kinds": kinds, "times": times}
    write_results(options.out, results)


if __name__ == "__main__":
    main()
