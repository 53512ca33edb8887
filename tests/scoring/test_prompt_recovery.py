"""Prompts are recovered from cosines, recorded scores and the plan; what does not fit is doubtful."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from flexy_assets.scoring import prompt_recovery
from flexy_assets.scoring.prompt_recovery import Recovery, recover_prompts, reproduced_scores

IMAGES, PROMPTS, WIDTH = 1_000, 100, 64


@dataclass(frozen=True)
class Sweep:
    """Images of one run in cycles, as cosines with the prompts, and each image's prompt."""

    cosines: NDArray[np.float64]
    made_from: NDArray[np.intp]

    @property
    def recorded(self) -> NDArray[np.float64]:
        return self.cosines[np.arange(len(self.cosines)), self.made_from].copy()

    def recover(self, rows: NDArray[np.intp] | slice = slice(None), **given: NDArray[np.float64]) -> Recovery:
        cosines = self.cosines[rows]
        return recover_prompts(cosines, np.zeros(len(cosines), int), np.arange(len(cosines)), **given)


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def draw_sweep(seed: int = 0, noise: float = 0.85) -> Sweep:
    """A sweep whose images are near their prompts, near a direction that all share, and noisy."""
    rng = np.random.default_rng(seed)
    texts = unit(rng.standard_normal((PROMPTS, WIDTH)) + 2 * rng.standard_normal(WIDTH))
    made_from = np.concatenate([rng.permutation(PROMPTS) for _ in range(IMAGES // PROMPTS)])
    images = unit(
        texts[made_from] + noise * unit(rng.standard_normal((IMAGES, WIDTH))) + unit(rng.standard_normal(WIDTH))
    )
    return Sweep(images @ texts.T, made_from)


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return draw_sweep()


def test_the_plan_finds_what_the_highest_cosine_does_not(sweep: Sweep) -> None:
    alone = (sweep.cosines.argmax(axis=1) == sweep.made_from).mean()
    found = sweep.recover()
    right = found.prompts == sweep.made_from
    # Of 1,000 images three standard errors are .02 at .95 and .009 at .99.
    assert alone < 0.9
    assert right.mean() > 0.95
    assert found.sure.mean() > 0.5
    assert right[found.sure].mean() > 0.99
    assert np.all((found.confidence >= 0) & (found.confidence <= 1))


def test_recorded_scores_name_the_prompt_and_those_of_a_title_name_none(sweep: Sweep) -> None:
    recorded = sweep.recorded
    found = sweep.recover(recorded=recorded)
    assert (found.prompts == sweep.made_from).all() and found.sure.all()
    recorded[-135:] = sweep.cosines[-135:].mean(axis=1)
    recorded[::7] = np.nan
    found = sweep.recover(recorded=recorded)
    assert (found.prompts == sweep.made_from)[found.sure].mean() > 0.99 and found.sure.mean() > 0.9
    # None of the scores is of a candidate: nothing is learned from them, and nothing is lost.
    title = sweep.recover(recorded=sweep.cosines.mean(axis=1))
    assert np.array_equal(title.confidence, sweep.recover().confidence)


def test_scores_of_another_encoder_are_recognised(sweep: Sweep) -> None:
    other = sweep.cosines + np.random.default_rng(5).normal(0, 0.02, sweep.cosines.shape)
    recorded = Sweep(other, sweep.made_from).recorded
    found = sweep.recover(recorded=recorded, encoders=[sweep.cosines, other])
    assert (found.prompts == sweep.made_from).all() and found.sure.all()
    equal = reproduced_scores(recorded, [sweep.cosines, other])
    assert equal[np.arange(IMAGES), sweep.made_from].all() and equal.mean() < 0.02


DOUBTFUL = {
    "another file's prompts": lambda sweep: np.random.default_rng(1).normal(0, 0.2, sweep.cosines.shape),
    "no plan": lambda sweep: np.random.default_rng(1).permutation(sweep.cosines),
    "a few images": lambda sweep: sweep.cosines[:10],
    "one image": lambda sweep: sweep.cosines[:1],
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_what_does_not_follow_the_plan_is_doubtful(sweep: Sweep, case: str) -> None:
    found = Sweep(DOUBTFUL[case](sweep), sweep.made_from).recover()
    assert found.sure.mean() <= 0.01


def test_images_of_prompts_that_the_file_lacks_are_doubtful() -> None:
    clear = draw_sweep(noise=0.42)
    found = Sweep(clear.cosines[:, :50], clear.made_from).recover()
    assert found.sure.any() and (found.prompts == clear.made_from)[found.sure].all()


def test_a_missing_image_makes_its_cycles_doubtful_and_not_wrong(sweep: Sweep) -> None:
    rows = np.delete(np.arange(IMAGES), [150, 420, 700])
    found = sweep.recover(rows)
    assert (found.prompts == sweep.made_from[rows])[found.sure].mean() > 0.99


def test_a_run_ends_within_a_cycle_and_another_begins_one(sweep: Sweep) -> None:
    rows = np.r_[0:143, 200:800]
    runs, places = np.repeat([1, 0], [143, 600]), np.r_[0:143, 0:600]
    found = recover_prompts(sweep.cosines[rows], runs, places)
    right = found.prompts == sweep.made_from[rows]
    assert right.mean() > 0.93 and right[found.sure].mean() > 0.99 and found.sure[:143].any()


def test_a_known_prompt_is_taken_from_the_others(sweep: Sweep) -> None:
    doubtful = np.flatnonzero(sweep.recover().prompts != sweep.made_from)
    known = np.full(IMAGES, -1)
    known[doubtful[::2]] = sweep.made_from[doubtful[::2]]
    found = sweep.recover(known=known)
    assert (found.prompts == sweep.made_from)[known >= 0].all()
    assert (found.prompts == sweep.made_from)[known < 0].mean() > (sweep.recover().prompts == sweep.made_from).mean()


def test_images_of_one_time_are_not_taken_for_ordered(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    order = np.random.default_rng(3).permutation(IMAGES)
    # Those of places 60 to 139 share a time, and so do all after 700: which cycle they are of is unknown.
    tied = np.arange(IMAGES)
    first, last = tied.copy(), tied.copy()
    for start, end in ((60, 140), (700, IMAGES)):
        first[start:end], last[start:end] = start, end - 1
        tied[start:end] = order[(order >= start) & (order < end)]
    shuffled = Sweep(sweep.cosines[tied], sweep.made_from[tied])
    runs = np.zeros(IMAGES, int)
    found = recover_prompts(shuffled.cosines, runs, first, last_places=last)
    right = found.prompts == shuffled.made_from
    assert right.mean() > 0.93 and right[found.sure].mean() > 0.99
    assert np.bincount(found.prompts[:200], minlength=PROMPTS).max() == 2
    trusted = recover_prompts(shuffled.cosines, runs, np.arange(IMAGES))
    assert right.mean() > (trusted.prompts == shuffled.made_from).mean()
    monkeypatch.setattr(prompt_recovery, "MAX_UNORDERED", 50)
    alone = recover_prompts(shuffled.cosines, runs, first, last_places=last, recorded=shuffled.recorded)
    right = alone.prompts == shuffled.made_from
    assert right.mean() > 0.99 and alone.sure.mean() > 0.95 and right[alone.sure].all()
    monkeypatch.undo()
    untied = recover_prompts(sweep.cosines, runs, np.arange(IMAGES), last_places=np.arange(IMAGES))
    assert np.array_equal(untied.confidence, sweep.recover().confidence)
