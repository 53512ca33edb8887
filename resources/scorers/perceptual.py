"""LPIPS: the perceptual distance of two images by VGG16's features (Zhang et al. 2018, version 0.1)."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import lpips
import numpy as np
import torch
from lpips.lpips import LPIPS, NetLinLayer, ScalingLayer
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from resources.models import compute
from resources.models.loading import named_loading_errors, read_tensors

_FILES = ("model.safetensors", "vgg16-397923af.pth")
_HEADS = ("heads.safetensors", "vgg.pth")
_PUBLISHED_HEADS = Path(lpips.__file__).parent / "weights" / "v0.1"


class VggFeatures(nn.Module):
    """A VGG's convolutions: `widths` are their channels, block by block; pooling halves the image between blocks."""

    def __init__(self, widths: Sequence[Sequence[int]]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.ends: list[int] = []
        """The number of layers up to the end of each block."""
        inputs = 3
        for block in widths:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for width in block:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            self.ends.append(len(layers))
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features at the end of each block for (n, 3, h, w) images."""
        block_features = []
        for start, end in pairwise([0, *self.ends]):
            images = self.features[start:end](images)
            block_features.append(images)
        return block_features


class LpipsDistance(LPIPS):
    """lpips' own distance on a VGG of any widths."""

    def __init__(self, widths: Sequence[Sequence[int]]) -> None:
        # LPIPS' own constructor would first initialise a whole VGG16.
        nn.Module.__init__(self)
        self.version, self.lpips, self.spatial = "0.1", True, False
        self.scaling_layer = ScalingLayer()
        self.net = VggFeatures(widths)
        self.lins = nn.ModuleList(NetLinLayer(block[-1], use_dropout=True) for block in widths)
        self.L = len(widths)


class LpipsScorer:
    """Computes the distance of two images: 0 for equal ones, about 1 for unrelated ones."""

    batch_size = 16

    def __init__(self, folder: Path) -> None:
        """Load a VGG's features from `folder`: timm's or torchvision's file of VGG16, or a smaller one's.

        The linear heads come with lpips, unless `folder` has its own. Images are compared at 256 × 256 pixels, or at
        the `side` in the folder's config.json. Raises `FlexyError` for weights that do not fit.
        """
        self.device = compute.compute_device()
        state = read_tensors(folder, _FILES, ("features.",))
        heads = read_tensors(folder if (folder / _HEADS[0]).exists() else _PUBLISHED_HEADS, _HEADS, ("lin",))
        with named_loading_errors(folder):
            config = folder / "config.json"
            self.side = int(json.loads(config.read_text()).get("side", 256)) if config.exists() else 256
            model = LpipsDistance(_widths(state))
            model.net.features.load_state_dict(state)
            model.lins.load_state_dict(heads)
        self.model = model.eval().to(self.device)

    def prepare(self, image: Image.Image) -> NDArray[np.float32]:
        """Return an RGB image of any size as float32 (3, side, side) in [−1, 1]."""
        resized = image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        return np.asarray(resized, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1

    @torch.inference_mode()
    def distances(
        self, left: Sequence[NDArray[np.float32]], right: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Return (n,) distances of n pairs of prepared images."""
        pairs = [torch.from_numpy(np.stack(pixels)).to(self.device) for pixels in (left, right)]
        return self.model(*pairs).flatten().cpu().numpy()


def _widths(state: Mapping[str, Tensor]) -> list[list[int]]:
    """Return the channels, block by block: a convolution and its ReLU take two indices, pooling a third."""
    widths: list[list[int]] = []
    last_index = -3
    for index in sorted(int(name.partition(".")[0]) for name in state if name.endswith(".weight")):
        if index - last_index > 2:
            widths.append([])
        widths[-1].append(len(state[f"{index}.weight"]))
        last_index = index
    return widths
