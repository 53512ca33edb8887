"""How much of the scores' variance their prompts, seeds and settings explain."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from flexy_assets.sweep.analysis.basis_functions import DEGREE, to_coordinates
from flexy_assets.sweep.analysis.clusters import find_clusters
from flexy_assets.sweep.analysis.comparison import FACTORS
from flexy_assets.sweep.analysis.rows import MIN_IMAGES, TARGET_LABELS, Floats, float_column

MAX_LEVELS: Final = 20
"""A factor with more values is left out."""


def explain_variance(rows: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Return by target of one engine's images the `variance_shares` of prompt, seed, each setting and "rest".

    Sources that do not vary are absent, as are prompts and seeds that do not repeat; a target with fewer than
    `MIN_IMAGES` images, or none to spare, is left out.
    """
    found = {}
    for target in (name for name in TARGET_LABELS if name in rows.columns):
        images = rows.drop_nulls([target, "steps"])
        y = float_column(images, target)
        if len(y) < MIN_IMAGES or np.ptp(y) == 0:
            continue
        clusters = find_clusters(images)
        labels = {"prompt": clusters.prompts, "seed": clusters.blocks}
        blocks = {name: each for name, each in labels.items() if 1 < each.max() + 1 <= len(y) / 2}
        if np.array_equal(clusters.prompts, clusters.blocks):
            blocks.pop("seed", None)
        coordinates = to_coordinates(float_column(images, "steps"), float_column(images, "guidance"))
        settings = {
            name: (values - values.mean())[:, None] ** np.arange(1, DEGREE + 1)
            for name, values in zip(("steps", "guidance"), coordinates.T, strict=True)
            if np.ptp(values) > 0
        }
        for name, values in images.select(**FACTORS).to_dict().items():
            if 1 < values.n_unique() <= MAX_LEVELS:
                settings[name] = values.to_dummies(drop_first=True).to_numpy().astype(float)
        if shares := variance_shares(y, blocks, settings):
            found[target] = shares
    return found


def variance_shares(
    y: Floats, blocks: Mapping[str, NDArray[np.int64]], settings: Mapping[str, Floats]
) -> dict[str, float]:
    """Return the share of the variance of y (n,) that each block and each setting explains, and the "rest".

    `blocks` are nested groups (n,), the widest first; `settings` have columns (n, p). A setting's share is what it adds
    to all others within the narrowest blocks, in proportion to how it varies between all images; a block's is what it
    adds to the settings and wider blocks. Each is less what as many random columns would add (omega², by type II sums
    of squares; a block's columns count as random as the next narrower blocks are). Interactions are part of the rest.
    Empty where no image is to spare.
    """
    everything = list(settings.values())
    narrowest = list(blocks.values())[-1] if blocks else np.zeros(len(y), dtype=np.int64)
    full = _fit_within(y, everything, narrowest)
    spare = len(y) - int(narrowest.max()) - 1 - full.rank
    total = float(((y - y.mean()) ** 2).sum())
    if spare < 1 or total == 0:
        return {}
    noise, explained, end = full.residual / spare, {}, 0
    for name, columns in settings.items():
        others = _fit_within(y, [each for other, each in settings.items() if other != name], narrowest)
        effect = columns @ full.coefficients[end : end + columns.shape[1]]
        end += columns.shape[1]
        within = float((_centre(effect, narrowest) ** 2).sum())
        spread = float(((effect - effect.mean()) ** 2).sum()) / within if within > 0 else 0.0
        explained[name] = (others.residual - full.residual - (full.rank - others.rank) * noise) * spread
    # From the narrowest out.
    labels = [np.zeros(len(y), dtype=np.int64), *blocks.values()]
    inner, error = full.residual, noise
    for name, wider, own in reversed(list(zip(blocks, labels[:-1], labels[1:], strict=True))):
        outer = _fit_within(y, everything, wider).residual
        degrees = int(own.max() - wider.max())
        explained[name] = outer - inner - degrees * error
        inner, error = outer, max((outer - inner) / degrees, noise)
    shares = {name: max(explained[name], 0.0) / total for name in (*blocks, *settings)}
    return shares | {"rest": max(1 - sum(shares.values()), 0.0)}


class _Fit(NamedTuple):
    """Coefficients (p,) of least squares within groups, their rank, and the sum of squares that is left."""

    coefficients: Floats
    rank: int
    residual: float


def _fit_within(y: Floats, columns: Sequence[Floats], labels: NDArray[np.int64]) -> _Fit:
    own = _centre(y, labels)
    if not columns:
        return _Fit(np.empty(0), 0, float(own @ own))
    x = np.apply_along_axis(_centre, 0, np.hstack(columns), labels)
    deviations = x.std(axis=0)
    scale = np.where(deviations > 1e-9, deviations, np.inf)
    coefficients, _, rank, _ = np.linalg.lstsq(x / scale, own, rcond=None)
    left = own - (x / scale) @ coefficients
    return _Fit(coefficients / scale, int(rank), float(left @ left))


def _centre(values: Floats, labels: NDArray[np.int64]) -> Floats:
    """Return the values (n,) less the mean of their group."""
    return np.asarray(values - (np.bincount(labels, values) / np.bincount(labels))[labels])
