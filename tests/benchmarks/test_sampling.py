"""The benchmark of sampling: its worlds are as stated, and images are counted where the loss is reached."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.sampling import KINDS, METRICS, MiniWorld, SyntheticWorld, images_needed, trace_losses
from benchmarks.truth import GUIDANCES, STEPS


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_seed_are_most_of_the_variance_and_equal_in_a_pair(kind: str) -> None:
    world = SyntheticWorld(kind, 1)
    rows = replace(world.sweep, sampling="paired").rows(0, 2000)
    (scores,) = world.score(rows).values()
    assert np.array_equal(scores, world.score(rows)["clip_score"])
    pairs = scores.reshape(-1, 4)
    within = pairs.var(axis=1, ddof=1).mean()
    share = 1 - within / (within + pairs.mean(axis=1).var() - within / 4)
    assert 0.6 < share < 0.92
    assert min(world.loss(steps, guidance) for steps in range(4, 61) for guidance in np.arange(0.5, 12.1, 0.1)) < 1e-3


@pytest.mark.parametrize(
    ("losses", "loss", "images"),
    [
        ([0.4, 0.2, 0.1], 0.2, 80),
        ([0.4, 0.2, 0.1], 0.1, 160),
        ([0.4, 0.2, 0.1], 0.05, np.inf),
        ([0.4, 0.2, 0.1], 0.5, 40),
    ],
)
def test_images_are_counted_where_the_loss_is_first_reached(losses: list[float], loss: float, images: float) -> None:
    assert images_needed((40, 80, 160), np.array(losses), loss) == pytest.approx(images)


def test_sweeps_of_the_mini_world_draw_from_its_pool() -> None:
    rng = np.random.default_rng(0)
    height = -np.abs(np.arange(64) - 27)[:, None, None] / 8 + np.zeros((64, 5, 2))
    pool = {name: height + 0.1 * rng.standard_normal(height.shape) for name in METRICS} | {"rule": height}
    world = MiniWorld(pool, 0)
    best = STEPS[27 // 8], GUIDANCES[27 % 8]
    assert world.loss(*best) == 0
    rows = replace(world.sweep, sampling="paired").rows(0, 100)
    assert np.isin(world.score(rows)["clip_score"], pool["clip_score"]).all()
    assert trace_losses(world, "paired", (40, 160))[-1] < 0.1
