"""Where a scene may change: masks as pictures and as Label Studio's brush strokes, and what is done by them.

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

# How many bits a run's length takes, by its number in the stream; what Label Studio itself writes.
_SIZES = (3, 4, 8, 16)
_WORD = 8
_HEADER = 32 + 5 + 4 * 4


class MaskError(FlexyError):
    """A mask that cannot be read, is empty, or is not the picture's."""


def decode_rle(rle: Sequence[int] | bytes | Any, width: int, height: int) -> Mask:
    """The mask that Label Studio's brush painted, from `value.rle` of its result and the sizes beside it.

    The stream, most significant bit first, is that of thi.ng/rle-pack: 32 bits for the number of words, 5 for the
    bits of a word less one, 4 × 4 for the bits of a run's length less one; then runs of one repeated word (1) or of
    words as they are (0), each with 2 bits for the size of its length, the length less one, and the words. The words
    are the picture's RGBA bytes, row by row; painted is where alpha is above 127.

    Raises `MaskError` where the stream is not that, is cut short, or holds another picture; nothing is allocated
    before its size is known to be right.
    """
    sizes = (width, height)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes) or width * height > MAX_PIXELS:
        raise MaskError(f"a brush mask claims {str(width)[:12]}×{str(height)[:12]} pixels: draw it anew")
    if not isinstance(rle, list | tuple | bytes) or not all(type(byte) is int and 0 <= byte <= 255 for byte in rle):
        raise MaskError("a brush mask is no list of bytes: draw it anew")
    stream = _Bits(bytes(rle))
    total, word = stream.read(32), stream.read(5) + 1
    lengths = [stream.read(4) + 1 for _ in range(4)]
    if word != _WORD:
        raise MaskError(f"a brush mask has words of {word} bits where Label Studio writes {_WORD}: draw it anew")
    if total != width * height * 4:
        raise MaskError(f"a brush mask holds {total} bytes where {width}×{height} pixels have {width * height * 4}")
    found = np.empty(total, np.uint8)
    at = 0
    while at < total:
        repeated = stream.read(1)
        end = at + stream.read(lengths[stream.read(2)]) + 1
        if end > total:
            raise MaskError("a brush mask holds more than its picture: draw it anew")
        found[at:end] = stream.read(_WORD) if repeated else stream.bytes(end - at)
        at = end
    return found.reshape(height, width, 4)[:, :, 3] > 127


class _Bits:
    """Reads numbers off a stream of bits. Raises `MaskError` at its end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def _take(self, bits: int) -> tuple[bytes, int]:
        """The bytes that hold the next `bits`, and how many bits after these they hold."""
        start, self._at = self._at, self._at + bits
        end = -(-self._at // 8)
        if end > len(self._content):
            raise MaskError("a brush mask is cut short: draw it anew")
        return self._content[start // 8 : end], end * 8 - self._at

    def read(self, bits: int) -> int:
        taken, after = self._take(bits)
        return (int.from_bytes(taken) >> after) & ((1 << bits) - 1)

    def bytes(self, count: int) -> npt.NDArray[np.uint8]:
        taken, after = self._take(8 * count)
        held: npt.NDArray[np.uint8] = np.frombuffer(taken, np.uint8)
        if after:
            held = np.bitwise_or(np.left_shift(held[:-1], 8 - after, dtype=np.uint8), held[1:] >> after)
        return held


def encode_rle(mask: Mask) -> list[int]:
    """The mask painted in white, `value.rle` of a result: byte for byte what Label Studio's SDK writes."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    runs = np.diff(starts, append=flat.size) * 4
    bits = [f"{flat.size * 4:032b}", f"{_WORD - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for start, run in zip(starts.tolist(), runs.tolist(), strict=True):
        value = f"{255 if flat[start] else 0:08b}"
        while run:
            number = next((i for i, size in enumerate(_SIZES) if run <= 1 << size), 3)
            length = min(run, 1 << _SIZES[number])
            bits.append(f"1{number:02b}{length - 1:0{_SIZES[number]}b}{value}")
            run -= length
    text = "".join(bits)
    text += "0" * (8 - len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8))


def mask_from_image(picture: Image) -> Mask:
    """The mask that a picture of any mode shows: where it is opaque, or, opaque everywhere, where it is bright.

    Either above 127 of 255. Raises `MaskError` for pixels of unknown range.
    """
    if picture.mode in ("I", "F"):
        raise MaskError("a mask has 32-bit pixels of unknown range: save it with 8")
    if picture.mode.startswith("I;16"):
        return np.asarray(picture) >> 8 > 127
    if picture.has_transparency_data:
        alpha = np.asarray(picture.convert("RGBA"))[:, :, 3]
        if alpha.min() < 255:
            return alpha > 127
    return np.asarray(picture.convert("RGB").convert("L")) > 127


def fit_mask(mask: Mask, width: int, height: int) -> Mask:
    """`mask` for a picture of `width` × `height`.

    One of the same proportions, to a pixel, is scaled: annotators see a scene smaller than it is. Raises `MaskError`
    where the proportions are others, for then it is another picture's, and where nothing is masked.
    """
    from PIL import Image

    high, wide = mask.shape
    if not mask.any():
        raise MaskError("the mask is empty: paint over what is to be put right")
    if (wide, high) == (width, height):
        return mask
    # The smaller's sides are some scale of the larger's, each rounded to a pixel.
    if abs(wide * height - high * width) * 2 > max(wide + high, width + height) or min(wide, high, width, height) < 8:
        raise MaskError(f"the mask has {wide}×{high} pixels, the picture {width}×{height}: give the picture's own mask")
    scaled = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    return fit_mask(np.asarray(scaled) > 127, width, height)


def mask_centroid(mask: Mask) -> tuple[float, float]:
    """x and y, in pixels, of the middle of what is masked: the mean over its pixels, whose own middles are at .5."""
    rows, columns = np.nonzero(mask)
    return float(columns.mean() + 0.5), float(rows.mean() + 0.5)


def bounding_box(mask: Mask, margin: int = 0) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is masked with `margin` pixels around, as Pillow crops, in the picture."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    high, wide = mask.shape
    return (
        max(0, int(columns[0]) - margin),
        max(0, int(rows[0]) - margin),
        min(wide, int(columns[-1]) + 1 + margin),
        min(high, int(rows[-1]) + 1 + margin),
    )


def longer_mask_side(mask: Mask) -> int:
    """Of what bounds the mask, in pixels."""
    left, top, right, bottom = bounding_box(mask)
    return max(right - left, bottom - top)


def widen_mask(mask: Mask, share: float) -> Mask:
    """The mask and all within `share` of its longer side from it."""
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(~mask) <= share * longer_mask_side(mask))


FEATHER_RADIUS = 0.04
"""How far an edit fades in inside its mask, as a share of the mask's longer side."""


def feather_mask(mask: Mask, radius: float) -> npt.NDArray[np.float32]:
    """How much of an edit is taken, 0–1, height × width: 0 outside the mask, rising to 1 over `radius` pixels inside.

    The picture's own edge is no edge of the mask. `radius` 0 is the mask itself.
    """
    from scipy.ndimage import distance_transform_edt

    if radius <= 0 or mask.all():
        return mask.astype(np.float32)
    return np.minimum(1, distance_transform_edt(mask) / (radius + 1)).astype(np.float32)


def keep_outside(original: Image, edited: Image, mask: Mask, radius: float | None = None) -> Image:
    """`edited` inside the mask, fading in over `radius` pixels, and outside it the original's pixels exactly. RGB.

    The radius is `FEATHER` of the mask's longer side by default.

    Raises `MaskError` where the three are not of one size.
    """
    from PIL import Image

    high, wide = mask.shape
    if not original.size == edited.size == (wide, high):
        sizes = " and ".join(f"{w}×{h}" for w, h in (original.size, edited.size, (wide, high)))
        raise MaskError(f"original, edit and mask are not of one size: {sizes}: resize the edit first")
    before, after = (np.asarray(picture.convert("RGB"), np.float32) for picture in (original, edited))
    share = feather_mask(mask, FEATHER_RADIUS * longer_mask_side(mask) if radius is None else radius)
    blended = before + share[:, :, None] * (after - before)
    return Image.fromarray(blended.round().astype(np.uint8))
