"""The next images of a sweep: the settings that tell most about which are best.

The overall score is a Gaussian process over log2 steps and log2 guidance (Matérn 5/2, a length an axis), plus an
intercept for each prompt, plus for each pair of prompt and seed an intercept and a process of its own: at settings
that are close, one seed's images are alike. It is averaged over hyperparameters by their evidence, and reduced to
inducing points on a grid (Quiñonero-Candela and Rasmussen 2005), so that it takes seconds at 10,000 images. Images are
chosen one by one: each reduces most the variance of the differences between the settings and the best of them, weighted
by how likely each is to be the best (Cohn 1996, with the weights of Thompson sampling).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from flexy_assets.sweep.analysis.basis_functions import matern
from flexy_assets.sweep.analysis.rows import add_weighted_overall, effective_guidance, float_column, weigh_metrics
from flexy_assets.sweep.plan import Extension, Floats, SettingRange, Sweep
from resources.errors import BadInputError

Ints = NDArray[np.int64]

MIN_SCORED: Final = 20
"""Scored images of a sweep from which its next ones are chosen."""
MAX_EXTENSION: Final = 10_000
STEPS_CELLS: Final = 20
GUIDANCE_CELLS: Final = 14
EXPLORATION: Final = 0.1
"""Share of the weights that all settings have alike: the model may be wrong about which could be the best."""
DRAWS: Final = 400
INDUCING: Final = 7
"""Inducing points along each axis."""
LENGTHS: Final = (0.2, 0.35, 0.6, 1.0, 1.7)
"""Length scales, in ranges of the setting."""
SIGNALS: Final = np.geomspace(0.003, 30, 13)
"""Variances of the process, in those of an image's own noise."""
INTERCEPTS: Final = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Variances of a prompt's intercept, and of what is a pair's, in the same."""
PAIR_INTERCEPTS: Final = (1.0, 0.7, 0.4, 0.1)
"""The intercept's share of a pair's variance; the rest is its process."""
PAIR_LENGTH: Final = 0.6
MAX_PAIR: Final = 50
"""Images of one pair beyond which it has an intercept alone."""
MIN_WEIGHT: Final = 0.002

PairChoice = tuple[float, float, float]
"""Hyperparameters: a pair's variance, its intercept's share of that, and a prompt's variance."""


def extend_sweep(
    sweep: Sweep,
    target: int,
    scores: pl.DataFrame,
    images: int,
    weights: Mapping[str, float] | None = None,
    suspect: Mapping[str, str] | None = None,
) -> Sweep:
    """Return the sweep of `target` images with `images` more, chosen by the `scores` of its images so far.

    The same scores choose the same images. `weights` and `suspect` are those of `weigh_metrics`. Raises `BadInputError`
    where too few images have all weighted scores, and where the sweep has one setting alone.
    """
    if not 1 <= images <= MAX_EXTENSION:
        raise BadInputError(f"invalid images {images}: must be from 1 to {MAX_EXTENSION:,}")
    cells, posterior = fit_sweep(sweep, scores, weights, suspect)
    chosen = choose_cells(posterior, images, sweep.pair_size, np.random.default_rng([sweep.seed, target]))
    extension = Extension(target, tuple(cells[cell] for cell in chosen))
    return replace(sweep, extensions=(*sweep.extensions, extension))


def fit_sweep(
    sweep: Sweep,
    scores: pl.DataFrame,
    weights: Mapping[str, float] | None = None,
    suspect: Mapping[str, str] | None = None,
) -> tuple[list[tuple[int, float | None]], "Posterior"]:
    """Return the settings to choose from and what the scores say of them; raises as `extend_sweep`."""
    name = sweep.run_id.hex[:8]
    shares, _ = weigh_metrics(scores, weights, suspect)
    scored = add_weighted_overall(scores, shares).drop_nulls(["overall", "steps", "prompt"])
    if sweep.guidance:
        scored = scored.drop_nulls("guidance")
    if scored.height < MIN_SCORED:
        cause = f"{scored.height} of its images are scored, {MIN_SCORED} are needed"
        raise BadInputError(f"cannot extend sweep {name}: {cause}: flexy sweep run {name}, or plan more")
    cells = candidate_settings(sweep)
    if len(cells) < 2:
        raise BadInputError(f"cannot extend sweep {name}: it has one setting alone: plan one with a range of steps")
    axes = _axes(sweep)
    prompts, pairs = (
        scored.select(pl.struct(names).rank("dense")).to_series().to_numpy().astype(np.int64) - 1
        for names in (["prompt"], ["prompt", "seed"])
    )
    settings = _coordinates(float_column(scored, "steps"), float_column(scored, "guidance"), axes)
    steps, guidance = np.array(cells, dtype=np.float64).T
    places = _coordinates(steps, guidance, axes)
    return cells, fit_process(settings, float_column(scored, "overall"), prompts, pairs, places)


def candidate_settings(sweep: Sweep) -> list[tuple[int, float | None]]:
    """Return steps and guidance of the settings to choose from; guidance at and below 1 is one setting."""
    steps = _thin(sweep.steps, STEPS_CELLS, whole=True)
    if not sweep.guidance:
        return [(int(each), None) for each in steps]
    guidance = _thin(sweep.guidance, GUIDANCE_CELLS, whole=False)
    off = [each for each in guidance if each <= 1]
    return [(int(a), b) for a, b in product(steps, [*off[-1:], *(each for each in guidance if each > 1)])]


def _thin(values: SettingRange, most: int, whole: bool) -> list[float]:
    """Return at most `most` values of the range, evenly spread in their logarithm."""
    low = values.low if whole else max(values.low, min(1.0, values.high))
    spread = np.geomspace(max(low, 1e-3), max(values.high, 1e-3), most)
    count = values.count(whole)
    if count is None:
        return sorted({min(max(round(float(each), 2), low), values.high) for each in spread})
    every = np.array([values.at((place + 0.5) / count, whole) for place in range(count)])
    if count <= most:
        return [float(each) for each in every]
    return sorted({float(every[np.abs(every - each).argmin()]) for each in spread})


def _axes(sweep: Sweep) -> list[tuple[int, float, float]]:
    """Return the settings that vary, 0 for steps and 1 for guidance, with the ends of their log2."""
    ends = {0: (sweep.steps.low, sweep.steps.high)}
    if sweep.guidance:
        ends[1] = (sweep.guidance.low, sweep.guidance.high)
    logs = {axis: np.log2(effective_guidance(pair) if axis else pair) for axis, pair in ends.items()}
    return [(axis, float(low), float(high)) for axis, (low, high) in logs.items() if low < high]


def _coordinates(steps: ArrayLike, guidance: ArrayLike, axes: list[tuple[int, float, float]]) -> Floats:
    """Return (n, axes) places in the sweep's ranges, 0 to 1."""
    values = np.asarray(steps, dtype=np.float64), effective_guidance(guidance)
    return np.stack([(np.log2(values[axis]) - low) / (high - low) for axis, low, high in axes], axis=-1)


@dataclass(frozen=True)
class Posterior:
    """What is known of the expected score at m cells.

    `parts` are the hyperparameters' weights with mean (m,) and root (m, k) of the covariance; `of_pair` (m, m) is the
    covariance of what is a pair's, `noise` the variance of an image's own noise.
    """

    parts: list[tuple[float, Floats, Floats]]
    of_pair: Floats
    noise: float

    @cached_property
    def mean(self) -> Floats:
        """(m,) the expectation."""
        return np.sum([weight * mean for weight, mean, _ in self.parts], axis=0)

    @property
    def covariance(self) -> Floats:
        """(m, m), with the hyperparameters' disagreement."""
        total = np.zeros((len(self.mean), len(self.mean)))
        for weight, mean, root in self.parts:
            total += weight * (root @ root.T + np.outer(mean - self.mean, mean - self.mean))
        return total

    def best_shares(self, rng: np.random.Generator) -> Floats:
        """Return (m,) how often each cell is the best of a draw."""
        best = np.zeros(len(self.parts[0][1]))
        for place in rng.choice(len(self.parts), DRAWS, p=[weight for weight, _, _ in self.parts]):
            _, mean, root = self.parts[place]
            best[(mean + root @ rng.standard_normal(root.shape[1])).argmax()] += 1 / DRAWS
        return best


def fit_process(settings: Floats, y: Floats, prompts: Ints, pairs: Ints, cells: Floats) -> Posterior:
    """Return the posterior at cells (m, d) from y (n,) at settings (n, d), both from 0 to 1."""
    scale = float(y.std()) or 1.0
    z = (y - y.mean()) / scale
    features, _ = _features(settings, cells, np.full(settings.shape[1], 0.5))
    kernel = PairKernel(settings, pairs, prompts)

    def evidence(choice: PairChoice) -> float:
        return float(_Regression.of(features, z, kernel, *choice).evidences.max())

    # One after the other: all combinations would take four times as long.
    pair_ratio, share, _ = max(((*each, kernel.prompt_ratios[-1]) for each in kernel.of_pair), key=evidence)
    choice = max(((pair_ratio, share, each) for each in kernel.prompt_ratios), key=evidence)
    fits = []
    for lengths in product(LENGTHS, repeat=settings.shape[1]):
        features, at_cells = _features(settings, cells, np.array(lengths))
        fits.append((at_cells, _Regression.of(features, z, kernel, *choice)))
    logs = np.array([fit.evidences for _, fit in fits])
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    parts, noise = [], 0.0
    kept = [(place, signal) for place, signal in np.argwhere(weights > MIN_WEIGHT)]
    total = sum(weights[place, signal] for place, signal in kept)
    for place, signal in kept:
        at_cells, fit = fits[place]
        weight = float(weights[place, signal] / total)
        mean, root, variance = fit.predict(at_cells, SIGNALS[signal])
        parts.append((weight, y.mean() + scale * mean, scale * root))
        noise += weight * variance * scale**2
    ratio, share, _ = choice
    return Posterior(parts, noise * pair_covariance(cells, cells, ratio, share), noise)


def _repeats(labels: Ints) -> bool:
    return 1 < labels.max() + 1 < len(labels)


def pair_covariance(left: Floats, right: Floats, ratio: float, share: float) -> Floats:
    """Return (…, n, m) the covariance of what is a pair's, `ratio` its variance and `share` its intercept's of that."""
    return ratio * (share + (1 - share) * matern(left, right, np.full(left.shape[-1], PAIR_LENGTH)))


@dataclass(frozen=True)
class PairKernel:
    """The covariance of images that share prompt and seed, or prompt alone, at settings (n, d)."""

    settings: Floats
    pairs: Ints
    prompts: Ints

    @property
    def of_pair(self) -> list[tuple[float, float]]:
        """The variances of what is a pair's to choose from, with its intercept's share."""
        if not _repeats(self.pairs):
            return [(0.0, 1.0)]
        shares = PAIR_INTERCEPTS if np.bincount(self.pairs).max() <= MAX_PAIR else (1.0,)
        return [(0.0, 1.0), *product(INTERCEPTS[1:], shares)]

    @property
    def prompt_ratios(self) -> tuple[float, ...]:
        """The variances of a prompt's intercept to choose from."""
        return INTERCEPTS[::2] if _repeats(self.prompts) else (0.0,)

    def whiten(self, columns: Floats, ratio: float, share: float, prompt_ratio: float) -> tuple[Floats, float]:
        """Return the columns (n, p) whitened, and half the log determinant of the covariance.

        The last column is 1 everywhere.
        """
        change = 0.0
        if share < 1:
            columns, change = self._whiten_blocks(columns, ratio, share)
        elif ratio:
            columns, change = _whiten(columns, self.pairs, ratio)
        if prompt_ratio:
            columns, more = _whiten(columns, self.prompts, prompt_ratio)
            change += more
        return columns, change

    def _whiten_blocks(self, columns: Floats, ratio: float, share: float) -> tuple[Floats, float]:
        order, sizes = np.argsort(self.pairs, kind="stable"), np.bincount(self.pairs)
        ends = np.cumsum(sizes)
        whitened, change = np.empty_like(columns), 0.0
        for size in np.unique(sizes):
            rows = order[(ends[sizes == size] - size)[:, None] + np.arange(size)]
            covariance = pair_covariance(self.settings[rows], self.settings[rows], ratio, share)
            roots = np.linalg.cholesky(covariance + np.eye(size))
            whitened[rows] = np.linalg.solve(roots, columns[rows])
            change += float(np.log(np.diagonal(roots, axis1=1, axis2=2)).sum())
        return whitened, change


def _features(settings: Floats, cells: Floats, lengths: Floats) -> tuple[Floats, Floats]:
    """Return the process' columns (n, k) at the settings and (m, k) at the cells, with a constant."""
    inducing = np.array(list(product(np.linspace(0, 1, INDUCING), repeat=settings.shape[1])))
    root = np.linalg.cholesky(matern(inducing, inducing, lengths) + 1e-6 * np.eye(len(inducing)))
    columns = (np.linalg.solve(root, matern(inducing, places, lengths)).T for places in (settings, cells))
    at_settings, at_cells = (np.column_stack([each, np.full(len(each), 3.0)]) for each in columns)
    return at_settings, at_cells


@dataclass(frozen=True)
class _Regression:
    """Bayesian regression on whitened columns, diagonalised: one eigenvalue and projection of y a direction."""

    n: int
    eigenvalues: Floats
    directions: Floats
    projections: Floats
    total: float
    log_determinant: float

    @classmethod
    def of(cls, features: Floats, y: Floats, kernel: PairKernel, *choice: float) -> "_Regression":
        columns, log_determinant = kernel.whiten(np.column_stack([features, y, np.ones(len(y))]), *choice)
        design, target = columns[:, :-2], columns[:, -2]
        eigenvalues, directions = np.linalg.eigh(design.T @ design)
        projections = directions.T @ (design.T @ target)
        return cls(len(y), np.maximum(eigenvalues, 0), directions, projections, float(target @ target), log_determinant)

    @property
    def evidences(self) -> Floats:
        """The log evidence of each of `SIGNALS`, up to a constant; the noise's variance is integrated out."""
        precisions = self.eigenvalues + 1 / SIGNALS[:, None]
        penalties = 0.5 * np.log(SIGNALS[:, None] * precisions).sum(axis=1)
        return -penalties - 0.5 * self.n * np.log(self._residuals(precisions)) - self.log_determinant

    def predict(self, columns: Floats, signal: float) -> tuple[Floats, Floats, float]:
        """Return the mean (m,), the root of the covariance (m, k) and the noise's variance."""
        precisions = self.eigenvalues + 1 / signal
        noise = float(self._residuals(precisions)) / self.n
        rotated = columns @ self.directions
        return rotated @ (self.projections / precisions), rotated * np.sqrt(noise / precisions), noise

    def _residuals(self, precisions: Floats) -> Floats:
        return np.maximum(self.total - (self.projections**2 / precisions).sum(axis=-1), 1e-9)


def _whiten(columns: Floats, labels: Ints, ratio: float) -> tuple[Floats, float]:
    """Return the columns whitened for an intercept a group, and half the log determinant of its covariance.

    The last column is the intercept's own; `ratio` is its variance, in those of the noise.
    """
    groups = int(labels.max()) + 1
    direction = columns[:, -1]
    lengths = np.bincount(labels, direction**2, groups)
    sums = np.stack([np.bincount(labels, column, groups) for column in (columns * direction[:, None]).T], axis=1)
    shares = (1 - 1 / np.sqrt(1 + ratio * lengths)) / np.maximum(lengths, 1e-12)
    whitened = columns - direction[:, None] * (shares[:, None] * sums)[labels]
    return whitened, 0.5 * float(np.log1p(ratio * lengths).sum())


def choose_cells(posterior: Posterior, images: int, pair_size: int, rng: np.random.Generator) -> list[int]:
    """Return the cells of the next images, `pair_size` of one prompt and seed in a row, all different in a pair."""
    mean, covariance = posterior.mean, posterior.covariance
    count, best = len(mean), int(mean.argmax())
    weights = (1 - EXPLORATION) * posterior.best_shares(rng) + EXPLORATION / count
    # After the cells' own, the coordinates of what is the pair's under way.
    joint = np.zeros((2 * count, 2 * count))
    joint[:count, :count] = covariance
    chosen: list[int] = []
    places = np.arange(count)
    for image in range(images):
        if image % pair_size == 0:
            joint[count:], joint[:, count:] = 0.0, 0.0
            joint[count:, count:] = posterior.of_pair
            open_cells = np.ones(count, dtype=bool)
        with_image = joint[:, :count] + joint[:, count:]
        variances = with_image[places, places] + with_image[count + places, places] + posterior.noise
        contrasts = with_image[:count] - with_image[best]
        gains = (weights @ contrasts**2) / variances
        if not open_cells.any():
            open_cells[:] = True
        cell = int(np.where(open_cells, gains, -1.0).argmax())
        open_cells[cell] = False
        joint -= np.outer(with_image[:, cell], with_image[:, cell]) / variances[cell]
        chosen.append(cell)
    return chosen
