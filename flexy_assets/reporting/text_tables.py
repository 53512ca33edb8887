"""Tables as text, for the terminal and for Markdown in Dagster's UI."""

import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Final

TableRows = Sequence[Mapping[str, Any]]
"""Rows of one table, each with the same columns in the order they are shown."""


LEAST_WIDTH: Final = 10
"""Characters below which a column of words is not narrowed."""


def format_text_table(table: TableRows, width: int | None = None) -> str:
    """Return the table for a terminal of so many columns (by default this one's, or 80): numbers right-justified.

    A table that is too wide has its headings, then its words, in several lines, the widest first; one that is still too
    wide continues below with its first column again. Nothing is cut.
    """
    names, width = list(table[0]), width or shutil.get_terminal_size((80, 24)).columns
    numbers = [all(isinstance(row[name], int | float | None) for row in table) for name in names]
    cells = [[_cell(row[name]) for name in names] for row in table]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    room = width - 2 * (len(names) - 1)
    # A number, and the words of the first column, by which a row is found, stay in one line.
    whole = [max(len(row[index]) for row in cells) for index in range(len(names))]
    whole_words = max(len(word) for row in cells for word in re.split("[ /]", row[0]))
    least = [
        max(
            *map(len, re.findall("[^ _]+_?", name)),
            size if number else min(size, LEAST_WIDTH) if index else whole_words,
        )
        for index, (name, number, size) in enumerate(zip(names, numbers, whole, strict=True))
    ]
    if sum(least) > room and len(names) > 2:
        fitting = max(2, sum(sum(least[:count]) + 2 * (count - 1) <= width for count in range(1, len(names))))
        halves = names[:fitting], [names[0], *names[fitting:]]
        return "\n\n".join(
            format_text_table([{name: row[name] for name in part} for row in table], width) for part in halves
        )
    headings = [max(size, smallest) for size, smallest in zip(whole, least, strict=True)]
    for bounds in (headings, least):
        while sum(widths) > room and (wider := [index for index in range(len(names)) if widths[index] > bounds[index]]):
            widths[max(wider, key=lambda index: widths[index])] -= 1
    lines = []
    for row in (names, *cells):
        parts = [_wrap(cell, size) for cell, size in zip(row, widths, strict=True)]
        for number in range(max(map(len, parts))):
            line = [part[number] if number < len(part) else "" for part in parts]
            sides = zip(line, widths, numbers, strict=True)
            lines.append(
                "  ".join(cell.rjust(size) if right else cell.ljust(size) for cell, size, right in sides).rstrip()
            )
    return "\n".join(lines)


def _wrap(text: str, width: int) -> list[str]:
    """Return the text in lines of a width, broken after blanks, `_`, `/` and commas, else anywhere."""
    if len(text) <= width:
        return [text]
    lines: list[str] = [""]
    for piece in re.split(r"(?<=[ _/,@=])", text):
        while len(lines[-1]) + len(piece.rstrip()) > width:
            if (lines[-1] and len(piece.rstrip()) <= width) or len(lines[-1]) == width:
                lines.append("")
                continue
            free = width - len(lines[-1])
            lines[-1], piece = lines[-1] + piece[:free], piece[free:]
        lines[-1] += piece
    return [line.rstrip() for line in lines if line.strip()]


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
