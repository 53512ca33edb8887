"""Cuts a face out upright and puts it back: what lies away from the face stays exactly as it was."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Template = NDArray[np.float64]

ARCFACE: Template = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
"""Where ArcFace wants the landmarks in a crop of 112 pixels (insightface, `face_align.py`)."""
SWAP_TEMPLATE: Template = ARCFACE + np.array([8, 0])
"""The same in inswapper's crop of 128."""

_FEATHER = 0.22
"""The crop's outer part, of its half width, over which what is painted fades out."""
_CHANGED = 3.0
"""Levels: what differs less was not meant to be painted, and stays."""


def similarity_transform(landmarks: NDArray[np.floating], template: NDArray[np.floating]) -> NDArray[np.float64]:
    """(2, 3): the turn, growth and shift that bring (5, 2) landmarks nearest to those of the template."""
    here, there = (points[:, 0] + 1j * points[:, 1] for points in (landmarks.astype(float), template))
    from_middle = here - here.mean()
    turn = (from_middle.conj() @ there) / max(float((abs(from_middle) ** 2).sum()), 1e-9)
    shift = there.mean() - turn * here.mean()
    return np.array([(turn.real, -turn.imag, shift.real), (turn.imag, turn.real, shift.imag)])


def crop_face(picture: Pixels, move: NDArray[np.float64], side: int) -> Pixels:
    """The upright crop, uint8 (side, side, 3); what lies beyond the picture's edge goes on as the edge is."""
    return np.asarray(cv2.warpAffine(picture, move, (side, side), borderMode=cv2.BORDER_REPLICATE), dtype=np.uint8)


def paste_face(
    picture: Pixels,
    landmarks: NDArray[np.floating],
    template: NDArray[np.floating],
    side: int,
    paint: Callable[[Pixels], Pixels],
) -> Pixels:
    """`picture` with the face at these landmarks as `paint` makes its crop of `side`² pixels.

    What was painted fades out towards the crop's rim and where it is as it was; elsewhere no pixel changes.
    """
    move = similarity_transform(landmarks, template)
    before = crop_face(picture, move, side)
    after = paint(before)
    height, width = picture.shape[:2]
    back = cv2.invertAffineTransform(move)
    corners = back[:, :2] @ np.array([(0, side, side, 0), (0, 0, side, side)]) + back[:, 2:]
    left, top = np.clip(np.floor(corners.min(1)), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(1)) + 1, 0, (width, height)).astype(int)
    result = picture.copy()
    if right <= left or bottom <= top:
        return result
    back[:, 2] -= left, top
    window = (int(right - left), int(bottom - top))
    share = cv2.warpAffine(_share(before, after), back, window, flags=cv2.INTER_LINEAR)[..., None]
    painted = cv2.warpAffine(after, back, window, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    old = picture[top:bottom, left:right]
    mixed = np.round(share * painted + (1 - share) * old)
    result[top:bottom, left:right] = np.where(share > 0, mixed, old).astype(np.uint8)
    return result


def _share(before: Pixels, after: Pixels) -> NDArray[np.float32]:
    """(side, side) in 0 to 1: how much of each pixel is to be what was painted."""
    side = len(before)
    along = np.abs(np.linspace(-1, 1, side, dtype=np.float32))
    # A square with very round corners.
    away = (along[:, None] ** 4 + along[None] ** 4) ** 0.25
    inside = np.clip((1 - 1 / 16 - away) / _FEATHER, 0, 1)
    changed = (np.abs(before.astype(np.float32) - after).max(axis=2) > _CHANGED).astype(np.uint8)
    grown = cv2.dilate(changed, np.ones((5, 5), np.uint8)).astype(np.float32)
    soft = cv2.GaussianBlur(grown, (0, 0), side / 64)
    return inside * inside * (3 - 2 * inside) * np.clip(2 * soft, 0, 1)
