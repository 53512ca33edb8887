"""The list of models, with what is on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from resources.models import registry, weights
from resources.models.entry import ModelEntry
from resources.settings import MODEL_SETS, Settings


def list_models(settings: Settings) -> list[dict[str, Any]]:
    """Return one row per model of each set.

    `state` is `embedded`, `present`, `your folder`, `missing`, `gated` (missing, with a licence to accept), or `user
    must supply` (missing and never downloaded: name the folder of its `files` in FLEXY_MODEL_REGISTRY). `gigabytes` is
    its size on disk or, where it is missing, the size to download.
    """
    rows = []
    for entry in registry.MODELS.values():
        sets = [models for models in MODEL_SETS if entry.in_set(models)]
        if not (entry.published or entry.user_provided or entry.embedded):
            sets = ["both"]
        rows += [_row(entry, models, settings) for models in sets]
    return rows


def _row(entry: ModelEntry, models: str, settings: Settings) -> dict[str, Any]:
    model = registry.local_model(entry, settings.with_models(models))
    published = None if models == "mini" else entry.published
    source = published or model.user_provided
    missing = bool(model.folder and weights.missing_files(model.folder, model.published, model.user_provided))
    if model.user_provided and not model.folder:
        missing, state = True, "user must supply"
    elif missing:
        state = "gated" if model.published and model.published.gated else "missing"
    elif models == "mini":
        state = "embedded"
    else:
        state = "your folder" if model.folder and not model.published else "present"
    size = weights.folder_bytes(model.folder) / 1e9 if model.folder else 0
    if missing and source:
        size = source.gigabytes
    return {
        "name": model.name,
        "kind": entry.kind,
        "set": models,
        "state": state,
        "folder": str(model.folder) if model.folder and not missing else None,
        "gigabytes": round(size, 6),
        "memory": (entry.memory or None) if models != "mini" else None,
        "licence": source.licence if source else None,
        "commercial": source.commercial if source else None,
        "gated": bool(published and published.gated),
        "repo": published.repo if published else None,
        "revision": published.revision if published else None,
        "files": [*model.user_provided.files] if model.user_provided else None,
    }


_HEADINGS = ("name", "kind", "set", "state", "   GB", "memory", "commercial", "licence", "repository@revision")


def format_model_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as text, memory in GB too; licences and repositories are truncated to the terminal's width."""
    cells = [
        (
            row["name"],
            row["kind"],
            row["set"],
            row["state"],
            f"{row['gigabytes']:5.1f}" if row["gigabytes"] >= 0.05 else " <0.1",
            f"{row['memory']:6g}" if row["memory"] else "",
            {True: "yes", False: "no", None: "?" if row["licence"] else ""}[row["commercial"]],
            row["licence"] or "",
            _origin(row),
        )
        for row in rows
    ]
    lines = [_HEADINGS, *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    free_width = max(shutil.get_terminal_size((120, 0)).columns, 100) - sum(widths[:-2]) - 2 * (len(widths) - 1)
    widths[-2] = min(widths[-2], free_width * 2 // 5)
    widths[-1] = min(widths[-1], free_width - widths[-2])
    # The end of a repository, with its revision, is the most informative.
    truncated = (
        [*line[:-2], _truncate(line[-2], widths[-2]), _truncate(line[-1], widths[-1], 2 / 3)] for line in lines
    )
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in truncated
    )


def _origin(row: Mapping[str, Any]) -> str:
    """Return the source of the files: a repository, or the names of those that the user supplies."""
    if row["files"]:
        return f"yours: {', '.join(row['files'])}"
    return f"{row['repo']}@{row['revision'][:7]}" if row["repo"] else ""


def _truncate(text: str, width: int, tail: float = 0) -> str:
    """Return the text, or for a longer one its start, an ellipsis, and its end on the fraction `tail` of the width."""
    end = int(tail * width)
    return text if len(text) <= width else f"{text[: width - 1 - end]}…{text[len(text) - end :]}"
