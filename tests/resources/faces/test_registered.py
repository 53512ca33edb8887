"""The face models of the set full are the user's own files: never fetched, known by their hashes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from resources.errors import FlexyError
from resources.faces.insight import FaceFinder, FaceSwapper
from resources.models import registry
from resources.models.weights import MINI_WEIGHTS
from resources.settings import Settings


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """User-provided files, among other files that belong to no model."""
    folder = Path(shutil.copytree(MINI_WEIGHTS / "faces", tmp_path / "own"))
    (folder / "other.onnx").write_bytes(b"x")
    return folder


def settings(own: Path, *names: str) -> Settings:
    folders = {"inswapper_128": own, "buffalo_l": own / "buffalo_l", "face_restorer": own}
    file = own.parent / "models.toml"
    file.write_text("[models]\n" + "".join(f'{name} = "{folders[name]}"\n' for name in names))
    return Settings.read({"FLEXY_MODELS": "full", "FLEXY_MODEL_REGISTRY": str(file)})


def test_without_files_of_ones_own_there_are_no_face_models_and_one_line_says_what_to_do(own: Path) -> None:
    with pytest.raises(FlexyError) as caught:
        registry.find_face_swapper(settings(own)).load()
    message = str(caught.value)
    assert message.startswith("no weights for inswapper_128: they are not redistributable and never downloaded: ")
    assert "inswapper_128.onnx" in message and "FLEXY_MODEL_REGISTRY" in message and "\n" not in message
    with pytest.raises(FlexyError, match="no weights for buffalo_l: they are not redistributable"):
        registry.find_face_swapper(settings(own, "inswapper_128")).load()
    (own / "buffalo_l" / "det_10g.onnx").unlink()
    with pytest.raises(
        FlexyError, match=f"no weights for buffalo_l: {own}/buffalo_l has no det_10g.onnx: put it there"
    ):
        registry.find_face_finder(settings(own, "buffalo_l")).load()


def test_files_of_ones_own_are_used_from_where_they_lie(own: Path) -> None:
    (own / "buffalo_l" / "config.json").unlink()
    finder = registry.find_face_finder(settings(own, "buffalo_l")).load()
    assert isinstance(finder, FaceFinder)
    assert finder.det_size == 640
    swapper = registry.find_face_swapper(settings(own, "inswapper_128", "buffalo_l")).load()
    assert isinstance(swapper, FaceSwapper)
    assert swapper.restorer is None


def test_a_restorer_that_the_user_names_is_taken_along(own: Path) -> None:
    model = registry.find_face_swapper(settings(own, "inswapper_128", "buffalo_l", "face_restorer"))
    assert model.required_models.keys() == {"pack", "restorer"}
    assert model.fingerprint.count("@") == 3


def test_the_fingerprint_is_of_the_files_that_are_read_and_of_no_others(own: Path) -> None:
    def mark() -> str:
        return registry.find_face_swapper(settings(own, "inswapper_128", "buffalo_l")).fingerprint

    before = mark()
    swapper, pack = before.split("+")
    assert swapper.startswith("inswapper_128@") and pack.startswith("buffalo_l@")
    (own / "other.onnx").write_bytes(b"y")
    assert mark() == before
    for file, place in (("inswapper_128.onnx", 0), ("buffalo_l/w600k_r50.onnx", 1)):
        (own / file).write_bytes(b"another")
        assert mark().split("+")[place] != before.split("+")[place]


def test_mini_models_have_a_name_and_a_hash_of_their_own() -> None:
    mini = registry.find_face_swapper(Settings.read({}))
    assert mini.fingerprint.startswith("mini_inswapper_128@") and not mini.required_models
