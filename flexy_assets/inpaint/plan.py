"""The plan of inpainting: how faces are refined after the swap. Equal settings give the same run id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID, uuid5

from flexy_assets.edits.search.eacps import Eacps, EacpsParameters
from flexy_assets.edits.search.protocol import Search, Seeds
from flexy_assets.edits.search.selectors import Potential, inpaint_potential
from resources.errors import BadInputError

INPAINT_METHOD = "eacps"
SWAP_NAME = "swap"  # the unrefined swap: a candidate too, so that refining never makes a result worse

_NAMESPACE = UUID("0b1c3f0a-52a4-5a53-8f2f-9a7cf1a4c6de")


@dataclass(frozen=True)
class InpaintPlan:
    """Each swapped face is refined by EACPS within `budget` full denoises of `steps`; with 0 it is not refined.

    Candidates are selected by `alpha·consistency + beta·quality + gamma·identity`, each 0 to 10. `prompt` is the
    instruction for tasks without their own. `widen` is how far around the mask the editor may change the image, as a
    share of the mask's longer side; beyond that no pixel changes. Raises `BadInputError` for invalid settings.
    """

    editor: str
    steps: int
    guidance: float
    prompt: str = "the face, natural and sharp"
    negative_prompt: str | None = None
    budget: int = 4
    widen: float = 0.0
    seed: int = 0
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 2.0
    eacps: EacpsParameters = field(default_factory=EacpsParameters)

    def __post_init__(self) -> None:
        """See the class."""
        if not 0 <= self.budget <= 1000:
            raise BadInputError(f"invalid budget {self.budget}: must be from 0 to 1000 full denoises")
        if not 1 <= self.steps <= 1000:
            raise BadInputError(f"invalid steps {self.steps}: must be from 1 to 1000")
        if not 0 <= self.widen <= 1:
            raise BadInputError(f"invalid widen {self.widen:g}: must be from 0 to 1 of the mask's longer side")
        if not self.prompt.strip():
            raise BadInputError("empty prompt: say how the face should look")
        inpaint_potential(self.alpha, self.beta, self.gamma)

    @property
    def run_id(self) -> UUID:
        return uuid5(_NAMESPACE, json.dumps(self.to_json(), sort_keys=True))

    @property
    def potential(self) -> Potential:
        """The potential by model scores."""
        return inpaint_potential(self.alpha, self.beta, self.gamma)

    @property
    def judged(self) -> Potential:
        """The potential by a judge's scores."""
        return Potential({f"judge_{metric}": weight for metric, weight in self.potential.weights.items()})

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and highest possible potential."""
        weights = self.potential.weights.values()
        return 10 * sum(min(weight, 0.0) for weight in weights), 10 * sum(max(weight, 0.0) for weight in weights)

    @property
    def nfe(self) -> tuple[int, ...]:
        """The budget in denoising steps; empty without refinement."""
        return (self.budget * self.steps,) if self.budget else ()

    def search(self, method: str, budget: int, task: str, position: int = 0) -> Search:
        """Return the search of the task with this name; `budget` in denoising steps (NFE)."""
        return Eacps(Seeds(self.seed, task), self.steps, budget, self.potential, self.eacps)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, plan: Mapping[str, Any]) -> InpaintPlan:
        return cls(**{**plan, "eacps": EacpsParameters(**plan["eacps"])})
