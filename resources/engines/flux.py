"""FLUX.1: schnell makes images, Kontext edits them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import FluxKontextInpaintPipeline, FluxKontextPipeline, FluxPipeline
from torch import Tensor

from resources.engines import EditRequest, ImageRequest
from resources.engines.pipeline import InpaintingEditor, PipelineEngine


class FluxEngine(PipelineEngine):
    """FLUX.1-schnell, which knows neither guidance nor negative prompts: it ignores them."""

    kind = FluxPipeline

    def arguments(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        """The number of tokens that schnell was trained with; a longer prompt is cut."""
        return {"guidance_scale": 0.0, "max_sequence_length": 256}


class KontextEditor(InpaintingEditor):
    """FLUX.1-Kontext, which works at about a megapixel and ignores negative prompts."""

    kind = FluxKontextPipeline
    inpaint_kind = FluxKontextInpaintPipeline

    def arguments(self, request: EditRequest) -> dict[str, Any]:
        """The source's size gives the proportions; the pipeline keeps to its own number of pixels."""
        width, height = request.image.size
        return {"guidance_scale": request.guidance, "width": width, "height": height}

    def pack(self, latents: Tensor) -> Tensor:
        """See `PipelineEditor.pack`: 2 × 2 of them are a token."""
        return self.pipeline._pack_latents(latents, *latents.shape)
