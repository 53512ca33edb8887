"""Tables as text, for the terminal and for Markdown in Dagster's UI."""

from collections.abc import Mapping, Sequence
from typing import Any

TableRows = Sequence[Mapping[str, Any]]
"""Rows of one table, each with the same columns in the order they are shown."""


def format_text_table(table: TableRows) -> str:
    """Return the table for a terminal: numbers right-justified, words left."""
    names = list(table[0])
    cells = [[_cell(row[name]) for name in names] for row in table]
    numbers = [all(isinstance(row[name], int | float | None) for row in table) for name in names]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numbers, strict=True)
        )
        for line in (names, *cells)
    )
    return "\n".join(line.rstrip() for line in lines)


def format_markdown_table(table: TableRows) -> str:
    """Return the table in Markdown."""
    if not table:
        return "nothing"
    names = list(table[0])
    cells = ([_cell(row[name]).replace("|", "\\|") for name in names] for row in table)
    return "\n".join(f"| {' | '.join(line)} |" for line in (names, ["---"] * len(names), *cells))


def _cell(value: Any) -> str:
    """Return the value in one line of at most 300 characters; a number to four places."""
    if value is None:
        return "–"
    text = f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= 300 else f"{text[:299]}…"
