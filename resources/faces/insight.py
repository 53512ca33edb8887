"""Finds, recognises and swaps faces with insightface's own classes, from local files.

insightface would download a missing pack: it is given only paths of files that exist.
"""

import io
import json
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resources.errors import FlexyError
from resources.faces import Face
from resources.faces.alignment import SWAP_TEMPLATE, Pixels, paste_face
from resources.faces.restore import FaceRestorer
from resources.faces.runtime import session_arguments
from resources.models.loading import load_error, named_loading_errors

DETECTOR, RECOGNISER, SWAPPER = "det_10g.onnx", "w600k_r50.onnx", "inswapper_128.onnx"
PACK_NAME = "buffalo_l"

_CROP = 128
_MIN_CONFIDENCE = 0.5
"""The detector's confidence threshold; insightface's own."""
_EDGE_MARGIN = 0.02
"""A box this fraction of its longer side from the image's edge counts as cut off."""


class FaceFinder:
    """SCRFD and ArcFace: finds the faces of an image, each with its embedding."""

    def __init__(self, folder: Path) -> None:
        """Load det_10g.onnx and w600k_r50.onnx from `folder`, as the pack buffalo_l has them.

        Images are searched at 640 pixels along the longer side, or at the `det_size`, a multiple of 32, of the
        folder's config.json. Raises `FlexyError` naming a file that is missing or another model's.
        """
        config = folder / "config.json"
        with named_loading_errors(config):
            self.det_size = int(json.loads(config.read_text()).get("det_size", 640)) if config.exists() else 640
        self.detector = _load_model(folder / DETECTOR, "SCRFD")
        self.detector.prepare(0, input_size=(self.det_size, self.det_size), det_thresh=_MIN_CONFIDENCE)
        self.recogniser = _load_model(folder / RECOGNISER, "ArcFaceONNX")

    def faces(self, image: Image.Image) -> list[Face]:
        """Return the faces of an image of any size, the most confident first."""
        from insightface.app.common import Face as InsightFace

        if max(image.size) > self.det_size * min(image.size):
            return []  # after its resize so thin an image has no pixels left
        pixels = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])
        boxes, landmarks = self.detector.detect(pixels)
        faces = []
        for box, points in zip(boxes, landmarks, strict=True):
            with warnings.catch_warnings():
                # insightface calls a deprecated function of scikit-image.
                warnings.simplefilter("ignore", FutureWarning)
                embedding = np.asarray(self.recogniser.get(pixels, InsightFace(kps=points)), dtype=np.float32)
            norm = float(np.linalg.norm(embedding))
            if not np.isfinite(norm) or norm == 0:
                continue
            at_edge = _is_cut_off(box[:4], image.size)
            faces.append(Face(box[:4].copy(), points.astype(np.float32), float(box[4]), embedding / norm, at_edge))
        return faces


def _is_cut_off(box: NDArray[np.float32], size: tuple[int, int]) -> bool:
    left, top, right, bottom = box
    margin = _EDGE_MARGIN * max(right - left, bottom - top)
    return bool(min(left, top) < margin or size[0] - right < margin or size[1] - bottom < margin)


class FaceSwapper:
    """inswapper, with a `FaceFinder` for the faces it swaps."""

    def __init__(self, folder: Path, pack: Path | None = None, restorer: Path | None = None) -> None:
        """Load inswapper_128.onnx from `folder` and the finder from `pack`, by default its subfolder buffalo_l.

        `restorer` is the folder of a `FaceRestorer`. Raises `FlexyError` naming a file that is missing or
        another model's.
        """
        self.finder = FaceFinder(pack or folder / PACK_NAME)
        self.swapper = _load_model(folder / SWAPPER, "INSwapper")
        if (shape := self.swapper.emap.shape) != (512, 512):
            raise load_error(folder / SWAPPER, f"its last tensor is {shape}, not the map of 512 × 512")
        self.restorer = FaceRestorer(restorer) if restorer else None

    def faces(self, image: Image.Image) -> list[Face]:
        """See `FaceFinder.faces`."""
        return self.finder.faces(image)

    def swap(self, image: Image.Image, target: Face, source: Face, restore: bool = True) -> Image.Image:
        """Return `image`, in RGB, with the face `source` in the position, pose and light of its face `target`.

        Pixels away from the face do not change. A face at the edge is swapped as far as it is visible. With
        `restore`, the restorer, if there is one, restores the face afterwards.
        """
        latent = source.embedding[None] @ self.swapper.emap
        latent = (latent / np.linalg.norm(latent)).astype(np.float32)

        def paint(crop: Pixels) -> Pixels:
            output = self.swapper.forward(crop.transpose(2, 0, 1)[None].astype(np.float32), latent)[0]
            return np.clip(output.transpose(1, 2, 0) * 255 + 0.5, 0, 255).astype(np.uint8)

        pixels = np.asarray(image.convert("RGB"))
        swapped = Image.fromarray(paste_face(pixels, target.landmarks, SWAP_TEMPLATE, _CROP, paint))
        return self.restorer.restore(swapped, target) if restore and self.restorer else swapped


def _load_model(file: Path, kind: str) -> Any:
    """Return insightface's model of an ONNX file, which must be of its class `kind`."""
    if not file.is_file():
        raise FlexyError(f"no weights in {file.parent}: it has no {file.name}: put it there, or name another folder")
    # Some of its classes print to standard output, which is reserved for the command's JSON.
    with named_loading_errors(file), redirect_stdout(io.StringIO()):
        from insightface.model_zoo import get_model

        model = get_model(str(file), **session_arguments())
    if type(model).__name__ != kind:
        raise load_error(file, f"it is another model's, {type(model).__name__} by insightface and not {kind}")
    return model
