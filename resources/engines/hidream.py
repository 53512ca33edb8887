"""HiDream-I1, whose fourth text encoder is a Llama published separately."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import FlowMatchLCMScheduler, HiDreamImagePipeline
from PIL import Image
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from resources.engines import ImageRequest
from resources.engines.pipeline import GuidedEngine
from resources.models import compute
from resources.models.loading import load_network, load_tokenizer


class HiDreamEngine(GuidedEngine):
    """HiDream-I1-Full; it works at about a megapixel whatever the requested size."""

    kind = HiDreamImagePipeline

    def __init__(
        self, folder: Path, llama: Path, batch_size: int = 4, precision: str = "fp32", **components: Any
    ) -> None:
        """Load a folder in diffusers' form and the `llama` of Llama 3.1 8B Instruct; see `load_pipeline`."""
        super().__init__(
            folder,
            batch_size,
            precision,
            tokenizer_4=load_tokenizer(PreTrainedTokenizerFast, llama),
            text_encoder_4=load_network(LlamaForCausalLM, llama, compute.torch_dtype(precision)),
            **components,
        )


class SeededLcmScheduler(FlowMatchLCMScheduler):
    """The scheduler with the noise that it adds drawn from each image's generator, which the pipeline does not pass."""

    generators: ClassVar[list[torch.Generator]] = []

    def step(self, *arguments: Any, **options: Any) -> Any:
        """See `FlowMatchLCMScheduler.step`."""
        return super().step(*arguments, generator=self.generators, **options)


class HiDreamDevEngine(HiDreamEngine):
    """HiDream-I1-Dev, which is distilled: it ignores guidance and negative prompts."""

    SHIFT = 6.0
    """Of its authors' inference script, which samples as diffusers' `FlowMatchLCMScheduler` does."""

    def __init__(self, folder: Path, llama: Path, batch_size: int = 4, precision: str = "fp32") -> None:
        """Load a folder in diffusers' form and the `llama` of Llama 3.1 8B Instruct; see `load_pipeline`."""
        super().__init__(folder, llama, batch_size, precision, scheduler=SeededLcmScheduler(shift=self.SHIFT))

    def pipeline_arguments(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        """Return no guidance."""
        return {"guidance_scale": 0.0}

    def run_pipeline(
        self, pipeline: Any, generators: list[torch.Generator], *arguments: Any, **options: Any
    ) -> list[Image.Image]:
        """See `PipelineModel.run_pipeline`."""
        pipeline.scheduler.generators = generators
        return super().run_pipeline(pipeline, generators, *arguments, **options)
