"""From a picture to a model's pixels: the one place where pictures are resized for scoring."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

VERSION = 1
"""Part of every scorer's fingerprint: raise it when the pixels change."""


@dataclass(frozen=True)
class Preprocessing:
    """CLIP's own: shortest side to `side` by bicubic, centre crop, then per-channel mean and deviation (0–1 scale)."""

    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def read(cls, path: Path) -> Preprocessing:
        """From a `preprocessor_config.json` in transformers' form."""
        config = json.loads(path.read_text())
        return cls(config["crop_size"]["height"], tuple(config["image_mean"]), tuple(config["image_std"]))

    def __call__(self, picture: Image.Image) -> NDArray[np.float32]:
        """An RGB picture to float32 (3, side, side)."""
        scale = self.side / min(picture.size)
        size = (max(self.side, round(picture.width * scale)), max(self.side, round(picture.height * scale)))
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        pixels = np.asarray(picture, dtype=np.float32)[top : top + self.side, left : left + self.side] / 255
        mean, std = (np.array(values, dtype=np.float32) for values in (self.mean, self.std))
        return ((pixels - mean) / std).transpose(2, 0, 1).astype(np.float32)
