"""Masks are read as Label Studio writes them, fit their picture or are refused, and keep what lies outside them."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resources.masks import (
    Mask,
    MaskError,
    bounding_box,
    decode_rle,
    feather_mask,
    fit_mask,
    keep_outside,
    mask_centroid,
    mask_from_image,
)
from tests.resources.brush_strokes import encode_rle


def masked(*rows: str) -> Mask:
    return np.array([[letter == "#" for letter in row] for row in rows])


def disc(width: int, height: int, x: float, y: float, radius: float) -> Mask:
    rows, columns = np.mgrid[:height, :width]
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def stream(total: int, *runs: str, word: int = 8) -> list[int]:
    """A stream by hand, of runs as strings of bits."""
    bits = f"{total:032b}{word - 1:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16)) + "".join(runs)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def words(*values: int) -> str:
    """A run of up to 16 words as they are."""
    return f"001{len(values) - 1:04b}" + "".join(f"{value:08b}" for value in values)


def noise(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


# The brush


# What label-studio-sdk 2.0.18's brush.encode_rle makes of them, each pixel's value repeated four times.
def sdk(name: str) -> tuple[Mask, list[int]]:
    return {
        "small": (masked(".....", ".###.", "....."), [0, 0, 0, 60, 57, 27, 254, 23, 0, 183, 255, 133, 192, 0]),
        "corners": (masked("#.", ".#"), [0, 0, 0, 16, 57, 27, 252, 127, 243, 128, 71, 254]),
        "full": (masked(*["####"] * 4), [0, 0, 0, 64, 57, 27, 254, 63, 255, 0]),
        # 120,000 pixels: runs beyond 2¹⁶ words are split.
        "last": (
            disc(400, 300, 399, 299, 1),
            list(bytes.fromhex("00075300391bffffff00ffffe01ffffc03ffff807ffff00ffffe01ffffc03a97d8047fe0")),
        ),
    }[name]


@pytest.mark.parametrize("name", ["small", "corners", "full", "last"])
def test_a_mask_is_written_and_read_as_label_studios_sdk_does(name: str) -> None:
    mask, rle = sdk(name)
    assert encode_rle(mask) == rle
    assert np.array_equal(decode_rle(rle, mask.shape[1], mask.shape[0]), mask)


def test_a_disc_is_the_same_bytes_as_label_studios_sdk_writes() -> None:
    mask = disc(300, 200, 150, 90, 60)
    rle = encode_rle(mask)
    assert (mask.sum(), len(rle)) == (11277, 796)
    assert hashlib.sha256(bytes(rle)).hexdigest() == "566078eb27cce3553b6729d173ad799c528e24eeff1e0e4adac11a732379ef94"


def test_painted_is_where_alpha_is_high_whatever_the_colour() -> None:
    """As the brush in the browser writes it: coloured words, unlike each other, in runs as they are."""
    rle = stream(16, words(10, 20, 30, 128, 255, 255, 255, 127), words(0, 0, 0, 255), "100011" + f"{200:08b}")
    assert np.array_equal(decode_rle(rle, 4, 1), masked("#.##"))


def test_words_as_they_are_are_read_at_any_bit() -> None:
    """Noise from the SDK: every fourth word is a pixel's alpha."""
    rle = list(
        bytes.fromhex(
            "00000030391bf80be041018406c819e075801e051804206b81b204101f005e80200228170074019a027015201e"
            "80fa005003a0780084009816c0138076002007602881bc01600f003d0064068009c00e008005300f202c81540748"
        )
    )
    assert np.array_equal(decode_rle(rle, 4, 3), masked("###.", "....", ".###"))
    for shift in range(1, 8):
        values = [random.Random(shift).randrange(256) for _ in range(16)]
        single = [words(value) for value in values[:shift]]  # 15 bits each, so that what follows begins elsewhere
        rle = stream(16, *single, words(*values[shift:]))
        assert decode_rle(rle, 4, 1).tolist() == [[value > 127 for value in values[3::4]]]


@pytest.mark.parametrize("seed", range(5))
def test_any_mask_is_read_back(seed: int) -> None:
    draw = np.random.default_rng(seed)
    mask = draw.random((int(draw.integers(1, 90)), int(draw.integers(1, 90)))) < draw.random()
    assert np.array_equal(decode_rle(encode_rle(mask), mask.shape[1], mask.shape[0]), mask)


@pytest.mark.parametrize(
    ("rle", "size", "reason"),
    [
        ([], (2, 2), "is truncated"),
        (encode_rle(masked("##", "##"))[:-2], (2, 2), "is truncated"),
        (stream(16, words(1, 2, 3)), (2, 2), "is truncated"),
        (stream(16, words(*range(16))[:-16]), (2, 2), "is truncated"),
        (encode_rle(masked("##", "##")), (3, 2), "has 16 bytes, 3×2 pixels have 24"),
        (stream(2**32 - 1), (2, 2), "has 4294967295 bytes, 2×2 pixels have 16"),
        (stream(4, words(*range(5))), (1, 1), "is larger than its image"),
        (stream(16, "1" + "11" + "1" * 16 + "1" * 8), (2, 2), "is larger than its image"),
        (stream(16, word=16), (2, 2), "has words of 16 bits"),
        (stream(4 * 10**8), (10_000, 10_000), "claims 10000×10000 pixels"),
        (stream(0), (0, 2), "claims 0×2 pixels"),
        (stream(16), (-2, -2), "claims -2×-2 pixels"),
        (stream(16), (10**400, 1), "claims 100000000000×1 pixels"),
        (stream(4), (True, 1), "claims True×1 pixels"),
        (stream(16), ("2", 2), "claims 2×2 pixels"),
        (stream(16), (2.0, 2), "claims 2.0×2 pixels"),
        ([256], (2, 2), "is not a list of bytes"),
        ([-1], (2, 2), "is not a list of bytes"),
        ([1.0], (2, 2), "is not a list of bytes"),
        ([True], (2, 2), "is not a list of bytes"),
        ("abc", (2, 2), "is not a list of bytes"),
        (None, (2, 2), "is not a list of bytes"),
        ({"0": 1}, (2, 2), "is not a list of bytes"),
    ],
)
def test_what_is_no_brush_mask_is_refused_in_a_line_and_without_memory(rle: Any, size: Any, reason: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MaskError) as caught:
            decode_rle(rle, *size)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_noise_is_a_mask_or_refused_and_nothing_else() -> None:
    draw = random.Random(3)
    good = encode_rle(disc(30, 20, 12, 9, 6))
    for _ in range(500):
        rle = list(good)
        for _ in range(draw.randrange(1, 4)):
            rle[draw.randrange(4 if draw.random() < 0.1 else 7, len(rle))] = draw.randrange(256)
        with suppress(MaskError):
            assert decode_rle(rle, 30, 20).shape == (20, 30)


# Pictures of masks


def test_a_picture_of_any_mode_is_a_mask_where_it_is_bright() -> None:
    grey = Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8))
    for mode in ("L", "RGB", "RGBA", "LA", "CMYK"):
        assert mask_from_image(grey.convert(mode)).tolist() == [[False, False, True, True]], mode
    assert mask_from_image(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")).tolist() == [[False, True]]
    assert mask_from_image(Image.fromarray(np.array([[0, 32767, 32768, 65535]], np.uint16))).tolist() == [
        [False, False, True, True]
    ]
    with pytest.raises(MaskError, match="32-bit pixels of unknown range"):
        mask_from_image(Image.fromarray(np.zeros((1, 1), np.float32)))


def test_a_picture_with_transparency_is_a_mask_where_it_is_opaque() -> None:
    strokes = np.zeros((1, 3, 4), np.uint8)
    strokes[0, :, 3] = [0, 127, 128]
    for colour in (0, 255):
        strokes[:, :, :3] = colour
        assert mask_from_image(Image.fromarray(strokes)).tolist() == [[False, False, True]]
    palette = Image.new("P", (2, 1))
    palette.putpixel((1, 0), 1)
    palette.info["transparency"] = 0
    assert mask_from_image(palette).tolist() == [[False, True]]
    assert not mask_from_image(Image.new("RGBA", (2, 1), (255, 255, 255, 0))).any()


def test_a_mask_of_the_pictures_size_fits_as_it_is() -> None:
    mask = disc(40, 30, 10, 10, 5)
    assert fit_mask(mask, 40, 30) is mask


@pytest.mark.parametrize(("width", "height"), [(80, 60), (20, 15), (1000, 750), (41, 31), (533, 400)])
def test_a_mask_of_the_pictures_proportions_is_scaled(width: int, height: int) -> None:
    found = fit_mask(disc(40, 30, 19.5, 14.5, 10), width, height)
    assert found.shape == (height, width)
    x, y = mask_centroid(found)
    assert (x / width, y / height) == pytest.approx((0.5, 0.5), abs=0.02)
    assert found.mean() == pytest.approx(np.pi * 10**2 / 1200, rel=0.1)


@pytest.mark.parametrize(("width", "height"), [(30, 40), (40, 40), (40, 32), (38, 30), (400, 310), (4, 3), (1, 1)])
def test_a_mask_of_other_proportions_is_another_pictures(width: int, height: int) -> None:
    with pytest.raises(MaskError) as caught:
        fit_mask(disc(40, 30, 10, 10, 5), width, height)
    assert str(caught.value) == (f"the mask has 40×30 pixels, the image {width}×{height}: use the image's own mask")


def test_an_empty_mask_is_refused_and_so_is_one_that_is_empty_once_scaled() -> None:
    for mask in (np.zeros((30, 40), bool), disc(800, 600, 10, 10, 1)):
        with pytest.raises(MaskError, match="the mask is empty: paint over the region to inpaint"):
            fit_mask(mask, 40, 30)


# What is done by them


def test_the_centre_is_that_of_what_is_masked() -> None:
    assert mask_centroid(masked("....", "..#.", "....")) == (2.5, 1.5)
    assert mask_centroid(masked("##..", "##..")) == (1, 1)
    assert mask_centroid(masked("####", "#...")) == ((0.5 + 1.5 + 2.5 + 3.5 + 0.5) / 5, (4 * 0.5 + 1.5) / 5)


def test_the_box_is_what_pillow_would_crop() -> None:
    mask = masked("......", "..##..", "...#..", "......")
    assert bounding_box(mask) == (2, 1, 4, 3)
    assert bounding_box(mask, 1) == (1, 0, 5, 4)
    assert bounding_box(mask, 99) == (0, 0, 6, 4)
    cropped = Image.fromarray(mask).crop(bounding_box(mask))
    assert np.array_equal(np.asarray(cropped), masked("##", ".#"))


def test_an_edit_is_feathered_inside_the_mask_and_not_at_the_pictures_edge() -> None:
    mask = np.zeros((9, 12), bool)
    mask[:, 4:] = True
    found = feather_mask(mask, 3)
    assert found.dtype == np.float32
    assert np.allclose(found, [0] * 4 + [0.25, 0.5, 0.75] + [1] * 5)
    assert np.array_equal(feather_mask(mask, 0), mask)
    assert feather_mask(np.ones((3, 3), bool), 5).min() == 1


@pytest.mark.parametrize("radius", [0, 1, 7.5, 500])
def test_outside_the_mask_every_pixel_is_the_originals(radius: float) -> None:
    original, edited, mask = noise(1), noise(2), disc(40, 30, 15, 15, 9)
    before, after = np.asarray(original), np.asarray(edited)
    found = np.asarray(keep_outside(original, edited, mask, radius))
    assert np.array_equal(found[~mask], before[~mask])
    assert (found[mask] != before[mask]).any()
    low, high = np.minimum(before, after), np.maximum(before, after)
    assert ((low <= found) & (found <= high)).all()
    if radius == 0:
        assert np.array_equal(found[mask], after[mask])


def test_an_edit_of_another_size_is_refused() -> None:
    mask = disc(40, 30, 15, 15, 9)
    for original, edited in ((noise(1), noise(2, 41)), (noise(1, 41), noise(2, 41)), (noise(1, 30, 40), noise(2))):
        with pytest.raises(MaskError, match=r"differ in size: .* and 40×30: resize the edit first"):
            keep_outside(original, edited, mask)
