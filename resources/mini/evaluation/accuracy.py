"""The mini models, as they are shipped, held against the drawn truth; training and benchmarks measure with these."""

from __future__ import annotations

from collections.abc import Sequence
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
    difference,
    draw_image,
    preference,
    sketch_drawing,
    taste_v1,
    taste_v2,
)

HELD_OUT_SEED = 987_654_321
"""Drawings for measuring come from here; training never draws from it."""


def held_out_drawings(count: int, spoiled: bool) -> tuple[list[Drawing], list[Image.Image]]:
    """Drawings of random scenes and their pictures."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    drawings = [sketch_drawing(SCENES[i], rng) for i in rng.integers(len(SCENES), size=count)]
    if spoiled:
        drawings = [add_flaws(d, rng) for d in drawings]
    return drawings, [Image.fromarray(draw_image(d, rng)) for d in drawings]


def clip_accuracy(encoder: Any, count: int = 512) -> dict[str, float]:
    """Per attribute, how often the true caption beats those that differ in this attribute alone.

    `encoder` is a `ClipEncoder`.
    """
    drawings, pictures = held_out_drawings(count, spoiled=False)
    said = dict(zip(SCENES, encoder.texts([scene.caption for scene in SCENES]), strict=True))
    right = dict.fromkeys(ATTRIBUTES, 0)
    for drawing, seen in zip(drawings, encoder.embed(pictures), strict=True):
        for name, values in ATTRIBUTES.items():
            offered = [s for value in values if (s := replace(drawing.scene, **{name: value})) in said]
            right[name] += max(offered, key=lambda scene: float(said[scene] @ seen)) == drawing.scene
    return {name: right[name] / count for name in ATTRIBUTES}


def aesthetic_correlation(encoder: Any, v1: Any, v2: Any, count: int = 1000) -> dict[str, float]:
    """Spearman's rank correlation of each `AestheticHead` with the jury it learnt from."""
    drawings, pictures = held_out_drawings(count, spoiled=True)
    seen = encoder.embed(pictures)
    return {
        "v1": float(spearmanr(v1.score_embeddings(seen), [taste_v1(d) for d in drawings]).statistic),
        "v2": float(spearmanr(v2.score_embeddings(seen), [taste_v2(d) for d in drawings]).statistic),
    }


def preference_groups(rng: Generator, prompts: int, group: int) -> tuple[list[DrawnScene], list[Drawing]]:
    """For each of `prompts` scenes, `group` drawings: some of it, some with attributes changed, some spoiled."""
    scenes = [SCENES[i] for i in rng.integers(len(SCENES), size=prompts)]
    asked = [scene.briefer()[rng.integers(3)] for scene in scenes]
    drawings = []
    for scene in scenes:
        for _ in range(group):
            drawing = sketch_drawing(_varied(scene, rng), rng)
            drawings.append(add_flaws(drawing, rng) if rng.random() < 0.6 else drawing)
    return asked, drawings


def _varied(scene: DrawnScene, rng: Generator) -> DrawnScene:
    """The scene with three attributes changed at the most."""
    for _ in range(int(rng.integers(0, 4))):
        name = str(rng.choice(list(ATTRIBUTES)))
        changed = replace(scene, **{name: str(rng.choice(ATTRIBUTES[name]))})
        scene = changed if changed.colour != changed.background else scene
    return scene


def hps_correlation(encoder: Any, prompts: int = 60, group: int = 24) -> dict[str, float]:
    """Spearman's rank correlation with the true preference: within one prompt (mean), and over all."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    asked, drawings = preference_groups(rng, prompts, group)
    seen = encoder.embed([Image.fromarray(draw_image(d, rng)) for d in drawings]).reshape(prompts, group, -1)
    score = np.einsum("pgw,pw->pg", seen, encoder.texts([scene.caption for scene in asked]))
    truth = np.array([preference(d, asked[i // group]) for i, d in enumerate(drawings)]).reshape(prompts, group)
    within = [spearmanr(a, b).statistic for a, b in zip(score, truth, strict=True)]
    overall = spearmanr(score.ravel(), truth.ravel()).statistic
    return {"within_prompt": float(np.mean(within)), "overall": float(overall)}


def drawing_pairs(rng: Generator, count: int) -> list[tuple[Drawing, Drawing]]:
    """Drawings and others made of them: attributes changed, then half of them moved and resized, a third spoiled."""
    found = []
    for _ in range(count):
        one = sketch_drawing(SCENES[rng.integers(len(SCENES))], rng)
        other = replace(sketch_drawing(_varied(one.scene, rng), rng), shade=one.shade)
        kept = {"x"} if one.scene.position == other.scene.position else set()
        kept |= {"y"} | ({"radius"} if one.scene.size == other.scene.size else set())
        other = replace(other, **{name: getattr(one, name) for name in kept})
        if rng.random() < 0.5:
            dx, dy, dr = (float(v) for v in rng.uniform(-1, 1, 3) * (8, 8, 3))
            other = replace(other, x=other.x + dx, y=other.y + dy, radius=other.radius + dr)
        found.append((one, add_flaws(other, rng) if rng.random() < 0.33 else other))
    return found


def lpips_correlation(lpips: Any, count: int = 600) -> dict[str, float]:
    """Spearman's rank correlation of an `Lpips`' distance with how unlike two drawings are.

    Over pairs that differ in anything, and over those of which one is the other recoloured, moved or resized.
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
    found = {}
    for kind, held in kinds.items():
        distances = []
        for start in range(0, count, 16):
            left, right = zip(*held[start : start + 16], strict=True)
            seen = ([lpips.prepare(Image.fromarray(draw_image(d, rng))) for d in side] for side in (left, right))
            distances += list(lpips.distances(*seen))
        found[kind] = float(spearmanr(distances, [difference(*pair) for pair in held]).statistic)
    return found


def asked_scenes(count: int, turn: int = 0) -> list[DrawnScene]:
    """What is asked of the generator when it is measured, a third of it at each briefness; another `turn`, others."""
    order = np.random.default_rng([HELD_OUT_SEED, turn]).permutation(len(SCENES))
    return [SCENES[i].briefer()[place % 3] for place, i in enumerate(order[:count])]


def readings(
    engine: Engine, scenes: Sequence[DrawnScene], steps: int, guidance: float, first_seed: int
) -> list[Reading]:
    """What the rule reads in one generated picture for each scene; picture i has seed `first_seed` + i."""
    requests = [
        ImageRequest(scene.caption, None, steps, guidance, first_seed + i, SIDE, SIDE) for i, scene in enumerate(scenes)
    ]
    size = engine.batch_size
    calls = (engine.generate(requests[start : start + size]) for start in range(0, len(requests), size))
    return [read_drawing(np.asarray(picture)) for pictures in calls for picture in pictures]


def accuracy(scenes: Sequence[DrawnScene], read_scenes: Sequence[Reading]) -> dict[str, NDArray[np.float64]]:
    """For each attribute, 1 or 0 for each picture that was asked to show it; `mean`, for each picture, the share."""
    agreements = [r.agreement(s) for s, r in zip(scenes, read_scenes, strict=True)]
    table = {name: np.array([a[name] for a in agreements if name in a], dtype=np.float64) for name in ATTRIBUTES}
    return table | {"mean": np.array([np.mean(list(a.values())) for a in agreements])}


def picture_accuracy(engine: Engine, count: int = 96, steps: int = 20, guidance: float = 3.0) -> dict[str, float]:
    """Per attribute the share of generated pictures that show what was asked, their mean, and the mean deviation."""
    scenes = asked_scenes(count)
    found = readings(engine, scenes, steps, guidance, first_seed=0)
    shares = {name: float(values.mean()) for name, values in accuracy(scenes, found).items()}
    return shares | {"deviation": float(np.mean([r.deviation for r in found]))}


def asked_edits(count: int, turn: int = 0) -> list[Edit]:
    """What the editor is measured on, kept from its training, each kind in turn; another `turn`, others."""
    rng = np.random.default_rng([HELD_OUT_SEED, turn])
    kinds = list(CHANGES)
    return [compose_edit(kinds[index % len(kinds)], rng, held_out=True) for index in range(count)]


def edit_truths(
    editor: Editor, edits: Sequence[Edit], steps: int, guidance: float, first_seed: int, tries: int = 1
) -> list[list[EditTruth]]:
    """What became of `tries` edits of each; edit i has the seeds from `first_seed` + i · `tries`."""
    found = []
    for index, edit in enumerate(edits):
        source = draw_image(edit.source)
        request = EditRequest(Image.fromarray(source), edit.prompt, None, steps, guidance, EditNoise(0))
        requests = [replace(request, noise=EditNoise(first_seed + index * tries + j)) for j in range(tries)]
        size = editor.batch_size
        calls = (editor.edit(requests[start : start + size]) for start in range(0, tries, size))
        found.append(
            [edit_truth(source, edit.prompt, np.asarray(picture)) for pictures in calls for picture in pictures]
        )
    return found


def edit_shares(tried: Sequence[EditTruth]) -> dict[str, float]:
    """The shares of edits that carry out what the prompt says, keep the rest, and do both; and the mean score."""
    return {
        "carried_out": float(np.mean([t.carried_out for t in tried])),
        "preserved": float(np.mean([t.preserved for t in tried])),
        "both": float(np.mean([t.carried_out and t.preserved for t in tried])),
        "score": float(np.mean([t.score for t in tried])),
    }


def edit_accuracy(
    editor: Editor, edits: Sequence[Edit], steps: int, guidance: float, first_seed: int = 0
) -> dict[str, float]:
    """`edit_shares` of one try each; edit i has the seed `first_seed` + i."""
    return edit_shares([tries[0] for tries in edit_truths(editor, edits, steps, guidance, first_seed)])
