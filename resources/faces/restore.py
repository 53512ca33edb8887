"""Restores a face after the swap with an ONNX face restorer such as GFPGAN or CodeFormer."""

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
TEMPLATE = np.column_stack(
    [(192.98138, 318.90277, 256.63416, 201.26117, 313.08905), (239.94708, 240.1936, 314.01935, 371.41043, 371.15118)]
)
"""The landmark positions of FFHQ's faces at 512 pixels, on which both models were trained (facexlib)."""
FIDELITY = 0.7
"""CodeFormer's weight: 0 for best quality, 1 for highest fidelity to the face."""


class FaceRestorer:
    """A model from (1, 3, 512, 512) in −1 to 1 to the same form; its optional second input is the fidelity."""

    def __init__(self, folder: Path) -> None:
        """Load the one ONNX file in `folder`. Raises `FlexyError` for another number of files or another model."""
        files = sorted(folder.glob("*.onnx"))
        if len(files) != 1:
            raise FlexyError(f"cannot load {folder}: it holds {len(files)} ONNX files: leave one, the face restorer's")
        with named_loading_errors(files[0]):
            self.session = onnxruntime.InferenceSession(str(files[0]), **session_arguments())
            shape = self.session.get_inputs()[0].shape
        if shape[1:] != [3, SIDE, SIDE]:
            raise load_error(files[0], f"it is another model's, it takes {shape} and not [1, 3, {SIDE}, {SIDE}]")

    def restore(self, image: Image.Image, face: Face) -> Image.Image:
        """Return `image`, in RGB, with this face restored; pixels away from it do not change."""
        pixels = np.asarray(image.convert("RGB"))
        return Image.fromarray(paste_face(pixels, face.landmarks, TEMPLATE, SIDE, self._paint))

    def _paint(self, crop: Pixels) -> Pixels:
        image_input, *fidelity_inputs = self.session.get_inputs()
        inputs = {image_input.name: (crop.transpose(2, 0, 1)[None] / 127.5 - 1).astype(np.float32)}
        for fidelity_input in fidelity_inputs:
            inputs[fidelity_input.name] = np.array(FIDELITY, "f8" if "double" in fidelity_input.type else "f4")
        output = np.asarray(self.session.run(None, inputs)[0])[0]
        return np.clip((output.transpose(1, 2, 0) + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
