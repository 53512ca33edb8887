"""One image at settings that a person chooses: the same settings always name the same image."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Self
from uuid import UUID, uuid5

import polars as pl

from flexy_assets.sweep.plan import (
    NAMESPACE,
    PLAN_SCHEMA,
    SettingRange,
    check_engine_ranges,
    check_engine_settings,
    check_settings,
)
from resources.errors import BadInputError
from resources.models import registry
from resources.prompts import check_prompt
from resources.settings import Settings

MAX_SEED = 2**31 - 1
"""The maximum of the table's column."""


@dataclass(frozen=True)
class Trial:
    """The settings of one image; `guidance` is None for an engine without it."""

    engine: str
    prompt: str
    negative_prompt: str | None
    steps: int
    guidance: float | None
    seed: int
    width: int
    height: int

    def __post_init__(self) -> None:
        """Raise `BadInputError` for invalid settings."""
        if not self.prompt:
            raise BadInputError("the prompt is empty: describe what the image should show")
        check_prompt(self.prompt, "the prompt")
        check_prompt(self.negative_prompt or "", "the negative prompt")
        guidance = None if self.guidance is None else SettingRange(self.guidance, self.guidance)
        check_settings(SettingRange(self.steps, self.steps), guidance, self.width, self.height)
        if not 0 <= self.seed <= MAX_SEED:
            raise BadInputError(f"invalid seed {self.seed}: must be from 0 to {MAX_SEED}")

    @classmethod
    def of(
        cls,
        settings: Settings,
        prompt: str,
        engine: str = "",
        negative_prompt: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        width: int | None = None,
        height: int | None = None,
    ) -> Self:
        """Return the validated trial; defaults are the engine's own, and the first engine of the model set.

        Raises `BadInputError` naming an invalid setting.
        """
        entry = registry.find_model(engine or registry.model_names("engine", settings)[0], "engine", settings)
        given = {"guidance": guidance, "negative_prompt": negative_prompt}
        check_engine_settings(entry, seed, width or 0, height or 0, given)
        if guidance is None and "guidance" not in entry.ignored_settings:
            guidance = entry.guidance
        steps = entry.steps if steps is None else steps
        guidance_range = None if guidance is None else SettingRange(guidance, guidance)
        check_engine_ranges(entry, SettingRange(steps, steps), guidance_range)
        return cls(
            engine=entry.name,
            prompt=prompt.strip(),
            negative_prompt=(negative_prompt or "").strip() or None,
            steps=steps,
            guidance=None if guidance is None else float(guidance),
            seed=seed,
            width=entry.side if width is None else width,
            height=entry.side if height is None else height,
        )

    @property
    def run_id(self) -> UUID:
        """The sweep of all trials of its engine."""
        return trial_sweep_id(self.engine)

    @property
    def batch(self) -> str:
        """The partition of all trials of its engine."""
        return f"trials_{self.engine}"

    @property
    def image_id(self) -> UUID:
        """The image's id, a function of its settings."""
        return uuid5(self.run_id, json.dumps(self.to_json(), sort_keys=True))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def row(self) -> pl.DataFrame:
        """Return the plan of its one image, in `PLAN_SCHEMA`."""
        place = {"image_id": str(self.image_id), "run_id": str(self.run_id), "index": 0, "batch": self.batch}
        path = {"image_path": f"{self.batch}/{self.image_id}.png"}
        return pl.DataFrame([place | self.to_json() | path], schema=PLAN_SCHEMA)


def trial_sweep_id(engine: str | None) -> UUID:
    """Return the id of the sweep that trials of this engine belong to; it has no plan."""
    return uuid5(NAMESPACE, f"trials of {engine}")
