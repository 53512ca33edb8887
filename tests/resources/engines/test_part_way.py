"""Editors part-way: runs that are stopped and continued, moved noise, re-noised parents, and what they cost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image

from resources.engines import EditNoise, EditRequest, PartialEdit
from resources.engines.flux import KontextEditor
from resources.engines.partial_denoising import partial_scheduler
from resources.errors import FlexyError

from .pictures import half_mask, picture

Loaded = Callable[..., Any]

EDITORS = ["flux_kontext", "qwen_image_edit", "qwen_image_edit_plus", "instruct_pix2pix"]
INPAINTERS = ["flux_kontext", "qwen_image_edit"]

REQUEST = EditRequest(picture(0), "make it night", None, 4, 3.0, EditNoise(1))
OTHER = replace(REQUEST, noise=EditNoise(2))


@pytest.fixture(scope="module", autouse=True)
def small_pictures() -> Iterator[None]:
    """The pipelines work at a sixteenth of their megapixel."""
    with pytest.MonkeyPatch.context() as patch:
        asked = KontextEditor.arguments
        patch.setattr(KontextEditor, "arguments", lambda *of: asked(*of) | {"max_area": 256**2})
        for name in ("kontext", "kontext_inpaint"):
            patch.setattr(f"diffusers.pipelines.flux.pipeline_flux_{name}.PREFERRED_KONTEXT_RESOLUTIONS", [(192, 256)])
        for name in ("edit", "edit_plus", "edit_inpaint"):
            module: Any = import_module(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_{name}")
            real = module.calculate_dimensions
            patch.setattr(module, "calculate_dimensions", lambda area, ratio, real=real: real(area // 16, ratio))
        yield


def unlike(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of their values, of 255."""
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def alike(one: Image.Image, other: Image.Image) -> bool:
    """Whether no value differs by more than rounding."""
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max()) <= 2


def kept(partial: PartialEdit, folder: Path) -> PartialEdit:
    """The same, from disk."""
    np.save(folder / "latents.npy", partial.latents, allow_pickle=False)
    return replace(partial, latents=np.load(folder / "latents.npy", allow_pickle=False))


@pytest.mark.parametrize("name", EDITORS)
def test_an_edit_is_what_the_published_pipeline_makes_of_its_seed(name: str, loaded: Loaded, tiny: Any) -> None:
    editor = loaded(name)
    published = DiffusionPipeline.from_pretrained(tiny(name))
    published.set_progress_bar_config(disable=True)
    image = published(
        image=REQUEST.image,
        prompt=REQUEST.prompt,
        num_inference_steps=REQUEST.steps,
        generator=torch.Generator().manual_seed(1),
        **editor.arguments(REQUEST),
    ).images[0]
    assert editor.edit([REQUEST])[0] == image.resize(REQUEST.image.size, Image.Resampling.LANCZOS)


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "fp32") for name in EDITORS), ("flux_kontext", "bf16"), ("instruct_pix2pix", "bf16")],
)
def test_a_run_goes_on_from_where_it_was_stopped(name: str, precision: str, loaded: Loaded, tmp_path: Path) -> None:
    editor = loaded(name, precision=precision)
    before = editor.steps_run
    whole = editor.denoise([REQUEST, OTHER], 4)
    assert editor.steps_run - before == 8
    first = editor.denoise([REQUEST, OTHER], 1)
    assert editor.steps_run - before == 10
    second = editor.denoise([kept(partial, tmp_path) for partial in first], 3)
    third = editor.denoise(second, 4)
    assert editor.steps_run - before == 16
    assert [partial.step for partial in (*first, *second, *third)] == [1, 1, 3, 3, 4, 4]
    for done, continued, preview in zip(whole, third, first, strict=True):
        assert continued.latents.dtype == np.float32
        assert np.array_equal(done.latents, continued.latents)
        assert done.image == continued.image
        assert (preview.image.size, preview.image.mode) == ((96, 128), "RGB")
        assert not alike(preview.image, done.image)


@pytest.mark.parametrize(
    ("scheduler", "prediction"),
    [
        (FlowMatchEulerDiscreteScheduler(shift=3.0), "flow"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02), "flow"),
        (EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1), "epsilon"),
        (EulerDiscreteScheduler(timestep_spacing="leading", prediction_type="v_prediction"), "v"),
    ],
)
def test_a_preview_is_the_clean_image_as_predicted_there(scheduler: Any, prediction: str) -> None:
    clean, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mu = {"mu": 0.8} if scheduler.config.get("use_dynamic_shifting") else {}

    def run(start: int, until: int, latents: torch.Tensor | None) -> torch.Tensor:
        """By a denoiser that knows the clean latents; from their re-noised selves where there are none."""
        part.span = slice(start, until)
        part.set_timesteps(10, **mu)
        latents = part.renoised(clean, noise) if latents is None else latents
        for t, sigma in zip(part.timesteps, part.sigmas.clone(), strict=False):
            part.scale_model_input(latents, t) if prediction != "flow" else None
            known = (latents - clean) / sigma
            velocity = (latents / (sigma**2 + 1) - clean) * (sigma**2 + 1) ** 0.5 / sigma
            latents = part.step(velocity if prediction == "v" else known, t, latents, return_dict=False)[0]
        return latents

    part = partial_scheduler(scheduler)
    for start in (0, 4):
        assert torch.allclose(run(start, 7, None), clean, atol=1e-4)
        stopped = part.reached
        assert not torch.allclose(stopped, clean, atol=0.05)
        assert torch.allclose(run(7, 10, stopped), clean, atol=1e-4)
        assert torch.allclose(run(7, 10, None), run(7, 10, stopped), atol=1e-4)
    assert part.steps_run == len(clean) * (7 + 9 + 3 + 9)


def drawn(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 4, 32, 24)).astype(np.float32)


def moved(*moves: tuple[float, int]) -> np.ndarray:
    return EditNoise(1, moves).move(drawn(1), drawn)


def test_moved_noise_keeps_its_norm_and_so_much_of_its_direction() -> None:
    norm = float(np.linalg.norm(drawn(1)))
    for t in (0.0, 0.5, 0.95, 1.0):
        near = moved((t, 2))
        assert (near.dtype, near.shape) == (np.float32, drawn(1).shape)
        assert np.linalg.norm(near) == pytest.approx(norm, rel=1e-6)
        assert float(np.vdot(near, drawn(1))) / norm**2 == pytest.approx(t, abs=1e-6)
    assert np.array_equal(moved(), drawn(1))
    assert np.allclose(moved((0.5, 1)), drawn(1)), "its own direction leads nowhere"
    one, other = moved((0.5, 2)), moved((0.5, 3))
    assert float(np.vdot(one, other)) / norm**2 == pytest.approx(0.25, abs=0.05)
    assert np.allclose(moved((0.5, 2), (0.5, 3)), EditNoise(1, ((0.5, 3),)).move(one, drawn), atol=1e-5)


def test_its_weights_say_what_a_moved_noise_is_made_of() -> None:
    noise = EditNoise(1, ((0.8, 2), (0.6, 3)))
    assert noise.weights == pytest.approx({1: 0.48, 2: 0.36, 3: 0.8})
    mixture = sum(weight * drawn(seed) for seed, weight in noise.weights.items())
    ours = noise.move(drawn(1), drawn)
    assert float(np.vdot(ours, mixture)) / np.linalg.norm(ours) / np.linalg.norm(mixture) > 0.99


@pytest.mark.parametrize("name", EDITORS)
def test_the_nearer_the_noise_the_more_alike_the_edits(name: str, loaded: Loaded) -> None:
    near = [EditNoise(1), *(EditNoise(1, ((t, 5),)) for t in (1.0, 0.99, 0.9, 0.5))]
    edit, same, *moved = loaded(name).edit([replace(REQUEST, noise=noise) for noise in near])
    assert same == edit
    distances = [unlike(edit, image) for image in moved]
    assert distances == sorted(distances)
    assert distances[0] > 0.5


@pytest.mark.parametrize("name", EDITORS)
def test_the_less_strength_the_more_of_the_parent_and_the_less_to_run(name: str, loaded: Loaded) -> None:
    editor = loaded(name)
    distances = []
    for strength, steps in ((0.25, 1), (0.5, 2), (1.0, 4)):
        requests = [replace(REQUEST, parent=picture(seed), strength=strength) for seed in (3, 4)]
        before = editor.steps_run
        distances.append(unlike(*editor.edit(requests)))
        assert editor.steps_run - before == 2 * steps
    assert distances == sorted(distances, reverse=True)
    # All noise: nothing is left of the parent, or next to nothing.
    assert distances[-1] < 0.1 * distances[0]


@pytest.mark.parametrize("name", EDITORS)
def test_an_edit_does_not_depend_on_those_it_is_run_with(name: str, loaded: Loaded) -> None:
    editor = loaded(name)
    child = replace(REQUEST, parent=picture(3), strength=0.5)
    together = editor.denoise(
        editor.denoise([child, replace(child, noise=EditNoise(1, ((0.5, 5),))), replace(child, parent=picture(4))], 3),
        4,
    )
    for partial in together:
        # The latents: so small a decoder makes several levels of what is rounding there.
        assert np.allclose(editor.denoise([partial.request], 4)[0].latents, partial.latents, atol=1e-4)
    assert not any(alike(together[0].image, partial.image) for partial in together[1:])


@pytest.mark.parametrize("name", INPAINTERS)
def test_an_inpainting_is_stopped_moved_and_re_noised_alike(name: str, loaded: Loaded, tmp_path: Path) -> None:
    editor = loaded(name)
    asked = replace(REQUEST, mask=half_mask())
    before = editor.steps_run
    whole = editor.denoise([asked], 4)[0]
    preview = editor.denoise([asked], 2)[0]
    continued = editor.denoise([kept(preview, tmp_path)], 4)[0]
    assert np.array_equal(whole.latents, continued.latents)
    assert whole.image == continued.image
    assert editor.steps_run - before == 8
    near, far, child = editor.edit([replace(asked, noise=EditNoise(1, ((t, 5),))) for t in (0.99, 0.5)]) + editor.edit(
        [replace(asked, parent=whole.image, strength=0.5)]
    )
    assert editor.steps_run - before == 8 + 4 + 4 + 2
    assert 0 < unlike(whole.image, near) < unlike(whole.image, far)
    for image in (preview.image, near, child):
        changed = np.abs(np.asarray(image, int) - np.asarray(REQUEST.image, int)).max(-1) > 0
        assert changed[:, :48].mean() > 0.9
        assert not changed[:, 48:].any()


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_noise_is_not_moved_out_of_its_sphere(t: float) -> None:
    with pytest.raises(ValueError, match="a move's t is"):
        EditNoise(1, ((t, 2),))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strength": 0.0}, "strength is 0.0: use above 0 to 1"),
        ({"strength": 1.1}, "strength is 1.1"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"strength": 0.5}, "give one"),
        ({"parent": picture(1), "strength": 0.1}, "strength 0.1 of 4 steps is none"),
        ({"parent": picture(1).resize((64, 64))}, "give one of the image's size"),
        ({"steps": 0}, "of 0 steps is none"),
    ],
)
def test_a_request_that_cannot_be_is_refused_at_once(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        replace(REQUEST, **changes)
    assert "\n" not in str(caught.value)


def test_steps_that_cannot_be_run_are_refused(loaded: Loaded) -> None:
    editor = loaded("flux_kontext")
    begun = PartialEdit(REQUEST, 2, np.zeros((234, 16), np.float32), picture(0))
    before = editor.steps_run
    child = replace(REQUEST, parent=picture(3), strength=0.5)
    for edits, until, reason in (
        ([REQUEST], 5, "at step 0 of 4 cannot be run until step 5"),
        ([REQUEST], 0, "until step 0"),
        ([begun], 2, "at step 2 of 4 cannot be run until step 2"),
        ([child], 2, "at step 2 of 4 cannot be run until step 2"),
        ([REQUEST, begun], 4, "are at the same step"),
        ([REQUEST, child], 4, "differ in noise and parent alone"),
        ([REQUEST, replace(REQUEST, steps=3)], 3, "differ in noise and parent alone"),
    ):
        with pytest.raises(ValueError, match=reason):
            editor.denoise(edits, until)
    assert editor.steps_run == before


def test_a_scheduler_that_remembers_its_steps_is_refused(tiny: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("flux_kontext"), tmp_path / "editor"))
    for file, key, value in (
        (folder / "model_index.json", "scheduler", ["diffusers", "UniPCMultistepScheduler"]),
        (folder / "scheduler" / "scheduler_config.json", "_class_name", "UniPCMultistepScheduler"),
    ):
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(FlexyError, match="with a UniPCMultistepScheduler: name FlowMatch"):
        KontextEditor(folder)
