"""Holds a table of faces against what the judge in `servers` answered. Used by tests and benchmarks."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from flexy_assets.edits.search.canvas import Canvas
from resources import masks
from tests.support.servers import MARKS, Oracle, shown

READINGS = 4
"""Answers that a score is the mean of."""

FINISHED = """
SELECT candidate.id, candidate.image_path, scene.image_path AS scene, task.reference_path, task.mask_path
FROM edit_candidates candidate
JOIN edit_tasks task ON task.id = candidate.task JOIN label_tasks scene ON scene.id = task.label_task
WHERE candidate.until = candidate.path
"""

Scores = Mapping[tuple[str, str], Mapping[str, Any]]
"""Rows of `image_scores`, by candidate and metric."""


def rows(home: Path, query: str) -> list[dict[str, Any]]:
    """What a query finds in the embedded database; nothing as long as there is no such table."""
    file = home / "flexy.sqlite"
    if not file.exists():
        return []
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60)) as connection:
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(query)]
        except sqlite3.OperationalError:
            return []


def to_be_shown(home: Path) -> dict[str, str]:
    """What the judge is to be shown of each finished candidate, by the candidate: see `servers.shown`."""

    def picture(path: str) -> Image.Image:
        with Image.open(home / "images" / path) as file:
            return file.convert("RGB")

    found = {}
    for row in rows(home, FINISHED):
        after = picture(row["image_path"])
        with Image.open(home / "images" / row["mask_path"]) as file:
            canvas = Canvas(after, masks.mask_from_image(file))
        stencil = canvas.stencil
        assert stencil is not None
        crops = [canvas.shown(picture(row["scene"])), canvas.shown(after), stencil]
        found[row["id"]] = shown([picture(row["reference_path"]), *crops])
    return found


def scores(home: Path) -> Scores:
    return {(row["image_id"], row["metric"]): row for row in rows(home, "SELECT * FROM image_scores")}


@dataclass(frozen=True)
class Held:
    """Candidates by what the table has of them: the judge's own marks, none with the reason, or anything else."""

    answered: frozenset[str]
    unanswered: frozenset[str]
    wrong: frozenset[str]


def held(home: Path, oracle: Oracle, judge: str) -> Held:
    """Each finished candidate; its marks are to be the means of what the judge answered about its pictures."""
    found: dict[str, set[str]] = {"answered": set(), "unanswered": set(), "wrong": set()}
    there = scores(home)
    for candidate, pictures in to_be_shown(home).items():
        answers = oracle.said.get(pictures, [])
        given = [there.get((candidate, f"judge_{mark}"), {}) for mark in MARKS]
        # A kill may lose an answer on its way, and one more is given: the marks follow from four of the five.
        expected = [
            [fmean(answer[mark] for answer in some) for mark in MARKS] for some in combinations(answers, READINGS)
        ]
        if [row.get("value") for row in given] in expected:
            kind = "answered"
        elif not expected and all(row.get("value", 0) is None and row["error"] for row in given):
            kind = "unanswered"
        else:
            kind = "wrong"
        found["wrong" if any(row.get("scorer") != judge for row in given) else kind].add(candidate)
    return Held(**{kind: frozenset(candidates) for kind, candidates in found.items()})
