"""Text-to-image pipelines behind one face: `Engine`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class ImageRequest:
    """One image to make; width and height in pixels."""

    prompt: str
    negative_prompt: str | None
    steps: int
    guidance: float
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
