"""The drawn faces are where and who they are said to be, and the shipped models tell them on faces never trained on.

`benchmarks.mini_faces` says it with more of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resources.faces import mask_centre
from resources.mini import faces
from resources.mini.evaluation import face_accuracy
from resources.mini.faces import (
    FIRST_HELD_OUT_PERSON,
    KINDS,
    SIDE,
    FaceFigure,
    FaceScene,
    Light,
    Pose,
    draw_faces,
    face_mask,
    make_person,
    make_portrait,
    make_scene,
)
from resources.models import registry
from resources.settings import Settings

PUPIL = (18, 14, 18)


@pytest.fixture(scope="module")
def swapper() -> Iterator[Any]:
    yield registry.find_face_swapper(Settings.read({})).load()


# The world


def test_a_number_is_always_the_same_person_and_no_two_are_alike() -> None:
    assert make_person(7) == make_person(7)
    assert len({make_person(FIRST_HELD_OUT_PERSON + number).features for number in range(2000)}) == 2000
    assert np.array_equal(draw_faces(make_portrait(make_person(7))), draw_faces(make_portrait(make_person(7))))


def test_landmarks_and_box_are_where_the_face_is_drawn() -> None:
    rng = np.random.default_rng(1)
    for number in range(30):
        pose = Pose(
            *(float(v) for v in rng.uniform(100, 150, 2)), 1.0, *(float(v) for v in rng.uniform(-0.35, 0.35, 2))
        )
        figure = FaceFigure(make_person(number), pose, faces.Expression(smile=0.0))
        picture = draw_faces(FaceScene((figure,), light=Light(side=0.0))).astype(int)
        for x, y in figure.landmarks[:2]:
            # The light that glances off the eye is as near as a pixel.
            near = picture[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2]
            assert abs(near - PUPIL).max(axis=2).min() <= 25, "an eye's landmark is on its pupil"
        left, top, right, bottom = figure.box
        marks = figure.landmarks
        assert (marks > (left, top)).all() and (marks < (right, bottom)).all()
        assert marks[0, 0] < marks[1, 0] and marks[3, 0] < marks[4, 0], "left ones first"
        bald = replace(figure, person=replace(figure.person, style="bald"))
        pale, dark = (
            draw_faces(
                FaceScene(
                    (replace(bald, person=replace(bald.person, features=replace(bald.person.features, skin=skin))),)
                )
            )
            for skin in (0.0, 1.0)
        )
        rows, columns = np.nonzero(abs(pale.astype(int) - dark).max(axis=2) > 60)
        assert abs(rows.min() - top) <= 3, "the forehead's upper edge"
        # Ears reach a little over the box.
        assert -1 <= left - columns.min() <= 16 and -1 <= columns.max() - right <= 16


def test_each_kind_of_task_is_what_it_says() -> None:
    rng = np.random.default_rng(2)
    for kind in KINDS * 4:
        task = faces.face_task(kind, rng)
        assert len(task.scene.figures) in {"none": (0,), "several": (2, 3)}.get(kind, (1,))
        if task.figure is None:
            assert kind == "none" and task.ideal is task.scene
            continue
        left, top, right, bottom = task.figure.box
        over = min(left, top, SIDE - right, SIDE - bottom) < 0
        assert over == (kind == "edge")
        wrong, right_one = task.figure.person, task.character
        assert wrong.features != right_one.features
        assert (wrong.style, wrong.hair, wrong.clothes) == (right_one.style, right_one.hair, right_one.clothes)
        assert [f.person.features for f in task.ideal.figures].count(right_one.features) == 1


def test_an_example_is_an_export_with_its_pictures_beside_it(tmp_path: Path) -> None:
    file = faces.write_face_example(tmp_path / "example", 12, seed=3)
    exported = json.loads(file.read_text())
    assert len({task["id"] for task in exported}) == len({task["data"]["id"] for task in exported}) == 12
    verdicts = []
    truths = faces.face_tasks(12, np.random.default_rng(4))
    for task, kind in zip(exported, KINDS * 2, strict=True):
        assert task.keys() == {"id", "data", "annotations", "predictions", "project"}
        data = task["data"]
        pictures = {key: Image.open(file.parent / data[key]) for key in data if key.endswith("_url")}
        assert len(pictures) == 4 and all(picture.size == (SIDE, SIDE) for picture in pictures.values())
        assert mask_centre(pictures["mask_image_url"]) is not None
        (annotation,) = task["annotations"]
        (verdict,) = annotation["result"][0]["value"]["choices"]
        verdicts.append(verdict)
        same = np.array_equal(*(np.asarray(pictures[key].convert("RGB")) for key in ("init_image_url", "image_url")))
        assert same == (verdict != "No Issues")
        assert (verdict == "Error") == (kind == "none")
    assert set(verdicts) == {"No Issues", "Inconsistent Character", "Error"}
    assert sum(task.figure is None for task in truths) == 2
    again = faces.write_face_example(tmp_path / "again", 12, seed=3)
    for path in file.parent.iterdir():
        assert (again.parent / path.name).read_bytes() == path.read_bytes()


def test_a_mask_lies_over_its_face_and_no_other() -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        task = faces.face_task("several", rng)
        assert task.figure is not None
        found = mask_centre(face_mask(task.figure))
        assert found is not None
        away = {
            figure: np.hypot(*(np.add(figure.box[:2], figure.box[2:]) / 2 - found)) for figure in task.scene.figures
        }
        assert min(away, key=lambda figure: away[figure]) is task.figure


# The models


def test_unseen_faces_are_found_and_nothing_else(swapper: Any) -> None:
    rng = np.random.default_rng(6)
    people = [[make_person(FIRST_HELD_OUT_PERSON + 10 * i + j) for j in range(i % 4)] for i in range(80)]
    found = face_accuracy.measure_detection(
        swapper.finder, [make_scene(some, rng, at_edge=i % 5 == 0) for i, some in enumerate(people)]
    )
    assert found.recall >= 0.97
    assert found.false_faces <= 0.03
    assert found.slip <= 2


def test_a_swapped_face_is_the_characters_and_the_rest_stays(swapper: Any) -> None:
    made = [swap for swap in face_accuracy.measure_swaps(swapper, face_accuracy.held_out_faces(24, turn=1)) if swap]
    assert len(made) == 20
    shares = face_accuracy.swap_shares(made)
    assert shares["improved"] >= 0.95
    assert shares["recognised"] >= 0.9
    assert shares["changed_outside"] == 0
