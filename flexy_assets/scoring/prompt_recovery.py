"""Find which candidate prompt each image was made from: by CLIP, by recorded CLIP scores and by the sweep's plan.

The plan: a sweep of m prompts has each of them once in every m consecutive images. Plain functions of arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import log_softmax, xlog1py

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]

SURE = 0.9
"""The least confidence at which a prompt counts as found; `python -m benchmarks.prompts` says how many are right."""

TOLERANCES = (1e-5, 1e-4, 3e-4, 1e-3)
"""How near to a recorded score the cosine may be that it is: half precision moves a cosine by the last."""

LEAST_REPRODUCED = 0.25
"""The least share of the recorded scores that candidates must reproduce, beyond chance, for them to say anything."""

SCALES = np.geomspace(4, 100, 16)
"""What cosines may be multiplied with to be logarithms of likelihoods; CLIP itself was trained with 100."""

MAX_UNORDERED = 4_000
"""Images in joined cycles, at most: of more that share a time, each is taken for itself."""

_CERTAIN = 50.0  # logarithm of a likelihood ratio
_SIGNIFICANT = 1.92  # difference of log-likelihoods: half of chi-square's 95 % point
_ITERATIONS = 100


@dataclass(frozen=True)
class Recovery:
    """By image (n,), the index of its prompt among the candidates and how sure it is: 0 to 1."""

    prompts: Integers
    confidence: Floats

    @property
    def sure(self) -> NDArray[np.bool_]:
        return self.confidence >= SURE


def recover_prompts(
    cosines: Floats,
    runs: Integers,
    places: Integers,
    known: Integers | None = None,
    recorded: Floats | None = None,
    encoders: Sequence[Floats] = (),
    tolerances: Sequence[float] = TOLERANCES,
    last_places: Integers | None = None,
) -> Recovery:
    """Return the prompt of each of n images among m candidates.

    `cosines` (n, m) are those of image and text embeddings. `runs` (n,) number the images' runs and `places` (n,)
    their places in them, from 0; an image whose order among others is unknown may have any up to `last_places` (n,).
    `known` (n,) are the prompts that are known, -1 for the others. `recorded` (n,) are
    the recorded CLIP scores, NaN where there is none, and `encoders` the cosines (n, m) by each encoder that may have
    made them, without it `cosines`.

    The confidence is the share that a pair has in all assignments of a cycle's prompts to its images, each weighted by
    its likelihood. Images that do not follow the plan, or that no candidate fits, get a low one: the scale of the
    likelihoods is the one by which the images of a run, each for itself, most probably get different prompts.
    """
    count = cosines.shape[1]
    # A prompt that every image resembles would win without it.
    centred = cosines - cosines.mean(axis=0) if len(cosines) > 1 else cosines
    evidence = np.zeros_like(centred)
    if recorded is not None:
        evidence += _reproduce(recorded, encoders or [cosines], tolerances)
    if known is not None:
        evidence[known >= 0, known[known >= 0]] += _CERTAIN
    cycles = _cycles(runs, places // count, (places if last_places is None else last_places) // count)
    prompts, confidence = np.zeros(len(runs), np.intp), np.zeros(len(runs))
    overall = _fit_scale(centred, evidence, cycles)
    for run in np.unique(runs):
        of_run = [(cycle, repeats) for cycle, repeats in cycles if runs[cycle[0]] == run]
        # A run of few images says little of the scale.
        scale = min(overall, _fit_scale(centred, evidence, of_run)) if len(np.unique(runs)) > 1 else overall
        for cycle, repeats in of_run:
            shares, _ = _share_assignments(_likelihoods(centred[cycle], evidence[cycle], scale), repeats)
            if len(cycle) > MAX_UNORDERED:
                images, found = np.arange(len(cycle)), shares.argmax(axis=1)
            else:
                images, found = linear_sum_assignment(np.log(np.tile(shares, repeats) + 1e-300), maximize=True)
            prompts[cycle[images]] = found % count
            confidence[cycle[images]] = shares[images, found % count]
    return Recovery(prompts, confidence)


def _cycles(runs: Integers, first: Integers, last: Integers) -> list[tuple[Integers, int]]:
    """Return the images of each cycle and how often it holds each prompt: those that an image may be in are one."""
    cycles = []
    for run in np.unique(runs):
        images = np.flatnonzero(runs == run)
        joined = np.zeros(last[images].max() + 1, bool)  # with the cycle before it
        for image in images[first[images] < last[images]]:
            joined[first[image] + 1 : last[image] + 1] = True
        numbers = np.cumsum(~joined)
        for number in np.unique(numbers[first[images]]):
            cycles.append((images[numbers[first[images]] == number], int((numbers == number).sum())))
    return cycles


def reproduced_scores(
    recorded: Floats, encoders: Sequence[Floats], tolerances: Sequence[float] = TOLERANCES
) -> NDArray[np.bool_]:
    """Return (n, m) whether a pair's cosine is the recorded score (n,), by the encoder that may have made most."""
    return _reproduce(recorded, encoders, tolerances) > 0


def _reproduce(recorded: Floats, encoders: Sequence[Floats], tolerances: Sequence[float]) -> Floats:
    """Return (n, m) logarithms of likelihood ratios: how much a recorded score (n,) speaks for each candidate.

    A pair speaks for itself where its cosine is within a tolerance of the score: the more, the more of the scores
    have such a pair and the rarer one is by chance. Encoder and tolerance are those by which most is said.
    """
    scored = np.flatnonzero(np.isfinite(recorded))
    most, evidence = 0.0, np.zeros_like(encoders[0])
    scores, others = recorded[scored], np.roll(recorded[scored], 1)  # what another image's score fits, fits by chance
    for cosines, tolerance in product(encoders if len(scored) > 1 else [], tolerances):
        equal, by_chance = (abs(cosines[scored] - each[:, None]) <= tolerance for each in (scores, others))
        found, expected = equal.any(axis=1).mean(), by_chance.any(axis=1).mean()
        share = min(max((found - expected) / max(1 - expected, 1e-9), 0.0), 0.999)
        ratio = np.log1p(share / ((1 - share) * max(by_chance.mean(), 1 / by_chance.size)))
        if expected < 0.5 and share >= LEAST_REPRODUCED and share * ratio > most:
            most, evidence = share * ratio, np.zeros_like(cosines)
            evidence[scored] = np.where(equal, ratio, 0.0)
    return np.minimum(evidence, _CERTAIN)


def _likelihoods(centred: Floats, evidence: Floats, scale: float) -> Floats:
    likelihoods: Floats = np.exp(log_softmax(scale * centred + evidence, axis=1))
    return likelihoods


def _share_assignments(likelihoods: Floats, repeats: int = 1) -> tuple[Floats, float]:
    """Return each pair's share (k, m) in the assignments of m prompts to k images, and the logarithm of their sum.

    Each prompt is there `repeats` times.
    By Sinkhorn's scaling of rows and columns, which understates what is nearly certain; the sum by Schrijver's bound.
    """
    if len(likelihoods) > MAX_UNORDERED:
        return likelihoods, 0.0
    likelihoods = np.tile(likelihoods, repeats)
    images, prompts = likelihoods.shape
    if images > prompts:
        raise ValueError(f"{images} images in a cycle of {prompts} prompts")
    weights = np.vstack([likelihoods, np.full((prompts - images, prompts), 1 / prompts)])  # images that are missing
    columns = np.ones(prompts)
    for _ in range(_ITERATIONS):
        rows = 1 / (weights @ columns)
        columns = 1 / (rows @ weights)
    rows = 1 / (weights @ columns)
    shares = np.minimum(rows[:, None] * weights * columns, 1)
    total = xlog1py(1 - shares, -np.minimum(shares, 1 - 1e-12)).sum() - np.log(rows).sum() - np.log(columns).sum()
    return shares[:images].reshape(images, repeats, -1).sum(axis=1), float(total)


def _fit_scale(centred: Floats, evidence: Floats, cycles: Sequence[tuple[Integers, int]]) -> float:
    """Return the scale at which images that each draw a prompt by their likelihoods most probably follow the plan.

    Of those that are not significantly less probable (95 %) it is the least: of a few images little is certain.
    """
    totals = np.zeros(len(SCALES))
    for cycle, repeats in cycles:
        likelihoods = (_likelihoods(centred[cycle], evidence[cycle], scale) for scale in SCALES)
        totals += [_share_assignments(each, repeats)[1] for each in likelihoods]
    return float(SCALES[np.flatnonzero(totals >= totals.max() - _SIGNIFICANT)[0]])
