"""Thumbnails for pages, and contact sheets of many images."""

import base64
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import accumulate
from typing import Final

from PIL import Image, ImageOps

from resources.images import UnreadableImageError

SIZE_LADDER: Final = (
    *((256, 80), (192, 80), (160, 75), (128, 75), (128, 60)),
    *((112, 60), (112, 50), (96, 50), (96, 35), (80, 35), (64, 35), (48, 30)),
)
"""Longer side in pixels and WebP quality of thumbnails, best first; each is some 20 to 40 % smaller than the last."""
TRIAL_SAMPLE: Final = 40
"""Images that the size of thumbnails is estimated from."""
GAP: Final = 2
"""Pixels between two images on a sheet."""
GREY: Final = (118, 118, 118)
"""Behind transparent images and around ones that are not square: as far from white as from black, by eye."""


def markdown_image(words: str, webp: bytes) -> str:
    """Return a WebP image as Dagster's UI shows it in Markdown."""
    return f"![{words}](data:image/webp;base64,{base64.b64encode(webp).decode()})"


def make_thumbnail(image: Image.Image, side: int = 96, quality: int = 80) -> bytes:
    """Return WebP bytes of the image, its longer side at most `side` pixels."""
    small = _opaque(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def make_thumbnails(read: Callable[[str], Image.Image], paths: Sequence[str], most_bytes: int) -> dict[str, bytes]:
    """Return WebP bytes by path of the images that can be read, as large and fine as `most_bytes` in all allow.

    The rung of `SIZE_LADDER` is estimated from `TRIAL_SAMPLE` of them; the last are left out where the estimate was too
    low. A worker holds one image at a time, whatever the number of paths.
    """

    def shrink(path: str, rungs: Sequence[tuple[int, int]]) -> list[bytes]:
        try:
            image = read(path)
        except UnreadableImageError:
            return []
        return [make_thumbnail(image, *rung) for rung in rungs]

    paths = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        sample = paths[:: max(1, -(-len(paths) // TRIAL_SAMPLE))]
        ladders = [webps for webps in pool.map(lambda path: shrink(path, SIZE_LADDER), sample) if webps]
        means = [sum(map(len, webps)) / len(webps) for webps in zip(*ladders, strict=True)]
        # Five in a hundred are reserved for images that compress worse than the sample.
        fits = (rung for rung, mean in zip(SIZE_LADDER, means, strict=False) if mean * len(paths) <= 0.95 * most_bytes)
        rung = next(fits, SIZE_LADDER[-1])
        shrunk = zip(paths, pool.map(lambda path: shrink(path, [rung]), paths), strict=True)
        made = {path: webp for path, webps in shrunk for webp in webps}
    totals = accumulate(map(len, made.values()))
    return {path: webp for (path, webp), total in zip(made.items(), totals, strict=True) if total <= most_bytes}


def make_contact_sheet(images: Sequence[Image.Image], columns: int = 10, side: int = 64) -> bytes:
    """Return WebP bytes of all images in reading order, each whole inside a square of `side` pixels.

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
    # Dagster keeps it in its events: as PNG it would be eight times as large.
    sheet.save(buffer, "WEBP", quality=85, method=4)
    return buffer.getvalue()


def _opaque(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (*GREY, 255)), layer).convert("RGB")
