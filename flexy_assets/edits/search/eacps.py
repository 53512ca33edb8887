"""EACPS: a global stage over seeds, a local stage around the best; selection by a potential of several metrics."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, Final, TypeVar

from pydantic import Field

from flexy_assets.edits.search.protocol import (
    Observations,
    Proposal,
    Search,
    Seeds,
    blended_noise,
    full_denoise,
    full_denoises_nfe,
    perturbed_noise,
)
from flexy_assets.edits.search.selectors import Selector, edit_potential
from resources.engines import EditNoise
from resources.errors import BadInputError

Plan = TypeVar("Plan")


@dataclass(frozen=True)
class EacpsParameters:
    """How EACPS spends its budget.

    - `scouts`: denoises for new seeds before the local stage gets any. After only four, variants were measured to
      gain less than more seeds (`benchmarks.edits --local-only --large 8 --set scouts=4`).
    - `local_share`: the local stage's share of the budget after the scouts, rounded to whole denoises; 0 spends
      everything on new seeds.
    - `preview`: the share of a new candidate's steps after which it is previewed; `keep`: the share of the previewed
      candidates that are continued. `keep` 1 previews none. Both are targets: the search takes the nearest
      combination that spends the global stage's budget to the step.
    - `m_global`: how many of the best the local stage varies at a time; `k_local`: variants of each before the best
      are determined again.
    - `cross`: the share of another parent in a variant, 0 (none) to 0.5 (half). Mixing the noises of two good
      candidates mostly preserves what makes them good.
    - `t`: how close a variant's noise is to that mixture, 0 (independent) to below 1 (identical).
    - `strength`: the share of the steps that a variant runs, from its parent's image with noise added; 1 starts from
      noise alone. Lower values cost less, so the budget pays for more variants.
    """

    scouts: int = 8
    local_share: float = 0.6
    preview: float = 0.25
    keep: float = 1.0
    m_global: int = 2
    k_local: int = 2
    cross: float = 0.5
    t: float = 0.9
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Raises `BadInputError` that names the invalid parameter."""
        counts = {name: (getattr(self, name) >= 1, "1 or more") for name in ("scouts", "m_global", "k_local")}
        bounds = counts | {
            "local_share": (0 <= self.local_share < 1, "0 to below 1"),
            "preview": (0 < self.preview < 1, "above 0 to below 1"),
            "keep": (0 < self.keep <= 1, "above 0 to 1"),
            "cross": (0 <= self.cross <= 0.5, "0 to 0.5"),
            "t": (0 <= self.t < 1, "0 to below 1"),
            "strength": (0 < self.strength <= 1, "above 0 to 1"),
        }
        for name, (valid, allowed) in bounds.items():
            if not valid:
                raise BadInputError(f"invalid {name} {getattr(self, name)} for EACPS: must be {allowed}")


PARAMETER_DESCRIPTIONS: Final = {
    "scouts": "Denoises for new seeds before the local stage gets any, 1 or more.",
    "local_share": "The local stage's share of the budget after the scouts, 0 to below 1.",
    "preview": "The share of a new candidate's steps after which it is previewed, above 0 to below 1.",
    "keep": "The share of the previewed candidates that are continued, above 0 to 1; 1 previews none.",
    "m_global": "How many of the best the local stage varies at a time, 1 or more.",
    "k_local": "Variants of each before the best are determined again, 1 or more.",
    "cross": "The share of another parent in a variant, 0 to 0.5.",
    "t": "How close a variant's noise is to its parents', 0 (independent) to below 1.",
    "strength": "The share of the steps that a variant runs from its parent's image, above 0 to 1 (from noise alone).",
}
"""What a launchpad says of each of `EacpsParameters`."""


def parameter(name: str) -> Any:
    """Return the field of a config that is one of `EacpsParameters`."""
    return Field(default=getattr(EacpsParameters, name), description=PARAMETER_DESCRIPTIONS[name])


def plan_from_config(kind: type[Plan], config: object, **settings: Any) -> Plan:
    """Return a dataclass with `settings` and a config's values of the same names, also in `eacps`; else defaults."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    values = {name: getattr(config, name) for name in names if hasattr(config, name)}
    if "eacps" in names:
        values["eacps"] = plan_from_config(EacpsParameters, config)
    return kind(**values | settings)


@dataclass(frozen=True)
class Previews:
    """A global stage: `seeds` previewed at `stop_step`, `continued` of them run to the end."""

    seeds: int
    stop_step: int
    continued: int


@cache
def plan_previews(count: int, steps: int, preview: float, keep: float) -> Previews:
    """Return the global stage nearest to `preview` and `keep` that costs exactly `count` denoises of `steps`.

    With K of `count` denoises finished, the steps of the others pay for previews of P steps. Only a P that leaves
    no remainder is valid; K = `count`, without previews, is always valid.
    """
    best, least_distance = Previews(seeds=count, stop_step=steps, continued=count), 1 - keep
    for continued in range(1, count):
        for stop_step in range(1, steps):
            stopped, remainder = divmod((count - continued) * steps, stop_step)
            distance = abs(stop_step / steps - preview) + abs(continued / (continued + stopped) - keep)
            if not remainder and distance < least_distance:
                best, least_distance = Previews(continued + stopped, stop_step, continued), distance
    return best


@dataclass(frozen=True)
class Eacps(Search):
    """EACPS with previews and a local stage around the best; the winner has the highest value of all.

    The local stage varies the best candidates: a variant's noise is its parent's, mixed with that of another of the
    best and moved on its sphere. With `strength` below 1 it starts from the parent's image with that noise added,
    which preserves the parent's layout. A better variant becomes a parent itself.
    """

    seeds: Seeds
    steps: int
    budget: int
    selector: Selector = field(default_factory=edit_potential)
    parameters: EacpsParameters = EacpsParameters()

    def __post_init__(self) -> None:
        full_denoises_nfe(self.budget, self.steps)

    def rounds(self, observations: Observations) -> Iterator[list[Proposal]]:
        count = full_denoises_nfe(self.budget, self.steps)
        local = max(round((count - self.parameters.scouts) * self.parameters.local_share), 0)
        finished: list[Proposal] = []
        for proposals in self._global(count - local, observations):
            yield proposals
            finished += [proposal for proposal in proposals if proposal.finishes]
        yield from self._local(local * self.steps, finished, observations)

    def _global(self, count: int, observations: Observations) -> Iterator[list[Proposal]]:
        stage = plan_previews(count, self.steps, self.parameters.preview, self.parameters.keep)
        new = [
            replace(full_denoise(name, "global", EditNoise(self.seeds(name)), self.steps), stop_step=stage.stop_step)
            for name in (f"g{index}" for index in range(stage.seeds))
        ]
        yield new
        if stage.stop_step < self.steps:
            continued = self.rank(new, observations)[: stage.continued]
            yield [replace(each, start_step=stage.stop_step, stop_step=self.steps) for each in continued]

    def _local(self, nfe: int, finished: list[Proposal], observations: Observations) -> Iterator[list[Proposal]]:
        """Yield rounds of variants, run for `strength` or for as much more as spends `nfe` to the step."""
        parameters = self.parameters
        count = nfe // max(1, round(self.steps * parameters.strength))
        proposed = 0
        while proposed < count:
            ranked = self.rank(finished, observations)
            parents = ranked[: parameters.m_global]
            variants = []
            for position in range(min(len(parents) * parameters.k_local, count - proposed)):
                index, parent = proposed + position, parents[position % len(parents)]
                name, steps = f"l{index}", nfe // count + (index < nfe % count)
                # Each variant of a parent has a different mate, the best of the others first.
                mates = [candidate for candidate in ranked if candidate.name != parent.name] or [parent]
                mate = mates[position // len(parents) % len(mates)]
                mixture = blended_noise(parent.noise, mate.noise, parameters.cross)
                noise = perturbed_noise(mixture, parameters.t, self.seeds(name))
                variants.append(Proposal(name, "local", noise, parent.name, steps / self.steps, 0, steps, steps))
            yield variants
            finished = finished + variants
            proposed += len(variants)


@dataclass(frozen=True)
class Reproduce(Search):
    """EACPS as published by qwen3-score: full denoises, and seeds by arithmetic.

    Stage 1 draws seeds `first_seed`, `first_seed` + 1, … (there: an offset + the task's number · `num_samples`).
    Stage 2 draws seeds (parent + 1)·100000 + j for each of the `m_global` best. A seed has no neighbourhood, so
    these are more random samples. The highest potential wins, among equals the earlier one. The budget follows from
    the counts.
    """

    first_seed: int
    num_samples: int
    steps: int = 20
    m_global: int = 2
    k_local: int = 2
    selector: Selector = field(default_factory=edit_potential)

    def __post_init__(self) -> None:
        """Raises `BadInputError` for invalid settings."""
        full_denoises_nfe(self.budget, self.steps)
        if self.first_seed < 0 or self.num_samples < 1 or self.m_global < 0 or self.k_local < 0:
            raise BadInputError("invalid counts: must be 0 or more, num_samples 1 or more")

    @property
    def budget(self) -> int:
        """The budget in denoising steps (NFE)."""
        return (self.num_samples + min(self.m_global, self.num_samples) * self.k_local) * self.steps

    def rounds(self, observations: Observations) -> Iterator[list[Proposal]]:
        first = [
            full_denoise(f"g{index}", "stage1", EditNoise(self.first_seed + index), self.steps)
            for index in range(self.num_samples)
        ]
        yield first
        parents = self.rank(first, observations)[: self.m_global]
        seeds = [(parent, j, (parent.noise.seed + 1) * 100_000 + j) for parent in parents for j in range(self.k_local)]
        yield [
            full_denoise(f"{parent.name}.{j}", "stage2", EditNoise(seed), self.steps, parent.name)
            for parent, j, seed in seeds
        ]
