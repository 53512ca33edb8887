"""The mini models held against the drawn truth; training records these and the benchmarks repeat them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from scipy.stats import spearmanr
from torch import Tensor

from resources.mini.reader import read
from resources.mini.world import (
    ATTRIBUTES,
    SCENES,
    Drawing,
    Scene,
    draw,
    preference,
    sketch,
    spoil,
    taste_v1,
    taste_v2,
)
from resources.scorers.aesthetic import AestheticHead, normalised

HELD_OUT_SEED = 987_654_321
"""Drawings for measuring come from here; training never draws from it."""


def pixels(pictures: Sequence[np.ndarray]) -> Tensor:
    """uint8 (h, w, 3) pictures to float32 (n, 3, h, w) in −1 to 1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def held_out(count: int, spoiled: bool) -> tuple[list[Drawing], Tensor]:
    """Drawings of scenes in random order and their pixels."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    drawings = [sketch(SCENES[i], rng) for i in rng.integers(len(SCENES), size=count)]
    if spoiled:
        drawings = [spoil(d, rng) for d in drawings]
    return drawings, pixels([draw(d, rng) for d in drawings])


@torch.no_grad()
def clip_accuracy(model: Any, words: Any, count: int = 512) -> dict[str, float]:
    """Per attribute, how often the true caption beats those that differ in this attribute alone."""
    drawings, pictures = held_out(count, spoiled=False)
    seen = normalised(model.get_image_features(pictures).pooler_output)
    right = dict.fromkeys(ATTRIBUTES, 0)
    for drawing, embedding in zip(drawings, seen, strict=True):
        for name, values in ATTRIBUTES.items():
            others = [replace(drawing.scene, **{name: value}) for value in values]
            others = [s for s in others if s.colour != s.background]
            texts = words([s.caption for s in others], padding=True, return_tensors="pt")
            said = normalised(model.get_text_features(**texts).pooler_output)
            right[name] += others[int((said @ embedding).argmax())] == drawing.scene
    return {name: right[name] / count for name in ATTRIBUTES}


@torch.no_grad()
def aesthetic_correlation(model: Any, v1: AestheticHead, v2: AestheticHead, count: int = 1000) -> dict[str, float]:
    """Spearman's rank correlation of each head with the jury it learnt from."""
    drawings, pictures = held_out(count, spoiled=True)
    seen = normalised(model.get_image_features(pictures).pooler_output)
    return {
        "v1": float(spearmanr(v1(seen), [taste_v1(d) for d in drawings]).statistic),
        "v2": float(spearmanr(v2(seen), [taste_v2(d) for d in drawings]).statistic),
    }


def offers(rng: Generator, prompts: int, group: int) -> tuple[list[Scene], list[Drawing]]:
    """For each of `prompts` scenes, `group` drawings: some of it, some with attributes changed, some spoiled."""
    asked = [SCENES[i] for i in rng.integers(len(SCENES), size=prompts)]
    drawings = []
    for scene in asked:
        for _ in range(group):
            shown = scene
            for _ in range(int(rng.integers(0, 4))):
                name = str(rng.choice(list(ATTRIBUTES)))
                changed = replace(shown, **{name: str(rng.choice(ATTRIBUTES[name]))})
                shown = changed if changed.colour != changed.background else shown
            drawing = sketch(shown, rng)
            drawings.append(spoil(drawing, rng) if rng.random() < 0.6 else drawing)
    return asked, drawings


@torch.no_grad()
def hps_correlation(model: Any, words: Any, prompts: int = 60, group: int = 24) -> dict[str, float]:
    """Spearman's rank correlation with the true preference: within one prompt (mean), and over all."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    asked, drawings = offers(rng, prompts, group)
    seen = normalised(model.get_image_features(pixels([draw(d, rng) for d in drawings])).pooler_output)
    said = normalised(
        model.get_text_features(**words([s.caption for s in asked], padding=True, return_tensors="pt")).pooler_output
    )
    score = (seen.view(prompts, group, -1) * said[:, None]).sum(-1).numpy()
    truth = np.array([preference(d, asked[i // group]) for i, d in enumerate(drawings)]).reshape(prompts, group)
    within = [spearmanr(a, b).statistic for a, b in zip(score, truth, strict=True)]
    return {
        "within_prompt": float(np.mean(within)),
        "overall": float(spearmanr(score.ravel(), truth.ravel()).statistic),
    }


@torch.no_grad()
def vae_quality(model: Any, count: int = 256) -> dict[str, float]:
    """Peak signal-to-noise ratio in dB, and how often the rule reads every attribute right after a round trip."""
    drawings, pictures = held_out(count, spoiled=False)
    again = model.decode(model.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
    psnr = 10 * torch.log10(4 / (again - pictures).pow(2).mean())
    shown = ((again + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    right = [all(read(p).agreement(d.scene).values()) for p, d in zip(shown, drawings, strict=True)]
    return {"psnr": float(psnr), "read_right": float(np.mean(right))}


def asked_scenes(count: int) -> list[Scene]:
    """The scenes asked of the generator when it is measured."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    return [SCENES[i] for i in rng.permutation(len(SCENES))[:count]]


def agreement(scenes: Sequence[Scene], pictures: Sequence[np.ndarray]) -> dict[str, float]:
    """Per attribute the share of pictures that show what was asked; `mean` over attributes; mean `deviation`."""
    readings = [read(p) for p in pictures]
    table = {n: [r.agreement(s)[n] for r, s in zip(readings, scenes, strict=True)] for n in ATTRIBUTES}
    result = {name: float(np.mean(values)) for name, values in table.items()}
    return result | {
        "mean": float(np.mean(list(result.values()))),
        "deviation": float(np.mean([r.deviation for r in readings])),
    }


def picture_accuracy(pipeline: Any, count: int = 96, steps: int = 20, guidance: float = 3.0) -> dict[str, float]:
    """What the rule reads in `count` generated pictures."""
    pipeline.set_progress_bar_config(disable=True)
    scenes = asked_scenes(count)
    pictures: list[np.ndarray] = []
    for start in range(0, count, 16):
        batch = scenes[start : start + 16]
        dice = [torch.Generator().manual_seed(start + i) for i in range(len(batch))]
        made = pipeline(
            [s.caption for s in batch],
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=64,
            width=64,
            generator=dice,
            output_type="np",
        ).images
        pictures.extend((made * 255).round().astype(np.uint8))
    return agreement(scenes, pictures)
