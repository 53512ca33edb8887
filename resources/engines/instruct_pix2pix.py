"""InstructPix2Pix on Stable Diffusion XL: a UNet with the source as an additional input (Brooks et al. 2023)."""

from pathlib import Path
from typing import Any

from diffusers import StableDiffusionXLInstructPix2PixPipeline
from torch import Tensor

from resources.engines import EditRequest
from resources.engines.pipeline import PipelineEditor


class _InstructPix2Pix(StableDiffusionXLInstructPix2PixPipeline):
    def prepare_image_latents(self, image: Tensor, batch_size: int, num_images_per_prompt: int, *rest: Any) -> Tensor:
        # diffusers deprecates repeating one source for several images by itself.
        images = image.expand(batch_size * num_images_per_prompt, -1, -1, -1)
        return super().prepare_image_latents(images, batch_size, num_images_per_prompt, *rest)


class InstructPix2PixEditor(PipelineEditor):
    """An SDXL pipeline that follows instructions; either guidance is off at or below 1.

    It works at about as many pixels as it was trained with, in the source's proportions.
    """

    kind = _InstructPix2Pix

    def __init__(self, folder: Path, batch_size: int = 4, precision: str = "fp32", image_guidance: float = 1.5) -> None:
        """See `load_pipeline`. `image_guidance` is how strongly the edit keeps to the source."""
        # diffusers would watermark the images as soon as invisible-watermark is installed.
        super().__init__(folder, batch_size, precision, add_watermarker=False)
        self.image_guidance = image_guidance

    def pipeline_arguments(self, request: EditRequest) -> dict[str, Any]:
        """Return both guidances, and the size nearest to the source's proportions that the UNet can halve."""
        pipeline = self.pipeline
        side = pipeline.default_sample_size * pipeline.vae_scale_factor
        unit = pipeline.vae_scale_factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
        width, height = request.image.size
        scale = side / (width * height) ** 0.5
        return {
            "guidance_scale": request.guidance,
            "image_guidance_scale": self.image_guidance,
            "negative_prompt": request.negative_prompt,
            "width": max(round(width * scale / unit), 1) * unit,
            "height": max(round(height * scale / unit), 1) * unit,
        }
