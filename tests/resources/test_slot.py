"""There is one model in memory."""

from __future__ import annotations

import sys
import weakref
from pathlib import Path

import pytest

from resources.models.registry import ModelEntry
from resources.models.slot import ModelSlot

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
    monkeypatch.delitem(sys.modules, "models_of_my_own", raising=False)
    return "models_of_my_own:load"


def entry(models: str, name: str, **options: object) -> ModelEntry:
    return ModelEntry(name, Path(name), models, options=dict(options))


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
