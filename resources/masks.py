"""Masks of where a scene may change: read from images and Label Studio's brush strokes, fitted and applied.

A mask is a boolean array, height × width, true where the scene may change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from resources.errors import FlexyError
from resources.images import MAX_PIXELS

if TYPE_CHECKING:
    from PIL.Image import Image

Mask = npt.NDArray[np.bool_]

_WORD_BITS = 8
"""Bits of a word, as Label Studio writes them."""


class MaskError(FlexyError):
    """A mask that cannot be read, is empty, or has another size than the image."""


def decode_rle(rle: Sequence[int] | bytes | Any, width: int, height: int) -> Mask:
    """Return the mask that Label Studio's brush painted, from `value.rle` and the image size in its result.

    The stream, most significant bit first, is that of thi.ng/rle-pack: 32 bits for the number of words, 5 for the
    bits of a word less one, 4 × 4 for the bits of a run's length less one; then runs of one repeated word (1) or of
    literal words (0), each with 2 bits for the size of its length, the length less one, and the words. The words are
    the image's RGBA bytes, row by row; the mask is where alpha is above 127.

    Raises `MaskError` where the stream has another form, is truncated, or has another size; nothing is allocated
    before the size is checked.
    """
    if not all(type(n) is int and n > 0 for n in (width, height)) or width * height > MAX_PIXELS:
        raise MaskError(f"a brush mask claims {str(width)[:12]}×{str(height)[:12]} pixels: paint it again")
    if not isinstance(rle, list | tuple | bytes) or not all(type(byte) is int and 0 <= byte <= 255 for byte in rle):
        raise MaskError("a brush mask is not a list of bytes: paint it again")
    stream = _BitStream(bytes(rle))
    total, word_bits = stream.read_integer(32), stream.read_integer(5) + 1
    length_bits = [stream.read_integer(4) + 1 for _ in range(4)]
    if word_bits != _WORD_BITS:
        raise MaskError(f"a brush mask has words of {word_bits} bits, not {_WORD_BITS}: paint it again")
    expected = width * height * 4
    if total != expected:
        raise MaskError(f"a brush mask has {total} bytes, {width}×{height} pixels have {expected}: paint it again")
    pixels = np.empty(total, np.uint8)
    start = 0
    while start < total:
        repeated = stream.read_integer(1)
        end = start + stream.read_integer(length_bits[stream.read_integer(2)]) + 1
        if end > total:
            raise MaskError("a brush mask is larger than its image: paint it again")
        pixels[start:end] = stream.read_integer(_WORD_BITS) if repeated else stream.read_bytes(end - start)
        start = end
    return pixels.reshape(height, width, 4)[:, :, 3] > 127


class _BitStream:
    """Reads integers from a stream of bits. Raises `MaskError` at its end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    def _advance(self, bits: int) -> tuple[bytes, int]:
        """Return the bytes that contain the next `bits`, and the number of unread bits at their end."""
        start, self._position = self._position, self._position + bits
        end = -(-self._position // 8)
        if end > len(self._content):
            raise MaskError("a brush mask is truncated: paint it again")
        return self._content[start // 8 : end], end * 8 - self._position

    def read_integer(self, bits: int) -> int:
        content, unread = self._advance(bits)
        return (int.from_bytes(content) >> unread) & ((1 << bits) - 1)

    def read_bytes(self, count: int) -> npt.NDArray[np.uint8]:
        content, unread = self._advance(8 * count)
        values: npt.NDArray[np.uint8] = np.frombuffer(content, np.uint8)
        if unread:
            values = np.bitwise_or(np.left_shift(values[:-1], 8 - unread, dtype=np.uint8), values[1:] >> unread)
        return values


def mask_from_image(image: Image) -> Mask:
    """Return the mask in an image of any mode: where it is opaque or, if opaque everywhere, where it is bright.

    Both mean above 127 of 255. Raises `MaskError` for pixels of unknown range.
    """
    if image.mode in ("I", "F"):
        raise MaskError("the mask has 32-bit pixels of unknown range: save it with 8 bits")
    if image.mode.startswith("I;16"):
        return np.asarray(image) >> 8 > 127
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA"))[:, :, 3]
        if alpha.min() < 255:
            return alpha > 127
    return np.asarray(image.convert("RGB").convert("L")) > 127


def fit_mask(mask: Mask, width: int, height: int) -> Mask:
    """Return `mask` for an image of `width` × `height` pixels.

    A mask of the same proportions, to a pixel, is scaled, because annotators may see a scene scaled down. Raises
    `MaskError` for other proportions, because the mask belongs to another image, and for an empty mask.
    """
    from PIL import Image

    high, wide = mask.shape
    if not mask.any():
        raise MaskError("the mask is empty: paint over the region to inpaint")
    if (wide, high) == (width, height):
        return mask
    # The sides of the smaller one are those of the larger one times a scale, each rounded to a pixel.
    if abs(wide * height - high * width) * 2 > max(wide + high, width + height) or min(wide, high, width, height) < 8:
        raise MaskError(f"the mask has {wide}×{high} pixels, the image {width}×{height}: use the image's own mask")
    scaled = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    return fit_mask(np.asarray(scaled) > 127, width, height)


def mask_centroid(mask: Mask) -> tuple[float, float]:
    """Return x and y, in pixels, of the mask's centroid: the mean over its pixels, whose centres are at .5."""
    rows, columns = np.nonzero(mask)
    return float(columns.mean() + 0.5), float(rows.mean() + 0.5)


def bounding_box(mask: Mask, margin: int = 0) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the mask with `margin` pixels around, as Pillow crops, in the image."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    high, wide = mask.shape
    return (
        max(0, int(columns[0]) - margin),
        max(0, int(rows[0]) - margin),
        min(wide, int(columns[-1]) + 1 + margin),
        min(high, int(rows[-1]) + 1 + margin),
    )


def longer_mask_side(mask: Mask) -> int:
    """Return the longer side of the mask's bounding box, in pixels."""
    left, top, right, bottom = bounding_box(mask)
    return max(right - left, bottom - top)


def widen_mask(mask: Mask, share: float) -> Mask:
    """Return the mask widened by `share` of its longer side."""
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(~mask) <= share * longer_mask_side(mask))


FEATHER_RADIUS = 0.04
"""The width over which an edit fades in inside its mask, as a share of the mask's longer side."""


def feather_mask(mask: Mask, radius: float) -> npt.NDArray[np.float32]:
    """Return the weight of an edit, 0–1, height × width: 0 outside the mask, rising to 1 over `radius` pixels inside.

    The image's border is not an edge of the mask. `radius` 0 is the mask itself.
    """
    from scipy.ndimage import distance_transform_edt

    if radius <= 0 or mask.all():
        return mask.astype(np.float32)
    return np.minimum(1, distance_transform_edt(mask) / (radius + 1)).astype(np.float32)


def keep_outside(original: Image, edited: Image, mask: Mask, radius: float | None = None) -> Image:
    """Return `edited` inside the mask, fading in over `radius` pixels, and exactly the original outside it, in RGB.

    The radius is by default `FEATHER_RADIUS` of the mask's longer side. Raises `MaskError` where the sizes differ.
    """
    from PIL import Image

    high, wide = mask.shape
    if not original.size == edited.size == (wide, high):
        sizes = " and ".join(f"{w}×{h}" for w, h in (original.size, edited.size, (wide, high)))
        raise MaskError(f"original, edit and mask differ in size: {sizes}: resize the edit first")
    before, after = (np.asarray(image.convert("RGB"), np.float32) for image in (original, edited))
    weight = feather_mask(mask, FEATHER_RADIUS * longer_mask_side(mask) if radius is None else radius)
    blended = before + weight[:, :, None] * (after - before)
    return Image.fromarray(blended.round().astype(np.uint8))
