"""Tasks are imported once, with their images and masks; unusable tasks have an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import dagster as dg
import numpy as np
import pytest
from PIL import Image

from flexy_assets.dead_runs import io_manager_with_process_tag
from flexy_assets.inpaint import import_tasks
from flexy_assets.inpaint.import_tasks import ImportResult, TaskImporter, source_from_export
from flexy_assets.partitions import label_batches
from flexy_assets.storage import labels
from flexy_assets.storage.labels import LabelTaskRow
from resources.database import Database
from resources.images import ImageStore
from resources.label_studio.export import ReviewVerdict
from resources.parquet import ParquetTables
from resources.settings import Settings
from tests.conftest import Flexy, on_sqlite
from tests.inpaint.scenes import SIZE, chosen, data, entry, masked, noise, serving, write
from tests.resources.brush_strokes import encode_rle
from tests.support.servers import SIGNATURE, ImageServer


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageServer]:
    with serving() as site:
        monkeypatch.setenv("FLEXY_ALLOWED_HOSTS", site.host)
        yield site


@pytest.fixture
def store(home: Path) -> ImageStore:
    return ImageStore(str(home / "images"))


def imported(database: Database, store: ImageStore, file: Path, batch_size: int = 50) -> ImportResult:
    work = TaskImporter(database, store, Settings.read(), source_from_export(file))
    return work.fetch(work.reserve(batch_size), lambda _: None)


def rows(database: Database) -> dict[str, LabelTaskRow]:
    with database.begin(reading=True) as connection:
        return {task.name: task for task in labels.label_tasks_of(connection)}


def painted(mask: np.ndarray) -> dict[str, Any]:
    value = {"format": "rle", "rle": encode_rle(mask), "brushlabels": ["Face"]}
    result = {"type": "brushlabels", "value": value, "original_width": mask.shape[1], "original_height": mask.shape[0]}
    return {"id": 9, "result": [result | {"from_name": "mask", "to_name": "init"}], "was_cancelled": False}


@on_sqlite
def test_a_task_has_its_pictures_its_mask_and_its_verdicts(
    database: Database, store: ImageStore, site: ImageServer, home: Path
) -> None:
    final = site.url("/final.png", noise(5))
    file = write(home / "export.json", [entry(data(site, 1, image_url=final), [chosen("Error", completed_by=7)])])
    found = imported(database, store, file)
    (task,) = rows(database).values()
    assert found.tasks == [task] and (found.new, found.changed, found.fetched) == (1, 0, 4)
    assert (task.name, task.project, task.label_studio_id, task.batch, task.position) == ("7001", 3, 7101, "3_0000", 0)
    assert (task.character_id, task.character_name, task.prompt) == ("CHA-1", "Ada é", "Ada in a garden")
    assert task.error is None
    assert task.verdicts == (ReviewVerdict(("Error",), 1, "2025-10-01T10:00:00Z", "7"),)
    assert store.content(task.image_path or "", task.image_sha256) == noise(1)
    assert store.content(task.character_path or "", task.character_sha256) == noise(10**6)
    assert store.content(task.final_path or "", task.final_sha256) == noise(5)
    mask = store.read_as_is(task.mask_path or "", task.mask_sha256)
    assert (mask.mode, mask.size, mask.getbbox()) == ("L", SIZE, (4, 4, 7, 12))
    assert set(np.unique(np.asarray(mask))) == {0, 255}
    with database.begin(reading=True) as connection:
        (row,) = labels.label_tasks_table(labels.label_tasks_of(connection)).to_dicts()
    assert (row["batch"], row["task_id"], row["character"], row["verdict"]) == ("3_0000", "7001", "Ada é", "Error")


def test_nothing_is_fetched_twice_whatever_the_signature_of_the_url(
    database: Database, store: ImageStore, site: ImageServer, home: Path
) -> None:
    def export(signature: str) -> Path:
        return write(home / "export.json", [entry(data(site, n, f"{signature}{n}")) for n in range(20)])

    first = imported(database, store, export("one"))
    assert (first.new, first.fetched) == (20, 41)
    before = rows(database)
    again = imported(database, store, export("two"))
    assert (again.new, again.changed, again.fetched) == (0, 0, 0)
    assert rows(database) == before
    assert set(site.requested.values()) == {1} and len(site.requested) == 41


def test_new_tasks_fill_new_batches_and_known_ones_keep_theirs(
    database: Database, store: ImageStore, site: ImageServer, home: Path
) -> None:
    both = [*range(5), *range(9)]
    for numbers in (both[:5], both[5:]):
        write(home / "export.json", [entry(data(site, n)) for n in numbers])
        imported(database, store, home / "export.json", batch_size=2)
    found = rows(database)
    places = [(found[str(7000 + n)].batch, found[str(7000 + n)].position) for n in range(9)]
    assert places == [
        (f"3_000{i}", p) for i, p in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1)]
    ]
    write(home / "other.json", [entry(data(site, 0), project=4), entry(data(site, 1), project=None)])
    other = imported(database, store, home / "other.json")
    assert other.new == 2 and other.batches == ["4_0000", "export_0000"], "a task is of its project"


def test_two_imports_at_once_agree(database: Database, store: ImageStore, site: ImageServer, home: Path) -> None:
    file = write(home / "export.json", [entry(data(site, n)) for n in range(12)])
    start, failed = Barrier(2), []

    def run() -> None:
        start.wait()
        try:
            imported(database, store, file, batch_size=5)
        except Exception as error:
            failed.append(error)

    threads = [Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    found = rows(database).values()
    assert sorted((t.batch, t.position) for t in found) == [(f"3_000{n // 5}", n % 5) for n in range(12)]
    assert {task.error for task in found} == {None}


@on_sqlite
def test_a_changed_task_is_brought_up_to_date_in_its_place(
    database: Database, store: ImageStore, site: ImageServer, home: Path
) -> None:
    write(home / "export.json", [entry(data(site, n)) for n in (1, 2)])
    imported(database, store, home / "export.json")
    before = rows(database)
    site.requested.clear()
    changed = data(site, 1, init_image_url=site.url("/new.png", noise(77)), prompt="Ada at sea")
    write(home / "export.json", [entry(changed), entry(data(site, 2), [chosen("No Issues")])])
    found = imported(database, store, home / "export.json")
    assert (found.new, found.changed, found.fetched) == (0, 1, 1) and site.requested == {"/new.png": 1}
    first, second = rows(database).values()
    assert (first.id, first.batch, first.prompt) == (before["7001"].id, "3_0000", "Ada at sea")
    assert first.digest != before["7001"].digest and store.content(first.image_path or "") == noise(77)
    assert second.digest == before["7002"].digest, "a verdict changes nothing that the task asks for"
    assert second.verdicts == (ReviewVerdict(("No Issues",), 1, "2025-10-01T10:00:00Z"),)
    # A picture that is lost is fetched again, and it alone.
    (home / "images" / (second.image_path or "")).unlink()
    site.requested.clear()
    assert imported(database, store, home / "export.json").fetched == 1
    assert site.requested == {"/scene2.png": 1}


@on_sqlite
def test_a_painted_mask_is_preferred_to_a_picture(
    database: Database, store: ImageStore, site: ImageServer, home: Path
) -> None:
    left, right = np.zeros((24, 40), bool), np.zeros((24, 40), bool)
    left[2:6, 2:6] = right[10:14, 30:36] = True
    both = painted(left)
    both["result"] += painted(right)["result"]
    small = np.zeros((12, 20), bool)
    small[3:9, 5:15] = True
    write(
        home / "export.json",
        [entry(data(site, 1), [both]), entry(data(site, 2, mask_image_url=None), [painted(small)])],
    )
    imported(database, store, home / "export.json")
    first, second = rows(database).values()
    assert (np.asarray(store.read_as_is(first.mask_path or "")) > 127).tolist() == (left | right).tolist()
    assert store.read_as_is(second.mask_path or "").getbbox() == (10, 6, 30, 18), "scaled to the scene"
    assert not any("mask" in path for path in site.requested)


@on_sqlite
def test_an_unusable_task_has_an_error_and_is_tried_again(
    database: Database, store: ImageStore, site: ImageServer, home: Path
) -> None:
    gone = f"http://{site.host}/gone.png?X-Amz-Signature={SIGNATURE}"
    page = site.url("/page.png", b"<!doctype html><p>sign in")
    bad = {
        "scene": data(site, 1, init_image_url=gone),
        "character": data(site, 2, character_image_url=gone),
        "html": data(site, 3, mask_image_url=page),
        "empty": data(site, 4, mask_image_url=site.url("/empty.png", masked(None))),
        "other shape": data(site, 5, mask_image_url=site.url("/tall.png", masked(size=(24, 40)))),
        "inward": data(site, 6, init_image_url="http://169.254.169.254/latest/meta-data"),
        "file": data(site, 7, init_image_url="../../etc/passwd"),
        "no scheme": data(site, 8, init_image_url=f"bucket.example/a.png?X-Amz-Signature={SIGNATURE}"),
        "sizes": data(site, 9),
        "torn": data(site, 10),
        "final": data(site, 11, image_url=gone),
    }
    strokes = painted(np.eye(24, 40, dtype=bool))
    strokes["result"] += painted(np.eye(12, 20, dtype=bool))["result"]
    torn = painted(np.eye(24, 40, dtype=bool))
    torn["result"][0]["value"]["rle"] = torn["result"][0]["value"]["rle"][:30]
    annotated = {"sizes": [strokes], "torn": [torn]}
    write(home / "export.json", [entry(fields, annotated.get(name, ())) for name, fields in bad.items()])
    found = imported(database, store, home / "export.json")
    of = dict(zip(bad, (rows(database)[fields["id"]].error for fields in bad.values()), strict=True))
    what = f"http://{site.host}"
    assert of["scene"] == f"scene image: {what}/gone.png is answered with status 404: check the URL"
    assert of["character"] == f"character image: {what}/gone.png is answered with status 404: check the URL"
    assert of["html"] and "is HTML, not an image" in of["html"]
    assert of["empty"] == "the mask is empty: paint over the region to inpaint"
    assert of["other shape"] == "the mask has 24×40 pixels, the image 40×24: use the image's own mask"
    assert of["inward"] and "inside this machine or its network" in of["inward"]
    assert of["file"] and "leads out of the export's folder" in of["file"]
    assert of["no scheme"] and "'bucket.example/a.png' cannot be read" in of["no scheme"]
    assert of["sizes"] == "the mask is painted on images of different sizes: paint on the scene alone"
    assert of["torn"] == "a brush mask is truncated: paint it again"
    assert of["final"] is None, "it can be worked on without"
    assert found.notes == [f"task 7011: no final image: {what}/gone.png is answered with status 404: check the URL"]
    assert site.requested["/gone.png"] == 1, "a URL is requested once"
    assert SIGNATURE not in repr(rows(database))
    summary = import_tasks.summarize_import(source_from_export(home / "export.json"), found)
    assert [entry["id"] for entry in summary.skipped] == [str(7000 + n) for n in range(1, 11)]
    site.images["/gone.png"] = noise(9)
    assert imported(database, store, home / "export.json").fetched == 1
    assert [rows(database)[str(number)].error for number in (7001, 7002)] == [None, None]


@on_sqlite
def test_pictures_may_lie_beside_the_export(
    database: Database, store: ImageStore, site: ImageServer, home: Path
) -> None:
    folder = home / "set"
    names = {"init_image_url": "scene.png", "mask_image_url": "m/mask.png", "character_image_url": "ada.png"}
    write(folder / "export.json", [entry(data(site, 1, **names))])
    (folder / "m").mkdir()
    for name, content in (("scene.png", noise(1)), ("m/mask.png", masked()), ("ada.png", noise(2))):
        (folder / name).write_bytes(content)
    found = imported(database, store, folder / "export.json")
    assert (found.fetched, rows(database)["7001"].error, site.requested) == (0, None, {})


@on_sqlite
def test_a_scene_that_exif_turns_has_a_mask_of_its_shown_size(
    database: Database, store: ImageStore, site: ImageServer, home: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = home / "set"
    write(folder / "export.json", [entry(data(site, 1, init_image_url="turned.jpg"))])
    Image.new("RGB", (24, 40)).save(folder / "turned.jpg", exif=exif)
    imported(database, store, folder / "export.json")
    task = rows(database)["7001"]
    assert task.error is None and store.read(task.image_path or "").size == SIZE


# The command


def document(result: Any) -> dict[str, Any]:
    return json.loads(result.stdout)


def test_the_command_reports_imported_and_skipped_tasks(flexy: Flexy, site: ImageServer, home: Path) -> None:
    entries = [
        entry(data(site, 1), [chosen("No Issues")]),
        entry(data(site, 2), [chosen("Error"), chosen("Error", "Inconsistent Character")]),
        entry(data(site, 3, mask_image_url=None)),
        entry(data(site, 4, mask_image_url=site.url("/empty.png", masked(None)))),
        {"id": 5, "annotations": []},
        entry(data(site, 1)),
    ]
    file = write(home / "export.json", entries)
    result = flexy("inpaint", "import", str(file), "--json")
    assert result.exit_code == 1, "tasks were skipped"
    assert result.stderr.count("\n") == 1 and "4 skipped: task 7003: it has neither" in result.stderr
    answer = document(result)
    assert (answer["tasks"], answer["new"], answer["changed"], answer["pictures_fetched"]) == (2, 3, 0, 7)
    assert answer["verdicts"] == {"Error": 1, "Error, Inconsistent Character": 1, "No Issues": 1}
    assert [(one["id"], one["entry"]) for one in answer["skipped"]] == [
        ("7003", 3),
        (None, 5),
        ("7001", 6),
        ("7004", None),
    ]
    assert answer["skipped"][0]["reason"] == "it has neither mask_image_url nor a painted mask"
    assert answer["batches"] == ["3_0000"]
    some = flexy("inpaint", "import", str(file), "--task-id", "7002")
    assert some.exit_code == 0 and "1 usable task: 0 new, 0 changed; 0 images fetched" in some.stdout
    run = flexy("inpaint", "run", "--task-id", "7002", "--task-id", "7004", "--json")
    assert run.exit_code == 1 and document(run)["batches"] == ["3_0000"]
    assert document(run)["left"]["7004"] == "the mask is empty: paint over the region to inpaint"
    assert document(run)["left"]["7002"].startswith("no face in the scene") and document(run)["selected"] == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("import",), "nothing to import: give an export (a file), or a project"),
        (("import", "export.json", "--project", "3"), "give either an export"),
        (("import", "nowhere.json"), "cannot read nowhere.json: No such file or directory"),
        (("import", "{export}", "--task-id", "1"), "no task 1 in {export}: name tasks by their data.id"),
        (("import", "{export}", "--batch-size", "0"), "invalid batch_size 0: must be from 1 to 1000"),
        (("import", "--project", "3"), "no Label Studio is configured: set LABEL_STUDIO_URL"),
        (("run",), "no tasks yet: run `flexy inpaint import`"),
        (("push",), "nothing is selected yet"),
    ],
)
def test_an_invalid_option_is_one_line_and_leaves_no_trace(
    flexy: Flexy, site: ImageServer, home: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    file = str(write(home / "export.json", [entry(data(site, 1))]))
    result = flexy("inpaint", *(each.format(export=file) for each in arguments))
    assert result.exit_code == 2
    assert complaint.format(export=file) in result.stderr and result.stderr.count("\n") == 1
    assert not (home / "dagster").exists() and not site.requested


def test_a_run_materializes_the_lineage_of_partitions_with_usable_tasks(
    flexy: Flexy, site: ImageServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flexy_assets.inpaint import command

    made: list[list[str]] = []

    @dg.asset(partitions_def=label_batches, backfill_policy=dg.BackfillPolicy.single_run())
    def swaps(context) -> None:
        made.append(list(context.partition_keys))

    missing = f"http://{site.host}/nothing.png"
    tasks = [data(site, n, **({"init_image_url": missing} if n in (2, 3) else {})) for n in range(6)]
    write(home / "export.json", [entry(task) for task in tasks])
    assert flexy("inpaint", "import", str(home / "export.json"), "--batch-size", "2").exit_code == 1
    monkeypatch.setattr(command, "LINEAGE", (swaps,))
    with_it = dg.Definitions(
        assets=[swaps], resources={"io_manager": io_manager_with_process_tag(ParquetTables(home / "assets"))}
    )
    database = Database(Settings.read().database_url)
    answer = command.run_inpainting([], {}, lambda: with_it, database)
    database.engine.dispose()
    assert made == [["3_0000"], ["3_0002"]]
    assert (answer["tasks"], answer["batches"]) == (6, ["3_0000", "3_0002"])
    assert len(answer["left"]) == 6 and "answered with status 404" in answer["left"]["7002"]
    assert flexy("inpaint", "run", "--task-id", "8").stderr.startswith("flexy: no task 8: import it")


def test_hostile_exports_end_in_reasons(flexy: Flexy, site: ImageServer, home: Path) -> None:
    ok = json.dumps(entry(data(site, 1)))
    deep = "[" * 100_000 + "]" * 100_000
    odd = [entry(data(site, 2) | {"id": "7002", "prompt": "a\0b"}), entry(data(site, 3) | {"init_image_url": 5})]
    file = home / "export.json"
    file.write_text(f"[{ok}, {deep}, {json.dumps(odd)[1:-1]}, {ok[:40]}")
    result = flexy("inpaint", "import", str(file), "--json")
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    answer = document(result)
    assert answer["tasks"] == 1
    assert [one["reason"].split(":")[0] for one in answer["skipped"]][:1] == ["it is nested too deeply"]
    assert len(answer["skipped"]) == 4 and "truncated" in answer["skipped"][-1]["reason"]
    for content in ("{}", "[]", "not JSON", ""):
        file.write_text(content)
        result = flexy("inpaint", "import", str(file))
        assert result.exit_code == 2 and result.stderr.count("\n") == 1, content
