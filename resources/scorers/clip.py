"""Image and text embeddings by CLIP ViT-L/14 and its mini kin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from resources.models import compute
from resources.models.loading import load_error, load_network, load_tokenizer, named_loading_errors
from resources.scorers.aesthetic import normalize_embedding
from resources.scorers.preprocessing import Preprocessing


class ClipEncoder:
    """Turns pictures and prompts into L2-normalised float32 vectors of one space."""

    batch_size: int
    """How many pictures or prompts one pass takes; on a CPU a few, which stay in its cache, are quickest."""

    def __init__(self, folder: Path, precision: str = "fp32") -> None:
        """Load a folder in transformers' form, with the preprocessing written beside the weights.

        Raises `FlexyError` where a file does not fit the model.
        """
        model = load_network(CLIPModel, folder, compute.torch_dtype(precision))
        with named_loading_errors(folder / "preprocessor_config.json"):
            preprocessing = Preprocessing.read(folder / "preprocessor_config.json")
        self._start(folder, model, load_tokenizer(CLIPTokenizer, folder), preprocessing)

    def _start(self, folder: Path, model: CLIPModel, words: CLIPTokenizer, preprocessing: Preprocessing) -> None:
        """Put the parts together. Raises `FlexyError` where they do not fit each other."""
        if len(words) > model.config.text_config.vocab_size:
            raise load_error(folder, f"its tokenizer knows {len(words)} words, which is more than the model does")
        if preprocessing.side != (side := model.config.vision_config.image_size):
            raise load_error(
                folder, f"its pictures are to be {preprocessing.side} pixels wide, but the model takes {side}"
            )
        self.device = compute.compute_device()
        self.batch_size = 32 if self.device == "cuda" else 4
        self.model = model.eval().to(self.device)
        self.words = words
        self.prepare = preprocessing
        """(3, side, side) float32 pixels of an RGB picture; called from several threads, ahead of the model."""
        with named_loading_errors(folder):
            tried = self.prepare(Image.new("RGB", (8, 8))), self.texts(["a"])
        weights_are_finite = all(torch.isfinite(weight).all() for weight in model.parameters())
        if not weights_are_finite or not all(np.isfinite(numbers).all() for numbers in tried):
            raise load_error(folder, "what it makes of a picture or a text is not finite")

    @torch.inference_mode()
    def images(self, pixels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """(n, width) vectors of n prepared pictures."""
        batch = torch.from_numpy(np.stack(pixels)).to(self.device, self.model.dtype)
        return normalize_embedding(self.model.get_image_features(batch).pooler_output.float()).cpu().numpy()

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """(n, width) vectors of prompts; a long one is cut by the tokenizer, so that its end token stays."""
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.words(list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        return (
            normalize_embedding(self.model.get_text_features(**tokens.to(self.device)).pooler_output.float())
            .cpu()
            .numpy()
        )

    def embed(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        """(n, width) vectors of RGB pictures of any size."""
        return self.images([self.prepare(picture) for picture in pictures])
