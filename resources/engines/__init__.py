"""Pipelines that make and edit images, behind two faces: `Engine` and `Editor`."""

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
    """One image to make; width and height in pixels. `guidance` is None for an engine that has none."""

    prompt: str
    negative_prompt: str | None
    steps: int
    guidance: float | None
    seed: int
    width: int
    height: int


class Engine(Protocol):
    """A model that makes images."""

    batch_size: int
    """How many images one call makes at the most."""

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image]:
        """An RGB image for each request, in order. All must ask for the same steps, width and height.

        An image depends on its own request alone, not on those it is made together with.
        """
        ...


@dataclass(frozen=True)
class EditNoise:
    """The noise that an edit begins with: that of a seed, moved on its sphere.

    Each of `moves`, in order, is (t, the seed of another noise): x becomes |x| (t·u + √(1 − t²)·w) with u = x/|x|
    and w that noise's direction, t from 0 (as good as fresh) to 1 (the same). Zero-order search in
    tt-scale-flux moves so, but with a w that is not orthogonal to u; here it is, so that |x| stays, and t is
    the cosine between before and after. Raises `ValueError` for another t.
    """

    seed: int
    moves: tuple[tuple[float, int], ...] = ()

    def __post_init__(self) -> None:
        """See the class."""
        for t, _ in self.moves:
            if not 0 <= t <= 1:
                raise ValueError(f"a move's t is {t}: use 0 (as good as fresh) to 1 (the same)")

    @property
    def weights(self) -> dict[int, float]:
        """How much of each seed's unit noise there is in it; their squares sum to 1."""
        found = {self.seed: 1.0}
        for t, seed in self.moves:
            found = {each: t * weight for each, weight in found.items()}
            found[seed] = found.get(seed, 0.0) + math.sqrt(1 - t**2)
        return found

    def move(self, drawn: NDArray[np.float32], draw: Callable[[int], NDArray[np.float32]]) -> NDArray[np.float32]:
        """What was `drawn` with the seed, of any shape, after the moves; `draw` draws the like with another one."""
        x = drawn.astype(np.float64)
        norm = np.linalg.norm(x)
        for t, seed in self.moves:
            u = x / norm
            w = draw(seed).astype(np.float64)
            w -= np.vdot(w, u) * u
            # Its own direction leads nowhere.
            if np.linalg.norm(w) > 1e-6 * norm:
                x = norm * (t * u + np.sqrt(1 - t**2) * w / np.linalg.norm(w))
        return x.astype(np.float32)


@dataclass(frozen=True)
class EditRequest:
    """One edit of an RGB image.

    With a `mask` (L, the image's size, white where it may change) the edit is an inpainting. `guidance` is
    how strongly the instruction is followed, in the editor's own scale.

    With a `parent`, an edit of the same image, it does not begin with `noise` alone but with the parent
    re-noised by it, and runs only the last round(steps · strength) of the steps; strength is above 0, and 1
    without a parent. Raises `ValueError` where it is not, where no step would be left, and for a parent of
    another size.
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
        """See the class."""
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength is {self.strength}: use above 0 to 1")
        if self.parent is None and self.strength < 1:
            raise ValueError(f"strength {self.strength} re-noises a parent: give one, or leave strength at 1")
        if self.parent is not None and self.parent.size != self.image.size:
            raise ValueError(f"the parent is {self.parent.size}: give one of the image's size, {self.image.size}")
        if self.step >= self.steps:
            raise ValueError(f"strength {self.strength} of {self.steps} steps is none: use more of either")

    @property
    def step(self) -> int:
        """The step that it begins at: 0, or later from a parent."""
        return self.steps - round(self.steps * self.strength)


@dataclass(frozen=True, eq=False)
class PartialEdit:
    """An edit of which `step` of its request's steps are done.

    `latents` is what its editor goes on from, float32 in the pipeline's own shape; `image` the clean image as
    predicted there, of the source's size, and after the last step the edit itself.
    """

    request: EditRequest
    step: int
    latents: NDArray[np.float32]
    image: Image


class Editor(Protocol):
    """A model that edits images as a prompt says."""

    batch_size: int
    """How many edits one call makes at the most."""
    inpaints: bool
    """Whether requests may have a mask."""

    @property
    def steps_run(self) -> int:
        """Denoising steps run since it was loaded (NFE), counted as they are run; an image and a step are one."""
        ...

    def edit(self, requests: Sequence[EditRequest]) -> list[Image]:
        """An RGB image of the source's size for each request, in order: `denoise` until the last step."""
        ...

    def denoise(self, edits: Sequence[EditRequest | PartialEdit], until: int) -> list[PartialEdit]:
        """Each of the edits run until so many of its request's steps are done, in order.

        All must be at the same step, before `until`, and their requests differ in noise and parent alone. An
        edit depends on its own request alone: not on those it is made together with, nor on where it was
        stopped and continued.
        """
        ...
