"""Source images and masks for edits."""

from __future__ import annotations

import numpy as np
from PIL import Image


def source_image(seed: int) -> Image.Image:
    """Return an RGB image of soft spots, 96 × 128."""
    spots = np.random.default_rng(seed).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize((96, 128), Image.Resampling.BICUBIC)


def half_mask() -> Image.Image:
    """Return a mask of the same size, white in the left half."""
    mask = Image.new("L", (96, 128), 0)
    mask.paste(255, (0, 0, 48, 128))
    return mask
