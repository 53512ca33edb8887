"""A Label Studio export: every task that can be worked on is read, every other one is named."""

from __future__ import annotations

import json
import re
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resources.errors import BadInputError
from resources.label_studio import export
from resources.label_studio.export import (
    BrushStroke,
    LabelTask,
    ReviewVerdict,
    TaskProblem,
    parse_tasks,
    read_export_file,
)
from resources.masks import decode_rle
from tests.resources.brush_strokes import encode_rle

MASK = np.eye(4, 6, dtype=bool)


def chosen(*choices: str, **changes: Any) -> dict[str, Any]:
    """An annotation as Label Studio exports it."""
    result = {"from_name": "issues", "to_name": "final", "type": "choices", "value": {"choices": list(choices)}}
    return {"id": 258460, "result": [result], "was_cancelled": False} | changes


def painted(mask: np.ndarray = MASK, **changes: Any) -> dict[str, Any]:
    """An annotation with a brush stroke."""
    value = {"format": "rle", "rle": encode_rle(mask), "brushlabels": ["Face"]}
    result = {"type": "brushlabels", "value": value, "original_width": mask.shape[1], "original_height": mask.shape[0]}
    return chosen() | {"result": [result | {"from_name": "mask", "to_name": "init", "image_rotation": 0} | changes]}


def entry(name: Any = "71651078", annotations: Any = (), **data: Any) -> dict[str, Any]:
    """A task as Label Studio exports it; a field given as None is not there."""
    host = "https://pictures.example"
    fields = {
        "id": name,
        "character_id": "CHA-12",
        "character_name": "Ada é",
        "character_image_url": f"{host}/ada.png",
        "image_url": f"{host}/final.png",
        "init_image_url": f"{host}/init.webp",
        "mask_image_url": f"{host}/mask.png",
        "prompt": "Ada in a garden",
    } | data
    return {
        "id": 2476423,
        "data": {key: value for key, value in fields.items() if value is not None},
        "annotations": list(annotations) if isinstance(annotations, tuple) else annotations,
        "predictions": [],
        "project": 14514,
    }


def write(folder: Path, content: Any) -> Path:
    file = folder / "export.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return file


def test_a_task_is_read_as_it_was_exported(tmp_path: Path) -> None:
    annotations = (
        chosen("Inconsistent Character", updated_at="2025-10-01T10:00:00Z", created_at="x", completed_by=7),
        chosen("Error", was_cancelled=True),
        chosen("No Issues", "Error", id=258461, completed_by={"id": 8, "email": "a@b.example"}),
        chosen(result=[]),
    )
    (task,), problems = read_export_file(write(tmp_path, [entry(annotations=annotations)]))
    host = "https://pictures.example"
    assert problems == []
    assert task == LabelTask(
        id="71651078",
        task=2476423,
        project=14514,
        init_image=f"{host}/init.webp",
        character_image=f"{host}/ada.png",
        mask_image=f"{host}/mask.png",
        final_image=f"{host}/final.png",
        character_id="CHA-12",
        character_name="Ada é",
        prompt="Ada in a garden",
        verdicts=(
            ReviewVerdict(("Inconsistent Character",), 258460, "2025-10-01T10:00:00Z", "7"),
            ReviewVerdict(("No Issues", "Error"), 258461, None, "8"),
        ),
    )
    assert parse_tasks([entry(annotations=annotations)]) == ([task], [])


def test_optional_fields_of_a_task_are_empty() -> None:
    without = entry(5, None, image_url=None, character_id=None, character_name="", prompt=None)
    del without["id"], without["project"]
    (task,), problems = parse_tasks([without])
    assert problems == []
    assert (task.id, task.task, task.project) == ("5", None, None)
    assert (task.final_image, task.character_id, task.character_name, task.prompt) == ("", "", "", "")
    assert (task.strokes, task.verdicts) == ((), ())


def test_a_painted_mask_is_read_and_stands_in_for_a_picture_of_one() -> None:
    (task,), problems = parse_tasks([entry(annotations=(painted(),), mask_image_url=None)])
    assert problems == []
    assert task.mask_image == ""
    assert task.strokes == (BrushStroke(bytes(encode_rle(MASK)), 6, 4, "init"),)
    (stroke,) = task.strokes
    assert np.array_equal(decode_rle(stroke.rle, stroke.width, stroke.height), MASK)


def test_the_mask_is_the_last_annotators_with_all_its_strokes() -> None:
    early, late = painted(), painted(~MASK)
    late["result"] *= 2
    for first, second in ((early, late), (late, early)):
        dated = [first | {"updated_at": "2025-01-01T00:00:00Z"}, second | {"updated_at": "2025-01-01T00:00:00Z"}]
        late_at = next(each for each in dated if each["result"] is late["result"])
        late_at["updated_at"] = "2025-02-01T00:00:00Z"
        (task,), _ = parse_tasks([entry(annotations=tuple(dated))])
        assert [stroke.rle for stroke in task.strokes] == [bytes(encode_rle(~MASK))] * 2
    (task,), _ = parse_tasks([entry(annotations=(early, late))])
    assert len(task.strokes) == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (entry(None), "it has no id"),
        (entry(""), "id is empty"),
        (entry(True), "id is not text"),
        (entry(["a"]), "id is not text"),
        (entry("a\x1b[31mb"), "id has control characters"),
        (entry("a" * 201), "id is over 200 characters"),
        (entry("good"), "its id is that of entry 1: give it another"),
        (entry(init_image_url=None), "it has no init_image_url"),
        (entry(init_image_url=""), "init_image_url is empty"),
        (entry(init_image_url=7), "init_image_url is not text"),
        (entry(init_image_url="https://h/" + "a" * 8000), "init_image_url is over 8000 characters"),
        (entry(character_image_url=None), "it has no character_image_url"),
        (entry(mask_image_url=None), "it has neither mask_image_url nor a painted mask"),
        (entry(mask_image_url=""), "it has neither mask_image_url nor a painted mask"),
        (entry(mask_image_url={"a": 1}), "mask_image_url is not text"),
        (entry(prompt=5), "prompt is not text"),
        (entry(prompt="x" * 2001), "prompt is over 2000 characters"),
        (entry(character_name=["Ada"]), "character_name is not text"),
        (entry() | {"id": -1}, "id is not an integer"),
        (entry() | {"id": 2**64}, "id is not an integer"),
        (entry() | {"id": "2476423"}, "id is not an integer"),
        (entry() | {"project": 1.5}, "project is not an integer"),
        ({"id": 1}, "it has no data: export as JSON, not JSON-MIN"),
        ({"id": 1, "data": [1]}, "it has no data"),
        ([1], "it is not a JSON object"),
        (None, "it is not a JSON object"),
        ("text", "it is not a JSON object"),
    ],
)
def test_a_task_that_cannot_be_worked_on_is_named_and_the_rest_is_read(tmp_path: Path, bad: Any, reason: str) -> None:
    found, (problem,) = read_export_file(write(tmp_path, [entry("good"), bad, entry("last")]))
    assert [task.id for task in found] == ["good", "last"]
    assert (problem.entry, problem.left_out) == (2, True)
    assert reason in problem.reason
    assert str(problem) == f"{f'task {problem.id}' if problem.id else 'entry 2'}: {problem.reason}"
    assert "\n" not in str(problem) and "\x1b" not in str(problem)
    name = bad["data"].get("id") if isinstance(bad, dict) and isinstance(bad.get("data"), dict) else None
    assert problem.id == (name if name in ("good", "71651078") else None)


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [
        ("none", "its annotations are skipped: they are not a list"),
        ((5,), "annotation 1 is skipped: it is not a JSON object"),
        ((chosen(result=None),), "its result is not a list of JSON objects"),
        ((chosen(result=[5]),), "its result is not a list of JSON objects"),
        ((chosen(result=[{"type": "choices", "value": {"choices": "Error"}}]),), "its choices are not a list"),
        ((chosen(result=[{"type": "choices"}]),), "its choices are not a list"),
        ((chosen(5),), "choice is not text"),
        ((chosen("a\0"),), "choice has control characters"),
        ((chosen("Error", id="x"),), "id is not an integer"),
        ((painted(value={"format": "png"}),), "its brush mask is not in the format rle"),
        ((painted(value={"format": "rle", "rle": [256]}),), "its brush mask is not a list of bytes"),
        ((painted(value={"format": "rle", "rle": [True]}),), "its brush mask is not a list of bytes"),
        ((painted(original_width=None),), "it has no original_width"),
        ((painted(original_height=2**70),), "original_height is not an integer"),
        ((painted(image_rotation=90),), "its brush mask is painted on a rotated image"),
    ],
)
def test_an_annotation_that_cannot_be_read_is_named_and_its_task_stands(annotations: Any, reason: str) -> None:
    if isinstance(annotations, tuple):
        annotations = (*annotations, chosen("Error"))
    (task,), (problem,) = parse_tasks([entry(annotations=annotations)])
    assert [verdict.choices for verdict in task.verdicts] == [("Error",)] * isinstance(annotations, tuple)
    assert (problem.id, problem.left_out) == ("71651078", False)
    assert reason in problem.reason


# Files


def test_a_file_that_is_cut_short_gives_the_whole_tasks_before_the_cut_wherever_it_is(tmp_path: Path) -> None:
    tasks = [entry(str(i), (chosen('He said: "}]"\\'), painted()), prompt="é 帽 { [ \\") for i in range(3)]
    for form in ({"ensure_ascii": False}, {"indent": 1}):
        content = json.dumps(tasks, **form).encode()
        ends = [
            len(json.dumps(tasks[: i + 1], **form).encode()) - (1 if len(form) and "indent" not in form else 2)
            for i in range(3)
        ]
        for cut in [*range(1, 40), *range(40, len(content) - 1, 7), len(content) - 1]:
            found, problems = read_export_file(write(tmp_path, content[:cut]))
            assert [task.id for task in found] == [str(i) for i in range(3) if ends[i] <= cut], cut
            (problem,) = problems
            at = re.fullmatch(r"the file is truncated at byte (\d+): the tasks before are kept", str(problem))
            # A letter that is cut itself is not counted.
            assert at and cut - 3 < int(at[1]) <= cut
        assert len(read_export_file(write(tmp_path, content))[0]) == 3


def test_a_broken_file_gives_the_tasks_before(tmp_path: Path) -> None:
    first, last = json.dumps(entry("1")), json.dumps(entry("2"))
    for between, problem in (
        (" ", len(first) + 2),
        (", ] ", len(first) + 3),
        ("]", len(first) + 2),
        (": ", len(first) + 1),
        (",,", len(first) + 2),
    ):
        found, problems = read_export_file(write(tmp_path, f"[{first}{between}{last}]".encode()))
        assert [task.id for task in found] == ["1"]
        assert [str(each) for each in problems] == [
            f"the file is not JSON from byte {problem} on: the tasks before are kept"
        ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"id": 1, "data": {"id": nothing}}', "it is not JSON"),
        ('{"id": 1, "data" {}}', "it is not JSON"),
        ('{"id": NaN}', "it is not JSON"),
        ('{"id": ' + "1" * 10_000 + "}", "it is not JSON"),
        ("[" * 200_000 + "]" * 200_000, "it is nested too deeply"),
        ('{"a":' * 200_000 + "1" + "}" * 200_000, "it is nested too deeply"),
        ('{"id": 1, "data": {"id": "\\ud800"}}', "id has control characters"),
        ("1e999", "it is not a JSON object"),
        ("tru", "it is not JSON"),
    ],
)
def test_an_entry_that_is_no_json_leaves_those_after_it(tmp_path: Path, bad: str, reason: str) -> None:
    content = f"\ufeff [\n{json.dumps(entry('1'))} ,{bad}\t,\r\n{json.dumps(entry('2'))}] \n"
    found, (problem,) = read_export_file(write(tmp_path, content.encode()))
    assert [task.id for task in found] == ["1", "2"]
    assert (problem.entry, problem.reason) == (2, reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not a list of tasks: export it from Label Studio as JSON"),
        (b"{}", "is not a list of tasks"),
        (b'{"tasks": []}', "is not a list of tasks"),
        (b"<html>", "is not a list of tasks"),
        (b"id,prompt\n", "is not a list of tasks"),
        (b"[]", "contains no tasks"),
        (b" [ ] ", "contains no tasks"),
        (b'[{"id": "\xff"}, {"id": 1}]', "is not UTF-8 text from byte 9 on"),
        ("[]".encode("utf-16"), "is not"),
    ],
)
def test_a_file_that_is_no_export_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    file = write(tmp_path, content)
    with pytest.raises(BadInputError) as caught:
        read_export_file(file)
    assert str(file) in str(caught.value) and reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, reason in ((tmp_path / "none.json", "No such file"), (tmp_path, "it is a folder")):
        with pytest.raises(BadInputError) as caught:
            read_export_file(path)
        assert str(path) in str(caught.value) and reason in str(caught.value)
    monkeypatch.setattr(export, "MAX_EXPORT_BYTES", 10)
    with pytest.raises(BadInputError, match="is larger than 10 bytes"):
        read_export_file(write(tmp_path, [entry()]))


def test_ten_thousand_tasks_are_read_in_seconds(tmp_path: Path) -> None:
    file = write(tmp_path, [entry(str(i), (chosen("Error"),)) for i in range(10_000)])
    began = time.monotonic()
    tasks, problems = read_export_file(file)
    assert (len(tasks), problems) == (10_000, [])
    assert time.monotonic() - began < 30


# Digests


def digest(**changes: Any) -> str:
    (task,), _ = parse_tasks([deepcopy(entry(**changes))])
    return task.digest


def test_a_changed_task_has_another_digest() -> None:
    others = [
        digest(prompt="Ada in a house"),
        digest(init_image_url="https://pictures.example/init2.webp"),
        digest(init_image_url="https://pictures.example/init.webp?version=2"),
        digest(mask_image_url="https://pictures.example/mask2.png"),
        digest(character_image_url="https://pictures.example/eve.png"),
        digest(character_name="Eve"),
        digest(character_id="CHA-13"),
        digest(image_url=None),
        digest(name="71651079"),
        digest(annotations=(painted(),)),
        digest(annotations=(painted(~MASK),)),
    ]
    assert len({digest(), *others}) == 12


def test_verdicts_and_signatures_leave_the_digest_as_it_is() -> None:
    assert digest(annotations=(chosen("Error"),)) == digest()
    signed = "https://pictures.example/init.webp?X-Amz-Signature={0}&X-Amz-Date={0}&Expires={0}&v=2"
    assert digest(init_image_url=signed.format(1)) == digest(init_image_url=signed.format(2))
    assert digest(init_image_url=signed.format(1)) == digest(init_image_url="https://pictures.example/init.webp?v=2")
    # Rows hold it: it stays the same from one version to the next.
    assert digest() == "3f58c8f50b365adc9740adb7aae0908ec37410797b5f006827dc9784671a7890"


def test_addresses_are_not_shown_with_a_task() -> None:
    (task,), _ = parse_tasks([entry(init_image_url="https://h/a?X-Amz-Signature=opensesame")])
    assert "opensesame" not in f"{task} {task!r}"
    assert str(TaskProblem(3, None, "it is not JSON")) == "entry 3: it is not JSON"
