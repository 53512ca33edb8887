"""Engines of the published classes: their images, and that an image depends only on its own request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file

from resources.engines import ImageRequest
from resources.engines.hidream import HiDreamEngine
from resources.engines.pipeline import choose_placement, place_pipeline
from resources.engines.sd3 import Sd3Engine
from resources.engines.sdxl import SdxlEngine
from resources.errors import FlexyError

pytestmark = pytest.mark.slow(seconds=40)

Folders = Callable[[str], Path]
Loaded = Callable[..., Any]

ENGINES = ["sdxl", "sd3", "flux_schnell", "flux2", "hidream"]
WITH_NEGATIVE_PROMPT = ["sdxl", "sd3", "hidream"]
WITH_GUIDANCE = [*WITH_NEGATIVE_PROMPT, "flux2"]

GB = 10**9


def request(engine: str, **changes: Any) -> ImageRequest:
    guidance = 4.0 if engine in WITH_GUIDANCE else None
    return replace(ImageRequest("a red disc on blue", None, 2, guidance, 7, 128, 96), **changes)


def max_difference(one: Image, other: Image) -> int:
    """Return the largest absolute difference of two images' values, of 255."""
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


@pytest.mark.parametrize("name", ENGINES)
def test_an_image_has_the_size_asked_for_and_follows_its_seed(name: str, loaded: Loaded) -> None:
    engine = loaded(name)
    image, again, other = (engine.generate([request(name, seed=seed)])[0] for seed in (7, 7, 8))
    assert (image.size, image.mode) == ((128, 96), "RGB")
    assert np.asarray(image).std() > 5
    assert max_difference(image, again) == 0
    assert max_difference(image, other) > 20


@pytest.mark.parametrize("name", ENGINES)
def test_an_image_depends_only_on_its_own_request(name: str, loaded: Loaded) -> None:
    engine = loaded(name)
    requests = [
        request(name),
        request(name, prompt="green", seed=8),
        request(name, prompt="a far longer prompt, of mountains and of rivers", seed=9),
    ]
    if name in WITH_GUIDANCE:
        requests = [replace(r, guidance=guidance) for r, guidance in zip(requests, (4.0, 1.0, 9.0), strict=True)]
    if name in WITH_NEGATIVE_PROMPT:
        negative = (None, "", "grey and blurred")
        requests = [replace(r, negative_prompt=words) for r, words in zip(requests, negative, strict=True)]
    for single, image in zip(requests, engine.generate(requests), strict=True):
        assert max_difference(image, engine.generate([single])[0]) <= 2


@pytest.mark.parametrize("name", ENGINES)
def test_prompt_and_supported_settings_change_the_image(name: str, loaded: Loaded) -> None:
    engine = loaded(name)
    original = request(name, guidance=4.0)
    image = engine.generate([original])[0]
    changes = [
        (replace(original, prompt="xyz"), True),
        (replace(original, guidance=9.0), name in WITH_GUIDANCE),
        (replace(original, negative_prompt="xyz"), name in WITH_NEGATIVE_PROMPT),
    ]
    for changed, counts in changes:
        assert (
            (max_difference(image, engine.generate([changed])[0]) > 5)
            if counts
            else engine.generate([changed])[0] == image
        )


def test_no_negative_prompt_differs_from_an_empty_one_for_sdxl(loaded: Loaded) -> None:
    none, empty = loaded("sdxl").generate([request("sdxl"), request("sdxl", negative_prompt="")])
    assert max_difference(none, empty) > 5


def test_guidance_at_or_below_one_is_off(loaded: Loaded) -> None:
    engine = loaded("sdxl")
    one, less = engine.generate([request("sdxl", guidance=1.0), request("sdxl", guidance=0.0)])
    assert max_difference(one, less) == 0


@pytest.mark.parametrize("difference", [{"steps": 3}, {"width": 64}, {"height": 64}])
def test_requests_with_unequal_steps_or_size_are_rejected(difference: dict[str, int], loaded: Loaded) -> None:
    with pytest.raises(ValueError, match="must have equal steps, width and height"):
        loaded("sdxl").generate([request("sdxl"), request("sdxl", **difference)])


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux_schnell", "flux2"])
def test_half_precision_makes_nearly_the_same_image(name: str, loaded: Loaded) -> None:
    engine = loaded(name, precision="bf16")
    assert engine.pipeline.vae.dtype == torch.bfloat16
    half, full = (np.asarray(e.generate([request(name)])[0], float) for e in (engine, loaded(name)))
    assert half.std() > 5
    assert np.corrcoef(half.ravel(), full.ravel())[0, 1] > 0.5


@pytest.mark.parametrize(
    ("needed", "largest", "free", "where"),
    [
        (7, 5, 24, "resident"),
        (58, 41, 80, "resident"),
        (34, 24, 32, "offload"),
        (112, 64, 80, "offload"),
        (7, 5, 8, "offload"),
        (112, 64, 24, "sequential"),
        (34, 24, 24, "sequential"),
    ],
)
def test_placement_leaves_memory_for_activations(needed: int, largest: int, free: int, where: str) -> None:
    assert choose_placement(needed * GB, largest * GB, free * GB) == where


@pytest.mark.parametrize(
    ("free", "calls"),
    [
        (100 * GB, ["to cuda"]),
        # The two networks take 4 GB and 1 GB, activations 4.3 GB, or 2.1 GB in tiles.
        (8 * GB, ["enable_model_cpu_offload", "slicing", "tiling"]),
        (5 * GB, ["enable_sequential_cpu_offload", "slicing", "tiling"]),
    ],
)
def test_a_pipeline_is_placed_by_the_size_of_its_networks(free: int, calls: list[str]) -> None:
    called: list[str] = []
    pipeline: Any = SimpleNamespace(
        components={
            "transformer": torch.nn.Linear(10**5, 10**4, bias=False, device="meta"),
            "text_encoder": torch.nn.Linear(10**5, 2500, bias=False, device="meta"),
            "tokenizer": object(),
            "image_encoder": None,
        },
        to=lambda device: called.append(f"to {device}"),
        enable_model_cpu_offload=lambda: called.append("enable_model_cpu_offload"),
        enable_sequential_cpu_offload=lambda: called.append("enable_sequential_cpu_offload"),
        vae=SimpleNamespace(
            enable_slicing=lambda: called.append("slicing"), enable_tiling=lambda: called.append("tiling")
        ),
    )
    place_pipeline(pipeline, free)
    assert called == calls


@pytest.fixture
def broken(tiny: Folders, tmp_path: Path) -> Path:
    """A copy of the SDXL folder for the test to damage."""
    return Path(shutil.copytree(tiny("sdxl"), tmp_path / "sdxl"))


def load_error_of(folder: Path, load: Callable[[Path], Any] = SdxlEngine) -> str:
    """Return the one-line error of loading `folder`, which names it and the remedy."""
    with pytest.raises(FlexyError) as caught:
        load(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"cannot load {folder}")
    assert line.endswith(": fetch or restore its files")
    return line


def test_a_folder_of_half_precision_files_alone_is_loaded(broken: Path, loaded: Loaded) -> None:
    for file in broken.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert (
        max_difference(SdxlEngine(broken).generate([request("sdxl")])[0], loaded("sdxl").generate([request("sdxl")])[0])
        == 0
    )


def test_an_attention_named_in_a_folder_is_not_downloaded(broken: Path, loaded: Loaded) -> None:
    config = broken / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_attn_implementation": "someone/attention"}))
    assert SdxlEngine(broken).generate([request("sdxl")]) == loaded("sdxl").generate([request("sdxl")])


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        # Without it transformers would build a vocabulary of two tokens.
        "tokenizer/tokenizer.json",
    ],
)
def test_a_missing_file_is_named(file: str, broken: Path) -> None:
    (broken / file).unlink()
    assert str(broken / Path(file).parts[0]) in load_error_of(broken) or file.startswith("scheduler")


def test_a_missing_component_is_named(broken: Path) -> None:
    shutil.rmtree(broken / "vae")
    assert str(broken / "vae") in load_error_of(broken)


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "text_encoder_2/model.safetensors"])
def test_a_truncated_file_is_rejected(file: str, broken: Path) -> None:
    whole = (broken / file).read_bytes()
    (broken / file).write_bytes(whole[: len(whole) * 2 // 3])
    assert str((broken / file).parent) in load_error_of(broken)


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "text_encoder_2/model.safetensors"])
@pytest.mark.parametrize("damage", ["another name", "another shape"])
def test_missing_weights_are_never_initialised_at_random(file: str, damage: str, broken: Path) -> None:
    weights = load_file(broken / file)
    name = sorted(weights)[0]
    weight = weights.pop(name)
    weights |= {"of_another_model": weight} if damage == "another name" else {name: torch.cat([weight, weight])}
    save_file(weights, broken / file, {"format": "pt"})
    line = load_error_of(broken)
    assert str((broken / file).parent) in line
    assert name in line or damage == "another shape"


@pytest.mark.parametrize("index", ["", "{", "[]", "{}", '{"_class_name": ["mine", "Mine"]}'])
def test_an_invalid_index_is_rejected(index: str, broken: Path) -> None:
    (broken / "model_index.json").write_text(index)
    assert "model_index.json" in load_error_of(broken)


def test_another_models_folder_is_rejected(broken: Path) -> None:
    assert "it does not describe a StableDiffusion3Pipeline" in load_error_of(broken, Sd3Engine)


def test_code_that_the_folder_brings_is_not_run(broken: Path) -> None:
    mark = broken / "it ran"
    (broken / "unet" / "mine.py").write_text(f"open({str(mark)!r}, 'w')\nclass Mine:\n    pass\n")
    index = json.loads((broken / "model_index.json").read_text()) | {"unet": ["mine", "Mine"]}
    (broken / "model_index.json").write_text(json.dumps(index))
    load_error_of(broken)
    assert not mark.exists()


def test_llama_is_looked_for_in_its_own_folder(tiny: Folders, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("llama"), tmp_path / "llama"))
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in load_error_of(folder, lambda llama: HiDreamEngine(tiny("hidream"), llama))
