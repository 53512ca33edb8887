"""LAION's aesthetic predictors as heads on one L2-normalised CLIP ViT-L/14 image embedding.

`mlp` is `sac+logos+ava1-l14-linearMSE` (an MLP without activations), as improved-aesthetic-predictor and
simple-aesthetics-predictor (V2) publish it; `linear` is the older `sa_0_4_vit_l_14` (one linear layer; V1 of
simple-aesthetics-predictor).
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from resources.errors import FlexyError
from resources.models.loading import named_loading_errors, read_tensors

_FILES = ("model.safetensors", "pytorch_model.bin", "sac+logos+ava1-l14-linearMSE.pth", "sa_0_4_vit_l_14_linear.pth")
# The prefix of each form's head in its published file; a separate head file has none.
_PREFIXES = {"linear": ("predictor.", ""), "mlp": ("layers.", "")}


class AestheticHead(nn.Sequential):
    """Linear layers from an embedding to one score, about 1 to 10, with dropout between them in training.

    `widths` are the layers' inputs: `(768,)` is the linear head, `(768, 1024, 128, 64, 16)` the MLP.
    """

    folder: Path | None = None
    """The folder that it was loaded from."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        layers: list[nn.Module] = []
        for index, (inputs, outputs) in enumerate(zip(widths, (*widths[1:], 1), strict=True)):
            layers.append(nn.Linear(inputs, outputs))
            if index < len(widths) - 2:
                layers.append(nn.Dropout(0.2 if index < 2 else 0.1))
        super().__init__(*layers)

    @property
    def output_layer(self) -> nn.Linear:
        """The last layer, whose output is the score."""
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, embedding: Tensor) -> Tensor:
        """Return (n,) scores of (n, width) L2-normalised embeddings."""
        return super().forward(embedding).squeeze(-1)

    @torch.inference_mode()
    def score_embeddings(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (n,) scores of (n, width) image vectors. Raises `FlexyError` for vectors of another width."""
        width = self.state_dict()["0.weight"].shape[1]
        if vectors.shape[1] != width:
            cause = f"it reads embeddings of width {width}, CLIP's have width {vectors.shape[1]}"
            remedy = "name the folder of this CLIP's head"
            raise FlexyError(f"cannot use the aesthetic head in {self.folder}: {cause}: {remedy}")
        return self(torch.from_numpy(np.ascontiguousarray(vectors))).numpy()


def load_aesthetic(folder: Path, form: Literal["linear", "mlp"]) -> AestheticHead:
    """Return the head in `folder`; its layers' sizes are read from the weights.

    The published files hold the whole image tower too: only the head is read. Raises `FlexyError` for a file
    without a head.
    """
    state = {name: value.float() for name, value in read_tensors(folder, _FILES, _PREFIXES[form]).items()}
    if state.keys() == {"weight", "bias"}:
        state = {f"0.{name}": value for name, value in state.items()}
    with named_loading_errors(folder):
        layers = sorted((int(n.partition(".")[0]), value) for n, value in state.items() if n.endswith("weight"))
        head = AestheticHead(tuple(value.shape[1] for _, value in layers))
        head.load_state_dict(state)
    head.folder = folder
    return head.eval()


def normalize_embedding(embedding: Tensor) -> Tensor:
    """Return embeddings L2-normalised along the last axis."""
    return torch.nn.functional.normalize(embedding, dim=-1)
