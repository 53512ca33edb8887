"""Image and text embeddings by a CLIP model: ViT-L/14, HPS v2.1's ViT-H/14 and their mini kin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer

from resources.errors import FlexyError
from resources.scorers.aesthetic import normalised
from resources.scorers.preprocessing import Preprocessing


class ClipEncoder:
    """Turns pictures and prompts into L2-normalised float32 vectors of one space."""

    def __init__(self, folder: Path) -> None:
        """Load a folder in transformers' form, with the preprocessing written beside the weights.

        Raises `FlexyError` where the weights do not fit the model.
        """
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self.model = CLIPModel.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise FlexyError(f"cannot load {folder}: {str(error).splitlines()[0]}: restore its files") from error
        self.model.eval().to(self.device)
        self.words = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.preprocessing = Preprocessing.read(folder / "preprocessor_config.json")

    @torch.inference_mode()
    def images(self, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        """(n, width) vectors of RGB pictures of any size."""
        pixels = torch.from_numpy(np.stack([self.preprocessing(picture) for picture in pictures]))
        return normalised(self.model.get_image_features(pixels.to(self.device)).pooler_output).cpu().numpy()

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """(n, width) vectors of prompts; a long one is cut by the tokenizer, so that its end token stays."""
        tokens = self.words(list(prompts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        return normalised(self.model.get_text_features(**tokens).pooler_output).cpu().numpy()
