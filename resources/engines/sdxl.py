"""Stable Diffusion XL and its fine-tunes (RealVisXL), and the mini model of the same class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from PIL.Image import Image

from resources.engines import ImageRequest


class _GuidedEach(StableDiffusionXLPipeline):
    """The pipeline, taking a guidance for each image as a (n, 1, 1, 1) tensor.

    diffusers multiplies by the guidance but also asks whether it is above 1, as one number.
    """

    _guidance_scale: Any

    @property
    def do_classifier_free_guidance(self) -> bool:
        return bool((torch.as_tensor(self._guidance_scale) > 1).any())


class SdxlEngine:
    """An SDXL pipeline; images of equal steps and size are made in one call, each with its guidance and seed."""

    def __init__(self, folder: Path, images_a_call: int) -> None:
        """Load a folder in diffusers' form, in half precision on a GPU and in full on a CPU."""
        self.images_a_call = images_a_call
        cuda = torch.cuda.is_available()
        pipeline = _GuidedEach.from_pretrained(
            folder, dtype=torch.float16 if cuda else torch.float32, local_files_only=True, use_safetensors=True
        )
        self.pipeline: Any = pipeline.to("cuda" if cuda else "cpu")
        self.pipeline.set_progress_bar_config(disable=True)

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image]:
        """See `Engine.generate`. Guidance at or below 1 means none, as everywhere in diffusers."""
        first = requests[0]
        if any((r.steps, r.width, r.height) != (first.steps, first.width, first.height) for r in requests):
            raise ValueError("one call makes images of equal steps, width and height")
        guidance = torch.tensor([max(r.guidance, 1.0) for r in requests]).view(-1, 1, 1, 1)
        negative = None
        if any(r.negative_prompt is not None for r in requests):
            negative = [r.negative_prompt or "" for r in requests]
        # Generators on the CPU give the same noise on every device.
        dice = [torch.Generator("cpu").manual_seed(r.seed) for r in requests]
        return self.pipeline(
            prompt=[r.prompt for r in requests],
            negative_prompt=negative,
            num_inference_steps=first.steps,
            guidance_scale=guidance.to(self.pipeline.device, self.pipeline.unet.dtype),
            generator=dice,
            width=first.width,
            height=first.height,
        ).images
