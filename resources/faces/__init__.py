"""Faces in images: position, identity, and how to select one.

These are plain values; the models are in `insight` (insightface's own classes) and `restore`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resources import masks

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Face:
    """A face in an image, in pixels, x before y.

    `box` is float32 (4,), left, top, right, bottom, and may reach over the image's edge; `landmarks` float32
    (5, 2): the eyes, the nose and the corners of the mouth, left ones first; `score` the detector's confidence, 0 to
    1; `embedding` ArcFace's, float32 (512,) of norm 1. A face `at_edge` is cut off by the edge or touches it: part
    of it may be invisible, so its embedding is less reliable.
    """

    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    score: float
    embedding: NDArray[np.float32] = field(repr=False)
    at_edge: bool = False

    @property
    def centre(self) -> tuple[float, float]:
        """The centre of the box, x and y."""
        left, top, right, bottom = (float(side) for side in self.box)
        return (left + right) / 2, (top + bottom) / 2

    @property
    def area(self) -> float:
        """The area of the box in pixels."""
        left, top, right, bottom = (float(side) for side in self.box)
        return (right - left) * (bottom - top)


def nearest_face(faces: Sequence[Face], point: tuple[float, float]) -> Face | None:
    """Return the face whose box's centre is nearest to `point`; None without faces."""
    return min(faces, key=lambda face: math.dist(face.centre, point), default=None)


def face_at_mask(faces: Sequence[Face], mask: masks.Mask) -> Face | None:
    """Return the face nearest to the mask's centre among those centred in its bounding box; None without one."""
    left, top, right, bottom = masks.bounding_box(mask)
    inside = [face for face in faces if left <= face.centre[0] < right and top <= face.centre[1] < bottom]
    return nearest_face(inside, masks.mask_centroid(mask))


def largest_face(faces: Sequence[Face]) -> Face | None:
    """Return the face with the largest box, a portrait's subject; None without faces."""
    return max(faces, key=lambda face: face.area, default=None)


def mask_centre(mask: Image) -> tuple[float, float] | None:
    """Return the centroid, x and y in pixels, of a mask's white area; None for a mask that is all black."""
    white = masks.mask_from_image(mask)
    return masks.mask_centroid(white) if white.any() else None


def identity_similarity(one: Face, other: Face) -> float:
    """Return the cosine of two faces' ArcFace embeddings (Deng et al. 2019), −1 to 1; 1 for equal embeddings."""
    return float(np.clip(one.embedding @ other.embedding, -1, 1))
