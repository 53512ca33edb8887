"""The face models held against the drawn truth; training, tests and the benchmark measure with these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resources.faces import Face, identity, largest, middle, nearest
from resources.faces.insight import FaceFinder, FaceSwapper
from resources.mini.faces import UNSEEN, Figure, Person, Scene, Task, draw, mask, person, portrait, tasks
from resources.mini.figures import HELD_OUT_SEED

GALLERY = 20
"""People among whom a face is to be recognised."""


@dataclass(frozen=True)
class Detection:
    """Of all drawn faces the share found at an IoU of a half; of all pictures, faces found where there are none.

    `slip` is how far landmarks are off, the mean along an axis, in pixels of ArcFace's crop.
    """

    recall: float
    false_faces: float
    slip: float


@dataclass(frozen=True)
class Swap:
    """What became of one task: the cosine to the character before and after, None where no face was found.

    `recognised`: ArcFace finds the character the most alike of `GALLERY` people. By rule, over the face's pixels:
    `mended` is the share of the difference from the drawing with the character's face that is gone, below 0 where
    there is more of it; `drawn`, whether no drawing with any of the others' faces is nearer, which asks for the very
    shade of skin. `away`: the pixels that changed outside the square of twice the face's size.
    """

    before: float | None
    after: float | None
    recognised: bool
    mended: float
    drawn: bool
    away: int

    @property
    def risen(self) -> bool:
        """Whether the face is more like the character's than it was."""
        return self.before is not None and self.after is not None and self.after > self.before


def held_out(count: int, turn: int = 0) -> list[Task]:
    """Tasks of people that no model was trained on; another `turn`, others."""
    return tasks(count, np.random.default_rng([HELD_OUT_SEED, 9, turn]))


def detection(finder: FaceFinder, scenes: Sequence[Scene]) -> Detection:
    """How well the finder finds the faces of `scenes`."""
    drawn = found = false = 0
    slips = []
    for seen in scenes:
        faces = finder.faces(Image.fromarray(draw(seen)))
        left = list(faces)
        for figure in seen.figures:
            drawn += 1
            best = max(left, key=lambda face: overlap(figure.box, face.box), default=None)
            if best is not None and overlap(figure.box, best.box) >= 0.5:
                found += 1
                left.remove(best)
                slips.append(float(abs(best.landmarks - figure.landmarks).mean()) / figure.pose.size)
        false += len(left)
    return Detection(found / max(drawn, 1), false / len(scenes), float(np.mean(slips)) if slips else math.nan)


def overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Intersection over union of two boxes."""
    inner = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(np.maximum(inner, 0)))
    return shared / float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - shared)


def swaps(swapper: FaceSwapper, given: Sequence[Task]) -> list[Swap | None]:
    """What becomes of each task when the face in the mask is swapped; None for a scene without a face."""
    others = [person(2 * UNSEEN - 1 - number) for number in range(GALLERY - 1)]
    gallery = [_portrayed(swapper, other) for other in others]
    return [_swapped(swapper, task, others, gallery) if task.figure else None for task in given]


def summary(swapper: FaceSwapper, given: Sequence[Task]) -> dict[str, float]:
    """`detection` over the tasks' scenes and `swap_shares` over those with a face, in one table."""
    found = detection(swapper.finder, [task.scene for task in given])
    return asdict(found) | swap_shares([swap for swap in swaps(swapper, given) if swap])


def swap_shares(made: Sequence[Swap]) -> dict[str, float]:
    """The shares of swaps after which the cosine is higher, the face recognised, nearer its drawing, and nearest to it.

    With them their number, the mean share mended, the mean cosines before and after, and all pixels that changed away
    from the face. A face that was not found has risen nowhere and its cosine counts as 0.
    """
    return {
        "swaps": len(made),
        "before": float(np.mean([swap.before or 0 for swap in made])),
        "after": float(np.mean([swap.after or 0 for swap in made])),
        "risen": float(np.mean([swap.risen for swap in made])),
        "recognised": float(np.mean([swap.recognised for swap in made])),
        "mended": float(np.mean([swap.mended for swap in made])),
        "nearer": float(np.mean([swap.mended > 0 for swap in made])),
        "drawn": float(np.mean([swap.drawn for swap in made])),
        "away": sum(swap.away for swap in made),
    }


def _portrayed(swapper: FaceSwapper, who: Person) -> Face:
    face = largest(swapper.faces(Image.fromarray(draw(portrait(who)))))
    assert face is not None, f"no face is found in the portrait of {who}"
    return face


def _swapped(swapper: FaceSwapper, task: Task, others: Sequence[Person], gallery: Sequence[Face]) -> Swap:
    assert task.figure
    character = _portrayed(swapper, task.character)
    before = draw(task.scene)
    point = middle(mask(task.figure))
    target = nearest(swapper.faces(Image.fromarray(before)), point) if point else None
    if target is None:
        return Swap(None, None, False, 0.0, False, 0)
    picture = swapper.swap(Image.fromarray(before), target, character)
    after = np.asarray(picture)
    again = nearest(swapper.faces(picture), target.centre)
    alike = identity(character, again) if again else None
    recognised = again is not None and all(identity(other, again) < identity(character, again) for other in gallery)
    face = np.asarray(mask(task.figure)) > 0

    def difference(picture: NDArray[np.uint8], who: Person) -> float:
        return float(abs(picture.astype(float) - draw(task.with_face(who)))[face].mean())

    left, was = difference(after, task.character), difference(before, task.character)
    return Swap(
        identity(character, target),
        alike,
        recognised,
        1 - left / was,
        all(left < difference(after, other) for other in others),
        _away(before, after, task.figure),
    )


def _away(before: NDArray[np.uint8], after: NDArray[np.uint8], figure: Figure) -> int:
    left, top, right, bottom = figure.box
    x, y, reach = (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top)
    rows, columns = np.mgrid[0 : len(before), 0 : len(before)]
    outside = np.maximum(abs(columns - x), abs(rows - y)) > reach
    return int((before != after).any(axis=2)[outside].sum())
