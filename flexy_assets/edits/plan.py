"""The plan of a comparison: editor, budgets and searches. Equal settings give the same comparison id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID, uuid5

from flexy_assets.edits.search.eacps import Eacps, EacpsParameters, Reproduce
from flexy_assets.edits.search.protocol import Search, Seeds
from flexy_assets.edits.search.selectors import Potential, PromptFollowing, RankSum, Selector, edit_potential
from flexy_assets.edits.search.ttflux import PF, RandomSearch, ZeroOrderSearch
from resources.errors import BadInputError

METHODS = ("eacps", "ttflux")
MEAN_RANK = PromptFollowing(RankSum({"pf": 1.0, "cons": 1.0, "lpips": -1.0, "layout": 1.0}))

_NAMESPACE = UUID("5c3d1f0e-7a52-5e0b-9a0c-6f1d2b8e4a77")


@dataclass(frozen=True)
class Comparison:
    """How both methods search every task of an edit set, at equal cost.

    `steps` are those of a full denoise; `budgets` are in full denoises, each with its own search. TTFLUX draws
    randomly (`random`) or climbs (`zero_order`) and selects by `pf`. EACPS selects, among a task's candidates that
    follow the instruction, by the mean `rank` in PF, CONS, LPIPS and layout, or by the `potential`
    `pf + alpha·cons − beta·lpips`, whose weights fit one model's units. With `reproduce` EACPS is as published: full
    denoises, seeds by arithmetic, the potential. `tasks` is a digest of the edit set. Raises `BadInputError` for
    invalid settings.
    """

    editor: str
    steps: int
    guidance: float
    tasks: str
    negative_prompt: str | None = None
    budgets: tuple[int, ...] = (8,)
    seed: int = 0
    ttflux: str = "random"
    choose: str = "rank"
    reproduce: bool = False
    alpha: float = 10.0
    beta: float = 3.0
    eacps: EacpsParameters = field(default_factory=EacpsParameters)
    batch_size: int = 50

    def __post_init__(self) -> None:
        """See the class."""
        if not self.budgets or not all(1 <= budget <= 1000 for budget in self.budgets):
            raise BadInputError(f"invalid budgets {list(self.budgets)}: must be 1 to 1000 full denoises each")
        if not 1 <= self.steps <= 1000:
            raise BadInputError(f"invalid steps {self.steps}: must be from 1 to 1000")
        if self.ttflux not in ("random", "zero_order"):
            raise BadInputError(f"invalid ttflux {self.ttflux!r}: must be random or zero_order")
        if self.choose not in ("rank", "potential"):
            raise BadInputError(f"invalid choose {self.choose!r}: must be rank or potential")
        if not 1 <= self.batch_size <= 1000:
            raise BadInputError(f"invalid batch_size {self.batch_size}: must be from 1 to 1000 tasks")
        edit_potential(self.alpha, self.beta)
        if self.reproduce and min(self.budgets) <= self._variants:
            raise BadInputError(
                f"invalid budget {min(self.budgets)}: must exceed the {self._variants} local variants; raise it,"
                " or lower m_global or k_local"
            )

    @property
    def _variants(self) -> int:
        return self.eacps.m_global * self.eacps.k_local

    @property
    def run_id(self) -> UUID:
        return uuid5(_NAMESPACE, json.dumps(self.to_json(), sort_keys=True))

    @property
    def potential(self) -> Potential:
        """The potential in the tables and reports."""
        return edit_potential(self.alpha, self.beta)

    @property
    def selector(self) -> Selector:
        """What EACPS selects by."""
        return self.potential if self.choose == "potential" else MEAN_RANK

    @property
    def nfe(self) -> tuple[int, ...]:
        """The budgets in denoising steps."""
        return tuple(budget * self.steps for budget in self.budgets)

    def batch(self, position: int) -> str:
        """Return the partition of the task at this position of the edit set."""
        return f"{self.run_id.hex[:8]}_{position // self.batch_size:04d}"

    def search(self, method: str, budget: int, task: str, position: int = 0) -> Search:
        """Return the search of the task with this name and position; `budget` in denoising steps (NFE)."""
        seeds = Seeds(self.seed, task)
        if method == "eacps" and self.reproduce:
            count = budget // self.steps - self._variants
            first_seed = self.seed + position * count
            m_global, k_local = self.eacps.m_global, self.eacps.k_local
            return Reproduce(first_seed, count, self.steps, m_global, k_local, self.potential)
        if method == "eacps":
            return Eacps(seeds, self.steps, budget, self.selector, self.eacps)
        kind = RandomSearch if self.ttflux == "random" else ZeroOrderSearch
        return kind(seeds, self.steps, budget, PF)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"budgets": list(self.budgets)}

    @classmethod
    def from_json(cls, plan: Mapping[str, Any]) -> Comparison:
        return cls(**{**plan, "budgets": tuple(plan["budgets"]), "eacps": EacpsParameters(**plan["eacps"])})
