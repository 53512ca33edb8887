"""From a real Label Studio and back to it: tasks in, predictions out, verdicts in again, and no secret anywhere.

All that needs the server is in this file, because each test process would start one of its own.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
import sqlalchemy as sa

from flexy_assets.execution import dagster_instance, run_assets
from flexy_assets.inpaint import assets
from flexy_assets.scoring.work import Work
from flexy_assets.storage import labels
from flexy_assets.storage.labels import SentPrediction
from flexy_assets.storage.tables import metadata
from resources.database import Database
from resources.label_studio.client import LabelStudioClient
from resources.settings import Settings
from sensors.label_studio import check_project, new_labels
from tests.conftest import Flexy
from tests.inpaint.scenes import choose, data, entry, serving, write
from tests.support.label_studio import TOKEN, Server
from tests.support.servers import SIGNATURE, ImageServer

pytestmark = pytest.mark.slow(seconds=60)

FORM = """
<View>
  <Image name="init" value="$init_image_url"/>
  <Choices name="issues" toName="init" choice="multiple">
    <Choice value="No Issues"/><Choice value="Inconsistent Character"/><Choice value="Error"/>
  </Choices>
  <TextArea name="result" toName="init"/>
</View>
"""
BARE = FORM.replace('<TextArea name="result" toName="init"/>', "")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageServer]:
    with serving() as site:
        monkeypatch.setenv("FLEXY_ALLOWED_HOSTS", site.host)
        yield site


@pytest.fixture
def studio(label_studio_server: Server, monkeypatch: pytest.MonkeyPatch) -> LabelStudioClient:
    monkeypatch.setenv("LABEL_STUDIO_URL", label_studio_server.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    return LabelStudioClient(label_studio_server.url, TOKEN)


@pytest.fixture
def project(studio: LabelStudioClient) -> Callable[..., int]:
    """`project(tasks, form)` makes a project with these tasks' data."""

    def make(tasks: list[dict[str, Any]], form: str = FORM) -> int:
        number: int = studio.call("POST", "api/projects/", {"title": "Faces to review", "label_config": form})["id"]
        studio.call("POST", f"api/projects/{number}/import", [{"data": fields} for fields in tasks])
        return number

    return make


@pytest.fixture
def results(home: Path) -> Iterator[Database]:
    database = Database(Settings.read().database_url)
    yield database
    database.engine.dispose()


def document(result: Any) -> dict[str, Any]:
    assert result.stdout, result.stderr
    return json.loads(result.stdout)


def uploads(studio: LabelStudioClient, project: int) -> int:
    return len(studio.call("GET", f"api/projects/{project}/file-uploads?all=true"))


def held(studio: LabelStudioClient, project: int) -> dict[str, list[dict[str, Any]]]:
    """What the server has of each task, by its name."""
    return {task["data"]["id"]: studio.predictions(task["id"]) for task in studio.tasks(project)}


def unpacked(path: Path) -> bytes:
    """What a file holds that its bytes do not show: a Parquet table, and what Dagster keeps compressed."""
    if path.suffix == ".parquet":
        return pl.read_parquet(path).write_csv().encode()
    found = b""
    if path.suffix == ".db":
        with closing(sqlite3.connect(path)) as connection:
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for row in connection.execute(f'SELECT * FROM "{name}"'):
                    found += b"".join(zlib.decompress(cell) for cell in row if isinstance(cell, bytes))
    return found


def materialise(*chosen: dg.AssetsDefinition) -> dg.ExecuteInProcessResult:
    from flexy_assets.definitions import build_definitions

    defs = build_definitions(Settings.read())

    with dagster_instance(Settings.read()) as instance:
        return run_assets(instance, defs, chosen)


def test_tasks_go_in_predictions_go_out_each_once_and_no_secret_is_anywhere(
    flexy: Flexy,
    site: ImageServer,
    studio: LabelStudioClient,
    project: Callable[..., int],
    results: Database,
    home: Path,
) -> None:
    number = project([data(site, n) for n in range(3)] + [data(site, 9, init_image_url=f"{site.url('/x', b'')}9")])
    shown = []

    def told(*arguments: str) -> dict[str, Any]:
        result = flexy("inpaint", *arguments, "--json")
        shown.append(result.output + result.stderr)
        return document(result) | {"status": result.exit_code}

    first = told("import", "--project", str(number), "--batch-size", "2")
    assert (first["tasks"], first["new"], first["pictures_fetched"], first["status"]) == (3, 4, 8, 1)
    assert [one["id"] for one in first["skipped"]] == ["7009"]
    again = told("import", "--project", str(number))
    assert (again["tasks"], again["new"], again["pictures_fetched"]) == (3, 0, 0)
    # The same tasks from an export are the same.
    tasks = list(studio.tasks(number))
    file = write(home.parent / f"{home.name}-export" / "export.json", tasks)
    assert told("import", str(file))["new"] == 0

    candidates = choose(results, [40.0, 20.0, None, 0.0])
    pushed = told("push")
    assert [pushed[name] for name in ("created", "replaced", "unchanged", "unsent", "status")] == [4, 0, 0, 0, 0]
    server = held(studio, number)
    assert [p["score"] for (p,) in server.values()] == [1, 0.5, None, 0]
    ((one,), *_) = server.values()
    (address,) = one["result"][0]["value"]["text"]
    assert one["model_version"] == "flexy/mini_instruct" and address.startswith(f"{studio.url}/data/upload/{number}/")
    assert uploads(studio, number) == 4
    with results.begin(reading=True) as connection:
        rows = {sent.candidate: sent for sent in labels.sent_predictions(connection)}
    assert [rows[candidate].outcome for candidate in candidates] == ["created"] * 4
    assert rows[candidates[0]].prediction_id == one["id"]

    second = told("push")
    assert [second[name] for name in ("created", "replaced", "unchanged", "unsent")] == [0, 0, 4, 0]
    assert held(studio, number) == server and uploads(studio, number) == 4
    with results.begin(reading=True) as connection:
        assert {sent.candidate: sent.sent_at for sent in labels.sent_predictions(connection)} == {
            candidate: sent.sent_at for candidate, sent in rows.items()
        }, "when it was first sent stays"
    choose(results, [30.0] * 4, seed=9)
    third = told("push")
    assert (third["created"], third["replaced"]) == (0, 4)
    assert {name: [p["id"] for p in of] for name, of in held(studio, number).items()} == {
        name: [p["id"] for p in of] for name, of in server.items()
    }

    # What the token opens, and what signs an address, is for this process alone.
    folders = [path for path in home.rglob("*") if path.is_file()]
    assert {"flexy.sqlite", "label_tasks.parquet", "label_predictions.json"} <= {path.name for path in folders}
    assert any("dagster" in path.parts and path.suffix == ".db" for path in folders), "events"
    kept = {path: path.read_bytes() + unpacked(path) for path in folders}
    assert b"7009" in kept[home / "assets" / "label_tasks.parquet"], "what is packed is seen"
    for secret in (TOKEN, SIGNATURE):
        assert [path for path, content in kept.items() if secret.encode() in content] == []
        assert [text for text in shown if secret in text] == []
        with results.begin(reading=True) as connection:
            for table in metadata.sorted_tables:
                assert secret not in repr(connection.execute(sa.select(table)).all()), table.name


def test_a_form_without_a_text_field_gets_the_score_alone_and_the_file_can_be_imported(
    flexy: Flexy,
    site: ImageServer,
    studio: LabelStudioClient,
    project: Callable[..., int],
    results: Database,
    home: Path,
) -> None:
    number = project([data(site, n) for n in range(3)], BARE)
    assert flexy("inpaint", "import", "--project", str(number)).exit_code == 0
    choose(results, [40.0, 20.0, None])
    only = flexy("inpaint", "push", "--file-only", "--model-version", "mine")
    assert only.exit_code == 0 and "nothing sent" in only.stdout
    assert held(studio, number) == {"7000": [], "7001": [], "7002": []}
    written = json.loads((home / "assets" / "label_predictions.json").read_text())
    assert studio.call("POST", f"api/projects/{number}/import/predictions", written) == {"created": 3}
    assert [(p["model_version"], p["score"], p["result"]) for (p,) in held(studio, number).values()] == [
        ("mine", 1, []),
        ("mine", 0.5, []),
        ("mine", None, []),
    ]
    pushed = document(flexy("inpaint", "push", "--model-version", "mine", "--json"))
    assert pushed["unchanged"] == 3, "what was imported is what would have been sent"


def test_an_error_of_one_task_does_not_stop_the_others(
    flexy: Flexy,
    site: ImageServer,
    studio: LabelStudioClient,
    project: Callable[..., int],
    results: Database,
    home: Path,
) -> None:
    number = project([data(site, n) for n in range(4)])
    assert flexy("inpaint", "import", "--project", str(number)).exit_code == 0
    choose(results, [40.0, 30.0, 20.0, 10.0])
    first, *_ = studio.tasks(number)
    studio.call("DELETE", f"api/tasks/{first['id']}/")
    with results.begin(reading=True) as connection:
        lost = labels.selected_images(connection)[1]
    (home / "images" / lost.image_path).write_bytes(b"another")
    result = flexy("inpaint", "push", "--json")
    assert (
        result.exit_code == 1 and result.stderr.count("\n") == 1 and "2 predictions could not be sent" in result.stderr
    )
    answer = document(result)
    assert (answer["created"], answer["unsent"]) == (2, 2)
    with results.begin(reading=True) as connection:
        errors = {sent.task: sent.error for sent in labels.sent_predictions(connection) if sent.error}
    assert len(errors) == 2 and "SHA-256 differs" in (errors[lost.task.id] or "")
    # What is wrong with the token is no task's fault: nothing is recorded, and it is said once.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
        result = flexy("inpaint", "push")
    assert result.exit_code == 1 and "check LABEL_STUDIO_API_KEY" in result.stderr and result.stderr.count("\n") == 1


def test_without_a_server_a_push_says_so_in_one_line(
    flexy: Flexy, site: ImageServer, results: Database, home: Path
) -> None:
    write(home / "export.json", [entry(data(site, n)) for n in range(2)])
    assert flexy("inpaint", "import", str(home / "export.json")).exit_code == 0
    choose(results, [40.0, 20.0])
    result = flexy("inpaint", "push")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "no Label Studio is configured" in result.stderr
    answer = document(flexy("inpaint", "push", "--file-only", "--json"))
    (first, _) = json.loads(Path(answer["file"]).read_text())
    assert (first["task"], first["project"], first["score"]) == (7100, 3, 1)


def test_the_review_reads_verdicts_on_sent_images(
    flexy: Flexy,
    site: ImageServer,
    studio: LabelStudioClient,
    project: Callable[..., int],
    results: Database,
    home: Path,
) -> None:
    number = project([data(site, n) for n in range(10)])
    tasks = list(studio.tasks(number))

    def annotate(task: dict[str, Any], choice: str) -> None:
        result = {"from_name": "issues", "to_name": "init", "type": "choices", "value": {"choices": [choice]}}
        studio.call("POST", f"api/tasks/{task['id']}/annotations/", {"result": [result]})

    for task in tasks[:2]:
        annotate(task, "Inconsistent Character")
    before = document(flexy("inpaint", "import", "--project", str(number), "--json"))
    assert before["verdicts"] == {"Inconsistent Character": 2}
    choose(results, [20.0 + n for n in range(10)])
    # As if pushed: what the server is sent is no part of this.
    with results.begin() as connection:
        for one in labels.selected_images(connection):
            labels.record_prediction(
                connection, SentPrediction(one.task.id, "flexy", one.candidate, 0.5, outcome="created")
            )
    for place, task in enumerate(tasks):
        annotate(task, "No Issues" if place >= 5 else "Error")
    result = materialise(assets.label_review)
    rows = {row["metric"]: row for row in result.output_for_node("label_review").to_dicts()}
    assert (rows["potential"]["n"], rows["potential"]["auc"], rows["potential"]["threshold"]) == (10, 1, 25)
    assert (rows["identity"]["auc"], rows["identity"]["true_positive"]) == (0.5, 5)
    (event,) = result.asset_materializations_for_node("label_review")
    assert event.metadata["excluded"].value == "2 verdicts older than the image"
    assert "| Inconsistent Character | 2 |" in str(event.metadata["verdicts"].value)
    # A project that is not there leaves what was imported, and is named.
    with results.begin() as connection:
        connection.execute(sa.text("UPDATE label_tasks SET project = 999999"))
    (event,) = materialise(assets.label_review).asset_materializations_for_node("label_review")
    assert "verdicts of project 999999 are those of the last import" in str(event.metadata["notes"].value)


def test_the_sensor_asks_for_an_import_when_there_is_something_new(
    flexy: Flexy,
    site: ImageServer,
    studio: LabelStudioClient,
    project: Callable[..., int],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number = project([data(site, 1)])
    monkeypatch.setenv("FLEXY_LABEL_STUDIO_PROJECT", str(number))
    settings = Settings.read()
    with dagster_instance(settings) as instance:
        cursor: str | None = None

        def tick() -> Any:
            nonlocal cursor
            context = dg.build_sensor_context(instance, cursor=cursor, resources={"work": Work.from_settings(settings)})
            answer = new_labels(settings)(context)
            cursor = context.cursor
            return answer

        first = tick()
        assert isinstance(first, dg.RunRequest)
        assert first.run_config == {"ops": {"label_tasks": {"config": {"project": number}}}}
        # Until a run has succeeded it is asked for again, a few times.
        assert tick().run_key == first.run_key
        from flexy_assets.definitions import build_definitions

        defs = build_definitions(Settings.read())

        def run(request: dg.RunRequest) -> None:
            job = defs.resolve_implicit_global_asset_job_def()
            selected = [assets.label_tasks.key]
            job.execute_in_process(
                instance=instance, asset_selection=selected, run_config=request.run_config, tags=request.tags
            )

        run(first)
        assert tick().skip_message == "no new tasks"
        studio.call("POST", f"api/projects/{number}/import", [{"data": data(site, 2)}])
        second = tick()
        assert isinstance(second, dg.RunRequest) and second.run_key != first.run_key
        run(second)
        assert tick().skip_message == "no new tasks"
        assert instance.get_dynamic_partitions("label_batches") == [f"{number}_0000", f"{number}_0001"]
        state = check_project(studio, number)
        (task, _) = studio.tasks(number)
        result = {"from_name": "issues", "to_name": "init", "type": "choices", "value": {"choices": ["Error"]}}
        studio.call("POST", f"api/tasks/{task['id']}/annotations/", {"result": [result]})
        assert check_project(studio, number) != state, "a verdict is news"
        for _ in range(3):
            third = tick()
            failed = dg.DagsterRun("labels", status=dg.DagsterRunStatus.FAILURE, tags=dict(third.tags))
            instance.add_run(failed)
        assert tick().skip_message.startswith("the import of new tasks failed 3 times")
