"""The two LAION aesthetic predictors as heads on one L2-normalised CLIP ViT-L/14 image embedding.

V1 is `sa_0_4_vit_l_14` (one linear layer), V2 is `sac+logos+ava1-l14-linearMSE` (an MLP without
activations), both as published in shunk031/simple-aesthetics-predictor.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn


class AestheticHead(nn.Sequential):
    """Linear layers from an embedding to one mark, about 1 to 10; dropout between them while training.

    `widths` are the layers' inputs: `(768,)` is V1, `(768, 1024, 128, 64, 16)` is V2.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        outputs = (*widths[1:], 1)
        drops = (0.2, 0.2, 0.1)
        layers: list[nn.Module] = []
        for index, (inputs, out) in enumerate(zip(widths, outputs, strict=True)):
            layers.append(nn.Linear(inputs, out))
            if index < len(widths) - 2:
                layers.append(nn.Dropout(drops[min(index, len(drops) - 1)]))
        super().__init__(*layers)

    @property
    def mark(self) -> nn.Linear:
        """The last layer, whose output is the mark."""
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, embedding: Tensor) -> Tensor:
        """(n, width) L2-normalised embeddings to (n,) marks."""
        return super().forward(embedding).squeeze(-1)

    @torch.inference_mode()
    def marks(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, width) image vectors to (n,) marks."""
        return self(torch.from_numpy(np.ascontiguousarray(vectors))).numpy()


def load(folder: Path) -> AestheticHead:
    """The head in `folder`'s model.safetensors; its layers' sizes are read from the weights."""
    state = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    layers = sorted((int(name.partition(".")[0]), value) for name, value in state.items() if name.endswith("weight"))
    head = AestheticHead(tuple(value.shape[1] for _, value in layers))
    head.load_state_dict(state)
    return head.eval()


def normalised(embedding: Tensor) -> Tensor:
    """L2-normalise along the last axis."""
    return torch.nn.functional.normalize(embedding, dim=-1)
