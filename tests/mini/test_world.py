"""The drawn world and the rule that reads it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from resources.mini.reader import read_drawing
from resources.mini.world import (
    ATTRIBUTES,
    CAPTIONED_SCENES,
    SCENES,
    SIDE,
    Drawing,
    DrawnScene,
    Flaws,
    add_flaws,
    draw_image,
    preference,
    sketch_drawing,
    taste_v1,
    taste_v2,
)

SCENE = DrawnScene(shape="triangle", colour="red", background="white", size="large", position="left")


def test_every_wish_has_a_caption_of_its_own() -> None:
    assert len(SCENES) == 720
    assert len({wish.caption for wish in CAPTIONED_SCENES}) == len(CAPTIONED_SCENES) == 720 + 120 + 24


def test_a_brief_wish_is_fulfilled_by_every_scene_that_shows_what_it_says() -> None:
    full, plain, bare = SCENE.briefer()
    other = replace(SCENE, background="blue", position="right")
    assert all(bare.shown_in(other).values())
    assert plain.shown_in(other) == {"shape": True, "colour": True, "background": False}
    assert set(full.said) == set(ATTRIBUTES)
    assert bare.caption == "a red triangle"


def test_the_rule_reads_every_scene_of_a_clean_drawing() -> None:
    rng = np.random.default_rng(1)
    wrong = [s for s in SCENES if read_drawing(draw_image(sketch_drawing(s, rng))).scene != s]
    assert not wrong


def test_the_rule_is_not_fooled_by_a_wrong_attribute() -> None:
    rng = np.random.default_rng(2)
    for name, values in ATTRIBUTES.items():
        for value in values:
            shown = replace(SCENE, **{name: value})
            if shown == SCENE or shown.colour == shown.background:
                continue
            agreement = read_drawing(draw_image(sketch_drawing(shown, rng))).agreement(SCENE)
            assert not agreement[name], f"{name}={value} was read as {getattr(SCENE, name)}"
            assert sum(agreement.values()) == len(ATTRIBUTES) - 1


@pytest.mark.parametrize("flaw", ["blur", "noise", "blotches", "burn", "fade"])
def test_each_flaw_takes_a_picture_further_from_clean(flaw: str) -> None:
    rng = np.random.default_rng(3)
    clean = sketch_drawing(SCENE, rng)
    distances = [
        read_drawing(draw_image(replace(clean, flaws=Flaws(**{flaw: level})), rng)).deviation for level in (0, 0.4, 0.8)
    ]
    assert distances == sorted(distances)
    assert distances[-1] > 1.5 * distances[0]


def test_a_blank_picture_shows_nothing() -> None:
    reading = read_drawing(np.full((SIDE, SIDE, 3), 244, dtype=np.uint8))
    assert reading.scene is None
    assert not any(reading.agreement(SCENE).values())


def test_the_reader_refuses_what_is_not_a_picture_of_this_world() -> None:
    with pytest.raises(ValueError, match="uint8"):
        read_drawing(np.zeros((32, 32, 3), dtype=np.uint8))


def test_the_juries_like_clean_and_composed_drawings_and_differ() -> None:
    rng = np.random.default_rng(4)
    clean = Drawing(SCENE, 32, 32, 17)
    assert taste_v1(clean) > taste_v1(replace(clean, flaws=Flaws(noise=0.7)))
    assert taste_v2(clean) > taste_v2(replace(clean, x=2.0))
    many = [add_flaws(sketch_drawing(SCENES[i], rng), rng) for i in rng.integers(len(SCENES), size=400)]
    agreement = spearmanr([taste_v1(d) for d in many], [taste_v2(d) for d in many]).statistic
    assert 0.3 < agreement < 0.95
    assert all(1 <= taste(d) <= 10 for d in many for taste in (taste_v1, taste_v2))


def test_people_prefer_what_was_asked_for() -> None:
    asked = Drawing(SCENE, 23, 32, 17)
    other = Drawing(replace(SCENE, colour="blue"), 23, 32, 17)
    assert preference(asked, SCENE) > preference(other, SCENE)
