"""Measures the face models against the ground truth, for training, tests and the benchmark."""

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
    FIRST_HELD_OUT_PERSON,
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
"""The number of people among whom a face must be recognised."""


@dataclass(frozen=True)
class DetectionResult:
    """The share of drawn faces detected at an IoU of at least one half, and false detections per image.

    `slip` is the mean absolute landmark error along an axis, in pixels of ArcFace's crop.
    """

    recall: float
    false_faces: float
    slip: float


@dataclass(frozen=True)
class SwapEvaluation:
    """The result of one task: the cosine to the character before and after, None where no face was found.

    `recognised`: the character is the most similar of `GALLERY` people by ArcFace. By rule, over the face's pixels:
    `corrected` is the share by which the difference from the drawing with the character's face decreased, negative
    where it increased; `nearest`, whether no drawing with another person's face is nearer, which requires the exact
    shade of skin. `changed_outside`: the pixels that changed outside the square of twice the face's size.
    """

    before: float | None
    after: float | None
    recognised: bool
    corrected: float
    nearest: bool
    changed_outside: int

    @property
    def improved(self) -> bool:
        """Whether the face is more similar to the character's than before."""
        return self.before is not None and self.after is not None and self.after > self.before


def held_out_faces(count: int, turn: int = 0) -> list[FaceTask]:
    """Return tasks of held-out people; another `turn` returns others."""
    return face_tasks(count, np.random.default_rng([HELD_OUT_SEED, 9, turn]))


def measure_detection(finder: FaceFinder, scenes: Sequence[FaceScene]) -> DetectionResult:
    """Return how well `finder` detects the faces of `scenes`."""
    expected = detected = false = 0
    slips = []
    for scene in scenes:
        unmatched = list(finder.faces(Image.fromarray(draw_faces(scene))))
        for figure in scene.figures:
            expected += 1
            best = max(unmatched, key=lambda face: box_iou(figure.box, face.box), default=None)
            if best is not None and box_iou(figure.box, best.box) >= 0.5:
                detected += 1
                unmatched.remove(best)
                slips.append(float(abs(best.landmarks - figure.landmarks).mean()) / figure.pose.size)
        false += len(unmatched)
    return DetectionResult(
        detected / max(expected, 1), false / len(scenes), float(np.mean(slips)) if slips else math.nan
    )


def box_iou(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return the intersection over union of two boxes."""
    inner = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(np.maximum(inner, 0)))
    return shared / float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - shared)


def measure_swaps(swapper: FaceSwapper, tasks: Sequence[FaceTask]) -> list[SwapEvaluation | None]:
    """Return the result of swapping the face in each task's mask; None for a scene without a face."""
    others = [make_person(2 * FIRST_HELD_OUT_PERSON - 1 - number) for number in range(GALLERY - 1)]
    gallery = [_portrait_face(swapper, other) for other in others]
    return [_measure_swap(swapper, task, others, gallery) if task.figure else None for task in tasks]


def swap_summary(swapper: FaceSwapper, tasks: Sequence[FaceTask]) -> dict[str, float]:
    """Return `measure_detection` of the tasks' scenes and `swap_shares` of those with a face, in one table."""
    detection = measure_detection(swapper.finder, [task.scene for task in tasks])
    return asdict(detection) | swap_shares([swap for swap in measure_swaps(swapper, tasks) if swap])


def swap_shares(swaps: Sequence[SwapEvaluation]) -> dict[str, float]:
    """Return the shares of swaps with a higher cosine, and with the face recognised, nearer its drawing, and nearest.

    Also their number, the mean share corrected, the mean cosines before and after, and the total of pixels that
    changed away from the face. A face that was not found has not improved, and its cosine counts as 0.
    """
    return {
        "swaps": len(swaps),
        "before": float(np.mean([swap.before or 0 for swap in swaps])),
        "after": float(np.mean([swap.after or 0 for swap in swaps])),
        "improved": float(np.mean([swap.improved for swap in swaps])),
        "recognised": float(np.mean([swap.recognised for swap in swaps])),
        "corrected": float(np.mean([swap.corrected for swap in swaps])),
        "nearer": float(np.mean([swap.corrected > 0 for swap in swaps])),
        "nearest": float(np.mean([swap.nearest for swap in swaps])),
        "changed_outside": sum(swap.changed_outside for swap in swaps),
    }


def _portrait_face(swapper: FaceSwapper, person: Person) -> Face:
    face = largest_face(swapper.faces(Image.fromarray(draw_faces(make_portrait(person)))))
    assert face is not None, f"no face is found in the portrait of {person}"
    return face


def _measure_swap(
    swapper: FaceSwapper, task: FaceTask, others: Sequence[Person], gallery: Sequence[Face]
) -> SwapEvaluation:
    assert task.figure
    character = _portrait_face(swapper, task.character)
    before = draw_faces(task.scene)
    point = mask_centre(face_mask(task.figure))
    target = nearest_face(swapper.faces(Image.fromarray(before)), point) if point else None
    if target is None:
        return SwapEvaluation(None, None, False, 0.0, False, 0)
    image = swapper.swap(Image.fromarray(before), target, character)
    after = np.asarray(image)
    swapped_face = nearest_face(swapper.faces(image), target.centre)
    similarity = identity_similarity(character, swapped_face) if swapped_face else None
    recognised = swapped_face is not None and all(
        identity_similarity(other, swapped_face) < identity_similarity(character, swapped_face) for other in gallery
    )
    face = np.asarray(face_mask(task.figure)) > 0

    def difference(image: NDArray[np.uint8], person: Person) -> float:
        return float(abs(image.astype(float) - draw_faces(task.with_face(person)))[face].mean())

    remaining, original = difference(after, task.character), difference(before, task.character)
    return SwapEvaluation(
        identity_similarity(character, target),
        similarity,
        recognised,
        1 - remaining / original,
        all(remaining < difference(after, other) for other in others),
        _pixels_changed_outside(before, after, task.figure),
    )


def _pixels_changed_outside(before: NDArray[np.uint8], after: NDArray[np.uint8], figure: FaceFigure) -> int:
    left, top, right, bottom = figure.box
    x, y, reach = (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top)
    rows, columns = np.mgrid[0 : len(before), 0 : len(before)]
    outside = np.maximum(abs(columns - x), abs(rows - y)) > reach
    return int((before != after).any(axis=2)[outside].sum())
