"""FLUX.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import Flux2Pipeline
from PIL.Image import Image

from resources.engines import ImageRequest
from resources.engines.pipeline import PipelineEngine


class Flux2Engine(PipelineEngine):
    """FLUX.2-dev, which takes guidance as an input of its network and ignores negative prompts."""

    kind = Flux2Pipeline

    def make(self, requests: Sequence[ImageRequest]) -> list[Image]:
        """The images, each with its guidance: the pipeline takes one number, its network one for each image."""
        each = [request.guidance or 0.0 for request in requests]

        def guide(network: torch.nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, inputs | {"guidance": inputs["guidance"].new_tensor(each)}

        hook = self.pipeline.transformer.register_forward_pre_hook(guide, with_kwargs=True)
        try:
            return super().make(requests)
        finally:
            hook.remove()

    def arguments(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        """Nothing more."""
        return {}
