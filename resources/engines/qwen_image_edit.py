"""Qwen-Image-Edit and its successors (2509, 2511)."""

from __future__ import annotations

from typing import Any

from diffusers import QwenImageEditInpaintPipeline, QwenImageEditPipeline, QwenImageEditPlusPipeline
from torch import Tensor

from resources.engines import EditRequest
from resources.engines.pipeline import InpaintingEditor


class QwenImageEditor(InpaintingEditor):
    """Qwen-Image-Edit, which works at about a megapixel; guidance at or below 1 means none."""

    kind = QwenImageEditPipeline
    inpaint_kind = QwenImageEditInpaintPipeline

    def arguments(self, request: EditRequest) -> dict[str, Any]:
        """Guidance away from a blank, as in the published examples, where there is no negative prompt."""
        negative = " " if request.negative_prompt is None else request.negative_prompt
        return {"true_cfg_scale": request.guidance, "negative_prompt": negative}

    def encode(self, pixels: Tensor) -> Tensor:
        """See `PipelineEditor.encode`; this VAE is one for videos."""
        return self.pipeline._encode_vae_image(pixels.unsqueeze(2), None).squeeze(2)

    def pack(self, latents: Tensor) -> Tensor:
        """See `PipelineEditor.pack`: 2 × 2 of them are a token."""
        return self.pipeline._pack_latents(latents, *latents.shape)


class QwenImageEditPlusEditor(QwenImageEditor):
    """Qwen-Image-Edit-2509 and 2511."""

    kind = QwenImageEditPlusPipeline
