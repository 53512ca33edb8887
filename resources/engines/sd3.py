"""Stable Diffusion 3 and 3.5."""

from diffusers import StableDiffusion3Pipeline

from resources.engines.pipeline import GuidedEngine


class Sd3Engine(GuidedEngine):
    """A Stable Diffusion 3 pipeline; width and height must be multiples of 16."""

    kind = StableDiffusion3Pipeline
