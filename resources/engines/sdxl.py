"""Stable Diffusion XL, its fine-tunes (RealVisXL) and distillations, and the mini model of the same class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL.Image import Image

from resources.engines import ImageRequest
from resources.engines.pipeline import GuidedEngine
from resources.models import compute
from resources.models.loading import load_weight_file, named_loading_errors


class SdxlEngine(GuidedEngine):
    """An SDXL pipeline; width and height must be multiples of 8."""

    kind = StableDiffusionXLPipeline

    def __init__(self, folder: Path, batch_size: int = 4, precision: str = "fp32", **components: Any) -> None:
        """Load a folder in diffusers' form; see `load_pipeline`."""
        # diffusers would watermark the images as soon as invisible-watermark is installed.
        super().__init__(folder, batch_size, precision, add_watermarker=False, **components)

    def generate_batch(self, requests: Sequence[ImageRequest]) -> list[Image]:
        """Return the images; requests without a negative prompt, which is not an empty one, need their own call."""
        lacks_negative = [request.negative_prompt is None for request in requests]
        if all(lacks_negative) or not any(lacks_negative):
            return super().generate_batch(requests)
        without = iter(super().generate_batch([r for r in requests if r.negative_prompt is None]))
        with_negative = iter(super().generate_batch([r for r in requests if r.negative_prompt is not None]))
        return [next(without if lacks else with_negative) for lacks in lacks_negative]

    def pipeline_arguments(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        """See `GuidedEngine.pipeline_arguments`."""
        arguments = super().pipeline_arguments(requests)
        return arguments | {"negative_prompt": None} if requests[0].negative_prompt is None else arguments


class DistilledSdxlEngine(SdxlEngine):
    """SDXL Turbo, which ignores guidance and negative prompts."""

    def pipeline_arguments(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        """Return no guidance."""
        return {"guidance_scale": 0.0}


class LightningEngine(DistilledSdxlEngine):
    """SDXL-Lightning: Stable Diffusion XL with a UNet that was distilled to one number of steps."""

    def __init__(self, folder: Path, base: Path, file: str, batch_size: int = 4, precision: str = "fp32") -> None:
        """Load the pipeline in `base`, in diffusers' form, with the UNet's weights in `file` of `folder`."""
        unet = load_weight_file(UNet2DConditionModel, base / "unet", folder / file, compute.torch_dtype(precision))
        with named_loading_errors(base / "scheduler"):
            # Its steps are the last ones of equal stretches of the noise's thousand, as it was trained.
            scheduler = EulerDiscreteScheduler.from_pretrained(
                base / "scheduler", timestep_spacing="trailing", local_files_only=True
            )
        super().__init__(base, batch_size, precision, unet=unet, scheduler=scheduler)
