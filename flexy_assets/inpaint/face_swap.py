"""Puts a character's face in the place of the one in a scene that the mask shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from resources import masks
from resources.faces import Face, identity_similarity, largest_face, nearest_face

if TYPE_CHECKING:
    from PIL.Image import Image


class SwapperProtocol(Protocol):
    """Finds faces and swaps them; see `resources.faces.insight`."""

    def faces(self, image: Image) -> list[Face]: ...
    def swap(self, image: Image, target: Face, source: Face) -> Image: ...


@dataclass(frozen=True, eq=False)
class SwapResult:
    """What became of a scene: `picture` where a face was swapped, else the `reason` why none was.

    `faces` is how many the scene has, `face` the one at the mask. `before` and `after` are how alike that face and
    the character are (ArcFace's cosine), None where the face was not found, or not found again.
    """

    faces: int
    face: Face | None = None
    picture: Image | None = None
    before: float | None = None
    after: float | None = None
    reason: str | None = None


def swap_face_at_mask(swapper: SwapperProtocol, scene: Image, mask: masks.Mask, character: Image) -> SwapResult:
    """The scene with the character's face in the place of the face at the mask, changed inside the mask alone.

    The face is the one whose middle is the nearest to the mask's, of those whose middle lies in what the mask
    bounds; the character's is the largest of its picture.
    """
    there = swapper.faces(scene)
    face = face_at_mask(there, mask)
    if face is None:
        found = f"of its {len(there)} faces none is at the mask" if there else "none was found"
        return SwapResult(len(there), reason=f"no face in the scene to swap: {found}")
    theirs = largest_face(swapper.faces(character))
    if theirs is None:
        return SwapResult(len(there), face, reason="no face in the character's picture: none was found")
    whole = swapper.swap(scene, face, theirs)
    picture = masks.keep_outside(scene, whole, mask)
    again = face_at_mask(swapper.faces(picture), mask)
    return SwapResult(
        len(there),
        face,
        picture,
        identity_similarity(face, theirs),
        identity_similarity(again, theirs) if again else None,
    )


def face_at_mask(faces: Sequence[Face], mask: masks.Mask) -> Face | None:
    """The face nearest to the mask's middle, of those whose middle is within its bounds; None where none is."""
    left, top, right, bottom = masks.bounding_box(mask)
    inside = [face for face in faces if left <= face.centre[0] < right and top <= face.centre[1] < bottom]
    return nearest_face(inside, masks.mask_centroid(mask))
