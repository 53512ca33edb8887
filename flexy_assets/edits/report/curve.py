"""Means with their intervals over budgets, as coordinates to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flexy_assets.edits.labels import format_denoises
from flexy_assets.reporting.html import format_number

Level = tuple[int, float, float | None, float | None]
"""A budget (NFE), a mean there and the ends of its interval."""

LEFT, RIGHT, TOP, BOTTOM = 52, 366, 10, 170
"""The plot's sides; ticks are written to the left of it and below."""
MARGIN = 24
"""Between the plot's sides and the outermost budgets."""
ASIDE = 8
"""Between two methods at one budget, so that their intervals can be told apart."""


@dataclass(frozen=True)
class Point:
    """A mean and its interval's ends: where they are drawn, and in words."""

    x: float
    y: float
    low: float
    high: float
    words: str


@dataclass(frozen=True)
class Curve:
    """One metric over budgets; `lines` are each a method's number and its points, `across` and `up` the ticks."""

    title: str
    caption: str
    lines: list[tuple[int, list[Point]]]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]
    unit: str
    zero: float | None


def curve(
    title: str, caption: str, lines: Mapping[int, Sequence[Level]], steps: int | None, zero: bool = False
) -> Curve:
    """A curve through at least one point, with a line at 0 where `zero` is set; budgets lie on a log scale."""
    points = [point for line in lines.values() for point in line]
    values = [value for _, *ends in points for value in ends if value is not None] + [0.0] * zero
    room = 0.06 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 1.0
    low, high = min(values) - room, max(values) + room
    budgets = sorted({budget for budget, *_ in points})
    span = math.log(budgets[-1] / budgets[0]) or 1.0
    whole = steps if steps and not any(budget % steps for budget in budgets) else None

    def x(budget: int) -> float:
        return LEFT + MARGIN + math.log(budget / budgets[0]) / span * (RIGHT - LEFT - 2 * MARGIN)

    def y(value: float) -> float:
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    def point(level: Level, aside: float) -> Point:
        budget, mean, bottom, top = level
        between = "" if bottom is None else f" ({format_number(bottom)} to {format_number(top)})"
        low_end, high_end = (y(mean if end is None else end) for end in (bottom, top))
        words = f"{format_denoises(budget, steps)}: {format_number(mean)}{between}"
        return Point(x(budget) + aside, y(mean), low_end, high_end, words)

    return Curve(
        title,
        caption,
        [
            (method, [point(level, ASIDE * (place - (len(lines) - 1) / 2)) for level in line])
            for place, (method, line) in enumerate(lines.items())
        ],
        across=[(x(budget), f"{budget // (whole or 1):,}") for budget in budgets],
        up=[(y(value), written) for value, written in _ticks(low, high)],
        unit="denoises" if whole else "denoising steps (NFE)",
        zero=y(0) if zero else None,
    )


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Two to five round values within the bounds."""
    rough = (high - low) / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * magnitude for nice in (1, 2, 5, 10) if nice * magnitude >= rough)
    decimals = max(0, -math.floor(math.log10(step)))
    places = range(math.ceil(low / step), math.floor(high / step) + 1)
    return [(place * step, f"{place * step:.{decimals}f}".replace("-", "−")) for place in places]
