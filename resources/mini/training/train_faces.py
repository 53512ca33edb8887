"""Trains the face models on the drawn faces: parts of `python -m resources.mini.training.train`.

The detector is independent; the swapper needs the recogniser, whose embeddings are its input. Each trains in one
process.
"""

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
    FIRST_HELD_OUT_PERSON,
    FRAMES,
    GROUNDS,
    HAIRS,
    LIPS,
    NOSES,
    SIDE,
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
    SingleImageDetector,
)
from resources.mini.training.loop import STAGES, TrainingRun, pixel_tensor, train_model

FACE_SIZES = ((0, 44, 72), (72, 100, 140), (140, 190, 10_000))
"""For each stride, the bounds of the face sizes (root of a box's area, in pixels) of its two anchors."""

IDENTITY_SAMPLES = 6
"""The number of swapped faces per batch that the recogniser evaluates."""


def random_person(rng: Generator) -> Person:
    """Return a random person of the training set."""
    return make_person(int(rng.integers(FIRST_HELD_OUT_PERSON)))


def face_scene(rng: Generator) -> FaceScene:
    """Return a scene for detection: mostly with one or several faces, some at the edge or very large, some without."""
    count = int(rng.choice(4, p=(0.15, 0.45, 0.25, 0.15)))
    scene = make_scene([random_person(rng) for _ in range(count)], rng, at_edge=rng.random() < 0.25)
    if count == 1 and rng.random() < 0.25:
        size = float(rng.uniform(1.2, 2.1))
        x, y = (float(v) for v in SIDE / 2 + rng.uniform(-20, 20, 2))
        figure = scene.figures[0]
        scene = replace(scene, figures=(replace(figure, pose=replace(figure.pose, x=x, y=y, size=size)),))
    return scene if rng.random() < 0.8 else replace(scene, things=0)


def degrade_image(image: NDArray[np.uint8], rng: Generator) -> NDArray[np.uint8]:
    """Return the image, with a little noise one time in two."""
    if rng.random() < 0.5:
        return image
    noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(1, 7)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


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
    image = torch.zeros(1, 3, SIDE, SIDE)
    folder = run.out / "faces" / PACK_NAME
    _export(SingleImageDetector(model), (image,), folder / DETECTOR, ["picture"], names, axes)
    (folder / "config.json").write_text(json.dumps({"det_size": SIDE}) + "\n")
    _record(run)


def _cells(stride: int) -> NDArray[np.float32]:
    """Return (cells, 2), x and y of the cells' corners, insightface's reference points."""
    y, x = np.mgrid[0 : SIDE // stride, 0 : SIDE // stride]
    return (np.stack([x, y], axis=-1).reshape(-1, 2) * stride).astype(np.float32)


def detection_loss(model: FaceDetectorNet, images: Tensor, figures: Sequence[Sequence[FaceFigure]]) -> Tensor:
    """Return the focal loss of the scores plus, for faces, the errors of box (GIoU) and key points."""
    outputs = model(images)
    truths = [
        [torch.from_numpy(np.stack(part)) for part in zip(*(_truth(level, some) for some in figures), strict=True)]
        for level in range(len(STRIDES))
    ]
    count = max(1, sum(int((target_labels == 1).sum()) for target_labels, _, _ in truths))
    total = torch.zeros(())
    for level, (target_labels, boxes, points) in enumerate(truths):
        scores, sides, offsets = outputs[level][..., 0], outputs[level + 3], outputs[level + 6]
        is_face = target_labels == 1
        probability = scores.clamp(1e-5, 1 - 1e-5)
        correct = torch.where(is_face, probability, 1 - probability)
        focal = (1 - correct) ** 2 * -correct.log() * (target_labels >= 0)
        total = total + focal.sum() / count
        if is_face.any():
            total = total + _box_loss(sides[is_face], boxes[is_face]).sum() / count
            point_error = F.smooth_l1_loss(offsets[is_face], points[is_face], reduction="sum", beta=0.1)
            total = total + point_error / 5 / count
    return total


def _truth(
    level: int, figures: Sequence[FaceFigure]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Return for each anchor of a level 1 (face), 0 (none) or −1 (ignored), its sides and key points, in strides."""
    stride, reach = STRIDES[level], FACE_SIZES[level]
    cells = _cells(stride)
    target_labels = np.zeros((len(cells), ANCHORS), np.int64)
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
                target_labels[middle, anchor] = 1
                sides[middle, anchor] = (
                    np.concatenate([cells - (left, top), (right, bottom) - cells], 1)[middle] / stride
                )
                points[middle, anchor] = (figure.landmarks[None] - cells[:, None]).reshape(-1, 10)[middle] / stride
                rim &= ~middle
            if 0.7 * low <= size < 1.4 * high:
                target_labels[rim & (target_labels[:, anchor] == 0), anchor] = -1
    return target_labels.reshape(-1), sides.reshape(-1, 4), points.reshape(-1, 10)


def _box_loss(sides: Tensor, target_sides: Tensor) -> Tensor:
    """Return 1 − GIoU (Rezatofighi et al. 2019) of boxes given by their distances from a common point."""
    sides = sides.clamp(min=0.01)
    inner, outer = torch.minimum(sides, target_sides), torch.maximum(sides, target_sides)

    def area(box: Tensor) -> Tensor:
        return (box[:, 0] + box[:, 2]).clamp(min=0) * (box[:, 1] + box[:, 3]).clamp(min=0)

    union = area(sides) + area(target_sides) - area(inner)
    return 2 - area(inner) / union - union / area(outer)


def person_features(people: Sequence[Person]) -> Tensor:
    """Return (n, features) in 0 to 1: all identifying features, categorical ones one-hot."""
    rows = []
    for features in (person.features for person in people):
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


def similar_person(person: Person, rng: Generator) -> Person:
    """Return a person who shares half of the features."""
    other = random_person(rng)
    names = [field.name for field in fields(person.features) if rng.random() < 0.5]
    return replace(person, features=replace(person.features, **{name: getattr(other.features, name) for name in names}))


def photo_scene(person: Person, rng: Generator) -> FaceScene:
    """Return a small scene of one person with a random look, pose, expression and light; one in ten is cut off."""
    size = float(rng.uniform(0.4, 1.4))
    side = int(150 * size)
    out = rng.uniform(-45, 45, 2) * size * (rng.random() < 0.1)
    x, y = (float(v) for v in (0.5 * side, 0.53 * side) + rng.uniform(-6, 6, 2) * size + out)
    dressed = replace(random_person(rng), features=person.features)
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
    """Return a figure's landmarks with a detector's error of `slip` pixels of ArcFace's crop."""
    return figure.landmarks + rng.normal(0, slip * figure.pose.size, (5, 2)).astype(np.float32)


def aligned_faces(scenes: Sequence[FaceScene], rng: Generator) -> list[NDArray[np.uint8]]:
    """Return the first face of each scene as insightface crops it for ArcFace: black beyond the edge."""
    crops = []
    for scene in scenes:
        transform = similarity_transform(misaligned_landmarks(scene.figures[0], 1.0, rng), ARCFACE)
        crops.append(cv2.warpAffine(degrade_image(draw_faces(scene), rng), transform, (CROP, CROP)).astype(np.uint8))
    return crops


def train_recogniser(run: TrainingRun) -> None:
    """Train the recogniser: supervised contrast (Khosla et al. 2020), and classification of the features."""
    model = FaceRecognizerNet()
    trainee = nn.ModuleDict({"model": model, "tell": nn.Linear(EMBEDDING, person_features([make_person(0)]).shape[1])})
    looks = 3

    def loss(rng: Generator) -> Tensor:
        people = [random_person(rng) for _ in range(STAGES["face_recogniser"].batch // looks // 2)]
        people += [similar_person(person, rng) for person in people]
        crops = aligned_faces([photo_scene(person, rng) for person in people for _ in range(looks)], rng)
        embeddings = F.normalize(model(pixel_tensor(crops)))
        identity = torch.arange(len(people)).repeat_interleave(looks)
        similarity = (embeddings @ embeddings.T * 16).fill_diagonal_(-1e4)
        same = (identity[:, None] == identity[None]).float().fill_diagonal_(0)
        contrast = -(similarity.log_softmax(1) * same).sum(1).mean() / (looks - 1)
        feature_logits = trainee["tell"](embeddings * EMBEDDING**0.5)
        return contrast + 4 * F.binary_cross_entropy_with_logits(
            feature_logits, person_features(people).repeat_interleave(looks, 0)
        )

    train_model(run, "face_recogniser", trainee, loss)
    axes = {"face": {0: "faces"}, "embedding": {0: "faces"}}
    face = torch.zeros(1, 3, CROP, CROP)
    _export(model, (face,), run.out / "faces" / PACK_NAME / RECOGNISER, ["face"], ["embedding"], axes)
    _record(run)


def load_trained_recogniser(run: TrainingRun) -> FaceRecognizerNet:
    """Return the shipped recogniser, read from its ONNX file, which keeps the tensors' names."""
    graph = onnx.load(run.out / "faces" / PACK_NAME / RECOGNISER).graph
    model = FaceRecognizerNet()
    state = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    # Only the norms' batch counts are missing, which inference does not use.
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return model.eval().requires_grad_(False)


def train_swapper(run: TrainingRun) -> None:
    """Train the swapper on pairs of the same scene with one face and with another."""
    model = FaceSwapperNet()
    recogniser = load_trained_recogniser(run)

    def recognise(faces: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the recogniser's embeddings and features of the swapper's crops, whose upper middle are its own."""
        features = [faces[:, :, :CROP, 8 : 8 + CROP] * 2 - 1]
        for layer in recogniser.see:
            features.append(layer(features[-1]))
        return F.normalize(recogniser.embed(features[-1])), [features[layer] for layer in (1, 3, 5, 7)]

    def loss(rng: Generator, stage: str, identity_weight: float, feature_weight: float) -> Tensor:
        scenes = [photo_scene(random_person(rng), rng) for _ in range(STAGES[stage].batch)]
        transforms = [
            similarity_transform(misaligned_landmarks(scene.figures[0], 0.7, rng), SWAP_TEMPLATE) for scene in scenes
        ]
        targets = [
            crop_face(degrade_image(draw_faces(scene), rng), transform, SWAP_CROP)
            for scene, transform in zip(scenes, transforms, strict=True)
        ]
        truths, weights = [], []
        # Each face becomes the next one.
        for scene, other, transform in zip(scenes, scenes[1:] + scenes[:1], transforms, strict=True):
            figure = scene.figures[0]
            swapped = replace(figure, person=replace(figure.person, features=other.figures[0].person.features))
            truths.append(crop_face(draw_faces(replace(scene, figures=(swapped,))), transform, SWAP_CROP))
            covers = [np.asarray(face_mask(either, scene.side)) for either in (figure, swapped)]
            weights.append(crop_face(np.maximum(*covers), transform, SWAP_CROP))
        target, truth = ((pixel_tensor(images) + 1) / 2 for images in (targets, truths))
        weight = 0.15 + torch.from_numpy(np.stack(weights)).float()[:, None] / 255
        with torch.no_grad():
            source = recognise(target)[0].roll(-1, 0)
            known, depths = recognise(truth[:IDENTITY_SAMPLES])
        output = model(target, source)
        total = ((output - truth).abs() * weight).mean()
        for axis in (2, 3):
            edges = (output.diff(dim=axis) - truth.diff(dim=axis)).abs()
            total = total + (edges * weight.narrow(axis, 1, SWAP_CROP - 1)).mean()
        recognised, depths_output = recognise(output[:IDENTITY_SAMPLES])
        total = 4 * total + identity_weight * (1 - (recognised * known).sum(1)).mean()
        for actual, expected in zip(depths_output, depths, strict=True):
            total = total + feature_weight * (actual - expected).abs().mean() / expected.abs().mean()
        return total

    places = nn.ModuleList([model.finer_place, model.finest_place])
    places.requires_grad_(False)
    train_model(
        run,
        "face_swapper",
        model,
        partial(loss, stage="face_swapper", identity_weight=0.2, feature_weight=0.0),
        average=0.998,
    )
    # Then positions are trained too, with a loss on the recogniser's features: a loss on pixels alone blurs eyes,
    # freckles and glasses.
    places.requires_grad_(True)
    train_model(
        run,
        "face_details",
        model,
        partial(loss, stage="face_details", identity_weight=1.0, feature_weight=0.5),
        average=0.995,
    )
    face = torch.zeros(1, 3, SWAP_CROP, SWAP_CROP)
    path = run.out / "faces" / SWAPPER
    _export(model, (face, torch.ones(1, EMBEDDING)), path, ["target", "source"], ["output"], {})
    swapper = onnx.load(path)
    # insightface takes the last tensor as the map from embeddings to the swapper's input: here the identity.
    swapper.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(EMBEDDING, dtype=np.float32), "emap"))
    onnx.save(swapper, path)
    _record(run)


def _record(run: TrainingRun) -> None:
    """Record the face models' results once all are trained."""
    folder = run.out / "faces"
    if all((folder / file).exists() for file in (SWAPPER, f"{PACK_NAME}/{DETECTOR}", f"{PACK_NAME}/{RECOGNISER}")):
        run.record("faces", face_accuracy.swap_summary(FaceSwapper(folder), face_accuracy.held_out_faces(90)))


def _export(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    input_names: list[str],
    output_names: list[str],
    axes: dict[str, dict[int, str]],
) -> None:
    """Write an ONNX file whose tensors keep their parameter names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model.eval(),
        inputs,
        path,
        input_names=input_names,
        output_names=output_names,
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
