"""The basis functions of responses over steps and guidance, from a mean to a spline surface."""

import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flexy_assets.sweep.analysis.rows import effective_guidance

Floats = NDArray[np.float64]
Knots = tuple[tuple[float, ...], tuple[float, ...]]

DEGREE: Final = 3
"""Degree of the splines, and the highest of the polynomials."""

PROCESS_CELLS: Final = 12
"""Cells in each direction whose means a Gaussian process is fitted to."""
PROCESS_TOLERANCE: Final = 1e-4
"""Principal components below this share of the largest one's variance are left out."""
SIGNAL_SHARES: Final = (1e-3, 10.0)
LENGTHS: Final = (0.5, 10.0)
"""Bounds of the process's variance, of that of the scores, and of its lengths, in standard deviations of a setting."""


def to_coordinates(steps: ArrayLike, guidance: ArrayLike) -> Floats:
    """Return (..., 2) log2 of steps and of effective guidance, broadcast; no guidance counts as switched off.

    Both are factors: a response that rises fast from guidance 1 to 2 and falls slowly to 12 has one shape in the
    logarithm, which no polynomial in guidance itself follows.
    """
    log_steps = np.log2(np.maximum(np.asarray(steps, dtype=np.float64), 1))
    log_guidance = np.log2(np.nan_to_num(effective_guidance(guidance), nan=1.0))
    return np.stack(np.broadcast_arrays(log_steps, log_guidance), axis=-1)


@dataclass(frozen=True)
class BasisForm:
    """A linear model's columns over standardised log2(steps) and log2(effective guidance).

    A polynomial of `degree` in both together and `degrees` in each; or, with `knots` of each, B-splines of
    those `degrees`: their sum where `additive`, with a cubic's interactions where `crossed`, else their tensor
    product, which bends freely (Wood 2017, Generalized Additive Models, chapter 5).
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    degree: int
    degrees: tuple[int, ...]
    knots: Knots | None = None
    additive: bool = False
    crossed: bool = False

    @property
    def penalty(self) -> Floats:
        """(p,) how strongly each coefficient is drawn to 0."""
        return np.zeros(len(self.terms()))

    def columns(self, settings: Floats) -> Floats:
        """Return (n, p) design columns of (n, 2) coordinates; their span contains the constant."""
        z = (settings - np.array(self.mean)) / np.array(self.std)
        if self.knots is None:
            return np.stack([z[:, 0] ** i * z[:, 1] ** j for i, j in self._powers()], axis=1)
        steps, guidance = (_splines(z[:, axis], self.knots[axis], self.degrees[axis]) for axis in (0, 1))
        if self.additive:
            # Guidance's splines add up to 1, as steps' do: one of them is redundant.
            crossings = [z[:, 0] ** i * z[:, 1] ** j for i, j in self._crossings()]
            return np.column_stack([steps, guidance[:, 1:], *crossings])
        return np.einsum("ni,nj->nij", steps, guidance).reshape(len(z), -1)

    def terms(self) -> list[str]:
        """Return the names of the columns, in their order."""
        if self.knots is None:
            return [_term(i, j) for i, j in self._powers()]
        steps, guidance = (_width(self.knots[axis], self.degrees[axis]) for axis in (0, 1))
        if self.additive:
            crossings = [_term(i, j) for i, j in self._crossings()]
            return [f"steps~{i}" for i in range(steps)] + [f"guidance~{j}" for j in range(1, guidance)] + crossings
        return [f"steps~{i}*guidance~{j}" for i in range(steps) for j in range(guidance)]

    def _crossings(self) -> list[tuple[int, int]]:
        """Return the exponents of a cubic's interactions; none unless `crossed`."""
        return [(i, j) for i, j in self._powers() if i and j] if self.crossed else []

    def _powers(self) -> list[tuple[int, int]]:
        """Return the exponents of steps and guidance in scikit-learn's order of polynomial features."""
        pairs = [(total - j, j) for total in range(self.degree + 1) for j in range(total + 1)]
        return [(i, j) for i, j in pairs if i <= self.degrees[0] and j <= self.degrees[1]]


@dataclass(frozen=True)
class ProcessForm:
    """A Gaussian process (Matérn 5/2) over standardised log2(steps) and log2(effective guidance), as a ridge.

    Its columns are a constant and the process's principal components at `centers` (m, 2): their coefficients are
    independent standard normal a priori, so that the constant is all that is left far from any image. `lengths` are
    its correlation lengths in each setting, `noise` the deviation of an image.
    """

    name: str
    mean: Floats
    std: Floats
    lengths: Floats
    noise: float
    centers: Floats
    to_components: Floats

    @property
    def penalty(self) -> Floats:
        """(p,) how strongly each coefficient is drawn to 0."""
        return np.array([0.0] + [self.noise] * self.to_components.shape[1])

    def columns(self, settings: Floats) -> Floats:
        """Return (n, p) design columns of (n, 2) coordinates."""
        correlation = matern((settings - self.mean) / self.std, self.centers, self.lengths)
        return np.column_stack([np.ones(len(settings)), correlation @ self.to_components])


Form = BasisForm | ProcessForm


def matern(left: Floats, right: Floats, lengths: Floats) -> Floats:
    """Return (…, n, m) Matérn 5/2 correlations of points (…, n, d) and (…, m, d) with correlation lengths (d,)."""
    axes = range(len(lengths))
    distance = np.sqrt(5 * sum(((left[..., :, None, i] - right[..., None, :, i]) / lengths[i]) ** 2 for i in axes))
    return np.asarray((1 + distance + distance**2 / 3) * np.exp(-distance))


def make_process(settings: Floats, y: Floats, noise: float) -> ProcessForm:
    """Return the Gaussian process of the highest likelihood for scores y (n,) at settings (n, 2).

    `noise` is the deviation of a score at equal settings. Fitted to the means of at most `PROCESS_CELLS`² cells.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    mean, std = settings.mean(axis=0), np.where(np.ptp(settings, axis=0) > 0, settings.std(axis=0), 1.0)
    z = (settings - mean) / std
    extent = np.maximum(np.ptp(z, axis=0), 1e-9)
    cells = np.minimum(((z - z.min(axis=0)) / extent * PROCESS_CELLS).astype(int), PROCESS_CELLS - 1) @ [
        PROCESS_CELLS,
        1,
    ]
    _, cells = np.unique(cells, return_inverse=True)
    counts = np.bincount(cells)
    centers = np.stack([np.bincount(cells, column) / counts for column in z.T], axis=1)
    variance = max(float(np.var(y)), 1e-300)
    means = (np.bincount(cells, y - y.mean()) / counts) / np.sqrt(variance)
    kernel = ConstantKernel(0.3, SIGNAL_SHARES) * Matern([1.5, 1.5], [LENGTHS, LENGTHS], nu=2.5)
    process = GaussianProcessRegressor(kernel, alpha=noise**2 / variance / counts)
    with warnings.catch_warnings():
        # A length at its bound says that the setting hardly matters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(centers, means)
    signal, lengths = process.kernel_.k1.constant_value, np.asarray(process.kernel_.k2.length_scale)
    values, vectors = np.linalg.eigh(matern(centers, centers, lengths))
    kept = values > PROCESS_TOLERANCE * values[-1]
    to_components = vectors[:, kept] * np.sqrt(signal * variance / values[kept])
    return ProcessForm("process", mean, std, lengths, noise, centers, to_components)


def make_form(settings: Floats, name: str, degree: int = DEGREE, pieces: int = 0, crossed: bool = False) -> BasisForm:
    """Return a form for settings (n, 2), of no higher degree than their distinct values support.

    `pieces` are each setting's splines'; where `crossed`, guidance's alone.
    """
    mean, std = settings.mean(axis=0), np.where(np.ptp(settings, axis=0) > 0, settings.std(axis=0), 1.0)
    steps, guidance = ((settings - mean) / std).T
    # Two distinct values support a line, three a parabola.
    degrees = tuple(min(DEGREE, len(np.unique(values)) - 1) for values in (steps, guidance))
    knots = (place_knots(steps, 1 if crossed else pieces), place_knots(guidance, pieces)) if pieces else None
    additive = name == "additive" or crossed
    return BasisForm(name, tuple(mean.tolist()), tuple(std.tolist()), degree, degrees, knots, additive, crossed)


def place_knots(values: Floats, pieces: int) -> tuple[float, ...]:
    """Return at most `pieces + 1` knots from the lowest to the highest of the values (n,).

    They are midway between evenly spaced ones and quantiles: uniform steps crowd the upper end of their logarithm
    while curves bend at the lower.
    """
    distinct = np.unique(values)
    pieces = max(min(pieces, len(distinct) - DEGREE), 1)
    shares = np.linspace(0, 1, pieces + 1)
    even = distinct[0] + shares * (distinct[-1] - distinct[0])
    return tuple(float(knot) for knot in (even + np.quantile(distinct, shares)) / 2)


def _term(i: int, j: int) -> str:
    powers = ((name, power) for name, power in (("log2_steps", i), ("log2_guidance", j)) if power)
    return "*".join(name if power == 1 else f"{name}^{power}" for name, power in powers) or "intercept"


def _width(knots: tuple[float, ...], degree: int) -> int:
    return len(knots) - 1 + degree if degree else 1


def _splines(z: Floats, knots: tuple[float, ...], degree: int) -> Floats:
    """Return (n, k) B-splines that add up to 1 and stay as they are beyond the knots; one of ones for a constant."""
    from scipy.interpolate import BSpline

    if not degree:
        return np.ones((len(z), 1))
    clamped = np.array([knots[0]] * degree + [*knots] + [knots[-1]] * degree)
    inside = np.clip(z, knots[0], knots[-1])
    return np.asarray(BSpline(clamped, np.eye(_width(knots, degree)), degree)(inside))
