"""How metrics move together, with settings and with each other, over all images and within a prompt."""

from __future__ import annotations

from itertools import combinations, product
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from flexy_assets.sweep.analysis.clusters import Clusters, find_clusters
from flexy_assets.sweep.analysis.rows import (
    METRIC_LABELS,
    SETTING_LABELS,
    Floats,
    Row,
    effective_guidance,
    float_column,
    make_frame,
    measured_images,
    split_by_engine,
    summary_columns,
    tried_images,
)

CORRELATIONS_SCHEMA: Final[dict[str, pl.DataType]] = {
    "engine": pl.String(),
    "left": pl.String(),
    "right": pl.String(),
    "n": pl.Int64(),
    "pearson": pl.Float64(),
    "pearson_low": pl.Float64(),
    "pearson_high": pl.Float64(),
    "spearman": pl.Float64(),
    "spearman_low": pl.Float64(),
    "spearman_high": pl.Float64(),
    "within": pl.Float64(),
    "within_low": pl.Float64(),
    "within_high": pl.Float64(),
    "within_n": pl.Int64(),
    "clusters": pl.Int64(),
    "clusters_by": pl.String(),
    "note": pl.String(),
}
COMPONENTS_SCHEMA: Final[dict[str, pl.DataType]] = {
    "engine": pl.String(),
    "component": pl.Int64(),
    "n": pl.Int64(),
    "share": pl.Float64(),
    "share_low": pl.Float64(),
    "share_high": pl.Float64(),
    "loadings": pl.List(
        pl.Struct({"metric": pl.String(), "loading": pl.Float64(), "low": pl.Float64(), "high": pl.Float64()})
    ),
    "note": pl.String(),
}


def correlate_metrics(scores: pl.DataFrame) -> pl.DataFrame:
    """Pearson and Spearman with 95 % intervals for every two metrics and every setting there is with every metric.

    `within` is Pearson's among the images of one prompt, prompts' own means set aside; `within_n` counts the images of
    prompts that have two or more. Intervals are on Fisher's scale, from each cluster's influence on the
    coefficient (the infinitesimal jackknife: Efron 1982, chapter 6), with one degree of freedom fewer than
    clusters: prompts where they repeat, else images (`clusters`, `clusters_by`). Guidance is the effective one.
    Returns `CORRELATIONS`.
    """
    found = []
    for engine, rows in split_by_engine(measured_images(scores)):
        pairs = [*combinations(METRIC_LABELS, 2), *product([*tried_images(rows), "elapsed_ms"], METRIC_LABELS)]
        columns = {name: float_column(rows, name) for name in (*METRIC_LABELS, *SETTING_LABELS)}
        columns["guidance"] = effective_guidance(columns["guidance"])
        for left, right in pairs:
            both = np.isfinite(columns[left]) & np.isfinite(columns[right])
            pair = _pair(columns[left][both], columns[right][both], rows.filter(both))
            found.append({"engine": engine, "left": left, "right": right, **pair})
    return make_frame(found, CORRELATIONS_SCHEMA)


def principal_components(scores: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Principal components of the metrics' z-scores: how much each explains, and which metrics it is made of.

    `share` of the variance, 0 to 1; a loading is the metric's correlation with the component, -1 to 1, the largest
    ones positive. 95 % intervals are a bootstrap over clusters as in `correlations`. Two components whose
    shares cannot be told apart have no directions of their own, which `note` says. A metric that never varies
    or was never measured is left out. Returns `COMPONENTS`, a row an engine and component; one row with a
    `note` where there is none.
    """
    found = []
    for engine, rows in split_by_engine(measured_images(scores)):
        found += [{"engine": engine, **row} for row in _components(rows, seed)]
    return make_frame(found, COMPONENTS_SCHEMA)


def _pair(x: Floats, y: Floats, rows: pl.DataFrame) -> Row:
    n = len(x)
    if n < 4:
        return {"n": n, "note": f"too few images with both ({n})"}
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"n": n, "note": "one of the two never varies"}
    drawn = find_clusters(rows)
    row: Row = {"n": n, "clusters": drawn.count, "clusters_by": drawn.by}
    row |= _interval("pearson", *_pearson(x, y), drawn)
    row |= _interval("spearman", *_spearman(x, y), drawn)
    sizes = np.bincount(drawn.prompts)
    repeated = sizes[drawn.prompts] > 1
    if repeated.sum() < 4:
        return row | {"note": "no prompt has images enough for a correlation within it"}
    inside = rows.filter(repeated)
    of = find_clusters(inside)
    left, right = (_centre_within(values[repeated], of.prompts) for values in (x, y))
    if min(np.ptp(left), np.ptp(right)) <= 1e-12 * max(np.ptp(x), np.ptp(y)):
        return row | {"note": "one of the two never varies within a prompt"}
    few = None if of.by == "prompt" else f"{of.prompts.max() + 1} prompts: what is said holds for these alone"
    return row | _interval("within", *_pearson(left, right), of) | {"within_n": int(repeated.sum()), "note": few}


def _interval(name: str, value: float, influence: Floats, of: Clusters) -> Row:
    """The coefficient and its interval by names; influences (n,) are each image's, on average 0."""
    pulls = of.sums(influence) / len(influence)
    # Fisher's n - 3: two means and two spreads are estimated too.
    error = float(np.sqrt((pulls**2).sum() * of.count / max(of.count - 3, 1)))
    if 1 - abs(value) < 1e-12:
        return {name: value, f"{name}_low": value, f"{name}_high": value}
    reach = of.t * error / (1 - value**2)
    low, high = np.tanh(np.arctanh(value) + np.array([-reach, reach]))
    return {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}


def _pearson(x: Floats, y: Floats) -> tuple[float, Floats]:
    """The coefficient and each image's influence on it (n,)."""
    a, b = ((values - values.mean()) / values.std() for values in (x, y))
    value = float(np.clip((a * b).mean(), -1, 1))
    return value, a * b - value * (a**2 + b**2) / 2


def _spearman(x: Floats, y: Floats) -> tuple[float, Floats]:
    """The same for ranks, ties sharing theirs: an image also moves the ranks of all the others."""
    from scipy.stats import rankdata

    n = len(x)
    u, v = ((rankdata(values) - (n + 1) / 2) / n for values in (x, y))
    spread = float(np.sqrt((u * u).mean() * (v * v).mean()))
    value = float(np.clip((u * v).mean() / spread, -1, 1))

    def moved(a: Floats, b: Floats) -> Floats:
        pulled = a * b + _above(a, b) + _above(b, a)
        return pulled - pulled.mean()

    of_spreads = moved(u, u) / (u * u).mean() + moved(v, v) / (v * v).mean()
    return value, moved(u, v) / spread - value * of_spreads / 2


def _above(order: Floats, values: Floats) -> Floats:
    """(n,) the sum of the values of images that rank above each one, half of those that tie, over n."""
    _, place = np.unique(order, return_inverse=True)
    sums = np.bincount(place, values)
    return (sums.sum() - np.cumsum(sums) + sums / 2)[place] / len(values)


def _centre_within(values: Floats, groups: NDArray[np.int64]) -> Floats:
    return values - (np.bincount(groups, values) / np.bincount(groups))[groups]


def _components(rows: pl.DataFrame, seed: int) -> list[Row]:
    there = [metric for metric in METRIC_LABELS if rows[metric].count()]
    complete = rows.drop_nulls(there) if there else rows.clear()
    vary = [metric for metric in there if complete[metric].n_unique() > 1]
    n = complete.height
    if n < 4 or len(vary) < 2:
        reason = f"too few images with every score ({n})" if n < 4 else "fewer than two metrics vary"
        return [{"n": n, "note": reason}]
    z = np.stack([float_column(complete, metric) for metric in vary], axis=1)
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    of = find_clusters(complete, seed)
    moments = np.concatenate([np.ones((n, 1)), z, np.einsum("ni,nj->nij", z, z).reshape(n, -1)], axis=1)
    drawn = of.weights(seed) @ of.sums(moments)
    k = len(vary)
    means = drawn[:, 1 : k + 1] / drawn[:, :1]
    second = (drawn[:, k + 1 :] / drawn[:, :1]).reshape(-1, k, k) - means[:, :, None] * means[:, None, :]
    deviation = np.sqrt(np.einsum("dii->di", second))
    shares, loadings = _eigen((z.T @ z / n)[None])
    many_shares, many_loadings = _eigen(second / deviation[:, :, None] / deviation[:, None, :])
    # A component has no sign: each draw's is turned to the side of the whole.
    many_loadings *= np.where(np.einsum("dmc,mc->dc", many_loadings, loadings[0]) < 0, -1, 1)[:, None, :]
    reach_shares, reach = (
        of.t * of.widening * np.sqrt(((many - whole) ** 2).mean(axis=0))
        for many, whole in ((many_shares, shares[0]), (many_loadings, loadings[0]))
    )
    left_out = [METRIC_LABELS[metric] for metric in METRIC_LABELS if metric not in vary]
    missing = f"without {', '.join(left_out)}" if left_out else None
    found: list[Row] = []
    for c in range(k):
        apart = [other for other in (c - 1, c + 1) if 0 <= other < k and _alike(shares[0], many_shares, c, other, of)]
        alike = f"cannot be told from component {' and '.join(str(other + 1) for other in apart)}" if apart else None
        ends = np.clip(shares[0, c] + np.array([-1, 1]) * reach_shares[c], 0, 1)
        row: Row = {"component": c + 1, "n": n, "share": float(shares[0, c]), "note": summary_columns(alike, missing)}
        row |= {"share_low": float(ends[0]), "share_high": float(ends[1])}
        row["loadings"] = [
            {
                "metric": metric,
                "loading": float(loadings[0, m, c]),
                "low": float(max(loadings[0, m, c] - reach[m, c], -1)),
                "high": float(min(loadings[0, m, c] + reach[m, c], 1)),
            }
            for m, metric in enumerate(vary)
        ]
        found.append(row)
    return found


def _alike(shares: Floats, drawn: Floats, one: int, other: int, of: Clusters) -> bool:
    """Whether two components' shares may be the same."""
    gap = abs(shares[one] - shares[other])
    error = (drawn[:, one] - drawn[:, other]).std() * of.widening
    return bool(gap <= of.t * error)


def _eigen(matrices: Floats) -> tuple[Floats, Floats]:
    """(d, k) shares, largest first, and (d, k, k) loadings, metrics by components, of correlation matrices."""
    values, vectors = np.linalg.eigh(matrices)
    values, vectors = np.maximum(values[:, ::-1], 0), vectors[:, :, ::-1]
    loadings = vectors * np.sqrt(values)[:, None, :]
    return values / values.shape[1], loadings * np.where(loadings.sum(axis=1) < 0, -1, 1)[:, None, :]
