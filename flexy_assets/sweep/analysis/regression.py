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

from flexy_assets.sweep.analysis.basis_functions import Form
from flexy_assets.sweep.analysis.clusters import PERMUTATION_DRAWS, Clusters

Floats = NDArray[np.float64]

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
    def block_effects(self) -> tuple[float, Floats]:
        """The blocks' share of the variance at equal settings (0 to 1), and their effects (blocks,).

        The share is the intraclass correlation; the effects are shrunk, the more the fewer images there are.
        """
        blocks = self.clusters.blocks
        sizes = np.bincount(blocks).astype(float)
        n, groups = len(self.y), len(sizes)
        if not 1 < groups < n - 1:
            return 0.0, np.zeros(groups)
        z = self.settings - self.settings.mean(axis=0)
        columns = np.column_stack([np.ones(n), z, z**2, z[:, 0] * z[:, 1]])
        residuals = self.y - columns @ np.linalg.lstsq(columns, self.y, rcond=None)[0]
        means = np.bincount(blocks, residuals) / sizes
        within_variance = float(((residuals - means[blocks]) ** 2).sum() / (n - groups))
        between_variance = float((sizes * (means - residuals.mean()) ** 2).sum() / (groups - 1))
        variance = max((between_variance - within_variance) / ((n - (sizes**2).sum() / n) / (groups - 1)), 0.0)
        share = variance / (variance + within_variance) if variance + within_variance > 0 else 0.0
        return share, means * sizes * share / (1 - share + sizes * share)

    @property
    def within(self) -> float:
        """The blocks' share of the variance at equal settings."""
        return self.block_effects[0]

    def whitened(self, values: Floats) -> Floats:
        """Return (n, …) the values less their share of the block's mean."""
        if not self.within:
            return values
        blocks = self.clusters.blocks
        flat = values.reshape(len(values), -1)
        sizes = np.bincount(blocks).astype(float)
        means = np.stack([np.bincount(blocks, column) for column in flat.T], axis=1) / sizes[:, None]
        shares = 1 - np.sqrt((1 - self.within) / (1 - self.within + sizes * self.within))
        return (flat - (shares[:, None] * means)[blocks]).reshape(values.shape)


@dataclass(frozen=True)
class RegressionFit:
    """A form fitted to a sample of n images.

    `coefficients` (p,); `errors` and `whitened_errors` (n,) of each image by a fit without its cluster: raw, and less
    the prompt's share of them; `variance` of what neither settings nor prompts explain.
    """

    form: Form
    coefficients: Floats
    errors: Floats
    whitened_errors: Floats
    variance: float
    _penalty: Floats
    _to_coefficients: Floats
    _grams: Floats
    _scores: Floats

    @property
    def influences(self) -> Floats:
        """(clusters, p) what a cluster adds to the coefficients as its weight grows by 1, to first order."""
        return self._scores @ self._to_coefficients.T

    def draw(self, weights: Floats, seed: int) -> Floats:
        """Return (draws, p) coefficients refitted under each row of cluster weights (draws, clusters).

        They are widened for their degrees of freedom: a band is Student's t times their deviation. A penalised form's
        also vary by its prior: what the images do not determine is as uncertain as the form assumes.
        """
        count, r = self._scores.shape
        prior_gram = self._penalty.T @ self._penalty
        weighted = (weights @ self._grams.reshape(count, -1)).reshape(-1, r, r) + prior_gram
        noise = np.random.default_rng(seed).standard_normal((len(weights), len(self._penalty)))
        shifts = (weights - 1) @ self._scores + np.sqrt(self.variance) * noise @ self._penalty
        shifts = np.linalg.solve(weighted, shifts[..., None])[..., 0] * np.sqrt((count + 1) / max(count - 1, 1))
        return self.coefficients + shifts @ self._to_coefficients.T


def basis_matrix(form: Form, sample: RegressionSample) -> tuple[Floats, Floats, Floats]:
    """Return (n, r) whitened columns of the form, (q, r) its penalty's and (p, r) their map from its own columns.

    Both together are orthonormal: the penalty acts as q more images.
    """
    columns = sample.whitened(form.columns(sample.settings))
    penalties = np.diag(form.penalty)[form.penalty > 0]
    u, s, vt = np.linalg.svd(np.vstack([columns, penalties]), full_matrices=False)
    is_kept = s > RANK_TOLERANCE * s[0]
    u = u[:, is_kept]
    return u[: len(columns)], u[len(columns) :], vt[is_kept].T / s[is_kept]


def fit_form(form: Form, sample: RegressionSample) -> RegressionFit:
    """Return the form fitted to all images by (penalised) least squares."""
    columns, penalty, to_coefficients = basis_matrix(form, sample)
    y = sample.whitened(sample.y)
    best = columns.T @ y
    residuals = y - columns @ best
    clusters = sample.clusters
    # A fit leans towards each cluster in proportion to its leverage: its residuals are rescaled by that.
    if clusters.count == len(y):
        order = np.argsort(clusters.labels)
        grams = np.einsum("gi,gj->gij", columns[order], columns[order])
        leverages = (columns**2).sum(axis=1)
        scores = (columns * (residuals / np.maximum(1 - leverages, RIDGE_PENALTY))[:, None])[order]
    else:
        order = np.argsort(clusters.labels, kind="stable")
        ends = np.cumsum(np.bincount(clusters.labels, minlength=clusters.count))[:-1]
        parts, residual_parts = np.split(columns[order], ends), np.split(residuals[order], ends)
        grams = np.array([part.T @ part for part in parts])
        scores = np.array([part.T @ values for part, values in zip(parts, residual_parts, strict=True)])
        leverages, axes = np.linalg.eigh(grams)
        rotated = np.einsum("gij,gi->gj", axes, scores) / np.maximum(1 - leverages, RIDGE_PENALTY)
        scores = np.einsum("gij,gj->gi", axes, rotated)
    # Without a cluster's images the coefficients are less by its rescaled scores.
    raw = form.columns(sample.settings) @ to_coefficients
    errors = sample.y - raw @ best + np.einsum("ij,ij->i", raw, scores[clusters.labels])
    whitened_errors = residuals + np.einsum("ij,ij->i", columns, scores[clusters.labels])
    freedom = max(len(y) - float((columns**2).sum()), 1.0)
    variance = float((residuals**2).sum()) / freedom
    coefficients = to_coefficients @ best
    return RegressionFit(form, coefficients, errors, whitened_errors, variance, penalty, to_coefficients, grams, scores)


def flatness_p_value(sample: RegressionSample, tested_forms: Sequence[Form], null_form: Form, seed: int) -> float:
    """Return the p-value of a response beyond `null_form`.

    The largest of one score statistic a form, each by its own wild cluster bootstrap of the residuals
    (Cameron, Gelbach and Miller 2008, with Webb's six weights), so that a trend is found by its few terms
    and a bump by its many. Between 0.001 and 1.
    """
    null, _, _ = basis_matrix(null_form, sample)
    y = sample.whitened(sample.y)
    residuals = y - null @ (null.T @ y)
    webb = np.sqrt([0.5, 1.0, 1.5])
    size = PERMUTATION_DRAWS, sample.clusters.count
    signs = np.random.default_rng(seed).choice(np.concatenate([webb, -webb]), size)
    ranks = []
    for form in tested_forms:
        columns, _, _ = basis_matrix(form, sample)
        extra = columns - null @ (null.T @ columns)
        u, s, _ = np.linalg.svd(extra, full_matrices=False)
        scores = sample.clusters.sums(u[:, s > RANK_TOLERANCE] * residuals[:, None])
        sizes = np.concatenate([[(scores.sum(axis=0) ** 2).sum()], ((signs @ scores) ** 2).sum(axis=1)])
        # Each statistic's own p-value, that of the draws among themselves.
        ranks.append(1 - (np.argsort(np.argsort(sizes)) + 0.5) / len(sizes))
    smallest = np.min(ranks, axis=0)
    return float((smallest <= smallest[0]).mean())
