"""Pictures to edit."""

from __future__ import annotations

import numpy as np
from PIL import Image


def picture(seed: int) -> Image.Image:
    """Soft spots, 96 × 128."""
    spots = np.random.default_rng(seed).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize((96, 128), Image.Resampling.BICUBIC)


def half_mask() -> Image.Image:
    """White on the left."""
    mask = Image.new("L", (96, 128), 0)
    mask.paste(255, (0, 0, 48, 128))
    return mask
