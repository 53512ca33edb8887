"""Trains the face models on the drawn faces: parts of `python -m resources.mini.training.train`.

The detector stands by itself; the swapper needs the recogniser, in whose embeddings it is told whom to paint. Each
trains in one process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnx.numpy_helper
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor, nn

from resources.faces.alignment import ARCFACE, SWAP_TEMPLATE, crop_face, similarity_transform
from resources.faces.insight import DETECTOR, PACK_NAME, RECOGNISER, SWAPPER, FaceSwapper
from resources.mini.evaluation import face_accuracy
from resources.mini.faces import (
    EYES,
    FRAMES,
    GROUNDS,
    HAIRS,
    LIPS,
    NOSES,
    SIDE,
    UNSEEN,
    FaceFigure,
    FaceScene,
    Person,
    Pose,
    draw_faces,
    face_mask,
    make_expression,
    make_light,
    make_person,
    make_scene,
)
from resources.mini.training.face_architecture import (
    ANCHORS,
    CROP,
    EMBEDDING,
    STRIDES,
    SWAP_CROP,
    FaceDetectorNet,
    FaceRecognizerNet,
    FaceSwapperNet,
    OneByOne,
)
from resources.mini.training.loop import STAGES, TrainingRun, pixel_tensor, train_model

REACHES = ((0, 44, 72), (72, 100, 140), (140, 190, 10_000))
"""For each stride, which sizes of faces (the root of a box's area, in pixels) its first and second anchor find."""

ALIKE = 6
"""Of a batch, so many swapped faces are shown to the recogniser."""


def random_person(rng: Generator) -> Person:
    """Somebody to train on."""
    return make_person(int(rng.integers(UNSEEN)))


def face_scene(rng: Generator) -> FaceScene:
    """A scene to find faces in: mostly one or several, some at the edge or very near, some with none."""
    count = int(rng.choice(4, p=(0.15, 0.45, 0.25, 0.15)))
    found = make_scene([random_person(rng) for _ in range(count)], rng, at_edge=rng.random() < 0.25)
    if count == 1 and rng.random() < 0.25:
        size = float(rng.uniform(1.2, 2.1))
        x, y = (float(v) for v in SIDE / 2 + rng.uniform(-20, 20, 2))
        figure = found.figures[0]
        found = replace(found, figures=(replace(figure, pose=replace(figure.pose, x=x, y=y, size=size)),))
    return found if rng.random() < 0.8 else replace(found, things=0)


def degrade_image(picture: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    """The picture as others may hand it over: one in two with a little noise."""
    if rng.random() < 0.5:
        return picture
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * rng.uniform(1, 7)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def train_detector(run: TrainingRun) -> None:
    model = FaceDetectorNet()

    def loss(rng: Generator) -> Tensor:
        scenes = [face_scene(rng) for _ in range(STAGES["face_detector"].batch)]
        return detection_loss(
            model, pixel_tensor([degrade_image(draw_faces(s), rng) for s in scenes]), [s.figures for s in scenes]
        )

    train_model(run, "face_detector", model, loss)
    names = [f"{kind}_{stride}" for kind in ("scores", "boxes", "points") for stride in STRIDES]
    axes = {"picture": {2: "height", 3: "width"}} | {name: {0: f"anchors_{name}"} for name in names}
    picture = torch.zeros(1, 3, SIDE, SIDE)
    folder = run.out / "faces" / PACK_NAME
    _export(OneByOne(model), (picture,), folder / DETECTOR, ["picture"], names, axes)
    (folder / "config.json").write_text(json.dumps({"det_size": SIDE}) + "\n")
    _record(run)


def _cells(stride: int) -> NDArray[np.float32]:
    """(cells, 2) x and y of the cells' corners, from which insightface measures."""
    y, x = np.mgrid[0 : SIDE // stride, 0 : SIDE // stride]
    return (np.stack([x, y], axis=-1).reshape(-1, 2) * stride).astype(np.float32)


def detection_loss(model: FaceDetectorNet, pictures: Tensor, figures: Sequence[Sequence[FaceFigure]]) -> Tensor:
    """Focal loss of the scores, and where a face is, how far box (GIoU) and key points are off."""
    found = model(pictures)
    truths = [
        [torch.from_numpy(np.stack(part)) for part in zip(*(_truth(level, some) for some in figures), strict=True)]
        for level in range(len(STRIDES))
    ]
    count = max(1, sum(int((wanted == 1).sum()) for wanted, _, _ in truths))
    total = torch.zeros(())
    for level, (wanted, boxes, points) in enumerate(truths):
        scores, sides, offsets = found[level][..., 0], found[level + 3], found[level + 6]
        is_face = wanted == 1
        chance = scores.clamp(1e-5, 1 - 1e-5)
        right = torch.where(is_face, chance, 1 - chance)
        hard = (1 - right) ** 2 * -right.log() * (wanted >= 0)
        total = total + hard.sum() / count
        if is_face.any():
            total = total + _box_loss(sides[is_face], boxes[is_face]).sum() / count
            off = F.smooth_l1_loss(offsets[is_face], points[is_face], reduction="sum", beta=0.1)
            total = total + off / 5 / count
    return total


def _truth(
    level: int, figures: Sequence[FaceFigure]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """For each anchor of a level: 1 for a face, 0 for none, −1 for neither; its sides and key points, in strides."""
    stride, reach = STRIDES[level], REACHES[level]
    cells = _cells(stride)
    wanted = np.zeros((len(cells), ANCHORS), np.int64)
    sides, points = np.zeros((len(cells), ANCHORS, 4), np.float32), np.zeros((len(cells), ANCHORS, 10), np.float32)
    for figure in figures:
        left, top, right, bottom = figure.box
        size = float(np.sqrt((right - left) * (bottom - top)))
        away = np.abs(cells - ((left + right) / 2, (top + bottom) / 2)) / (right - left, bottom - top)
        near = away.max(axis=1)
        middle = (near < 0.2) | (near == near.min())
        for anchor in range(ANCHORS):
            low, high = reach[anchor], reach[anchor + 1]
            rim = near < 0.4
            if 0.9 * low <= size < 1.1 * high:
                wanted[middle, anchor] = 1
                sides[middle, anchor] = (
                    np.concatenate([cells - (left, top), (right, bottom) - cells], 1)[middle] / stride
                )
                points[middle, anchor] = (figure.landmarks[None] - cells[:, None]).reshape(-1, 10)[middle] / stride
                rim &= ~middle
            if 0.7 * low <= size < 1.4 * high:
                wanted[rim & (wanted[:, anchor] == 0), anchor] = -1
    return wanted.reshape(-1), sides.reshape(-1, 4), points.reshape(-1, 10)


def _box_loss(sides: Tensor, wanted: Tensor) -> Tensor:
    """1 − GIoU (Rezatofighi et al. 2019) of boxes given by their distances from a common point."""
    sides = sides.clamp(min=0.01)
    inner, outer = torch.minimum(sides, wanted), torch.maximum(sides, wanted)

    def area(box: Tensor) -> Tensor:
        return (box[:, 0] + box[:, 2]).clamp(min=0) * (box[:, 1] + box[:, 3]).clamp(min=0)

    union = area(sides) + area(wanted) - area(inner)
    return 2 - area(inner) / union - union / area(outer)


def person_features(people: Sequence[Person]) -> Tensor:
    """(n, facts) in 0 to 1: all that tells faces apart, what is one of several as so many yes or no."""
    rows = []
    for features in (who.features for who in people):
        row: list[float] = []
        for name in (field.name for field in fields(features)):
            value = getattr(features, name)
            row += [float(value == other) for other in _KINDS[name]] if name in _KINDS else [float(value)]
        rows.append(row)
    return torch.tensor(rows)


_KINDS: dict[str, Sequence[object]] = {
    "eye_colour": tuple(EYES),
    "brow_colour": tuple(HAIRS),
    "nose": NOSES,
    "lips": range(len(LIPS)),
    "glasses": (None, *range(len(FRAMES))),
}


def similar_person(who: Person, rng: Generator) -> Person:
    """Somebody who shares half of their features."""
    other = random_person(rng)
    names = [field.name for field in fields(who.features) if rng.random() < 0.5]
    return replace(who, features=replace(who.features, **{name: getattr(other.features, name) for name in names}))


def photo_scene(who: Person, rng: Generator) -> FaceScene:
    """A small picture of one person in any hair, clothes, pose, mood and light; one in ten reaches over the edge."""
    size = float(rng.uniform(0.4, 1.4))
    side = int(150 * size)
    out = rng.uniform(-45, 45, 2) * size * (rng.random() < 0.1)
    x, y = (float(v) for v in (0.5 * side, 0.53 * side) + rng.uniform(-6, 6, 2) * size + out)
    dressed = replace(random_person(rng), features=who.features)
    pose = Pose(x, y, size, float(rng.uniform(-0.35, 0.35)), float(rng.uniform(-1, 1)))
    return FaceScene(
        (FaceFigure(dressed, pose, make_expression(rng)),),
        ground=int(rng.integers(len(GROUNDS))),
        seed=int(rng.integers(2**31)),
        things=int(rng.integers(0, 4)),
        light=make_light(rng),
        side=side,
    )


def misaligned_landmarks(figure: FaceFigure, slip: float, rng: Generator) -> NDArray[np.float32]:
    """A figure's landmarks as a detector has them, `slip` pixels of ArcFace's crop beside the truth."""
    return figure.landmarks + rng.normal(0, slip * figure.pose.size, (5, 2)).astype(np.float32)


def aligned_faces(scenes: Sequence[FaceScene], rng: Generator) -> list[NDArray[np.uint8]]:
    """The first face of each scene as insightface cuts it out for ArcFace: what lies beyond the edge is black."""
    crops = []
    for sat in scenes:
        move = similarity_transform(misaligned_landmarks(sat.figures[0], 1.0, rng), ARCFACE)
        crops.append(cv2.warpAffine(degrade_image(draw_faces(sat), rng), move, (CROP, CROP)).astype(np.uint8))
    return crops


def train_recogniser(run: TrainingRun) -> None:
    """Faces of one person together and others apart (supervised contrast, Khosla et al. 2020), and what tells them."""
    model = FaceRecognizerNet()
    lesson = nn.ModuleDict({"model": model, "tell": nn.Linear(EMBEDDING, person_features([make_person(0)]).shape[1])})
    looks = 3

    def loss(rng: Generator) -> Tensor:
        people = [random_person(rng) for _ in range(STAGES["face_recogniser"].batch // looks // 2)]
        people += [similar_person(who, rng) for who in people]
        crops = aligned_faces([photo_scene(who, rng) for who in people for _ in range(looks)], rng)
        seen = F.normalize(model(pixel_tensor(crops)))
        who = torch.arange(len(people)).repeat_interleave(looks)
        likeness = (seen @ seen.T * 16).fill_diagonal_(-1e4)
        same = (who[:, None] == who[None]).float().fill_diagonal_(0)
        apart = -(likeness.log_softmax(1) * same).sum(1).mean() / (looks - 1)
        told = lesson["tell"](seen * EMBEDDING**0.5)
        return apart + 4 * F.binary_cross_entropy_with_logits(told, person_features(people).repeat_interleave(looks, 0))

    train_model(run, "face_recogniser", lesson, loss)
    axes = {"face": {0: "faces"}, "embedding": {0: "faces"}}
    face = torch.zeros(1, 3, CROP, CROP)
    _export(model, (face,), run.out / "faces" / PACK_NAME / RECOGNISER, ["face"], ["embedding"], axes)
    _record(run)


def trained_recogniser(run: TrainingRun) -> FaceRecognizerNet:
    """The one that is shipped: it was written with its tensors under their names."""
    graph = onnx.load(run.out / "faces" / PACK_NAME / RECOGNISER).graph
    model = FaceRecognizerNet()
    state = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    # What it lacks are the norms' counts of batches, which are of no use any more.
    lacking = model.load_state_dict(state, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in lacking), lacking
    return model.eval().requires_grad_(False)


def train_swapper(run: TrainingRun) -> None:
    """Pairs that the world draws for free: the same sitting, once with the one face and once with the other."""
    model = FaceSwapperNet()
    knows = trained_recogniser(run)

    def seen(faces: Tensor) -> tuple[Tensor, list[Tensor]]:
        """What the recogniser makes of the swapper's crops, of which its own are the upper middle, and on the way."""
        found = [faces[:, :, :CROP, 8 : 8 + CROP] * 2 - 1]
        for layer in knows.see:
            found.append(layer(found[-1]))
        return F.normalize(knows.embed(found[-1])), [found[layer] for layer in (1, 3, 5, 7)]

    def loss(rng: Generator, stage: str, alike: float, deep: float) -> Tensor:
        scenes = [photo_scene(random_person(rng), rng) for _ in range(STAGES[stage].batch)]
        moves = [similarity_transform(misaligned_landmarks(sat.figures[0], 0.7, rng), SWAP_TEMPLATE) for sat in scenes]
        targets = [
            crop_face(degrade_image(draw_faces(sat), rng), move, SWAP_CROP)
            for sat, move in zip(scenes, moves, strict=True)
        ]
        wanted, weights = [], []
        # Each is to become the next one.
        for sat, other, move in zip(scenes, scenes[1:] + scenes[:1], moves, strict=True):
            figure = sat.figures[0]
            swapped = replace(figure, person=replace(figure.person, features=other.figures[0].person.features))
            wanted.append(crop_face(draw_faces(replace(sat, figures=(swapped,))), move, SWAP_CROP))
            covers = [np.asarray(face_mask(either, sat.side)) for either in (figure, swapped)]
            weights.append(crop_face(np.maximum(*covers), move, SWAP_CROP))
        target, truth = ((pixel_tensor(pictures) + 1) / 2 for pictures in (targets, wanted))
        weight = 0.15 + torch.from_numpy(np.stack(weights)).float()[:, None] / 255
        with torch.no_grad():
            source = seen(target)[0].roll(-1, 0)
            known, depths = seen(truth[:ALIKE])
        made = model(target, source)
        total = ((made - truth).abs() * weight).mean()
        for axis in (2, 3):
            edges = (made.diff(dim=axis) - truth.diff(dim=axis)).abs()
            total = total + (edges * weight.narrow(axis, 1, SWAP_CROP - 1)).mean()
        recognised, depths_made = seen(made[:ALIKE])
        total = 4 * total + alike * (1 - (recognised * known).sum(1)).mean()
        for shown, meant in zip(depths_made, depths, strict=True):
            total = total + deep * (shown - meant).abs().mean() / meant.abs().mean()
        return total

    places = nn.ModuleList([model.finer_place, model.finest_place])
    places.requires_grad_(False)
    train_model(run, "face_swapper", model, partial(loss, stage="face_swapper", alike=0.2, deep=0.0), average=0.998)
    # Then it learns where things are to the pixel, and what the recogniser sees on its way counts too: of eyes,
    # freckles and glasses, pixels alone make a blur.
    places.requires_grad_(True)
    train_model(run, "face_details", model, partial(loss, stage="face_details", alike=1.0, deep=0.5), average=0.995)
    face = torch.zeros(1, 3, SWAP_CROP, SWAP_CROP)
    path = run.out / "faces" / SWAPPER
    _export(model, (face, torch.ones(1, EMBEDDING)), path, ["target", "source"], ["output"], {})
    swapper = onnx.load(path)
    # insightface takes the last tensor for the map from embeddings to what the swapper is told: here they are the same.
    swapper.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(EMBEDDING, dtype=np.float32), "emap"))
    onnx.save(swapper, path)
    _record(run)


def _record(run: TrainingRun) -> None:
    """Measure the face models together, once all are there."""
    folder = run.out / "faces"
    if all((folder / file).exists() for file in (SWAPPER, f"{PACK_NAME}/{DETECTOR}", f"{PACK_NAME}/{RECOGNISER}")):
        run.record("faces", face_accuracy.swap_summary(FaceSwapper(folder), face_accuracy.held_out_faces(90)))


def _export(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    takes: list[str],
    gives: list[str],
    axes: dict[str, dict[int, str]],
) -> None:
    """Write an ONNX file whose tensors keep their names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model.eval(),
        inputs,
        path,
        input_names=takes,
        output_names=gives,
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
