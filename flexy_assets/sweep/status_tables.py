"""The state of all sweeps as tables and in a sentence, from what `storage.status.read_status` counts."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from shlex import quote
from typing import Any

from flexy_assets.reporting.formatting import format_count
from flexy_assets.reporting.text_tables import TableRows
from resources.metrics.sweep import METRICS

SHOWN_LOST = 20


def status_tables(counts: Mapping[str, Any]) -> dict[str, TableRows]:
    """Return the tables by heading."""
    keys = [{"sweep": (run["run"] or "none")[:8], "engine": run["engine"]} for run in counts["runs"]]
    sweeps = [
        key
        | {"images": run["images"], "of": run["target"]}
        | {name: _range(*run[name]) for name in ("steps", "guidance")}
        | {"made": _range(run["first"] and run["first"][:10], run["last"] and run["last"][:10], " to ")}
        for key, run in zip(keys, counts["runs"], strict=True)
    ]
    progress = [
        key | {name: _progress(run["images"], run[name]) for name in METRICS}
        for key, run in zip(keys, counts["runs"], strict=True)
    ]
    newest = [
        {"at": row["created_at"] and f"{datetime.fromisoformat(row['created_at']):%Y-%m-%d %H:%M:%S}"}
        | {name: row[name] for name in ("engine", "steps", "guidance", *METRICS, "image_path")}
        for row in counts["newest"]
    ]
    roots = [
        {"recorded below": root["prefix"] or ("" if root["folder"] else "no root"), "read from": root["folder"] or ""}
        | {name: root[name] for name in ("rows", "sampled", "found")}
        | {"not found, for example": root["example"]}
        for root in counts.get("image_roots", ())
        if root["rows"]
    ]
    makers = [
        {"metric": metric, "made by": each["variant"] or "unknown: nothing is filled"}
        | {name.replace("_", " "): each[name] for name in ("sampled", "agreeing", "mean_difference", "correlation")}
        for metric, each in counts.get("agreement", {}).items()
    ]
    lost = [
        {"run": (image["run"] or "none")[:8], "reason": image["reason"]}
        for image in counts.get("lost", {"images": ()})["images"][:SHOWN_LOST]
    ]
    tables: dict[str, TableRows] = {"lost images": lost} if lost else {}
    tables |= {"scores": counts["metrics"]} | ({"existing scores": makers} if makers else {})
    tables |= {"sweeps": sweeps, "scores by sweep": progress, "by steps (means)": counts["steps"], "newest": newest}
    return tables | {"beside the columns": counts.get("beside", []), "image roots": roots}


def _range(low: Any, high: Any, between: str = "–") -> str | None:
    """Return both ends, or the one value there is."""
    ends = [f"{end:g}" if isinstance(end, float) else str(end) for end in dict.fromkeys((low, high)) if end is not None]
    return between.join(ends) or None


def _progress(images: int, metric: Mapping[str, int]) -> str:
    failed = f", {metric['failed']} failed" if metric["failed"] else ""
    return f"{metric['scored']}/{images}{failed}"


def status_summary(counts: Mapping[str, Any]) -> str:
    """Return the totals in a sentence, and the images that this model set does not score, if any."""
    totals = counts["totals"]
    if not totals["images"]:
        return "no images yet"
    complete = f"{totals['complete']:,} of them with all {len(METRICS)} scores"
    lines = [f"{format_count(totals['images'], 'image')} in {format_count(totals['runs'], 'sweep')}, {complete}"]
    if counts["left_alone"]:
        others = ", ".join(f"{count:,} of {engine}" for engine, count in sorted(counts["left_alone"].items()))
        lines.append(f"left alone, because this set of models is not for their engines: {others}")
    for engine, count in counts.get("unknown_weights", {}).items():
        remedy = f"name them with flexy sweep weights {quote(engine)} NAME"
        lines.append(f"images of {engine} ({count:,}) were made by unknown weights: {remedy}")
    if lines_of_lost := _describe_lost(counts.get("lost")):
        lines.append(lines_of_lost)
    for root in counts.get("image_roots", ()):
        if root["rows"] and not root["folder"]:
            lines.append(
                f"{root['rows']:,} images are in no image root, for example {root['example'] or 'one without a path'}:"
                " give their folder in FLEXY_IMAGES or FLEXY_IMAGE_ROOTS"
            )
    return "\n".join(lines)


def _describe_lost(lost: Mapping[str, Any] | None) -> str:
    """Return how many images are lost and what to do; empty where none is."""
    if not lost or not lost["images"]:
        return ""
    checked = "all" if lost["checked"] == lost["of"] else f"a random {lost['checked']:,} of {lost['of']:,}"
    text = f"images whose file is missing or not as recorded: {len(lost['images']):,} (checked: {checked})"
    for sweep, count in Counter(image["run"] for image in lost["images"] if image["plan"]).items():
        text += f"; flexy sweep run {sweep[:8]} makes {count:,} again"
    if unplanned := sum(not image["plan"] for image in lost["images"]):
        them, rows = ("it", "its row") if unplanned == 1 else ("them", "their rows")
        text += f"; {unplanned:,} without a plan: restore {them}, or remove {rows} with flexy sweep prune"
    return text
