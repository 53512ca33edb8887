"""Recovery of prompts from images: `python -m benchmarks.prompts [--steps 4:60]`.

1,000 images of mini_sdxl, 100 prompts in cycles, in two runs of FlexyFace's (857 and 143 images), at guidance 0.5 to
12 and by default 4 to 20 steps: fewer, so worse images, than FlexyFace's 4 to 60, which take three times as long. No
two prompts describe the same scene, but many differ in one attribute. Prints and writes
benchmarks/results/prompts.json: the share of prompts that is right, the share called sure, and the share of the sure
that is right, without and with the recorded CLIP scores; ends with status 1 where a threshold is missed.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import argument_parser, write_results
from flexy_assets.scoring.prompt_recovery import recover_prompts
from flexy_assets.sweep.generation import chunk_plan
from flexy_assets.sweep.plan import SettingRange, Sweep
from resources.engines import ImageRequest
from resources.mini.world import SCENES, SIDE
from resources.models import registry
from resources.settings import Settings

RUNS = (857, 143)
PROMPTS = 100
THRESHOLDS = {"without clip_score": 0.95, "with clip_score": 0.999}
SURE_THRESHOLD = 0.99


def make_vectors(run_sizes: Sequence[int], prompts: int, steps: str, seed: int = 17) -> tuple[NDArray[np.float64], ...]:
    """Return the image embeddings (n, width), the text embeddings (m, width) and each image's prompt (n,)."""
    settings = Settings.read({})
    engine = registry.find_engine("mini_sdxl", settings).load()
    clip = registry.find_scorer("clip", settings).load()
    scenes = np.random.default_rng(seed).permutation(len(SCENES))[:prompts]
    texts = tuple(SCENES[scene].caption for scene in scenes)
    text_vectors, vectors, made_from = clip.texts(texts), [], []
    for number, size in enumerate(run_sizes):
        steps_range, guidance = SettingRange(*map(int, steps.split(":"))), SettingRange(0.5, 12)
        plan = Sweep("mini_sdxl", texts, steps_range, guidance, seed + number, width=SIDE, height=SIDE).rows(0, size)
        of_run = np.zeros((size, text_vectors.shape[1]))
        for rows in chunk_plan(plan, engine.batch_size):
            requests = [
                ImageRequest(row["prompt"], None, row["steps"], row["guidance"], row["seed"], SIDE, SIDE)
                for row in rows
            ]
            of_run[[row["index"] for row in rows]] = clip.embed(engine.generate(requests))
        vectors.append(of_run)
        made_from += [texts.index(prompt) for prompt in plan["prompt"]]
    return np.concatenate(vectors), text_vectors.astype(np.float64), np.array(made_from)


def measure(run_sizes: Sequence[int], prompts: int, steps: str) -> dict[str, Any]:
    """Return the shares without and with CLIP scores, and of each image taken for itself."""
    began = time.perf_counter()
    images, texts, made_from = make_vectors(run_sizes, prompts, steps)
    made = time.perf_counter()
    cosines = images @ texts.T
    runs = np.repeat(np.arange(len(run_sizes)), run_sizes)
    places = np.concatenate([np.arange(size) for size in run_sizes])
    recorded = cosines[np.arange(len(cosines)), made_from]
    result: dict[str, Any] = {
        "images": len(images),
        "prompts": prompts,
        "steps": steps,
        "seconds_to_make": round(made - began, 1),
    }
    for name, scores in (("without clip_score", None), ("with clip_score", recorded)):
        found = recover_prompts(cosines, runs, places, recorded=scores)
        right = found.prompts == made_from
        result[name] = {"right": float(right.mean()), "sure": float(found.sure.mean())}
        result[name]["right_of_sure"] = float(right[found.sure].mean()) if found.sure.any() else None
    result["seconds_to_recover"] = round((time.perf_counter() - made) / 2, 2)
    return result | {"highest cosine alone": {"right": float((cosines.argmax(axis=1) == made_from).mean())}}


def main() -> None:
    parser = argument_parser(__doc__, "prompts")
    parser.add_argument("--steps", default="4:20", help="LOW:HIGH")
    options = parser.parse_args()
    result = measure(RUNS, PROMPTS, options.steps)
    missed = False
    print(f"{result['images']} images, {result['prompts']} prompts; recovered in {result['seconds_to_recover']} s")
    print(f"highest cosine alone  right {result['highest cosine alone']['right']:.3f}")
    for name, threshold in THRESHOLDS.items():
        right, sure, of_sure = result[name].values()
        missed |= right < threshold or of_sure is None or of_sure < SURE_THRESHOLD
        print(f"{name:20}  right {right:.3f} (≥ {threshold})  sure {sure:.3f}  right of the sure {of_sure}")
    write_results(options.out, result)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
