"""What is asked of faces once they are found: which is meant, and how alike they are."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from resources.faces import Face, identity_similarity, largest_face, mask_centre, nearest_face


def face(left: float, top: float, right: float, bottom: float, *embedding: float) -> Face:
    direction = np.zeros(512, np.float32)
    direction[: len(embedding)] = embedding
    return Face(np.array([left, top, right, bottom], np.float32), np.zeros((5, 2), np.float32), 0.9, direction)


def test_the_nearest_is_the_one_whose_middle_is() -> None:
    # The point lies inside the wide face, nearer to the small one's middle.
    wide, small = face(0, 0, 100, 100), face(90, 40, 110, 60)
    assert nearest_face([wide, small], (90, 50)) is small
    assert nearest_face([wide, small], (60, 50)) is wide
    assert nearest_face([], (0, 0)) is None


def test_the_largest_is_by_area() -> None:
    assert largest_face([tall := face(0, 0, 10, 90), face(0, 0, 25, 25)]) is tall
    assert largest_face([]) is None


def test_identity_is_the_cosine() -> None:
    one, other = face(0, 0, 1, 1, 1.0), face(0, 0, 1, 1, 0.6, 0.8)
    assert identity_similarity(one, other) == pytest.approx(0.6)
    assert identity_similarity(one, one) == 1.0


@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_a_masks_middle_is_that_of_its_white(mode: str) -> None:
    mask = Image.new("L", (100, 60))
    ImageDraw.Draw(mask).rectangle((20, 10, 39, 29), fill=255)
    assert mask_centre(mask.convert(mode)) == pytest.approx((30, 20))
    assert mask_centre(Image.new(mode, (8, 8))) is None
