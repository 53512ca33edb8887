"""The drawn world of faces: distinct people in any pose, expression and light, with their ground truth.

A `Person` is determined by a number and recognised by their `Features`; hair, clothes and light may change. A
`FaceScene` has the position of each face, so that detection, recognition and swapping can be evaluated.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 256
"""Pixels along each side of a scene and of a portrait."""
FIRST_HELD_OUT_PERSON = 2**31
"""People with this number or a higher one are held out from training."""

Colour = tuple[int, int, int]
Points = NDArray[np.float64]

SKINS: tuple[Colour, ...] = (
    (255, 226, 200),
    (244, 203, 170),
    (228, 178, 136),
    (200, 142, 98),
    (150, 97, 64),
    (104, 68, 48),
)
"""From fair to dark; a complexion is interpolated between them."""
EYES: dict[str, Colour] = {
    "brown": (110, 66, 34),
    "black": (38, 28, 28),
    "blue": (58, 128, 204),
    "green": (66, 148, 84),
    "grey": (132, 146, 158),
    "amber": (206, 142, 38),
}
HAIRS: dict[str, Colour] = {
    "black": (36, 30, 36),
    "brown": (94, 58, 36),
    "chestnut": (142, 74, 40),
    "red": (200, 84, 36),
    "blond": (232, 190, 104),
    "grey": (168, 168, 174),
}
LIPS: tuple[Colour, ...] = ((204, 98, 98), (176, 60, 72), (226, 132, 122), (146, 74, 70), (200, 56, 96))
CLOTHES: tuple[Colour, ...] = (
    (52, 92, 140),
    (196, 72, 66),
    (72, 138, 108),
    (236, 186, 84),
    (116, 84, 146),
    (68, 72, 88),
    (238, 234, 224),
)
GROUNDS: tuple[Colour, ...] = (
    (244, 226, 204),
    (204, 226, 236),
    (214, 232, 206),
    (238, 210, 214),
    (220, 212, 238),
    (250, 238, 190),
    (172, 196, 212),
)
FRAMES: tuple[Colour, ...] = ((44, 42, 50), (150, 62, 52), (178, 142, 70))
NOSES = ("button", "straight", "broad")
STYLES = ("short", "side", "bob", "long", "bun", "curls", "bald")
NAMES = ("Mira", "Jonas", "Amara", "Leo", "Yuki", "Nadia", "Tariq", "Elin", "Rosa", "Kofi", "Ines", "Bela")


@dataclass(frozen=True)
class Features:
    """The features that identify a person. Numbers are from 0 to 1 unless stated otherwise."""

    skin: float
    width: float
    jaw: float
    chin: float
    eye_colour: str
    eye_size: float
    eye_spacing: float
    eye_slant: float
    brow_colour: str
    brow_weight: float
    brow_arch: float
    nose: str
    nose_size: float
    mouth_width: float
    lips: int
    """An index of `LIPS`."""
    fullness: float
    freckles: bool
    moustache: bool
    beard: bool
    glasses: int | None
    """An index of `FRAMES`, if any."""

    @property
    def half_width(self) -> float:
        return 34.5 + 6.5 * self.width

    @property
    def depth(self) -> float:
        """The distance from nose to chin."""
        return 38 + 6 * self.chin


@dataclass(frozen=True)
class Person:
    """A person: identifying features, and hair and clothes, which may change."""

    features: Features
    style: str
    hair: str
    clothes: int


@dataclass(frozen=True)
class Pose:
    """Position of the nose in pixels, size (1: as large as ArcFace's crop of 112), and orientation of a face.

    `tilt` is in radians, in the plane of the image; `turn` from −1 to 1 is to the picture's left or right.
    """

    x: float
    y: float
    size: float
    tilt: float = 0.0
    turn: float = 0.0


@dataclass(frozen=True)
class Expression:
    """`smile`, `look` and `glance` go from −1 to 1, `open` (the mouth) from 0 to 1."""

    smile: float = 0.6
    open: float = 0.0
    look: float = 0.0
    glance: float = 0.0


@dataclass(frozen=True)
class Light:
    """A tint for each channel, and the side it comes from, −1 (left) to 1."""

    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    side: float = 0.3


@dataclass(frozen=True)
class FaceFigure:
    """A person in an image."""

    person: Person
    pose: Pose
    expression: Expression = Expression()

    @cached_property
    def landmarks(self) -> NDArray[np.float32]:
        """(5, 2) float32, x and y in pixels: the eyes, the nose and the corners of the mouth, left ones first."""
        features, turn = self.person.features, self.pose.turn
        apart, half, corner = _eye_distance(features), _mouth_half(self), _mouth_y(self.expression, 1.0)
        face = np.array(
            [
                (3 * turn - apart, -20),
                (3 * turn + apart, -20),
                (5 * turn, 0),
                (3.5 * turn - half, corner),
                (3.5 * turn + half, corner),
            ]
        )
        return self.placed(face).astype(np.float32)

    @cached_property
    def box(self) -> NDArray[np.float32]:
        """(4,) float32 left, top, right, bottom of the face from hairline to chin; may reach over the edge."""
        outline = self.placed(_outline(self.person.features))
        return np.concatenate([outline.min(axis=0), outline.max(axis=0)]).astype(np.float32)

    def placed(self, points: Points) -> Points:
        """Return (n, 2) points of the face's own frame, whose origin is the nose, in the image's pixels."""
        pose = self.pose
        cos, sin = math.cos(pose.tilt) * pose.size, math.sin(pose.tilt) * pose.size
        return points @ np.array([(cos, sin), (-sin, cos)]) + (pose.x, pose.y)


@dataclass(frozen=True)
class FaceScene:
    """A scene to draw: a ground with objects, people from back to front, and the light."""

    figures: tuple[FaceFigure, ...]
    ground: int = 1
    seed: int = 0
    """Seed of the objects: balls, trees, a sun."""
    things: int = 0
    light: Light = Light()
    side: int = SIDE


def make_person(number: int) -> Person:
    """Return the person with this number."""
    rng = np.random.default_rng([number, 7])

    def draw_number() -> float:
        return round(float(rng.random()), 3)

    hair = str(rng.choice(list(HAIRS)))
    bearded = rng.random() < 0.3
    features = Features(
        skin=draw_number(),
        width=draw_number(),
        jaw=draw_number(),
        chin=draw_number(),
        eye_colour=str(rng.choice(list(EYES))),
        eye_size=draw_number(),
        eye_spacing=draw_number(),
        eye_slant=draw_number(),
        brow_colour=hair,
        brow_weight=draw_number(),
        brow_arch=draw_number(),
        nose=str(rng.choice(NOSES)),
        nose_size=draw_number(),
        mouth_width=draw_number(),
        lips=int(rng.integers(len(LIPS))),
        fullness=draw_number(),
        freckles=bool(rng.random() < 0.25),
        moustache=bool(bearded and rng.random() < 0.7),
        beard=bool(bearded and rng.random() < 0.7),
        glasses=int(rng.integers(len(FRAMES))) if rng.random() < 0.25 else None,
    )
    return Person(features, str(rng.choice(STYLES)), hair, int(rng.integers(len(CLOTHES))))


def make_expression(rng: Generator) -> Expression:
    """Return a random expression: half of all mouths are open a little."""
    smile, look, glance = (float(v) for v in rng.uniform(-1, 1, 3))
    return Expression(0.25 + 0.75 * smile, max(0.0, float(rng.uniform(-1, 1))), look, glance)


def make_light(rng: Generator) -> Light:
    """Return a random light in which faces are visible."""
    warmth, side = (float(v) for v in rng.uniform(-1, 1, 2))
    level = float(rng.uniform(0.84, 1.04))
    return Light((level * (1 + 0.05 * warmth), level, level * (1 - 0.05 * warmth)), side)


def make_scene(people: Sequence[Person], rng: Generator, at_edge: bool = False) -> FaceScene:
    """Return a scene of these people side by side, each face whole; `at_edge`: the first face is cut by an edge."""
    count = len(people)
    places = rng.permutation(count)
    figures = []
    for index, (person, place) in enumerate(zip(people, places, strict=True)):
        size = float(rng.uniform(0.5, 1.35 if count == 1 else 1.0) / (1.0 if count < 3 else 1.3))
        slot = SIDE / count
        room = max(0.0, slot / 2 - 44 * size)
        x = slot * (place + 0.5) + float(rng.uniform(-1, 1)) * room
        low, high = 66 * size, SIDE - 50 * size
        y = float(rng.uniform(low, max(low, high)))
        tilt, turn = float(rng.uniform(-0.35, 0.35)), float(rng.uniform(-1, 1))
        if at_edge and index == 0:
            # A third of the face at most is outside.
            out = float(rng.uniform(12, 30)) * size
            x = out if place == 0 and (count > 1 or rng.random() < 0.5) else SIDE - out
            x = x if count == 1 or place in (0, count - 1) else slot * (place + 0.5)
            y = out + 4 * size if 0 < place < count - 1 else y
        figures.append(FaceFigure(person, Pose(x, y, size, tilt, turn), make_expression(rng)))
    return FaceScene(
        tuple(sorted(figures, key=lambda figure: figure.pose.size)),
        ground=int(rng.integers(len(GROUNDS))),
        seed=int(rng.integers(2**31)),
        things=int(rng.integers(1, 5)) if count else int(rng.integers(3, 9)),
        light=make_light(rng),
    )


def make_portrait(person: Person) -> FaceScene:
    """Return a character's portrait scene: alone, upright, in even light."""
    return FaceScene(
        (FaceFigure(person, Pose(SIDE / 2, 0.54 * SIDE, 1.45), Expression()),), ground=person.clothes % len(GROUNDS)
    )


def face_mask(figure: FaceFigure, side: int = SIDE) -> Image.Image:
    """Return the mask of a figure's face: L, `side`², white on the face, black elsewhere."""
    image = Image.new("L", (side, side))
    outline = figure.placed(1.08 * _outline(figure.person.features))
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in outline], fill=255)
    return image


def draw_faces(scene: FaceScene) -> NDArray[np.uint8]:
    """Return the image of a scene, uint8 (side, side, 3) RGB."""
    fine = Image.new("RGB", (scene.side * _SUPERSAMPLING,) * 2, GROUNDS[scene.ground])
    pen = ImageDraw.Draw(fine)
    _draw_ground(pen, scene)
    for figure in scene.figures:
        _FigurePainter(pen, figure, scene.light.side).draw()
    pixels = np.asarray(fine.reduce(_SUPERSAMPLING), dtype=np.float32)
    across = 1 + 0.07 * scene.light.side * np.linspace(-1, 1, scene.side, dtype=np.float32)
    lit = pixels * across[None, :, None] * np.array(scene.light.tint, dtype=np.float32)
    return np.clip(lit + 0.5, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class FaceTask:
    """A character, and a scene in which their figure has another person's face; `figure` is None without a face."""

    character: Person
    scene: FaceScene
    figure: FaceFigure | None

    @property
    def ideal(self) -> FaceScene:
        """The scene with the character's face."""
        return self.with_face(self.character)

    def with_face(self, person: Person) -> FaceScene:
        """Return the scene with the face of `person` instead of the wrong one; hair and clothes stay."""
        if self.figure is None:
            return self.scene
        corrected = replace(self.figure, person=replace(self.figure.person, features=person.features))
        return replace(self.scene, figures=tuple(corrected if f is self.figure else f for f in self.scene.figures))


KINDS = ("one", "several", "edge", "one", "none", "one")
"""The kinds of tasks, in turn: one face, several, one cut by the edge, none."""


def face_task(kind: str, rng: Generator) -> FaceTask:
    """Return a task of held-out people. The wrong face has the character's complexion, hair and clothes."""
    character, *others = (
        make_person(int(number)) for number in rng.integers(FIRST_HELD_OUT_PERSON, 2 * FIRST_HELD_OUT_PERSON, 27)
    )
    similar = min(others[3:], key=lambda other: abs(other.features.skin - character.features.skin))
    wrong = replace(character, features=similar.features)
    people = {"none": [], "several": [wrong, *others[: int(rng.integers(1, 3))]]}.get(kind, [wrong])
    scene = make_scene(people, rng, at_edge=kind == "edge")
    return FaceTask(character, scene, next((figure for figure in scene.figures if figure.person is wrong), None))


def face_tasks(count: int, rng: Generator) -> list[FaceTask]:
    """Return `count` tasks of `KINDS` in turn."""
    return [face_task(KINDS[index % len(KINDS)], rng) for index in range(count)]


def write_face_example(folder: Path, count: int, seed: int) -> Path:
    """Write `count` tasks as a Label Studio project exports them, and return the file.

    `export.json` is Label Studio's list of tasks; its URLs are the names of images in the same folder: the character's
    portrait, the scene with the wrong face (`init_image_url`), the mask of that face, and the image that a human
    reviewed (`image_url`): the verdict is "No Issues" for the right face, "Inconsistent Character" for the wrong one,
    and "Error" without a face.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 5])
    exported = []
    for index, task in enumerate(face_tasks(count, rng)):
        number = 71651001 + index
        is_corrected = task.figure is not None and rng.random() < 0.3
        verdict = "Error" if task.figure is None else "No Issues" if is_corrected else "Inconsistent Character"
        images = {
            "character_image_url": Image.fromarray(draw_faces(make_portrait(task.character))),
            "init_image_url": Image.fromarray(draw_faces(task.scene)),
            "mask_image_url": face_mask(task.figure) if task.figure else _random_mask(rng),
            "image_url": Image.fromarray(draw_faces(task.ideal if is_corrected else task.scene)),
        }
        names = {}
        for key, image in images.items():
            kind = key.removesuffix("_url").removesuffix("_image")
            names[key] = f"{number}_{kind}.{'webp' if kind == 'init' else 'png'}"
            image.save(folder / names[key], lossless=True)
        name = NAMES[index % len(NAMES)]
        exported.append(
            {
                "id": 2476001 + index,
                "data": {
                    "id": str(number),
                    "character_id": f"CHA{index:04d}",
                    "character_name": name,
                    **names,
                    "prompt": f"{name}, {_describe_person(task.character)}, the face of the reference picture",
                },
                "annotations": [{"id": 258001 + index, "result": [_choice(verdict)], "was_cancelled": False}],
                "predictions": [],
                "project": 14514,
            }
        )
    file = folder / "export.json"
    file.write_text(json.dumps(exported, indent=1) + "\n")
    return file


def _choice(verdict: str) -> dict[str, object]:
    return {"from_name": "issues", "to_name": "final", "type": "choices", "value": {"choices": [verdict]}}


def _describe_person(person: Person) -> str:
    hair = "no hair" if person.style == "bald" else f"{person.hair} hair"
    return f"{hair} and glasses" if person.features.glasses is not None else hair


def _random_mask(rng: Generator) -> Image.Image:
    """Return a mask at a random place, for a scene without a face."""
    image = Image.new("L", (SIDE, SIDE))
    x, y = (float(v) for v in rng.uniform(60, SIDE - 60, 2))
    ImageDraw.Draw(image).ellipse((x - 36, y - 46, x + 36, y + 46), fill=255)
    return image


_SUPERSAMPLING = 3
"""Supersampling factor: images are drawn so many times larger and reduced, for smooth edges."""

_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 36, False)), np.sin(np.linspace(0, 2 * np.pi, 36, False))], axis=1)
_ALONG = np.linspace(-1, 1, 13)


def _mix_colours(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _skin(features: Features) -> Colour:
    place = features.skin * (len(SKINS) - 1)
    below = min(int(place), len(SKINS) - 2)
    return _mix_colours(SKINS[below], SKINS[below + 1], place - below)


def _eye_distance(features: Features) -> float:
    """Return the horizontal distance of an eye from the middle."""
    return 15.6 + 4 * features.eye_spacing


def _mouth_half(figure: FaceFigure) -> float:
    return (11.0 + 6 * figure.person.features.mouth_width) * (1 + 0.08 * figure.expression.smile)


def _mouth_y(expression: Expression, place: float) -> float:
    """Return the height of the line between the lips at `place`, from −1 to 1 along it."""
    return 20.5 - 5 * expression.smile * (place**2 - 0.35)


def _outline(features: Features) -> Points:
    """Return a head's outline: an ellipse above, below it squarer the stronger the jaw."""
    power = 0.96 - 0.36 * features.jaw
    x = np.sign(_CIRCLE[:, 0]) * abs(_CIRCLE[:, 0]) ** np.where(_CIRCLE[:, 1] > 0, power, 1.0)
    y = np.where(_CIRCLE[:, 1] > 0, (features.depth + 10) * _CIRCLE[:, 1], 44 * _CIRCLE[:, 1])
    return np.stack([features.half_width * x, y - 10], axis=1)


class _FigurePainter:
    """Draws one figure from back to front."""

    def __init__(self, pen: ImageDraw.ImageDraw, figure: FaceFigure, lit_from: float) -> None:
        self.pen, self.figure, self.lit_from = pen, figure, lit_from
        self.features, self.turn, self.mood = figure.person.features, figure.pose.turn, figure.expression
        self.skin = _skin(self.features)
        self.shade = _mix_colours(self.skin, (96, 40, 40), 0.24)
        self.line = _mix_colours(self.skin, (60, 24, 24), 0.5)
        self.hair = HAIRS[figure.person.hair]
        self.hair_shade = _mix_colours(self.hair, (20, 10, 20), 0.25)
        self.outline = _outline(self.features)

    def draw(self) -> None:
        self._behind()
        self._body()
        self._head()
        self._cheeks()
        self._beard()
        self._nose()
        self._mouth()
        for side in (-1, 1):
            self._eye(side)
        if self.features.glasses is not None:
            self._glasses(FRAMES[self.features.glasses])
        self._fringe()

    def _fill(self, points: Points, colour: Colour) -> None:
        self.pen.polygon((self.figure.placed(points) * _SUPERSAMPLING).ravel().tolist(), fill=colour)

    def _disc(self, x: float, y: float, across: float, down: float, colour: Colour) -> None:
        self._fill(_CIRCLE * (across, down) + (x, y), colour)

    def _stroke(self, points: Points, width: float, colour: Colour) -> None:
        broad = max(1, round(width * self.figure.pose.size * _SUPERSAMPLING))
        self.pen.line(
            (self.figure.placed(points) * _SUPERSAMPLING).ravel().tolist(), fill=colour, width=broad, joint="curve"
        )

    def _behind(self) -> None:
        half, style = self.features.half_width, self.figure.person.style
        if style == "bob":
            self._fill(_rounded(half + 10, -60, 34), self.hair_shade)
        elif style == "long":
            self._fill(_rounded(half + 11, -60, 72), self.hair_shade)
        elif style == "bun":
            self._disc(0, -66, 17, 15, self.hair)
            self._disc(0, -24, half + 4, 40, self.hair_shade)
        elif style == "curls":
            for angle in np.linspace(-0.25, np.pi + 0.25, 9):
                x, y = (half + 4) * math.cos(angle), -22 - 36 * math.sin(angle)
                self._disc(x, y, 17, 17, self.hair_shade if abs(x) > half - 6 else self.hair)

    def _body(self) -> None:
        cloth = CLOTHES[self.figure.person.clothes]
        shoulders = np.array([(-14, 56), (14, 56), (40, 66), (58, 84), (66, 900), (-66, 900), (-58, 84), (-40, 66)])
        self._fill(self._upright(shoulders), cloth)
        neck = np.array([(-14, 20), (14, 20), (15, 56), (0, 68), (-15, 56)])
        self._fill(self._upright(neck), self.shade)
        collar = self._upright(np.array([(-17, 56), (0, 71), (17, 56)]))
        self._stroke(collar, 3, _mix_colours(cloth, (255, 255, 255), 0.3))

    def _upright(self, body: Points) -> Points:
        """Return points of the body, which is tilted less than the head."""
        cos, sin = math.cos(0.7 * self.figure.pose.tilt), math.sin(0.7 * self.figure.pose.tilt)
        return (body - (0, 30)) @ np.array([(cos, -sin), (sin, cos)]) + (0, 30)

    def _head(self) -> None:
        half = self.features.half_width
        for side in (-1, 1):
            self._disc(
                side * (half + 1.5) - 2 * self.turn, -10, 6, 9, self.skin if side * self.lit_from > 0 else self.shade
            )
            self._disc(side * (half + 2) - 2 * self.turn, -10, 3, 5, self.line)
        self._fill(self.outline, self.shade)
        self._fill(self.outline * (0.955, 0.985) + (1.6 * self.lit_from, -0.6), self.skin)

    def _cheeks(self) -> None:
        blush = _mix_colours(self.skin, (236, 84, 84), 0.16)
        for side in (-1, 1):
            x = side * (self.features.half_width - 15) + 3 * self.turn
            self._disc(x, 4, 8, 5.5, blush)
            if self.features.freckles:
                for dx, dy in ((-7, -5), (-2, -3), (3, -6), (7, -2), (-5, 2), (0, 4), (5, 3)):
                    self._disc(x + side * dx - 2 * side, dy + 1, 1.25, 1.25, self.line)

    def _beard(self) -> None:
        colour = _mix_colours(HAIRS[self.features.brow_colour], self.skin, 0.15)
        middle = 3.5 * self.turn
        if self.features.beard:
            lower = self.outline[self.outline[:, 1] > 0]
            lower = lower[np.argsort(-lower[:, 0])]
            inner = np.stack([_ALONG * (self.features.half_width - 6), 15 - 7 * (1 - _ALONG**2)], axis=1)
            self._fill(np.concatenate([inner, lower]), colour)
        if self.features.moustache:
            top = np.stack([middle + 15 * _ALONG, 15.5 - 6.5 * (1 - abs(_ALONG)) ** 0.6], axis=1)
            low = np.stack([middle + 15 * _ALONG, 18.5 - 3 * (1 - abs(_ALONG))], axis=1)
            self._fill(np.concatenate([top, low[::-1]]), _mix_colours(colour, (20, 10, 10), 0.2))

    def _nose(self) -> None:
        x, size = 5 * self.turn, 0.75 + 0.55 * self.features.nose_size
        arc = np.stack([x + 5.2 * size * _ALONG, 1 + 3.4 * size * (1 - _ALONG**2)], axis=1)
        if self.features.nose == "button":
            self._disc(x, 0.5, 5.4 * size, 4.4 * size, _mix_colours(self.skin, (224, 96, 84), 0.3))
            self._stroke(arc, 1.4, self.line)
        elif self.features.nose == "straight":
            bend = -1 if self.turn > 0 else 1
            side = np.array([(x - bend * 2.5, -17), (x + bend * 1.5, -8), (x + bend * 5 * size, 1), (x - bend * 2, 4)])
            self._stroke(side, 1.9, self.line)
        else:
            self._fill(np.array([(x - 3, -14), (x + 3, -14), (x + 8 * size, 2), (x - 8 * size, 2)]), self.shade)
            self._disc(x, 1.5, 7.6 * size, 3.6 * size, self.shade)
            for side_of in (-1, 1):
                self._disc(x + side_of * 4 * size, 2.6, 1.8 * size, 1.3 * size, self.line)

    def _mouth(self) -> None:
        half, full, gape = _mouth_half(self.figure), 0.5 + self.features.fullness, self.mood.open
        x = 3.5 * self.turn + half * _ALONG
        line = np.array([_mouth_y(self.mood, place) for place in _ALONG])
        bulge = 1 - _ALONG**2
        top = line - 2.6 * full * bulge * (1 - 0.35 * np.exp(-((_ALONG / 0.22) ** 2)))
        low = line + (3.4 * full + 7 * gape) * bulge
        colour = _mix_colours(LIPS[self.features.lips], self.skin, 0.12)
        self._fill(np.concatenate([np.stack([x, top], 1), np.stack([x, low], 1)[::-1]]), colour)
        if gape > 0.12:
            inner = np.concatenate([np.stack([x, line], 1), np.stack([x, line + 7.4 * gape * bulge], 1)[::-1]])
            self._fill((inner - (3.5 * self.turn, 0)) * (0.84, 1) + (3.5 * self.turn, 0), (104, 30, 38))
            teeth = np.concatenate([np.stack([x, line], 1), np.stack([x, line + 2.6 * gape * bulge], 1)[::-1]])
            self._fill((teeth - (3.5 * self.turn, 0)) * (0.74, 1) + (3.5 * self.turn, 0), (250, 246, 240))
        else:
            self._stroke(np.stack([x, line], 1), 1.3, _mix_colours(colour, (60, 16, 24), 0.5))

    def _eye(self, side: int) -> None:
        features, mood = self.features, self.mood
        size = 0.8 + 0.5 * features.eye_size
        x, y = side * _eye_distance(features) + 3 * self.turn, -20.0
        lean = np.array([_ALONG * 8.4 * size, -side * _ALONG * 3.4 * (features.eye_slant - 0.55)])
        upper = np.stack([x + lean[0], y + lean[1] - 5.2 * size * (1 - _ALONG**2)], axis=1)
        lower = np.stack([x + lean[0], y + lean[1] + 4.4 * size * (1 - _ALONG**2)], axis=1)
        self._fill(np.concatenate([upper, lower[::-1]]), (252, 250, 246))
        gaze_x, gaze_y = x + 2.6 * mood.look * size, y + 0.7 * mood.glance
        iris = EYES[features.eye_colour]
        self._disc(gaze_x, gaze_y, 4.3 * size, 4.3 * size, _mix_colours(iris, (0, 0, 0), 0.35))
        self._disc(gaze_x, gaze_y, 3.6 * size, 3.6 * size, iris)
        self._disc(gaze_x, gaze_y, 1.9 * size, 1.9 * size, (18, 14, 18))
        self._disc(gaze_x + 1.4 * size, gaze_y - 1.5 * size, 1.1 * size, 1.1 * size, (255, 255, 255))
        self._stroke(upper, 2.0, _mix_colours(self.line, (30, 16, 20), 0.7))
        weight, arch = 1.8 + 3.2 * features.brow_weight, 1 + 5 * features.brow_arch
        along = np.linspace(-1, 1, 9)
        brow_y = y - 10.5 - 3 * size - arch * (0.6 - (along * side - 0.05) ** 2)
        thick = weight * (0.55 + 0.45 * (1 - (along * side + 1) / 2))
        brow_x = x + 10.5 * along + side
        brow = np.concatenate(
            [np.stack([brow_x, brow_y - thick / 2], 1), np.stack([brow_x, brow_y + thick / 2], 1)[::-1]]
        )
        self._fill(brow, _mix_colours(HAIRS[features.brow_colour], (30, 18, 18), 0.25))

    def _glasses(self, frame: Colour) -> None:
        rings = []
        for side in (-1, 1):
            x = side * _eye_distance(self.features) + 3 * self.turn
            ring = np.sign(_CIRCLE) * abs(_CIRCLE) ** 0.75 * (13.2, 11.4) + (x, -19)
            self._stroke(np.concatenate([ring, ring[:2]]), 2.2, frame)
            rings.append(ring)
            edge = side * self.features.half_width
            self._stroke(np.array([(x + side * 13.2, -21), (edge, -22)]), 2.0, frame)
        left, right = rings[0][:, 0].max(), rings[1][:, 0].min()
        self._stroke(np.array([(left, -20), ((left + right) / 2, -22.5), (right, -20)]), 2.2, frame)

    def _fringe(self) -> None:
        half, style = self.features.half_width, self.figure.person.style
        if style == "bald":
            return
        top = self.outline[self.outline[:, 1] < -22]
        cap = top[np.argsort(top[:, 0])] * (1.09, 1.12) + (0, -1)
        inner = {
            "short": [
                (half - 1, -26),
                (half - 8, -37),
                (half - 16, -42),
                (6, -43),
                (-half + 12, -42),
                (-half + 1, -26),
            ],
            "side": [(half, -20), (half - 5, -34), (18, -38), (-4, -42), (-half + 14, -46), (-half + 1, -24)],
            "bob": [(half, -10), (half - 5, -33), (16, -36), (0, -35), (-16, -36), (-half + 5, -33), (-half, -10)],
            "long": [(half, -6), (half - 6, -28), (12, -44), (0, -50), (-12, -44), (-half + 6, -28), (-half, -6)],
            "bun": [(half - 1, -24), (half - 8, -36), (12, -46), (-12, -46), (-half + 8, -36), (-half + 1, -24)],
            "curls": [(half, -22), (half - 9, -35), (14, -41), (4, -38), (-8, -43), (-half + 9, -35), (-half, -22)],
        }[style]
        self._fill(np.concatenate([cap, np.array(inner)]), self.hair)
        shine = np.stack([-half * 0.1 + 13 * _ALONG + 8 * self.lit_from, -50 + 3 * _ALONG**2], axis=1)
        self._stroke(shine, 2.0, _mix_colours(self.hair, (255, 255, 255), 0.22))


def _rounded(half: float, top: float, bottom: float) -> Points:
    """Return a tall shape with a round top."""
    above = _CIRCLE[_CIRCLE[:, 1] <= 0.01]
    above = above[np.argsort(above[:, 0])] * (half, -top - 8) + (0, -8)
    return np.concatenate(
        [above, [(half, bottom - 10), (half - 10, bottom), (10 - half, bottom), (-half, bottom - 10)]]
    )


def _draw_ground(pen: ImageDraw.ImageDraw, scene: FaceScene) -> None:
    """Draw the background and its objects, some round, so that a detector learns to ignore them."""
    rng = np.random.default_rng(scene.seed)
    side, base = scene.side * _SUPERSAMPLING, GROUNDS[scene.ground]
    for line in range(0, side, 8):
        pen.rectangle(
            (0, line, side, line + 8), fill=_mix_colours(_mix_colours(base, (255, 255, 255), 0.25), base, line / side)
        )
    if not scene.things:
        return
    horizon = float(rng.uniform(0.55, 0.85)) * side
    hill = _mix_colours(GROUNDS[int(rng.integers(len(GROUNDS)))], (90, 120, 100), 0.35)
    wave = np.linspace(0, side, 13)
    ridge = horizon + 0.06 * side * np.sin(wave / side * 7 + rng.uniform(0, 6))
    pen.polygon([*zip(wave.tolist(), ridge.tolist(), strict=True), (side, side), (0, side)], fill=hill)
    for _ in range(scene.things):
        x, y, size = (
            float(rng.uniform(0, side)),
            float(rng.uniform(0.05, 0.9)) * side,
            float(rng.uniform(0.02, 0.14)) * side,
        )
        colour = (CLOTHES + SKINS)[int(rng.integers(len(CLOTHES) + len(SKINS)))]
        kind = rng.integers(5)
        if kind == 0:
            pen.rectangle((x - size / 8, y, x + size / 8, y + 2 * size), fill=(122, 92, 70))
            pen.ellipse((x - size, y - size, x + size, y + size), fill=(108, 156, 104))
        elif kind == 1:
            pen.rectangle((x - size, y - size / 2, x + size, y + size), fill=colour)
            pen.polygon(
                [(x - 1.2 * size, y - size / 2), (x, y - 1.4 * size), (x + 1.2 * size, y - size / 2)],
                fill=(164, 84, 70),
            )
            pen.rectangle((x - size / 4, y + size / 4, x + size / 4, y + size), fill=(96, 66, 52))
        else:
            pen.ellipse((x - size, y - size, x + size, y + size), fill=colour)
            if kind == 2:
                pen.ellipse(
                    (x - size / 2, y - size / 2, x + size / 2, y + size / 2), fill=_mix_colours(colour, base, 0.5)
                )
            elif kind == 3:
                pen.line((x - size, y, x + size, y), fill=(250, 250, 250), width=max(1, int(size / 5)))
