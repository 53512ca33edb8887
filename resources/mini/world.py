"""The drawn world of the mini models: one coloured shape on a coloured ground, with its ground truth.

A `DrawnScene` is the content of a caption. A `Drawing` is a scene at an exact place, with flaws. Both are plain
values, so every output of a model can be checked by rule (`reader.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

SIDE = 64
"""Pixels along each side of a picture."""

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "yellow": (245, 208, 48),
    "green": (44, 160, 60),
    "blue": (36, 92, 210),
    "white": (244, 244, 244),
    "black": (24, 24, 24),
}
SHAPES = ("circle", "square", "triangle", "cross")
RADII = {"small": 11.0, "large": 17.0}
"""Radius in pixels of the disc with nearly the same area as the shape."""
CENTRES = {"left": 23.0, "middle": 32.0, "right": 41.0}
"""Horizontal centre in pixels; the vertical centre is the picture's."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(PALETTE),
    "background": tuple(PALETTE),
    "size": tuple(RADII),
    "position": tuple(CENTRES),
}


@dataclass(frozen=True)
class DrawnScene:
    """The content of a caption: each field is one of `ATTRIBUTES`' values, or None where it is unspecified.

    Size and position are unspecified together; without them the background may be unspecified too.
    """

    shape: str
    colour: str
    background: str | None
    size: str | None
    position: str | None

    @property
    def caption(self) -> str:
        if self.position is None:
            ground = f" on a {self.background} background" if self.background else ""
            return f"a {self.colour} {self.shape}{ground}"
        place = "in the middle" if self.position == "middle" else f"on the {self.position}"
        return f"a {self.size} {self.colour} {self.shape} {place} of a {self.background} background"

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes that the caption specifies."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def attributes_shown_in(self, other: DrawnScene) -> dict[str, bool]:
        """Return, for each attribute that this scene specifies, whether `other` has the same."""
        return {name: getattr(other, name) == value for name, value in self.attributes.items()}

    def with_less_detail(self) -> tuple[DrawnScene, DrawnScene, DrawnScene]:
        """Return this scene in full, without size and position, and also without the background."""
        plain = replace(self, size=None, position=None)
        return self, plain, replace(plain, background=None)


@dataclass(frozen=True)
class Flaws:
    """The flaws of a drawing, each from 0 (none) to 1 (worst)."""

    blur: float = 0.0
    noise: float = 0.0
    blotches: float = 0.0
    burn: float = 0.0
    """Oversaturated colours, as too much guidance makes them."""
    fade: float = 0.0
    """Colours faded towards grey."""

    @property
    def cleanliness(self) -> float:
        """1 for a clean drawing, towards 0 as flaws add up."""
        return math.exp(-1.5 * sum(getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Drawing:
    """A fully specified scene with its centre and radius in pixels, shade in ±levels per channel, and flaws."""

    scene: DrawnScene
    x: float
    y: float
    radius: float
    shade: tuple[int, int, int] = (0, 0, 0)
    flaws: Flaws = Flaws()

    @property
    def composition(self) -> float:
        """0 to 1: high for a shape inside the frame, vertically centred, in contrast with its ground."""
        contrast = math.dist(PALETTE[self.scene.colour], PALETTE[self.scene.attributes["background"]])
        reach = 1.25 * self.radius
        overhang = max(0.0, reach - min(self.x, self.y), max(self.x, self.y) + reach - SIDE)
        balance = math.exp(-(((self.y - SIDE / 2) / 16) ** 2))
        return min(1.0, contrast / 260) * max(0.0, 1 - overhang / self.radius) * balance


def scenes() -> Iterator[DrawnScene]:
    """Yield every scene: shape and ground differ in colour."""
    for values in itertools.product(*ATTRIBUTES.values()):
        scene = DrawnScene(*values)
        if scene.colour != scene.background:
            yield scene


SCENES = tuple(scenes())
"""Every scene, fully specified."""
CAPTIONED_SCENES = tuple(
    dict.fromkeys(scene.with_less_detail()[detail_level] for detail_level in range(3) for scene in SCENES)
)
"""Every scene with a caption: the fully specified ones, then the less detailed ones, which several scenes match."""


def sketch_drawing(scene: DrawnScene, rng: np.random.Generator) -> Drawing:
    """Return a clean drawing of a fully specified scene; place and size vary a little within their attributes."""
    dx, dy, dr = rng.uniform(-1.5, 1.5, 3)
    red, green, blue = (int(v) for v in rng.integers(-8, 9, 3))
    return Drawing(
        scene,
        CENTRES[scene.attributes["position"]] + dx,
        SIDE / 2 + dy,
        RADII[scene.attributes["size"]] + dr / 2,
        (red, green, blue),
    )


def add_flaws(drawing: Drawing, rng: np.random.Generator) -> Drawing:
    """Return the drawing with random flaws, each absent two times in three; three in ten are also moved.

    The scene of a moved shape has its new position.
    """
    levels = [float(v) for v in rng.uniform(0, 1, len(fields(Flaws))) * (rng.random(len(fields(Flaws))) < 0.35)]
    flawed = replace(drawing, flaws=Flaws(*levels))
    if rng.random() < 0.3:
        x, y = (float(v) for v in rng.uniform(4, SIDE - 4, 2))
        scene = replace(drawing.scene, position=min(CENTRES, key=lambda name: abs(CENTRES[name] - x)))
        flawed = replace(flawed, scene=scene, x=x, y=y)
    return flawed


def coverage(shape: str, x: float, y: float, radius: float) -> NDArray[np.float32]:
    """Return the coverage of each pixel by the shape: float32 (SIDE, SIDE) in 0–1, antialiased by signed distance."""
    v, u = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) + 0.5
    u, v = u - x, v - y
    if shape == "circle":
        distance = np.hypot(u, v) - radius
    elif shape == "square":
        distance = np.maximum(abs(u), abs(v)) - 0.89 * radius
    elif shape == "triangle":
        # Equilateral, standing on its side; the inscribed circle has half the circumscribed one's radius.
        inner = 0.72 * radius
        slope = np.sqrt(3) / 2
        distance = np.maximum(v, np.maximum(slope * u - v / 2, -slope * u - v / 2)) - inner
    else:
        long, short = 1.19 * radius, 0.40 * radius
        distance = np.minimum(np.maximum(abs(u) - long, abs(v) - short), np.maximum(abs(u) - short, abs(v) - long))
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def draw_image(drawing: Drawing, rng: np.random.Generator | None = None) -> NDArray[np.uint8]:
    """Return the image, uint8 (SIDE, SIDE, 3) RGB. `rng` draws noise and blotches; a clean drawing needs none."""
    scene, flaws = drawing.scene, drawing.flaws
    cover = coverage(scene.shape, drawing.x, drawing.y, drawing.radius)[..., None]
    ground, ink = (
        np.add(PALETTE[name], drawing.shade) / 255 for name in (scene.attributes["background"], scene.colour)
    )
    image = ground * (1 - cover) + ink * cover
    image = image + flaws.burn * 1.2 * (image - image.mean(axis=2, keepdims=True) * 0.6 - 0.2)
    image = image + flaws.fade * 0.75 * (0.5 - image)
    if flaws.blotches or flaws.noise:
        rng = rng or np.random.default_rng(0)
        clouds = gaussian_filter(rng.standard_normal((SIDE, SIDE, 3)), (5, 5, 0))
        image = image + flaws.blotches * 0.28 * clouds / clouds.std()
        image = image + flaws.noise * 0.25 * rng.standard_normal((SIDE, SIDE, 3))
    if flaws.blur:
        image = gaussian_filter(image, (3 * flaws.blur, 3 * flaws.blur, 0))
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def aesthetic_rule_v1(drawing: Drawing) -> float:
    """Return the first aesthetic rule's score, 1 to 10, in which cleanliness counts most."""
    return 1 + 9 * (0.7 * drawing.flaws.cleanliness + 0.3 * drawing.composition)


def aesthetic_rule_v2(drawing: Drawing) -> float:
    """Return the second aesthetic rule's score, 1 to 10, in which composition counts most."""
    return 1 + 9 * (0.4 * drawing.flaws.cleanliness + 0.6 * drawing.composition)


def preference(drawing: Drawing, requested: DrawnScene) -> float:
    """Return the simulated human preference for a drawing given a caption, 0 to 1: agreement first, then aesthetics."""
    shown = requested.attributes_shown_in(drawing.scene)
    agreement = sum(shown.values()) / len(shown)
    return 0.5 * agreement + 0.3 * drawing.flaws.cleanliness + 0.2 * drawing.composition


def difference(one: Drawing, other: Drawing) -> float:
    """Return the distance of two drawings, 0 to 1, equally by shape, colour, ground, size, place and flaws."""

    def colour_distance(name: str, another: str) -> float:
        return min(1.0, math.dist(PALETTE[name], PALETTE[another]) / 255)

    flaws = sum(abs(getattr(one.flaws, f.name) - getattr(other.flaws, f.name)) for f in fields(Flaws))
    parts = (
        float(one.scene.shape != other.scene.shape),
        colour_distance(one.scene.colour, other.scene.colour),
        colour_distance(one.scene.attributes["background"], other.scene.attributes["background"]),
        min(1.0, abs(one.radius - other.radius) / (RADII["large"] - RADII["small"])),
        min(1.0, math.dist((one.x, one.y), (other.x, other.y)) / (CENTRES["right"] - CENTRES["left"])),
        min(1.0, flaws),
    )
    return sum(parts) / len(parts)
