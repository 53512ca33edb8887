"""Stretches of a denoising run: from one of its steps to another, begun with any latents, every step counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from resources.engines import EditNoise
from resources.errors import FlexyError


class PartialScheduler(SchedulerMixin):
    """Mixed into a scheduler whose steps depend on nothing but the latents: it goes through those in `span` alone.

    The last of them leads to the clean latents as predicted there, so that the pipeline decodes these, and
    leaves in `reached` the latents to go on from. `steps_run` is the NFE of all runs, an image and a step
    being one, with guidance or without.
    """

    span = slice(None)
    steps_run = 0
    reached: Tensor
    timesteps: Tensor
    sigmas: Tensor

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, **options: Any
    ) -> None:
        """The schedule of the whole run, cut to the stretch and ended with its own terminal σ."""
        super().set_timesteps(num_inference_steps, device, sigmas=sigmas, **options)
        self._next_sigma = self.sigmas[self.span.stop]
        self.timesteps = self.timesteps[self.span]
        self.sigmas = torch.cat([self.sigmas[self.span], self.sigmas[-1:]])

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options: Any) -> Any:
        """One step for each of the images."""
        self.steps_run += len(sample)
        stepped = super().step(model_output, timestep, sample, **options)
        if self._step_index == len(self.timesteps):
            self._step_index -= 1
            self.sigmas[-1] = self._next_sigma
            self.reached = super().step(model_output, timestep, sample, return_dict=False)[0]
        return stepped

    def renoised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Clean latents with as much noise as there is where the stretch begins."""
        raise NotImplementedError


class PartialFlowScheduler(PartialScheduler, FlowMatchEulerDiscreteScheduler):
    """Rectified flow: (1 − σ) · clean + σ · noise."""

    def renoised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """See `Stretch.renoised`."""
        return self.scale_noise(clean, self.timesteps[:1], noise)


class PartialEulerScheduler(PartialScheduler, EulerDiscreteScheduler):
    """Variance exploding: clean + σ · noise."""

    def renoised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """See `Stretch.renoised`."""
        return self.add_noise(clean, noise, self.timesteps[:1])


def partial_scheduler(scheduler: Any) -> PartialScheduler:
    """The same scheduler as a `Stretch`; raises `FlexyError` for one that cannot be stopped and continued."""
    for kind, published in (
        (PartialFlowScheduler, FlowMatchEulerDiscreteScheduler),
        (PartialEulerScheduler, EulerDiscreteScheduler),
    ):
        if type(scheduler) is published:
            return kind.from_config(scheduler.config)
    raise FlexyError(
        f"edits cannot be stopped and continued with a {type(scheduler).__name__}: "
        "name FlowMatchEulerDiscreteScheduler or EulerDiscreteScheduler in model_index.json and scheduler_config.json"
    )


class PartialPipeline(DiffusionPipeline):
    """Mixed into a pipeline, so that its generators draw moved noise and each image begins where `begin` says.

    `begin` is given an image's index and its noise, a float32 tensor (1, channels, height, width) on the CPU,
    and returns the image's first latents, a batch of one in the pipeline's own form, or None for those that the
    pipeline has prepared.
    """

    noises: Mapping[torch.Generator, EditNoise]
    begin: Callable[[int, Tensor], Tensor | None]
    _mask: Any = 1

    def prepare_latents(self, *args: Any, **options: Any) -> Any:
        """The pipeline's own, from moved noise."""
        with _FixedNoise(self.noises) as moved:
            prepared = super().prepare_latents(*args, **options)
        self._begun = prepared[0] if isinstance(prepared, tuple) else prepared, moved.drawn
        return prepared

    def prepare_mask_latents(self, *args: Any, **options: Any) -> Any:
        """The pipeline's own; the first of it is the mask, 1 where the image may change."""
        prepared = super().prepare_mask_latents(*args, **options)
        self._mask = prepared[0]
        return prepared

    def progress_bar(self, *args: Any, **options: Any) -> Any:
        """The last that every pipeline asks for before it denoises, having both its latents and its σ by then."""
        latents, drawn = self._begun
        del self._begun
        for index, (latent, generator) in enumerate(zip(latents.split(1), self.noises, strict=True)):
            noise = drawn[generator]
            start = self.begin(index, noise.reshape(1, *noise.shape[-3:]))
            if start is not None:
                # The same blend as inpainting pipelines end each step with, of the source as noisy as it is there.
                latent.copy_((1 - self._mask) * latent + self._mask * start.to(latent))
        return super().progress_bar(*args, **options)


def cpu_generator(seed: int) -> torch.Generator:
    """What a seed's noise is drawn with."""
    # On the CPU it gives the same noise for every device.
    return torch.Generator("cpu").manual_seed(seed)


def partial_pipeline(kind: Any) -> Any:
    """A pipeline class with `PartWay`."""
    return type(kind.__name__, (PartialPipeline, kind), {})


class _FixedNoise(TorchFunctionMode):
    """What pipelines draw with each generator: in float32, moved as its noise says; the last of it is in `drawn`."""

    def __init__(self, noises: Mapping[torch.Generator, EditNoise]) -> None:
        super().__init__()
        self.noises = noises
        self.drawn: dict[torch.Generator, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.randn:
            return func(*args, **(kwargs or {}))
        generator = kwargs["generator"]

        def draw(dice: torch.Generator) -> NDArray[np.float32]:
            return func(*args, **kwargs | {"dtype": torch.float32, "generator": dice}).numpy()

        moved = self.noises[generator].move(draw(generator), lambda seed: draw(cpu_generator(seed)))
        self.drawn[generator] = torch.from_numpy(moved)
        return self.drawn[generator].to(kwargs["dtype"])
