"""FLUX.2."""

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

    def generate_batch(self, requests: Sequence[ImageRequest]) -> list[Image]:
        """Return the images, each with its guidance: the pipeline takes one number, its network one per image."""
        guidances = [request.guidance or 0.0 for request in requests]

        def set_guidance(network: torch.nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, inputs | {"guidance": inputs["guidance"].new_tensor(guidances)}

        hook = self.pipeline.transformer.register_forward_pre_hook(set_guidance, with_kwargs=True)
        try:
            return super().generate_batch(requests)
        finally:
            hook.remove()
