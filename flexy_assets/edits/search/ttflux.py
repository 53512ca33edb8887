"""TTFLUX: best of N by one verifier, after tt-scale-flux (Ma et al. 2025, inference-time scaling)."""

from collections.abc import Iterator
from dataclasses import dataclass

from flexy_assets.edits.search.protocol import (
    Observations,
    Proposal,
    Search,
    Seeds,
    full_denoise,
    full_denoises_nfe,
    perturbed_noise,
)
from flexy_assets.edits.search.selectors import Potential, Selector
from resources.engines import EditNoise
from resources.errors import BadInputError

PF = Potential({"pf": 1.0})  # the verifier of qwen3-score's TTFLUX: CLIP between image and instruction


@dataclass(frozen=True)
class RandomSearch(Search):
    """As many new noises as the budget pays for; the best one by the verifier wins.

    tt-scale-flux draws 2^r of them in round r. No round depends on another, so here all are drawn at once.
    """

    seeds: Seeds
    steps: int
    budget: int
    selector: Selector = PF

    def __post_init__(self) -> None:
        full_denoises_nfe(self.budget, self.steps)

    def rounds(self, observations: Observations) -> Iterator[list[Proposal]]:
        names = [f"g{index}" for index in range(full_denoises_nfe(self.budget, self.steps))]
        yield [full_denoise(name, "global", EditNoise(self.seeds(name)), self.steps) for name in names]


@dataclass(frozen=True)
class ZeroOrderSearch(Search):
    """From a base noise to the best of its neighbours, repeatedly; the best one by the verifier wins.

    A neighbour of noise x is |x|·(t·u + √(1−t²)·w), u = x/|x|, w a random unit direction. The base moves only to a
    better neighbour.
    """

    seeds: Seeds
    steps: int
    budget: int
    selector: Selector = PF
    neighbours: int = 4
    t: float = 0.95

    def __post_init__(self) -> None:
        """Raises `BadInputError` for invalid settings."""
        full_denoises_nfe(self.budget, self.steps)
        if self.neighbours < 1:
            raise BadInputError(f"invalid neighbours {self.neighbours}: must be 1 or more")
        if not 0 <= self.t < 1:
            raise BadInputError(f"invalid t {self.t}: must be from 0 (anywhere) to below 1 (the noise itself)")

    def rounds(self, observations: Observations) -> Iterator[list[Proposal]]:
        base = full_denoise("g0", "global", EditNoise(self.seeds("g0")), self.steps)
        yield [base]
        for first in range(1, full_denoises_nfe(self.budget, self.steps), self.neighbours):
            names = [f"n{index}" for index in range(first, first + self.neighbours)]
            neighbours = [
                full_denoise(
                    name, "local", perturbed_noise(base.noise, self.t, self.seeds(name)), self.steps, parent=base.name
                )
                for name in names[: full_denoises_nfe(self.budget, self.steps) - first]
            ]
            yield neighbours
            base = self.rank([base, *neighbours], observations)[0]
