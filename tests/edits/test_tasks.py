"""An edit set: every line that can be edited is, every other one is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flexy_assets.edits import tasks
from flexy_assets.edits.tasks import EditTask, read_tasks
from resources import json_lines
from resources.errors import BadInputError
from resources.prompts import MAX_PROMPT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An edit set's folder with two pictures, and one beside it that is none of its business."""
    folder = tmp_path / "set"
    (folder / "more").mkdir(parents=True)
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for path in (folder / "bear.png", folder / "more" / "rabbit é.png", tmp_path / "outside.png"):
        picture.save(path)
    return folder


def line(**changes: Any) -> str:
    return json.dumps({"id": "1", "image_path": "bear.png", "prompt": "make it wear a hat"} | changes)


def write(folder: Path, *lines: str | bytes) -> Path:
    file = folder / "edits.jsonl"
    file.write_bytes(b"\n".join(each.encode() if isinstance(each, str) else each for each in lines))
    return file


def test_tasks_are_read_as_written(folder: Path) -> None:
    file = write(
        folder,
        b"\xef\xbb\xbf" + line().encode(),
        "",
        "   \r",
        line(id=2, image_path="more/rabbit é.png", prompt=" add a 帽子\nand a scarf ", note="ignored") + "\r",
        line(id="c"),
    )
    found, skipped = read_tasks(file)
    assert skipped == []
    assert found == [
        EditTask("1", "bear.png", "make it wear a hat", 1),
        EditTask("2", "more/rabbit é.png", "add a 帽子\nand a scarf", 4),
        EditTask("c", "bear.png", "make it wear a hat", 5),
    ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ('{"id": ' + "1" * 10_000 + "}", "it is not JSON"),
        ("[1]", "it is not a JSON object"),
        ("null", "it is not a JSON object"),
        (b'{"id": "\xff"}', "it is not UTF-8 text"),
        (line(prompt="x" * 2_000_000), "it is longer than 1000000 bytes"),
        ("{}", "it has no id"),
        (line(id=None), "it has no id"),
        (line(id=""), "id is empty"),
        (line(id=True), "id is not text"),
        (line(id=1.5), "id is not text"),
        (line(id=["a"]), "id is not text"),
        (line(id="a\0b"), "id has control characters"),
        (line(id="a" * 201), "id is over 200 characters"),
        (line(prompt="  "), "prompt is empty"),
        (line(prompt=5), "prompt is not text"),
        (line(prompt="\x1b[31mred"), "prompt has control characters"),
        (line(prompt="\ud800"), "prompt has control characters"),
        (line(prompt="x" * (MAX_PROMPT + 1)), f"prompt is over {MAX_PROMPT} characters"),
        (line(image_path=""), "image_path is empty"),
        (line(image_path={"a": 1}), "image_path is not text"),
        (line(image_path="missing.png"), "No such file"),
        (line(image_path="x" * 900), "too long"),
        (line(image_path="more"), "it is a folder"),
        (line(image_path="broken.png"), "cannot decode image"),
        (line(image_path="link.png"), "leads outside"),
        (line(image_path="../outside.png"), "leads outside"),
        (line(image_path="/etc/hostname"), "leads outside"),
        (line(id="good"), "duplicate id 'good': line 1 has it already"),
    ],
)
def test_an_invalid_line_is_named_and_the_rest_is_read(folder: Path, bad: str | bytes, reason: str) -> None:
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    found, skipped = read_tasks(write(folder, line(id="good"), bad, line(id="last")))
    assert [(task.id, task.line) for task in found] == [("good", 1), ("last", 3)]
    (left,) = skipped
    assert left.line == 2
    assert reason in left.reason and "\n" not in left.reason
    assert str(left) == f"line 2: {left.reason}"


def test_skipped_lines_are_in_order(folder: Path) -> None:
    lines = [
        line(id=str(i), image_path="no.png" if i % 3 == 0 else "bear.png", prompt=" " * (i % 3 == 1) or "a")
        for i in range(30)
    ]
    found, skipped = read_tasks(write(folder, *lines))
    assert [task.line % 3 for task in found] == [0] * 10
    assert [each.line for each in skipped] == sorted(each.line for each in skipped)
    assert len(skipped) == 20


def test_a_huge_image_is_skipped_unread(folder: Path) -> None:
    with (folder / "huge.png").open("wb") as file:
        os.truncate(file.fileno(), tasks.MAX_IMAGE_BYTES + 1)
    found, skipped = read_tasks(write(folder, line(image_path="huge.png"), line(id="2")))
    assert [task.id for task in found] == ["2"]
    assert "must be at most" in skipped[0].reason


def test_a_line_as_long_as_may_be_is_read(folder: Path) -> None:
    longest = line(note="x" * (json_lines.MAX_LINE_BYTES - len(line(note="")) - 1))
    assert len(longest) + 1 == json_lines.MAX_LINE_BYTES
    found, skipped = read_tasks(write(folder, longest, line(id="2"), longest + "x" * 10, line(id="3")))
    assert [task.id for task in found] == ["1", "2", "3"]
    assert [each.line for each in skipped] == [3]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_with_no_task_in_it_is_named(folder: Path, content: bytes) -> None:
    file = write(folder, content)
    with pytest.raises(BadInputError, match="no tasks in"):
        read_tasks(file)


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    for path, reason in ((folder / "none.jsonl", "No such file"), (folder, "Is a directory")):
        with pytest.raises(BadInputError) as caught:
            read_tasks(path)
        assert str(path) in str(caught.value) and reason in str(caught.value)
