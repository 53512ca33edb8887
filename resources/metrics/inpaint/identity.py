"""Identity of the face at the mask and the character's."""

from typing import Any

from resources import masks
from resources.errors import FlexyError
from resources.faces import Face, face_at_mask, identity_similarity, largest_face
from resources.metrics import Metric
from resources.metrics.scoring import BatchScores, CandidateBatch, map_rows
from resources.models import registry

METRICS = (
    Metric(
        name="identity",
        label="identity",
        description="10 × ArcFace's cosine of the face at the mask and the character's, at least 0",
        low=0,
        high=10,
        role="selecting",
        order=1,
    ),
)


def score(batch: CandidateBatch) -> list[BatchScores]:
    """Return the identity of each candidate; no detected face is an error."""
    model = registry.find_face_finder(batch.settings)
    finder = batch.slot.get(model)
    character_faces: dict[int, Face | None] = {}

    def similarity(scene: Any, mask: Any, character: Any) -> float | FlexyError:
        # The batch has one object per character image.
        if id(character) not in character_faces:
            character_faces[id(character)] = largest_face(finder.faces(character))
        expected = character_faces[id(character)]
        if expected is None:
            return FlexyError("no face detected in the character image")
        face = face_at_mask(finder.faces(scene), masks.mask_from_image(mask))
        if face is None:
            return FlexyError("no face detected at the mask")
        return 10 * max(identity_similarity(face, expected), 0.0)

    images = (batch.images(kind) for kind in ("scene", "scene_mask", "character"))
    return [BatchScores({"identity": map_rows(similarity, *images)}, model.fingerprint)]
