"""A new metric of inpainting is one file: it is then in the table and in the review."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sqlalchemy as sa

from flexy_assets.storage import labels
from flexy_assets.storage.labels import SentPrediction
from flexy_assets.storage.tables import image_scores
from resources.database import Database
from resources.mini.faces import write_face_example
from resources.settings import Settings
from tests.support.overlay import project_with_metric, run_python

METRIC = """
import numpy as np

from resources.metrics import Metric
from resources.metrics.scoring import BatchScores

METRICS = (
    Metric(
        name="darkness",
        label="darkness",
        description="255 minus the mean of the pixels around the mask",
        low=0,
        high=255,
        scorer=f"{__name__}:score",
    ),
)


def score(batch):
    values = [255 - float(image.mean()) for image in batch.images("edited", np.asarray)]
    return [BatchScores({"darkness": values}, "mean")]
"""


@pytest.mark.slow(seconds=30)
def test_a_new_metric_is_in_the_table_and_in_the_review(home: Path, tmp_path: Path) -> None:
    project = project_with_metric(tmp_path / "project", "inpaint", "darkness", METRIC)
    file = write_face_example(tmp_path / "example", 3, seed=1)
    flexy = ("-m", "flexy_assets.cli.app", "inpaint")
    run_python(project, *flexy, "import", str(file))
    answer = json.loads(run_python(project, *flexy, "run", "--json"))
    database = Database(Settings.read().database_url)
    with database.begin() as connection:
        rows = connection.execute(sa.select(image_scores.c.value).where(image_scores.c.metric == "darkness")).all()
        selected = labels.selected_images(connection)
        # As if pushed.
        for image in selected:
            sent = SentPrediction(image.task.id, "flexy", image.candidate, 0.5, outcome="created")
            labels.record_prediction(connection, sent)
    database.engine.dispose()
    assert len(rows) == len(selected) == len(answer["selected"]) > 0
    assert all(0 < image.scores["darkness"] < 255 for image in selected)
    reviewed = json.loads(run_python(project, *flexy, "review", "--json"))
    assert "darkness" in [row["metric"] for row in reviewed["agreement"]]
