"""Throughput of four scores of the same images, ours and the references': `python -m benchmarks.scoring`.

Full-size architectures with random weights (ViT-L/14, ViT-H/14), in one run: (a) each reference in its own pass,
image by image, where HPS reads its checkpoint at every call; (b) our assets' code, from files to committed rows,
including loading the models. Prints tables and writes benchmarks/results/scoring.json. On a CPU ours
runs in fp32, and once more in bf16; on a GPU in fp16, where `benchmarks.gpu` scores 2,000 images against the clock.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import Claim, argument_parser, print_claims, print_table, timed, write_results
from benchmarks.gpu import BATCH, HALF, ON_GPU, VIT_L, Stages, draw_images, peak_tflops, prompts, scoring_work
from flexy_assets.scoring import missing_scores
from flexy_assets.scoring.work import Work
from resources.metrics.sweep import METRICS
from resources.models import compute
from tests.support import references


def time_references(models: dict[str, Path], files: Sequence[Path]) -> dict[str, float]:
    """Return the seconds of each reference over the files, loading included."""
    loads: dict[str, Callable[[], references.Score]] = {
        "CLIP score": lambda: references.clip_score(models["clip"]),
        "Aesthetic V1": lambda: references.aesthetic(models["aesthetic_v2"], 2),
        "Aesthetic V2": lambda: references.aesthetic(models["aesthetic_v2"], 2),
        "HPS v2.1": lambda: references.hps(models["hps"] / "HPS_v2.1_compressed.pt", full=True),
    }

    def score_all(load: Callable[[], references.Score]) -> None:
        score = load()
        for file, prompt in zip(files, prompts(len(files)), strict=True):
            score(file, prompt)

    seconds = {}
    for name, load in loads.items():
        _, seconds[name] = timed(lambda load=load: score_all(load))
        compute.release_memory()
    return seconds


def time_ours(work: Work, *metrics: str) -> dict[str, float]:
    """Return the seconds of each pass: the embeddings, then each metric."""
    seconds = {}
    if any(METRICS[name].reads for name in metrics):
        _, seconds["embeddings"] = timed(lambda: embed(work))
    for metric in (METRICS[name] for name in metrics):
        (((_, outcome),), seconds[metric.label]) = timed(
            lambda metric=metric: list(missing_scores.score_images(work, metric, [BATCH], lambda _: None))
        )
        assert not outcome.failed, metric.name
    work.slot.free()
    return seconds


def embed(work: Work) -> None:
    """Embed every image."""
    list(missing_scores.embed_images(work, [BATCH], lambda _: None))


def save_models(folder: Path) -> dict[str, Path]:
    """Write the four scorers at their full size, with random weights."""
    clip = references.save_clip(folder / "clip", full=True)
    head = references.save_predictor(folder / "aesthetic_v2", clip, 2)
    compute.release_memory()
    return {"clip": clip, "hps": references.save_hps(folder / "hps", full=True).parent, "aesthetic_v2": head}


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Return all figures over `count` images."""
    references.install()
    models = save_models(folder / "models")
    files = draw_images(folder, count, side=512, distinct=count)

    def work(precision: str = "auto") -> Work:
        return scoring_work(folder, models, files, precision)

    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if ON_GPU else f"CPU, {torch.get_num_threads()} threads",
        "images": count,
        "peak_gflops": 1e3 * peak_tflops(HALF, side=8192 if ON_GPU else 2048),
        "clip_alone_s": sum(time_ours(work(), "clip_score").values()),
        "clip_v1_v2_s": sum(time_ours(work(), "clip_score", "aesthetic_score", "aes_v2_score").values()),
    }
    result["three_for_one"] = result["clip_v1_v2_s"] / result["clip_alone_s"]

    stages, loaded = Stages(), work()
    # Loaded before, so that the share of the forward passes is that of a long run.
    encoder = loaded.slot.get(loaded.model("clip"))
    encoder.embed([Image.open(folder / files[0][0])])
    with stages.watching():
        _, wall = timed(lambda: embed(loaded))
    result["forward_share"] = (stages.seconds["image calls"] + stages.seconds["text calls"]) / wall
    result["forward_gflops"] = count * VIT_L.gflop / stages.seconds["image calls"]
    result["share_of_peak"] = result["forward_gflops"] / result["peak_gflops"]
    loaded.slot.free()

    result["ours_s"] = time_ours(work(), *METRICS)
    if not ON_GPU:
        result["ours_bf16_s"] = time_ours(work("bf16"), *METRICS)
    result["references_s"] = time_references(models, [folder / path for path, _ in files])
    theirs = sum(result["references_s"].values())
    result["speedup"] = theirs / sum(result["ours_s"].values())
    if not ON_GPU:
        result["speedup_bf16"] = theirs / sum(result["ours_bf16_s"].values())
    return result


def claims(result: dict[str, Any]) -> list[Claim]:
    """Return each claim with its figure and threshold."""
    half, three, share = result.get("speedup_bf16", result["speedup"]), result["three_for_one"], result["forward_share"]
    return [
        ("all four in fp32 against the references as used", f"{result['speedup']:.2f}", "–", True),
        ("all four in half precision against the references as used", f"{half:.2f}", "≥ 3", half >= 3),
        ("CLIP score, V1 and V2 against CLIP score alone", f"{three:.3f}", "≤ 1.10", three <= 1.1),
        ("forward passes' share of the wall, reading ahead", f"{share:.3f}", "≥ .90", share >= 0.9),
        ("image tower's share of the measured peak", f"{result['share_of_peak']:.2f}", "–", True),
    ][ON_GPU:]


def main() -> None:
    parser = argument_parser(__doc__, "scoring")
    parser.add_argument("--images", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), options.images)
    print(f"{result['device']}, {result['images']} images of 512 × 512")
    print(f"peak {result['peak_gflops']:.0f} GFLOP/s, measured by a matrix product")
    theirs, ours = result["references_s"], result["ours_s"]
    rows = [{"pass": name, "references (s)": theirs.get(name), "ours (s)": seconds} for name, seconds in ours.items()]
    rows.append({"pass": "all four", "references (s)": sum(theirs.values()), "ours (s)": sum(ours.values())})
    print_table(rows, *rows[0])
    status = print_claims(claims(result))
    write_results(options.out, result)
    print(f"\nwritten to {options.out}")
    sys.exit(status)


if __name__ == "__main__":
    main()
