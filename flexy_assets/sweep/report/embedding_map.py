"""The images' embeddings in the plane, by principal components."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MIN_EMBEDDINGS: Final = 3


@dataclass(frozen=True)
class EmbeddingMap:
    """Places of images in the plane: `x` and `y` (n,), null for an image without an embedding.

    `share` of the embeddings' variance lies in the plane; `prompt_share` is that between prompts, in all dimensions,
    None where no prompt repeats. `encoder` made them.
    """

    encoder: str
    n: int
    x: list[float | None]
    y: list[float | None]
    share: float
    prompt_share: float | None


def map_embeddings(
    ids: Sequence[str | None], prompts: Sequence[str | None], vectors: Mapping[str, NDArray[Any]], encoder: str
) -> EmbeddingMap | None:
    """Return the first two principal components of the images' embeddings; None for fewer than `MIN_EMBEDDINGS`.

    The largest loading of each component is positive, so that equal embeddings give equal maps.
    """
    known = [index for index, image_id in enumerate(ids) if image_id in vectors]
    if len(known) < MIN_EMBEDDINGS:
        return None
    embeddings = np.stack([vectors[str(ids[index])] for index in known]).astype(np.float64)
    centred = embeddings - embeddings.mean(axis=0)
    variances, components = np.linalg.eigh(centred.T @ centred)
    plane = components[:, ::-1][:, :2]
    largest = np.abs(plane).argmax(axis=0)
    places = centred @ (plane * np.sign(plane[largest, [0, 1]]))
    total = float(variances.sum())
    if total <= 0:
        return None
    x: list[float | None] = [None] * len(ids)
    y = x.copy()
    for index, place in zip(known, places.tolist(), strict=True):
        x[index], y[index] = (float(f"{value:.4g}") for value in place)
    names, labels = np.unique([prompts[index] or f"\0{index}" for index in known], return_inverse=True)
    prompt_share = None
    if 1 < len(names) < len(known):
        means = np.zeros((len(names), centred.shape[1]))
        np.add.at(means, labels, centred)
        counts = np.bincount(labels)
        between = float(((means**2).sum(axis=1) / counts).sum()) / total
        # Less what prompts explain by chance.
        prompt_share = max(1 - (1 - between) * (len(known) - 1) / (len(known) - len(names)), 0.0)
    return EmbeddingMap(encoder, len(known), x, y, float(variances[-2:].sum()) / total, prompt_share)
