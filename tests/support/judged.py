"""Compares a table of face scores with the answers of the judge in `servers`. Used by tests and benchmarks."""

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
from tests.support.servers import SCORE_NAMES, FaceJudgeServer, hash_images

READINGS = 4
"""The number of answers whose mean is a score."""

FINISHED = """
SELECT candidate.id, candidate.image_path, scene.image_path AS scene, task.reference_path, task.mask_path
FROM edit_candidates candidate
JOIN edit_tasks task ON task.id = candidate.task JOIN label_tasks scene ON scene.id = task.label_task
WHERE candidate.until = candidate.path
"""

Scores = Mapping[tuple[str, str], Mapping[str, Any]]
"""Rows of `image_scores`, by candidate and metric."""


def rows(home: Path, query: str) -> list[dict[str, Any]]:
    """Return the rows of a query on the embedded database; none as long as the table is missing."""
    file = home / "flexy.sqlite"
    if not file.exists():
        return []
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60)) as connection:
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(query)]
        except sqlite3.OperationalError:
            return []


def expected_image_hashes(home: Path) -> dict[str, str]:
    """Return the hash of the images that the judge must receive, by finished candidate (`servers.hash_images`)."""

    def picture(path: str) -> Image.Image:
        with Image.open(home / "images" / path) as file:
            return file.convert("RGB")

    hashes = {}
    for row in rows(home, FINISHED):
        after = picture(row["image_path"])
        with Image.open(home / "images" / row["mask_path"]) as file:
            canvas = Canvas(after, masks.mask_from_image(file))
        stencil = canvas.cropped_mask
        assert stencil is not None
        crops = [canvas.crop(picture(row["scene"])), canvas.crop(after), stencil]
        hashes[row["id"]] = hash_images([picture(row["reference_path"]), *crops])
    return hashes


def scores(home: Path) -> Scores:
    return {(row["image_id"], row["metric"]): row for row in rows(home, "SELECT * FROM image_scores")}


@dataclass(frozen=True)
class JudgeScoreCheck:
    """Candidates by their scores in the table: the judge's own scores, none with an error, or anything else."""

    answered: frozenset[str]
    unanswered: frozenset[str]
    wrong: frozenset[str]


def check_judge_scores(home: Path, judge_server: FaceJudgeServer, fingerprint: str) -> JudgeScoreCheck:
    """Return the finished candidates; scores must be the means of the judge's answers about the same images."""
    groups: dict[str, set[str]] = {"answered": set(), "unanswered": set(), "wrong": set()}
    table = scores(home)
    for candidate, images in expected_image_hashes(home).items():
        answers = judge_server.answers.get(images, [])
        found = [table.get((candidate, f"judge_{name}"), {}) for name in SCORE_NAMES]
        # A kill may lose an answer in transit, and another is given: the scores follow from four of the five.
        expected = [
            [fmean(answer[name] for answer in subset) for name in SCORE_NAMES]
            for subset in combinations(answers, READINGS)
        ]
        if [row.get("value") for row in found] in expected:
            group = "answered"
        elif not expected and all(row.get("value", 0) is None and row["error"] for row in found):
            group = "unanswered"
        else:
            group = "wrong"
        groups["wrong" if any(row.get("scorer") != fingerprint for row in found) else group].add(candidate)
    return JudgeScoreCheck(**{group: frozenset(candidates) for group, candidates in groups.items()})
