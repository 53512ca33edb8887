"""Least squares with a level for each prompt, its cross-validation, its bootstrap, and a test for flatness.

Prompts differ far more than settings do. Each fit is the feasible generalised least squares of a random
level a prompt (Swamy and Arora 1972): a share of the prompt's mean is taken from every column, and what is
left is ordinary least squares. The bootstrap draws whole clusters, so it holds where that model does not; its
residuals are Bell and McCaffrey's (2002), which mends it where clusters are few or the form has many terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from flexy_assets.sweep.analysis.basis_functions import BasisForm
from flexy_assets.sweep.analysis.clusters import PERMUTATION_DRAWS, Clusters

Floats = NDArray[np.float64]

CV_FOLDS: Final = 5
RANK_TOLERANCE: Final = 1e-6
"""Directions with less than this share of the largest singular value are not in the data."""
RIDGE_PENALTY: Final = 0.05
"""A cluster that holds nearly all there is of a direction is not blown up beyond this."""


@dataclass(frozen=True)
class RegressionSample:
    """One engine's images with one score: `settings` (n, 2) coordinates, `y` (n,), and their clusters."""

    settings: Floats
    y: Floats
    clusters: Clusters

    @cached_property
    def within(self) -> float:
        """The prompts' share of the variance that is left at equal settings (intraclass correlation, 0 to 1)."""
        prompts = self.clusters.prompts
        sizes = np.bincount(prompts).astype(float)
        n, groups = len(self.y), len(sizes)
        if not 1 < groups < n - 1:
            return 0.0
        z = self.settings - self.settings.mean(axis=0)
        columns = np.column_stack([np.ones(n), z, z**2, z[:, 0] * z[:, 1]])
        rest = self.y - columns @ np.linalg.lstsq(columns, self.y, rcond=None)[0]
        means = np.bincount(prompts, rest) / sizes
        inside = float(((rest - means[prompts]) ** 2).sum() / (n - groups))
        between = float((sizes * (means - rest.mean()) ** 2).sum() / (groups - 1))
        level = max((between - inside) / ((n - (sizes**2).sum() / n) / (groups - 1)), 0.0)
        return level / (level + inside) if level + inside > 0 else 0.0

    @cached_property
    def _taken(self) -> Floats:
        """(n,) the share of its prompt's mean that is taken from an image's columns."""
        sizes = np.bincount(self.clusters.prompts)[self.clusters.prompts]
        return 1 - np.sqrt((1 - self.within) / (1 - self.within + sizes * self.within))

    def whitened(self, values: Floats) -> Floats:
        """(n, …) the values less their share of the prompt's mean."""
        if not self.within:
            return values
        prompts = self.clusters.prompts
        flat = values.reshape(len(values), -1)
        sizes = np.bincount(prompts).astype(float)
        means = np.stack([np.bincount(prompts, column) for column in flat.T], axis=1) / sizes[:, None]
        return (flat - self._taken[:, None] * means[prompts]).reshape(values.shape)


@dataclass(frozen=True)
class RegressionFit:
    """A form fitted to a sample: `coefficients` (p,) and `drawn` (draws, p), refits to resampled clusters.

    `drawn` are already as wide as their degrees of freedom ask: a band of Student's `t` times their deviation.
    """

    form: BasisForm
    coefficients: Floats
    drawn: Floats
    t: float

    def at(self, settings: Floats) -> Floats:
        """(m,) what is expected at settings (m, 2)."""
        return self.form.columns(settings) @ self.coefficients


def basis_matrix(form: BasisForm, sample: RegressionSample) -> tuple[Floats, Floats]:
    """(n, r) orthonormal whitened columns of the form, and (p, r) what makes them from its own columns."""
    u, s, vt = np.linalg.svd(sample.whitened(form.columns(sample.settings)), full_matrices=False)
    kept = s > RANK_TOLERANCE * s[0]
    return u[:, kept], vt[kept].T / s[kept]


def fit_least_squares(form: BasisForm, sample: RegressionSample, weights: Floats | None = None) -> RegressionFit:
    """The form fitted to all images, and refitted under each row of cluster weights (draws, clusters)."""
    columns, back = basis_matrix(form, sample)
    y = sample.whitened(sample.y)
    best = columns.T @ y
    if weights is None:
        return RegressionFit(form, back @ best, np.empty((0, len(back))), sample.clusters.t)
    order = np.argsort(sample.clusters.of, kind="stable")
    ends = np.cumsum(np.bincount(sample.clusters.of, minlength=sample.clusters.count))[:-1]
    parts, rests = np.split(columns[order], ends), np.split((y - columns @ best)[order], ends)
    grams = np.array([part.T @ part for part in parts])
    pulls = np.array([part.T @ rest for part, rest in zip(parts, rests, strict=True)])
    # A fit leans towards the clusters it is judged by: what it leaves of each is stretched by that much again.
    leaning, axes = np.linalg.eigh(grams)
    turned = np.einsum("gij,gi->gj", axes, pulls) / np.maximum(1 - leaning, RIDGE_PENALTY)
    pulls = np.einsum("gij,gj->gi", axes, turned)
    r = len(best)
    weighted = (weights @ grams.reshape(len(grams), -1)).reshape(-1, r, r)
    moved = np.linalg.solve(weighted, (weights @ pulls)[..., None])[..., 0] * sample.clusters.widening
    return RegressionFit(form, back @ best, (best + moved) @ back.T, sample.clusters.t)


def predict_out_of_fold(form: BasisForm, sample: RegressionSample, folds: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """(n,) errors of each image by a fit to the other folds: as they are, and less the prompt's share of them."""
    columns, back = basis_matrix(form, sample)
    y = sample.whitened(sample.y)
    raw = form.columns(sample.settings) @ back
    misses, whitened = np.empty_like(y), np.empty_like(y)
    for fold in np.unique(folds):
        left, out = folds != fold, folds == fold
        gram = columns[left].T @ columns[left]
        ridge = 1e-9 * np.eye(len(gram))  # a direction that only the fold left out has is not moved along
        best = np.linalg.solve(gram + ridge, columns[left].T @ y[left])
        misses[out] = sample.y[out] - raw[out] @ best
        whitened[out] = y[out] - columns[out] @ best
    return misses, whitened


def flatness_p_value(sample: RegressionSample, tested: Sequence[BasisForm], given: BasisForm, seed: int) -> float:
    """The probability of a response as large as this one, were nothing there beyond `given`.

    The largest of one score statistic a form, each by its own wild cluster bootstrap of what `given` leaves
    (Cameron, Gelbach and Miller 2008, with Webb's six weights), so that a trend is found by its few terms
    and a bump by its many. Between 0.001 and 1.
    """
    null, _ = basis_matrix(given, sample)
    y = sample.whitened(sample.y)
    rest = y - null @ (null.T @ y)
    webb = np.sqrt([0.5, 1.0, 1.5])
    signs = np.random.default_rng(seed).choice(
        np.concatenate([webb, -webb]), (PERMUTATION_DRAWS, sample.clusters.count)
    )
    ranks = []
    for form in tested:
        columns, _ = basis_matrix(form, sample)
        beyond = columns - null @ (null.T @ columns)
        u, s, _ = np.linalg.svd(beyond, full_matrices=False)
        pulls = sample.clusters.sums(u[:, s > RANK_TOLERANCE] * rest[:, None])
        sizes = np.concatenate([[(pulls.sum(axis=0) ** 2).sum()], ((signs @ pulls) ** 2).sum(axis=1)])
        # Each statistic's own p-value, that of the draws among themselves.
        ranks.append(1 - (np.argsort(np.argsort(sizes)) + 0.5) / len(sizes))
    least = np.min(ranks, axis=0)
    return float((least <= least[0]).mean())
