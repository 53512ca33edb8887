"""Pipelines that make and edit images, behind two faces: `Engine` and `Editor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

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

    images_a_call: int
    """How many images one call makes at the most."""

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image]:
        """An RGB image for each request, in order. All must ask for the same steps, width and height.

        An image depends on its own request alone, not on those it is made together with.
        """
        ...


@dataclass(frozen=True)
class EditRequest:
    """One edit of an RGB image.

    With a `mask` (L, the image's size, white where it may change) the edit is an inpainting. `guidance` is
    how strongly the instruction is followed, in the editor's own scale.
    """

    image: Image
    prompt: str
    negative_prompt: str | None
    steps: int
    guidance: float
    seed: int
    mask: Image | None = None


class Editor(Protocol):
    """A model that edits images as a prompt says."""

    images_a_call: int
    """How many edits one call makes at the most."""

    def edit(self, requests: Sequence[EditRequest]) -> list[Image]:
        """An RGB image of the source's size for each request, in order.

        All must share image, mask, prompts, steps and guidance and differ in their seed alone. An edit
        depends on its own request alone, not on those it is made together with.
        """
        ...
