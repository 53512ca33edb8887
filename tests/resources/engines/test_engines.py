"""Engines of the published classes: their images, and that an image depends only on its own request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import FlowMatchLCMScheduler, Flux2Transformer2DModel
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from transformers import Mistral3ForConditionalGeneration

from resources.engines import ImageRequest, flux2
from resources.engines.flux import FluxDevEngine
from resources.engines.flux2 import Flux2FourBitEngine
from resources.engines.hidream import HiDreamEngine
from resources.engines.pipeline import choose_placement, place_pipeline
from resources.engines.sd3 import Sd3Engine
from resources.engines.sdxl import LightningEngine, SdxlEngine
from resources.errors import FlexyError
from resources.models.schedulers import SCHEDULERS

from .tiny_models import LIGHTNING_FILE

pytestmark = pytest.mark.slow(seconds=60)

Folders = Callable[[str], Path]
Loaded = Callable[..., Any]

ENGINES = ["sdxl", "sd3", "lightning", "flux_schnell", "flux_1_dev", "flux2", "hidream", "hidream_dev"]
WITH_NEGATIVE_PROMPT = ["sdxl", "sd3", "hidream"]
WITH_GUIDANCE = [*WITH_NEGATIVE_PROMPT, "flux_1_dev", "flux2"]

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


def test_a_scheduler_is_used_for_its_images_alone_and_each_has_noise_of_its_own(loaded: Loaded) -> None:
    engine = loaded("sdxl")
    own = engine.generate([request("sdxl", steps=4)])[0]
    images = {}
    for name in SCHEDULERS:
        wanted = [request("sdxl", steps=4, seed=seed, scheduler=name) for seed in (7, 8)]
        images[name] = engine.generate(wanted)[0]
        assert max_difference(images[name], engine.generate(wanted[:1])[0]) <= 1
    assert max_difference(engine.generate([request("sdxl", steps=4)])[0], own) == 0
    assert max_difference(images["euler"], own) <= 1
    assert len({image.tobytes() for image in images.values()}) == len(SCHEDULERS)


@pytest.mark.parametrize("difference", [{"steps": 3}, {"width": 64}, {"height": 64}, {"scheduler": "ddim"}])
def test_requests_with_unequal_steps_or_size_are_rejected(difference: dict[str, int], loaded: Loaded) -> None:
    with pytest.raises(ValueError, match="must have equal steps, width, height and scheduler"):
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


def test_lightning_is_the_base_with_its_own_unet_and_trailing_steps(loaded: Loaded) -> None:
    base, lightning = loaded("sdxl").pipeline, loaded("lightning").pipeline
    assert lightning.scheduler.config.timestep_spacing == "trailing"
    lightning.scheduler.set_timesteps(4)
    assert lightning.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    for component, same in (("vae", True), ("text_encoder_2", True), ("unet", False)):
        one, other = (dict(getattr(pipeline, component).named_parameters()) for pipeline in (base, lightning))
        assert one.keys() == other.keys()
        assert all(torch.equal(weight, other[name]) for name, weight in one.items()) is same
    assert not any(weight.is_meta for weight in (*lightning.unet.parameters(), *lightning.unet.buffers()))


@pytest.mark.parametrize("damage", ["none", "truncated", "another's"])
def test_a_unet_file_that_is_not_lightnings_is_rejected(damage: str, tiny: Folders, tmp_path: Path) -> None:
    file = tmp_path / LIGHTNING_FILE
    whole = (tiny("lightning") / LIGHTNING_FILE).read_bytes()
    if damage == "truncated":
        file.write_bytes(whole[:-100])
    elif damage == "another's":
        save_file({"weight": torch.ones(1)}, file)
    with pytest.raises(FlexyError) as caught:
        LightningEngine(tmp_path, tiny("sdxl"), LIGHTNING_FILE)
    assert LIGHTNING_FILE in str(caught.value) and "\n" not in str(caught.value)


def test_hidream_dev_samples_with_its_own_shift_and_each_images_noise(loaded: Loaded) -> None:
    engine = loaded("hidream_dev")
    scheduler = engine.pipeline.scheduler
    assert isinstance(scheduler, FlowMatchLCMScheduler) and scheduler.config.shift == 6.0
    # Noise is added after each step but the last: drawn from the process's own generator, it would be another.
    first, _ = (engine.generate([request("hidream_dev", steps=3)])[0], torch.manual_seed(5))
    assert engine.generate([request("hidream_dev", steps=3)])[0] == first


def test_a_network_without_guidance_is_not_flux_dev(tiny: Folders) -> None:
    line = load_error_of(tiny("flux_schnell"), FluxDevEngine)
    assert "it takes no guidance" in line


@pytest.mark.parametrize(
    ("installed", "gpu", "cause"),
    [
        (False, True, "bitsandbytes is missing: pip install"),
        (True, False, "there is no GPU"),
        (True, True, "not in 4 bit"),
    ],
)
def test_four_bits_without_what_they_take_are_refused_in_one_line(
    installed: bool, gpu: bool, cause: str, tiny: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flux2, "find_spec", lambda name: installed or None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with pytest.raises(FlexyError, match=cause) as caught:
        Flux2FourBitEngine(tiny("flux2"))
    assert "\n" not in str(caught.value)


def test_four_bit_weights_are_loaded_as_such(tiny: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where bitsandbytes is installed, and with diffusers' demand for a GPU lifted: on a CPU it computes too."""
    pytest.importorskip("bitsandbytes")
    from diffusers.quantizers.bitsandbytes.bnb_quantizer import BnB4BitDiffusersQuantizer as Quantizer

    monkeypatch.setattr(Quantizer, "validate_environment", lambda *_, **__: None)
    monkeypatch.setattr(Quantizer, "update_device_map", lambda _, device_map: device_map or {"": "cpu"})
    folder = Path(shutil.copytree(tiny("flux2"), tmp_path / "flux2"))
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    for kind, name, config in (
        (Flux2Transformer2DModel, "transformer", diffusers.BitsAndBytesConfig(**nf4)),
        (Mistral3ForConditionalGeneration, "text_encoder", transformers.BitsAndBytesConfig(**nf4)),
    ):
        options = {"quantization_config": config, "device_map": {"": "cpu"}, "dtype": torch.bfloat16}
        kind.from_pretrained(folder / name, **options).save_pretrained(folder / name)
    engine = flux2.Flux2Engine(folder, precision="bf16")
    for name in ("transformer", "text_encoder"):
        modules = getattr(engine.pipeline, name).modules()
        assert any(type(module).__name__ == "Linear4bit" for module in modules)
    low, high = (
        np.asarray(image, int) for image in engine.generate([request("flux2"), request("flux2", guidance=9.0)])
    )
    assert low.std() > 5 and np.abs(low - high).max() > 5
