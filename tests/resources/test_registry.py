"""A model that cannot be had says which, why, and what to do, before anything is loaded."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from resources.errors import BadInputError, FlexyError
from resources.models import registry
from resources.models.registry import ENGINES, SCORERS, ModelEntry, engine_entry, scorer_entry
from resources.scorers import METRICS
from resources.settings import Settings

FILE = "head/model.safetensors"


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder as training leaves it, with one small aesthetic head in it."""
    folder = tmp_path / "weights"
    (folder / FILE).parent.mkdir(parents=True)
    save_file({"0.weight": torch.ones(1, 8) / 8, "0.bias": torch.tensor([5.0])}, folder / FILE)
    sha256 = hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({FILE: {"sha256": sha256}, "other/x": {"sha256": "0" * 64}}))
    monkeypatch.setattr(registry, "MINI_WEIGHTS", folder)
    return folder


@pytest.fixture
def entry(weights: Path) -> ModelEntry:
    return ModelEntry("small_head", weights / "head", "resources.scorers.aesthetic:load")


def complaint(entry: ModelEntry) -> str:
    with pytest.raises(FlexyError) as caught:
        entry.load()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("restore it with git, or train it with python -m resources.mini.train")
    return message


def settings(models: str) -> Settings:
    return Settings.read({"FLEXY_MODELS": models})


def test_a_model_whose_files_are_as_published_is_loaded(entry: ModelEntry) -> None:
    assert entry.load()(torch.ones(2, 8)).tolist() == [6.0, 6.0]


def test_a_missing_weight_file_is_named(entry: ModelEntry, weights: Path) -> None:
    (weights / FILE).unlink()
    assert complaint(entry).startswith(f"no weights for small_head: {weights / FILE} is missing: ")


def test_a_damaged_weight_file_is_named(entry: ModelEntry, weights: Path) -> None:
    entry.check()
    content = bytearray((weights / FILE).read_bytes())
    content[-1] ^= 1
    (weights / FILE).write_bytes(content)
    assert complaint(entry).startswith(f"weights for small_head are damaged: {weights / FILE} has another SHA-256")


@pytest.mark.parametrize("content", [None, b"", b"{", b"{}", b"[]", b'{"a": 1}', b'{"a": {}}', b"\xff\xfe"])
def test_a_manifest_that_cannot_be_read_is_named(entry: ModelEntry, weights: Path, content: bytes | None) -> None:
    (weights / "manifest.json").unlink()
    if content is not None:
        (weights / "manifest.json").write_bytes(content)
    assert str(weights / "manifest.json") in complaint(entry)


def test_the_fingerprint_follows_the_weights_and_only_its_own(entry: ModelEntry, weights: Path) -> None:
    before = entry.fingerprint
    assert before.startswith("small_head@")
    manifest = json.loads((weights / "manifest.json").read_text())
    for file, same in [("other/x", True), (FILE, False)]:
        manifest[file]["sha256"] = "1" * 64
        (weights / "manifest.json").write_text(json.dumps(manifest))
        assert (entry.fingerprint == before) is same


@pytest.mark.parametrize(("models", "remedy"), [("mini", "use mini_sdxl"), ("full", "use ")])
def test_an_engine_nobody_knows_is_answered_with_those_there_are(models: str, remedy: str) -> None:
    with pytest.raises(BadInputError, match=f"engine 'nosuch' is unknown to FLEXY_MODELS={models}: {remedy}"):
        engine_entry("nosuch", settings(models))


def test_a_scorer_nobody_knows_is_answered_with_those_there_are() -> None:
    with pytest.raises(BadInputError, match="scorer 'nosuch' is unknown to FLEXY_MODELS=mini: use clip, hps"):
        scorer_entry("nosuch", settings("mini"))


def test_mini_engines_are_known_by_their_name() -> None:
    # What keeps their images apart from other engines' is this prefix.
    assert all(name == entry.name and name.startswith("mini_") for name, entry in ENGINES["mini"].items())
    assert not any(name.startswith("mini_") for name in ENGINES["full"])


def test_every_metric_has_its_mini_models() -> None:
    wanted = {metric.encoder for metric in METRICS.values()} | {metric.head for metric in METRICS.values()} - {None}
    assert wanted <= SCORERS["mini"].keys()


def test_reading_the_registry_imports_no_model_library() -> None:
    program = (
        "import sys, resources.models.registry, resources.models.slot, resources.scorers;"
        "print(*{'torch', 'diffusers', 'transformers', 'PIL'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == ""
