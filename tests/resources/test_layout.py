"""Layout sees where edges lie: shapes and places, and no colours."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from resources.mini.world import Drawing, DrawnScene, draw_image
from resources.scorers.layout import edge_maps, layout_agreements

SOURCE = Drawing(DrawnScene("circle", "red", "white", "large", "middle"), x=32.0, y=32.0, radius=14.0)


def agreement(left: Image.Image, right: Image.Image) -> float:
    return layout_agreements([edge_maps(left)], [edge_maps(right)])[0]


def drawn(**changes: object) -> Image.Image:
    return Image.fromarray(draw_image(replace(SOURCE, **changes)))


def test_the_same_picture_agrees_wholly_at_any_size() -> None:
    source = drawn()
    assert agreement(source, source) == pytest.approx(1)
    assert agreement(source, source.resize((512, 512), Image.Resampling.BICUBIC)) > 0.97


def test_another_colour_is_the_same_layout_and_another_shape_is_not() -> None:
    recoloured = agreement(drawn(), drawn(scene=replace(SOURCE.scene, colour="blue")))
    reshaped = agreement(drawn(), drawn(scene=replace(SOURCE.scene, shape="square")))
    assert reshaped < 0.95 < 0.99 < recoloured


def test_it_falls_with_every_pixel_that_a_shape_is_moved_or_grown() -> None:
    moved = [agreement(drawn(), drawn(x=32.0 + pixels)) for pixels in range(10)]
    grown = [agreement(drawn(), drawn(radius=14.0 + pixels)) for pixels in range(7)]
    assert moved == sorted(moved, reverse=True) and moved[9] < 0.6
    assert grown == sorted(grown, reverse=True)


def test_a_picture_without_edges_agrees_with_nothing() -> None:
    grey = Image.new("RGB", (64, 64), (90, 90, 90))
    assert agreement(grey, drawn()) == 0 == agreement(grey, grey)


def test_a_pair_is_judged_by_itself() -> None:
    pictures = [edge_maps(drawn(x=30.0 + index)) for index in range(4)]
    together = layout_agreements(pictures[:1] * 4, pictures)
    alone = [layout_agreements(pictures[:1], [picture])[0] for picture in pictures]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
