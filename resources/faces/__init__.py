"""Faces in pictures: where they are, who they are, and one put in another's place.

What is here are plain values; the models behind them are in `insight` (insightface's own classes) and `restore`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False)
class Face:
    """A face in a picture, in its pixels, x before y.

    `box` is float32 (4,), left, top, right, bottom, and may reach over the picture's edge; `landmarks` float32
    (5, 2): the eyes, the nose and the corners of the mouth, left ones first; `score` how sure the detector is, 0 to 1;
    `embedding` float32 (512,) of length 1, ArcFace's. A face `at_edge` is cut by the edge, or touches it: part of
    it is not to be seen, so its embedding says less.
    """

    box: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    score: float
    embedding: NDArray[np.float32] = field(repr=False)
    at_edge: bool = False

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box."""
        left, top, right, bottom = (float(side) for side in self.box)
        return (left + right) / 2, (top + bottom) / 2

    @property
    def area(self) -> float:
        """Of the box, in pixels."""
        left, top, right, bottom = (float(side) for side in self.box)
        return (right - left) * (bottom - top)


def nearest_face(faces: Sequence[Face], point: tuple[float, float]) -> Face | None:
    """The face whose box's middle is nearest to `point`; None where there are none."""
    return min(faces, key=lambda face: math.dist(face.centre, point), default=None)


def largest_face(faces: Sequence[Face]) -> Face | None:
    """The face with the largest box, a portrait's own; None where there are none."""
    return max(faces, key=lambda face: face.area, default=None)


def mask_centre(mask: Image) -> tuple[float, float] | None:
    """The centre of gravity, x and y in pixels, of what is white in a mask; None where all of it is black."""
    white = np.asarray(mask.convert("L"), dtype=np.float64)
    total = white.sum()
    if not total:
        return None
    height, width = white.shape
    return float(white.sum(0) @ np.arange(width) / total + 0.5), float(white.sum(1) @ np.arange(height) / total + 0.5)


def identity_similarity(one: Face, other: Face) -> float:
    """How alike two faces are: ArcFace's cosine (Deng et al. 2019), −1 to 1; 1 for the same embedding."""
    return float(np.clip(one.embedding @ other.embedding, -1, 1))
