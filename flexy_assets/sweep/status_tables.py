"""The state of all sweeps as tables and in a sentence, from what `storage.status.read_status` counts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from flexy_assets.reporting.text_tables import TableRows
from resources.metrics.sweep import METRICS


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
