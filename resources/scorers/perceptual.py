"""LPIPS: how different two pictures look, by VGG16's features (Zhang et al. 2018, version 0.1)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from lpips import LPIPS
from numpy.typing import NDArray
from PIL import Image

from resources.models import compute
from resources.scorers import checkpoint

_FILES = ("model.safetensors", "vgg16-397923af.pth")


class Lpips:
    """The distance of two pictures: 0 for the same, about 1 for nothing in common."""

    images_a_call = 16

    def __init__(self, folder: Path, side: int = 256) -> None:
        """Load VGG16's features from `folder` (timm's or torchvision's file); the linear heads come with lpips.

        Pictures are compared at `side` × `side` pixels. Raises `FlexyError` where the weights do not fit.
        """
        self.side = side
        self.device = compute.device()
        state = checkpoint.read(folder, _FILES, ("features.",))
        with warnings.catch_warnings():
            # lpips calls torchvision as it was called long ago.
            warnings.simplefilter("ignore", UserWarning)
            model = LPIPS(net="vgg", pnet_rand=True, verbose=False)
        with checkpoint.loading(folder):
            # lpips names a layer by its slice and then by its place among the features.
            model.net.load_state_dict({name: state[name.partition(".")[2]] for name in model.net.state_dict()})
        self.model = model.eval().to(self.device)

    def prepare(self, picture: Image.Image) -> NDArray[np.float32]:
        """(3, side, side) float32 in [−1, 1] of an RGB picture of any size."""
        resized = picture.resize((self.side, self.side), Image.Resampling.BILINEAR)
        return np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1

    @torch.inference_mode()
    def distances(
        self, left: Sequence[NDArray[np.float32]], right: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """(n,) distances of n pairs of prepared pictures."""
        pairs = [torch.from_numpy(np.stack(pixels)).to(self.device) for pixels in (left, right)]
        return self.model(*pairs).flatten().cpu().numpy()
