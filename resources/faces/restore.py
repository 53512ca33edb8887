"""Goes over a face once more after the swap: an ONNX face restorer, GFPGAN or CodeFormer for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from resources.errors import FlexyError
from resources.faces import Face
from resources.faces.alignment import Pixels, paste_face
from resources.faces.runtime import session_arguments
from resources.models.loading import load_error, named_loading_errors

SIDE = 512
TEMPLATE = np.array(
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ]
)
"""Where faces of FFHQ have their landmarks at 512 pixels, as both models were trained (facexlib)."""
FIDELITY = 0.7
"""CodeFormer's weight: 0 looks best, 1 keeps most of the face."""


class FaceRestorer:
    """A model from (1, 3, 512, 512) in −1 to 1 to the same; a second input, if it has one, is its fidelity."""

    def __init__(self, folder: Path) -> None:
        """Load the one ONNX file in `folder`. Raises `FlexyError` where there is not one, or it is no such model."""
        files = sorted(folder.glob("*.onnx"))
        if len(files) != 1:
            raise FlexyError(f"{folder} holds {len(files)} ONNX files and not one face restorer: put one alone there")
        with named_loading_errors(files[0]):
            self.session = onnxruntime.InferenceSession(str(files[0]), **session_arguments())
            shape = self.session.get_inputs()[0].shape
        if shape[1:] != [3, SIDE, SIDE]:
            raise load_error(files[0], f"it is another model's, it takes {shape} and not [1, 3, {SIDE}, {SIDE}]")

    def restore(self, image: Image.Image, face: Face) -> Image.Image:
        """`image`, in RGB, with this face restored; away from it every pixel is the original's."""
        return Image.fromarray(
            paste_face(np.asarray(image.convert("RGB")), face.landmarks, TEMPLATE, SIDE, self._paint)
        )

    def _paint(self, crop: Pixels) -> Pixels:
        picture, *more = self.session.get_inputs()
        given = {picture.name: (crop.transpose(2, 0, 1)[None] / 127.5 - 1).astype(np.float32)}
        for fidelity in more:
            given[fidelity.name] = np.array(FIDELITY, np.float64 if "double" in fidelity.type else np.float32)
        made = np.asarray(self.session.run(None, given)[0])[0]
        return np.clip((made.transpose(1, 2, 0) + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
