"""Crops an aligned face and pastes it back: pixels away from the face do not change."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Template = NDArray[np.float64]

ARCFACE: Template = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""ArcFace's landmark positions in a crop of 112 pixels (insightface, `face_align.py`)."""
SWAP_TEMPLATE: Template = ARCFACE + np.array([8, 0])
"""The same in inswapper's crop of 128."""

_FEATHER = 0.22
"""The outer fraction of the crop's half width over which the painted face fades out."""
_CHANGED = 3.0
"""Levels of 255: pixels that differ less count as unpainted and stay."""


def similarity_transform(landmarks: NDArray[np.floating], template: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the (2, 3) rotation, scale and translation that fit (5, 2) landmarks to the template by least squares."""
    source, target = (points[:, 0] + 1j * points[:, 1] for points in (landmarks.astype(float), template))
    centred = source - source.mean()
    rotation = (centred.conj() @ target) / max(float((abs(centred) ** 2).sum()), 1e-9)
    shift = target.mean() - rotation * source.mean()
    return np.array([(rotation.real, -rotation.imag, shift.real), (rotation.imag, rotation.real, shift.imag)])


def crop_face(image: Pixels, transform: NDArray[np.float64], side: int) -> Pixels:
    """Return the aligned crop, uint8 (side, side, 3); beyond the image's edge its border is replicated."""
    return np.asarray(cv2.warpAffine(image, transform, (side, side), borderMode=cv2.BORDER_REPLICATE), dtype=np.uint8)


def paste_face(
    image: Pixels,
    landmarks: NDArray[np.floating],
    template: NDArray[np.floating],
    side: int,
    paint: Callable[[Pixels], Pixels],
) -> Pixels:
    """Return `image` with the face at these landmarks replaced by `paint` of its crop of `side`² pixels.

    The painted face fades out towards the crop's rim and where `paint` changed nothing; no other pixel changes.
    """
    transform = similarity_transform(landmarks, template)
    before = crop_face(image, transform, side)
    after = paint(before)
    height, width = image.shape[:2]
    inverse = cv2.invertAffineTransform(transform)
    corners = inverse[:, :2] @ np.array([(0, side, side, 0), (0, 0, side, side)]) + inverse[:, 2:]
    left, top = np.clip(np.floor(corners.min(1)), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(1)) + 1, 0, (width, height)).astype(int)
    result = image.copy()
    if right <= left or bottom <= top:
        return result
    inverse[:, 2] -= left, top
    window = (int(right - left), int(bottom - top))
    opacity = cv2.warpAffine(_opacity(before, after), inverse, window, flags=cv2.INTER_LINEAR)[..., None]
    painted = cv2.warpAffine(after, inverse, window, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    original = image[top:bottom, left:right]
    blended = np.round(opacity * painted + (1 - opacity) * original)
    result[top:bottom, left:right] = np.where(opacity > 0, blended, original).astype(np.uint8)
    return result


def _opacity(before: Pixels, after: Pixels) -> NDArray[np.float32]:
    """Return the opacity, (side, side) in 0 to 1, of the painted pixels."""
    side = len(before)
    distance = np.abs(np.linspace(-1, 1, side, dtype=np.float32))
    # The L4 norm: a square with very round corners.
    radius = (distance[:, None] ** 4 + distance[None] ** 4) ** 0.25
    inside = np.clip((1 - 1 / 16 - radius) / _FEATHER, 0, 1)
    changed = (np.abs(before.astype(np.float32) - after).max(axis=2) > _CHANGED).astype(np.uint8)
    dilated = cv2.dilate(changed, np.ones((5, 5), np.uint8)).astype(np.float32)
    blurred = cv2.GaussianBlur(dilated, (0, 0), side / 64)
    return inside * inside * (3 - 2 * inside) * np.clip(2 * blurred, 0, 1)
