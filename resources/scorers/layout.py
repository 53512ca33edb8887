"""Layout: whether a picture's edges lie where another's lie, whatever their colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64
"""Pictures are compared at so many pixels a side: layout is coarse."""

BLURS = (1, 2, 4, 8)
"""σ of the blurs that edges are compared under, in pixels: small ones tell shapes, large ones places."""

LAYOUT_FINGERPRINT = f"edges{SIDE}/{'-'.join(map(str, BLURS))}"
"""What its values say they were made by."""


def edge_maps(picture: Image.Image) -> NDArray[np.float32]:
    """(len(BLURS), SIDE · SIDE) float32: an RGB picture's gradient magnitudes, blurred, each centred and of norm 1.

    All 0 for a picture of one colour.
    """
    from scipy import ndimage

    pixels = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    slopes = [ndimage.sobel(pixels, axis) for axis in (0, 1)]
    strength = np.sqrt(sum((slope**2).sum(axis=2) for slope in slopes))
    levels = np.stack([ndimage.gaussian_filter(strength, blur).ravel() for blur in BLURS])
    levels -= levels.mean(axis=1, keepdims=True)
    return levels / np.maximum(np.linalg.norm(levels, axis=1, keepdims=True), 1e-6)


def layout_agreements(left: Sequence[NDArray[np.float32]], right: Sequence[NDArray[np.float32]]) -> list[float]:
    """Of each pair of `edges`: the mean over the blurs of their correlation.

    1 where the edges are the same, about 0 where they have nothing in common or a picture has none.
    """
    correlations = np.einsum("nbp,nbp->nb", np.stack(left), np.stack(right), dtype=np.float64)
    return [float(mean) for mean in correlations.mean(axis=1)]
