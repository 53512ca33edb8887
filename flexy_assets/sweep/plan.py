"""The images of a sweep as a pure function of its settings: one row an image, the same rows every time.

Row `i` depends on the sweep's settings and `i` alone, so a sweep is extended by computing more rows
and resumed by finding which rows have no image: no other state is kept.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self
from uuid import UUID, uuid5

import numpy as np
import polars as pl

from flexy_assets import names
from resources.errors import BadInputError
from resources.models.entry import ModelEntry

PLAN_SCHEMA = {
    "image_id": pl.String,
    "run_id": pl.String,
    "index": pl.Int64,
    "batch": pl.String,
    "engine": pl.String,
    "prompt": pl.String,
    "negative_prompt": pl.String,
    "category": pl.String,
    "complexity": pl.String,
    "steps": pl.Int64,
    "guidance": pl.Float64,
    "seed": pl.Int64,
    "width": pl.Int64,
    "height": pl.Int64,
    "image_path": pl.String,
}

GROUP_SETTINGS = ("categories", "complexities")
MAX_IMAGES = 10_000_000
SAMPLINGS = ("uniform", "even")
NAMESPACE = UUID("6f0b1b0e-7d0c-5b43-9c5e-3d1f7a4c2e11")
# Roberts' R2 sequence: the plane's most even additive recurrence, from the plastic number.
_PLASTIC = 1.324717957244746
_R2 = (1 / _PLASTIC, 1 / _PLASTIC**2)


@dataclass(frozen=True)
class SettingRange:
    """Values from `low` to `high`, both included; with a `stride`, only low, low + stride, …"""

    low: float
    high: float
    stride: float | None = None

    @classmethod
    def parse(cls, text: str, name: str) -> Self:
        """Parse `4:60`, `4:60:8` or one value. Raises `BadInputError` naming `name`."""
        try:
            numbers = [float(part) for part in text.split(":")]
        except ValueError:
            numbers = []
        if not 1 <= len(numbers) <= 3 or not all(map(math.isfinite, numbers)):
            raise BadInputError(f"invalid {name} {text!r}: must be LOW:HIGH or LOW:HIGH:STRIDE, as in 4:60")
        low, high, stride = numbers[0], numbers[min(1, len(numbers) - 1)], numbers[2] if len(numbers) == 3 else None
        if low > high or (stride is not None and stride <= 0):
            remedy = "LOW must not exceed HIGH and STRIDE must be above 0"
            raise BadInputError(f"invalid {name} {text!r}: the range is empty, {remedy}")
        return cls(low, high, stride)

    def __str__(self) -> str:
        numbers = [*dict.fromkeys((self.low, self.high)), *([] if self.stride is None else [self.stride])]
        return ":".join(f"{number:g}" for number in numbers)

    def at(self, share: float, whole: bool) -> float:
        """Return the value at `share` (0 to 1, 1 excluded) of the range; `whole` for integers, each equally likely."""
        stride = self.stride or (1.0 if whole else None)
        if stride is None:
            return min(max(round(self.low + share * (self.high - self.low), 4), self.low), self.high)
        count = math.floor((self.high - self.low) / stride + 1e-9) + 1
        # So that 0.1 + 2 × 0.1 is 0.3.
        return round(self.low + stride * min(int(share * count), count - 1), 10)


@dataclass(frozen=True)
class Sweep:
    """A sweep's settings without its number of images, which may grow.

    `categories` and `complexities` are the prompts' groups, in their order and "" for none; empty where no prompt has
    one. `guidance` is None for an engine without it. `sampling` is "uniform" (independent) or "even" (a
    low-discrepancy sequence over steps × guidance).
    """

    engine: str
    prompts: tuple[str, ...]
    steps: SettingRange
    guidance: SettingRange | None
    seed: int = 0
    sampling: str = "uniform"
    negative_prompt: str | None = None
    width: int = 512
    height: int = 512
    batch_size: int = 100
    categories: tuple[str, ...] = ()
    complexities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise `BadInputError` for invalid settings."""
        if not self.prompts:
            raise BadInputError("the sweep has no prompts: give a file with one prompt a line")
        for groups in (self.categories, self.complexities):
            if groups and len(groups) != len(self.prompts):
                raise BadInputError(f"{len(groups)} groups for {len(self.prompts)} prompts: give each prompt one")
        if self.sampling not in SAMPLINGS:
            raise BadInputError(f"invalid sampling {self.sampling!r}: choose {' or '.join(SAMPLINGS)}")
        check_settings(self.steps, self.guidance, self.width, self.height)
        if not 1 <= self.batch_size <= 10_000:
            raise BadInputError(f"invalid batch size {self.batch_size}: must be from 1 to 10000")

    @property
    def run_id(self) -> UUID:
        """The sweep's id, a function of its settings."""
        return uuid5(NAMESPACE, json.dumps(self.to_json(), sort_keys=True))

    def to_json(self) -> dict[str, Any]:
        # Without empty groups: the id of a sweep that has none is older than they are.
        settings = {name: value for name, value in asdict(self).items() if value != ()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}

    @classmethod
    def from_json(cls, settings: dict[str, Any]) -> Self:
        ranges = {name: SettingRange(**settings[name]) for name in ("steps", "guidance") if settings[name]}
        lists = {name: tuple(settings[name]) for name in ("prompts", *GROUP_SETTINGS) if name in settings}
        return cls(**settings | ranges | lists)

    def batch(self, index: int) -> str:
        """Return the partition key of image `index`."""
        return names.partition_key(names.partition_prefix(self.run_id), index // self.batch_size)

    def rows(self, start: int, stop: int) -> pl.DataFrame:
        """Return images `start` to `stop` (excluded) of the plan, in `PLAN_SCHEMA`."""
        run_id, rows = self.run_id, []
        for index in range(start, stop):
            rng = np.random.default_rng([self.seed, index])
            shares = rng.random(2)
            if self.sampling == "even":
                shift = np.random.default_rng(self.seed).random(2)
                shares = (shift + index * np.array(_R2)) % 1
            prompt = self._prompt(index)
            image_id, batch = uuid5(run_id, str(index)), self.batch(index)
            rows.append(
                {
                    "image_id": str(image_id),
                    "run_id": str(run_id),
                    "index": index,
                    "batch": batch,
                    "engine": self.engine,
                    "prompt": self.prompts[prompt],
                    "negative_prompt": self.negative_prompt,
                    "category": (self.categories[prompt] or None) if self.categories else None,
                    "complexity": (self.complexities[prompt] or None) if self.complexities else None,
                    "steps": int(self.steps.at(shares[0], whole=True)),
                    "guidance": self.guidance.at(shares[1], whole=False) if self.guidance else None,
                    "seed": int(rng.integers(2**31)),
                    "width": self.width,
                    "height": self.height,
                    "image_path": f"{batch}/{index:06d}.png",
                }
            )
        return pl.DataFrame(rows, schema=PLAN_SCHEMA)

    def rows_of_batch(self, batch: str, target: int) -> pl.DataFrame:
        """Return the partition's share of the first `target` images."""
        start = int(batch.rpartition("_")[2]) * self.batch_size
        return self.rows(start, max(start, min(start + self.batch_size, target)))

    def _prompt(self, index: int) -> int:
        """Return the prompt's index: each round uses every prompt once, in a random order of its own."""
        turn, place = divmod(index, len(self.prompts))
        return int(np.random.default_rng([self.seed, turn, len(self.prompts)]).permutation(len(self.prompts))[place])


def images_in_time(sweep: Sweep, timings: Sequence[tuple[int, int]], seconds: float) -> int:
    """Return how many of the sweep's images are made in this time, one at least.

    `timings` are steps and milliseconds of the engine's images: an image takes a time that is linear in its steps.
    Raises `BadInputError` where there are none.
    """
    if not timings:
        raise BadInputError(
            f"no image of {sweep.engine} has been timed: give a number of images, for a first sweep of 20 or so"
        )
    steps, elapsed = np.array(timings, dtype=float).T
    a_step, base = np.polyfit(steps, elapsed, 1) if np.ptp(steps) else (np.mean(elapsed / steps), 0.0)
    if base < 0 or a_step <= 0:  # too few to tell the two apart
        a_step, base = np.mean(elapsed) / np.mean(steps), 0.0
    mean_steps = np.mean([sweep.steps.at(share, whole=True) for share in np.arange(0.0005, 1, 0.001)])
    return min(max(1, int(1000 * seconds / (base + a_step * mean_steps))), MAX_IMAGES)


def check_settings(steps: SettingRange, guidance: SettingRange | None, width: int, height: int) -> None:
    """Raise `BadInputError` naming a setting that is invalid for every engine."""
    if steps.low < 1 or steps.high > 1000 or any(value % 1 for value in (steps.low, steps.high, steps.stride or 1)):
        raise BadInputError(f"invalid steps '{steps}': must be integers from 1 to 1000")
    if guidance and not 0 <= guidance.low <= guidance.high <= 100:
        raise BadInputError(f"invalid guidance '{guidance}': must be from 0 to 100")
    for side in (width, height):
        if not 8 <= side <= 8192 or side % 8:
            raise BadInputError(f"invalid image side {side}: must be a multiple of 8 from 8 to 8192")


def check_engine_settings(engine: ModelEntry, seed: int, width: int, height: int, given: Mapping[str, Any]) -> None:
    """Raise `BadInputError` naming a setting that is invalid for this engine.

    `given` are the settings that an engine may ignore, None or "" where they were left out.
    """
    if seed < 0:
        raise BadInputError(f"invalid seed {seed}: must be 0 or more")
    for setting in sorted(engine.ignored_settings):
        if given[setting] not in (None, ""):
            raise BadInputError(f"{engine.name} has no {setting.replace('_', ' ')}: leave it out")
    for side in (width, height):
        if side % engine.multiple:
            raise BadInputError(f"invalid image side {side} for {engine.name}: must be a multiple of {engine.multiple}")


def default_range(bounds: tuple[float, float] | None, otherwise: str) -> str:
    """Return the range of a setting where none is given: the one that the engine is made for, if it is for one."""
    return f"{bounds[0]:g}:{bounds[1]:g}" if bounds else otherwise


def check_engine_ranges(engine: ModelEntry, steps: SettingRange, guidance: SettingRange | None) -> None:
    """Raise `BadInputError` naming steps or guidance that the engine is not made for."""
    ranges = {"steps": (steps, engine.steps_range), "guidance": (guidance, engine.guidance_range)}
    for name, (given, bounds) in ranges.items():
        if given and bounds and not bounds[0] <= given.low <= given.high <= bounds[1]:
            made_for = SettingRange(*bounds)
            remedy = f"use {name} {made_for}, or another engine"
            raise BadInputError(f"invalid {name} '{given}' for {engine.name}: it is made for {made_for}: {remedy}")
