"""All that is claimed for a GPU, measured in one run: `python -m benchmarks.gpu`, six minutes at most on a card.

Full-size architectures with random weights, built on the device. Sections (`--only scores,edits` runs some of them):

- `scores`: the four scores of 2,000 PNG files of 512 × 512, model loading included, split by stage, for several batch
  sizes and for each scorer alone; the image towers alone, with their MFU (model FLOPs utilisation).
- `parity`: fp16 and bf16 against fp32 (TF32 off), scorer by scorer.
- `generation`: SDXL at 512² and 1024² and SD3 at 512², batched against one by one.
- `slot`: the memory after each switch of the model slot.
- `memory`: out of memory provoked and the batch halved; offloading forced by a limit.
- `edits`: EACPS and TTFLUX on one task with an editor of SDXL InstructPix2Pix's size.
- `explore` (with `--explore`, two minutes more): variants to decide by.

Prints tables and writes --out after each section, so that a run that is killed keeps what it had. A section that fails
or takes too long does not stop the others; the exit status is 1 where one did or a goal was missed. On a CPU everything
runs in a reduced form, which shows that it works and nothing else. Needs none of dagster, polars and alembic.
"""

from __future__ import annotations

import argparse
import copy
import gc
import hashlib
import io
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, product
from pathlib import Path
from threading import Lock
from typing import Any
from unittest import mock
from uuid import uuid4, uuid5

import numpy as np

import resources  # noqa: F401  torchvision is imported through it

# isort: split

import sqlalchemy as sa
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from flexy_assets.edits import metrics as edit_metrics
from flexy_assets.edits.plan import METHODS, Comparison
from flexy_assets.edits.search.eacps import EacpsParameters
from flexy_assets.edits.search.runner import SearchRunner
from flexy_assets.scoring import missing_scores
from flexy_assets.scoring.work import Work
from flexy_assets.storage import edits
from flexy_assets.storage.edits import EditTaskRow
from flexy_assets.storage.runs import add_images
from flexy_assets.storage.tables import bench_run_results, metadata
from resources.database import Database
from resources.engines import ImageRequest, pipeline
from resources.errors import FlexyError
from resources.images import ImageStore
from resources.metrics.sweep import METRICS
from resources.models import compute, registry
from resources.models.compute import HalvingBatches
from resources.models.entry import LocalModel
from resources.models.slot import ModelSlot
from resources.scorers import aesthetic
from resources.scorers.clip import ClipEncoder
from resources.scorers.hps import HpsScorer
from resources.scorers.preprocessing import Letterbox, Preprocessing
from resources.settings import Settings

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
HALF = torch.float16 if ON_GPU else torch.float32
BATCH = "bench000_0000"
MB = 1e6

TOLERANCE = {"fp16": 1e-3, "bf16": 5e-3}
"""The largest difference from fp32, as a share of the metric's range."""

SPAN = {"clip_score": 1.0, "aesthetic_score": 9.0, "aes_v2_score": 9.0, "hps_v2_score": 1.0}
"""The metrics' ranges."""

LEFTOVER = 128 * MB
"""Bytes beside the model's own after a switch: the workspaces of cuBLAS and cuDNN stay."""

BUDGETS = {"scores": 110, "parity": 25, "generation": 90, "slot": 30, "memory": 50, "edits": 50, "explore": 120}
"""Seconds after which a section is stopped."""

# Architectures


@dataclass(frozen=True)
class Tower:
    """A transformer of CLIP's; `heads` is None where its checkpoint implies them."""

    width: int
    layers: int
    mlp: int
    heads: int

    @property
    def config(self) -> dict[str, int]:
        """In transformers' words."""
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.mlp,
            "num_attention_heads": self.heads,
        }

    @property
    def gflop(self) -> float:
        """An image's pass at 224² in patches of 14², two FLOP per multiply-add: 162 for ViT-L/14, 335 for ViT-H/14."""
        tokens = (224 // 14) ** 2 + 1
        linear = 2 * tokens * (4 * self.width**2 + 2 * self.width * self.mlp) * self.layers
        attention = 4 * tokens**2 * self.width * self.layers
        return (linear + attention + 2 * tokens * 3 * 14**2 * self.width) / 1e9


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    merges: int
    clip_image: Tower
    clip_text: Tower
    clip_width: int
    hps_image: Tower
    hps_text: Tower
    hps_width: int
    lpips_side: int
    images: int
    distinct: int
    picture_side: int
    scoring_batches: tuple[int, ...]
    tower_batches: tuple[int, ...]
    parity_images: int
    text_l: Tower
    text_g: Tower
    unet: dict[str, Any]
    vae: dict[str, Any]
    sd3: dict[str, Any]
    generation: tuple[tuple[str, int, int, int, dict[int, int]], ...]
    """Engine, side, steps, repeats, and how many images are made for each batch size."""
    edit_steps: int
    edit_side: int


_SDXL_UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 1280,
}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "force_upcast": False,
}
_SD3: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 24 * 64,
    "pooled_projection_dim": 768 + 1280,
    "pos_embed_max_size": 192,
}

FULL = Sizes(
    merges=49408 - 512 - 2,
    clip_image=Tower(1024, 24, 4096, 16),
    clip_text=Tower(768, 12, 3072, 12),
    clip_width=768,
    hps_image=Tower(1280, 32, 5120, 16),
    hps_text=Tower(1024, 24, 4096, 16),
    hps_width=1024,
    lpips_side=256,
    images=2000,
    distinct=250,
    picture_side=512,
    scoring_batches=(64, 128, 256),
    tower_batches=(32, 64, 128, 256),
    parity_images=64,
    text_l=Tower(768, 12, 3072, 12),
    text_g=Tower(1280, 32, 5120, 20),
    unet=_SDXL_UNET,
    vae=_VAE,
    sd3=_SD3,
    generation=(
        ("sdxl", 512, 20, 2, {1: 6, 4: 8, 8: 16, 16: 16}),
        ("sdxl", 1024, 20, 1, {1: 3, 4: 4, 8: 8}),
        ("sd3", 512, 20, 1, {1: 4, 4: 4, 8: 8}),
    ),
    edit_steps=8,
    edit_side=512,
)

_NARROW = Tower(32, 2, 64, 2)
SMALL = Sizes(
    merges=0,
    clip_image=Tower(64, 2, 128, 2),
    clip_text=Tower(64, 2, 128, 2),
    clip_width=48,
    # How wide its heads are is fixed: 80 and 64.
    hps_image=Tower(80, 2, 160, 1),
    hps_text=Tower(64, 2, 128, 1),
    hps_width=48,
    lpips_side=32,
    images=24,
    distinct=8,
    picture_side=96,
    scoring_batches=(4, 8),
    tower_batches=(2,),
    parity_images=8,
    text_l=_NARROW,
    text_g=_NARROW,
    unet=_SDXL_UNET
    | {
        "sample_size": 16,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1),
        "attention_head_dim": (1, 2),
        "cross_attention_dim": 2 * _NARROW.width,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + _NARROW.width,
    },
    vae={
        "block_out_channels": (4, 4, 4),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "force_upcast": False,
    },
    sd3=_SD3
    | {
        "sample_size": 32,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 4 * _NARROW.width,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 2 * _NARROW.width,
        "pos_embed_max_size": 32,
    },
    generation=(("sdxl", 64, 2, 1, {1: 2, 2: 2}), ("sd3", 64, 2, 1, {1: 2, 2: 2})),
    edit_steps=4,
    edit_side=64,
)

SIZES = FULL if ON_GPU else SMALL

# Time and guards


class OverBudget(BaseException):
    """A section took too long. Not an `Exception`: what is measured must not swallow it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `OverBudget` in the block after `seconds`, or when an outer limit ends."""

    def stop(*_: object) -> None:
        raise OverBudget(f"stopped after {seconds:.0f} s")

    began = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    if 0 < outer < seconds:
        signal.setitimer(signal.ITIMER_REAL, outer)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - began), 0.01))


BEGAN = time.monotonic()


def say(text: str) -> None:
    """Progress, with the seconds since the start."""
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {text}", flush=True)


def synchronise() -> None:
    """Wait for the GPU."""
    if ON_GPU:
        torch.cuda.synchronize()


def median_seconds(call: Callable[[], Any], repeats: int = 10, warm_up: int = 3) -> float:
    """The median time of a call, the GPU waited for."""
    if not ON_GPU:
        repeats, warm_up = min(repeats, 2), min(warm_up, 1)
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(repeats):
        synchronise()
        began = time.perf_counter()
        call()
        synchronise()
        times.append(time.perf_counter() - began)
        # Three of what takes long are enough.
        if len(times) >= 3 and sum(times) > 2:
            break
    return statistics.median(times)


def peak_tflops(dtype: torch.dtype) -> float:
    """What a large matrix product reaches on random data: the peak that can be had."""
    side = 8192 if ON_GPU else 256
    left, right = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: left @ right, repeats=20, warm_up=5) / 1e12


def allocated() -> int:
    """Bytes of tensors on the GPU; 0 without one."""
    return torch.cuda.memory_allocated() if ON_GPU else 0


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table in Markdown."""

    def shown(value: Any) -> str:
        return (
            f"{value:.3g}"
            if isinstance(value, float) and abs(value) < 100
            else f"{value:,.0f}"
            if isinstance(value, float)
            else str(value)
        )

    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(map(shown, row))} |")
    print(flush=True)


@dataclass
class Stages:
    """Seconds by stage. Those of reading and preparing are summed over threads."""

    seconds: dict[str, float] = field(default_factory=dict)
    batch: int | None = None
    """How many images the encoders take a call; None leaves it to them."""
    _loading: bool = False
    _lock: Lock = field(default_factory=Lock)

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def timed(self, stage: str, call: Callable[..., Any], waits: bool) -> Callable[..., Any]:
        """`call`, with its time added to a stage; with `waits` the GPU is waited for before and after."""

        def timed(*arguments: Any, **named: Any) -> Any:
            if waits:
                synchronise()
            began = time.perf_counter()
            result = call(*arguments, **named)
            if waits:
                synchronise()
            # A load tries the model on a text: that is part of the load.
            if not self._loading:
                self.add(stage, time.perf_counter() - began)
            return result

        return timed

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time the product's own functions in the block."""
        watched: list[tuple[Any, str, str, bool]] = [
            (ImageStore, "read", "read and decode (threads)", False),
            (Preprocessing, "__call__", "prepare for CLIP (threads)", False),
            (Letterbox, "__call__", "prepare for HPS (threads)", False),
            (ClipEncoder, "images", "image calls", True),
            (ClipEncoder, "texts", "text calls", True),
            (CLIPModel, "get_image_features", "image forward", True),
            (CLIPModel, "get_text_features", "text forward", True),
        ]
        load, ahead = LocalModel.load, missing_scores.read_ahead

        def loaded(model: LocalModel) -> Any:
            began, self._loading = time.perf_counter(), True
            try:
                found = load(model)
                synchronise()
            finally:
                self._loading = False
            self.add("load", time.perf_counter() - began)
            if self.batch and isinstance(found, ClipEncoder):
                found.batch_size = self.batch
            return found

        def waited(*arguments: Any) -> Iterator[Any]:
            chunks = ahead(*arguments)
            while True:
                began = time.perf_counter()
                chunk = next(chunks, None)
                self.add("wait for pictures", time.perf_counter() - began)
                if chunk is None:
                    return
                yield chunk

        with ExitStack() as stack:
            for owner, name, stage, waits in watched:
                if name in vars(owner):
                    call = self.timed(stage, getattr(owner, name), waits)
                    # A plain function, so that it is bound to the instance.
                    stack.enter_context(mock.patch.object(owner, name, call))
            stack.enter_context(mock.patch.object(LocalModel, "load", loaded))
            stack.enter_context(mock.patch.object(missing_scores, "read_ahead", waited))
            if self.batch:
                stack.enter_context(mock.patch.object(missing_scores, "CHUNK_IMAGES", self.batch))
            yield


# Random models


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of CLIP's form and size: a byte alphabet and, for full size, made-up merges of two letters."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    ends = [f"{letter}</w>" for letter in letters]
    merges = list(islice(product(letters, ends), SIZES.merges))
    words = [*letters, *ends, *(f"{left}{right}" for left, right in merges), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def words_of(count: int) -> dict[str, int]:
    """The sizes of a vocabulary of `count` words, in a text configuration's words."""
    special = {"bos_token_id": count - 2, "eos_token_id": count - 1, "pad_token_id": count - 1}
    return {"vocab_size": count, "max_position_embeddings": 77} | special


VOCABULARY = SIZES.merges + 512 + 2


def stir(model: nn.Module, seed: int) -> None:
    """Weights so large that what goes in shows in what comes out: at their usual scale it hardly does."""
    dice = torch.Generator(DEVICE).manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5, generator=dice)
        elif name.endswith("bias"):
            nn.init.normal_(weight, std=0.1, generator=dice)


def save_clip(folder: Path) -> Path:
    """A random CLIP ViT-L/14 in transformers' form, fp32 as published."""
    save_tokenizer(folder)
    vision = SIZES.clip_image.config | {"patch_size": 14, "image_size": 224}
    width = {"projection_dim": SIZES.clip_width}
    config = CLIPConfig(
        text_config=SIZES.clip_text.config | words_of(VOCABULARY) | width, vision_config=vision | width, **width
    )
    with torch.device(DEVICE):
        model = CLIPModel(config)
    stir(model, 0)
    model.save_pretrained(folder)
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    preprocessing = {"crop_size": 224, "size": 224, "resample": 3, "image_mean": mean, "image_std": deviation}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    tower = {k: v for k, v in model.state_dict().items() if k.startswith(("vision_model.", "visual_projection."))}
    # As published: the heads lie beside a whole image tower, V1 in safetensors and V2 in torch's form.
    (folder.parent / "v1").mkdir()
    (folder.parent / "v2").mkdir()
    save_file(_on_cpu(tower | _head("predictor.", (SIZES.clip_width,))), folder.parent / "v1/model.safetensors")
    second = _head("layers.", (SIZES.clip_width, 1024, 128, 64, 16))
    torch.save(_on_cpu(tower | second), folder.parent / "v2/pytorch_model.bin")
    return folder


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _head(prefix: str, widths: tuple[int, ...]) -> dict[str, Tensor]:
    """An aesthetic head whose marks spread as published ones do, about 5."""
    places = [""] if len(widths) == 1 else ["0.", "2.", "4.", "6.", "7."]
    gain, dice, state = 12 if len(widths) == 1 else 1.6, torch.Generator().manual_seed(1), {}
    for place, inputs, outputs in zip(places, widths, (*widths[1:], 1), strict=True):
        state[f"{prefix}{place}weight"] = torch.randn(outputs, inputs, generator=dice) * gain / inputs**0.5
        state[f"{prefix}{place}bias"] = torch.full((outputs,), 5.0 if outputs == 1 else 0.0)
    return state


def save_hps(folder: Path) -> Path:
    """A random HPS v2.1 in open_clip's form, fp16 in torch's file as published."""
    dice = torch.Generator(DEVICE).manual_seed(2)

    def drawn(*shape: int, fan: int | None = None) -> Tensor:
        return torch.randn(shape, generator=dice, device=DEVICE) * (fan or shape[-1]) ** -0.5

    def norm(name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": torch.ones(width), f"{name}.bias": 0.1 * torch.randn(width)}

    def linear(name: str, outputs: int, inputs: int, dot: str = ".") -> dict[str, Tensor]:
        return {f"{name}{dot}weight": drawn(outputs, inputs), f"{name}{dot}bias": 0.1 * torch.randn(outputs)}

    image, text, width = SIZES.hps_image, SIZES.hps_text, SIZES.hps_width
    state: dict[str, Tensor] = {
        "logit_scale": torch.tensor(4.6),
        "token_embedding.weight": drawn(VOCABULARY, text.width),
        "positional_embedding": drawn(77, text.width),
        "text_projection": drawn(text.width, width, fan=text.width),
        "visual.class_embedding": drawn(image.width),
        "visual.positional_embedding": drawn(257, image.width),
        "visual.conv1.weight": drawn(image.width, 3, 14, 14, fan=3 * 14 * 14),
        "visual.proj": drawn(image.width, width, fan=image.width),
    }
    for name, wide in (("ln_final", text.width), ("visual.ln_pre", image.width), ("visual.ln_post", image.width)):
        state |= norm(name, wide)
    for prefix, tower in (("", text), ("visual.", image)):
        for layer in range(tower.layers):
            name = f"{prefix}transformer.resblocks.{layer}"
            state |= norm(f"{name}.ln_1", tower.width) | norm(f"{name}.ln_2", tower.width)
            state |= linear(f"{name}.attn.in_proj", 3 * tower.width, tower.width, "_")
            state |= linear(f"{name}.attn.out_proj", tower.width, tower.width)
            state |= linear(f"{name}.mlp.c_fc", tower.mlp, tower.width)
            state |= linear(f"{name}.mlp.c_proj", tower.width, tower.mlp)
    folder.mkdir()
    half = {name: value.half() for name, value in state.items()}
    torch.save({"state_dict": _on_cpu(half)}, folder / "HPS_v2.1_compressed.pt")
    return folder


def save_lpips(folder: Path) -> Path:
    """A random VGG16's convolutions; LPIPS' own heads come with its package."""
    state, place, inputs = {}, 0, 3
    for widths in ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3):
        for width in widths:
            state[f"features.{place}.weight"] = torch.randn(width, inputs, 3, 3) * (2 / (9 * inputs)) ** 0.5
            state[f"features.{place}.bias"] = torch.zeros(width)
            inputs, place = width, place + 2
        place += 1
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"side": SIZES.lpips_side}))
    return folder


def _text_encoder(kind: Any, tower: Tower, **options: Any) -> Any:
    return kind(CLIPTextConfig(**tower.config, **words_of(VOCABULARY), projection_dim=tower.width, **options))


def _tokenizer() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder))
        return CLIPTokenizer.from_pretrained(folder)


def sdxl_parts(in_channels: int = 4) -> dict[str, Any]:
    """The components of an SDXL pipeline, built on the device."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device(DEVICE):
        parts = {
            "unet": UNet2DConditionModel(**SIZES.unet, in_channels=in_channels),
            "vae": AutoencoderKL(**SIZES.vae, latent_channels=4, scaling_factor=0.13025),
            "text_encoder": _text_encoder(CLIPTextModel, SIZES.text_l),
            "text_encoder_2": _text_encoder(CLIPTextModelWithProjection, SIZES.text_g, hidden_act="gelu"),
        }
    words = _tokenizer()
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    halves = {name: part.to(HALF).eval() for name, part in parts.items()}
    return halves | {"tokenizer": words, "tokenizer_2": words, "scheduler": scheduler}


def sd3_parts() -> dict[str, Any]:
    """The components of a Stable Diffusion 3 (medium) pipeline without T5, which it may lack."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    torch.manual_seed(0)
    channels = {"in_channels": 16, "out_channels": 16}
    bare = {"use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5305, "shift_factor": 0.0609}
    with torch.device(DEVICE):
        parts = {
            "transformer": SD3Transformer2DModel(**SIZES.sd3, **channels),
            "vae": AutoencoderKL(**SIZES.vae, latent_channels=16, **bare),
            "text_encoder": _text_encoder(CLIPTextModelWithProjection, SIZES.text_l),
            "text_encoder_2": _text_encoder(CLIPTextModelWithProjection, SIZES.text_g, hidden_act="gelu"),
        }
    words = _tokenizer()
    halves = {name: part.to(HALF).eval() for name, part in parts.items()}
    rest = {"text_encoder_3": None, "tokenizer_3": None, "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
    return halves | rest | {"tokenizer": words, "tokenizer_2": words}


def in_memory(engine: Any, parts: dict[str, Any], batch_size: int) -> Any:
    """An engine of the product's around components that are there, placed as the product places them."""

    def load(kind: Any, folder: Path, dtype: torch.dtype, **options: Any) -> Any:
        from diffusers.utils import logging

        logging.set_verbosity_error()
        return kind(**parts, **options)

    with mock.patch.object(pipeline, "load_pipeline", load):
        return engine(Path(), batch_size, "fp16" if ON_GPU else "fp32")


def sdxl(batch_size: int = 16) -> Any:
    """`SdxlEngine` at SDXL's size."""
    from resources.engines.sdxl import SdxlEngine

    return in_memory(SdxlEngine, sdxl_parts(), batch_size)


def sd3(batch_size: int = 16) -> Any:
    """`Sd3Engine` at SD3 medium's size, without T5."""
    from resources.engines.sd3 import Sd3Engine

    return in_memory(Sd3Engine, sd3_parts(), batch_size)


def editor(batch_size: int = 4) -> Any:
    """`InstructPix2PixEditor` at SDXL's size: its UNet sees the source in four more channels."""
    from resources.engines.instruct_pix2pix import InstructPix2PixEditor

    return in_memory(InstructPix2PixEditor, sdxl_parts(in_channels=8), batch_size)


ENGINES = {"sdxl": sdxl, "sd3": sd3, "editor": editor}


def built(name: str, batch_size: int) -> LocalModel:
    """One of `ENGINES` as the model slot takes it: without a folder there is nothing to check."""
    return LocalModel(name, None, f"{__name__}:{name}", {"batch_size": batch_size})


def own_bytes(model: Any) -> int:
    """The bytes of a model's weights and buffers."""
    parts = model.pipeline.components.values() if hasattr(model, "pipeline") else [model.model]
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))


# What all sections share


@dataclass
class Bench:
    """Models and pictures, made when a section first asks for them, and what was found."""

    folder: Path
    goals: list[dict[str, Any]] = field(default_factory=list)
    peak: dict[str, float] = field(default_factory=dict)
    until: float = float("inf")
    """When the section under way is stopped, by the monotonic clock."""

    @property
    def left(self) -> float:
        """Seconds that the section under way has left."""
        return self.until - time.monotonic()

    def goal(self, name: str, bar: str, measured: Any, met: bool, of_gpu: bool = False) -> None:
        """Record a goal; one `of_gpu` says nothing on a CPU."""
        if ON_GPU or not of_gpu:
            self.goals.append({"goal": name, "bar": bar, "measured": measured, "met": bool(met)})

    @cached_property
    def models(self) -> dict[str, Path]:
        """The folders of the scorers, by the registry's names."""
        began, folder = time.perf_counter(), self.folder / "models"
        folder.mkdir()
        clip = save_clip(folder / "clip")
        found = {"clip": clip, "aesthetic_linear": folder / "v1", "aesthetic_v2": folder / "v2"}
        found |= {"hps": save_hps(folder / "hps"), "lpips": save_lpips(folder / "lpips")}
        compute.release_memory()
        work = self.work(found)
        # A folder of the user's own is hashed once a process, one of the hub's cache never.
        with ThreadPoolExecutor() as pool:
            list(pool.map(work.fingerprint, found))
        say(f"scorers written and hashed in {time.perf_counter() - began:.1f} s")
        return found

    @cached_property
    def pictures(self) -> list[tuple[str, str]]:
        """Paths below the folder and SHA-256 of the PNG files; only so many are distinct."""
        began, side = time.perf_counter(), SIZES.picture_side
        (self.folder / "bench").mkdir()

        def draw(index: int) -> str:
            rng = np.random.default_rng(index)
            rough = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((side, side), 3)
            noisy = np.asarray(rough, np.int16) + rng.integers(-10, 11, (side, side, 3), dtype=np.int16)
            file = self.folder / f"bench/{index:05d}.png"
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, compress_level=1)
            return hashlib.sha256(file.read_bytes()).hexdigest()

        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            hashes = list(pool.map(draw, range(SIZES.distinct)))
        for index in range(SIZES.distinct, SIZES.images):
            source, copied = (self.folder / f"bench/{n:05d}.png" for n in (index % SIZES.distinct, index))
            try:
                os.link(source, copied)
            except OSError:
                shutil.copy(source, copied)
        say(f"{SIZES.images} files drawn in {time.perf_counter() - began:.1f} s")
        return [(f"bench/{index:05d}.png", hashes[index % SIZES.distinct]) for index in range(SIZES.images)]

    def work(self, models: dict[str, Path] | None = None) -> Work:
        """The product's scoring over an empty database, with these models in place of the published ones."""
        home = self.folder / f"home-{uuid4().hex[:8]}"
        home.mkdir()
        lines = [f'{name} = "{path}"\n' for name, path in (models or self.models).items()]
        (home / "models.toml").write_text("[models]\n" + "".join(lines))
        named = {"FLEXY_MODELS": "full", "FLEXY_MODEL_REGISTRY": str(home / "models.toml")}
        settings = Settings.read({"FLEXY_HOME": str(home)} | named)
        database = Database(settings.database_url)
        with database.begin() as connection:
            metadata.create_all(connection)
        return Work(database, ImageStore(str(self.folder)), ModelSlot(), settings)

    def with_rows(self) -> Work:
        """The same with a row for each file; prompts repeat after a hundred, as in a sweep."""
        work = self.work()
        rows = [
            {
                "id": uuid4(),
                "engine": "bench",
                "batch": BATCH,
                "prompt": prompt,
                "image_path": path,
                "image_sha256": sha,
            }
            for (path, sha), prompt in zip(self.pictures, prompts(len(self.pictures)), strict=True)
        ]
        with work.database.begin() as connection:
            add_images(connection, rows)
        return work


def prompts(count: int) -> list[str]:
    """As many prompts, a hundred of them distinct."""
    subjects = ("an old castle of glass", "a fox in the rain", "two portraits, oil on canvas", "neon streets at dawn")
    return [f"{subjects[index % 4]}, number {index % 100}" for index in range(count)]


def requests(count: int, side: int, steps: int) -> list[ImageRequest]:
    """Images of equal steps and size, each with a prompt, guidance and seed of its own."""
    guided = [(index, prompt, 2.0 + index % 7) for index, prompt in enumerate(prompts(count))]
    return [ImageRequest(prompt, None, steps, guidance, seed, side, side) for seed, prompt, guidance in guided]


# Sections


def scores(bench: Bench, found: dict[str, Any]) -> None:
    """The four scores from files to committed rows, and the towers alone."""
    found |= {"images": SIZES.images, "runs": {}, "towers": {}, "skipped": []}
    _ = bench.models, bench.pictures
    four = [name for name in METRICS if name in SPAN]
    runs: list[tuple[str, list[str], int | None]] = [("all four", four, None)]
    runs += [(f"all four, batch size {size}", four, size) for size in SIZES.scoring_batches]
    runs += [(f"{METRICS[name].label} alone", [name], None) for name in four]
    longest = 0.0
    for name, chosen, batch in runs:
        if bench.left < 1.5 * longest + 10:
            found["skipped"].append(name)
            say(f"{name}: skipped, {bench.left:.0f} s left")
            continue
        found["runs"][name] = run = score_files(bench, chosen, batch)
        longest = max(longest, run["wall_s"])
        say(f"{name}: {run['wall_s']:.2f} s, {run['images_a_second']:.0f} images/s, MFU {run['mfu']:.2f}")
        if name == "all four":
            met = run["wall_s"] <= 10, run["mfu"] >= 0.4
            bench.goal(f"four scores of {SIZES.images} files", "≤ 10 s", run["wall_s"], met[0], of_gpu=True)
            bench.goal("MFU of the image forward passes", "≥ 0.40", run["mfu"], met[1], of_gpu=True)
            towers_alone(bench, found["towers"])
        short = run["asked"] - run["committed"]
        bench.goal(f"{name}: every score committed", "all", f"{run['committed']} of {run['asked']}", not short)
    stages = ("load", "wait for pictures", "image forward", "stack and transfer", "text calls", "rest")
    table(
        ("run", "wall (s)", "images/s", "forward share", "MFU of image forward", *(f"{s} (s)" for s in stages)),
        [
            (name, run["wall_s"], run["images_a_second"], run["forward_share"], run["mfu"], *(run[s] for s in stages))
            for name, run in found["runs"].items()
        ],
    )
    threads = {k: v for k, v in found["runs"]["all four"]["stages_s"].items() if "threads" in k}
    table(
        ("on reading threads, summed", "s", "ms an image"), [(k, v, 1e3 * v / SIZES.images) for k, v in threads.items()]
    )
    table(
        ("image tower alone", "images/s", "TFLOP/s", "MFU"),
        [(name, t["images_a_second"], t["tflops"], t["mfu"]) for name, t in found["towers"].items()],
    )


def towers_alone(bench: Bench, found: dict[str, Any]) -> None:
    """Each image tower by batch size."""
    work = bench.work()
    for name, tower in (("clip", SIZES.clip_image), ("hps", SIZES.hps_image)):
        model = work.slot.get(work.model(name)).model
        for size in SIZES.tower_batches:
            found[f"{name}, batch size {size}"] = tower_rate(bench, model, tower, size)
        del model
    work.slot.free()


def score_files(bench: Bench, chosen: Sequence[str], batch: int | None) -> dict[str, Any]:
    """One run over all files with a fresh database, loading included."""
    work, stages = bench.with_rows(), Stages(batch=batch)
    with stages.watching():
        began = time.perf_counter()
        if any(METRICS[name].reads for name in chosen):
            list(missing_scores.embed_images(work, [BATCH], lambda _: None))
        for name in chosen:
            list(missing_scores.score_images(work, METRICS[name], [BATCH], lambda _: None))
        synchronise()
        wall = time.perf_counter() - began
    work.slot.free()
    columns = [bench_run_results.c[name] for name in chosen]
    with work.database.begin(reading=True) as connection:
        committed = sum(connection.execute(sa.select(*map(sa.func.count, columns))).one())
    work.database.engine.dispose()
    s = dict.fromkeys(("load", "wait for pictures", "image calls", "text calls", "image forward", "text forward"), 0.0)
    s |= stages.seconds
    reads = any(METRICS[name].reads for name in chosen), any(not METRICS[name].reads for name in chosen)
    gflop = SIZES.images * sum(t.gflop for t, on in zip((SIZES.clip_image, SIZES.hps_image), reads, strict=True) if on)
    return {
        "wall_s": wall,
        "images_a_second": SIZES.images / wall,
        "forward_share": (s["image forward"] + s["text forward"]) / wall,
        "mfu": gflop / 1e3 / max(s["image forward"], 1e-9) / bench.peak["half"],
        "load": s["load"],
        "wait for pictures": s["wait for pictures"],
        "image forward": s["image forward"],
        # Stacking, host to device, normalising, device to host.
        "stack and transfer": s["image calls"] - s["image forward"],
        "text calls": s["text calls"],
        "rest": wall - s["load"] - s["wait for pictures"] - s["image calls"] - s["text calls"],
        "stages_s": s,
        "committed": committed,
        "asked": SIZES.images * len(chosen),
        "batch_size": batch,
    }


@torch.inference_mode()
def tower_rate(bench: Bench, model: CLIPModel, tower: Tower, size: int) -> dict[str, float]:
    """The image tower on pixels that are on the device."""
    pixels = torch.randn(size, 3, 224, 224, device=DEVICE, dtype=model.dtype)
    seconds = median_seconds(lambda: model.get_image_features(pixels))
    tflops = size * tower.gflop / 1e3 / seconds
    return {"images_a_second": size / seconds, "tflops": tflops, "mfu": tflops / bench.peak["half"]}


def parity(bench: Bench, found: dict[str, Any]) -> None:
    """Half precision against full, the same weights and pixels."""
    store, asked = ImageStore(str(bench.folder)), prompts(SIZES.parity_images)
    pictures = [store.read(path) for path, _ in bench.pictures[: SIZES.parity_images]]
    values: dict[str, dict[str, NDArray[np.floating]]] = {name: {} for name in SPAN}
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    models = bench.models
    heads = {
        name: aesthetic.load_aesthetic(models["aesthetic_v2"], "mlp") for name in ("aesthetic_score", "aes_v2_score")
    }
    for encoder in (ClipEncoder(models["clip"]), HpsScorer(models["hps"], tokenizer=models["clip"])):
        _tf32(False)
        whole, prepared = encoder.model, [encoder.prepare(picture) for picture in pictures]
        for precision, kind in kinds.items():
            encoder.model = copy.deepcopy(whole).to(kind)
            seen, said = (
                np.concatenate([call(part[i : i + 16]) for i in range(0, len(part), 16)])
                for call, part in ((encoder.images, prepared), (encoder.texts, asked))
            )
            cosines = np.einsum("nd,nd->n", seen, said)
            if isinstance(encoder, HpsScorer):
                values["hps_v2_score"][precision] = cosines
                continue
            values["clip_score"][precision] = cosines
            for name, head in heads.items():
                values[name][precision] = head.score_embeddings(seen)
        encoder.model = whole = None  # type: ignore[assignment]
        _tf32(True)
    compute.release_memory()
    rows = found.setdefault("differences", [])
    for name, by_precision in values.items():
        for precision, share in TOLERANCE.items():
            apart = np.abs(by_precision[precision].astype(np.float64) - by_precision["fp32"])
            bar, spread = share * SPAN[name], float(np.std(by_precision["fp32"]))
            row = {"metric": name, "precision": precision, "largest": float(apart.max()), "mean": float(apart.mean())}
            rows.append(row | {"bar": bar, "spread_of_fp32": spread, "pictures": len(pictures)})
            bench.goal(
                f"{name} in {precision} against fp32", f"≤ {bar:.0e}", row["largest"], row["largest"] <= bar, True
            )
    heading = ("metric", "precision", "largest", "mean", "bar", "spread_of_fp32")
    table(heading, [[row[key] for key in heading] for row in rows])


def _tf32(on: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def generation(bench: Bench, found: dict[str, Any]) -> None:
    """Batched against one by one."""
    engine, name_of, longest = None, "", 0.0
    columns = {
        "images_a_second": "images/s",
        "speedup": "speed-up",
        "share_of_peak": "share of peak",
        "peak_gb": "peak memory (GB)",
        "largest_difference": "largest difference of the first image, of 255",
        "mean_difference": "mean",
    }
    for name, side, steps, repeats, counts in SIZES.generation:
        began = time.monotonic()
        if bench.left < longest:
            say(f"{name} at {side}²: skipped, {bench.left:.0f} s left")
            found[f"{name} {side}"] = "skipped"
            continue
        if name != name_of:
            engine = None
            compute.release_memory()
            engine, name_of = ENGINES[name](max(counts)), name
            say(f"{name} built")
        found[f"{name} {side}"] = made = {}
        rates(bench, engine, side, steps, repeats, counts, made)
        longest = max(longest, time.monotonic() - began)
        print(f"\n{name}, {side} × {side}, {steps} steps, {made['gflop_an_image']:.0f} GFLOP an image", end="")
        rows = [(size, *(row[key] for key in columns)) for size, row in made["by_batch"].items()]
        table(("images a call", *columns.values()), rows)
        speedup, deviation = made["speedup"], made["deviation"]
        bench.goal(f"{name} at {side}²: not of one colour", "deviation > 1", deviation, deviation > 1, of_gpu=True)
        if (name, side) == ("sdxl", 512):
            bench.goal("SDXL at 512², batched against one by one", "≥ 1.5", speedup, speedup >= 1.5, of_gpu=True)


def rates(
    bench: Bench, engine: Any, side: int, steps: int, repeats: int, counts: dict[int, int], found: dict[str, Any]
) -> None:
    """Images a second by batch size, and how the first image differs from the one made alone."""
    engine.generate(requests(1, side, 1))
    gflop = []
    for few in (1, 2):
        with FlopCounterMode(display=False) as counter:
            engine.generate(requests(1, side, few))
        gflop.append(counter.get_total_flops() / 1e9)
    an_image = gflop[0] + (steps - 1) * (gflop[1] - gflop[0])
    by_batch: dict[int, dict[str, Any]] = {}
    found |= {"side": side, "steps": steps, "gflop_an_image": an_image, "by_batch": by_batch}
    alone: NDArray[np.int16] | None = None
    for size, count in counts.items():
        asked, times = requests(count, side, steps), []
        engine.generate(requests(size, side, 2))
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(repeats):
            synchronise()
            began = time.perf_counter()
            made = [image for i in range(0, count, size) for image in engine.generate(asked[i : i + size])]
            synchronise()
            times.append(time.perf_counter() - began)
        picture = np.asarray(made[0], np.int16)
        alone = picture if alone is None else alone
        rate, apart = count / statistics.median(times), np.abs(picture - alone)
        by_batch[size] = {
            "images_a_second": rate,
            "seconds": times,
            "speedup": rate / by_batch[1]["images_a_second"] if by_batch else 1.0,
            "share_of_peak": rate * an_image / 1e3 / bench.peak["half"],
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else 0.0,
            "largest_difference": int(apart.max()),
            "mean_difference": float(apart.mean()),
        }
        found |= {"speedup": max(row["speedup"] for row in by_batch.values()), "deviation": float(alone.std())}
        say(f"{side}², {size} a call: {rate:.2f} images/s")


def slot(bench: Bench, found: dict[str, Any]) -> None:
    """The memory after each switch of the model slot, each model used once."""
    work = bench.work()
    held, side = ModelSlot(), SIZES.generation[0][1]
    compute.release_memory()
    before, rows = allocated(), found.setdefault("switches", [])

    def switched(name: str, model: LocalModel) -> None:
        # Nothing here may refer to the model once this returns.
        began = time.perf_counter()
        loaded = held.get(model)
        seconds, after = time.perf_counter() - began, allocated()
        own = own_bytes(loaded)
        if hasattr(loaded, "generate"):
            loaded.generate(requests(1, side, 2))
        else:
            loaded.images([loaded.prepare(Image.new("RGB", (64, 64), "teal"))] * 4)
        rows.append({"model": name, "load_s": seconds, "own_mb": own / MB, "after_mb": (after - before) / MB})
        rows[-1] |= {"used_mb": (allocated() - before) / MB, "alone": after - before <= 1.02 * own + LEFTOVER}

    for name in ("clip", "hps", "sdxl", "clip", "sd3", "hps"):
        switched(name, built(name, 4) if name in ENGINES else work.model(name))
    held.free()
    left = (allocated() - before) / MB
    heading = ("model", "load_s", "own_mb", "after_mb", "used_mb", "alone")
    table(heading, [[row[key] for key in heading] for row in rows])
    say(f"after the last was freed: {left:.0f} MB")
    bench.goal(
        "after each switch the new model's memory alone",
        "own + 2 % + 128 MB",
        max(r["after_mb"] for r in rows),
        all(row["alone"] for row in rows),
    )
    bench.goal("after the last was freed", "≤ 128 MB", left, left * MB <= LEFTOVER)
    found["left_mb"] = left


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Allow the process so many bytes of the GPU's memory, by the allocator's own limit."""
    compute.release_memory()
    torch.cuda.set_per_process_memory_fraction(min(size / torch.cuda.mem_get_info()[1], 1.0))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        compute.release_memory()


def memory(bench: Bench, found: dict[str, Any]) -> None:
    """Out of memory halved, offloading forced; each by itself."""

    def attempt(name: str, call: Callable[[], dict[str, Any]]) -> None:
        found[name] = row = {"done": False}
        try:
            row |= call()
        except Exception as error:
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}"
        compute.release_memory()
        bench.goal(name, "done", row.get("ended_at", row.get("peak_gb", row.get("error"))), row["done"])
        say(f"{name}: {row}")

    gb = 2**30
    decided = {
        "resident": pipeline.choose_placement(7 * gb, 5 * gb, 80 * gb),
        "offload": pipeline.choose_placement(7 * gb, 5 * gb, 8 * gb),
        "sequential": pipeline.choose_placement(7 * gb, 5 * gb, 4 * gb),
    }
    found["placement"] = decided
    bench.goal("placement by free memory", "as named", list(decided.values()), all(k == v for k, v in decided.items()))
    if not ON_GPU:
        attempt("SDXL, out of memory (a fake error) halved", halved_by_a_fake_error)
        return
    attempt("SDXL at 1024², out of memory halved", halved_sdxl)
    attempt("CLIP's image tower, out of memory halved", lambda: halved_tower(bench))
    attempt("SDXL at 1024² in 8 GB, offloaded", lambda: offloaded(8, 1024, 8, "offload"))
    attempt("SDXL at 512² in 5 GB, offloaded layer by layer", lambda: offloaded(5, 512, 2, "sequential"))


def halved_by_a_fake_error() -> dict[str, Any]:
    """The reduced form: an engine that cannot make more than two at a time."""
    engine, calls = sdxl(8), []

    def call(part: Sequence[ImageRequest]) -> list[Image.Image]:
        calls.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return engine.generate(part)

    return halved(call, requests(8, SIZES.generation[0][1], 1)) | {"calls": calls}


def halved(call: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence[Any]) -> dict[str, Any]:
    """What `HalvingBatches` makes of all items in one call that is too much."""
    halving = HalvingBatches(len(items))
    results = halving(call, items)
    failed = sum(isinstance(result, FlexyError) for result in results)
    done = halving.size < len(items) == len(results) and not failed
    return {"asked_a_call": len(items), "ended_at": halving.size, "failed": failed, "done": done}


def squeezed(call: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence[Any]) -> dict[str, Any]:
    """`halved` in memory that is enough for about three of the items at a time."""
    # What a call of one and of two takes says what each further item takes.
    peaks = []
    for few in (1, 2):
        compute.release_memory()
        torch.cuda.reset_peak_memory_stats()
        call(items[:few])
        peaks.append(torch.cuda.max_memory_reserved())
    an_item = max(peaks[1] - peaks[0], 32 * 2**20)
    limit = peaks[1] + an_item
    calls: list[int] = []

    def counted(part: Sequence[Any]) -> Sequence[Any]:
        calls.append(len(part))
        return call(part)

    with at_most(limit):
        found = halved(counted, items)
    return found | {"calls": calls, "limit_gb": limit / 1e9, "an_item_gb": an_item / 1e9}


def halved_sdxl() -> dict[str, Any]:
    """SDXL asked for more than fits."""
    engine = sdxl(16)
    return squeezed(engine.generate, requests(16, 1024, 2))


def halved_tower(bench: Bench) -> dict[str, Any]:
    """CLIP's image tower asked for more than fits; an item is 32 pictures, one is less than the allocator rounds to."""
    work = bench.work()
    encoder = work.slot.get(work.model("clip"))
    items = [[encoder.prepare(Image.new("RGB", (224, 224), (7 * i, 90, 120)))] * 32 for i in range(16)]

    def call(part: Sequence[Any]) -> list[Any]:
        vectors = encoder.images([pixels for item in part for pixels in item])
        return list(vectors.reshape(len(part), 32, -1))

    return squeezed(call, items)


def offloaded(limit_gb: int, side: int, steps: int, wanted: str) -> dict[str, Any]:
    """An SDXL engine placed and run in so much memory, by the product's own rule."""
    from resources.engines.sdxl import SdxlEngine

    limit, parts = limit_gb * 2**30, sdxl_parts()
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.cpu()
    placed: list[str] = []
    rule = pipeline.choose_placement

    def forced_placement(*sizes: int) -> Any:
        placed.append(rule(*sizes))
        return placed[-1]

    with at_most(limit):
        whole = torch.cuda.mem_get_info()[1]
        # What the process is allowed is all there is for it.
        with (
            mock.patch.object(torch.cuda, "mem_get_info", lambda *_: (limit, whole)),
            mock.patch.object(pipeline, "choose_placement", forced_placement),
        ):
            engine = in_memory(SdxlEngine, parts, 1)
        engine.generate(requests(1, side, 1))
        torch.cuda.reset_peak_memory_stats()
        synchronise()
        began = time.perf_counter()
        (image,) = engine.generate(requests(1, side, steps))
        seconds, peak = time.perf_counter() - began, torch.cuda.max_memory_allocated()
    row = {"limit_gb": limit_gb, "side": side, "steps": steps, "seconds": seconds, "peak_gb": peak / 2**30}
    return row | {"placed_as": placed[0], "done": image.size == (side, side) and placed == [wanted]}


def edit_search(bench: Bench, found: dict[str, Any]) -> None:
    """One task searched by both methods at equal cost, through the product's own search."""
    work, side = bench.work(), SIZES.edit_side
    rough = np.random.default_rng(5).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    source = Image.fromarray(rough).resize((side, side), 3)
    path = "edits/sources/bench.png"
    sha = work.store.write(path, source)
    scouts = EacpsParameters(scouts=2)
    plan = Comparison("bench_editor", SIZES.edit_steps, 4.0, "bench", budgets=(4,), eacps=scouts)
    run = plan.run_id
    task = EditTaskRow(uuid5(run, "one"), run, plan.batch(0), 0, "one", "make the sky red", path, sha)
    with work.database.begin() as connection:
        edits.save_comparison(connection, run, plan.to_json(), [task])
    model, methods = built("editor", 4), found.setdefault("methods", {})
    found["budget"] = plan.nfe[0]
    with mock.patch.object(registry, "find_editor", lambda name, settings: model):
        for method in METHODS:
            loads, load = [], LocalModel.load

            def timed(asked: LocalModel, load: Any = load, loads: list[float] = loads) -> Any:
                began = time.perf_counter()
                loaded = load(asked)
                loads.append(time.perf_counter() - began)
                return loaded

            began, searching = time.perf_counter(), SearchRunner(work, plan, method, [task])
            with mock.patch.object(LocalModel, "load", timed):
                searching.run(lambda nfe, method=method: say(f"{method}: {nfe} denoising steps"))
                made = searching.candidates()
                chosen = list(searching.winners(made))
                edit_metrics.score_independent(work, [task], chosen)
            with work.database.begin() as connection:
                edits.record_selections(connection, chosen)
            methods[method] = {
                "nfe": sum(each.nfe for each in made),
                "candidates": len(made),
                "stages": sorted({each.stage for each in made}),
                "failed": [each.error for each in made if each.error],
                "unmeasured": sum(value is None for each in made for value in each.scores.values()),
                "winners": len(chosen),
                "seconds": time.perf_counter() - began,
                "load_s": sum(loads),
                "loads": len(loads),
                "steps_a_second": 1e3 * sum(c.nfe for c in made) / max(sum(c.elapsed_ms or 0 for c in made), 1),
            }
    work.slot.free()
    heading = ("nfe", "candidates", "winners", "seconds", "load_s", "loads", "steps_a_second")
    table(("method", *heading), [(name, *(row[key] for key in heading)) for name, row in methods.items()])
    nfe = {name: row["nfe"] for name, row in methods.items()}
    budget = plan.nfe[0]
    bench.goal("both methods at equal NFE", str(budget), nfe, set(nfe.values()) == {budget})
    sound = all(row["winners"] == 1 and not row["failed"] and not row["unmeasured"] for row in methods.values())
    bench.goal("each search done, every candidate measured, one winner", "yes", sound, sound)


# Variants


def explore(bench: Bench, found: dict[str, Any]) -> None:
    """Variants, each by itself and bounded: one that fails or takes too long leaves the others alone."""

    def attempt(name: str, call: Callable[[], Any], seconds: float = 20) -> None:
        left = bench.left - 5
        if left < 1:
            found[name] = "skipped: no time left"
            return
        try:
            with limited(min(seconds, left)):
                found[name] = call()
        except (Exception, OverBudget) as error:
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
        print(f"| {name} | {found[name]} |", flush=True)

    print("\n| variant | found |\n|---|---|")
    explore_pictures(bench, attempt)
    explore_towers(bench, attempt)
    explore_sdxl(bench, attempt)


Attempt = Callable[..., None]


def explore_pictures(bench: Bench, attempt: Attempt) -> None:
    """Decoding, preparing and encoding on the CPU."""
    store = ImageStore(str(bench.folder))
    files = [path for path, _ in bench.pictures[: 256 if ON_GPU else 8]]
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    clip, hps = Preprocessing(224, mean, std), Letterbox(224, mean, std)
    picture = store.read(files[0])

    def both(path: str) -> None:
        read = store.read(path)
        clip(read)
        hps(read)

    def files_a_second(threads: int) -> str:
        some = files[: 32 * threads]
        with ThreadPoolExecutor(threads) as pool:
            began = time.perf_counter()
            list(pool.map(both, some))
            return f"{len(some) / (time.perf_counter() - began):.0f} files/s"

    for threads in (1, 4, 8, 16):
        attempt(f"read, decode and prepare for both, {threads} threads", lambda n=threads: files_a_second(n))
    steps: dict[str, Callable[[], Any]] = {
        "read and decode": lambda: store.read(files[0]),
        "prepare for CLIP": lambda: clip(picture),
        "prepare for HPS": lambda: hps(picture),
    }
    for level in (1, 4, 6):
        steps[f"PNG encode, level {level}"] = lambda n=level: picture.save(io.BytesIO(), "PNG", compress_level=n)
    for name, step in steps.items():
        attempt(f"{name}, one thread", lambda step=step: f"{1e3 * median_seconds(step):.1f} ms")


def explore_towers(bench: Bench, attempt: Attempt) -> None:
    """The image towers and what feeds them."""
    work = bench.work()
    sizes, size = ((32, 64, 128, 256, 512), 128) if ON_GPU else ((2,), 2)
    for name, tower in (("clip", SIZES.clip_image), ("hps", SIZES.hps_image)):
        model = work.slot.get(work.model(name)).model

        def rate(size: int, model: Any = model, tower: Tower = tower) -> str:
            found = tower_rate(bench, model, tower, size)
            return f"{found['images_a_second']:.0f} images/s, MFU {found['mfu']:.2f}"

        for each in sizes:
            attempt(f"{name} tower, batch size {each}", lambda n=each, rate=rate: rate(n), 10)
        for backend in (
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.MATH,
        ):

            def attended(backend: SDPBackend = backend, rate: Any = rate) -> str:
                with sdpa_kernel(backend):
                    return rate(size)

            attempt(f"{name} tower, {backend.name}, batch size {size}", attended, 10)
        if ON_GPU:

            def compiled(model: Any = model, tower: Tower = tower) -> str:
                began, whole = time.perf_counter(), model.vision_model.forward
                model.vision_model.forward = torch.compile(whole)
                try:
                    found = tower_rate(bench, model, tower, size)
                finally:
                    del model.vision_model.forward
                took = time.perf_counter() - began
                return f"{found['images_a_second']:.0f} images/s, MFU {found['mfu']:.2f}, {took:.0f} s in all"

            attempt(f"{name} tower, torch.compile, batch size {size}", compiled, 40)
        del model, rate
    work.slot.free()
    pixels = [np.random.default_rng(i).integers(0, 256, (3, 224, 224), dtype=np.uint8) for i in range(size)]
    floats = [one.astype(np.float32) / 255 for one in pixels]
    pinned = torch.empty((size, 3, 224, 224), dtype=torch.uint8, pin_memory=ON_GPU)
    pinned_floats = torch.empty((size, 3, 224, 224), dtype=torch.float32, pin_memory=ON_GPU)

    def normalised(batch: Tensor) -> Tensor:
        return (batch.to(HALF) / 255 - 0.45) / 0.27

    def through(buffer: Tensor, items: Sequence[NDArray[Any]]) -> Tensor:
        np.stack(items, out=buffer.numpy())
        return buffer.to(DEVICE, non_blocking=True)

    feeds: dict[str, Callable[[], Any]] = {
        "float32 stacked, converted on its way": lambda: torch.from_numpy(np.stack(floats)).to(DEVICE, HALF),
        "float32 stacked, halved on the CPU": lambda: torch.from_numpy(np.stack(floats)).to(HALF).to(DEVICE),
        "float32 stacked, halved on the device": lambda: torch.from_numpy(np.stack(floats)).to(DEVICE).to(HALF),
        "float32 pinned, not blocking": lambda: through(pinned_floats, floats).to(HALF),
        "uint8 stacked, normalised on the device": lambda: normalised(torch.from_numpy(np.stack(pixels)).to(DEVICE)),
        "uint8 pinned, not blocking, normalised on the device": lambda: normalised(through(pinned, pixels)),
    }
    for name, feed in feeds.items():
        attempt(f"{size} images to the device: {name}", lambda f=feed: f"{1e3 * median_seconds(f):.2f} ms", 10)


def explore_sdxl(bench: Bench, attempt: Attempt) -> None:
    """The UNet's step and the VAE's decoding."""
    parts = sdxl_parts()
    unet, vae, config = parts["unet"], parts["vae"], parts["unet"].config
    time_ids = torch.tensor([[512.0, 512, 0, 0, 512, 512]], device=DEVICE)
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

    def inputs(size: int, side: int) -> dict[str, Any]:
        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, device=DEVICE, dtype=HALF)

        added = {"text_embeds": drawn(size, pooled), "time_ids": time_ids.expand(size, -1).to(HALF)}
        words = drawn(size, 77, config.cross_attention_dim)
        return {"sample": drawn(size, 4, side, side), "timestep": 500, "encoder_hidden_states": words} | {
            "added_cond_kwargs": added
        }

    @torch.inference_mode()
    def step(size: int, side: int = 64 if ON_GPU else 8, network: Any = unet, **layout: Any) -> str:
        given = inputs(size, side)
        if layout:
            given["sample"] = given["sample"].to(**layout)
        seconds = median_seconds(lambda: network(**given), repeats=5, warm_up=2)
        return f"{1e3 * seconds:.1f} ms, {1e3 * seconds / size:.2f} ms an image"

    @torch.inference_mode()
    def decode(size: int, side: int = 64 if ON_GPU else 8, **layout: Any) -> str:
        latents = torch.randn(size, 4, side, side, device=DEVICE, dtype=HALF).to(**layout)
        return f"{1e3 * median_seconds(lambda: vae.decode(latents).sample, repeats=5, warm_up=2):.1f} ms"

    sizes = (2, 8, 16, 32) if ON_GPU else (2,)
    for size in sizes:
        attempt(f"SDXL UNet, 512², {size} at a time", lambda n=size: step(n))
    attempt("VAE decode, 512², 4 at a time", lambda: decode(4 if ON_GPU else 1))
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):

        def attended(backend: SDPBackend = backend) -> str:
            with sdpa_kernel(backend):
                return step(sizes[-2] if ON_GPU else 2)

        attempt(f"SDXL UNet, 512², 16 at a time, {backend.name}", attended)
    last = {"memory_format": torch.channels_last}
    unet.to(**last)
    vae.to(**last)
    for size in sizes[:3]:
        attempt(f"SDXL UNet, 512², {size} at a time, channels_last", lambda n=size: step(n, **last))
    attempt("VAE decode, 512², 4 at a time, channels_last", lambda: decode(4 if ON_GPU else 1, **last))
    if ON_GPU:

        def compiled() -> str:
            began = time.perf_counter()
            found = step(16, network=torch.compile(unet), **last)
            return f"{found}, {time.perf_counter() - began:.0f} s in all"

        attempt("SDXL UNet, 512², 16 at a time, channels_last, torch.compile", compiled, 80)


SECTIONS: dict[str, Callable[[Bench, dict[str, Any]], None]] = {
    "scores": scores,
    "parity": parity,
    "generation": generation,
    "slot": slot,
    "memory": memory,
    "edits": edit_search,
    "explore": explore,
}


def machine() -> dict[str, Any]:
    """What this runs on."""
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if ON_GPU else "CPU, reduced form",
        "cpu_cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "full_size": SIZES is FULL,
    }
    if ON_GPU:
        found["memory_gb"] = torch.cuda.mem_get_info()[1] / 1e9
    return found


def place_for(needed: int) -> Path | None:
    """Where models and pictures are written: in memory where there is room."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and shutil.disk_usage(shared).free > needed else None


def run(bench: Bench, chosen: Sequence[str], out: Path) -> dict[str, Any]:
    """Run the sections, writing what is known after each."""
    found: dict[str, Any] = {"machine": machine(), "sections": {}, "goals": bench.goals}

    def write() -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f"{out.name}.part")
        temporary.write_text(json.dumps(found, indent=2, default=str) + "\n")
        temporary.replace(out)

    say(", ".join(f"{name}: {value}" for name, value in found["machine"].items()))
    bench.peak = {"half": peak_tflops(HALF), "bf16": peak_tflops(torch.bfloat16)}
    found["peak_tflops"] = bench.peak
    say(f"matrix product: {bench.peak['half']:.3g} TFLOP/s in {HALF}, {bench.peak['bf16']:.3g} in bf16")
    write()
    for name in chosen:
        say(f"section {name}, {BUDGETS[name]} s at most")
        began, section = time.perf_counter(), {"status": "ok", "result": {}}
        bench.until = time.monotonic() + BUDGETS[name]
        found["sections"][name] = section
        try:
            with limited(BUDGETS[name]):
                SECTIONS[name](bench, section["result"])
        except (Exception, OverBudget) as error:
            traceback.print_exc()
            stopped = isinstance(error, OverBudget)
            section |= {"status": "over budget" if stopped else "failed", "error": traceback.format_exc()}
        section["seconds"] = time.perf_counter() - began
        with suppress(Exception):
            if ON_GPU:
                torch.cuda.set_per_process_memory_fraction(1.0)
            gc.unfreeze()
            compute.release_memory()
        write()
        say(f"section {name}: {section['status']}, {section['seconds']:.1f} s")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--explore", action="store_true", help="measure variants as well")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/gpu.json")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else [name for name in SECTIONS if name != "explore"]
    if options.explore and "explore" not in chosen:
        chosen.append("explore")
    if unknown := set(chosen) - SECTIONS.keys():
        parser.error(f"there is no section {', '.join(sorted(unknown))}: use {', '.join(SECTIONS)}")
    with tempfile.TemporaryDirectory(dir=place_for(16 * 2**30) if ON_GPU else None) as folder:
        found = run(Bench(Path(folder)), chosen, options.out)
    table(
        ("goal", "bar", "measured", "met"),
        [[g[key] for key in ("goal", "bar", "measured", "met")] for g in found["goals"]],
    )
    say(f"written to {options.out}")
    failed = [name for name, section in found["sections"].items() if section["status"] != "ok"]
    sys.exit(bool(failed) or not all(goal["met"] for goal in found["goals"]))


if __name__ == "__main__":
    main()
