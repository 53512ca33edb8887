"""Qwen-Image-Edit and its successors (2509, 2511)."""

from __future__ import annotations

from typing import Any

from diffusers import QwenImageEditInpaintPipeline, QwenImageEditPipeline, QwenImageEditPlusPipeline

from resources.engines import EditRequest
from resources.engines.pipeline import PipelineEditor


class QwenImageEditor(PipelineEditor):
    """Qwen-Image-Edit, which works at about a megapixel; guidance at or below 1 means none."""

    kind = QwenImageEditPipeline
    inpaint_kind = QwenImageEditInpaintPipeline

    def arguments(self, request: EditRequest) -> dict[str, Any]:
        """Guidance away from a blank, as in the published examples, where there is no negative prompt."""
        negative = " " if request.negative_prompt is None else request.negative_prompt
        return {"true_cfg_scale": request.guidance, "negative_prompt": negative}


class QwenImageEditPlusEditor(QwenImageEditor):
    """Qwen-Image-Edit-2509 and 2511."""

    kind = QwenImageEditPlusPipeline
