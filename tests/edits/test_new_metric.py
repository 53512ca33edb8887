"""A new metric of edits is one file: it is then in table, columns, report and comparison."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from resources.mini.edits import write_edit_example
from tests.support.overlay import project_with_metric, run_python

METRIC = """
import numpy as np

from resources.metrics import Metric
from resources.metrics.scoring import BatchScores

METRICS = (
    Metric(
        name="brightness",
        label="brightness",
        description="the mean of all pixels",
        low=0,
        high=255,
        role="independent",
        scorer=f"{__name__}:score",
    ),
)


def score(batch):
    values = [float(pixels.mean()) for pixels in batch.images("edited", np.asarray)]
    return [BatchScores({"brightness": values}, "mean")]
"""
DESCRIPTION = """
from flexy_assets.edits.assets import edit_scores

(metadata,) = edit_scores.metadata_by_key.values()
print({column.name: column.description for column in metadata["dagster/column_schema"].columns}["brightness"])
"""


@pytest.mark.slow(seconds=30)
def test_a_new_metric_is_in_table_columns_report_and_comparison(home: Path, tmp_path: Path) -> None:
    project = project_with_metric(tmp_path / "project", "edits", "brightness", METRIC)
    file = write_edit_example(tmp_path / "set", 2, seed=3)
    command = ("compare", "--dataset", str(file), "--steps", "2", "--budget", "2", "--json")
    answer = json.loads(run_python(project, "-m", "flexy_assets.cli.app", *command))
    (row,) = [row for row in answer["metrics"] if row["metric"] == "brightness"]
    assert (row["role"], row["n"]) == ("independent", 2)
    scores = pl.read_parquet(home / "assets" / "edit_scores.parquet")
    assert scores.filter("chosen")["brightness"].is_between(1, 254).all()
    assert scores.filter(~pl.col("chosen"))["brightness"].null_count() > 0, "only winners have independent scores"
    assert "Brightness" in Path(answer["report"]).read_text()
    assert run_python(project, "-c", DESCRIPTION).strip() == "brightness: the mean of all pixels"
