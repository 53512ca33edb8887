"""A model that cannot be had says which, why, and what to do, before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from resources.errors import BadInputError, FlexyError
from resources.metrics.sweep import METRICS
from resources.models import registry, weights
from resources.models.entry import LocalModel
from resources.models.registry import MODELS
from resources.settings import Settings

FILE = "head/model.safetensors"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder as training leaves it, with one small aesthetic head in it."""
    folder = tmp_path / "weights"
    (folder / FILE).parent.mkdir(parents=True)
    save_file({"0.weight": torch.ones(1, 8) / 8, "0.bias": torch.tensor([5.0])}, folder / FILE)
    sha256 = hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({FILE: {"sha256": sha256}, "other/x": {"sha256": "0" * 64}}))
    monkeypatch.setattr(weights, "MINI_WEIGHTS", folder)
    return folder


@pytest.fixture
def model(folder: Path) -> LocalModel:
    return LocalModel("small_head", folder / "head", "resources.scorers.aesthetic:load_aesthetic", {"form": "linear"})


def complaint(model: LocalModel) -> str:
    with pytest.raises(FlexyError) as caught:
        model.load()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("restore it with git, or train it with python -m resources.mini.training.train")
    return message


def settings(models: str) -> Settings:
    return Settings.read({"FLEXY_MODELS": models})


def test_a_model_whose_files_are_as_published_is_loaded(model: LocalModel) -> None:
    assert model.load()(torch.ones(2, 8)).tolist() == [6.0, 6.0]


def test_a_missing_weight_file_is_named(model: LocalModel, folder: Path) -> None:
    (folder / FILE).unlink()
    assert complaint(model).startswith(f"no weights for small_head: {folder / FILE} is missing: ")


def test_a_damaged_weight_file_is_named(model: LocalModel, folder: Path) -> None:
    model.check()
    content = bytearray((folder / FILE).read_bytes())
    content[-1] ^= 1
    (folder / FILE).write_bytes(content)
    assert complaint(model).startswith(f"weights for small_head are damaged: {folder / FILE} has another SHA-256")


@pytest.mark.parametrize("content", [None, b"", b"{", b"{}", b"[]", b'{"a": 1}', b'{"a": {}}', b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read_is_named(model: LocalModel, folder: Path, content: bytes | None) -> None:
    (folder / "manifest.json").unlink()
    if content is not None:
        (folder / "manifest.json").write_bytes(content)
    assert str(folder / "manifest.json") in complaint(model)


def test_the_fingerprint_follows_the_weights_and_only_its_own(model: LocalModel, folder: Path) -> None:
    before = model.fingerprint
    assert before.startswith("small_head@")
    manifest = json.loads((folder / "manifest.json").read_text())
    for file, same in [("other/x", True), (FILE, False)]:
        manifest[file]["sha256"] = "1" * 64
        (folder / "manifest.json").write_text(json.dumps(manifest))
        assert (model.fingerprint == before) is same


@pytest.mark.parametrize(("models", "remedy"), [("mini", "use mini_sdxl"), ("full", "use realvis_xl, realvis_xl_v4")])
def test_an_engine_nobody_knows_is_answered_with_those_there_are(models: str, remedy: str) -> None:
    with pytest.raises(BadInputError, match=f"unknown engine 'nosuch' with FLEXY_MODELS={models}: {remedy}"):
        registry.find_engine("nosuch", settings(models))


def test_a_scorer_nobody_knows_is_answered_with_those_there_are() -> None:
    with pytest.raises(BadInputError, match="unknown scorer 'nosuch' with FLEXY_MODELS=mini: use clip, "):
        registry.find_scorer("nosuch", settings("mini"))


@pytest.mark.parametrize(("alias", "name"), registry.ALIASES.items())
def test_flexyface_names_are_aliases(alias: str, name: str) -> None:
    assert alias not in MODELS
    assert registry.find_engine(alias, settings("full")) == registry.find_engine(name, settings("full"))


def test_a_folder_is_named_by_an_alias_too(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text('[models]\nflux_dev = "schnell"\n')
    asked = Settings.read({"FLEXY_MODELS": "full", "FLEXY_MODEL_REGISTRY": str(tmp_path / "models.toml")})
    assert registry.find_engine("flux_schnell", asked).folder == tmp_path / "schnell"


def test_what_an_engine_is_made_for_holds_its_own_defaults() -> None:
    for entry in MODELS.values():
        for value, bounds in ((entry.steps, entry.steps_range), (entry.guidance, entry.guidance_range)):
            assert bounds is None or bounds[0] <= value <= bounds[1], entry.name


def test_mini_engines_are_known_by_their_name() -> None:
    # What keeps their images apart from other engines' is this prefix.
    assert all(name.startswith("mini_") for name in registry.model_names("engine", settings("mini")))
    assert not any(name.startswith("mini_") for name in registry.model_names("engine", settings("full")))


@pytest.mark.parametrize("models", ["mini", "full"])
def test_every_metric_has_its_models_in_both_sets(models: str) -> None:
    wanted = {name for metric in METRICS.values() for name in (metric.scorer, metric.reads) if name}
    assert wanted <= set(registry.model_names("scorer", settings(models)))


def test_every_entry_says_what_one_must_know_of_it() -> None:
    for entry in MODELS.values():
        assert entry.published or entry.user_provided or entry.embedded
        if entry.user_provided:
            assert entry.user_provided.files and entry.user_provided.licence and entry.user_provided.gigabytes > 0
        if entry.published:
            assert re.fullmatch("[0-9a-f]{40}", entry.published.revision) or entry.name == "hidream"
            assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in entry.published.sha256.values())
            assert entry.published.licence
            assert entry.published.gigabytes > 0
            assert entry.memory > 0 or entry.name.startswith("aesthetic")
        assert set(entry.required_models.values()) <= MODELS.keys()


def test_a_published_model_that_is_not_here_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FlexyError) as caught:
        registry.find_scorer("hps", settings("full")).load()
    message = str(caught.value)
    for words in ("no weights for hps: xswu/HPSv2", "flexy models fetch hps", "FLEXY_MODEL_REGISTRY", "=mini"):
        assert words in message


def test_a_folder_of_the_users_own_takes_the_hubs_place(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text('[models]\naesthetic_linear = "head"\n')
    (tmp_path / "head").mkdir()
    save_file(
        {"predictor.weight": torch.ones(1, 8), "predictor.bias": torch.zeros(1)}, tmp_path / "head/model.safetensors"
    )
    asked = Settings.read({"FLEXY_MODELS": "full", "FLEXY_MODEL_REGISTRY": str(tmp_path / "models.toml")})
    model = registry.find_scorer("aesthetic_linear", asked)
    assert model.load()(torch.ones(1, 8)).tolist() == [8.0]
    before = model.fingerprint
    save_file(
        {"predictor.weight": torch.zeros(1, 8), "predictor.bias": torch.zeros(1)}, tmp_path / "head/model.safetensors"
    )
    assert registry.find_scorer("aesthetic_linear", asked).fingerprint != before


def test_hps_root_is_the_checkpoints_folder(tmp_path: Path) -> None:
    asked = Settings.read({"FLEXY_MODELS": "full", "HPS_ROOT": str(tmp_path)})
    assert registry.find_scorer("hps", asked).folder == tmp_path


def test_a_precision_asked_for_by_name_is_used_and_marks_the_scores(tmp_path: Path) -> None:
    models = {
        p: registry.find_scorer("clip", Settings.read({"FLEXY_MODELS": "full", "FLEXY_PRECISION": p}))
        for p in ("fp32", "bf16")
    }
    assert [model.precision for model in models.values()] == ["fp32", "bf16"]
    assert models["bf16"].fingerprint == f"{models['fp32'].fingerprint}/bf16"
    mini = registry.find_scorer("clip", Settings.read({"FLEXY_PRECISION": "bf16"}))
    assert mini.precision == "fp32"  # the mini models' numbers are the same everywhere


def test_reading_the_registry_imports_no_model_library() -> None:
    program = (
        "import sys, resources.models.registry, resources.models.slot, resources.scorers;"
        "print(*{'torch', 'diffusers', 'transformers', 'PIL'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""


def test_a_reference_that_is_not_installed_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(registry, "version", missing)
    for name, package in (("clip", "simple-aesthetics-predictor"), ("hps", "hpsv2")):
        with pytest.raises(
            BadInputError, match=f"{package} is not installed: pip install --no-deps hpsv2==1.2.0 "
        ) as e:
            registry.find_scorer(name, Settings.read({"FLEXY_SCORERS": "reference"}))
        assert "\n" not in str(e.value)
    assert registry.find_scorer("lpips", Settings.read({"FLEXY_SCORERS": "reference"})).package == ""
    with pytest.raises(BadInputError, match="invalid FLEXY_SCORERS 'theirs': choose own or reference"):
        Settings.read({"FLEXY_SCORERS": "theirs"})
