"""FLUX.1: schnell and dev generate images, Kontext edits them."""

from collections.abc import Sequence
from typing import Any

from diffusers import FluxKontextInpaintPipeline, FluxKontextPipeline, FluxPipeline

from resources.engines import EditRequest, ImageRequest
from resources.engines.pipeline import DistilledGuidanceEngine, InpaintingEditor, PipelineEngine


class FluxEngine(PipelineEngine):
    """FLUX.1-schnell, which ignores guidance and negative prompts."""

    kind = FluxPipeline

    def pipeline_arguments(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        """Return the maximum number of tokens, as schnell was trained; a longer prompt is truncated."""
        return {"guidance_scale": 0.0, "max_sequence_length": 256}


class FluxDevEngine(DistilledGuidanceEngine):
    """FLUX.1-dev."""

    kind = FluxPipeline


class KontextEditor(InpaintingEditor):
    """FLUX.1-Kontext, which works at about a megapixel and ignores negative prompts."""

    kind = FluxKontextPipeline
    inpaint_kind = FluxKontextInpaintPipeline

    def pipeline_arguments(self, request: EditRequest) -> dict[str, Any]:
        """Return guidance and the source's size, of which the pipeline takes the proportions only."""
        width, height = request.image.size
        return {"guidance_scale": request.guidance, "width": width, "height": height}
