"""Correlations of metrics with each other and with settings, over all images and within a prompt."""

from itertools import combinations, product

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
    join_notes,
    make_frame,
    make_rows,
    setting_names,
    split_by_engine,
)
from flexy_assets.sweep.analysis.schemas import COMPONENTS_SCHEMA, CORRELATIONS_SCHEMA


def correlate_metrics(scores: pl.DataFrame) -> pl.DataFrame:
    """Return Pearson and Spearman with 95 % intervals for every two metrics and every setting with every metric.

    `within` is Pearson's with prompts' means removed. Intervals are on Fisher's scale, from each cluster's influence on
    the coefficient (the infinitesimal jackknife: Efron 1982, chapter 6), with one degree of freedom fewer than
    clusters: prompts where they repeat, else images. Guidance is the effective one. Returns `CORRELATIONS_SCHEMA`.
    """
    correlations = []
    for engine, rows in split_by_engine(scores):
        pairs = [*combinations(METRIC_LABELS, 2), *product([*setting_names(rows), "elapsed_ms"], METRIC_LABELS)]
        columns = {name: float_column(rows, name) for name in (*METRIC_LABELS, *SETTING_LABELS)}
        columns["guidance"] = effective_guidance(columns["guidance"])
        for left, right in pairs:
            in_both = np.isfinite(columns[left]) & np.isfinite(columns[right])
            pair = _correlate_pair(columns[left][in_both], columns[right][in_both], rows.filter(in_both))
            correlations.append({"engine": engine, "left": left, "right": right, **pair})
    return make_frame(correlations, CORRELATIONS_SCHEMA)


def principal_components(scores: pl.DataFrame, seed: int = 0) -> pl.DataFrame:
    """Return the principal components of the metrics' z-scores, with their shares and loadings.

    A loading is the metric's correlation with the component, -1 to 1, the largest ones positive. 95 % intervals are a
    bootstrap over clusters as in `correlate_metrics`. Two components whose shares do not differ significantly have no
    directions of their own, which `note` says. A metric that is constant or was never measured is left out. Returns
    `COMPONENTS_SCHEMA`, a row an engine and component; one row with a `note` where there is none.
    """
    engines = split_by_engine(scores)
    components = ({"engine": engine, **row} for engine, rows in engines for row in _find_components(rows, seed))
    return make_frame(components, COMPONENTS_SCHEMA)


def _correlate_pair(x: Floats, y: Floats, rows: pl.DataFrame) -> Row:
    n = len(x)
    if n < 4:
        return {"n": n, "note": f"too few images with both ({n})"}
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"n": n, "note": "one of the two is constant"}
    clusters = find_clusters(rows)
    row: Row = {"n": n, "clusters": clusters.count, "clusters_by": clusters.by}
    row |= _fisher_interval("pearson", *_pearson_with_influence(x, y), clusters)
    row |= _fisher_interval("spearman", *_spearman_with_influence(x, y), clusters)
    sizes = np.bincount(clusters.prompts)
    repeated = sizes[clusters.prompts] > 1
    if repeated.sum() < 4:
        return row | {"note": "no prompt has enough images for a correlation within it"}
    clusters = find_clusters(rows.filter(repeated))
    left, right = (_centre_within(values[repeated], clusters.prompts) for values in (x, y))
    if min(np.ptp(left), np.ptp(right)) <= 1e-12 * max(np.ptp(x), np.ptp(y)):
        return row | {"note": "one of the two is constant within a prompt"}
    row |= _fisher_interval("within", *_pearson_with_influence(left, right), clusters)
    note = None if clusters.by == "prompt" else f"{clusters.prompts.max() + 1} prompts: applies to these only"
    return row | {"within_n": int(repeated.sum()), "note": note}


def _fisher_interval(name: str, value: float, influence: Floats, clusters: Clusters) -> Row:
    """Return the coefficient and its interval by name; `influence` (n,) is each image's, on average 0."""
    influences = clusters.sums(influence) / len(influence)
    # Fisher's n - 3: two means and two spreads are estimated too.
    error = float(np.sqrt((influences**2).sum() * clusters.count / max(clusters.count - 3, 1)))
    if 1 - abs(value) < 1e-12:
        return {name: value, f"{name}_low": value, f"{name}_high": value}
    margin = clusters.t * error / (1 - value**2)
    low, high = np.tanh(np.arctanh(value) + np.array([-margin, margin]))
    return {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}


def _pearson_with_influence(x: Floats, y: Floats) -> tuple[float, Floats]:
    """Return the coefficient and each image's influence on it (n,)."""
    a, b = ((values - values.mean()) / values.std() for values in (x, y))
    value = float(np.clip((a * b).mean(), -1, 1))
    return value, a * b - value * (a**2 + b**2) / 2


def _spearman_with_influence(x: Floats, y: Floats) -> tuple[float, Floats]:
    """Return the same for ranks, with ties averaged: an image also moves the ranks of all the others."""
    from scipy.stats import rankdata

    n = len(x)
    u, v = ((rankdata(values) - (n + 1) / 2) / n for values in (x, y))
    spread = float(np.sqrt((u * u).mean() * (v * v).mean()))
    value = float(np.clip((u * v).mean() / spread, -1, 1))

    def influence_of(a: Floats, b: Floats) -> Floats:
        influence = a * b + _sum_above(a, b) + _sum_above(b, a)
        return influence - influence.mean()

    of_spreads = influence_of(u, u) / (u * u).mean() + influence_of(v, v) / (v * v).mean()
    return value, influence_of(u, v) / spread - value * of_spreads / 2


def _sum_above(order: Floats, values: Floats) -> Floats:
    """Return (n,) the sum of the values of images that rank above each one, half of those that tie, over n."""
    _, place = np.unique(order, return_inverse=True)
    sums = np.bincount(place, values)
    return (sums.sum() - np.cumsum(sums) + sums / 2)[place] / len(values)


def _centre_within(values: Floats, groups: NDArray[np.int64]) -> Floats:
    return values - (np.bincount(groups, values) / np.bincount(groups))[groups]


def _find_components(rows: pl.DataFrame, seed: int) -> list[Row]:
    measured = [metric for metric in METRIC_LABELS if rows[metric].count()]
    complete = rows.drop_nulls(measured) if measured else rows.clear()
    varying = [metric for metric in measured if complete[metric].n_unique() > 1]
    n = complete.height
    if n < 4 or len(varying) < 2:
        reason = f"too few images with every score ({n})" if n < 4 else "fewer than two metrics vary"
        return [{"n": n, "note": reason}]
    z = np.stack([float_column(complete, metric) for metric in varying], axis=1)
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    clusters = find_clusters(complete, seed)
    moments = np.concatenate([np.ones((n, 1)), z, np.einsum("ni,nj->nij", z, z).reshape(n, -1)], axis=1)
    drawn = clusters.weights(seed) @ clusters.sums(moments)
    k = len(varying)
    means = drawn[:, 1 : k + 1] / drawn[:, :1]
    second = (drawn[:, k + 1 :] / drawn[:, :1]).reshape(-1, k, k) - means[:, :, None] * means[:, None, :]
    deviation = np.sqrt(np.einsum("dii->di", second))
    shares, loadings = _eigen_decompose((z.T @ z / n)[None])
    drawn_shares, drawn_loadings = _eigen_decompose(second / deviation[:, :, None] / deviation[:, None, :])
    # A component has no sign: each draw's is turned to the side of the whole.
    drawn_loadings *= np.where(np.einsum("dmc,mc->dc", drawn_loadings, loadings[0]) < 0, -1, 1)[:, None, :]
    share_margin, margin = (
        clusters.t * clusters.widening * np.sqrt(((draws - estimate) ** 2).mean(axis=0))
        for draws, estimate in ((drawn_shares, shares[0]), (drawn_loadings, loadings[0]))
    )
    left_out = [label for metric, label in METRIC_LABELS.items() if metric not in varying]
    left_out_note = f"without {', '.join(left_out)}" if left_out else None
    low, high = np.maximum(loadings[0] - margin, -1), np.minimum(loadings[0] + margin, 1)
    # (k + 1,) whether a component's share does not differ significantly from the one before it.
    gap_error = np.diff(drawn_shares, axis=1).std(axis=0) * clusters.widening
    is_similar = np.pad(np.abs(np.diff(shares[0])) <= clusters.t * gap_error, 1)
    components: list[Row] = []
    for c, share in enumerate(shares[0].tolist()):
        similar = [str(number) for number, gap in ((c, c), (c + 2, c + 1)) if is_similar[gap]]
        similar_note = f"not significantly different from component {' and '.join(similar)}" if similar else None
        ends = np.clip(share + np.array([-1, 1]) * share_margin[c], 0, 1)
        columns = {"metric": np.array(varying), "loading": loadings[0, :, c], "low": low[:, c], "high": high[:, c]}
        row = {"component": c + 1, "n": n, "share": share, "share_low": ends[0], "share_high": ends[1]}
        components.append(row | {"loadings": make_rows(columns), "note": join_notes(similar_note, left_out_note)})
    return components


def _eigen_decompose(matrices: Floats) -> tuple[Floats, Floats]:
    """Return (d, k) shares, largest first, and (d, k, k) loadings, metrics by components, of correlation matrices."""
    values, vectors = np.linalg.eigh(matrices)
    values, vectors = np.maximum(values[:, ::-1], 0), vectors[:, :, ::-1]
    loadings = vectors * np.sqrt(values)[:, None, :]
    return values / values.shape[1], loadings * np.where(loadings.sum(axis=1) < 0, -1, 1)[:, None, :]
