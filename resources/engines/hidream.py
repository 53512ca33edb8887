"""HiDream-I1, whose fourth text encoder is a Llama published separately."""

from pathlib import Path

from diffusers import HiDreamImagePipeline
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from resources.engines.pipeline import GuidedEngine
from resources.models import compute
from resources.models.loading import load_network, load_tokenizer


class HiDreamEngine(GuidedEngine):
    """HiDream-I1-Full; it works at about a megapixel whatever the requested size."""

    kind = HiDreamImagePipeline

    def __init__(self, folder: Path, llama: Path, batch_size: int = 4, precision: str = "fp32") -> None:
        """Load a folder in diffusers' form and the `llama` of Llama 3.1 8B Instruct; see `load_pipeline`."""
        super().__init__(
            folder,
            batch_size,
            precision,
            tokenizer_4=load_tokenizer(PreTrainedTokenizerFast, llama),
            text_encoder_4=load_network(LlamaForCausalLM, llama, compute.torch_dtype(precision)),
        )
