"""The whole sweep through the command, on each of the two databases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resources.database import Database
from tests.conftest import Flexy

pytestmark = pytest.mark.slow(seconds=50)


def test_the_sweep_is_made_once_and_its_password_kept_nowhere(
    flexy: Flexy, home: Path, empty_database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FLEXY_DATABASE_URL", empty_database.url.render_as_string(hide_password=False))

    def answer(*arguments: str) -> dict[str, Any]:
        result = flexy(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.stdout))

    new = ("sweep", "new", "--engine", "mini_sdxl", "--images", "4", "--steps", "1:2", "--batch-size", "2")
    run = answer(*new)["run"]
    first, again = answer("sweep", "run", run), answer("sweep", "run", run)
    assert (first["images_made"], first["scores_computed"]) == (4, 16)
    assert (again["images_made"], again["scores_computed"]) == (0, 0)
    (entry,) = answer("status")["runs"]
    assert (entry["images"], entry["target"]) == (4, 4)
    assert entry["hps_v2_score"] == {"scored": 4, "missing": 0, "failed": 0}
    assert answer("export", "--out", str(tmp_path / "scores.csv"))["rows"] == 4
    password = str(empty_database.url.password or "")
    if password:
        told = [p for p in home.rglob("*") if p.is_file() and password.encode() in p.read_bytes()]
        assert not told, "the password is in Dagster's events or logs"
