"""Qwen-Image-Edit and its successors (2509, 2511)."""

from typing import Any

from diffusers import QwenImageEditInpaintPipeline, QwenImageEditPipeline, QwenImageEditPlusPipeline
from torch import Tensor

from resources.engines import EditRequest
from resources.engines.pipeline import InpaintingEditor


class QwenImageEditor(InpaintingEditor):
    """Qwen-Image-Edit, which works at about a megapixel; guidance is off at or below 1."""

    kind = QwenImageEditPipeline
    inpaint_kind = QwenImageEditInpaintPipeline

    def pipeline_arguments(self, request: EditRequest) -> dict[str, Any]:
        """Return guidance and the negative prompt, by default a blank, as in the published examples."""
        negative = " " if request.negative_prompt is None else request.negative_prompt
        return {"true_cfg_scale": request.guidance, "negative_prompt": negative}

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """See `PipelineEditor.encode_pixels`; this VAE is a video VAE."""
        return self.pipeline._encode_vae_image(pixels.unsqueeze(2), None).squeeze(2)


class QwenImageEditPlusEditor(QwenImageEditor):
    """Qwen-Image-Edit-2509 and 2511."""

    kind = QwenImageEditPlusPipeline
