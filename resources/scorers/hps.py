"""HPS v2.1: the cosine of image and prompt in a CLIP ViT-H/14 tuned on human preferences (Wu et al. 2023).

The published checkpoint is in open_clip's form; its weights are converted to transformers' CLIPModel.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import unescape
from itertools import chain, starmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ftfy import fix_text
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from resources.chunks import split_chunks
from resources.models import compute
from resources.models.loading import load_error, load_tokenizer, named_loading_errors, read_tensors
from resources.scorers.clip import ClipEncoder
from resources.scorers.preprocessing import Letterbox

_FILES = ("HPS_v2.1_compressed.pt", "HPS_v2.1.safetensors")
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class HpsScorer(ClipEncoder):
    """Computes the HPS of images for their prompts, usually 0.20 to 0.35; comparable only within one prompt."""

    def __init__(self, folder: Path, precision: str = "fp32", tokenizer: Path | None = None) -> None:
        """Load the published checkpoint in `folder`, with CLIP's vocabulary from `tokenizer`.

        Without `tokenizer`, `folder` is complete, in transformers' form. Raises `FlexyError` for a file that
        does not fit the model.
        """
        self._text_vectors: dict[str, NDArray[np.float32]] = {}
        if tokenizer is None:
            super().__init__(folder, precision)
            return
        model = from_open_clip(read_tensors(folder, _FILES), folder, compute.torch_dtype(precision))
        side = model.config.vision_config.image_size
        self._set_model(folder, model, load_tokenizer(CLIPTokenizer, tokenizer), Letterbox(side, _MEAN, _STD))

    def texts(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Return (n, width) vectors of prompts, cleaned as open_clip cleans them."""
        return super().texts([self.clean(prompt) for prompt in prompts])

    @staticmethod
    def clean(prompt: str) -> str:
        """Return the prompt as open_clip's tokenizer sees it: Unicode repaired, HTML entities resolved."""
        return unescape(unescape(fix_text(prompt))).strip()

    def scores(self, prepared: Sequence[NDArray[np.float32]], prompts: Sequence[str]) -> NDArray[np.float32]:
        """Return (n,) scores of n prepared images, each with its prompt."""
        if len(self._text_vectors) > 10_000:
            self._text_vectors.clear()
        for batch in split_chunks(sorted(set(prompts) - self._text_vectors.keys()), self.batch_size):
            self._text_vectors.update(zip(batch, self.texts(batch), strict=True))
        text_vectors = np.stack([self._text_vectors[prompt] for prompt in prompts])
        return np.einsum("nd,nd->n", self.images(prepared), text_vectors)


def from_open_clip(state: Mapping[str, Tensor], folder: Path, dtype: torch.dtype = torch.float32) -> CLIPModel:
    """Return transformers' CLIPModel with open_clip's weights. Raises `FlexyError`, naming `folder`, for others."""
    with named_loading_errors(folder):
        # Created without memory of its own, it takes over the converted tensors.
        with torch.device("meta"):
            model = CLIPModel(_config(state))
        pairs = chain.from_iterable(starmap(_convert, state.items()))
        converted = {name: tensor.to(dtype) for name, tensor in pairs}
        missing, unknown = model.load_state_dict(converted, strict=False, assign=True)
    if missing or unknown:
        cause = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown"
        raise load_error(folder, f"it is not an HPS checkpoint: {cause}")
    for embeddings in (model.text_model.embeddings, model.vision_model.embeddings):
        embeddings.position_ids = torch.arange(embeddings.position_ids.shape[-1])[None]
    return model


def _config(state: Mapping[str, Tensor]) -> CLIPConfig:
    def tower(prefix: str, width: int, head_width: int) -> dict[str, Any]:
        return {
            "hidden_size": width,
            "intermediate_size": state[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": sum(
                name.startswith(f"{prefix}transformer.") and name.endswith("c_fc.weight") for name in state
            ),
            "num_attention_heads": width // head_width,
            "hidden_act": "gelu",
        }

    vocabulary_size, width = state["token_embedding.weight"].shape
    channels, _, patch, _ = state["visual.conv1.weight"].shape
    patches = state["visual.positional_embedding"].shape[0] - 1
    # No tensor tells the width of an attention head: these are ViT-H/14's.
    return CLIPConfig(
        projection_dim=state["text_projection"].shape[1],
        text_config=tower("", width, head_width=64)
        | {
            "vocab_size": vocabulary_size,
            "max_position_embeddings": state["positional_embedding"].shape[0],
            "bos_token_id": vocabulary_size - 2,
            "eos_token_id": vocabulary_size - 1,
        },
        vision_config=tower("visual.", channels, head_width=80)
        | {"patch_size": patch, "image_size": patch * math.isqrt(patches)},
    )


_NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
}
_TRANSPOSED = ("text_projection", "visual.proj")
_LAYER_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _convert(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors in transformers' model of a tensor of open_clip's; query, key and value are split."""
    if name in _TRANSPOSED:
        tensor = tensor.T.contiguous()
    layer = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
    if not layer:
        stem, _, ending = name.rpartition(".")
        yield (_NAMES[name] if name in _NAMES else f"{_NAMES[stem]}.{ending}"), tensor
        return
    visual, number, rest = layer.groups()
    layer_name = f"{'vision' if visual else 'text'}_model.encoder.layers.{number}"
    if rest.startswith("attn.in_proj_"):
        for which, part in zip("qkv", tensor.chunk(3), strict=True):
            yield f"{layer_name}.self_attn.{which}_proj.{rest.removeprefix('attn.in_proj_')}", part.clone()
        return
    stem, _, ending = rest.rpartition(".")
    yield f"{layer_name}.{_LAYER_NAMES[stem]}.{ending}", tensor


def to_open_clip(weights: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return the weights of transformers' CLIPModel in open_clip's form: its tensors called `names`."""
    state = {}
    for name in names:
        # A name says where its tensor goes in transformers' model, and in how many parts.
        parts = [weights[part] for part, _ in _convert(name, torch.empty(3, 0))]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        state[name] = tensor.T if name in _TRANSPOSED else tensor
    return state
