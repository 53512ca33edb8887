"""`flexy prompts recover` on FlexyFace's true tables, whose sweeps have titles where prompts should be."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from resources.database import Database
from resources.mini import world
from tests.conftest import Flexy, on_postgres
from tests.support import flexyface

pytestmark = pytest.mark.slow(seconds=30)

PROMPTS, SWEEP_IMAGES, SANDBOX_IMAGES = 20, 70, 4
CANDIDATES = [world.SCENES[number] for number in np.random.default_rng(4).permutation(len(world.SCENES))[:PROMPTS]]


@pytest.fixture
def made_from(empty_database: Database, home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The prompts of a sweep's images by path; the first five have a CLIP score of another text, the third a prompt.

    A sandbox run of one prompt is beside it.
    """
    flexyface.bring(empty_database, home / "pictures", (SWEEP_IMAGES, SANDBOX_IMAGES), 5)
    rng = np.random.default_rng(5)
    order = np.concatenate([rng.permutation(PROMPTS) for _ in range(SWEEP_IMAGES // PROMPTS + 1)])
    scenes = {str(home / "pictures" / f"{place:06d}.png"): CANDIDATES[order[place]] for place in range(SWEEP_IMAGES)}
    with empty_database.begin() as connection:
        connection.exec_driver_sql("UPDATE bench_run_results SET prompt = NULL")
        for place, (path, scene) in enumerate(scenes.items()):
            Image.fromarray(world.draw_image(world.sketch_drawing(scene, rng), rng)).save(path)
            values = {"path": path, "at": flexyface.BEGAN + timedelta(milliseconds=place)}
            values["prompt"] = "the user's own" if place == 2 else None
            statement = "UPDATE bench_run_results SET created_at = :at, prompt = :prompt WHERE image_path = :path"
            connection.execute(sa.text(statement).bindparams(sa.bindparam("at", type_=sa.TIMESTAMP)), values)
    monkeypatch.setenv("FLEXY_DATABASE_URL", empty_database.url.render_as_string(hide_password=False))
    monkeypatch.setenv("FLEXY_IMAGES", str(home / "pictures"))
    monkeypatch.setenv("FLEXY_PROMPT_COLUMN", "bench_runs.prompt")
    return {path: scene.caption for path, scene in scenes.items()}


@pytest.fixture
def candidates(tmp_path: Path) -> Path:
    file = tmp_path / "benchmark_prompts.json"
    entries = [{"prompt": scene.caption, "category": scene.shape} for scene in CANDIDATES]
    file.write_text(json.dumps({"metadata": {}, "prompts": entries}))
    return file


def read_rows(database: Database) -> dict[str, Any]:
    columns = "image_path, prompt, category, prompt_confidence"
    with database.begin(reading=True) as connection:
        return {row.image_path: row for row in connection.execute(sa.text(f"SELECT {columns} FROM bench_run_results"))}


@on_postgres
def test_prompts_are_recovered_and_what_becomes_rescorable_is_named(
    flexy: Flexy, empty_database: Database, made_from: dict[str, str], candidates: Path
) -> None:
    unreadable = list(made_from)[-1]
    Path(unreadable).write_bytes(b"no image")
    refused = flexy("backfill")
    assert refused.exit_code == 2
    assert "it is a title, not a prompt: recover the prompts with flexy prompts recover" in refused.stderr

    tried = json.loads(flexy("prompts", "recover", str(candidates), "--dry-run", "--json").stdout)
    assert not any(row.prompt_confidence for row in read_rows(empty_database).values())
    result = flexy("prompts", "recover", str(candidates), "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert tried == answer | {"dry_run": True}

    rows = read_rows(empty_database)
    sweep = [rows[path] for path in made_from]
    named = [row for row in sweep if row.prompt_confidence and row.prompt]
    assert answer["images"] == SWEEP_IMAGES - 1 == answer["recovered"] + answer["doubtful"] + answer["unreadable"]
    assert (answer["unreadable"], rows[unreadable].prompt_confidence) == (1, 0)
    assert answer["recovered"] == len(named) > 0.5 * SWEEP_IMAGES
    assert all(row.prompt == made_from[row.image_path] and row.category in row.prompt for row in named)
    assert all((row.prompt is not None) == (row.prompt_confidence >= 0.9) for row in sweep if row.prompt_confidence)
    assert (sweep[2].prompt, sweep[2].prompt_confidence) == ("the user's own", None)
    assert all(row.prompt is None for path, row in rows.items() if path not in made_from)

    (entry,) = answer["rescorable"]
    scored = sum(row.prompt is not None for row in (sweep[place] for place in (0, 1, 3, 4)))
    assert (entry["metric"], entry["images"]) == ("clip_score", scored)
    assert entry["command"].startswith("flexy rescore clip_score ") and entry["command"].endswith(" --replace 5")
    # The title is no longer anybody's prompt, and the sandbox run's is its images'.
    assert flexy("rescore", "clip_score").exit_code == 0


@on_postgres
def test_a_file_that_fits_nothing_writes_no_prompt(
    flexy: Flexy, empty_database: Database, made_from: dict[str, str], tmp_path: Path
) -> None:
    others = tmp_path / "others.txt"
    others.write_text("\n".join(f"a photograph of {place} people" for place in range(PROMPTS)))
    result = flexy("prompts", "recover", str(others))
    assert result.exit_code == 1
    assert "no prompt is sure: is" in result.stderr
    rows = read_rows(empty_database).values()
    assert {row.prompt for row in rows} == {None, "the user's own"}
    assert {row.prompt_confidence for row in rows} == {None}
    others.write_text("a photograph of people")
    assert flexy("prompts", "recover", str(others)).exit_code == 2
