"""Edits of the drawn world: a source, a prompt, and by rule what became of them.

A prompt is one of the world's captions. It says what shall be seen; an attribute changes only where the
source does not show that yet, and everything else stays exactly as it is.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from resources.mini.reader import read_drawing
from resources.mini.world import (
    ATTRIBUTES,
    CAPTIONED_SCENES,
    PALETTE,
    SCENES,
    Drawing,
    DrawnScene,
    coverage,
    draw_image,
    sketch_drawing,
)

CHANGES: dict[str, tuple[str, ...]] = {
    "colour": ("colour",),
    "shape": ("shape",),
    "colour and shape": ("colour", "shape"),
    "background": ("background",),
    "position": ("position",),
    "size": ("size",),
}
"""The kinds of edits, and the attributes that each changes."""

UNSEEN_IN = 5
"""One pair of source scene and prompt in so many is never trained on."""

PLACE_TOLERANCE = 2.0
"""Pixels that a shape may have moved along either axis and still stand where it stood."""
RADIUS_TOLERANCE = 1.5
"""Pixels that its radius may have changed and still be the same."""
GROUND_TOLERANCE = 0.05
"""Mean absolute difference (0–1) that the ground may show and still be as it should."""

_ASKED = {wish.caption: wish for wish in CAPTIONED_SCENES}


@dataclass(frozen=True)
class Edit:
    """A source, what the prompt asks to see, and the drawing that shows it and is otherwise the source."""

    kind: str
    source: Drawing
    asked: DrawnScene
    target: Drawing

    @property
    def prompt(self) -> str:
        return self.asked.caption


@dataclass(frozen=True)
class EditTruth:
    """What became of an edit, by rule; see `truth`."""

    carried_out: bool
    preserved: bool
    score: float


def unseen(source: DrawnScene, asked: DrawnScene) -> bool:
    """Whether an edit of this scene with this prompt is kept from training."""
    return zlib.crc32(f"{source.caption}|{asked.caption}".encode()) % UNSEEN_IN == 0


def compose_edit(kind: str, rng: Generator, held_out: bool) -> Edit:
    """A random edit of one of the kinds `CHANGES`, of those kept from training or of the others.

    The source stands more freely than a `sketch`, so that keeping its place takes looking at it.
    """
    while True:
        old = SCENES[rng.integers(len(SCENES))]
        values = {
            name: str(rng.choice([v for v in ATTRIBUTES[name] if v != getattr(old, name)])) for name in CHANGES[kind]
        }
        new = replace(old, **values)
        # The briefest caption that speaks of all that changes.
        asked = next(wish for wish in reversed(new.briefer()) if values.keys() <= wish.said.keys())
        if new.colour != new.background and unseen(old, asked) == held_out:
            break
    start, end = sketch_drawing(old, rng), sketch_drawing(new, rng)
    dx, dy, dr = (float(v) for v in rng.uniform(-1, 1, 3))
    source = replace(start, x=float(start.x + dx), y=float(start.y + 3 * dy), radius=float(start.radius + dr))
    target = replace(
        source,
        scene=new,
        x=float(end.x) if "position" in values else source.x,
        radius=float(end.radius) if "size" in values else source.radius,
    )
    return Edit(kind, source, asked, target)


def edit_truth(source: NDArray[np.uint8], prompt: str, picture: NDArray[np.uint8]) -> EditTruth:
    """What an edit of `source` as `prompt` says made of it: both uint8 (SIDE, SIDE, 3), read by `reader.read`.

    The ideal edit is the source's drawing with the attributes that the prompt says; where position or size
    change, any place or radius within the attribute is ideal, so the picture's own is taken.

    - `carried_out`: the picture shows every attribute that the prompt says.
    - `preserved`: centre and radius are the ideal's within `PLACE_TOLERANCE` and `RADIUS_TOLERANCE`, and where
      neither the old shape nor the new one is (two pixels around them left out) the picture differs from
      the ideal by `GROUND_TOLERANCE` at most.
    - `score`, 0 to 1: of the attributes to change the share that did, times of the others the share that did
      not, times the intersection over union of the ideal shape and the pixels nearer to the picture's ink than
      to its ground, times 1 minus the ground's difference. The source itself scores 0, the ideal 1, a picture
      without a shape 0.

    `source` is a clean drawing; its shade counts. Raises `ValueError` where it shows no shape, or the
    prompt is no caption of this world.
    """
    old, new = read_drawing(source).drawing, read_drawing(picture).drawing
    if old is None:
        raise ValueError("the source of an edit shows a shape, this one none")
    if prompt not in _ASKED:
        raise ValueError(f"{prompt!r} is no caption of the drawn world")
    if new is None:
        return EditTruth(False, False, 0.0)
    asked = _ASKED[prompt]
    wanted = replace(old.scene, **asked.said)
    shown = wanted.shown_in(new.scene)
    changes = [name for name in ATTRIBUTES if getattr(wanted, name) != getattr(old.scene, name)]
    kept = [name for name in ATTRIBUTES if name not in changes]
    ideal = replace(
        old,
        scene=wanted,
        x=new.x if "position" in changes else old.x,
        radius=new.radius if "size" in changes else old.radius,
    )
    pixels = picture.astype(np.float32)
    covered = [coverage(d.scene.shape, d.x, d.y, d.radius + 2) for d in (old, new)]
    ground = np.maximum(*covered) == 0
    difference = float(abs(pixels - draw_image(ideal))[ground].mean() / 255) if ground.any() else 1.0
    return EditTruth(
        carried_out=all(asked.shown_in(new.scene).values()),
        preserved=max(abs(new.x - ideal.x), abs(new.y - ideal.y)) <= PLACE_TOLERANCE
        and abs(new.radius - ideal.radius) <= RADIUS_TOLERANCE
        and difference <= GROUND_TOLERANCE,
        score=_share(shown, changes) * _share(shown, kept) * _overlap(pixels, new.scene, ideal) * (1 - difference),
    )


def _share(shown: dict[str, bool], names: list[str]) -> float:
    return sum(shown[name] for name in names) / len(names) if names else 1.0


def _overlap(pixels: NDArray[np.float32], shown: DrawnScene, ideal: Drawing) -> float:
    """Intersection over union of what has the ink's colour, rather than the ground's, and the ideal shape."""
    from_ink, from_ground = (
        np.linalg.norm(pixels - PALETTE[name], axis=2) for name in (shown.colour, shown.said["background"])
    )
    patch, shape = from_ink < from_ground, coverage(ideal.scene.shape, ideal.x, ideal.y, ideal.radius) >= 0.5
    return float((patch & shape).sum() / (patch | shape).sum())


def write_edit_example(folder: Path, count: int, seed: int) -> Path:
    """Write an edit set of `count` edits kept from training, each kind in turn, and return its file.

    `edits.jsonl` has a line {"id", "image_path", "prompt"} for each, the sources are PNGs beside it. Nothing
    else is needed for `truth`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    kinds = list(CHANGES)
    lines = []
    for index in range(count):
        edit = compose_edit(kinds[index % len(kinds)], rng, held_out=True)
        name = f"{index:04d}"
        Image.fromarray(draw_image(edit.source)).save(folder / f"{name}.png")
        lines.append(json.dumps({"id": name, "image_path": f"{name}.png", "prompt": edit.prompt}))
    file = folder / "edits.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file
