"""Quality of the mini models by the rule of their drawn world: `python -m benchmarks.mini_quality`.

Prints each claim with its value and threshold, writes benchmarks/results/mini_quality.json, and ends with status 1
where a threshold is missed. Guidance is tuned on other scenes and seeds than it is evaluated on.
"""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import Claim, argument_parser, at_least, print_claims, timed, write_results
from resources.mini.evaluation import accuracy
from resources.models import registry
from resources.settings import Settings

GUIDANCES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
THRESHOLDS = {"background": 0.95, "colour": 0.85, "shape": 0.60}


def difference(better: NDArray[np.float64], worse: NDArray[np.float64]) -> dict[str, float]:
    """Return the mean of the paired difference with its 95 % bootstrap interval over images."""
    pairs = better - worse
    rng = np.random.default_rng(0)
    means = pairs[rng.integers(len(pairs), size=(10_000, len(pairs)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(pairs.mean()), "low": float(low), "high": float(high)}


def measure(count: int, tuning: int) -> dict[str, Any]:
    """Return all results: `count` images per setting, `tuning` images per guidance to tune it."""
    settings = Settings.read({})
    clip, hps = (registry.find_scorer(name, settings).load() for name in ("clip", "hps"))
    heads = {name: registry.find_scorer(name, settings).load() for name in ("aesthetic_v1", "aesthetic_v2")}
    result: dict[str, Any] = {
        "clip": accuracy.clip_accuracy(clip),
        "aesthetic": accuracy.aesthetic_correlation(clip, heads),
        "hps": accuracy.hps_correlation(hps),
    }
    engine = registry.find_engine("mini_sdxl", settings).load()

    tuning_scenes = accuracy.held_out_scenes(tuning, turn=1)
    accuracy_by_guidance = {}
    for guidance in GUIDANCES:
        readings = accuracy.read_generated_images(engine, tuning_scenes, 20, guidance, first_seed=1_000_000)
        accuracy_by_guidance[guidance] = float(accuracy.attribute_agreement(tuning_scenes, readings)["mean"].mean())
    best = max(accuracy_by_guidance, key=lambda guidance: accuracy_by_guidance[guidance])
    result |= {"mean_accuracy_by_guidance": accuracy_by_guidance, "best_guidance": best}

    scenes = accuracy.held_out_scenes(count)
    best_readings, seconds = timed(lambda: accuracy.read_generated_images(engine, scenes, 20, best, first_seed=0))
    result["seconds_per_image"] = seconds / count
    shares = accuracy.attribute_agreement(scenes, best_readings)
    result["pictures"] = {name: float(values.mean()) for name, values in shares.items()}
    result["pictures"]["deviation"] = float(np.mean([r.deviation for r in best_readings]))

    for name, steps, guidance in (("4_steps", 4, best), ("guidance_1", 20, 1.0), ("guidance_12", 20, 12.0)):
        readings = accuracy.read_generated_images(engine, scenes, steps, guidance, first_seed=0)
        accuracy_gain = difference(shares["mean"], accuracy.attribute_agreement(scenes, readings)["mean"])
        deviation = difference(
            np.array([r.deviation for r in readings]), np.array([r.deviation for r in best_readings])
        )
        result[f"best_against_{name}"] = {"accuracy_gained": accuracy_gain, "deviation_saved": deviation}
    return result


def claims(result: dict[str, Any]) -> list[Claim]:
    """Return (claim, value, threshold, met) for each claim."""
    rows = [at_least(f"images: {name} as requested", result["pictures"][name], t) for name, t in THRESHOLDS.items()]
    rows += [at_least(f"mini CLIP: {name}", share, 0.9) for name, share in result["clip"].items()]
    correlations = result["aesthetic"] | {"HPS within a prompt": result["hps"]["within_prompt"]}
    rows += [at_least(f"rank correlation: {name}", value, 0.7) for name, value in correlations.items()]

    def gain(claim: str, *intervals: dict[str, float]) -> Claim:
        shown = " or ".join(f"{i['mean']:+.4f} ({i['low']:+.4f} to {i['high']:+.4f})" for i in intervals)
        return claim, shown, "interval above 0", any(i["low"] > 0 for i in intervals)

    against = {name: result[f"best_against_{name}"] for name in ("4_steps", "guidance_1", "guidance_12")}
    best = result["best_guidance"]
    rows += [
        gain("20 steps against 4: accuracy", against["4_steps"]["accuracy_gained"]),
        gain(f"guidance {best} against 1: accuracy", against["guidance_1"]["accuracy_gained"]),
        gain(f"guidance {best} against 12: accuracy or deviation", *against["guidance_12"].values()),
    ]
    return rows


def main() -> None:
    parser = argument_parser(__doc__, "mini_quality")
    parser.add_argument("--images", type=int, default=240, help="images per setting")
    parser.add_argument("--tuning", type=int, default=96, help="images per guidance to tune it on")
    options = parser.parse_args()
    result = measure(options.images, options.tuning)
    rows = claims(result)
    status = print_claims(rows)
    write_results(options.out, result)
    print(f"{options.images} images per setting, {result['seconds_per_image']:.3f} s each at 20 steps; {options.out}")
    sys.exit(status)


if __name__ == "__main__":
    main()
