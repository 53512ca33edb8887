"""Small pictures of images: one thumbnail for a page, many on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Final

from PIL import Image, ImageOps

GAP: Final = 2
"""Pixels between two images on a sheet."""
GREY: Final = (118, 118, 118)
"""Behind transparent images and around ones that are not square: as far from white as from black, by eye."""


def thumbnail(image: Image.Image, side: int = 96) -> bytes:
    """WebP bytes of the image, its longer side at most `side` pixels."""
    small = _opaque(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=80, method=4)
    return buffer.getvalue()


def contact_sheet(images: Sequence[Image.Image], columns: int = 10, side: int = 64) -> bytes:
    """PNG bytes of all images in reading order, each whole inside a square of `side` pixels.

    Raises ValueError where there is no image or no column.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    if columns < 1 or side < 1:
        raise ValueError(f"a contact sheet needs columns and a side of 1 or more, not {columns} and {side}")
    across = min(columns, len(images))
    down = -(-len(images) // across)
    pitch = side + GAP
    sheet = Image.new("RGB", (across * pitch - GAP, down * pitch - GAP), GREY)
    for index, image in enumerate(images):
        row, column = divmod(index, across)
        sheet.paste(ImageOps.pad(_opaque(image), (side, side), color=GREY), (column * pitch, row * pitch))
    buffer = BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (*GREY, 255)), layer).convert("RGB")
