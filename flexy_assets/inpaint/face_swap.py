"""Swaps the face at the mask of a scene for a character's face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from resources import masks
from resources.faces import Face, face_at_mask, identity_similarity, largest_face

if TYPE_CHECKING:
    from PIL.Image import Image


class SwapperProtocol(Protocol):
    """Detects faces and swaps them; see `resources.faces.insight`."""

    def faces(self, image: Image) -> list[Face]: ...
    def swap(self, image: Image, target: Face, source: Face) -> Image: ...


@dataclass(frozen=True, eq=False)
class SwapResult:
    """A scene with a swapped face: `image`, or the `error` if none was swapped.

    `faces` counts those in the scene, `face` is the one at the mask. `before` and `after` are its similarity to the
    character (ArcFace's cosine), None where no face is detected.
    """

    faces: int
    face: Face | None = None
    image: Image | None = None
    before: float | None = None
    after: float | None = None
    error: str | None = None


def swap_face_at_mask(swapper: SwapperProtocol, scene: Image, mask: masks.Mask, character: Image) -> SwapResult:
    """Return the scene with the character's face instead of the face at the mask; outside the mask nothing changes.

    The face in the scene is the one whose centre is nearest to the mask's, among those whose centre lies in the
    mask's bounding box; the character's face is the largest of its image.
    """
    faces = swapper.faces(scene)
    face = face_at_mask(faces, mask)
    if face is None:
        detected = f"none of its {len(faces)} faces is at the mask" if faces else "none detected"
        return SwapResult(len(faces), error=f"no face in the scene to swap: {detected}")
    character_face = largest_face(swapper.faces(character))
    if character_face is None:
        return SwapResult(len(faces), face, error="no face in the character image: none detected")
    image = masks.keep_outside(scene, swapper.swap(scene, face, character_face), mask)
    swapped = face_at_mask(swapper.faces(image), mask)
    after = identity_similarity(swapped, character_face) if swapped else None
    return SwapResult(len(faces), face, image, identity_similarity(face, character_face), after)
