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
    aesthetic_rule_v1,
    aesthetic_rule_v2,
    draw_image,
    preference,
    sketch_drawing,
)

SCENE = DrawnScene(shape="triangle", colour="red", background="white", size="large", position="left")


def test_every_scene_has_a_unique_caption() -> None:
    assert len(SCENES) == 720
    assert len({scene.caption for scene in CAPTIONED_SCENES}) == len(CAPTIONED_SCENES) == 720 + 120 + 24


def test_a_less_detailed_scene_matches_every_scene_with_its_attributes() -> None:
    full, plain, bare = SCENE.with_less_detail()
    other = replace(SCENE, background="blue", position="right")
    assert all(bare.attributes_shown_in(other).values())
    assert plain.attributes_shown_in(other) == {"shape": True, "colour": True, "background": False}
    assert set(full.attributes) == set(ATTRIBUTES)
    assert bare.caption == "a red triangle"


def test_the_rule_reads_every_scene_of_a_clean_drawing() -> None:
    rng = np.random.default_rng(1)
    wrong = [s for s in SCENES if read_drawing(draw_image(sketch_drawing(s, rng))).scene != s]
    assert not wrong


def test_the_rule_reads_a_wrong_attribute_as_wrong() -> None:
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
def test_each_flaw_increases_the_deviation(flaw: str) -> None:
    rng = np.random.default_rng(3)
    clean = sketch_drawing(SCENE, rng)
    distances = [
        read_drawing(draw_image(replace(clean, flaws=Flaws(**{flaw: level})), rng)).deviation for level in (0, 0.4, 0.8)
    ]
    assert distances == sorted(distances)
    assert distances[-1] > 1.5 * distances[0]


def test_a_blank_image_has_no_scene() -> None:
    reading = read_drawing(np.full((SIDE, SIDE, 3), 244, dtype=np.uint8))
    assert reading.scene is None
    assert not any(reading.agreement(SCENE).values())


def test_the_reader_rejects_images_of_another_size_or_type() -> None:
    with pytest.raises(ValueError, match="uint8"):
        read_drawing(np.zeros((32, 32, 3), dtype=np.uint8))


def test_aesthetic_rules_prefer_clean_and_composed_drawings_and_differ() -> None:
    rng = np.random.default_rng(4)
    clean = Drawing(SCENE, 32, 32, 17)
    assert aesthetic_rule_v1(clean) > aesthetic_rule_v1(replace(clean, flaws=Flaws(noise=0.7)))
    assert aesthetic_rule_v2(clean) > aesthetic_rule_v2(replace(clean, x=2.0))
    many = [add_flaws(sketch_drawing(SCENES[i], rng), rng) for i in rng.integers(len(SCENES), size=400)]
    agreement = spearmanr([aesthetic_rule_v1(d) for d in many], [aesthetic_rule_v2(d) for d in many]).statistic
    assert 0.3 < agreement < 0.95
    assert all(1 <= rule(d) <= 10 for d in many for rule in (aesthetic_rule_v1, aesthetic_rule_v2))


def test_preference_is_higher_for_the_requested_scene() -> None:
    requested = Drawing(SCENE, 23, 32, 17)
    other = Drawing(replace(SCENE, colour="blue"), 23, 32, 17)
    assert preference(requested, SCENE) > preference(other, SCENE)
