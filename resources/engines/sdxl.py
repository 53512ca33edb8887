"""Stable Diffusion XL and its fine-tunes (RealVisXL), and the mini model of the same class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionXLPipeline
from PIL.Image import Image

from resources.engines import ImageRequest
from resources.engines.pipeline import GuidedEngine, PerImageGuidance


class _Sdxl(PerImageGuidance, StableDiffusionXLPipeline):
    pass


class SdxlEngine(GuidedEngine):
    """An SDXL pipeline; width and height must be multiples of 8."""

    kind = _Sdxl

    def __init__(self, folder: Path, batch_size: int = 4, precision: str = "fp32") -> None:
        """Load a folder in diffusers' form; see `load`."""
        # diffusers would mark the images as soon as somebody installs invisible-watermark.
        super().__init__(folder, batch_size, precision, add_watermarker=False)

    def make(self, requests: Sequence[ImageRequest]) -> list[Image]:
        """Those with a negative prompt and those without in a call each: none is not an empty one here."""
        bare = [request.negative_prompt is None for request in requests]
        if all(bare) or not any(bare):
            return super().make(requests)
        without = iter(super().make([request for request in requests if request.negative_prompt is None]))
        others = iter(super().make([request for request in requests if request.negative_prompt is not None]))
        return [next(without if none else others) for none in bare]

    def arguments(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        """See `GuidedEngine.arguments`."""
        arguments = super().arguments(requests)
        return arguments | {"negative_prompt": None} if requests[0].negative_prompt is None else arguments
