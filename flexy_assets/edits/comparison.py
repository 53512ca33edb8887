"""Compares the winners of two methods over the same tasks.

Values are one row per winner and metric (`VALUES_SCHEMA`). A task without a value of either method is excluded for
that metric and counted, never imputed. scipy is loaded where it is used.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from resources.chunks import split_chunks
from resources.metrics import Metric

_METRIC: dict[str, pl.DataType] = {"metric": pl.String(), "role": pl.String()}
_TASK: dict[str, pl.DataType] = {"task_id": pl.String()}
_SEARCH: dict[str, pl.DataType] = {"method": pl.String(), "budget": pl.Int64()}  # `budget` is in denoising steps (NFE)

VALUES_SCHEMA: Final = _TASK | _SEARCH | {"metric": pl.String(), "value": pl.Float64()}
COMPARISON_SCHEMA: Final = {
    **(_METRIC | _SEARCH | {"rival": pl.String(), "rival_budget": pl.Int64()}),
    **dict.fromkeys(("n", "left_out", "wins", "ties", "losses"), pl.Int64()),
    **dict.fromkeys(("gain", "gain_low", "gain_high", "win_rate", "win_rate_low", "win_rate_high", "p"), pl.Float64()),
    "note": pl.String(),
}
MEAN_SCORES_SCHEMA: Final = (
    _METRIC | _SEARCH | {"n": pl.Int64(), "mean": pl.Float64(), "low": pl.Float64(), "high": pl.Float64()}
)

RESAMPLES: Final = 10_000
_CELLS = 2_000_000  # of resampled values at a time: 16 MB


def compare_methods(
    values: pl.DataFrame,
    metrics: Sequence[Metric],
    method: str,
    rival: str,
    budgets: Iterable[tuple[int, int]] | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Compare `method` with `rival`, task by task: one row per pair of budgets and metric (`COMPARISON_SCHEMA`).

    `budgets` are pairs of the method's and the rival's budget, by default each budget that both have. `n` tasks have
    both values, `left_out` tasks lack one.

    - `gain`: the mean paired difference in the metric's unit, above 0 where `method` is better, with the 95 %
      percentile bootstrap interval over tasks.
    - `win_rate`: wins among the tasks without ties, with its exact 95 % interval (Clopper and Pearson 1934).
    - `p`: the exact two-sided sign test, without ties.

    Statistics that need more tasks are null, with a `note`. Raises `polars.exceptions.ComputeError` for two values
    of one winner.
    """
    if budgets is None:
        own, other = (set(values.filter(method=name)["budget"].to_list()) for name in (method, rival))
        budgets = [(budget, budget) for budget in sorted(own & other)]
    rows = []
    for budget, rival_budget in budgets:
        ours = values.filter(method=method, budget=budget)
        theirs = values.filter(method=rival, budget=rival_budget)
        tasks = pl.concat([ours["task_id"], theirs["task_id"]]).n_unique()
        for metric in metrics:
            # Sorted by task id, so that the resamples do not depend on the order of the rows.
            pairs = _values_of(ours, metric).join(_values_of(theirs, metric), on="task_id", validate="1:1")
            pairs = pairs.sort("task_id")
            gains = (pairs["value"] - pairs["value_right"]).to_numpy() * (1 if metric.higher_is_better else -1)
            sides = {"method": method, "budget": budget, "rival": rival, "rival_budget": rival_budget}
            keys = {"metric": metric.name, "role": metric.role} | sides
            rows.append(keys | {"left_out": tasks - pairs.height} | _statistics(gains, metric.tie, seed))
    return pl.DataFrame(rows, schema=COMPARISON_SCHEMA, orient="row")


def mean_scores(values: pl.DataFrame, metrics: Sequence[Metric], seed: int = 0) -> pl.DataFrame:
    """Return each method's mean over tasks at each budget, with its 95 % bootstrap interval (`MEAN_SCORES_SCHEMA`)."""
    means = []
    for metric in metrics:
        of_metric = _values_of(values, metric).sort("method", "budget", "task_id")
        for (method, budget), rows in of_metric.group_by("method", "budget", maintain_order=True):
            low, high = bootstrap_interval(rows["value"].to_numpy(), seed)
            keys = {"metric": metric.name, "role": metric.role, "method": method, "budget": budget}
            means.append(keys | {"n": rows.height, "mean": rows["value"].mean(), "low": low, "high": high})
    return pl.DataFrame(means, schema=MEAN_SCORES_SCHEMA, orient="row")


def bootstrap_interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float | None, float | None]:
    """Return the 95 % percentile bootstrap interval of the mean of `values` (n,); None for fewer than two."""
    n = len(values)
    if n < 2:
        return None, None
    rng = np.random.default_rng(seed)
    chunks = split_chunks(range(RESAMPLES), max(1, _CELLS // n))
    means = np.concatenate([values[rng.integers(0, n, (len(chunk), n))].mean(axis=1) for chunk in chunks])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _values_of(values: pl.DataFrame, metric: Metric) -> pl.DataFrame:
    """Return the rows of a metric that have a finite value."""
    return values.filter(pl.col("metric") == metric.name, pl.col("value").is_finite())


def _statistics(gains: NDArray[np.float64], tie: float, seed: int) -> dict[str, Any]:
    from scipy.stats import binomtest

    n = len(gains)
    if not n:
        return {"n": 0, "wins": 0, "ties": 0, "losses": 0, "note": "no task has both values"}
    wins, losses = int((gains > tie).sum()), int((gains < -tie).sum())
    low, high = bootstrap_interval(gains, seed)
    counts = {"n": n, "wins": wins, "ties": n - wins - losses, "losses": losses}
    statistics: dict[str, Any] = counts | {"gain": float(gains.mean()), "gain_low": low, "gain_high": high}
    equal = "one task has no interval" if n == 1 else "every task has the same difference"
    notes = [equal] if np.ptp(gains) == 0 else []
    if wins + losses:
        test = binomtest(wins, wins + losses)
        exact = test.proportion_ci(0.95, method="exact")
        statistics |= {"win_rate": test.statistic, "p": float(test.pvalue)}
        statistics |= {"win_rate_low": float(exact.low), "win_rate_high": float(exact.high)}
    else:
        notes.append("every task is tied")
    return statistics | {"note": "; ".join(notes) or None}
