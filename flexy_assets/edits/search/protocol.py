"""The protocol of a search: asked what to make next, given what was observed, and at last which one it chooses.

A search decides by what was made and nothing else, so one that was interrupted goes on by being asked again,
and many tasks' searches can be asked in step, their candidates made and scored together.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flexy_assets.edits.search.selectors import CandidateScores, Selector, rank_candidates
from resources.engines import EditNoise
from resources.errors import BadInputError


@dataclass(frozen=True)
class Seeds:
    """The seeds of one task: each a function of `base`, the task, `stream` and the candidate's name alone.

    Searches with the same stream draw the same first candidates (common random numbers), so that their
    difference is not one of luck; give each its own stream where that is not wanted.
    """

    base: int
    task_id: str
    stream: str = ""

    def __call__(self, name: str) -> int:
        """A seed from 0 to 2³¹ − 1."""
        key = json.dumps([self.base, self.task_id, self.stream, name])
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) >> 1


@dataclass(frozen=True)
class Proposal:
    """A candidate to make, or to carry on with.

    Its path is the `path` steps from its noise to its picture: all the steps of a denoise where `strength` is
    1, and where it is less only the last `path` of them, from the finished picture of `parent` re-noised.
    It is to be run from step `start` of its path (0: it is new) until step `until`. Where that is not the end,
    the observation is a preview: the scores of the clean picture as predicted there.
    """

    name: str
    stage: str
    noise: EditNoise
    parent: str | None
    strength: float
    start: int
    until: int
    path: int

    @property
    def nfe(self) -> int:
        """What it costs, in denoising steps."""
        return self.until - self.start

    @property
    def finishes(self) -> bool:
        return self.until == self.path


@dataclass(frozen=True)
class SearchCandidate:
    """What came of a proposal: the scores of candidate `name` at step `until`, and the steps run for them."""

    name: str
    until: int
    nfe: int
    scores: CandidateScores


Observations = Mapping[tuple[str, int], CandidateScores]
"""Scores by candidate and step."""


class Search(ABC):
    """A search for one task.

    A subclass says in which rounds it goes; `steps` are those of a full denoise, `budget` the denoising
    steps it may run, a whole number of full denoises: it runs exactly so many.
    """

    steps: int
    selector: Selector

    @abstractmethod
    def rounds(self, observations: Observations) -> Iterator[list[Proposal]]:
        """The rounds of the search, each decided by the observations of those before it."""

    def ask(self, made: Sequence[SearchCandidate]) -> list[Proposal]:
        """What to make next, in any order; nothing where the search is at its end."""
        observations = _observations(made)
        *_, last = self._begun(observations)
        return [proposal for proposal in last if (proposal.name, proposal.until) not in observations]

    def choose(self, made: Sequence[SearchCandidate]) -> SearchCandidate | None:
        """The best of the finished candidates; of equal ones, the one that was asked for first.

        One that has no value is chosen only where none has; None where nothing is finished.
        """
        by_key = {(each.name, each.until): each for each in made}
        finished = [
            by_key[proposal.name, proposal.until]
            for proposals in self._begun(_observations(made))
            for proposal in proposals
            if proposal.finishes and (proposal.name, proposal.until) in by_key
        ]
        order = rank_candidates(self.selector, [each.scores for each in finished])
        return finished[order[0]] if order else None

    def _begun(self, observations: Observations) -> Iterator[list[Proposal]]:
        """The rounds up to the first that is not wholly made: later ones cannot be decided yet."""
        for proposals in self.rounds(observations):
            yield proposals
            if any((proposal.name, proposal.until) not in observations for proposal in proposals):
                return

    def best(self, proposals: Sequence[Proposal], observations: Observations) -> list[Proposal]:
        """The proposals by their observations, best first."""
        order = rank_candidates(self.selector, [observations[proposal.name, proposal.until] for proposal in proposals])
        return [proposals[index] for index in order]


def full_denoises_nfe(budget: int, steps: int) -> int:
    """How many full denoises of `steps` a budget (NFE) pays for; raises `BadInputError` where it is no whole number.

    So every search can run exactly its budget, and no two are compared at unequal ones.
    """
    if steps < 1:
        raise BadInputError(f"{steps} steps make no picture: use 1 or more")
    if budget < steps or budget % steps:
        raise BadInputError(f"a budget of {budget} NFE is no whole number of denoises: give a multiple of {steps}")
    return budget // steps


def full_denoise(name: str, stage: str, noise: EditNoise, steps: int, parent: str | None = None) -> Proposal:
    """A candidate from noise alone, run to its end in one go."""
    return Proposal(name, stage, noise, parent, strength=1.0, start=0, until=steps, path=steps)


def perturbed_noise(noise: EditNoise, t: float, seed: int) -> EditNoise:
    """`noise` moved once more on its sphere: t of its own direction, √(1−t²) of a random one."""
    return replace(noise, moves=(*noise.moves, (t, seed)))


def blended_noise(noise: EditNoise, mate: EditNoise, share: float) -> EditNoise:
    """`noise` with `mate` mixed in: √(1 − share) of the one's direction and √share of the other's."""
    weights: dict[int, float] = {}
    for each, scale in ((noise, math.sqrt(1 - share)), (mate, math.sqrt(share))):
        for seed, weight in each.weights.items():
            weights[seed] = weights.get(seed, 0.0) + scale * weight
    (first, length), *others = ((seed, weight) for seed, weight in weights.items() if weight)
    moves = []
    for seed, weight in others:
        before, length = length, math.hypot(length, weight)
        moves.append((before / length, seed))
    return EditNoise(first, tuple(moves))


def _observations(made: Sequence[SearchCandidate]) -> Observations:
    return {(each.name, each.until): each.scores for each in made}
