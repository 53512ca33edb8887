"""The face models held against the drawn truth; training, tests and the benchmark measure with these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resources.faces import Face, identity_similarity, largest_face, mask_centre, nearest_face
from resources.faces.insight import FaceFinder, FaceSwapper
from resources.mini.evaluation.accuracy import HELD_OUT_SEED
from resources.mini.faces import (
    UNSEEN,
    FaceFigure,
    FaceScene,
    FaceTask,
    Person,
    draw_faces,
    face_mask,
    face_tasks,
    make_person,
    make_portrait,
)

GALLERY = 20
"""People among whom a face is to be recognised."""


@dataclass(frozen=True)
class DetectionFigures:
    """Of all drawn faces the share found at an IoU of a half; of all pictures, faces found where there are none.

    `slip` is how far landmarks are off, the mean along an axis, in pixels of ArcFace's crop.
    """

    recall: float
    false_faces: float
    slip: float


@dataclass(frozen=True)
class SwapFigures:
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


def held_out_faces(count: int, turn: int = 0) -> list[FaceTask]:
    """Tasks of people that no model was trained on; another `turn`, others."""
    return face_tasks(count, np.random.default_rng([HELD_OUT_SEED, 9, turn]))


def detection_figures(finder: FaceFinder, scenes: Sequence[FaceScene]) -> DetectionFigures:
    """How well the finder finds the faces of `scenes`."""
    drawn = found = false = 0
    slips = []
    for seen in scenes:
        faces = finder.faces(Image.fromarray(draw_faces(seen)))
        left = list(faces)
        for figure in seen.figures:
            drawn += 1
            best = max(left, key=lambda face: box_iou(figure.box, face.box), default=None)
            if best is not None and box_iou(figure.box, best.box) >= 0.5:
                found += 1
                left.remove(best)
                slips.append(float(abs(best.landmarks - figure.landmarks).mean()) / figure.pose.size)
        false += len(left)
    return DetectionFigures(found / max(drawn, 1), false / len(scenes), float(np.mean(slips)) if slips else math.nan)


def box_iou(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Intersection over union of two boxes."""
    inner = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(np.maximum(inner, 0)))
    return shared / float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - shared)


def swap_faces_of(swapper: FaceSwapper, given: Sequence[FaceTask]) -> list[SwapFigures | None]:
    """What becomes of each task when the face in the mask is swapped; None for a scene without a face."""
    others = [make_person(2 * UNSEEN - 1 - number) for number in range(GALLERY - 1)]
    gallery = [_portrayed(swapper, other) for other in others]
    return [_swapped(swapper, task, others, gallery) if task.figure else None for task in given]


def swap_summary(swapper: FaceSwapper, given: Sequence[FaceTask]) -> dict[str, float]:
    """`detection` over the tasks' scenes and `swap_shares` over those with a face, in one table."""
    found = detection_figures(swapper.finder, [task.scene for task in given])
    return asdict(found) | swap_shares([swap for swap in swap_faces_of(swapper, given) if swap])


def swap_shares(made: Sequence[SwapFigures]) -> dict[str, float]:
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
    face = largest_face(swapper.faces(Image.fromarray(draw_faces(make_portrait(who)))))
    assert face is not None, f"no face is found in the portrait of {who}"
    return face


def _swapped(swapper: FaceSwapper, task: FaceTask, others: Sequence[Person], gallery: Sequence[Face]) -> SwapFigures:
    assert task.figure
    character = _portrayed(swapper, task.character)
    before = draw_faces(task.scene)
    point = mask_centre(face_mask(task.figure))
    target = nearest_face(swapper.faces(Image.fromarray(before)), point) if point else None
    if target is None:
        return SwapFigures(None, None, False, 0.0, False, 0)
    picture = swapper.swap(Image.fromarray(before), target, character)
    after = np.asarray(picture)
    again = nearest_face(swapper.faces(picture), target.centre)
    alike = identity_similarity(character, again) if again else None
    recognised = again is not None and all(
        identity_similarity(other, again) < identity_similarity(character, again) for other in gallery
    )
    face = np.asarray(face_mask(task.figure)) > 0

    def difference(picture: NDArray[np.uint8], who: Person) -> float:
        return float(abs(picture.astype(float) - draw_faces(task.with_face(who)))[face].mean())

    left, was = difference(after, task.character), difference(before, task.character)
    return SwapFigures(
        identity_similarity(character, target),
        alike,
        recognised,
        1 - left / was,
        all(left < difference(after, other) for other in others),
        _away(before, after, task.figure),
    )


def _away(before: NDArray[np.uint8], after: NDArray[np.uint8], figure: FaceFigure) -> int:
    left, top, right, bottom = figure.box
    x, y, reach = (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top)
    rows, columns = np.mgrid[0 : len(before), 0 : len(before)]
    outside = np.maximum(abs(columns - x), abs(rows - y)) > reach
    return int((before != after).any(axis=2)[outside].sum())
