"""EACPS: a global stage over seeds, a local stage around the best, chosen by a potential of several metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cache

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


@dataclass(frozen=True)
class EacpsParameters:
    """How EACPS spends its budget.

    - `scouts`: the denoises that fresh seeds get before a local stage gets any. After four, variants were measured
      to gain less than more seeds (`benchmarks.edits --local-only --large 8 --set scouts=4`).
    - `local_share`: the local stage's share of what the scouts leave of the budget, to whole denoises; 0 spends
      all of it on fresh seeds.
    - `preview`: the share of a fresh candidate's steps after which it is looked at; `keep`: the share of the
      previewed that are then carried on. 1 previews none. Both are aims: what is taken is the nearest
      way to spend the global stage's budget to the step.
    - `m_global`: how many of the best the local stage varies at a time; `k_local`: how many variants of each
      before the best are looked for anew.
    - `cross`: how much of another of the best there is in a variant, 0 (nothing) to 0.5 (half). What makes two
      candidates good is mostly still there where their noises are mixed.
    - `t`: how near a variant's noise is to that mixture, 0 (as good as fresh) to below 1 (the same).
    - `strength`: what share of the steps a variant is run for, from its parent's picture re-noised; 1 starts
      from its noise alone. Less costs less, so there are more of them.
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

    @classmethod
    def of(cls, config: object) -> EacpsParameters:
        """Those that a config has among its own settings, by the same names; the others by default."""
        return cls(**{each.name: getattr(config, each.name) for each in fields(cls) if hasattr(config, each.name)})

    def __post_init__(self) -> None:
        """Raises `BadInputError` naming what cannot be."""
        bounds = {
            "scouts": (self.scouts >= 1, "1 or more"),
            "local_share": (0 <= self.local_share < 1, "0 to below 1"),
            "preview": (0 < self.preview < 1, "above 0 to below 1"),
            "keep": (0 < self.keep <= 1, "above 0 to 1"),
            "m_global": (self.m_global >= 1, "1 or more"),
            "k_local": (self.k_local >= 1, "1 or more"),
            "cross": (0 <= self.cross <= 0.5, "0 to 0.5"),
            "t": (0 <= self.t < 1, "0 to below 1"),
            "strength": (0 < self.strength <= 1, "above 0 to 1"),
        }
        for name, (sound, allowed) in bounds.items():
            if not sound:
                raise BadInputError(f"EACPS's {name} {getattr(self, name)} is out of bounds: use {allowed}")


@dataclass(frozen=True)
class Previews:
    """A global stage: so many seeds looked at after `until` steps, so many of them carried on to the end."""

    seeds: int
    until: int
    kept: int


@cache
def plan_previews(count: int, steps: int, preview: float, keep: float) -> Previews:
    """The global stage nearest to `preview` and `keep` that costs exactly `count` denoises of `steps`.

    With K of `count` denoises finished, the steps of the others pay for previews of P steps of as many seeds as
    they go into; only a P that leaves no step over will do, and K = `count`, nothing previewed, always does.
    """
    whole = Previews(seeds=count, until=steps, kept=count)
    best, least = whole, 1 - keep
    for kept in range(1, count):
        for until in range(1, steps):
            stopped, over = divmod((count - kept) * steps, until)
            distance = abs(until / steps - preview) + abs(kept / (kept + stopped) - keep)
            if not over and distance < least:
                best, least = Previews(kept + stopped, until, kept), distance
    return best


@dataclass(frozen=True)
class Eacps(Search):
    """EACPS with part-way previews and a local stage that is local; chosen by the potential over all.

    The local stage varies the best: a variant's noise is its parent's, mixed with that of another of the best and
    moved on its sphere; where `strength` is below 1 it starts from the parent's picture re-noised with it, so that
    it keeps the parent's layout. A variant that turns out better becomes a parent itself.
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
        names = [f"g{index}" for index in range(stage.seeds)]
        fresh = [
            Proposal(
                name, "global", EditNoise(self.seeds(name)), None, 1.0, start=0, until=stage.until, path=self.steps
            )
            for name in names
        ]
        yield fresh
        if stage.until < self.steps:
            kept = self.best(fresh, observations)[: stage.kept]
            yield [replace(proposal, start=stage.until, until=self.steps) for proposal in kept]

    def _local(self, nfe: int, finished: list[Proposal], observations: Observations) -> Iterator[list[Proposal]]:
        """Variants run for `strength`, or for as much more as it takes to spend `nfe` to the step."""
        wanted = self.parameters
        count = nfe // max(1, round(self.steps * wanted.strength))
        asked = 0
        while asked < count:
            best = self.best(finished, observations)
            parents = best[: wanted.m_global]
            variants = []
            for place in range(min(len(parents) * wanted.k_local, count - asked)):
                index, name, parent = asked + place, f"l{asked + place}", parents[place % len(parents)]
                path = nfe // count + (index < nfe % count)
                # Each of a parent's variants has another mate, the best of the others first.
                mates = [each for each in best if each.name != parent.name] or [parent]
                mate = mates[place // len(parents) % len(mates)]
                noise = perturbed_noise(
                    blended_noise(parent.noise, mate.noise, wanted.cross), wanted.t, self.seeds(name)
                )
                strength = path / self.steps
                variants.append(Proposal(name, "local", noise, parent.name, strength, start=0, until=path, path=path))
            yield variants
            finished = finished + variants
            asked += len(variants)


@dataclass(frozen=True)
class Reproduce(Search):
    """EACPS as qwen3-score published it: whole denoises, and seeds by arithmetic.

    Stage 1 draws seeds `first_seed`, `first_seed` + 1, … (there: an offset + the task's number · `num_samples`).
    Stage 2 draws seeds (parent + 1)·100000 + j for each of the `m_global` best: a seed has no neighbourhood, so
    these are more random tries. The highest potential of all wins, at equal ones the earlier. Its budget
    follows from its counts.
    """

    first_seed: int
    num_samples: int
    steps: int = 20
    m_global: int = 2
    k_local: int = 2
    selector: Selector = field(default_factory=edit_potential)

    def __post_init__(self) -> None:
        """Raises `BadInputError` for settings that cannot be."""
        full_denoises_nfe(self.budget, self.steps)
        if self.first_seed < 0 or self.num_samples < 1 or self.m_global < 0 or self.k_local < 0:
            raise BadInputError("a first seed, m_global or k_local below 0 or num_samples below 1 cannot be")

    @property
    def budget(self) -> int:
        """Denoising steps (NFE)."""
        return (self.num_samples + min(self.m_global, self.num_samples) * self.k_local) * self.steps

    def rounds(self, observations: Observations) -> Iterator[list[Proposal]]:
        first = [
            full_denoise(f"g{index}", "stage1", EditNoise(self.first_seed + index), self.steps)
            for index in range(self.num_samples)
        ]
        yield first
        yield [
            full_denoise(
                f"{parent.name}.{j}",
                "stage2",
                EditNoise((parent.noise.seed + 1) * 100_000 + j),
                self.steps,
                parent.name,
            )
            for parent in self.best(first, observations)[: self.m_global]
            for j in range(self.k_local)
        ]
