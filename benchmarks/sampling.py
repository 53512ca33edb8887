"""How many images find the best settings, by how they are chosen: `python -m benchmarks.sampling`.

Three ways to plan a sweep: uniform (as FlexyFace draws), paired (every four images of one prompt and seed), and
adaptive (80 paired images, then `flexy sweep extend` in rounds of 40). After every few images the setting expected to
be the best is read from one model for all three; its loss is what it falls short of the world's best, as a share of the
range. In synthetic worlds (surfaces of benchmarks.surfaces) prompt and seed make 72 to 88 % of the variance, 25 to 75 %
of the rest is the surface, and half of what is left differs smoothly between seeds. In the mini world the images are
made by the mini engine: a pool of scenes and seeds at every setting of a grid, of which each sweep draws; the sweep
reads their four scores, the loss is by the rule of the world (benchmarks.truth) and, as the scores' best is not quite
the rule's, also by the mean of the four scores in SD. Claims: paired needs at most half of
the images that uniform needs for the same loss, and adaptive at most a third of uniform's 960 for its loss there.
Prints tables and writes benchmarks/results/sampling.json. It takes about an hour on one core, half of it for the pool,
which --pool keeps.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image
from sklearn.isotonic import IsotonicRegression

from benchmarks import Claim, argument_parser, print_claims, print_table, write_results
from benchmarks.surfaces import random_surface
from benchmarks.truth import GUIDANCES, STEPS
from flexy_assets.storage.scores import SCORES_SCHEMA
from flexy_assets.sweep.acquisition import extend_sweep, fit_sweep
from flexy_assets.sweep.plan import SettingRange, Sweep
from resources.engines import ImageRequest
from resources.mini.evaluation import accuracy
from resources.mini.evaluation.accuracy import SIDE
from resources.mini.reader import read_drawing
from resources.models import registry
from resources.settings import Settings

Floats = NDArray[np.float64]
KINDS = ("saturating", "peaked", "interacting")
COUNTS = {
    "uniform": (80, 160, 240, 320, 480, 640, 960),
    "paired": (40, 80, 120, 160, 240, 320, 480),
    "adaptive": (80, 120, 160, 200, 240, 280, 320),
}
METRICS = ("clip_score", "aesthetic_score", "aes_v2_score", "hps_v2_score")


class World(Protocol):
    """A world in which sweeps are made: `sweep` its ranges and prompts."""

    sweep: Sweep

    def score(self, rows: pl.DataFrame) -> dict[str, Floats]:
        """Return the scores (n,) of a plan's rows by metric."""

    def loss(self, steps: int, guidance: float) -> float:
        """Return what the setting falls short of the best, as a share of the range of all."""


class SyntheticWorld:
    """A random surface, prompts, seeds and noise."""

    def __init__(self, kind: str, seed: int) -> None:
        rng = np.random.default_rng([seed, KINDS.index(kind), 18])
        self.surface = random_surface(kind, rng)
        heights = self.surface(np.arange(4, 61)[:, None], np.linspace(0.5, 12, 116)[None, :])
        self.low, self.high = float(heights.min()), float(heights.max())
        pairs_share, prompts_share = rng.uniform(0.72, 0.88), rng.uniform(0.2, 0.8)
        variance = float(heights.var()) / (rng.uniform(0.25, 0.75) * (1 - pairs_share))
        self.prompt_level = np.sqrt(variance * pairs_share * prompts_share)
        self.pair_level = np.sqrt(variance * pairs_share * (1 - prompts_share))
        self.own = np.sqrt((variance * (1 - pairs_share) - heights.var()) / 2)
        count = int(np.exp(rng.uniform(np.log(8), np.log(150))))
        prompts = tuple(f"prompt {number}" for number in range(count))
        self.levels = dict(zip(prompts, rng.standard_normal(count), strict=True))
        self.sweep = Sweep("synthetic", prompts, SettingRange(4, 60), SettingRange(0.5, 12), seed=seed)

    def score(self, rows: pl.DataFrame) -> dict[str, Floats]:
        """See `World.score`."""
        steps, guidance = (rows[name].cast(pl.Float64).to_numpy() for name in ("steps", "guidance"))
        x = 2 * np.log2(steps / 4) / np.log2(15) - 1
        z = 2 * np.log2(np.maximum(guidance, 1)) / np.log2(12) - 1
        shapes = np.stack([x / 0.58, z / 0.58, x * z / 0.33, (x**2 - 0.33) / 0.3, (z**2 - 0.33) / 0.3]) / np.sqrt(5)
        own = np.array([np.random.default_rng([seed, 18]).standard_normal(6) for seed in rows["seed"]]).T
        noise = [np.random.default_rng(UUID(image_id).int).standard_normal() for image_id in rows["image_id"]]
        pair = self.pair_level * own[0] + self.own * ((own[1:] * shapes).sum(axis=0) + np.array(noise))
        levels = self.prompt_level * np.array([self.levels[prompt] for prompt in rows["prompt"]])
        return {"clip_score": self.surface(steps, guidance) + levels + pair}

    def loss(self, steps: int, guidance: float) -> float:
        """See `World.loss`."""
        return (self.high - float(self.surface(steps, guidance))) / (self.high - self.low)


def make_pool(scenes: int, seeds: int) -> dict[str, Floats]:
    """Return each metric, and `rule`, the mean of agreement and minus deviation in SD, as (settings, scenes, seeds)."""
    settings = Settings.read({})
    engine = registry.find_engine("mini_sdxl", settings).load()
    wanted = accuracy.held_out_scenes(scenes, 50)
    scenes_of_seeds = [scene for scene in wanted for _ in range(seeds)]
    images = []
    for steps in STEPS:
        for guidance in GUIDANCES:
            requests = [
                ImageRequest(scene.caption, None, steps, guidance, 3_000_000 + number, SIDE, SIDE)
                for number, scene in enumerate(scenes_of_seeds)
            ]
            for at in range(0, len(requests), engine.batch_size):
                images += engine.generate(requests[at : at + engine.batch_size])
    return score_pool(images, scenes_of_seeds, (len(STEPS) * len(GUIDANCES), scenes, seeds))


def score_pool(images: Sequence[Image.Image], scenes: Sequence[Any], shape: tuple[int, ...]) -> dict[str, Floats]:
    """Return `make_pool` of images, setting by setting, each of the scene at its place."""
    settings = Settings.read({})
    clip, hps = (registry.find_scorer(name, settings).load() for name in ("clip", "hps"))
    captions = [scene.caption for scene in scenes] * (len(images) // len(scenes))
    vectors = clip.embed(images)
    pool = {"clip_score": (vectors * clip.texts(captions)).sum(axis=1)}
    for metric, name in (("aesthetic_score", "aesthetic_v1"), ("aes_v2_score", "aesthetic_v2")):
        pool[metric] = registry.find_scorer(name, settings).load().score_embeddings(vectors)
    pool["hps_v2_score"] = (hps.embed(images) * hps.texts(captions)).sum(axis=1)
    readings = [read_drawing(np.asarray(image)) for image in images]
    every = list(scenes) * (len(images) // len(scenes))
    agreement = accuracy.attribute_agreement(every, readings)["mean"]
    deviation = np.array([reading.deviation for reading in readings])
    pool["rule"] = agreement / agreement.std() - deviation / deviation.std()
    return {name: np.asarray(values, dtype=np.float64).reshape(shape) for name, values in pool.items()}


@dataclass
class MiniWorld:
    """Sweeps that draw from a pool of the mini engine's images at every setting of a grid."""

    pool: dict[str, Floats]
    seed: int
    judge: str = "rule"
    sweep: Sweep = field(init=False)

    def __post_init__(self) -> None:
        lists = [SettingRange(values[0], values[-1], values=values) for values in (STEPS, GUIDANCES)]
        prompts = tuple(f"scene {number}" for number in range(self.pool["rule"].shape[1]))
        self.sweep = Sweep("mini_sdxl", prompts, *lists, seed=self.seed)
        self.truth = self.pool[self.judge].mean(axis=(1, 2)).reshape(len(STEPS), len(GUIDANCES))

    def score(self, rows: pl.DataFrame) -> dict[str, Floats]:
        """See `World.score`."""
        at = rows["steps"].replace_strict({s: i for i, s in enumerate(STEPS)}) * len(GUIDANCES)
        at += rows["guidance"].replace_strict({g: i for i, g in enumerate(GUIDANCES)})
        scenes = rows["prompt"].str.slice(6).cast(pl.Int64)
        seeds = rows["seed"] % self.pool["rule"].shape[2]
        return {name: self.pool[name][at.to_numpy(), scenes.to_numpy(), seeds.to_numpy()] for name in METRICS}

    def loss(self, steps: int, guidance: float) -> float:
        """See `World.loss`."""
        value = self.truth[STEPS.index(steps), GUIDANCES.index(guidance)]
        return float((self.truth.max() - value) / np.ptp(self.truth))


def score_rows(world: World, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the plan's rows as a table of scores."""
    scored = rows.with_columns(**{name: pl.Series(values) for name, values in world.score(rows).items()})
    absent = [pl.lit(None).alias(name) for name in SCORES_SCHEMA if name not in scored.columns]
    return scored.with_columns(absent).select(list(SCORES_SCHEMA)).cast(pl.Schema(SCORES_SCHEMA))


def trace_losses(world: World, design: str, counts: Sequence[int]) -> list[float]:
    """Return the loss of the setting expected to be the best after each number of images."""
    sweep = replace(world.sweep, sampling="uniform" if design == "uniform" else "paired")
    losses = []
    for place, count in enumerate(counts):
        scores = score_rows(world, sweep.rows(0, count))
        cells, posterior = fit_sweep(sweep, scores)
        steps, guidance = cells[int(posterior.mean.argmax())]
        losses.append(world.loss(steps, float(guidance or 0)))
        if design == "adaptive" and count < counts[-1]:
            sweep = extend_sweep(sweep, count, scores, counts[place + 1] - count)
    return losses


def images_needed(counts: Sequence[int], losses: Floats, loss: float) -> float:
    """Return the images at which the mean loss, made to fall, first is `loss`; infinity where it never is."""
    falling = IsotonicRegression(increasing=False).fit_transform(np.log(counts), losses)
    if falling[-1] > loss:
        return float("inf")
    if falling[0] <= loss:
        return float(counts[0])
    # From the end: the last of equal losses is where it begins to be lower.
    return float(np.exp(np.interp(-loss, -falling, np.log(counts))))


def compare(traces: dict[str, Floats], at: Sequence[int]) -> dict[str, Any]:
    """Return the share of uniform's images that paired and adaptive need for its loss at these counts.

    With 95 % intervals over sweeps.
    """
    rng = np.random.default_rng(0)
    n = len(next(iter(traces.values())))
    draws = [np.arange(n), *(rng.integers(n, size=n) for _ in range(500))]
    figures: dict[str, Any] = {}
    for design in ("paired", "adaptive"):
        for count in at:
            ratios = []
            for draw in draws:
                means = {name: losses[draw].mean(axis=0) for name, losses in traces.items()}
                falling = IsotonicRegression(increasing=False).fit_transform(
                    np.log(COUNTS["uniform"]), means["uniform"]
                )
                loss = falling[COUNTS["uniform"].index(count)]
                ratios.append(images_needed(COUNTS[design], means[design], loss) / count)
            low, high = np.quantile(ratios[1:], [0.025, 0.975], method="inverted_cdf")
            figures[f"{design}, uniform at {count}"] = {"ratio": ratios[0], "low": float(low), "high": float(high)}
    return figures


def main() -> None:
    parser = argument_parser(__doc__, "sampling")
    parser.add_argument("--sweeps", type=int, default=20, help="synthetic sweeps of each kind")
    parser.add_argument("--mini", type=int, default=60, help="sweeps in the mini world")
    parser.add_argument("--scenes", type=int, default=32, help="scenes of the mini world's pool")
    parser.add_argument("--seed", type=int, default=40_000, help="seed of the first sweep")
    parser.add_argument("--pool", type=Path, help="file (.npz) to keep the mini world's pool in, and to read it from")
    options = parser.parse_args()
    worlds: dict[str, list[World]] = {
        "synthetic": [SyntheticWorld(kind, options.seed + i) for i in range(options.sweeps) for kind in KINDS]
    }
    if options.mini:
        if options.pool and options.pool.exists():
            pool = dict(np.load(options.pool))
        else:
            pool = make_pool(options.scenes, seeds=2)
            if options.pool:
                np.savez(options.pool, **pool)
        pool["scores"] = np.sum([pool[name] / pool[name].std() for name in METRICS], axis=0)
        for judge in ("rule", "scores"):
            worlds[f"mini, by its {judge}"] = [MiniWorld(pool, options.seed + i, judge) for i in range(options.mini)]
    claims: list[Claim] = []
    results: dict[str, Any] = {"seed": options.seed}
    for name, sweeps in worlds.items():
        if not sweeps:
            continue
        traces = {
            design: np.array([trace_losses(world, design, counts) for world in sweeps])
            for design, counts in COUNTS.items()
        }
        print(f"{name}: mean loss of {len(sweeps)} sweeps")
        rows = [
            {"images": count}
            | {d: float(traces[d].mean(axis=0)[c.index(count)]) if count in c else None for d, c in COUNTS.items()}
            for count in sorted({count for counts in COUNTS.values() for count in counts})
        ]
        print_table(rows, "images", *COUNTS)
        ratios = compare(traces, (240, 480, 960))
        for claim, figure in ratios.items():
            design, _, count = claim.partition(", uniform at ")
            if design == "adaptive" and count != "960":
                continue
            most = 0.5 if design == "paired" else 1 / 3
            shown = "{ratio:.2f} ({low:.2f} to {high:.2f})".format(**figure)
            words = f"{name}: images of {design} for the loss of {count} uniform, share"
            claims.append((words, shown, f"≤ {most:.2f}", figure["ratio"] <= most))
        results[name] = {"losses": rows, "ratios": ratios}
    status = print_claims(claims)
    write_results(options.out, results)
    sys.exit(status)


if __name__ == "__main__":
    main()
