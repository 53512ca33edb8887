"""Edits of the drawn world: a source, an instruction, and their evaluation by rule.

An instruction is one of the world's captions. It specifies the result; an attribute changes only where the source
differs from it, and everything else stays exactly as it is.
"""

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

HELD_OUT_INTERVAL = 5
"""One in so many pairs of source scene and instruction is held out from training."""

PLACE_TOLERANCE = 2.0
"""Pixels by which a shape may move along either axis and still count as unmoved."""
RADIUS_TOLERANCE = 1.5
"""Pixels by which its radius may change and still count as unchanged."""
GROUND_TOLERANCE = 0.05
"""Mean absolute difference (0–1) of the ground that still counts as unchanged."""

_SCENE_OF_CAPTION = {scene.caption: scene for scene in CAPTIONED_SCENES}


@dataclass(frozen=True)
class Edit:
    """A source, the requested scene, and the target: the source with the requested attributes."""

    kind: str
    source: Drawing
    requested: DrawnScene
    target: Drawing

    @property
    def prompt(self) -> str:
        return self.requested.caption


@dataclass(frozen=True)
class EditTruth:
    """The evaluation of an edit by rule; see `edit_truth`."""

    carried_out: bool
    preserved: bool
    score: float


def is_held_out(source: DrawnScene, requested: DrawnScene) -> bool:
    """Whether edits of this scene with this instruction are held out from training."""
    return zlib.crc32(f"{source.caption}|{requested.caption}".encode()) % HELD_OUT_INTERVAL == 0


def compose_edit(kind: str, rng: Generator, held_out: bool) -> Edit:
    """Return a random edit of one of the kinds `CHANGES`, held out from training or not.

    The source varies more in place and size than `sketch_drawing`, so that preserving them requires reading it.
    """
    while True:
        old = SCENES[rng.integers(len(SCENES))]
        values = {
            name: str(rng.choice([v for v in ATTRIBUTES[name] if v != getattr(old, name)])) for name in CHANGES[kind]
        }
        new = replace(old, **values)
        # The shortest caption that specifies every change.
        requested = next(
            scene for scene in reversed(new.with_less_detail()) if values.keys() <= scene.attributes.keys()
        )
        if new.colour != new.background and is_held_out(old, requested) == held_out:
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
    return Edit(kind, source, requested, target)


def edit_truth(source: NDArray[np.uint8], prompt: str, image: NDArray[np.uint8]) -> EditTruth:
    """Return the evaluation of `image`, an edit of `source` by `prompt`; both uint8 (SIDE, SIDE, 3), read by rule.

    The ideal edit is the source's drawing with the attributes of the prompt; where position or size
    change, any place or radius within the attribute is ideal, so the image's own is used.

    - `carried_out`: the image shows every attribute of the prompt.
    - `preserved`: centre and radius are the ideal's within `PLACE_TOLERANCE` and `RADIUS_TOLERANCE`, and where
      neither the old shape nor the new one is (two pixels around them left out) the image differs from
      the ideal by `GROUND_TOLERANCE` at most.
    - `score`, 0 to 1: of the attributes to change the share that did, times of the others the share that did
      not, times the intersection over union of the ideal shape and the pixels nearer to the image's ink than
      to its ground, times 1 minus the ground's difference. The source itself scores 0, the ideal 1, a image
      without a shape 0.

    `source` is a clean drawing; its shade counts. Raises `ValueError` for a source without a shape, and
    for a prompt that is not a caption of this world.
    """
    old, new = read_drawing(source).drawing, read_drawing(image).drawing
    if old is None:
        raise ValueError("invalid source of an edit: it shows no shape")
    if prompt not in _SCENE_OF_CAPTION:
        raise ValueError(f"invalid prompt {prompt!r}: must be a caption of the drawn world")
    if new is None:
        return EditTruth(False, False, 0.0)
    requested = _SCENE_OF_CAPTION[prompt]
    target_scene = replace(old.scene, **requested.attributes)
    shown = target_scene.attributes_shown_in(new.scene)
    changes = [name for name in ATTRIBUTES if getattr(target_scene, name) != getattr(old.scene, name)]
    unchanged = [name for name in ATTRIBUTES if name not in changes]
    ideal = replace(
        old,
        scene=target_scene,
        x=new.x if "position" in changes else old.x,
        radius=new.radius if "size" in changes else old.radius,
    )
    pixels = image.astype(np.float32)
    covered = [coverage(d.scene.shape, d.x, d.y, d.radius + 2) for d in (old, new)]
    ground = np.maximum(*covered) == 0
    difference = float(abs(pixels - draw_image(ideal))[ground].mean() / 255) if ground.any() else 1.0
    return EditTruth(
        carried_out=all(requested.attributes_shown_in(new.scene).values()),
        preserved=max(abs(new.x - ideal.x), abs(new.y - ideal.y)) <= PLACE_TOLERANCE
        and abs(new.radius - ideal.radius) <= RADIUS_TOLERANCE
        and difference <= GROUND_TOLERANCE,
        score=_share(shown, changes) * _share(shown, unchanged) * _overlap(pixels, new.scene, ideal) * (1 - difference),
    )


def _share(shown: dict[str, bool], names: list[str]) -> float:
    return sum(shown[name] for name in names) / len(names) if names else 1.0


def _overlap(pixels: NDArray[np.float32], shown: DrawnScene, ideal: Drawing) -> float:
    """Return the intersection over union of the pixels nearer to the ink's colour and the ideal shape."""
    from_ink, from_ground = (
        np.linalg.norm(pixels - PALETTE[name], axis=2) for name in (shown.colour, shown.attributes["background"])
    )
    patch, shape = from_ink < from_ground, coverage(ideal.scene.shape, ideal.x, ideal.y, ideal.radius) >= 0.5
    return float((patch & shape).sum() / (patch | shape).sum())


def write_edit_example(folder: Path, count: int, seed: int) -> Path:
    """Write an edit set of `count` held-out edits, each kind in turn, and return its file.

    `edits.jsonl` has a line {"id", "image_path", "prompt"} for each; the sources are PNGs in the same folder.
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
