"""What an editor is shown, and that what it makes goes inside the mask and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flexy_assets.edits.search.canvas import Canvas

RNG = np.random.default_rng(0)
SOURCE = Image.fromarray(RNG.integers(0, 256, (90, 120, 3), np.uint8))


def masked(left: int, top: int, right: int, bottom: int) -> Canvas:
    mask = np.zeros((90, 120), bool)
    mask[top:bottom, left:right] = True
    return Canvas(SOURCE, mask)


def test_without_a_mask_the_picture_is_shown_and_replaced_whole() -> None:
    canvas, edit = Canvas(SOURCE), SOURCE.rotate(180)
    assert canvas.crop(SOURCE) is SOURCE
    assert canvas.paste(edit) is edit
    assert canvas.cropped_mask is None


@pytest.mark.parametrize("box", [(50, 30, 70, 60), (0, 0, 12, 9), (100, 70, 120, 90), (3, 3, 117, 87), (0, 0, 120, 90)])
def test_only_masked_pixels_change_and_the_crop_contains_them(box: tuple[int, int, int, int]) -> None:
    canvas = masked(*box)
    left, top, right, bottom = canvas.box
    assert 0 <= left <= box[0] < box[2] <= right <= 120
    assert 0 <= top <= box[1] < box[3] <= bottom <= 90
    shown, stencil = canvas.crop(SOURCE), canvas.cropped_mask
    assert stencil is not None and shown.size == stencil.size == (right - left, bottom - top)
    assert int((np.asarray(stencil) > 127).sum()) == (box[2] - box[0]) * (box[3] - box[1])
    changed = np.asarray(canvas.paste(Image.eval(shown, lambda value: 255 - value))) != np.asarray(SOURCE)
    assert canvas.mask is not None and not changed[~canvas.mask].any()
    assert changed[canvas.mask].any(axis=-1).mean() > 0.95


def test_a_small_mask_is_shown_large() -> None:
    assert masked(60, 40, 70, 50).box == (56, 36, 73, 53)


def test_pasting_an_unchanged_crop_changes_nothing() -> None:
    canvas = masked(50, 30, 70, 60)
    assert canvas.paste(canvas.crop(SOURCE)) == SOURCE
