"""Least squares with a random intercept for each prompt, its cross-validation, its bootstrap, and a flatness test.

Prompts differ far more than settings do. Each fit is the feasible generalised least squares of a random
intercept a prompt (Swamy and Arora 1972): a share of the prompt's mean is taken from every column, and what is
left is ordinary least squares. The bootstrap draws whole clusters, so it holds where that model does not; its
residuals are Bell and McCaffrey's (2002), which corrects it where clusters are few or the form has many terms.
"""

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
"""Directions below this share of the largest singular value count as absent from the data."""
RIDGE_PENALTY: Final = 0.05
"""Lower bound of 1 − leverage: limits the correction of a cluster that determines a direction alone."""


@dataclass(frozen=True)
class RegressionSample:
    """One engine's images with one score: `settings` (n, 2) coordinates, `y` (n,), and their clusters."""

    settings: Floats
    y: Floats
    clusters: Clusters

    @cached_property
    def within(self) -> float:
        """The prompts' share of the variance at equal settings (intraclass correlation, 0 to 1)."""
        prompts = self.clusters.prompts
        sizes = np.bincount(prompts).astype(float)
        n, groups = len(self.y), len(sizes)
        if not 1 < groups < n - 1:
            return 0.0
        z = self.settings - self.settings.mean(axis=0)
        columns = np.column_stack([np.ones(n), z, z**2, z[:, 0] * z[:, 1]])
        residuals = self.y - columns @ np.linalg.lstsq(columns, self.y, rcond=None)[0]
        means = np.bincount(prompts, residuals) / sizes
        within_variance = float(((residuals - means[prompts]) ** 2).sum() / (n - groups))
        between_variance = float((sizes * (means - residuals.mean()) ** 2).sum() / (groups - 1))
        prompt_variance = max((between_variance - within_variance) / ((n - (sizes**2).sum() / n) / (groups - 1)), 0.0)
        return prompt_variance / (prompt_variance + within_variance) if prompt_variance + within_variance > 0 else 0.0

    @cached_property
    def _mean_weights(self) -> Floats:
        """(n,) the share of its prompt's mean that is subtracted from an image's columns."""
        sizes = np.bincount(self.clusters.prompts)[self.clusters.prompts]
        return 1 - np.sqrt((1 - self.within) / (1 - self.within + sizes * self.within))

    def whitened(self, values: Floats) -> Floats:
        """Return (n, …) the values less their share of the prompt's mean."""
        if not self.within:
            return values
        prompts = self.clusters.prompts
        flat = values.reshape(len(values), -1)
        sizes = np.bincount(prompts).astype(float)
        means = np.stack([np.bincount(prompts, column) for column in flat.T], axis=1) / sizes[:, None]
        return (flat - self._mean_weights[:, None] * means[prompts]).reshape(values.shape)


@dataclass(frozen=True)
class RegressionFit:
    """A form fitted to a sample: `coefficients` (p,) and `drawn` (draws, p), refits to resampled clusters.

    `drawn` are already widened for their degrees of freedom: a band of Student's t times their deviation.
    """

    form: BasisForm
    sample: RegressionSample
    coefficients: Floats
    drawn: Floats

    def predict(self, settings: Floats) -> Floats:
        """Return (m,) the expectation at settings (m, 2)."""
        return self.form.columns(settings) @ self.coefficients


def basis_matrix(form: BasisForm, sample: RegressionSample) -> tuple[Floats, Floats]:
    """Return (n, r) orthonormal whitened columns of the form, and (p, r) their map from its own columns."""
    u, s, vt = np.linalg.svd(sample.whitened(form.columns(sample.settings)), full_matrices=False)
    is_kept = s > RANK_TOLERANCE * s[0]
    return u[:, is_kept], vt[is_kept].T / s[is_kept]


def fit_least_squares(form: BasisForm, sample: RegressionSample, weights: Floats | None = None) -> RegressionFit:
    """Return the form fitted to all images, and refitted under each row of cluster weights (draws, clusters)."""
    columns, to_coefficients = basis_matrix(form, sample)
    y = sample.whitened(sample.y)
    best = columns.T @ y
    if weights is None:
        return RegressionFit(form, sample, to_coefficients @ best, np.empty((0, len(to_coefficients))))
    order = np.argsort(sample.clusters.labels, kind="stable")
    ends = np.cumsum(np.bincount(sample.clusters.labels, minlength=sample.clusters.count))[:-1]
    parts, residual_parts = np.split(columns[order], ends), np.split((y - columns @ best)[order], ends)
    grams = np.array([part.T @ part for part in parts])
    scores = np.array([part.T @ residuals for part, residuals in zip(parts, residual_parts, strict=True)])
    # A fit leans towards each cluster in proportion to its leverage: its residuals are rescaled by that.
    leverages, axes = np.linalg.eigh(grams)
    rotated = np.einsum("gij,gi->gj", axes, scores) / np.maximum(1 - leverages, RIDGE_PENALTY)
    scores = np.einsum("gij,gj->gi", axes, rotated)
    r = len(best)
    weighted = (weights @ grams.reshape(len(grams), -1)).reshape(-1, r, r)
    shifts = np.linalg.solve(weighted, (weights @ scores)[..., None])[..., 0] * sample.clusters.widening
    return RegressionFit(form, sample, to_coefficients @ best, (best + shifts) @ to_coefficients.T)


def predict_out_of_fold(form: BasisForm, sample: RegressionSample, folds: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return (n,) errors of each image by a fit to the other folds: raw, and less the prompt's share of them."""
    columns, to_coefficients = basis_matrix(form, sample)
    y = sample.whitened(sample.y)
    raw = form.columns(sample.settings) @ to_coefficients
    errors, whitened = np.empty_like(y), np.empty_like(y)
    for fold in np.unique(folds):
        is_training, is_test = folds != fold, folds == fold
        gram = columns[is_training].T @ columns[is_training]
        ridge = 1e-9 * np.eye(len(gram))  # a direction absent from the training folds gets no coefficient
        best = np.linalg.solve(gram + ridge, columns[is_training].T @ y[is_training])
        errors[is_test] = sample.y[is_test] - raw[is_test] @ best
        whitened[is_test] = y[is_test] - columns[is_test] @ best
    return errors, whitened


def flatness_p_value(
    sample: RegressionSample, tested_forms: Sequence[BasisForm], null_form: BasisForm, seed: int
) -> float:
    """Return the p-value of a response beyond `null_form`.

    The largest of one score statistic a form, each by its own wild cluster bootstrap of the residuals
    (Cameron, Gelbach and Miller 2008, with Webb's six weights), so that a trend is found by its few terms
    and a bump by its many. Between 0.001 and 1.
    """
    null, _ = basis_matrix(null_form, sample)
    y = sample.whitened(sample.y)
    residuals = y - null @ (null.T @ y)
    webb = np.sqrt([0.5, 1.0, 1.5])
    size = PERMUTATION_DRAWS, sample.clusters.count
    signs = np.random.default_rng(seed).choice(np.concatenate([webb, -webb]), size)
    ranks = []
    for form in tested_forms:
        columns, _ = basis_matrix(form, sample)
        extra = columns - null @ (null.T @ columns)
        u, s, _ = np.linalg.svd(extra, full_matrices=False)
        scores = sample.clusters.sums(u[:, s > RANK_TOLERANCE] * residuals[:, None])
        sizes = np.concatenate([[(scores.sum(axis=0) ** 2).sum()], ((signs @ scores) ** 2).sum(axis=1)])
        # Each statistic's own p-value, that of the draws among themselves.
        ranks.append(1 - (np.argsort(np.argsort(sizes)) + 0.5) / len(sizes))
    smallest = np.min(ranks, axis=0)
    return float((smallest <= smallest[0]).mean())
