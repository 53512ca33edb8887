"""Interfaces of the models that generate and edit images: `Engine` and `Editor`, with their requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageRequest:
    """One image to generate; width and height in pixels.

    `guidance` is None for an engine without guidance, `scheduler` one of the names in `schedulers`, None for the
    engine's own.
    """

    prompt: str
    negative_prompt: str | None
    steps: int
    guidance: float | None
    seed: int
    width: int
    height: int
    scheduler: str | None = None


class Engine(Protocol):
    """A model that generates images."""

    batch_size: int
    """The maximum number of images per call."""

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image]:
        """Return one RGB image per request, in order. All requests must have the same steps, width, height and
        scheduler.

        An image depends on its own request only, not on the other requests of the call.
        """


@dataclass(frozen=True)
class EditNoise:
    """The initial noise of an edit: that of a seed, moved on its sphere.

    Each of `moves`, in order, is (t, the seed of another noise): x becomes |x| (t·u + √(1 − t²)·w) with u = x/|x|
    and w that noise's direction, t from 0 (as good as fresh noise) to 1 (unchanged). Zero-order search in
    tt-scale-flux does the same, but with a w that is not orthogonal to u; here it is, so that |x| stays, and t is
    the cosine between before and after. Raises `ValueError` for another t.
    """

    seed: int
    moves: tuple[tuple[float, int], ...] = ()

    def __post_init__(self) -> None:
        for t, _ in self.moves:
            if not 0 <= t <= 1:
                raise ValueError(f"invalid t {t} of a noise move: must be from 0 (as good as fresh) to 1 (unchanged)")

    @property
    def weights(self) -> dict[int, float]:
        """The weight of each seed's unit noise in this noise; the squares of the weights sum to 1."""
        weights = {self.seed: 1.0}
        for t, seed in self.moves:
            weights = {known_seed: t * weight for known_seed, weight in weights.items()}
            weights[seed] = weights.get(seed, 0.0) + math.sqrt(1 - t**2)
        return weights

    def apply_moves(
        self, seed_noise: NDArray[np.float32], draw_noise: Callable[[int], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """Return `seed_noise`, of any shape, after the moves; `draw_noise` draws noise of that shape from a seed."""
        x = seed_noise.astype(np.float64)
        norm = np.linalg.norm(x)
        for t, seed in self.moves:
            u = x / norm
            w = draw_noise(seed).astype(np.float64)
            w -= np.vdot(w, u) * u
            # The noise's own direction has no orthogonal part to move along.
            if np.linalg.norm(w) > 1e-6 * norm:
                x = norm * (t * u + np.sqrt(1 - t**2) * w / np.linalg.norm(w))
        return x.astype(np.float32)


@dataclass(frozen=True)
class EditRequest:
    """One edit of an RGB image; `prompt` is the edit's instruction.

    With a `mask` (L, the image's size, white where it may change) the edit is an inpainting. `guidance` is
    how strongly the instruction is followed, in the editor's own scale.

    With a `parent`, an edit of the same image, the edit starts from the parent re-noised by `noise` and runs only
    the last round(steps · strength) of the steps; strength is above 0, and 1 without a parent. Raises `ValueError`
    for another strength, where no step would be left, and for a parent of another size.
    """

    image: Image
    prompt: str
    negative_prompt: str | None
    steps: int
    guidance: float
    noise: EditNoise
    mask: Image | None = None
    parent: Image | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"invalid strength {self.strength}: must be above 0 and at most 1")
        if self.parent is None and self.strength < 1:
            raise ValueError(f"invalid strength {self.strength} without a parent: must be 1, or give a parent")
        if self.parent is not None and self.parent.size != self.image.size:
            raise ValueError(f"invalid parent of size {self.parent.size}: must have the image's, {self.image.size}")
        if self.step >= self.steps:
            raise ValueError(f"strength {self.strength} of {self.steps} steps leaves no step: use more of either")

    @property
    def step(self) -> int:
        """The step at which it starts: 0, or later from a parent."""
        return self.steps - round(self.steps * self.strength)


@dataclass(frozen=True, eq=False)
class PartialEdit:
    """An edit of which the first `step` of its request's steps are done.

    `latents` are what its editor continues from, float32 in the pipeline's own shape; `image` is the clean image
    predicted at that step, of the source's size, and after the last step the finished edit.
    """

    request: EditRequest
    step: int
    latents: NDArray[np.float32]
    image: Image


Edit = EditRequest | PartialEdit


class Editor(Protocol):
    """A model that edits images by an instruction."""

    batch_size: int
    """The maximum number of edits per call."""
    inpaints: bool
    """Whether requests may have a mask."""

    @property
    def steps_run(self) -> int:
        """Denoising steps run since it was loaded (NFE): one per image and step, counted as they run."""

    def edit(self, requests: Sequence[EditRequest]) -> list[Image]:
        """Return one RGB image of the source's size per request, in order: `denoise` until the last step."""

    def denoise(self, edits: Sequence[Edit], stop_step: int) -> list[PartialEdit]:
        """Return each of the edits run until `stop_step` of its request's steps are done, in order.

        All must be at the same step, before `stop_step`, and their requests may differ in noise and parent only. An
        edit depends on its own request only: not on the other edits of the call, nor on where it was stopped and
        continued.
        """
