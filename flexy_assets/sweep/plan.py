"""The images of a sweep as a pure function of its settings: one row an image, the same rows every time.

Row `i` depends on the sweep's settings and `i` alone, so a sweep is extended by computing more rows
and resumed by finding which rows have no image. Rows whose settings were chosen by what other images scored are kept
with the plan (`Extension`): no other state is kept.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from typing import Any, Self
from uuid import UUID, uuid5

import numpy as np
import polars as pl
from numpy.typing import NDArray

from flexy_assets import names
from resources.errors import BadInputError
from resources.models.entry import ModelEntry

Floats = NDArray[np.float64]

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
    "scheduler": pl.String,
    "seed": pl.Int64,
    "width": pl.Int64,
    "height": pl.Int64,
    "image_path": pl.String,
}

GROUP_SETTINGS = ("categories", "complexities")
MAX_IMAGES = 10_000_000
SAMPLINGS = ("uniform", "even", "paired")
PAIR_SIZE = 4
"""Images of one prompt and seed in a paired sweep or an extension, where there are as many distinct settings."""
MAX_VALUES = 1000
MAX_DRAWS = 100
"""Draws of a setting that a pair does not have yet: a narrow range, rounded, may hold fewer."""
NAMESPACE = UUID("6f0b1b0e-7d0c-5b43-9c5e-3d1f7a4c2e11")
# Roberts' R2 sequence: the plane's most even additive recurrence, from the plastic number.
_PLASTIC = 1.324717957244746
_R2 = (1 / _PLASTIC, 1 / _PLASTIC**2)


@dataclass(frozen=True)
class SettingRange:
    """Values from `low` to `high`, both included; with a `stride`, only low, low + stride, …; or only `values`."""

    low: float
    high: float
    stride: float | None = None
    values: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str, name: str) -> Self:
        """Parse `4:60`, `4:60:8`, `4,8,16` or one value. Raises `BadInputError` naming `name`."""
        is_list = "," in text
        try:
            numbers = [float(part) for part in text.split("," if is_list else ":")]
        except ValueError:
            numbers = []
        if not 1 <= len(numbers) <= (MAX_VALUES if is_list else 3) or not all(map(math.isfinite, numbers)):
            forms = "LOW:HIGH, LOW:HIGH:STRIDE or a list of values, as in 4:60 or 4,8,16"
            raise BadInputError(f"invalid {name} {text[:40]!r}: must be {forms}")
        if is_list:
            values = tuple(sorted(set(numbers)))
            return cls(values[0], values[-1], values=values)
        low, high, stride = numbers[0], numbers[min(1, len(numbers) - 1)], numbers[2] if len(numbers) == 3 else None
        if low > high or (stride is not None and stride <= 0):
            remedy = "LOW must not exceed HIGH and STRIDE must be above 0"
            raise BadInputError(f"invalid {name} {text!r}: the range is empty, {remedy}")
        return cls(low, high, stride)

    def __str__(self) -> str:
        if self.values:
            return ",".join(f"{number:g}" for number in self.values)
        numbers = [*dict.fromkeys((self.low, self.high)), *([] if self.stride is None else [self.stride])]
        return ":".join(f"{number:g}" for number in numbers)

    def at(self, share: float, whole: bool) -> float:
        """Return the value at `share` (0 to 1, 1 excluded) of the range; `whole` for integers, each equally likely."""
        count = self.count(whole)
        if self.low == self.high:
            return self.low
        if count is None:
            return min(max(round(self.low + share * (self.high - self.low), 4), self.low), self.high)
        place = min(int(share * count), count - 1)
        # So that 0.1 + 2 × 0.1 is 0.3.
        return self.values[place] if self.values else round(self.low + (self.stride or 1.0) * place, 10)

    def count(self, whole: bool) -> int | None:
        """Return how many values there are, `whole` for integers; None where there is no end of them."""
        if self.values or self.low == self.high:
            return len(self.values) or 1
        stride = self.stride or (1.0 if whole else None)
        return None if stride is None else math.floor((self.high - self.low) / stride + 1e-9) + 1


@dataclass(frozen=True)
class Extension:
    """Images of a sweep from index `start` on whose steps and guidance were chosen by what others scored."""

    start: int
    settings: tuple[tuple[int, float | None], ...]

    @property
    def stop(self) -> int:
        """The index after its last image."""
        return self.start + len(self.settings)


@dataclass(frozen=True)
class Sweep:
    """A sweep's settings without its number of images, which may grow.

    `categories` and `complexities` are the prompts' groups, in their order and "" for none; empty where no prompt has
    one. `guidance` is None for an engine without it. `sampling` is "uniform" (independent), "even" (a low-discrepancy
    sequence over steps × guidance) or "paired" (that sequence, with one prompt and seed for each `PAIR_SIZE` images in
    a row, so that their differences are their settings'). `schedulers`, `sizes` (in place of width and height) and
    `negative_prompts` ("" for none) are further factors, each combination as often as the others; empty where there is
    no choice.
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
    schedulers: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    negative_prompts: tuple[str, ...] = ()
    extensions: tuple[Extension, ...] = ()

    def __post_init__(self) -> None:
        """Raise `BadInputError` for invalid settings."""
        if not self.prompts:
            raise BadInputError("the sweep has no prompts: give a file with one prompt a line")
        for groups in (self.categories, self.complexities):
            if groups and len(groups) != len(self.prompts):
                raise BadInputError(f"{len(groups)} groups for {len(self.prompts)} prompts: give each prompt one")
        if self.sampling not in SAMPLINGS:
            raise BadInputError(f"invalid sampling {self.sampling!r}: choose {', '.join(SAMPLINGS)}")
        for width, height in ((self.width, self.height), *self.sizes):
            check_settings(self.steps, self.guidance, width, height)
        for factor in (self.schedulers, self.sizes, self.negative_prompts):
            if len(set(factor)) < len(factor):
                repeated = next(each for each in factor if factor.count(each) > 1)
                raise BadInputError(f"{repeated!r} is given twice: leave out one, each counts as often as the others")
        if not 1 <= self.batch_size <= 10_000:
            raise BadInputError(f"invalid batch size {self.batch_size}: must be from 1 to 10000")

    @cached_property
    def run_id(self) -> UUID:
        """The sweep's id, a function of its settings."""
        settings = self.to_json()
        settings.pop("extensions", None)
        return uuid5(NAMESPACE, json.dumps(settings, sort_keys=True))

    def to_json(self) -> dict[str, Any]:
        # Without what is empty: the id of a sweep that has none is older than it is.
        def without_empty(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            return {name: value for name, value in pairs if value != ()}

        settings = asdict(self, dict_factory=without_empty)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}

    @classmethod
    def from_json(cls, settings: dict[str, Any]) -> Self:
        given = {name: settings[name] for name in ("steps", "guidance") if settings[name]}
        values = {name: tuple(each.get("values", ())) for name, each in given.items()}
        ranges = {name: SettingRange(**each | {"values": values[name]}) for name, each in given.items()}
        names_of_lists = ("prompts", *GROUP_SETTINGS, "schedulers", "negative_prompts")
        lists: dict[str, Any] = {name: tuple(settings[name]) for name in names_of_lists if name in settings}
        lists["sizes"] = tuple((width, height) for width, height in settings.get("sizes", ()))
        lists["extensions"] = tuple(
            Extension(each["start"], tuple((steps, guidance) for steps, guidance in each["settings"]))
            for each in settings.get("extensions", ())
        )
        return cls(**settings | ranges | lists)

    def batch(self, index: int) -> str:
        """Return the partition key of image `index`."""
        return names.partition_key(names.partition_prefix(self.run_id), index // self.batch_size)

    @cached_property
    def pair_size(self) -> int:
        """Images of one prompt and seed where they are paired: no more than there are distinct settings."""
        steps, guidance = self.steps.count(whole=True), self.guidance.count(whole=False) if self.guidance else 1
        if steps is None or guidance is None:
            return PAIR_SIZE
        return min(PAIR_SIZE, steps * guidance * len(self._combinations))

    def rows(self, start: int, stop: int) -> pl.DataFrame:
        """Return images `start` to `stop` (excluded) of the plan, in `PLAN_SCHEMA`."""
        run_id, rows = self.run_id, []
        last = None
        for index in range(start, stop):
            pair, extension = self._pair(index)
            if (pair, extension) != last:
                last = pair, extension
                settings = self._settings(pair, extension)
                rng = np.random.default_rng([self.seed, pair.start])
                rng.random(2)  # the shares of the ranges, where they are independent
                seed = int(rng.integers(2**31))
                prompt = self._prompt(pair.start // len(pair))
            steps, guidance, (scheduler, (width, height), negative_prompt) = settings[index - pair.start]
            image_id, batch = uuid5(run_id, str(index)), self.batch(index)
            rows.append(
                {
                    "image_id": str(image_id),
                    "run_id": str(run_id),
                    "index": index,
                    "batch": batch,
                    "engine": self.engine,
                    "prompt": self.prompts[prompt],
                    "negative_prompt": negative_prompt,
                    "category": (self.categories[prompt] or None) if self.categories else None,
                    "complexity": (self.complexities[prompt] or None) if self.complexities else None,
                    "steps": steps,
                    "guidance": guidance,
                    "scheduler": scheduler,
                    "seed": seed,
                    "width": width,
                    "height": height,
                    "image_path": f"{batch}/{index:06d}.png",
                }
            )
        return pl.DataFrame(rows, schema=PLAN_SCHEMA)

    def rows_of_batch(self, batch: str, target: int) -> pl.DataFrame:
        """Return the partition's share of the first `target` images."""
        start = int(batch.rpartition("_")[2]) * self.batch_size
        return self.rows(start, max(start, min(start + self.batch_size, target)))

    @cached_property
    def _combinations(self) -> list[tuple[str | None, tuple[int, int], str | None]]:
        """Return scheduler, size and negative prompt of every combination."""
        negative_prompts = [text or None for text in self.negative_prompts] or [self.negative_prompt]
        sizes = self.sizes or ((self.width, self.height),)
        return list(product(self.schedulers or (None,), sizes, negative_prompts))

    def _pair(self, index: int) -> tuple[range, Extension | None]:
        """Return the images that share the prompt and seed of `index`, itself alone unless it is paired."""
        extension = next((each for each in self.extensions if each.start <= index < each.stop), None)
        size = self.pair_size if extension or self.sampling == "paired" else 1
        first = index - (index - (extension.start if extension else 0)) % size
        return range(first, first + size), extension

    def _settings(
        self, pair: range, extension: Extension | None
    ) -> list[tuple[int, float | None, tuple[str | None, tuple[int, int], str | None]]]:
        """Return steps, guidance and combination of a pair's images, all different."""
        order = np.array(pair) % len(self._combinations)
        if len(pair) > 1:
            order = np.random.default_rng([self.seed, pair.start, 1]).permutation(order)
        combinations = [self._combinations[place] for place in order]
        if extension:
            chosen = extension.settings[pair.start - extension.start :][: len(pair)]
            return [(*setting, combination) for setting, combination in zip(chosen, combinations, strict=False)]
        rng = np.random.default_rng([self.seed, pair.start])
        settings: list[Any] = []
        for index, combination in zip(pair, combinations, strict=True):
            shares = rng.random(2)
            if self.sampling != "uniform":
                shift = np.random.default_rng(self.seed).random(2)
                shares = (shift + index * np.array(_R2)) % 1
            for _ in range(MAX_DRAWS):
                if (setting := (*self._values(shares), combination)) not in settings:
                    break
                shares = rng.random(2)
            settings.append(setting)
        return settings

    def _values(self, shares: Floats) -> tuple[int, float | None]:
        """Return steps and guidance at shares (2,) of their ranges."""
        guidance = self.guidance.at(shares[1], whole=False) if self.guidance else None
        return int(self.steps.at(shares[0], whole=True)), guidance

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
    if (
        steps.low < 1
        or steps.high > 1000
        or any(value % 1 for value in (steps.low, steps.high, steps.stride or 1, *steps.values))
    ):
        raise BadInputError(f"invalid steps '{steps}': must be integers from 1 to 1000")
    if guidance and not 0 <= guidance.low <= guidance.high <= 100:
        raise BadInputError(f"invalid guidance '{guidance}': must be from 0 to 100")
    for side in (width, height):
        if not 8 <= side <= 8192 or side % 8:
            raise BadInputError(f"invalid image side {side}: must be a multiple of 8 from 8 to 8192")


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Parse `512,768x1024`, pixels along each side or across and down. Raises `BadInputError` for anything else."""
    sizes = []
    for part in text.split(","):
        sides = part.strip().lower().split("x")
        if len(sides) > 2 or not all(side.isascii() and side.isdigit() and len(side) <= 4 for side in sides):
            raise BadInputError(f"invalid size {part[:20]!r}: must be PIXELS or WIDTHxHEIGHT, as in 512 or 768x1024")
        sizes.append((int(sides[0]), int(sides[-1])))
    return tuple(sizes)


def check_engine_schedulers(engine: ModelEntry, schedulers: Sequence[str]) -> None:
    """Raise `BadInputError` naming a scheduler that the engine cannot use."""
    for name in schedulers:
        if name not in engine.schedulers:
            names_known = ", ".join(engine.schedulers)
            remedy = f"choose from {names_known}" if names_known else "it is used with its own alone: leave it out"
            raise BadInputError(f"invalid scheduler {name[:40]!r} for {engine.name}: {remedy}")


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
