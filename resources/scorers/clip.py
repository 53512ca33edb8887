"""Image and text embeddings by CLIP ViT-L/14 or the mini CLIP."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer
from transformers.activations import ACT2FN
from transformers.models.clip.modeling_clip import CLIPMLP

from resources.models import compute
from resources.models.loading import load_error, load_network, load_tokenizer, named_loading_errors
from resources.scorers.aesthetic import normalize_embedding
from resources.scorers.preprocessing import Preprocessing


class ClipEncoder:
    """Computes L2-normalised float32 vectors of images and prompts in one space."""

    batch_size: int
    """Images or prompts per forward pass; on a CPU a few, which fit its cache, are fastest."""

    def __init__(self, folder: Path, precision: str = "fp32", activation: str | None = None) -> None:
        """Load a folder in transformers' form, preprocessing included. Raises `FlexyError` where they do not fit.

        `activation`, "gelu" for example, takes the place of the one in the model's configuration.
        """
        model = load_network(CLIPModel, folder, compute.torch_dtype(precision))
        if activation:
            for layer in model.modules():
                if isinstance(layer, CLIPMLP):
                    layer.activation_fn = ACT2FN[activation]
        with named_loading_errors(folder / "preprocessor_config.json"):
            preprocessing = Preprocessing.read(folder / "preprocessor_config.json")
        self._set_model(folder, model, load_tokenizer(CLIPTokenizer, folder), preprocessing)

    def _set_model(self, folder: Path, model: CLIPModel, tokenizer: CLIPTokenizer, prepare: Preprocessing) -> None:
        """Set model, tokenizer and preprocessing. Raises `FlexyError` where they do not fit each other."""
        if len(tokenizer) > model.config.text_config.vocab_size:
            raise load_error(folder, f"its tokenizer has {len(tokenizer)} tokens, more than the model")
        if prepare.side != (side := model.config.vision_config.image_size):
            cause = f"its preprocessing makes images {prepare.side} pixels wide, but the model takes {side}"
            raise load_error(folder, cause)
        self.device = compute.compute_device()
        self.batch_size = 32 if self.device == "cuda" else 4
        self.model = model.eval().to(self.device)
        self.tokenizer = tokenizer
        self.prepare = prepare
        """Returns an RGB image as (3, side, side) float32; called from several threads, ahead of the model."""
        with named_loading_errors(folder):
            samples = self.prepare(Image.new("RGB", (8, 8))), self.texts(["a"])
        weights_are_finite = all(torch.isfinite(weight).all() for weight in model.parameters())
        if not weights_are_finite or not all(np.isfinite(numbers).all() for numbers in samples):
            raise load_error(folder, "its embeddings are not finite")

    @torch.inference_mode()
    def images(self, pixels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return (n, width) vectors of n prepared images."""
        batch = torch.from_numpy(np.stack(pixels)).to(self.device, self.model.dtype)
        return normalize_embedding(self.model.get_image_features(batch).pooler_output.float()).cpu().numpy()

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Return (n, width) vectors of prompts; the tokenizer truncates a long one and keeps its end token."""
        max_tokens = self.model.config.text_config.max_position_embeddings
        options = {"padding": True, "truncation": True, "max_length": max_tokens, "return_tensors": "pt"}
        features = self.model.get_text_features(**self.tokenizer(list(prompts), **options).to(self.device))
        return normalize_embedding(features.pooler_output.float()).cpu().numpy()

    def embed(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Return (n, width) vectors of RGB images of any size."""
        return self.images([self.prepare(image) for image in images])
