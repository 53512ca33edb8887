"""Measures the shipped mini models against the ground truth, for training, tests and benchmarks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import spearmanr

from resources.engines import EditNoise, Editor, EditRequest, Engine, ImageRequest
from resources.mini.edits import CHANGES, Edit, EditTruth, compose_edit, edit_truth
from resources.mini.reader import Reading, read_drawing
from resources.mini.world import (
    ATTRIBUTES,
    PALETTE,
    SCENES,
    SIDE,
    Drawing,
    DrawnScene,
    add_flaws,
    aesthetic_rule_v1,
    aesthetic_rule_v2,
    difference,
    draw_image,
    preference,
    sketch_drawing,
)

HELD_OUT_SEED = 987_654_321
"""Seed of the drawings for evaluation; training never uses it."""


def held_out_drawings(count: int, flawed: bool) -> tuple[list[Drawing], list[Image.Image]]:
    """Return held-out drawings of random scenes and their images."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    drawings = [sketch_drawing(SCENES[i], rng) for i in rng.integers(len(SCENES), size=count)]
    if flawed:
        drawings = [add_flaws(d, rng) for d in drawings]
    return drawings, [Image.fromarray(draw_image(d, rng)) for d in drawings]


def clip_accuracy(encoder: Any, count: int = 512) -> dict[str, float]:
    """Return, per attribute, the share of images whose true caption scores higher than those that differ in it only.

    `encoder` is a `ClipEncoder`.
    """
    drawings, images = held_out_drawings(count, flawed=False)
    text_vector_of = dict(zip(SCENES, encoder.texts([scene.caption for scene in SCENES]), strict=True))
    right = dict.fromkeys(ATTRIBUTES, 0)
    for drawing, image_vectors in zip(drawings, encoder.embed(images), strict=True):
        for name, values in ATTRIBUTES.items():
            candidates = [s for value in values if (s := replace(drawing.scene, **{name: value})) in text_vector_of]
            right[name] += (
                max(candidates, key=lambda scene: float(text_vector_of[scene] @ image_vectors)) == drawing.scene
            )
    return {name: right[name] / count for name in ATTRIBUTES}


def aesthetic_correlation(encoder: Any, heads: Mapping[str, Any], count: int = 1000) -> dict[str, float]:
    """Return Spearman's rank correlation of each `AestheticHead` with the rule that it was trained on, by its name."""
    drawings, images = held_out_drawings(count, flawed=True)
    image_vectors, correlations = encoder.embed(images), {}
    for name, head in heads.items():
        rule = aesthetic_rule_v2 if name == "aesthetic_v2" else aesthetic_rule_v1
        truth = [rule(drawing) for drawing in drawings]
        correlations[name] = float(spearmanr(head.score_embeddings(image_vectors), truth).statistic)
    return correlations


def preference_groups(rng: Generator, prompts: int, group: int) -> tuple[list[DrawnScene], list[Drawing]]:
    """Return `prompts` scenes and for each `group` drawings: some of it, some with other attributes, some flawed."""
    scenes = [SCENES[i] for i in rng.integers(len(SCENES), size=prompts)]
    requested = [scene.with_less_detail()[rng.integers(3)] for scene in scenes]
    drawings = []
    for scene in scenes:
        for _ in range(group):
            drawing = sketch_drawing(_vary_scene(scene, rng), rng)
            drawings.append(add_flaws(drawing, rng) if rng.random() < 0.6 else drawing)
    return requested, drawings


def _vary_scene(scene: DrawnScene, rng: Generator) -> DrawnScene:
    """Return the scene with at most three attributes changed."""
    for _ in range(int(rng.integers(0, 4))):
        name = str(rng.choice(list(ATTRIBUTES)))
        changed = replace(scene, **{name: str(rng.choice(ATTRIBUTES[name]))})
        scene = changed if changed.colour != changed.background else scene
    return scene


def hps_correlation(encoder: Any, prompts: int = 60, group: int = 24) -> dict[str, float]:
    """Return Spearman's rank correlation with the true preference: the mean within a prompt, and overall."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    requested, drawings = preference_groups(rng, prompts, group)
    image_vectors = encoder.embed([Image.fromarray(draw_image(d, rng)) for d in drawings]).reshape(prompts, group, -1)
    score = np.einsum("pgw,pw->pg", image_vectors, encoder.texts([scene.caption for scene in requested]))
    truth = np.array([preference(d, requested[i // group]) for i, d in enumerate(drawings)]).reshape(prompts, group)
    within = [spearmanr(a, b).statistic for a, b in zip(score, truth, strict=True)]
    overall = spearmanr(score.ravel(), truth.ravel()).statistic
    return {"within_prompt": float(np.mean(within)), "overall": float(overall)}


def drawing_pairs(rng: Generator, count: int) -> list[tuple[Drawing, Drawing]]:
    """Return pairs of a drawing and a variant: attributes changed, half of them moved and resized, a third flawed."""
    pairs = []
    for _ in range(count):
        one = sketch_drawing(SCENES[rng.integers(len(SCENES))], rng)
        other = replace(sketch_drawing(_vary_scene(one.scene, rng), rng), shade=one.shade)
        equal_fields = {"x"} if one.scene.position == other.scene.position else set()
        equal_fields |= {"y"} | ({"radius"} if one.scene.size == other.scene.size else set())
        other = replace(other, **{name: getattr(one, name) for name in equal_fields})
        if rng.random() < 0.5:
            dx, dy, dr = (float(v) for v in rng.uniform(-1, 1, 3) * (8, 8, 3))
            other = replace(other, x=other.x + dx, y=other.y + dy, radius=other.radius + dr)
        pairs.append((one, add_flaws(other, rng) if rng.random() < 0.33 else other))
    return pairs


def lpips_correlation(lpips: Any, count: int = 600) -> dict[str, float]:
    """Return Spearman's rank correlation of an `LpipsScorer`'s distance with the drawings' distance.

    Over pairs that differ in anything, and over pairs where one is the other recoloured, moved or resized.
    """
    rng = np.random.default_rng([HELD_OUT_SEED, 2])
    kinds: dict[str, list[tuple[Drawing, Drawing]]] = {"all": drawing_pairs(rng, count)}
    kinds |= {"recoloured": [], "moved": [], "resized": []}
    for one, _ in drawing_pairs(rng, count):
        inks = [colour for colour in PALETTE if colour != one.scene.background]
        scene = replace(one.scene, colour=str(rng.choice(inks)))
        amount = float(rng.uniform(0, 1))
        kinds["recoloured"].append((one, replace(one, scene=scene)))
        kinds["moved"].append((one, replace(one, x=one.x + 16 * amount * (1 if one.x < SIDE / 2 else -1))))
        kinds["resized"].append((one, replace(one, radius=one.radius * (1 - 0.5 * amount))))
    correlations = {}
    for kind, pairs in kinds.items():
        distances = []
        for start in range(0, count, 16):
            left, right = zip(*pairs[start : start + 16], strict=True)
            prepared = ([lpips.prepare(Image.fromarray(draw_image(d, rng))) for d in side] for side in (left, right))
            distances += list(lpips.distances(*prepared))
        correlations[kind] = float(spearmanr(distances, [difference(*pair) for pair in pairs]).statistic)
    return correlations


def held_out_scenes(count: int, turn: int = 0) -> list[DrawnScene]:
    """Return scenes to evaluate the engine on, a third at each level of detail; another `turn` returns others."""
    order = np.random.default_rng([HELD_OUT_SEED, turn]).permutation(len(SCENES))
    return [SCENES[i].with_less_detail()[place % 3] for place, i in enumerate(order[:count])]


def read_generated_images(
    engine: Engine, scenes: Sequence[DrawnScene], steps: int, guidance: float, first_seed: int
) -> list[Reading]:
    """Return the rule's reading of one generated image per scene; image i has seed `first_seed` + i."""
    requests = [
        ImageRequest(scene.caption, None, steps, guidance, first_seed + i, SIDE, SIDE) for i, scene in enumerate(scenes)
    ]
    size = engine.batch_size
    calls = (engine.generate(requests[start : start + size]) for start in range(0, len(requests), size))
    return [read_drawing(np.asarray(image)) for images in calls for image in images]


def attribute_agreement(scenes: Sequence[DrawnScene], readings: Sequence[Reading]) -> dict[str, NDArray[np.float64]]:
    """Return per attribute 1 or 0 for each image that was requested to show it; `mean` is the share per image."""
    agreements = [r.agreement(s) for s, r in zip(scenes, readings, strict=True)]
    table = {name: np.array([a[name] for a in agreements if name in a], dtype=np.float64) for name in ATTRIBUTES}
    return table | {"mean": np.array([np.mean(list(a.values())) for a in agreements])}


def picture_accuracy(engine: Engine, count: int = 96, steps: int = 20, guidance: float = 3.0) -> dict[str, float]:
    """Return per attribute the share of generated images that show it as requested, their mean, and the deviation."""
    scenes = held_out_scenes(count)
    readings = read_generated_images(engine, scenes, steps, guidance, first_seed=0)
    shares = {name: float(values.mean()) for name, values in attribute_agreement(scenes, readings).items()}
    return shares | {"deviation": float(np.mean([r.deviation for r in readings]))}


def held_out_edits(count: int, turn: int = 0) -> list[Edit]:
    """Return edits to evaluate the editor on, held out from its training; another `turn` returns others."""
    rng = np.random.default_rng([HELD_OUT_SEED, turn])
    kinds = list(CHANGES)
    return [compose_edit(kinds[index % len(kinds)], rng, held_out=True) for index in range(count)]


def edit_truths(
    editor: Editor, edits: Sequence[Edit], steps: int, guidance: float, first_seed: int, tries: int = 1
) -> list[list[EditTruth]]:
    """Return the evaluations of `tries` attempts per edit; edit i has the seeds from `first_seed` + i · `tries`."""
    truths = []
    for index, edit in enumerate(edits):
        source = draw_image(edit.source)
        request = EditRequest(Image.fromarray(source), edit.prompt, None, steps, guidance, EditNoise(0))
        requests = [replace(request, noise=EditNoise(first_seed + index * tries + j)) for j in range(tries)]
        size = editor.batch_size
        calls = (editor.edit(requests[start : start + size]) for start in range(0, tries, size))
        truths.append([edit_truth(source, edit.prompt, np.asarray(image)) for images in calls for image in images])
    return truths


def edit_shares(truths: Sequence[EditTruth]) -> dict[str, float]:
    """Return the shares of edits that carry out the prompt, preserve the rest, and do both, and the mean score."""
    return {
        "carried_out": float(np.mean([t.carried_out for t in truths])),
        "preserved": float(np.mean([t.preserved for t in truths])),
        "both": float(np.mean([t.carried_out and t.preserved for t in truths])),
        "score": float(np.mean([t.score for t in truths])),
    }


def edit_accuracy(
    editor: Editor, edits: Sequence[Edit], steps: int, guidance: float, first_seed: int = 0
) -> dict[str, float]:
    """Return `edit_shares` of one attempt each; edit i has the seed `first_seed` + i."""
    return edit_shares([tries[0] for tries in edit_truths(editor, edits, steps, guidance, first_seed)])
