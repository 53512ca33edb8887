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

from resources.engines import Engine, ImageRequest
from resources.mini.reader import Reading, read
from resources.mini.world import (
    ATTRIBUTES,
    SCENES,
    SIDE,
    Drawing,
    Scene,
    draw,
    preference,
    sketch,
    spoil,
    taste_v1,
    taste_v2,
)

HELD_OUT_SEED = 987_654_321
"""Drawings for measuring come from here; training never draws from it."""


def held_out(count: int, spoiled: bool) -> tuple[list[Drawing], list[Image.Image]]:
    """Drawings of random scenes and their pictures."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    drawings = [sketch(SCENES[i], rng) for i in rng.integers(len(SCENES), size=count)]
    if spoiled:
        drawings = [spoil(d, rng) for d in drawings]
    return drawings, [Image.fromarray(draw(d, rng)) for d in drawings]


def clip_accuracy(encoder: Any, count: int = 512) -> dict[str, float]:
    """Per attribute, how often the true caption beats those that differ in this attribute alone.

    `encoder` is a `ClipEncoder`.
    """
    drawings, pictures = held_out(count, spoiled=False)
    said = dict(zip(SCENES, encoder.texts([scene.caption for scene in SCENES]), strict=True))
    right = dict.fromkeys(ATTRIBUTES, 0)
    for drawing, seen in zip(drawings, encoder.embed(pictures), strict=True):
        for name, values in ATTRIBUTES.items():
            offered = [s for value in values if (s := replace(drawing.scene, **{name: value})) in said]
            right[name] += max(offered, key=lambda scene: float(said[scene] @ seen)) == drawing.scene
    return {name: right[name] / count for name in ATTRIBUTES}


def aesthetic_correlation(encoder: Any, v1: Any, v2: Any, count: int = 1000) -> dict[str, float]:
    """Spearman's rank correlation of each `AestheticHead` with the jury it learnt from."""
    drawings, pictures = held_out(count, spoiled=True)
    seen = encoder.embed(pictures)
    return {
        "v1": float(spearmanr(v1.marks(seen), [taste_v1(d) for d in drawings]).statistic),
        "v2": float(spearmanr(v2.marks(seen), [taste_v2(d) for d in drawings]).statistic),
    }


def offers(rng: Generator, prompts: int, group: int) -> tuple[list[Scene], list[Drawing]]:
    """For each of `prompts` scenes, `group` drawings: some of it, some with attributes changed, some spoiled."""
    scenes = [SCENES[i] for i in rng.integers(len(SCENES), size=prompts)]
    asked = [scene.briefer()[rng.integers(3)] for scene in scenes]
    drawings = []
    for scene in scenes:
        for _ in range(group):
            shown = scene
            for _ in range(int(rng.integers(0, 4))):
                name = str(rng.choice(list(ATTRIBUTES)))
                changed = replace(shown, **{name: str(rng.choice(ATTRIBUTES[name]))})
                shown = changed if changed.colour != changed.background else shown
            drawing = sketch(shown, rng)
            drawings.append(spoil(drawing, rng) if rng.random() < 0.6 else drawing)
    return asked, drawings


def hps_correlation(encoder: Any, prompts: int = 60, group: int = 24) -> dict[str, float]:
    """Spearman's rank correlation with the true preference: within one prompt (mean), and over all."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    asked, drawings = offers(rng, prompts, group)
    seen = encoder.embed([Image.fromarray(draw(d, rng)) for d in drawings]).reshape(prompts, group, -1)
    score = np.einsum("pgw,pw->pg", seen, encoder.texts([scene.caption for scene in asked]))
    truth = np.array([preference(d, asked[i // group]) for i, d in enumerate(drawings)]).reshape(prompts, group)
    within = [spearmanr(a, b).statistic for a, b in zip(score, truth, strict=True)]
    overall = spearmanr(score.ravel(), truth.ravel()).statistic
    return {"within_prompt": float(np.mean(within)), "overall": float(overall)}


def asked_scenes(count: int, turn: int = 0) -> list[Scene]:
    """What is asked of the generator when it is measured, a third of it at each briefness; another `turn`, others."""
    order = np.random.default_rng([HELD_OUT_SEED, turn]).permutation(len(SCENES))
    return [SCENES[i].briefer()[place % 3] for place, i in enumerate(order[:count])]


def readings(engine: Engine, scenes: Sequence[Scene], steps: int, guidance: float, first_seed: int) -> list[Reading]:
    """What the rule reads in one generated picture for each scene; picture i has seed `first_seed` + i."""
    requests = [
        ImageRequest(scene.caption, None, steps, guidance, first_seed + i, SIDE, SIDE) for i, scene in enumerate(scenes)
    ]
    size = engine.images_a_call
    calls = (engine.generate(requests[start : start + size]) for start in range(0, len(requests), size))
    return [read(np.asarray(picture)) for pictures in calls for picture in pictures]


def accuracy(scenes: Sequence[Scene], read_scenes: Sequence[Reading]) -> dict[str, NDArray[np.float64]]:
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
