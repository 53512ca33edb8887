"""The tables of inpainting: winners, sent predictions, and a database that had edits before."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from flexy_assets.inpaint.plan import InpaintPlan
from flexy_assets.storage import edits, labels
from flexy_assets.storage.labels import PENDING_BATCH, LabelTaskRow, SentPrediction
from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.scores import ScoredImage, record_outcomes
from flexy_assets.storage.sql import utc_now
from resources.database import Database
from resources.label_studio.export import ReviewVerdict

VERDICTS = (ReviewVerdict(("No Issues",), 5, "2025-10-01T10:00:00Z", "7"), ReviewVerdict(("Error", "Other")))


def task(name: str, project: int | None = 3) -> LabelTaskRow:
    return LabelTaskRow(
        labels.label_task_id(project, name), name, project, 100, "CHA-1", "Ada", "Ada at sea", "d" * 64, VERDICTS
    )


def candidate(connection: sa.Connection, of: LabelTaskRow, editor: str, potential: float | None) -> UUID:
    """A selected candidate of a run of its own."""
    run = uuid4()
    edit = edits.EditTaskRow(
        uuid5(run, of.name), run, of.batch, 0, of.name, "", "a.png", "", label_task=of.id, mask_path="m.png"
    )
    edits.save_comparison(connection, run, InpaintPlan(editor, 4, 2.0).to_json(), [edit])
    row: dict[str, Any] = {"id": uuid4(), "task": edit.id, "method": "eacps", "budget": 8, "name": "g0"}
    row |= {"stage": "global", "seed": 1, "moves": (), "strength": 1.0, "until": 8, "path": 8, "nfe": 8}
    edits.add_candidates(connection, [row | {"image_path": f"{run.hex}.png", "image_sha256": None}])
    scored = ScoredImage(row["id"], potential, None if potential is not None else "the judge did not answer")
    record_outcomes(connection, "potential", "a judge", [scored])
    (made,) = [one for one in edits.edit_candidates_of(connection, [of.batch], "eacps") if one.id == row["id"]]
    edits.record_selections(connection, [made])
    return made.id


def reserved(connection: sa.Connection, *tasks: LabelTaskRow) -> list[LabelTaskRow]:
    labels.reserve_batches(connection, tasks, 50)
    return labels.label_tasks_of(connection)


def test_a_task_comes_back_as_it_was_saved(database: Database) -> None:
    with database.begin() as connection:
        assert labels.reserve_batches(connection, [task("a"), task("b")], 50) == 2
        assert labels.reserve_batches(connection, [task("b"), task("c")], 50) == 1, "what is there is left as it is"
        found = labels.label_tasks_of(connection)
        assert [(t.name, t.batch, t.position, t.error) for t in found] == [
            ("a", "3_0000", 0, PENDING_BATCH),
            ("b", "3_0000", 1, PENDING_BATCH),
            ("c", "3_0001", 0, PENDING_BATCH),
        ]
        full = replace(found[0], image_path="labels/a.png", image_sha256="0" * 64, error=None, batch="elsewhere")
        labels.save_label_task(connection, full)
        assert labels.label_tasks_of(connection, ["3_0000"])[0] == replace(full, batch="3_0000")
        assert labels.label_tasks_of(connection, []) == []


def test_the_last_winner_of_each_editor_is_selected(database: Database) -> None:
    with database.begin() as connection:
        one, other, _ = reserved(connection, task("a"), task("b"), task("c"))
        candidate(connection, one, "kontext", 1.0)
    time.sleep(0.002)
    with database.begin() as connection:
        last = candidate(connection, one, "kontext", 2.0)
        failed = candidate(connection, other, "qwen", None)
        found = labels.selected_images(connection)
        assert [(c.task.name, c.plan["editor"], c.candidate) for c in found] == [
            ("a", "kontext", last),
            ("b", "qwen", failed),
        ]
        assert [c.scores for c in found] == [{"potential": 2.0}, {}], "a failed score is none"
        assert labels.selected_images(connection, ["3_0001"]) == []


def test_an_unchanged_prediction_keeps_its_time_and_a_failed_push_the_prediction(database: Database) -> None:
    def sent(connection: sa.Connection) -> SentPrediction:
        (row,) = labels.sent_predictions(connection)
        return row

    with database.begin() as connection:
        (one,) = reserved(connection, task("a"))
        first = SentPrediction(
            one.id, "flexy/kontext", candidate(connection, one, "kontext", 1.0), 0.5, [{"type": "textarea"}]
        )
        first = replace(first, digest="1" * 64, prediction_id=2**40, outcome="created")
        labels.record_prediction(connection, first)
        before = sent(connection)
        assert replace(before, sent_at=None) == first and before.sent_at is not None
        time.sleep(0.002)
        labels.record_prediction(connection, replace(first, outcome="unchanged"))
        assert sent(connection) == replace(before, outcome="unchanged")
        labels.record_prediction(
            connection, SentPrediction(one.id, "flexy/kontext", first.candidate, None, error="gone")
        )
        assert sent(connection) == replace(before, outcome="unchanged", error="gone")
        labels.record_prediction(connection, replace(first, digest="2" * 64, outcome="replaced"))
        after = sent(connection)
        assert after.error is None and after.sent_at is not None and after.sent_at > before.sent_at
        ((_, of, scores),) = labels.reviewed_tasks(connection)
        assert (of.verdicts, scores) == (VERDICTS, {"potential": 1.0})


def test_a_prediction_that_was_never_sent_is_not_reviewed(database: Database) -> None:
    with database.begin() as connection:
        (one,) = reserved(connection, task("a"))
        chosen = candidate(connection, one, "kontext", 1.0)
        labels.record_prediction(connection, SentPrediction(one.id, "flexy/kontext", chosen, None, error="gone"))
        assert labels.reviewed_tasks(connection) == []


def test_refreshing_updates_verdicts_and_ids_alone(database: Database) -> None:
    with database.begin() as connection:
        (one,) = reserved(connection, task("a"))
        again = replace(task("a"), verdicts=(), label_studio_id=None, prompt="another", digest="e" * 64)
        labels.refresh_label_tasks(connection, [again, task("unknown")])
        assert labels.label_tasks_of(connection) == [replace(one, verdicts=())]


def test_edits_that_were_there_before_stay(empty_database: Database) -> None:
    run, edit = uuid4(), uuid4()
    ids = {"run": sa.Uuid, "edit": sa.Uuid, "now": sa.TIMESTAMP}
    values = {"run": run, "edit": edit, "now": utc_now()}
    with empty_database.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(labels.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        for statement in (
            "INSERT INTO edit_runs VALUES (:run, '{}', :now)",
            "INSERT INTO edit_tasks VALUES (:edit, :run, 'b', 0, 'a', 'p', 'a.png', 's')",
        ):
            named = [sa.bindparam(name, values[name], kind) for name, kind in ids.items() if f":{name}" in statement]
            connection.execute(sa.text(statement).bindparams(*named))
    migrate(empty_database)
    with empty_database.begin(reading=True) as connection:
        assert edits.edit_tasks_of(connection, ["b"]) == [edits.EditTaskRow(edit, run, "b", 0, "a", "p", "a.png", "s")]
