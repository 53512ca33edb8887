"""Images a second in batches against one by one: `python -m benchmarks.generation`.

On a GPU a full-size SDXL with random weights at 512 × 512 in fp16; on a CPU the mini model, at its own size.
Both make the same images twice, one a call and many a call, each with a seed and a guidance of its own. Prints
a table and writes benchmarks/results/generation.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scoring import peak_gflops
from resources.engines import ImageRequest
from resources.models import registry
from resources.settings import Settings
from tests.support.references import install, save_tokenizer


def save_sdxl(folder: Path) -> Path:
    """SDXL's own architecture with random weights in fp16, in diffusers' form."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    install()
    (folder / "words").mkdir(parents=True)
    save_tokenizer(folder / "words")
    words = CLIPTokenizer.from_pretrained(folder / "words")
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        StableDiffusionXLPipeline(
            unet=UNet2DConditionModel(**SDXL_UNET).half(),
            vae=AutoencoderKL(**SDXL_VAE).half(),
            text_encoder=CLIPTextModel(CLIPTextConfig(**CLIP_L)).half(),
            text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_BIG_G)).half(),
            tokenizer=words,
            tokenizer_2=words,
            scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        ).save_pretrained(folder / "sdxl")
    return folder / "sdxl"


SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.13025,
    "force_upcast": False,
}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_BIG_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}


def requests(count: int, side: int, steps: int) -> list[ImageRequest]:
    """Images of equal steps and size, each with its own prompt, guidance and seed."""
    return [
        ImageRequest(f"a red circle, number {i}", None, steps, 2.0 + i % 7, seed=i, width=side, height=side)
        for i in range(count)
    ]


def seconds(engine: Any, asked: Sequence[ImageRequest], batch_size: int) -> float:
    """Wall time of making `asked`, the best of two."""
    best = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        for start in range(0, len(asked), batch_size):
            engine.generate(asked[start : start + batch_size])
        best = min(best, time.perf_counter() - began)
    return best


def measure(engine: Any, side: int, count: int, steps: int, batches: Sequence[int]) -> dict[str, Any]:
    """Images a second for one image a call and for each of `batches`, and how near to the peak that is."""
    asked = requests(count, side, steps)
    engine.generate(asked[:1])
    with FlopCounterMode(display=False) as counter:
        alone = engine.generate(asked[:1])
    gflop = counter.get_total_flops() / 1e9
    together = engine.generate(asked[: max(batches)])
    rates = {size: count / seconds(engine, asked, size) for size in (1, *batches)}
    dtype = next(iter(engine.pipeline.unet.parameters())).dtype
    peak = peak_gflops(dtype)
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, 1 thread",
        "images": count,
        "side": side,
        "steps": steps,
        "gflop_an_image": gflop,
        "peak_gflops": peak,
        "images_a_second": rates,
        "share_of_peak": {size: rate * gflop / peak for size, rate in rates.items()},
        "speedup": max(rates[size] for size in batches) / rates[1],
        # The largest difference of the first image made alone and among the others, of 255.
        "difference": int(np.abs(np.asarray(alone[0], int) - np.asarray(together[0], int)).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if torch.cuda.is_available():
            from resources.engines.sdxl import SdxlEngine

            name, side = "SDXL", 512
            engine: Any = SdxlEngine(save_sdxl(Path(folder)), precision="fp16", batch_size=max(options.batches))
        else:
            name, side = "mini_sdxl", 64
            engine = registry.find_engine("mini_sdxl", Settings.read({})).load()
        result = {"engine": name} | measure(engine, side, options.images, options.steps, options.batches)
    print(
        f"{name}, {result['device']}, {side} × {side}, {options.steps} steps,"
        f" {result['gflop_an_image']:.1f} GFLOP an image, peak {result['peak_gflops']:.0f} GFLOP/s measured\n"
    )
    print("| images a call | images a second | share of the peak |\n|---|---|---|")
    for size, rate in result["images_a_second"].items():
        print(f"| {size} | {rate:.2f} | {result['share_of_peak'][size]:.2f} |")
    print(f"\nbatches against one by one: {result['speedup']:.2f} × (bar on a GPU: ≥ 1.5)")
    print(f"the same image alone and in a batch: at most {result['difference']} of 255 apart")
    out = Path(__file__).parent / "results/generation.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {out}")
    sys.exit(torch.cuda.is_available() and result["speedup"] < 1.5)


if __name__ == "__main__":
    main()
