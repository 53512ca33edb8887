"""Reads an image of the drawn world by rule, without a model, as the ground truth for models."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label

from resources.mini.world import CENTRES, PALETTE, RADII, SHAPES, SIDE, Drawing, DrawnScene, coverage

_NAMES = tuple(PALETTE)
_COLOURS = np.array([PALETTE[name] for name in _NAMES], dtype=np.float32)
_SMALLEST_AREA = 60


@dataclass(frozen=True)
class Reading:
    """The content of an image. `drawing` is None where no shape is recognisable; its shade is the ground's.

    `deviation` (0–1) is the mean absolute difference from the clean, unshaded drawing of that content,
    averaged over pixels and channels.
    """

    drawing: Drawing | None
    deviation: float

    @property
    def scene(self) -> DrawnScene | None:
        """The scene of the drawing, if there is one."""
        return self.drawing.scene if self.drawing else None

    def agreement(self, requested: DrawnScene) -> dict[str, bool]:
        """Return, for each requested attribute, whether the image shows it."""
        return requested.attributes_shown_in(self.scene) if self.scene else dict.fromkeys(requested.attributes, False)


def read_drawing(image: NDArray[np.uint8]) -> Reading:
    """Return the content of a uint8 RGB image of (SIDE, SIDE, 3).

    The ground is the border's median colour; the shape is the largest connected patch that differs
    from it; its kind is the template of the same area and centre that overlaps it best.
    """
    if image.shape != (SIDE, SIDE, 3) or image.dtype != np.uint8:
        raise ValueError(f"invalid image {image.dtype} {image.shape}: must be uint8 ({SIDE}, {SIDE}, 3)")
    pixels = image.astype(np.float32)
    border = np.concatenate(
        [
            pixels[:3].reshape(-1, 3),
            pixels[-3:].reshape(-1, 3),
            pixels[:, :3].reshape(-1, 3),
            pixels[:, -3:].reshape(-1, 3),
        ]
    )
    ground = np.median(border, axis=0)
    background = _nearest(ground)
    blank = float(abs(pixels - _COLOURS[background]).mean() / 255)

    distance = gaussian_filter(np.linalg.norm(pixels - ground, axis=2), 0.7)
    patch = _largest_patch(distance > 60)
    if patch is None:
        return Reading(None, blank)
    ink = np.median(pixels[patch], axis=0)
    # The edge is half-way between the two colours, independent of the first threshold.
    patch = _largest_patch(np.linalg.norm(pixels - ink, axis=2) < np.linalg.norm(pixels - ground, axis=2))
    if patch is None:
        return Reading(None, blank)
    colour = _nearest(ink)
    if colour == background:
        return Reading(None, blank)

    area = float(patch.sum())
    y, x = (float(v.mean()) + 0.5 for v in np.nonzero(patch))
    radius = float(np.sqrt(area / np.pi))
    drawn = {name: _drawn_radius(name, x, y, radius) for name in SHAPES}
    covers = {name: coverage(name, x, y, drawn[name]) for name in SHAPES}
    shape = max(SHAPES, key=lambda name: _overlap(patch, covers[name]))
    cover = covers[shape]
    clean = _COLOURS[background] * (1 - cover[..., None]) + _COLOURS[colour] * cover[..., None]
    scene = DrawnScene(
        shape=shape,
        colour=_NAMES[colour],
        background=_NAMES[background],
        size=min(RADII, key=lambda name: abs(RADII[name] - radius)),
        position=min(CENTRES, key=lambda name: abs(CENTRES[name] - x)),
    )
    red, green, blue = (round(float(level)) for level in ground - _COLOURS[background])
    drawing = Drawing(scene, x, y, drawn[shape], (red, green, blue))
    return Reading(drawing, float(abs(pixels - clean).mean() / 255))


def _nearest(colour: NDArray[np.float32]) -> int:
    return int(np.linalg.norm(_COLOURS - colour, axis=1).argmin())


def _largest_patch(mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    labels, count = label(mask)
    if not count:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    return labels == sizes.argmax() + 1 if sizes.max() >= _SMALLEST_AREA else None


def _drawn_radius(shape: str, x: float, y: float, radius: float) -> float:
    """Return the radius with which the shape has the disc's area: one correction makes them equal."""
    return radius * math.sqrt(math.pi * radius**2 / max(float(coverage(shape, x, y, radius).sum()), 1.0))


def _overlap(patch: NDArray[np.bool_], cover: NDArray[np.float32]) -> float:
    return float(np.minimum(patch, cover).sum() / np.maximum(patch, cover).sum())
