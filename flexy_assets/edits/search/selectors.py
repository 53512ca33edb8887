"""What a search chooses by: scores of one candidate, weighed into one number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from resources.errors import BadInputError

CandidateScores = Mapping[str, float | None]
"""Metric to score; None, or no entry, where it could not be measured."""

MAX_WEIGHT = 1e6
"""Beyond this a sum of scores loses the digits that tell candidates apart."""


class Selector(Protocol):
    """Says how good candidates are."""

    def values(self, candidates: Sequence[CandidateScores]) -> list[float | None]:
        """A number each, higher is better, to be compared within this call; None where a score is missing."""
        ...


@dataclass(frozen=True)
class Potential:
    """A weighted sum of scores, each in its metric's own unit; a negative weight where lower is better.

    A metric of weight 0 is not asked for.
    """

    weights: Mapping[str, float]

    def of(self, scores: CandidateScores) -> float | None:
        """The sum; None where a score is missing or not finite. Nothing stands in for it."""
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
        return [self.of(scores) for scores in candidates]

    def __str__(self) -> str:
        """As in `pf + 10·cons − 3·lpips`."""
        terms = [
            f"{'−' if weight < 0 else '+'} {'' if abs(weight) == 1 else f'{abs(weight):g}·'}{metric}"
            for metric, weight in self.weights.items()
            if weight
        ]
        return " ".join(terms).removeprefix("+ ")


@dataclass(frozen=True)
class RankSum:
    """A weighted sum of ranks instead of scores, so that no metric's unit outweighs the others.

    Choosing by one verifier raises that one and can lower the others; mean rank over several is the safer
    choice (Ma et al. 2025, inference-time scaling). A candidate's rank in a metric, 0 to 1, is the share of
    the candidates it beats there, ties by half. Weights as in `Potential`: 1 or −1 each make the plain mean rank.
    """

    weights: Mapping[str, float]

    def values(self, candidates: Sequence[CandidateScores]) -> list[float | None]:
        plain = Potential(self.weights)
        whole = [index for index, scores in enumerate(candidates) if plain.of(scores) is not None]
        found: list[float | None] = [None] * len(candidates)
        total = np.zeros(len(whole))
        for metric, weight in self.weights.items():
            if weight and whole:
                x = np.array([candidates[index][metric] for index in whole], dtype=np.float64)
                beaten = (1 + np.sign(x[:, None] - x[None, :])).sum(axis=1) / 2
                total += weight * beaten / len(x)
        for index, value in zip(whole, total.tolist(), strict=True):
            found[index] = value
        return found


@dataclass(frozen=True)
class PromptFollowing:
    """By ranks, but first those that follow the prompt, then those that do not.

    Most metrics of an edit say how much was kept, so a picture in which nothing was done would win by them. A candidate
    follows where its `pf_gain`, how much nearer to the prompt it is than the source, is half of the best one's or more;
    where no candidate is any nearer, ranks alone decide.
    """

    ranks: RankSum

    def values(self, candidates: Sequence[CandidateScores]) -> list[float | None]:
        gains = Potential({"pf_gain": 1.0}).values(candidates)
        best = max((gain for gain in gains if gain is not None), default=0.0)
        wanted = best / 2 if best > 0 else -math.inf
        # More than any two rank sums can differ by.
        behind = sum(map(abs, self.ranks.weights.values()))
        found: list[float | None] = []
        for value, gain in zip(self.ranks.values(candidates), gains, strict=True):
            found.append(None if value is None or gain is None else value - behind * (gain < wanted))
        return found


def edit_potential(alpha: float | str = 10.0, beta: float | str = 3.0) -> Potential:
    """`PF + α·CONS − β·LPIPS`, qwen3-score's potential of an edit.

    PF (`pf`) is 100·cos(CLIP image, CLIP text): as a plain cosine its spread, about 0.05, would disappear beside
    10·CONS. CONS (`cons`) is the cosine of the edited and the source image under CLIP, LPIPS (`lpips`) their
    distance, 0 for the same image. Raises `BadInputError` for a weight that is no number.
    """
    return Potential({"pf": 1.0, "cons": _weight("alpha", alpha), "lpips": -_weight("beta", beta)})


def inpaint_potential(alpha: float | str = 1.0, beta: float | str = 1.0, gamma: float | str = 2.0) -> Potential:
    """`α·consistency + β·quality + γ·identity`, the potential of an inpainted character, each score 0 to 10.

    Raises `BadInputError` for a weight that is no number.
    """
    weights = {"consistency": _weight("alpha", alpha), "quality": _weight("beta", beta)}
    return Potential(weights | {"identity": _weight("gamma", gamma)})


def rank_candidates(selector: Selector, candidates: Sequence[CandidateScores]) -> list[int]:
    """Indices of the candidates, best first; equal ones in their order, those that have no value at the end."""
    values = selector.values(candidates)
    ranks = [-math.inf if value is None else value for value in values]
    return sorted(range(len(values)), key=lambda index: (values[index] is None, -ranks[index]))


def _weight(name: str, value: float | str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    # NaN fails every comparison.
    if not abs(weight) <= MAX_WEIGHT:
        raise BadInputError(f"{name} {value!r} is no weight: write a number such as 10, at most {MAX_WEIGHT:g}")
    return weight
