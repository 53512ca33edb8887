"""Partial denoising runs: from one step of a schedule to another, from any latents, every step counted."""

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
    """Mixin for a scheduler whose steps depend on the latents only: it runs only the steps in `step_range`.

    The last of them returns the clean latents predicted there, so that the pipeline decodes these, and stores in
    `next_latents` the latents to continue from. `steps_run` is the NFE of all runs: one per image and step, with
    guidance or without.
    """

    step_range = slice(None)
    steps_run = 0
    next_latents: Tensor
    timesteps: Tensor
    sigmas: Tensor

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, **options: Any
    ) -> None:
        """Set the schedule of the whole run, cut to `step_range` and ended with its own terminal σ."""
        super().set_timesteps(num_inference_steps, device, sigmas=sigmas, **options)
        self._next_sigma = self.sigmas[self.step_range.stop]
        self.timesteps = self.timesteps[self.step_range]
        self.sigmas = torch.cat([self.sigmas[self.step_range], self.sigmas[-1:]])

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options: Any) -> Any:
        """Run one step for each image of the batch."""
        self.steps_run += len(sample)
        result = super().step(model_output, timestep, sample, **options)
        if self._step_index == len(self.timesteps):
            self._step_index -= 1
            self.sigmas[-1] = self._next_sigma
            self.next_latents = super().step(model_output, timestep, sample, return_dict=False)[0]
        return result

    def add_initial_noise(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Return clean latents with the amount of noise at the start of `step_range`."""
        raise NotImplementedError


class PartialFlowScheduler(PartialScheduler, FlowMatchEulerDiscreteScheduler):
    """Rectified flow: (1 − σ) · clean + σ · noise."""

    def add_initial_noise(self, clean: Tensor, noise: Tensor) -> Tensor:
        """See `PartialScheduler.add_initial_noise`."""
        return self.scale_noise(clean, self.timesteps[:1], noise)


class PartialEulerScheduler(PartialScheduler, EulerDiscreteScheduler):
    """Variance exploding: clean + σ · noise."""

    def add_initial_noise(self, clean: Tensor, noise: Tensor) -> Tensor:
        """See `PartialScheduler.add_initial_noise`."""
        return self.add_noise(clean, noise, self.timesteps[:1])


def partial_scheduler(scheduler: Any) -> PartialScheduler:
    """Return the scheduler as a `PartialScheduler`; raises `FlexyError` for one that cannot be interrupted."""
    if type(scheduler) is FlowMatchEulerDiscreteScheduler:
        return PartialFlowScheduler.from_config(scheduler.config)
    if type(scheduler) is EulerDiscreteScheduler:
        return PartialEulerScheduler.from_config(scheduler.config)
    raise FlexyError(
        f"unsupported scheduler {type(scheduler).__name__}: edits cannot be interrupted with it: "
        "name FlowMatchEulerDiscreteScheduler or EulerDiscreteScheduler in model_index.json and scheduler_config.json"
    )


class PartialPipeline(DiffusionPipeline):
    """Mixin for a pipeline: its generators draw moved noise, and each image starts from chosen latents.

    `initial_latents` is called with an image's index and its noise, a float32 tensor (1, channels, height, width) on
    the CPU, and returns the image's first latents, a batch of one in the pipeline's own form, or None for the latents
    that the pipeline has prepared.
    """

    noises: Mapping[torch.Generator, EditNoise]
    initial_latents: Callable[[int, Tensor], Tensor | None]
    _mask: Any = 1

    def prepare_latents(self, *args: Any, **options: Any) -> Any:
        """Run the pipeline's own method with moved noise."""
        with _MovedNoise(self.noises) as moved_noise:
            prepared = super().prepare_latents(*args, **options)
        self._prepared = prepared[0] if isinstance(prepared, tuple) else prepared, moved_noise.drawn
        return prepared

    def prepare_mask_latents(self, *args: Any, **options: Any) -> Any:
        """Run the pipeline's own method; its first result is the mask, 1 where the image may change."""
        prepared = super().prepare_mask_latents(*args, **options)
        self._mask = prepared[0]
        return prepared

    def progress_bar(self, *args: Any, **options: Any) -> Any:
        """Set the initial latents: this is the last call before denoising, when latents and σ are both ready."""
        latents, noise_of = self._prepared
        del self._prepared
        for index, (latent, generator) in enumerate(zip(latents.split(1), self.noises, strict=True)):
            noise = noise_of[generator]
            start = self.initial_latents(index, noise.reshape(1, *noise.shape[-3:]))
            if start is not None:
                # The same blend with the equally noisy source that inpainting pipelines end each step with.
                latent.copy_((1 - self._mask) * latent + self._mask * start.to(latent))
        return super().progress_bar(*args, **options)


def cpu_generator(seed: int) -> torch.Generator:
    """Return the generator of a seed's noise; on the CPU, so that every device gets the same noise."""
    return torch.Generator("cpu").manual_seed(seed)


class _MovedNoise(TorchFunctionMode):
    """Makes torch.randn draw float32 noise, moved as the generator's `EditNoise` says; `drawn` holds the last draws."""

    def __init__(self, noises: Mapping[torch.Generator, EditNoise]) -> None:
        super().__init__()
        self.noises = noises
        self.drawn: dict[torch.Generator, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.randn:
            return func(*args, **(kwargs or {}))
        generator = kwargs["generator"]

        def draw(source: torch.Generator) -> NDArray[np.float32]:
            return func(*args, **kwargs | {"dtype": torch.float32, "generator": source}).numpy()

        noise = self.noises[generator].apply_moves(draw(generator), lambda seed: draw(cpu_generator(seed)))
        self.drawn[generator] = torch.from_numpy(noise)
        return self.drawn[generator].to(kwargs["dtype"])
