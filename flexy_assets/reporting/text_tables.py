"""How far the table is, for a person: what `storage.overview.status` found, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from resources.metrics.sweep import METRICS

TableRows = Sequence[Mapping[str, Any]]
"""Rows of one table, each with the same columns in the order they are shown."""


def status_tables(found: Mapping[str, Any]) -> dict[str, TableRows]:
    """The tables, under headings."""
    runs = [
        {
            "run": (run["run"] or "none")[:8],
            "engine": run["engine"],
            "images": run["images"],
            "of": run["target"],
        }
        | {name: _progress(run["images"], run[name]) for name in METRICS}
        for run in found["runs"]
    ]
    newest = [
        {"at": row["created_at"] and f"{datetime.fromisoformat(row['created_at']):%Y-%m-%d %H:%M:%S}"}
        | {name: row[name] for name in ("engine", "steps", "guidance", "seed", *METRICS, "image_path")}
        for row in found["newest"]
    ]
    return {"scores": found["metrics"], "runs": runs, "by steps (means)": found["steps"], "newest": newest}


def _progress(images: int, counts: Mapping[str, int]) -> str:
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    return f"{counts['scored']}/{images}{failed}"


def status_summary(found: Mapping[str, Any]) -> str:
    """The totals in a sentence, and what is left alone, if anything is."""
    totals = found["totals"]
    if not totals["images"]:
        return "no images yet"
    lines = [
        f"{totals['images']:,} images in {totals['runs']:,} runs,"
        f" {totals['complete']:,} of them with all {len(METRICS)} scores"
    ]
    if found["left_alone"]:
        others = ", ".join(f"{count:,} of {engine}" for engine, count in sorted(found["left_alone"].items()))
        lines.append(f"left alone, because this set of models is not for their engines: {others}")
    return "\n".join(lines)


def format_text_table(table: TableRows) -> str:
    """The table for a terminal: numbers to the right, words to the left."""
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
    """The table for the UI."""
    if not table:
        return "nothing"
    names = list(table[0])
    cells = ([_cell(row[name]).replace("|", "\\|") for name in names] for row in table)
    return "\n".join(f"| {' | '.join(line)} |" for line in (names, ["---"] * len(names), *cells))


def _cell(value: Any) -> str:
    """In one line, of at most 300 characters; a number to four places."""
    if value is None:
        return "–"
    text = f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= 300 else f"{text[:299]}…"
