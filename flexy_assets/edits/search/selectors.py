"""Selectors: how a search turns the scores of candidates into one value each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Protocol

import numpy as np

from resources.errors import BadInputError

CandidateScores = Mapping[str, float | None]  # metric to score; None, or no entry, where the score is missing

MAX_WEIGHT = 1e6  # above this the sum of scores loses the digits in which candidates differ


class Selector(Protocol):
    """Rates candidates."""

    def values(self, candidates: Sequence[CandidateScores]) -> list[float | None]:
        """Return one value per candidate, higher is better, comparable within this call; None if a score is missing."""
        ...


@dataclass(frozen=True)
class Potential:
    """A weighted sum of scores in their metrics' units, weights below 0 where lower is better, unneeded where 0."""

    weights: Mapping[str, float]

    def value(self, scores: CandidateScores) -> float | None:
        """Return the sum; None where a score is missing or not finite, without a default."""
        total = 0.0
        for metric, weight in self.weights.items():
            if weight == 0:
                continue
            score = scores.get(metric)
            if score is None or not math.isfinite(score):
                return None
            total += weight * score
        return total

    def values(self, candidates: Sequence[CandidateScores]) -> list[float | None]:
        return [self.value(scores) for scores in candidates]

    def __str__(self) -> str:
        """Return the formula, as in `pf + 10·cons − 3·lpips`."""
        terms = [
            f"{'−' if weight < 0 else '+'} {'' if abs(weight) == 1 else f'{abs(weight):g}·'}{metric}"
            for metric, weight in self.weights.items()
            if weight
        ]
        return " ".join(terms).removeprefix("+ ")


@dataclass(frozen=True)
class RankSum:
    """A weighted sum of ranks instead of scores, so that no metric's unit outweighs the others.

    Selecting by one verifier raises its score and can lower the others; the mean rank over several verifiers is
    safer (Ma et al. 2025, inference-time scaling). A candidate's rank in a metric, 0 to 1, is the share of the
    candidates that it beats, a tie counting half. Weights are as in `Potential`: 1 or −1 each is the mean rank.
    """

    weights: Mapping[str, float]

    def values(self, candidates: Sequence[CandidateScores]) -> list[float | None]:
        is_complete = [value is not None for value in Potential(self.weights).values(candidates)]
        complete = list(compress(candidates, is_complete))
        total = np.zeros(len(complete))
        for metric, weight in self.weights.items():
            if weight and complete:
                x = np.array([scores[metric] for scores in complete], dtype=np.float64)
                beaten = (1 + np.sign(x[:, None] - x[None, :])).sum(axis=1) / 2
                total += weight * beaten / len(x)
        values = iter(total.tolist())
        return [next(values) if each else None for each in is_complete]


@dataclass(frozen=True)
class PromptFollowing:
    """By ranks, with the candidates that follow the instruction before all others.

    Most metrics of an edit reward an unchanged image, so an image without any edit would win by ranks. A candidate
    follows the instruction if its `pf_gain` (how much closer to the instruction it is than the source) is at least
    half of the best one's. Where no candidate is closer than the source, ranks alone decide.
    """

    ranks: RankSum

    def values(self, candidates: Sequence[CandidateScores]) -> list[float | None]:
        gains = Potential({"pf_gain": 1.0}).values(candidates)
        best = max((gain for gain in gains if gain is not None), default=0.0)
        threshold = best / 2 if best > 0 else -math.inf
        # Larger than the difference of any two rank sums.
        penalty = sum(map(abs, self.ranks.weights.values()))
        return [
            None if value is None or gain is None else value - penalty * (gain < threshold)
            for value, gain in zip(self.ranks.values(candidates), gains, strict=True)
        ]


def edit_potential(alpha: float | str = 10.0, beta: float | str = 3.0) -> Potential:
    """Return `PF + α·CONS − β·LPIPS`, qwen3-score's potential of an edit.

    PF (`pf`) is 100·cos(CLIP image, CLIP text): the spread of the plain cosine, about 0.05, would vanish against
    10·CONS. CONS (`cons`) is the cosine of the edited and the source image under CLIP, LPIPS (`lpips`) their
    distance, 0 for the same image. Raises `BadInputError` for a weight that is not a number.
    """
    return Potential({"pf": 1.0, "cons": _weight("alpha", alpha), "lpips": -_weight("beta", beta)})


def inpaint_potential(alpha: float | str = 1.0, beta: float | str = 1.0, gamma: float | str = 2.0) -> Potential:
    """Return `α·consistency + β·quality + γ·identity`, the potential of an inpainted face, each score 0 to 10.

    Raises `BadInputError` for a weight that is not a number.
    """
    weights = {"consistency": _weight("alpha", alpha), "quality": _weight("beta", beta)}
    return Potential(weights | {"identity": _weight("gamma", gamma)})


def rank_candidates(selector: Selector, candidates: Sequence[CandidateScores]) -> list[int]:
    """Return the indices of the candidates, best first; equal ones in their order, those without a value last."""
    values = [-math.inf if value is None else value for value in selector.values(candidates)]
    return sorted(range(len(values)), key=lambda index: -values[index])


def _weight(name: str, value: float | str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    # NaN fails every comparison.
    if not abs(weight) <= MAX_WEIGHT:
        raise BadInputError(f"invalid {name} {value!r}: must be a number such as 10, at most {MAX_WEIGHT:g}")
    return weight
