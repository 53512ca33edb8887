"""Faces are found and swapped by insightface's own classes, from files that are here and nothing else."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from resources.errors import FlexyError
from resources.faces import Face, identity_similarity, largest_face, mask_centre, nearest_face
from resources.faces.insight import FaceFinder, FaceSwapper
from resources.faces.restore import FaceRestorer
from resources.mini.evaluation.face_accuracy import box_iou
from resources.mini.faces import (
    FaceFigure,
    FaceScene,
    FaceTask,
    Pose,
    draw_faces,
    face_mask,
    make_person,
    make_portrait,
)
from resources.models.weights import MINI_WEIGHTS

FACES = MINI_WEIGHTS / "faces"
PACK = FACES / "buffalo_l"


def picture(scene: FaceScene) -> Image.Image:
    return Image.fromarray(draw_faces(scene))


def meant(swapper: FaceSwapper, task: FaceTask) -> Face:
    """The face in the task's mask."""
    assert task.figure is not None
    point = mask_centre(face_mask(task.figure))
    assert point is not None
    face = nearest_face(swapper.faces(picture(task.scene)), point)
    assert face is not None
    return face


def character(swapper: FaceSwapper, task: FaceTask) -> Face:
    face = largest_face(swapper.faces(picture(make_portrait(task.character))))
    assert face is not None
    return face


def changed(before: Image.Image, after: Image.Image) -> NDArray[np.bool_]:
    return np.any(np.asarray(before) != np.asarray(after), axis=2)


# Finding


def test_insightfaces_own_analysis_finds_the_same_in_the_same_files(
    swapper: FaceSwapper, given: dict[str, FaceTask]
) -> None:
    from insightface.app import FaceAnalysis

    analysis = FaceAnalysis(str(PACK), providers=["CPUExecutionProvider"])
    assert {name: type(model).__name__ for name, model in analysis.models.items()} == {
        "detection": "SCRFD",
        "recognition": "ArcFaceONNX",
    }
    analysis.prepare(0, det_size=(256, 256))
    seen = picture(given["several"].scene)
    theirs = analysis.get(cv2.cvtColor(np.asarray(seen), cv2.COLOR_RGB2BGR))
    ours = swapper.faces(seen)
    assert len(ours) == len(theirs) == len(given["several"].scene.figures)
    for one, other in zip(ours, theirs, strict=True):
        assert np.allclose(one.box, other.bbox, atol=1e-3) and np.allclose(one.landmarks, other.kps, atol=1e-3)
        assert one.embedding.shape == (512,) and one.embedding.dtype == np.float32
        assert np.allclose(one.embedding, other.normed_embedding, atol=1e-4)
        assert np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-5)


def test_where_there_are_no_faces_none_are_found(swapper: FaceSwapper, given: dict[str, FaceTask]) -> None:
    assert swapper.faces(picture(given["none"].scene)) == []
    for size in ((1, 1), (1, 4000), (4000, 3), (300, 7)):
        assert swapper.faces(Image.new("RGB", size, "white")) == []


@pytest.mark.parametrize("mode", ["RGBA", "P", "L"])
def test_a_picture_of_any_mode_and_size_is_searched(swapper: FaceSwapper, mode: str) -> None:
    seen = picture(make_portrait(make_person(3)))
    (face,) = swapper.faces(seen.convert(mode).resize((600, 600)))
    (plain,) = swapper.faces(seen)
    assert box_iou(face.box / 600, plain.box / 256) > 0.7


def test_a_face_at_the_edge_says_so(swapper: FaceSwapper, given: dict[str, FaceTask]) -> None:
    assert meant(swapper, given["edge"]).at_edge
    (whole,) = swapper.faces(picture(make_portrait(make_person(3))))
    assert not whole.at_edge
    for x, y in ((15, 128), (241, 128), (128, 30), (128, 232)):
        (cut,) = swapper.faces(picture(FaceScene((FaceFigure(make_person(3), Pose(x, y, 0.9)),))))
        assert cut.at_edge


# Swapping


def test_the_face_in_the_mask_is_swapped_and_its_neighbours_are_not(
    swapper: FaceSwapper, given: dict[str, FaceTask]
) -> None:
    task = given["several"]
    before, target, source = picture(task.scene), meant(swapper, task), character(swapper, task)
    after = swapper.swap(before, target, source)
    found = nearest_face(swapper.faces(after), target.centre)
    assert found is not None
    assert identity_similarity(source, found) > identity_similarity(source, target) + 0.2
    others = [face for face in swapper.faces(before) if face.centre != target.centre]
    assert others
    for other in others:
        left, top, right, bottom = np.clip(other.box, 0, 256).astype(int)
        assert not changed(before, after)[top:bottom, left:right].any()


def test_away_from_the_face_not_a_pixel_changes_and_the_original_is_left_alone(
    swapper: FaceSwapper, given: dict[str, FaceTask]
) -> None:
    task = given["one"]
    before, target = picture(task.scene), meant(swapper, task)
    kept = before.copy()
    after = swapper.swap(before, target, character(swapper, task))
    assert after.mode == "RGB" and after.size == before.size
    assert not changed(before, kept).any()
    rows, columns = np.nonzero(changed(before, after))
    left, top, right, bottom = target.box
    reach = 0.3 * (bottom - top)
    assert len(rows) > 0.2 * target.area
    assert columns.min() >= left - reach and columns.max() <= right + reach
    assert rows.min() >= top - reach and rows.max() <= bottom + reach


def test_a_face_at_the_edge_is_swapped_as_far_as_it_is_seen(swapper: FaceSwapper, given: dict[str, FaceTask]) -> None:
    task = given["edge"]
    before, target, source = picture(task.scene), meant(swapper, task), character(swapper, task)
    after = swapper.swap(before, target, source)
    assert after.size == before.size
    assert changed(before, after).any()
    found = nearest_face(swapper.faces(after), target.centre)
    assert found is not None and identity_similarity(source, found) > identity_similarity(source, target)


def test_the_crop_is_painted_as_insightface_paints_it(swapper: FaceSwapper, given: dict[str, FaceTask]) -> None:
    from insightface.app.common import Face as Theirs

    task = given["one"]
    before, target, source = picture(task.scene), meant(swapper, task), character(swapper, task)
    bgr = np.ascontiguousarray(np.asarray(before)[:, :, ::-1])
    arguments = Theirs(kps=target.landmarks), Theirs(embedding=source.embedding)
    crop, move = swapper.swapper.get(bgr, *arguments, paste_back=False)
    after = np.asarray(swapper.swap(before, target, source))
    again = cv2.warpAffine(after, move, (128, 128))[40:100, 34:94, ::-1]
    # What lies between is being pasted back and cut out once more.
    assert abs(again.astype(int) - crop[40:100, 34:94]).mean() <= 6


def test_the_same_swap_gives_the_same_picture(swapper: FaceSwapper, given: dict[str, FaceTask]) -> None:
    task = given["one"]
    arguments = picture(task.scene), meant(swapper, task), character(swapper, task)
    assert not changed(swapper.swap(*arguments), swapper.swap(*arguments)).any()


# Restoring


def restorer(folder: Path, side: int = 512, weighed: bool = False) -> Path:
    """A face restorer that makes every crop darker, by its fidelity where it takes one."""
    folder.mkdir()
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, side, side])]
    less = helper.make_node("Sub", ["input", "by"], ["output"])
    constants = [helper.make_tensor("by", TensorProto.FLOAT, [1], [0.5])]
    nodes = [less]
    if weighed:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.DOUBLE, []))
        nodes = [helper.make_node("Cast", ["w"], ["by"], to=TensorProto.FLOAT), less]
        constants = []
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, side, side])
    graph = helper.make_graph(nodes, "restorer", inputs, [output], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, folder / "restorer.onnx")
    return folder


@pytest.mark.parametrize(("weighed", "darker"), [(False, 0.5 * 127.5), (True, 0.7 * 127.5)])
def test_a_restorer_goes_over_the_face_and_nothing_else(
    tmp_path: Path, swapper: FaceSwapper, given: dict[str, FaceTask], weighed: bool, darker: float
) -> None:
    model = FaceRestorer(restorer(tmp_path / "restorer", weighed=weighed))
    face = meant(swapper, given["one"])
    before = Image.new("RGB", (256, 256), (200, 190, 180))
    after = model.restore(before, face)
    x, y = (int(place) for place in face.centre)
    assert np.asarray(after)[y, x].tolist() == pytest.approx(np.subtract((200, 190, 180), darker), abs=2)
    assert after.getpixel((0, 0)) == after.getpixel((255, 255)) == (200, 190, 180)


def test_the_swapper_takes_a_restorer_and_leaves_it_out_where_told(tmp_path: Path, given: dict[str, FaceTask]) -> None:
    both = FaceSwapper(FACES, restorer=restorer(tmp_path / "restorer"))
    task = given["one"]
    arguments = picture(task.scene), meant(both, task), character(both, task)
    with_it, without = (both.swap(*arguments, restore=restore) for restore in (True, False))
    assert np.asarray(with_it).mean() < np.asarray(without).mean()


@pytest.mark.parametrize("count", [0, 2])
def test_a_restorers_folder_holds_one_file(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / f"{number}.onnx").write_bytes(b"x")
    with pytest.raises(FlexyError, match=f"it holds {count} ONNX files: leave one, the face restorer's"):
        FaceRestorer(tmp_path)


# Files


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A copy of the files, to do harm to."""
    return Path(shutil.copytree(FACES, tmp_path / "own"))


@pytest.mark.parametrize("file", ["inswapper_128.onnx", "buffalo_l/det_10g.onnx", "buffalo_l/w600k_r50.onnx"])
@pytest.mark.parametrize("harm", ["garbage", "empty", "cut short", "text"])
def test_a_file_that_is_no_model_is_named_in_one_line(own: Path, file: str, harm: str) -> None:
    path = own / file
    content = path.read_bytes()
    damaged = {"garbage": bytes(range(256)) * 40, "empty": b"", "cut short": content[: len(content) // 2]}
    path.write_bytes(damaged.get(harm, b"<html>404: Not Found</html>"))
    with pytest.raises(FlexyError) as caught:
        FaceSwapper(own)
    message = str(caught.value)
    assert message.startswith(f"cannot load {path}: ") and "\n" not in message


def test_another_models_file_is_told_from_the_right_one(own: Path) -> None:
    shutil.copy(own / "inswapper_128.onnx", own / "buffalo_l" / "det_10g.onnx")
    with pytest.raises(
        FlexyError, match=r"det_10g.onnx: it is another model's, INSwapper by insightface and not SCRFD"
    ):
        FaceFinder(own / "buffalo_l")
    with pytest.raises(FlexyError, match=r"it is another model's, it takes \[1, 3, 128, 128\]"):
        FaceRestorer(restorer(own / "restorer", side=128))


def test_nothing_is_fetched_where_a_file_is_missing(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("somebody wants to fetch")

    monkeypatch.setenv("HOME", str(own))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    (own / "buffalo_l" / "w600k_r50.onnx").unlink()
    for make in (FaceFinder, lambda folder: FaceSwapper(own, folder)):
        with pytest.raises(FlexyError, match=r"it has no w600k_r50\.onnx: put it there, or name another folder"):
            make(own / "buffalo_l")
    with pytest.raises(FlexyError, match=r"it has no inswapper_128\.onnx"):
        FaceSwapper(own / "nowhere", PACK)
    assert not (own / ".insightface").exists()


def test_loading_and_swapping_say_nothing(given: dict[str, FaceTask], capfd: pytest.CaptureFixture[str]) -> None:
    loud = FaceSwapper(FACES)
    task = given["one"]
    loud.swap(picture(task.scene), meant(loud, task), character(loud, task))
    assert capfd.readouterr() == ("", "")


def test_a_mini_model_computes_with_one_thread(swapper: FaceSwapper) -> None:
    for model in (swapper.swapper, swapper.finder.detector, swapper.finder.recogniser):
        assert model.session.get_session_options().intra_op_num_threads == 1
        assert model.session.get_providers() == ["CPUExecutionProvider"]
