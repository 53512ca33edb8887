"""There is one model in memory."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path

import pytest
import torch

from resources.models import registry
from resources.models.entry import LocalModel
from resources.models.slot import ModelSlot
from resources.settings import Settings
from tests.support import forked

LOADER = """
import gc
import weakref

alive = weakref.WeakSet()
loads = []


class Model:
    def __init__(self, name):
        self.name = name
        self.itself = self  # as tied weights do: only a collection frees it


def load(folder, **options):
    loads.append((folder.name, len(alive)))
    if options.get("broken"):
        raise OSError("broken")
    model = Model(folder.name)
    alive.add(model)
    return model
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that loads models, as a person adds one: a file, and a line in the registry."""
    (tmp_path / "models_of_my_own.py").write_text(LOADER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "models_of_my_own", raising=False)
    return "models_of_my_own:load"


def entry(models: str, name: str, **options: object) -> LocalModel:
    folder = Path(name).absolute()
    folder.mkdir(exist_ok=True)
    return LocalModel(name, folder, models, options=dict(options))


def loads() -> list[tuple[str, int]]:
    """Each load, and how many models were in memory when it began."""
    return sys.modules["models_of_my_own"].loads


def test_asking_for_another_model_frees_the_first_before_the_second_is_loaded(models: str) -> None:
    slot = ModelSlot()
    first = weakref.ref(slot.get(entry(models, "first")))
    assert first() is not None
    assert slot.get(entry(models, "second")).name == "second"
    assert first() is None
    assert loads() == [("first", 0), ("second", 0)]


def test_asking_again_for_the_same_model_does_not_load_it_again(models: str) -> None:
    slot = ModelSlot()
    assert slot.get(entry(models, "first")) is slot.get(entry(models, "first"))
    assert len(loads()) == 1


def test_what_was_let_go_of_is_loaded_anew(models: str) -> None:
    slot = ModelSlot()
    model = weakref.ref(slot.get(entry(models, "first")))
    slot.free()
    assert model() is None
    slot.get(entry(models, "first"))
    assert loads() == [("first", 0), ("first", 0)]


def test_a_model_that_does_not_load_leaves_the_slot_empty(models: str) -> None:
    slot = ModelSlot()
    first = weakref.ref(slot.get(entry(models, "first")))
    for _ in range(2):
        with pytest.raises(OSError, match="broken"):
            slot.get(entry(models, "second", broken=True))
    assert first() is None
    assert slot.get(entry(models, "first")).name == "first"


MEASURE = """
import shutil
import sys
from pathlib import Path

from resources.models.entry import LocalModel
from resources.models.slot import ModelSlot
from resources.models.weights import MINI_WEIGHTS

import numpy as np
from transformers import CLIPConfig, CLIPModel

folder = Path(sys.argv[1])


def model(name, width, layers):
    path = folder / name
    if not path.exists():
        text = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, vocab_size=600)
        vision = dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, patch_size=16)
        vision |= dict(num_attention_heads=8, image_size=64)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).save_pretrained(path)
        for file in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
            shutil.copy(MINI_WEIGHTS / "clip" / file, path)
    return LocalModel(name, path, "resources.scorers.clip:ClipEncoder")


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


models = {"large": model("large", 1024, 4), "small": model("small", 512, 4)}
slot = ModelSlot()
import resources.scorers.clip

before = resident()
for name in sys.argv[2:]:
    # Weights are mapped: what has not been computed with is not in memory.
    slot.get(models[name]).images([np.zeros((3, 64, 64), np.float32)])
    print(name, resident() - before)
"""


@pytest.mark.slow(seconds=40)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells resident memory by /proc")
def test_after_a_switch_the_memory_held_is_the_new_models_alone(tmp_path: Path) -> None:
    def megabytes(*names: str) -> dict[str, float]:
        command = [sys.executable, "-c", MEASURE, str(tmp_path), *names]
        done = forked.run(command, capture_output=True, text=True, timeout=200, check=True)
        return {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}

    megabytes()  # writes the models
    alone = megabytes("small")["small"]
    switched = megabytes("large", "small")
    assert alone > 50
    assert switched["large"] > 2 * alone
    # A tenth of the model that was there before: the allocator's own leftovers are not it.
    assert switched["small"] - alone < 0.1 * switched["large"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the allocator's figure needs a GPU")
def test_after_a_switch_the_gpu_holds_the_new_model_alone() -> None:
    settings = Settings.read({})
    clip, engine = registry.find_scorer("clip", settings), registry.find_engine("mini_sdxl", settings)
    slot = ModelSlot()
    slot.get(clip)
    alone = torch.cuda.memory_allocated()
    slot.get(engine)
    slot.get(clip)
    assert torch.cuda.memory_allocated() == pytest.approx(alone, rel=0.02)
