"""Layout agreement: whether two images have their edges in the same places, whatever their colours."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 64
"""Pixels per side at which images are compared: layout is coarse."""

BLURS = (1, 2, 4, 8)
"""σ, in pixels, of the blurs under which edges are compared: small ones compare shapes, large ones positions."""

LAYOUT_FINGERPRINT = f"edges{SIDE}/{'-'.join(map(str, BLURS))}"


def edge_maps(image: Image.Image) -> NDArray[np.float32]:
    """Return the blurred gradient magnitudes of an RGB image, float32 (len(BLURS), SIDE · SIDE), centred, of norm 1.

    All 0 for an image of one colour.
    """
    from scipy import ndimage

    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    gradients = [ndimage.sobel(pixels, axis) for axis in (0, 1)]
    strength = np.sqrt(sum((gradient**2).sum(axis=2) for gradient in gradients))
    levels = np.stack([ndimage.gaussian_filter(strength, blur).ravel() for blur in BLURS])
    levels -= levels.mean(axis=1, keepdims=True)
    return levels / np.maximum(np.linalg.norm(levels, axis=1, keepdims=True), 1e-6)


def layout_agreements(left: Sequence[NDArray[np.float32]], right: Sequence[NDArray[np.float32]]) -> list[float]:
    """Return the correlation of each pair of `edge_maps`, averaged over the blurs.

    1 for equal edges, about 0 for unrelated edges or an image without any.
    """
    correlations = np.einsum("nbp,nbp->nb", np.stack(left), np.stack(right), dtype=np.float64)
    return [float(mean) for mean in correlations.mean(axis=1)]
