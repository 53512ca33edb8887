"""The protocol of a search: it proposes candidates, is given their scores, and at the end selects a winner.

A search decides only by the observed scores. An interrupted search therefore continues when it is asked again, and
the searches of many tasks can run in step, with their candidates generated and scored together.
"""

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
    """The seeds of one task, each a function of `base`, the task, `stream` and the candidate's name alone.

    Searches with the same stream draw the same first candidates (common random numbers), so that their difference
    is not due to luck. Give each search its own stream to draw independently.
    """

    base: int
    task_id: str
    stream: str = ""

    def __call__(self, name: str) -> int:
        """Return a seed from 0 to 2³¹ − 1."""
        key = json.dumps([self.base, self.task_id, self.stream, name])
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) >> 1


@dataclass(frozen=True)
class Proposal:
    """A candidate to generate, or to continue.

    A candidate takes `num_steps` from its noise to its image: all steps of a denoise where `strength` is 1, else
    only the last `num_steps`, from the finished image of `parent` with noise added. The proposal runs from
    `start_step` (0: a new candidate) to `stop_step`. If that is before the end, the observation is a preview: the
    scores of the clean image as predicted there.
    """

    name: str
    stage: str
    noise: EditNoise
    parent: str | None
    strength: float
    start_step: int
    stop_step: int
    num_steps: int

    @property
    def nfe(self) -> int:
        """The cost in denoising steps."""
        return self.stop_step - self.start_step

    @property
    def finishes(self) -> bool:
        return self.stop_step == self.num_steps


@dataclass(frozen=True)
class SearchCandidate:
    """The result of a proposal: the scores of candidate `name` at `stop_step`, and the steps that were run."""

    name: str
    stop_step: int
    nfe: int
    scores: CandidateScores


Observations = Mapping[tuple[str, int], CandidateScores]  # scores by candidate and step


class Search(ABC):
    """A search for one task.

    `steps` are those of a full denoise. `budget` is the number of denoising steps to run, a whole number of full
    denoises: the search runs exactly that many. A subclass defines the rounds.
    """

    steps: int
    selector: Selector

    @abstractmethod
    def rounds(self, observations: Observations) -> Iterator[list[Proposal]]:
        """Yield the rounds of the search, each decided by the observations of the rounds before."""

    def ask(self, candidates: Sequence[SearchCandidate]) -> list[Proposal]:
        """Return the proposals to run next, in any order; empty at the end of the search."""
        observations = _observations(candidates)
        *_, current = self._decided_rounds(observations)
        return [proposal for proposal in current if (proposal.name, proposal.stop_step) not in observations]

    def select(self, candidates: Sequence[SearchCandidate]) -> SearchCandidate | None:
        """Return the best finished candidate; among equals, the one that was proposed first.

        A candidate without a value wins only if none has a value. Return None where nothing is finished.
        """
        by_key = {(candidate.name, candidate.stop_step): candidate for candidate in candidates}
        finished = [
            by_key[proposal.name, proposal.stop_step]
            for proposals in self._decided_rounds(_observations(candidates))
            for proposal in proposals
            if proposal.finishes and (proposal.name, proposal.stop_step) in by_key
        ]
        order = rank_candidates(self.selector, [candidate.scores for candidate in finished])
        return finished[order[0]] if order else None

    def _decided_rounds(self, observations: Observations) -> Iterator[list[Proposal]]:
        """Yield the rounds up to the first incomplete one: later rounds cannot be decided yet."""
        for proposals in self.rounds(observations):
            yield proposals
            if any((proposal.name, proposal.stop_step) not in observations for proposal in proposals):
                return

    def rank(self, proposals: Sequence[Proposal], observations: Observations) -> list[Proposal]:
        """Return the proposals by their observations, best first."""
        scores = [observations[proposal.name, proposal.stop_step] for proposal in proposals]
        return [proposals[index] for index in rank_candidates(self.selector, scores)]


def full_denoises_nfe(budget: int, steps: int) -> int:
    """Return how many full denoises of `steps` a budget (NFE) pays for.

    Raises `BadInputError` unless it is a whole number: a search runs exactly its budget, so that budgets are equal.
    """
    if steps < 1:
        raise BadInputError(f"invalid steps {steps}: must be 1 or more")
    if budget < steps or budget % steps:
        raise BadInputError(f"invalid budget of {budget} NFE: must be a multiple of {steps}, whole denoises")
    return budget // steps


def full_denoise(name: str, stage: str, noise: EditNoise, steps: int, parent: str | None = None) -> Proposal:
    """Return the proposal of a candidate from noise alone, run to its end without a preview."""
    return Proposal(name, stage, noise, parent, strength=1.0, start_step=0, stop_step=steps, num_steps=steps)


def perturbed_noise(noise: EditNoise, t: float, seed: int) -> EditNoise:
    """Return `noise` moved once more on its sphere: t of its own direction, √(1−t²) of a random one."""
    return replace(noise, moves=(*noise.moves, (t, seed)))


def blended_noise(noise: EditNoise, mate: EditNoise, share: float) -> EditNoise:
    """Return `noise` mixed with `mate`: √(1 − share) of the former's direction and √share of the latter's."""
    weights: dict[int, float] = {}
    for parent, scale in ((noise, math.sqrt(1 - share)), (mate, math.sqrt(share))):
        for seed, weight in parent.weights.items():
            weights[seed] = weights.get(seed, 0.0) + scale * weight
    (first_seed, length), *rest = ((seed, weight) for seed, weight in weights.items() if weight)
    moves = []
    for seed, weight in rest:
        length_before, length = length, math.hypot(length, weight)
        moves.append((length_before / length, seed))
    return EditNoise(first_seed, tuple(moves))


def _observations(candidates: Sequence[SearchCandidate]) -> Observations:
    return {(candidate.name, candidate.stop_step): candidate.scores for candidate in candidates}
