"""What engines and editors share: a diffusers pipeline, loaded whole, placed where there is memory, and asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image

from resources.engines import EditRequest, ImageRequest, PartialEdit
from resources.engines.partial_denoising import cpu_generator, partial_pipeline, partial_scheduler
from resources.errors import FlexyError
from resources.models import compute
from resources.models.loading import load_pipeline

ACTIVATION_BYTES = 4 * 2**30
"""Bytes to leave beside the weights for a few images of a megapixel."""

TILED_ACTIVATION_BYTES = 2 * 2**30
"""The same where the VAE works in tiles."""


def choose_placement(
    needed_bytes: int, largest_component_bytes: int, free_bytes: int
) -> Literal["resident", "offload", "sequential"]:
    """Where weights wait for their turn: all on the GPU, each component in RAM, or each layer in RAM.

    The last is many times slower than the second, and that somewhat slower than the first.
    """
    if needed_bytes + ACTIVATION_BYTES <= free_bytes:
        return "resident"
    if largest_component_bytes + TILED_ACTIVATION_BYTES <= free_bytes:
        return "offload"
    return "sequential"


def place_pipeline(pipeline: Any, free_bytes: int) -> None:
    """Put `pipeline` on a GPU with `free_bytes` to give, as `placement` says."""
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    sizes = [sum(t.nbytes for t in (*module.parameters(), *module.buffers())) for module in modules]
    match choose_placement(sum(sizes), max(sizes), free_bytes):
        case "resident":
            pipeline.to("cuda")
            return
        case "offload":
            pipeline.enable_model_cpu_offload()
        case "sequential":
            pipeline.enable_sequential_cpu_offload()
    pipeline.vae.enable_slicing()
    pipeline.vae.enable_tiling()


class PerImageGuidance:
    """Mixed into a pipeline with classifier-free guidance, so that each image of a call has its own.

    diffusers multiplies by the guidance, which may then be a (n, 1, 1, 1) tensor, but also asks whether it
    is above 1, as one number.
    """

    _guidance_scale: Any

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether any image of the call is guided."""
        return bool((torch.as_tensor(self._guidance_scale) > 1).any())


class PipelineModel:
    """A pipeline of class `kind`, ready to be asked."""

    kind: Any

    def __init__(self, folder: Path, batch_size: int = 4, precision: str = "fp32", **parts: Any) -> None:
        """Load a folder in diffusers' form; see `load`."""
        self.batch_size = batch_size
        self.device = compute.compute_device()
        self.dtype = compute.torch_dtype(precision)
        self.pipeline = load_pipeline(self.kind, folder, self.dtype, **parts)
        self.pipeline.set_progress_bar_config(disable=True)
        if self.device == "cuda":
            place_pipeline(self.pipeline, torch.cuda.mem_get_info()[0])

    def ask(
        self,
        pipeline: Any,
        dice: list[torch.Generator],
        steps: int,
        size: tuple[int, int],
        **arguments: Any,
    ) -> list[Image.Image]:
        """What `pipeline` makes with each of the dice, resized to `size` where it only works at others."""
        try:
            images = pipeline(generator=dice, num_inference_steps=steps, **arguments).images
        finally:
            # After an error too: what is left on the GPU would be in the way of the next call.
            self.pipeline.maybe_free_model_hooks()
        return [image if image.size == size else image.resize(size, Image.Resampling.LANCZOS) for image in images]


class PipelineEngine(PipelineModel):
    """An `Engine`: images of equal steps and size are made in one call, each with its prompt and seed."""

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        """See `Engine.generate`. Raises `ValueError` where steps or size differ."""
        first = requests[0]
        if any((r.steps, r.width, r.height) != (first.steps, first.width, first.height) for r in requests):
            raise ValueError("one call makes images of equal steps, width and height")
        return self.make(requests)

    def make(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        """The images, for requests that agree."""
        first = requests[0]
        return self.ask(
            self.pipeline,
            [cpu_generator(request.seed) for request in requests],
            first.steps,
            (first.width, first.height),
            prompt=[request.prompt for request in requests],
            width=first.width,
            height=first.height,
            **self.arguments(requests),
        )

    def arguments(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        """What this pipeline is asked beside prompts, steps, size and seeds."""
        raise NotImplementedError


class GuidedEngine(PipelineEngine):
    """One with classifier-free guidance and negative prompts; `kind` has `GuidedEach`."""

    def arguments(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        """Each request's own. Guidance at or below 1 means none, as everywhere in diffusers.

        It is rounded to the pipeline's precision: in bf16 between 4 and 8 to a 1/32, in fp16 to a 1/256.
        """
        guidance = torch.tensor([max(request.guidance or 1.0, 1.0) for request in requests]).view(-1, 1, 1, 1)
        return {
            "guidance_scale": guidance.to(self.device, self.dtype),
            "negative_prompt": [request.negative_prompt or "" for request in requests],
        }


class PipelineEditor(PipelineModel):
    """An `Editor`: edits that differ in noise and parent alone are made in one call."""

    inpaints = False

    def __init__(self, folder: Path, batch_size: int = 4, precision: str = "fp32", **parts: Any) -> None:
        """Load a folder in diffusers' form; see `load`."""
        self.kind = partial_pipeline(self.kind)
        super().__init__(folder, batch_size, precision, **parts)
        self.scheduler = self.pipeline.scheduler = partial_scheduler(self.pipeline.scheduler)

    @property
    def steps_run(self) -> int:
        """See `Editor.steps_run`."""
        return self.scheduler.steps_run

    def edit(self, requests: Sequence[EditRequest]) -> list[Image.Image]:
        """See `Editor.edit`."""
        return [edit.image for edit in self.denoise(requests, requests[0].steps)]

    def denoise(self, edits: Sequence[EditRequest | PartialEdit], until: int) -> list[PartialEdit]:
        """See `Editor.denoise`.

        Raises `ValueError` where requests differ in more than noise and parent or edits are not at one step
        before `until`, and `FlexyError` for a mask where the model cannot inpaint.
        """
        first, step = _request(edits[0]), edits[0].step
        own = {"noise": None, "parent": None}
        if any(vars(_request(edit)) | own != vars(first) | own for edit in edits):
            raise ValueError("one call makes edits that differ in noise and parent alone")
        if any(edit.step != step for edit in edits):
            raise ValueError("one call makes edits that are at the same step")
        if not step < until <= first.steps:
            raise ValueError(f"edits at step {step} of {first.steps} cannot be run until step {until}")
        self.scheduler.span = slice(step, until)
        if first.mask is not None:
            return self.inpaint(edits, until, first.mask)
        return self.run(self.pipeline, edits, until, num_images_per_prompt=len(edits))

    def inpaint(self, edits: Sequence[EditRequest | PartialEdit], until: int, mask: Image.Image) -> list[PartialEdit]:
        """The edits that have a mask."""
        raise FlexyError(f"{type(self).__name__} edits whole images: leave out the mask, or take another editor")

    def run(
        self, pipeline: Any, edits: Sequence[EditRequest | PartialEdit], until: int, **arguments: Any
    ) -> list[PartialEdit]:
        """What `pipeline` makes of them in one call, asked with `arguments` beside those of every call."""
        requests = [_request(edit) for edit in edits]
        first = requests[0]
        pipeline.noises = {cpu_generator(request.noise.seed): request.noise for request in requests}
        pipeline.begin = lambda index, noise: self.begin(edits[index], noise)
        images = self.ask(
            pipeline,
            list(pipeline.noises),
            first.steps,
            first.image.size,
            image=first.image,
            prompt=first.prompt,
            **self.arguments(first),
            **arguments,
        )
        latents = self.scheduler.reached.float().cpu().numpy()
        return [PartialEdit(request, until, *made) for request, *made in zip(requests, latents, images, strict=True)]

    def begin(self, edit: EditRequest | PartialEdit, noise: torch.Tensor) -> torch.Tensor | None:
        """See `PartWay`."""
        if isinstance(edit, PartialEdit):
            return torch.from_numpy(edit.latents)[None]
        if edit.parent is None:
            return None
        height, width = (side * self.pipeline.vae_scale_factor for side in noise.shape[-2:])
        pixels = self.pipeline.image_processor.preprocess(edit.parent, height, width)
        clean = self.encode(pixels.to(self.device, self.dtype))
        return self.pack(self.scheduler.renoised(clean.float().cpu(), noise))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """The VAE's latents (1, channels, height, width), scaled for the denoiser, of pixels in [−1, 1]."""
        vae = self.pipeline.vae
        # As pipelines do themselves: that of SDXL overflows in fp16.
        upcast = self.dtype == torch.float16 and vae.config.force_upcast
        vae.to(dtype=torch.float32 if upcast else self.dtype)
        latents = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
        vae.to(dtype=self.dtype)
        return (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (1, channels, height, width) in the form that the pipeline's denoiser takes."""
        return latents

    def arguments(self, request: EditRequest) -> dict[str, Any]:
        """What this pipeline is asked beside image, prompt, steps and noise."""
        raise NotImplementedError


class InpaintingEditor(PipelineEditor):
    """One with an `inpaint_kind`, of the same components, for where there is a mask."""

    inpaints = True
    inpaint_kind: ClassVar[Any]

    def __init__(self, folder: Path, batch_size: int = 4, precision: str = "fp32") -> None:
        """Load a folder in diffusers' form; see `load`."""
        super().__init__(folder, batch_size, precision)
        self.inpainter = partial_pipeline(self.inpaint_kind)(**self.pipeline.components)
        self.inpainter.set_progress_bar_config(disable=True)

    def inpaint(self, edits: Sequence[EditRequest | PartialEdit], until: int, mask: Image.Image) -> list[PartialEdit]:
        """See `PipelineEditor.inpaint`. Outside of the mask the source stays as it is."""
        # Some inpainting pipelines draw the source's latents with the first seed, for every image of a call.
        made = [self.run(self.inpainter, [edit], until, mask_image=mask, strength=1.0)[0] for edit in edits]
        return [replace(edit, image=Image.composite(edit.image, edit.request.image, mask)) for edit in made]


def _request(edit: EditRequest | PartialEdit) -> EditRequest:
    return edit.request if isinstance(edit, PartialEdit) else edit
