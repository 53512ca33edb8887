"""Base classes of engines and editors: a diffusers pipeline that is loaded, placed on a device and called."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image

from resources.engines import Edit, EditRequest, ImageRequest, PartialEdit
from resources.engines.partial_denoising import PartialPipeline, cpu_generator, partial_scheduler
from resources.errors import FlexyError
from resources.models import compute
from resources.models.loading import load_error, load_pipeline
from resources.models.schedulers import build_scheduler

# Bytes to leave free beyond the weights, for a few images of a megapixel; the second where the VAE works in tiles.
ACTIVATION_BYTES = 4 * 2**30
TILED_ACTIVATION_BYTES = 2 * 2**30


def choose_placement(
    needed_bytes: int, largest_component_bytes: int, free_bytes: int
) -> Literal["resident", "offload", "sequential"]:
    """Return where unused weights wait: all on the GPU, each component in RAM, or each layer in RAM.

    The last is many times slower than the second, and that somewhat slower than the first.
    """
    if needed_bytes + ACTIVATION_BYTES <= free_bytes:
        return "resident"
    if largest_component_bytes + TILED_ACTIVATION_BYTES <= free_bytes:
        return "offload"
    return "sequential"


def place_pipeline(pipeline: Any, free_bytes: int) -> None:
    """Put `pipeline` on a GPU with `free_bytes` available, as `choose_placement` says."""
    modules = [component for component in pipeline.components.values() if isinstance(component, torch.nn.Module)]
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
    """Mixin for a pipeline with classifier-free guidance, so that each image of a call has its own guidance.

    diffusers multiplies by the guidance, which may then be a (n, 1, 1, 1) tensor, but also checks whether it
    is above 1, as one number.
    """

    _guidance_scale: Any

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether any image of the call is guided."""
        return bool((torch.as_tensor(self._guidance_scale) > 1).any())


class PipelineModel:
    """A loaded pipeline of class `kind` with `mixins`."""

    kind: Any
    mixins: tuple[type, ...] = ()

    def __init__(self, folder: Path, batch_size: int = 4, precision: str = "fp32", **components: Any) -> None:
        """Load a folder in diffusers' form; see `load_pipeline`."""
        self.batch_size = batch_size
        self.device = compute.compute_device()
        self.dtype = compute.torch_dtype(precision)
        self.pipeline = load_pipeline(self.add_mixins(self.kind), folder, self.dtype, **components)
        self.pipeline.set_progress_bar_config(disable=True)
        if self.device == "cuda":
            place_pipeline(self.pipeline, torch.cuda.mem_get_info()[0])

    def add_mixins(self, kind: Any) -> Any:
        """Return a pipeline class with the mixins."""
        return type(kind.__name__, (*self.mixins, kind), {})

    def run_pipeline(
        self, pipeline: Any, generators: list[torch.Generator], steps: int, size: tuple[int, int], **arguments: Any
    ) -> list[Image.Image]:
        """Return the image of each generator, resized to `size` where the pipeline only works at other sizes."""
        try:
            images = pipeline(generator=generators, num_inference_steps=steps, **arguments).images
        finally:
            # After an error too: components left on the GPU would take the next call's memory.
            self.pipeline.maybe_free_model_hooks()
        return [image if image.size == size else image.resize(size, Image.Resampling.LANCZOS) for image in images]


class PipelineEngine(PipelineModel):
    """An `Engine`: one call generates images of equal steps and size, each with its prompt and seed."""

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        """See `Engine.generate`. Raises `ValueError` where steps, size or scheduler differ."""
        if len({(r.steps, r.width, r.height, r.scheduler) for r in requests}) > 1:
            raise ValueError("the requests of one call must have equal steps, width, height and scheduler")
        own, name = self.pipeline.scheduler, requests[0].scheduler
        try:
            self.pipeline.scheduler = build_scheduler(name, own.config) if name else own
            return self.generate_batch(requests)
        finally:
            self.pipeline.scheduler = own

    def generate_batch(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        """Return the images of requests with equal steps and size."""
        first = requests[0]
        return self.run_pipeline(
            self.pipeline,
            [cpu_generator(request.seed) for request in requests],
            first.steps,
            (first.width, first.height),
            prompt=[request.prompt for request in requests],
            width=first.width,
            height=first.height,
            **self.pipeline_arguments(requests),
        )

    def pipeline_arguments(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        """Return this pipeline's arguments besides prompts, steps, size and seeds; by default, none."""
        return {}


class GuidedEngine(PipelineEngine):
    """An engine with classifier-free guidance and negative prompts."""

    mixins = (PerImageGuidance,)

    def pipeline_arguments(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        """Return each request's guidance and negative prompt. Guidance at or below 1 is off, as in all of diffusers.

        It is rounded to the pipeline's precision: in bf16 between 4 and 8 to a 1/32, in fp16 to a 1/256.
        """
        guidance = torch.tensor([max(request.guidance or 1.0, 1.0) for request in requests]).view(-1, 1, 1, 1)
        return {
            "guidance_scale": guidance.to(self.device, self.dtype),
            "negative_prompt": [request.negative_prompt or "" for request in requests],
        }


class DistilledGuidanceEngine(PipelineEngine):
    """An engine whose network takes the guidance as an input, and which ignores negative prompts."""

    def __init__(self, folder: Path, batch_size: int = 4, precision: str = "fp32", **components: Any) -> None:
        """Load a folder in diffusers' form; see `load_pipeline`."""
        super().__init__(folder, batch_size, precision, **components)
        if not self.pipeline.transformer.config.get("guidance_embeds", True):
            raise load_error(folder / "transformer", "it is another model's, it takes no guidance")

    def generate_batch(self, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        """Return the images, each with its guidance: the pipeline takes one number, its network one per image."""
        guidances = [request.guidance or 0.0 for request in requests]

        def set_guidance(network: torch.nn.Module, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, inputs | {"guidance": inputs["guidance"].new_tensor(guidances)}

        hook = self.pipeline.transformer.register_forward_pre_hook(set_guidance, with_kwargs=True)
        try:
            return super().generate_batch(requests)
        finally:
            hook.remove()


class PipelineEditor(PipelineModel):
    """An `Editor`: one call makes edits that differ in noise and parent only."""

    inpaints = False
    mixins = (PartialPipeline,)

    def __init__(self, folder: Path, batch_size: int = 4, precision: str = "fp32", **components: Any) -> None:
        """Load a folder in diffusers' form; see `load_pipeline`."""
        super().__init__(folder, batch_size, precision, **components)
        self.scheduler = self.pipeline.scheduler = partial_scheduler(self.pipeline.scheduler)

    @property
    def steps_run(self) -> int:
        """See `Editor.steps_run`."""
        return self.scheduler.steps_run

    def edit(self, requests: Sequence[EditRequest]) -> list[Image.Image]:
        """See `Editor.edit`."""
        return [edit.image for edit in self.denoise(requests, requests[0].steps)]

    def denoise(self, edits: Sequence[Edit], stop_step: int) -> list[PartialEdit]:
        """See `Editor.denoise`.

        Raises `ValueError` where requests differ in more than noise and parent or edits are not at one step
        before `stop_step`, and `FlexyError` for a mask where the model cannot inpaint.
        """
        first, step = _request_of(edits[0]), edits[0].step
        varying_fields = {"noise": None, "parent": None}
        if any(vars(_request_of(edit)) | varying_fields != vars(first) | varying_fields for edit in edits):
            raise ValueError("the edits of one call may differ in noise and parent only")
        if any(edit.step != step for edit in edits):
            raise ValueError("the edits of one call must be at the same step")
        if not step < stop_step <= first.steps:
            raise ValueError(f"invalid stop step {stop_step}: must be from {step + 1} to {first.steps}")
        self.scheduler.step_range = slice(step, stop_step)
        if first.mask is not None:
            return self.inpaint_batch(edits, stop_step, first.mask)
        return self.edit_batch(self.pipeline, edits, stop_step, num_images_per_prompt=len(edits))

    def inpaint_batch(self, edits: Sequence[Edit], stop_step: int, mask: Image.Image) -> list[PartialEdit]:
        """Run edits that have a mask."""
        raise FlexyError(f"{type(self).__name__} edits whole images: leave out the mask, or choose another editor")

    def edit_batch(self, pipeline: Any, edits: Sequence[Edit], stop_step: int, **arguments: Any) -> list[PartialEdit]:
        """Run the edits in one call of `pipeline`, with `arguments` in addition to those of every call."""
        requests = [_request_of(edit) for edit in edits]
        first = requests[0]
        pipeline.noises = {cpu_generator(request.noise.seed): request.noise for request in requests}
        pipeline.initial_latents = lambda index, noise: self.initial_latents(edits[index], noise)
        images = self.run_pipeline(
            pipeline,
            list(pipeline.noises),
            first.steps,
            first.image.size,
            image=first.image,
            prompt=first.prompt,
            **self.pipeline_arguments(first),
            **arguments,
        )
        latents = self.scheduler.next_latents.float().cpu().numpy()
        return [
            PartialEdit(request, stop_step, latent, image)
            for request, latent, image in zip(requests, latents, images, strict=True)
        ]

    def initial_latents(self, edit: Edit, noise: torch.Tensor) -> torch.Tensor | None:
        """Return the latents to start from; see `PartialPipeline`."""
        if isinstance(edit, PartialEdit):
            return torch.from_numpy(edit.latents)[None]
        if edit.parent is None:
            return None
        height, width = (side * self.pipeline.vae_scale_factor for side in noise.shape[-2:])
        pixels = self.pipeline.image_processor.preprocess(edit.parent, height, width)
        clean = self.encode_pixels(pixels.to(self.device, self.dtype))
        return self.pack_latents(self.scheduler.add_initial_noise(clean.float().cpu(), noise))

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the VAE's latents (1, channels, height, width), scaled for the denoiser, of pixels in [−1, 1]."""
        vae = self.pipeline.vae
        # As the pipelines do themselves: SDXL's VAE overflows in fp16.
        needs_upcast = self.dtype == torch.float16 and vae.config.force_upcast
        vae.to(dtype=torch.float32 if needs_upcast else self.dtype)
        latents = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
        vae.to(dtype=self.dtype)
        return (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor

    def pack_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents (1, channels, height, width) in the form that the pipeline's denoiser takes."""
        return latents

    def pipeline_arguments(self, request: EditRequest) -> dict[str, Any]:
        """Return this pipeline's arguments besides image, prompt, steps and noise."""
        raise NotImplementedError


class InpaintingEditor(PipelineEditor):
    """A transformer with an `inpaint_kind`, a pipeline of the same components for requests with a mask."""

    inpaints = True
    inpaint_kind: ClassVar[Any]

    def __init__(self, folder: Path, batch_size: int = 4, precision: str = "fp32") -> None:
        """Load a folder in diffusers' form; see `load_pipeline`."""
        super().__init__(folder, batch_size, precision)
        self.inpaint_pipeline = self.add_mixins(self.inpaint_kind)(**self.pipeline.components)
        self.inpaint_pipeline.set_progress_bar_config(disable=True)

    def pack_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """See `PipelineEditor.pack_latents`: 2 × 2 latents are one token."""
        return self.pipeline._pack_latents(latents, *latents.shape)

    def inpaint_batch(self, edits: Sequence[Edit], stop_step: int, mask: Image.Image) -> list[PartialEdit]:
        """See `PipelineEditor.inpaint_batch`. Outside the mask the source's pixels stay."""
        results = []
        for edit in edits:
            # Some inpainting pipelines draw the source's latents with the first seed, for every image of a call.
            (result,) = self.edit_batch(self.inpaint_pipeline, [edit], stop_step, mask_image=mask, strength=1.0)
            results.append(replace(result, image=Image.composite(result.image, result.request.image, mask)))
        return results


def _request_of(edit: Edit) -> EditRequest:
    return edit.request if isinstance(edit, PartialEdit) else edit
