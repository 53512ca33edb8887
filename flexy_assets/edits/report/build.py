"""One HTML file that says whose edits are better, with intervals and costs, and shows every candidate.

The file fetches nothing: Plotly is inlined, images are data URIs. Prompts, ids and errors come from outside and are
treated as hostile: Jinja escapes them, and the page's policy lets only its own script run.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

import polars as pl

from flexy_assets.edits.labels import METHOD_NAMES, format_denoises, method_name, metric_label, metric_title
from flexy_assets.edits.plots import gain_by_budget, method_colours, scores_by_budget
from flexy_assets.edits.report import summary
from flexy_assets.edits.report.cards import LOCAL_STAGES, CardImages, task_cards
from flexy_assets.edits.report.summary import MIN_TASKS, Pair, edit_verdict
from flexy_assets.reporting.figures import Figure
from flexy_assets.reporting.formatting import format_count, join_words
from flexy_assets.reporting.html import load_template
from flexy_assets.storage.edits import EDIT_CANDIDATES_SCHEMA
from resources.metrics import Metric
from resources.metrics.edits import METRICS

MAX_TASKS: Final = 300  # shown one by one; the statistics above them count all
MAX_THUMBNAILS: Final = 6000  # on one page
MAX_BYTES: Final = 11_000_000  # of thumbnails: more would make a page too heavy to open on a phone or to send

ROLES: Final = {
    "ground truth": "Ground truth",
    "independent": "Independent: not used for selection",
    "selecting": "Selecting: used for selection, so no evidence",
}

Row = dict[str, Any]

_TASK = ["run", "task_id"]
_SEARCH = [*_TASK, "method", "budget"]


def edit_thumbnails_needed(candidates: pl.DataFrame) -> list[str]:
    """Return the image paths that the report shows, at most `MAX_THUMBNAILS`: sources and winners first."""
    shown = _shown_candidates(_complete(candidates))
    finished = shown.filter(pl.col("stop_step") == pl.col("num_steps"))
    paths = (shown["source_path"], shown.filter("chosen")["image_path"], finished["image_path"], shown["image_path"])
    return pl.concat(paths).drop_nulls().unique(maintain_order=True).head(MAX_THUMBNAILS).to_list()


def render_edit_report(
    candidates: pl.DataFrame,
    comparison: pl.DataFrame,
    levels: pl.DataFrame,
    thumbnails: Mapping[str, str],
    about: Mapping[str, str],
    metrics: Sequence[Metric] = (),
) -> str:
    """The report as one HTML document.

    `candidates` have `storage.edits.EDIT_CANDIDATES_SCHEMA`, every further column of numbers is a metric; `comparison`
    and `levels` are those of `comparison`. `thumbnails` are data URIs by image path, those of
    `edit_thumbnails_needed`; beyond `MAX_BYTES` they are left out, and the page says so. `about` is shown unchanged,
    name and text. `metrics` are those of the comparison: which way is better, and what is a tie in a single task.
    """
    candidates = _complete(candidates)
    needed = edit_thumbnails_needed(candidates)
    pictures = CardImages(_fitting(needed, thumbnails))
    steps, sides = _common_steps(candidates), _shown_budgets(candidates)
    known = METRICS | {metric.name: metric for metric in metrics}
    lower = {metric.name for metric in known.values() if not metric.higher_is_better}
    pairs = summary.method_pairs(comparison)
    rows = pairs[0].rows(comparison) if pairs else []
    lead = summary.decisive_row(rows)
    judge = known.get(lead["metric"]) if lead else None
    methods = [*dict.fromkeys([*sides, *levels["method"]])]
    shown_metrics = [name for name in _metrics(candidates) if name != "potential"]
    by_task = _shown_candidates(candidates).partition_by(_TASK, maintain_order=True, include_key=True)
    tasks = [task_cards(task, list(sides), shown_metrics, judge, pictures) for task in by_task if task.height]
    figures = _figures(comparison, levels, lead, methods, lower, steps)
    return load_template(
        "edits/report/report.html.j2", {"named": method_name, "titled": metric_title, "counted": format_count}
    ).render(
        answer=summary.summarize_comparison(candidates, comparison, levels, steps),
        selecting=join_words([metric_label(row["metric"]) for row in rows if row["role"] == "selecting"]),
        about=about,
        counts=_counts(candidates),
        tables=[_table(pair, comparison, levels, steps) for pair in pairs],
        fewest=MIN_TASKS,
        lower=lower,
        methods=methods,
        figures=figures,
        data={key: {"data": f.data, "layout": f.layout} for drawn in figures.values() for key, f in drawn},
        colours=method_colours(methods),
        levels=[row | {"at": format_denoises(row["budget"], steps)} for row in levels.to_dicts()],
        budgets=levels["budget"].n_unique(),
        costs=_costs(candidates, steps),
        equality=_equality(candidates, pairs),
        local=_local_stage_note(candidates, steps),
        tasks=tasks,
        all_tasks=candidates.select(_TASK).unique().height,
        sides={method_name(method): format_denoises(budget, steps) for method, budget in sides.items()},
        other_budgets=candidates.select("method", "budget").unique().height > len(sides),
        left_out=len(pictures.missing - (set(needed) - thumbnails.keys())),
        unreadable=len(pictures.missing & (set(needed) - thumbnails.keys())),
    )


def _fitting(needed: Sequence[str], thumbnails: Mapping[str, str]) -> dict[str, str]:
    """Return the first of the needed thumbnails, up to `MAX_BYTES` in all."""
    available = [path for path in needed if path in thumbnails]
    sizes = accumulate(len(thumbnails[path]) for path in available)
    return {path: thumbnails[path] for path, size in zip(available, sizes, strict=True) if size <= MAX_BYTES}


def _complete(candidates: pl.DataFrame) -> pl.DataFrame:
    """Return all columns of `EDIT_CANDIDATES_SCHEMA`, and metrics as floats, null where they are not finite."""
    kinds = {name: kind for name, kind in EDIT_CANDIDATES_SCHEMA.items() if name not in candidates.columns}
    absent = [pl.lit(None).cast(kind).alias(name) for name, kind in kinds.items()]
    floats = candidates.with_columns(*absent, pl.col(_metrics(candidates)).cast(pl.Float64))
    finite = [pl.when(pl.col(name).is_finite()).then(name).alias(name) for name in _metrics(candidates)]
    return floats.with_columns(*finite, pl.col("chosen").fill_null(False))


def _metrics(candidates: pl.DataFrame) -> list[str]:
    numbers = (name for name, kind in candidates.schema.items() if kind.is_numeric() or kind == pl.Boolean)
    return [name for name in numbers if name not in EDIT_CANDIDATES_SCHEMA]


def _shown_budgets(candidates: pl.DataFrame) -> dict[str, int]:
    """Return the budget that each method is shown at: the largest that all have, or its own largest."""
    present = set(candidates["method"])
    methods = [*(name for name in METHOD_NAMES if name in present), *sorted(present - METHOD_NAMES.keys())]
    budgets = {method: set(candidates.filter(method=method)["budget"]) for method in methods}
    common = set.intersection(*budgets.values()) if budgets else set()
    return {method: max(common or own) for method, own in budgets.items()}


def _shown_candidates(candidates: pl.DataFrame) -> pl.DataFrame:
    """Return the shown candidates, each once, in its last state, with `nfe` and `elapsed_ms` of all its steps."""
    tasks = candidates.select(_TASK).unique(maintain_order=True).head(MAX_TASKS)
    budget = pl.col("method").replace_strict(_shown_budgets(candidates), default=None, return_dtype=pl.Int64)
    own = [*_SEARCH, "name"]
    return (
        candidates.filter(pl.col("budget") == budget)
        .join(tasks, on=_TASK, how="semi", nulls_equal=True, maintain_order="left")
        .with_columns(pl.col("nfe", "elapsed_ms").sum().over(own))
        .filter(pl.col("stop_step") == pl.col("stop_step").max().over(own))
    )


def _common_steps(candidates: pl.DataFrame) -> int | None:
    """Return the steps of a full denoise, None where candidates differ."""
    steps = candidates.filter(pl.col("strength") == 1)["num_steps"].unique()
    return steps[0] if len(steps) == 1 else None


def _counts(candidates: pl.DataFrame) -> dict[str, int]:
    each = {"task": _TASK, "candidate": [*_SEARCH, "name"]}
    counts = {noun: candidates.select(columns).unique().height for noun, columns in each.items()}
    return counts | {"denoising step": int(candidates["nfe"].sum())}


def _table(pair: Pair, comparison: pl.DataFrame, levels: pl.DataFrame, steps: int | None) -> dict[str, Any]:
    """Return a pair's title and its rows (`groups`) by the metrics' roles."""
    groups: dict[str, list[Row]] = {}
    better = {"better": f"{method_name(pair.method)} better", "worse": f"{method_name(pair.rival)} better"}
    words = better | {"no difference": "not significant", "too few": "too few tasks"}
    for row in sorted(pair.rows(comparison), key=lambda row: list(ROLES).index(row["role"])):
        is_selecting = row["role"] == "selecting"
        texts = {
            "means": [summary.mean_score(levels, row["metric"], *side) for side in pair.sides],
            "gain": summary.format_gain(row),
            "strong": not is_selecting and edit_verdict(row) in better,
            "verdict": "no evidence" if is_selecting else words[edit_verdict(row)],
        }
        groups.setdefault(ROLES[row["role"]], []).append(row | texts)
    ours, theirs = (f"{method_name(method)} at {format_denoises(budget, steps)}" for method, budget in pair.sides)
    return {"pair": pair, "title": f"{ours} against {theirs}", "groups": groups}


def _figures(
    comparison: pl.DataFrame,
    levels: pl.DataFrame,
    lead: Row | None,
    methods: Sequence[str],
    lower: set[str],
    steps: int | None,
) -> dict[str, list[tuple[str, Figure]]]:
    """Return by role each metric over budgets with its element's id, and after the decisive one its gain."""
    by_role: dict[str, list[tuple[str, Figure]]] = {}
    if levels["budget"].n_unique() < 2:
        return by_role
    colours, count = method_colours(methods), 0
    for role, metric in levels.select("role", "metric").unique(maintain_order=True).iter_rows():
        note = " Lower is better." if metric in lower else ""
        figures: list[Figure | None] = [scores_by_budget(levels, metric, colours, steps, note)]
        if lead and metric == lead["metric"]:
            figures.append(gain_by_budget(comparison, metric, lead["method"], lead["rival"], colours, steps))
        for figure in filter(None, figures):
            by_role.setdefault(role, []).append((f"figure-{count}", figure))
            count += 1
    return by_role


def _costs(candidates: pl.DataFrame, steps: int | None) -> list[Row]:
    """Return a row per method and budget: the least and most NFE of a task, and means of its other costs."""
    finished = (pl.col("stop_step") == pl.col("num_steps")).any().over(*_SEARCH, "name")
    names = pl.col("name")
    costs = {
        "finished": names.filter("finished").n_unique(),
        "stopped": names.filter(~pl.col("finished")).n_unique(),
        "seconds": _seconds("elapsed_ms"),
        "scoring": _seconds("scored_ms"),
    }
    per_task = candidates.with_columns(finished=finished).group_by(_SEARCH).agg(pl.sum("nfe"), **costs)
    bounds = pl.len().alias("tasks"), pl.min("nfe").alias("nfe_low"), pl.max("nfe").alias("nfe_high")
    rows = per_task.group_by("method", "budget").agg(*bounds, pl.mean(*costs))
    return [row | {"at": format_denoises(row["budget"], steps)} for row in rows.sort("budget", "method").to_dicts()]


def _seconds(milliseconds: str) -> pl.Expr:
    """Return their sum in seconds; null where none was recorded, rather than 0."""
    recorded = pl.col(milliseconds)
    return pl.when(recorded.is_not_null().any()).then(recorded.sum() / 1000)


def _equality(candidates: pl.DataFrame, compared: Sequence[Pair]) -> str:
    """Say whether both sides ran the same number of steps in every task at equal budgets."""
    equal = [pair for pair in compared if pair.equal]
    if not equal:
        return "No two searches were given the same budget, so there is no comparison at equal cost."
    spent = candidates.group_by(_SEARCH, maintain_order=True).agg(pl.sum("nfe"))
    sides = [[spent.filter(method=method, budget=budget) for method, budget in pair.sides] for pair in equal]
    both = pl.concat([ours.join(theirs, on=_TASK, nulls_equal=True, maintain_order="left") for ours, theirs in sides])
    if both.is_empty():
        return "The costs of the compared searches are not recorded."
    apart = both.filter(pl.col("nfe") != pl.col("nfe_right"))
    if apart.is_empty():
        return (
            f"At equal budgets both methods ran the same number of denoising steps (NFE) in every task, "
            f"previews included: {format_count(both.height, 'pair')} of searches, {both['nfe'].sum():,} steps each."
        )
    first = apart.row(0, named=True)
    return (
        f"The costs are not equal: in {apart.height:,} of {format_count(both.height, 'pair')} of searches the methods "
        f"ran different numbers of denoising steps, first in {first['task_id']}, {method_name(first['method'])} "
        f"{first['nfe']:,} and {method_name(first['method_right'])} {first['nfe_right']:,}."
    )


def _local_stage_note(candidates: pl.DataFrame, steps: int | None) -> list[Row]:
    """Return a row per method and budget with a local stage: similarity of child and parent, share of winners."""
    local = pl.col("stage").is_in(LOCAL_STAGES) & pl.col("parent").is_not_null()
    finished = candidates.filter(pl.col("stop_step") == pl.col("num_steps"), pl.col("image_path").is_not_null())
    in_order = finished.with_columns(local=local).sort("budget", "method")
    notes = []
    for (method, budget), rows in in_order.group_by("method", "budget", maintain_order=True):
        children, winners = rows.filter("local"), rows.filter("chosen")
        if children.height:
            note: Row = {"method": method, "at": format_denoises(int(str(budget)), steps), "children": children.height}
            note["similarity"] = [_median(children, metric) for metric in ("parent_cons", "parent_lpips")]
            note["of_finished"] = children.height / rows.height
            won = winners.filter("local").height
            note |= {"won": won, "winners": winners.height, "of_winners": _share(won, winners.height)}
            notes.append(note)
    return notes


def _median(rows: pl.DataFrame, metric: str) -> list[float | None]:
    """Return a metric's median and its 10th and 90th percentile."""
    values = rows[metric] if metric in rows.columns else pl.Series(dtype=pl.Float64)
    return [values.quantile(share, "linear") for share in (0.5, 0.1, 0.9)]


def _share(count: int, of: int) -> list[float]:
    """Return a share and its exact 95 % interval (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    if not of:
        return []
    exact = binomtest(count, of).proportion_ci(0.95, method="exact")
    return [count / of, exact.low, exact.high]
