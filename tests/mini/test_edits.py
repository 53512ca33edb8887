"""Edits of the drawn world, and the rule that says what became of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from resources.mini.edits import CHANGES, Edit, EditTruth, compose_edit, edit_truth, is_held_out, write_edit_example
from resources.mini.reader import read_drawing
from resources.mini.world import ATTRIBUTES, SIDE, Drawing, DrawnScene, Flaws, difference, draw_image

SCENE = DrawnScene(shape="circle", colour="red", background="green", size="large", position="middle")
SOURCE = Drawing(SCENE, 31.0, 34.0, 16.5, (4, -3, 2))


def edited(prompt: str, **changes: Any) -> EditTruth:
    """What became of the source where the picture is it with these changes of scene or drawing."""
    scene = {name: value for name, value in changes.items() if name in ATTRIBUTES}
    others = {name: value for name, value in changes.items() if name not in ATTRIBUTES}
    shown = replace(SOURCE, scene=replace(SCENE, **scene), **others)
    return edit_truth(draw_image(SOURCE), prompt, draw_image(shown))


def edits(count: int, held_out: bool = True) -> list[Edit]:
    rng = np.random.default_rng(5)
    return [compose_edit(kind, rng, held_out) for kind in CHANGES for _ in range(count)]


@pytest.mark.parametrize("held_out", [True, False])
def test_an_edit_changes_what_its_prompt_says_and_nothing_else(held_out: bool) -> None:
    for edit in edits(20, held_out):
        source, target = edit.source, edit.target
        changed = {name for name in ATTRIBUTES if getattr(source.scene, name) != getattr(target.scene, name)}
        assert changed == set(CHANGES[edit.kind])
        assert changed <= edit.requested.attributes.keys()
        assert all(edit.requested.attributes_shown_in(target.scene).values())
        assert (source.y, source.shade, source.flaws) == (target.y, target.shade, Flaws())
        assert (source.x == target.x) is ("position" not in changed)
        assert (source.radius == target.radius) is ("size" not in changed)
        assert is_held_out(source.scene, edit.requested) is held_out


def test_a_perfect_edit_is_carried_out_and_preserved_and_the_source_is_not_an_edit() -> None:
    for edit in edits(20):
        source, target = draw_image(edit.source), draw_image(edit.target)
        perfect, nothing = edit_truth(source, edit.prompt, target), edit_truth(source, edit.prompt, source)
        assert perfect.carried_out and perfect.preserved
        assert perfect.score >= 0.85
        assert not nothing.carried_out
        assert nothing.score == 0


def test_a_drawings_place_and_radius_are_read_to_half_a_pixel() -> None:
    for edit in edits(20):
        drawing = read_drawing(draw_image(edit.source)).drawing
        assert drawing is not None
        for name in ("x", "y", "radius"):
            assert abs(getattr(drawing, name) - getattr(edit.source, name)) <= 0.5
        assert np.abs(np.subtract(drawing.shade, edit.source.shade)).max() <= 1


def test_a_wrong_colour_or_shape_is_not_carried_out() -> None:
    right = edited("a blue circle", colour="blue")
    assert right.carried_out and right.preserved
    for wrong in ({"colour": "white"}, {"colour": "blue", "shape": "square"}):
        truth = edited("a blue circle", **wrong)
        assert not truth.carried_out
        assert truth.preserved
        assert truth.score < right.score


@pytest.mark.parametrize(
    "harm", [{"x": 35.0}, {"y": 30.0}, {"radius": 14.5}, {"background": "white"}, {"shade": (40, 40, 40)}]
)
def test_what_moves_grows_or_gets_another_ground_is_not_preserved(harm: dict[str, Any]) -> None:
    harmed = edited("a blue circle", colour="blue", **harm)
    assert harmed.carried_out
    assert not harmed.preserved
    assert harmed.score < 0.9 * edited("a blue circle", colour="blue").score


def test_what_the_prompt_changes_need_not_be_preserved() -> None:
    wider = "a large red circle on the right of a green background"
    assert edited(wider, position="right", x=40.0).preserved
    assert edited(wider, position="right", x=43.0).preserved
    assert not edited(wider, position="right", x=40.0, radius=14.5).preserved
    assert edited("a small red circle in the middle of a green background", size="small", radius=10.0).preserved
    assert edited("a red circle on a blue background", background="blue").preserved


def test_half_of_what_was_asked_scores_between_nothing_and_all() -> None:
    half, whole = edited("a blue square", colour="blue"), edited("a blue square", colour="blue", shape="square")
    assert 0 < half.score < 0.6 * whole.score
    assert not half.carried_out
    assert whole.carried_out and whole.preserved


def test_the_further_from_the_ideal_the_lower_the_score() -> None:
    scores = [edited("a blue circle", colour="blue", x=31.0 + moved).score for moved in (0, 1, 2, 4, 6)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 1.5 * scores[-1]


def test_a_prompt_that_the_source_fulfils_asks_to_leave_it_as_it_is() -> None:
    left = edited("a red circle")
    assert left.carried_out and left.preserved
    assert left.score > 0.9


def test_debris_on_the_ground_is_not_preserved() -> None:
    picture = draw_image(replace(SOURCE, scene=replace(SCENE, colour="blue")))
    picture[4:14, 2:62] = 255
    truth = edit_truth(draw_image(SOURCE), "a blue circle", picture)
    assert truth.carried_out
    assert not truth.preserved


def test_a_blank_picture_scores_nothing_and_what_cannot_be_judged_is_said() -> None:
    blank: NDArray[np.uint8] = np.full((SIDE, SIDE, 3), 160, dtype=np.uint8)
    assert edit_truth(draw_image(SOURCE), "a blue circle", blank) == EditTruth(False, False, 0.0)
    with pytest.raises(ValueError, match="it shows no shape"):
        edit_truth(blank, "a blue circle", draw_image(SOURCE))
    with pytest.raises(ValueError, match="must be a caption"):
        edit_truth(draw_image(SOURCE), "make it night", draw_image(SOURCE))


def test_an_example_set_holds_all_that_the_truth_needs(tmp_path: Path) -> None:
    file = write_edit_example(tmp_path / "example", 12, seed=3)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len({line["id"] for line in lines}) == 12
    rng = np.random.default_rng(3)
    for line, kind in zip(lines, [*CHANGES] * 2, strict=True):
        edit = compose_edit(kind, rng, held_out=True)
        assert line.keys() == {"id", "image_path", "prompt"}
        source = np.asarray(Image.open(file.parent / line["image_path"]))
        truth = edit_truth(source, line["prompt"], draw_image(edit.target))
        assert truth.carried_out and truth.preserved
    assert write_edit_example(tmp_path / "again", 12, seed=3).read_bytes() == file.read_bytes()


def test_the_same_drawing_does_not_differ_and_more_change_differs_more() -> None:
    recoloured = replace(SOURCE, scene=replace(SCENE, colour="blue"))
    assert difference(SOURCE, SOURCE) == 0
    assert 0 < difference(SOURCE, recoloured) < difference(SOURCE, replace(recoloured, x=40.0)) <= 1
    assert difference(SOURCE, recoloured) == difference(recoloured, SOURCE)
