"""Preprocessing for the scorers: the only place where images are resized for scoring."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resources.errors import FlexyError

PREPROCESSING_VERSION = 2
"""Part of every scorer's fingerprint: raise it when the pixels change."""

MAX_PIXELS = 16_000_000
"""An image with more pixels than this after its resize (1 pixel high, ten thousand wide) is rejected."""


@dataclass(frozen=True)
class Preprocessing:
    """CLIP's own: shortest side to `side` by bicubic, centre crop, then per-channel mean and deviation (0–1 scale)."""

    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def read(cls, path: Path) -> Preprocessing:
        """Read a `preprocessor_config.json` in transformers' form, old or new."""
        config = json.loads(path.read_text())
        crop = config["crop_size"]
        side = crop["height"] if isinstance(crop, dict) else crop
        return cls(side, tuple(config["image_mean"]), tuple(config["image_std"]))

    def resized_size(self, image: Image.Image) -> tuple[int, int]:
        """Return width and height after the resize. Raises `FlexyError` for an image too long and thin for it."""
        # Lengths are truncated, not rounded, as in torchvision and transformers.
        short = min(image.size)
        width, height = (int(self.side * length / short) for length in image.size)
        if width * height > MAX_PIXELS:
            raise FlexyError(f"cannot score an image of {image.width}×{image.height}: it is too long and thin: crop it")
        return width, height

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return an RGB image as float32 (3, side, side). Raises `FlexyError` for one too long and thin to resize."""
        width, height = self.resized_size(image)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        image = image.crop((left, top, left + self.side, top + self.side))
        return self.normalise(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255))

    def normalise(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (3, h, w) pixels in 0–1 on the model's scale."""
        mean, std = (np.array(values, dtype=np.float32).reshape(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


@dataclass(frozen=True)
class Letterbox(Preprocessing):
    """HPS's own: longest side to `side` by antialiased bicubic on float pixels, black bars to a square.

    The reference resizes with torch; Pillow's filter is the same (pixels differ by 2e-5 at most), and its threads
    do not compete with the model's.
    """

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return an RGB image as float32 (3, side, side)."""
        scale = self.side / max(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
        left, top = (self.side - width) // 2, (self.side - height) // 2
        pixels = np.zeros((3, self.side, self.side), dtype=np.float32)
        for channel, plane in zip(pixels, image.split(), strict=True):
            resized = plane.convert("F").resize((width, height), Image.Resampling.BICUBIC)
            channel[top : top + height, left : left + width] = np.asarray(resized) / np.float32(255)
        return self.normalise(pixels)
