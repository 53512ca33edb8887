"""Brush strokes as Label Studio's annotators paint them."""

from __future__ import annotations

import numpy as np

from resources.masks import Mask

# Bits of a run's length, by the size's index in the stream, and bits of a word, as Label Studio writes them.
LENGTH_BITS = (3, 4, 8, 16)
WORD_BITS = 8


def encode_rle(mask: Mask) -> list[int]:
    """Return the mask, painted in white, as `value.rle` of a result: byte for byte as Label Studio's SDK writes it."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    runs = np.diff(starts, append=flat.size) * 4
    bits = [f"{flat.size * 4:032b}", f"{WORD_BITS - 1:05b}", *(f"{size - 1:04b}" for size in LENGTH_BITS)]
    for start, run in zip(starts.tolist(), runs.tolist(), strict=True):
        value = f"{255 if flat[start] else 0:08b}"
        while run:
            index = next((i for i, size in enumerate(LENGTH_BITS) if run <= 1 << size), 3)
            length = min(run, 1 << LENGTH_BITS[index])
            bits.append(f"1{index:02b}{length - 1:0{LENGTH_BITS[index]}b}{value}")
            run -= length
    text = "".join(bits)
    text += "0" * (8 - len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8))
