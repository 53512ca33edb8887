"""The scorers by the published packages' own code: `hpsv2` and `simple-aesthetics-predictor` (FLEXY_SCORERS=reference).

The files are read and checked as for our own scorers. Models, preprocessing and tokens are the packages'; where
simple-aesthetics-predictor has none (CLIP's preprocessing and prompts), transformers', as its authors use it.
"""

import importlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from aesthetics_predictor import AestheticsPredictorV1, AestheticsPredictorV2Linear
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, CLIPVisionConfig

from resources.errors import FlexyError
from resources.models import compute
from resources.models.loading import named_loading_errors
from resources.scorers.aesthetic import AestheticHead, load_aesthetic
from resources.scorers.clip import ClipEncoder
from resources.scorers.hps import HpsScorer, to_open_clip
from resources.scorers.preprocessing import Letterbox, Preprocessing


@dataclass(frozen=True)
class ReferencePreprocessing(Preprocessing):
    """A package's own preprocessing in place of ours."""

    transform: Callable[[Image.Image], NDArray[np.float32]]

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return an RGB image as float32 (3, side, side). Raises `FlexyError` where the package fails on its size."""
        self.resized_size(image)
        try:
            pixels = self.transform(image)
        except (ValueError, RuntimeError):
            pixels = np.empty(0, np.float32)
        if pixels.shape != (3, self.side, self.side):
            raise FlexyError(f"the reference cannot prepare an image of {image.width}×{image.height}: crop it")
        return pixels


class ReferenceClip(ClipEncoder):
    """CLIP with the image embeddings of simple-aesthetics-predictor."""

    def _set_model(self, folder: Path, model: CLIPModel, tokenizer: CLIPTokenizer, prepare: Preprocessing) -> None:
        with torch.device("meta"):
            predictor = AestheticsPredictorV1(model.config.vision_config)
        predictor.vision_model, predictor.visual_projection = model.vision_model, model.visual_projection
        predictor.predictor = nn.Linear(model.config.projection_dim, 1, dtype=model.dtype)  # its score is not used
        super()._set_model(folder, model, tokenizer, prepare)
        self._predictor = predictor.eval().to(self.device)
        side, mean, std = prepare.side, prepare.mean, prepare.std
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=mean, image_std=std
        )
        self.prepare = ReferencePreprocessing(
            side, mean, std, lambda image: processor(image, return_tensors="np").pixel_values[0]
        )

    @torch.inference_mode()
    def images(self, pixels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return (n, width) vectors of n prepared images."""
        batch = torch.from_numpy(np.stack(pixels)).to(self.device, self.model.dtype)
        vectors: NDArray[np.float32] = self._predictor(pixel_values=batch).hidden_states.float().cpu().numpy()
        return vectors


class ReferenceHps(HpsScorer):
    """HPS v2.1 by hpsv2's model, preprocessing and tokenizer; in half precision by autocast, as its `score` is."""

    def __init__(self, folder: Path, precision: str = "fp32", tokenizer: Path | None = None) -> None:
        """Load the files as `HpsScorer`."""
        self._dtype = compute.torch_dtype(precision)
        super().__init__(folder, "fp32", tokenizer)

    def _set_model(self, folder: Path, model: CLIPModel, tokenizer: CLIPTokenizer, prepare: Preprocessing) -> None:
        vision, text = model.config.vision_config, model.config.text_config
        with torch.device("meta"):
            reference = _import_hpsv2("model").CLIP(
                model.config.projection_dim,
                {
                    **{"image_size": vision.image_size, "patch_size": vision.patch_size, "width": vision.hidden_size},
                    **{"layers": vision.num_hidden_layers, "mlp_ratio": vision.intermediate_size / vision.hidden_size},
                    "head_width": vision.hidden_size // vision.num_attention_heads,
                },
                {
                    **{"width": text.hidden_size, "heads": text.num_attention_heads, "layers": text.num_hidden_layers},
                    **{"vocab_size": text.vocab_size, "context_length": text.max_position_embeddings},
                },
                quick_gelu=vision.hidden_act == "quick_gelu",
            )
        reference.load_state_dict(to_open_clip(model.state_dict(), reference.state_dict()), assign=True)
        reference.attn_mask = torch.full((text.max_position_embeddings,) * 2, float("-inf")).triu_(1)
        self._reference = reference.eval().to(compute.compute_device())
        self._context_length = text.max_position_embeddings
        self._vocabulary = _read_vocabulary(tokenizer)
        super()._set_model(folder, model, tokenizer, prepare)
        boxed = isinstance(prepare, Letterbox)
        transform = _import_hpsv2("transform").image_transform(
            prepare.side, is_train=False, mean=prepare.mean, std=prepare.std, resize_longest_max=boxed
        )
        self.prepare = ReferencePreprocessing(
            prepare.side, prepare.mean, prepare.std, lambda image: transform(image).numpy()
        )

    @torch.inference_mode()
    def images(self, pixels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return (n, width) vectors of n prepared images."""
        return self._encode(self._reference.encode_image, torch.from_numpy(np.stack(pixels)))

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Return (n, width) vectors of prompts."""
        tokenizer: Any = _import_hpsv2("tokenizer")
        tokenizer._tokenizer = self._vocabulary
        return self._encode(self._reference.encode_text, tokenizer.tokenize(list(prompts), self._context_length))

    def _encode(self, encode: Callable[..., Any], batch: torch.Tensor) -> NDArray[np.float32]:
        device = compute.compute_device()
        with torch.autocast(device, self._dtype, enabled=self._dtype != torch.float32):
            vectors: NDArray[np.float32] = encode(batch.to(device), normalize=True).float().cpu().numpy()
        return vectors


def load_reference_aesthetic(folder: Path, form: Literal["linear", "mlp"]) -> AestheticHead:
    """Return the head in `folder`, with the layers of simple-aesthetics-predictor's model."""
    head = load_aesthetic(folder, form)
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPVisionConfig(**tower, image_size=8, patch_size=8, projection_dim=head[0].in_features)
    layers = AestheticsPredictorV1(config).predictor if form == "linear" else AestheticsPredictorV2Linear(config).layers
    layers = nn.ModuleList([layers]) if form == "linear" else layers
    with named_loading_errors(folder):
        layers.load_state_dict(head.state_dict())
    for index, layer in enumerate(layers):
        head[index] = layer
    return head.eval()


def _read_vocabulary(tokenizer: CLIPTokenizer) -> Any:
    """Return hpsv2's tokenizer with the merges of ours: its wheel lacks the file of the same that it reads."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    text = "\n".join(["", *(pair if isinstance(pair, str) else " ".join(pair) for pair in merges)])
    with patch("gzip.open", lambda _: BytesIO(text.encode())):
        return _import_hpsv2("tokenizer").SimpleTokenizer()


def _import_hpsv2(module: str) -> ModuleType:
    """Return a module of the open_clip inside hpsv2, without what the package imports besides (Tk, for one)."""
    name = "hpsv2_open_clip"
    if name not in sys.modules:
        spec = find_spec("hpsv2")
        package = ModuleType(name)
        package.__path__ = [f"{folder}/src/open_clip" for folder in (spec and spec.submodule_search_locations) or ()]
        sys.modules[name] = package
    with warnings.catch_warnings(action="ignore"):  # of what it uses and timm has renamed
        return importlib.import_module(f"{name}.{module}")
