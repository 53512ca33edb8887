"""The drawn world the mini models live in: one coloured shape on a coloured ground, and its truth.

A `Scene` is what a caption says. A `Drawing` is a scene put on paper: where exactly, and with which
flaws. Both are plain values, so everything a model is asked can be checked by rule (`reader.py`).
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
"""Radius in pixels of the disc with (nearly) the same area as the shape."""
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
    """What a caption says, each field one of `ATTRIBUTES`' values; None is what it leaves open.

    Size and position are said or left open together; without them the background may be left open too.
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
    def said(self) -> dict[str, str]:
        """The attributes the caption speaks of."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def shown_in(self, other: DrawnScene) -> dict[str, bool]:
        """For each attribute this scene speaks of, whether `other` is alike."""
        return {name: getattr(other, name) == value for name, value in self.said.items()}

    def briefer(self) -> tuple[DrawnScene, DrawnScene, DrawnScene]:
        """This scene in full, without size and position, and without the background as well."""
        plain = replace(self, size=None, position=None)
        return self, plain, replace(plain, background=None)


@dataclass(frozen=True)
class Flaws:
    """What can be wrong with a drawing, each from 0 (nothing) to 1 (as bad as it gets)."""

    blur: float = 0.0
    noise: float = 0.0
    blotches: float = 0.0
    burn: float = 0.0
    """Colours driven past their hue into saturation, as too much guidance does."""
    fade: float = 0.0
    """Colours washed out towards grey."""

    @property
    def cleanliness(self) -> float:
        """1 for a clean drawing, towards 0 as flaws add up."""
        return math.exp(-1.5 * sum(getattr(self, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Drawing:
    """A scene, said in full, on paper: centre and radius in pixels, shade in ±levels per channel, and flaws."""

    scene: DrawnScene
    x: float
    y: float
    radius: float
    shade: tuple[int, int, int] = (0, 0, 0)
    flaws: Flaws = Flaws()

    @property
    def composition(self) -> float:
        """0 to 1: the whole shape inside the frame, of good size, in contrast with its ground."""
        contrast = math.dist(PALETTE[self.scene.colour], PALETTE[self.scene.said["background"]])
        reach = 1.25 * self.radius
        overhang = max(0.0, reach - min(self.x, self.y), max(self.x, self.y) + reach - SIDE)
        balance = math.exp(-(((self.y - SIDE / 2) / 16) ** 2))
        return min(1.0, contrast / 260) * max(0.0, 1 - overhang / self.radius) * balance


def scenes() -> Iterator[DrawnScene]:
    """Every scene there is: shape and ground differ in colour."""
    for values in itertools.product(*ATTRIBUTES.values()):
        scene = DrawnScene(*values)
        if scene.colour != scene.background:
            yield scene


SCENES = tuple(scenes())
"""Every scene, said in full."""
CAPTIONED_SCENES = tuple(
    dict.fromkeys(wish for briefness in range(3) for s in SCENES for wish in [s.briefer()[briefness]])
)
"""What can be asked for: every scene in full, then the briefer ones, which several scenes fulfil."""


def sketch_drawing(scene: DrawnScene, rng: np.random.Generator) -> Drawing:
    """A clean drawing of a scene said in full: place and size vary a little within what it allows."""
    dx, dy, dr = rng.uniform(-1.5, 1.5, 3)
    red, green, blue = (int(v) for v in rng.integers(-8, 9, 3))
    return Drawing(
        scene,
        CENTRES[scene.said["position"]] + dx,
        SIDE / 2 + dy,
        RADII[scene.said["size"]] + dr / 2,
        (red, green, blue),
    )


def add_flaws(drawing: Drawing, rng: np.random.Generator) -> Drawing:
    """The same drawing with flaws: each absent two times in three; three in ten also lose their place.

    The scene of a shape that moved is what now stands there.
    """
    levels = [float(v) for v in rng.uniform(0, 1, len(fields(Flaws))) * (rng.random(len(fields(Flaws))) < 0.35)]
    spoiled = replace(drawing, flaws=Flaws(*levels))
    if rng.random() < 0.3:
        x, y = (float(v) for v in rng.uniform(4, SIDE - 4, 2))
        scene = replace(drawing.scene, position=min(CENTRES, key=lambda name: abs(CENTRES[name] - x)))
        spoiled = replace(spoiled, scene=scene, x=x, y=y)
    return spoiled


def coverage(shape: str, x: float, y: float, radius: float) -> NDArray[np.float32]:
    """How much of each pixel the shape covers: float32 (SIDE, SIDE) in 0–1, antialiased by signed distance."""
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
    """The picture: uint8 (SIDE, SIDE, 3) RGB. `rng` draws noise and blotches; a clean drawing needs none."""
    scene, flaws = drawing.scene, drawing.flaws
    cover = coverage(scene.shape, drawing.x, drawing.y, drawing.radius)[..., None]
    ground, ink = (np.add(PALETTE[name], drawing.shade) / 255 for name in (scene.said["background"], scene.colour))
    picture = ground * (1 - cover) + ink * cover
    picture = picture + flaws.burn * 1.2 * (picture - picture.mean(axis=2, keepdims=True) * 0.6 - 0.2)
    picture = picture + flaws.fade * 0.75 * (0.5 - picture)
    if flaws.blotches or flaws.noise:
        rng = rng or np.random.default_rng(0)
        clouds = gaussian_filter(rng.standard_normal((SIDE, SIDE, 3)), (5, 5, 0))
        picture = picture + flaws.blotches * 0.28 * clouds / clouds.std()
        picture = picture + flaws.noise * 0.25 * rng.standard_normal((SIDE, SIDE, 3))
    if flaws.blur:
        picture = gaussian_filter(picture, (3 * flaws.blur, 3 * flaws.blur, 0))
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


def taste_v1(drawing: Drawing) -> float:
    """The first jury's mark, 1 to 10: cleanliness counts most."""
    return 1 + 9 * (0.7 * drawing.flaws.cleanliness + 0.3 * drawing.composition)


def taste_v2(drawing: Drawing) -> float:
    """The second jury's mark, 1 to 10: composition counts most."""
    return 1 + 9 * (0.4 * drawing.flaws.cleanliness + 0.6 * drawing.composition)


def preference(drawing: Drawing, asked: DrawnScene) -> float:
    """How much people would prefer this drawing for that caption, 0 to 1: agreement first, then looks."""
    shown = asked.shown_in(drawing.scene)
    agreement = sum(shown.values()) / len(shown)
    return 0.5 * agreement + 0.3 * drawing.flaws.cleanliness + 0.2 * drawing.composition


def difference(one: Drawing, other: Drawing) -> float:
    """How unlike two drawings are, 0 for the same to 1: shape, colour, ground, size, place and flaws count alike."""

    def apart(name: str, another: str) -> float:
        return min(1.0, math.dist(PALETTE[name], PALETTE[another]) / 255)

    flaws = sum(abs(getattr(one.flaws, f.name) - getattr(other.flaws, f.name)) for f in fields(Flaws))
    parts = (
        float(one.scene.shape != other.scene.shape),
        apart(one.scene.colour, other.scene.colour),
        apart(one.scene.said["background"], other.scene.said["background"]),
        min(1.0, abs(one.radius - other.radius) / (RADII["large"] - RADII["small"])),
        min(1.0, math.dist((one.x, one.y), (other.x, other.y)) / (CENTRES["right"] - CENTRES["left"])),
        min(1.0, flaws),
    )
    return sum(parts) / len(parts)
