"""Partial edits: runs that are stopped and continued, moved noise, re-noised parents, and their NFE."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
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

from .source_images import half_mask, source_image

pytestmark = pytest.mark.slow(seconds=40)

Loaded = Callable[..., Any]

EDITORS = ["flux_kontext", "qwen_image_edit", "qwen_image_edit_plus", "instruct_pix2pix"]
INPAINTERS = ["flux_kontext", "qwen_image_edit"]

REQUEST = EditRequest(source_image(0), "make it night", None, 4, 3.0, EditNoise(1))
OTHER = replace(REQUEST, noise=EditNoise(2))


@pytest.fixture(scope="module", autouse=True)
def small_kontext() -> Iterator[None]:
    """Kontext works at a sixteenth of its megapixel."""
    with pytest.MonkeyPatch.context() as patch:
        original = KontextEditor.pipeline_arguments
        patch.setattr(KontextEditor, "pipeline_arguments", lambda *args: original(*args) | {"max_area": 256**2})
        for name in ("kontext", "kontext_inpaint"):
            patch.setattr(f"diffusers.pipelines.flux.pipeline_flux_{name}.PREFERRED_KONTEXT_RESOLUTIONS", [(192, 256)])
        yield


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean absolute difference of two images' values, of 255."""
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def nearly_equal(one: Image.Image, other: Image.Image) -> bool:
    """Whether two images differ by no more than rounding."""
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max()) <= 2


def reload(partial: PartialEdit, folder: Path) -> PartialEdit:
    """Return the edit with its latents written to disk and read back."""
    np.save(folder / "latents.npy", partial.latents, allow_pickle=False)
    return replace(partial, latents=np.load(folder / "latents.npy", allow_pickle=False))


@pytest.mark.parametrize("name", EDITORS)
def test_an_edit_equals_the_published_pipelines_for_its_seed(name: str, loaded: Loaded, tiny: Any) -> None:
    editor = loaded(name)
    published = DiffusionPipeline.from_pretrained(tiny(name))
    published.set_progress_bar_config(disable=True)
    image = published(
        image=REQUEST.image,
        prompt=REQUEST.prompt,
        num_inference_steps=REQUEST.steps,
        generator=torch.Generator().manual_seed(1),
        **editor.pipeline_arguments(REQUEST),
    ).images[0]
    assert editor.edit([REQUEST])[0] == image.resize(REQUEST.image.size, Image.Resampling.LANCZOS)


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "fp32") for name in EDITORS), ("flux_kontext", "bf16"), ("instruct_pix2pix", "bf16")],
)
def test_a_stopped_run_continues_with_equal_results(name: str, precision: str, loaded: Loaded, tmp_path: Path) -> None:
    editor = loaded(name, precision=precision)
    before = editor.steps_run
    whole = editor.denoise([REQUEST, OTHER], 4)
    assert editor.steps_run - before == 8
    first = editor.denoise([REQUEST, OTHER], 1)
    assert editor.steps_run - before == 10
    second = editor.denoise([reload(partial, tmp_path) for partial in first], 3)
    third = editor.denoise(second, 4)
    assert editor.steps_run - before == 16
    assert [partial.step for partial in (*first, *second, *third)] == [1, 1, 3, 3, 4, 4]
    for done, continued, preview in zip(whole, third, first, strict=True):
        assert continued.latents.dtype == np.float32
        assert np.array_equal(done.latents, continued.latents)
        assert done.image == continued.image
        assert (preview.image.size, preview.image.mode) == ((96, 128), "RGB")
        assert not nearly_equal(preview.image, done.image)


@pytest.mark.parametrize(
    ("scheduler", "prediction"),
    [
        (FlowMatchEulerDiscreteScheduler(shift=3.0), "flow"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02), "flow"),
        (EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1), "epsilon"),
        (EulerDiscreteScheduler(timestep_spacing="leading", prediction_type="v_prediction"), "v"),
    ],
)
def test_a_preview_is_the_predicted_clean_image(scheduler: Any, prediction: str) -> None:
    clean, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mu = {"mu": 0.8} if scheduler.config.get("use_dynamic_shifting") else {}

    def run(start: int, until: int, latents: torch.Tensor | None) -> torch.Tensor:
        """Denoise with the exact prediction; without `latents`, from the clean ones with the initial noise."""
        part.step_range = slice(start, until)
        part.set_timesteps(10, **mu)
        latents = part.add_initial_noise(clean, noise) if latents is None else latents
        for t, sigma in zip(part.timesteps, part.sigmas.clone(), strict=False):
            part.scale_model_input(latents, t) if prediction != "flow" else None
            known = (latents - clean) / sigma
            velocity = (latents / (sigma**2 + 1) - clean) * (sigma**2 + 1) ** 0.5 / sigma
            latents = part.step(velocity if prediction == "v" else known, t, latents, return_dict=False)[0]
        return latents

    part = partial_scheduler(scheduler)
    for start in (0, 4):
        assert torch.allclose(run(start, 7, None), clean, atol=1e-4)
        stopped = part.next_latents
        assert not torch.allclose(stopped, clean, atol=0.05)
        assert torch.allclose(run(7, 10, stopped), clean, atol=1e-4)
        assert torch.allclose(run(7, 10, None), run(7, 10, stopped), atol=1e-4)
    assert part.steps_run == len(clean) * (7 + 9 + 3 + 9)


def draw_noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 4, 32, 24)).astype(np.float32)


def moved_noise(*moves: tuple[float, int]) -> np.ndarray:
    return EditNoise(1, moves).apply_moves(draw_noise(1), draw_noise)


def test_moved_noise_keeps_its_norm_and_has_the_given_cosine() -> None:
    norm = float(np.linalg.norm(draw_noise(1)))
    for t in (0.0, 0.5, 0.95, 1.0):
        near = moved_noise((t, 2))
        assert (near.dtype, near.shape) == (np.float32, draw_noise(1).shape)
        assert np.linalg.norm(near) == pytest.approx(norm, rel=1e-6)
        assert float(np.vdot(near, draw_noise(1))) / norm**2 == pytest.approx(t, abs=1e-6)
    assert np.array_equal(moved_noise(), draw_noise(1))
    assert np.allclose(moved_noise((0.5, 1)), draw_noise(1)), "a move along its own direction changes nothing"
    one, other = moved_noise((0.5, 2)), moved_noise((0.5, 3))
    assert float(np.vdot(one, other)) / norm**2 == pytest.approx(0.25, abs=0.05)
    assert np.allclose(
        moved_noise((0.5, 2), (0.5, 3)), EditNoise(1, ((0.5, 3),)).apply_moves(one, draw_noise), atol=1e-5
    )


def test_weights_are_the_shares_of_each_seed_in_moved_noise() -> None:
    noise = EditNoise(1, ((0.8, 2), (0.6, 3)))
    assert noise.weights == pytest.approx({1: 0.48, 2: 0.36, 3: 0.8})
    mixture = sum(weight * draw_noise(seed) for seed, weight in noise.weights.items())
    ours = noise.apply_moves(draw_noise(1), draw_noise)
    assert float(np.vdot(ours, mixture)) / np.linalg.norm(ours) / np.linalg.norm(mixture) > 0.99


@pytest.mark.parametrize("name", EDITORS)
def test_nearer_noise_makes_more_similar_edits(name: str, loaded: Loaded) -> None:
    near = [EditNoise(1), *(EditNoise(1, ((t, 5),)) for t in (1.0, 0.99, 0.9, 0.5))]
    edit, same, *moved = loaded(name).edit([replace(REQUEST, noise=noise) for noise in near])
    assert same == edit
    distances = [mean_difference(edit, image) for image in moved]
    assert distances == sorted(distances)
    assert distances[0] > 0.5


@pytest.mark.parametrize("name", EDITORS)
def test_less_strength_keeps_more_of_the_parent_and_runs_fewer_steps(name: str, loaded: Loaded) -> None:
    editor = loaded(name)
    distances = []
    for strength, steps in ((0.25, 1), (0.5, 2), (1.0, 4)):
        requests = [replace(REQUEST, parent=source_image(seed), strength=strength) for seed in (3, 4)]
        before = editor.steps_run
        distances.append(mean_difference(*editor.edit(requests)))
        assert editor.steps_run - before == 2 * steps
    assert distances == sorted(distances, reverse=True)
    # At strength 1 nearly nothing of the parent is left.
    assert distances[-1] < 0.1 * distances[0]


@pytest.mark.parametrize("name", EDITORS)
def test_an_edit_does_not_depend_on_the_others_of_its_call(name: str, loaded: Loaded) -> None:
    editor = loaded(name)
    child = replace(REQUEST, parent=source_image(3), strength=0.5)
    together = editor.denoise(
        editor.denoise(
            [child, replace(child, noise=EditNoise(1, ((0.5, 5),))), replace(child, parent=source_image(4))], 3
        ),
        4,
    )
    for partial in together:
        # Latents are compared because this small decoder turns rounding into several levels.
        assert np.allclose(editor.denoise([partial.request], 4)[0].latents, partial.latents, atol=1e-4)
    assert not any(nearly_equal(together[0].image, partial.image) for partial in together[1:])


@pytest.mark.parametrize("name", INPAINTERS)
def test_an_inpainting_is_stopped_moved_and_re_noised_too(name: str, loaded: Loaded, tmp_path: Path) -> None:
    editor = loaded(name)
    masked = replace(REQUEST, mask=half_mask())
    before = editor.steps_run
    whole = editor.denoise([masked], 4)[0]
    preview = editor.denoise([masked], 2)[0]
    continued = editor.denoise([reload(preview, tmp_path)], 4)[0]
    assert np.array_equal(whole.latents, continued.latents)
    assert whole.image == continued.image
    assert editor.steps_run - before == 8
    near, far, child = editor.edit([replace(masked, noise=EditNoise(1, ((t, 5),))) for t in (0.99, 0.5)]) + editor.edit(
        [replace(masked, parent=whole.image, strength=0.5)]
    )
    assert editor.steps_run - before == 8 + 4 + 4 + 2
    assert 0 < mean_difference(whole.image, near) < mean_difference(whole.image, far)
    for image in (preview.image, near, child):
        changed = np.abs(np.asarray(image, int) - np.asarray(REQUEST.image, int)).max(-1) > 0
        assert changed[:, :48].mean() > 0.9
        assert not changed[:, 48:].any()


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_noise_is_not_moved_out_of_its_sphere(t: float) -> None:
    with pytest.raises(ValueError, match=r"invalid t .* of a noise move"):
        EditNoise(1, ((t, 2),))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strength": 0.0}, "invalid strength 0.0: must be above 0 and at most 1"),
        ({"strength": 1.1}, "invalid strength 1.1"),
        ({"strength": float("nan")}, "invalid strength nan"),
        ({"strength": 0.5}, "or give a parent"),
        ({"parent": source_image(1), "strength": 0.1}, "strength 0.1 of 4 steps leaves no step"),
        ({"parent": source_image(1).resize((64, 64))}, "must have the image's"),
        ({"steps": 0}, "of 0 steps leaves no step"),
    ],
)
def test_an_invalid_request_is_rejected_at_once(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        replace(REQUEST, **changes)
    assert "\n" not in str(caught.value)


def test_an_invalid_stop_step_is_rejected(loaded: Loaded) -> None:
    editor = loaded("flux_kontext")
    begun = PartialEdit(REQUEST, 2, np.zeros((234, 16), np.float32), source_image(0))
    before = editor.steps_run
    child = replace(REQUEST, parent=source_image(3), strength=0.5)
    for edits, stop_step, reason in (
        ([REQUEST], 5, "invalid stop step 5: must be from 1 to 4"),
        ([REQUEST], 0, "invalid stop step 0"),
        ([begun], 2, "invalid stop step 2: must be from 3 to 4"),
        ([child], 2, "invalid stop step 2: must be from 3 to 4"),
        ([REQUEST, begun], 4, "must be at the same step"),
        ([REQUEST, child], 4, "differ in noise and parent only"),
        ([REQUEST, replace(REQUEST, steps=3)], 3, "differ in noise and parent only"),
    ):
        with pytest.raises(ValueError, match=reason):
            editor.denoise(edits, stop_step)
    assert editor.steps_run == before


def test_a_multistep_scheduler_is_rejected(tiny: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("flux_kontext"), tmp_path / "editor"))
    for file, key, value in (
        (folder / "model_index.json", "scheduler", ["diffusers", "UniPCMultistepScheduler"]),
        (folder / "scheduler" / "scheduler_config.json", "_class_name", "UniPCMultistepScheduler"),
    ):
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(FlexyError, match=r"unsupported scheduler UniPCMultistepScheduler: .*: name FlowMatch"):
        KontextEditor(folder)
