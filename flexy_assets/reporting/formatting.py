"""How numbers, counts and lists are written in texts, tables and pages."""

import math
from collections.abc import Sequence


def format_number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits, without exponent; a dash for None."""
    if value is None:
        return "–"
    decimals = digits - 1 - math.floor(math.log10(abs(value))) if value else digits - 1
    written = f"{value:,.{min(max(decimals, 0), digits)}f}"
    return written.replace("-", "−") if float(written.replace(",", "")) else written.lstrip("-")


def format_signed(values: Sequence[float]) -> list[str]:
    """Return the numbers with their signs, to as many decimals as their spread needs; only 0 is written as 0."""
    spread = max(values) - min(values) or abs(values[0]) or 1.0
    least = min((abs(value) for value in values if value), default=1.0)
    decimals = min(max(0, 1 - math.floor(math.log10(spread)), -math.floor(math.log10(least))), 6)
    return [f"{round(value, decimals) + 0.0:+,.{decimals}f}".replace("-", "−") for value in values]


def format_count(count: int, noun: str) -> str:
    """Return a count with its noun, as in `1 task` and `1,200 tasks`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def join_words(names: Sequence[str]) -> str:
    """Return the names as in `a, b and c`."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1] if names else ""
