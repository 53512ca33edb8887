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

import copy
import gc
import hashlib
import io
import json
import math
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module
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
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers import CLIPTextModelWithProjection as ProjectedTextModel

from benchmarks import argument_parser, print_table, timed, write_results
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
MB, GIB = 1e6, 2**30
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BACKENDS = [getattr(SDPBackend, f"{name}_ATTENTION") for name in ("FLASH", "EFFICIENT", "CUDNN")]

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
    """A transformer of CLIP's."""

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


VIT_L = Tower(1024, 24, 4096, 16)

# GENERATION is engine, side, steps, repeats, and how many images are made for each batch size.
if ON_GPU:
    MERGES = 49408 - 512 - 2
    CLIP_IMAGE, CLIP_TEXT, CLIP_WIDTH = VIT_L, Tower(768, 12, 3072, 12), 768
    HPS_IMAGE, HPS_TEXT, HPS_WIDTH = Tower(1280, 32, 5120, 16), Tower(1024, 24, 4096, 16), 1024
    TEXT_G = Tower(1280, 32, 5120, 20)
    LPIPS_SIDE, PICTURE_SIDE, EDIT_SIDE, EDIT_STEPS = 256, 512, 512, 8
    IMAGES, DISTINCT_IMAGES, PARITY_IMAGES = 2000, 250, 64
    SCORING_BATCHES, TOWER_BATCHES = (64, 128, 256), (32, 64, 128, 256)
    UNET: dict[str, Any] = {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "addition_time_embed_dim": 256,
    }
    VAE: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    SD3 = {"sample_size": 128, "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24}
    SD3 |= {"joint_attention_dim": 4096, "pos_embed_max_size": 192}
    GENERATION: tuple[tuple[str, int, int, int, dict[int, int]], ...] = (
        ("sdxl", 512, 20, 2, {1: 6, 4: 8, 8: 16, 16: 16}),
        ("sdxl", 1024, 20, 1, {1: 3, 4: 4, 8: 8}),
        ("sd3", 512, 20, 1, {1: 4, 4: 4, 8: 8}),
    )
else:
    MERGES = 0
    CLIP_IMAGE = CLIP_TEXT = TEXT_G = Tower(64, 2, 128, 2)
    # How wide its heads are is fixed: 80 and 64.
    HPS_IMAGE, HPS_TEXT = Tower(80, 2, 160, 1), Tower(64, 2, 128, 1)
    CLIP_WIDTH = HPS_WIDTH = 48
    LPIPS_SIDE, PICTURE_SIDE, EDIT_SIDE, EDIT_STEPS = 32, 96, 64, 4
    IMAGES, DISTINCT_IMAGES, PARITY_IMAGES = 24, 8, 8
    SCORING_BATCHES, TOWER_BATCHES = (4, 8), (2,)
    UNET = {
        "sample_size": 16,
        "block_out_channels": (8, 8, 16),
        "transformer_layers_per_block": 1,
        "attention_head_dim": (1, 1, 2),
        "addition_time_embed_dim": 8,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    VAE = {"block_out_channels": (4, 4, 4), "layers_per_block": 1, "norm_num_groups": 2}
    SD3 = {"sample_size": 32, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    SD3 |= {"joint_attention_dim": 256, "pos_embed_max_size": 32}
    GENERATION = (("sdxl", 64, 2, 1, {1: 2, 2: 2}), ("sd3", 64, 2, 1, {1: 2, 2: 2}))

TOWERS = {"clip": CLIP_IMAGE, "hps": HPS_IMAGE}
VOCABULARY_SIZE = MERGES + 512 + 2

# Time and guards


class OverBudget(BaseException):
    """A section took too long. Not an `Exception`: what is measured must not swallow it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `OverBudget` in the block after `seconds`; an outer limit, which must be later, goes on afterwards."""

    def stop(*_: object) -> None:
        raise OverBudget(f"stopped after {seconds:.0f} s")

    handler = signal.signal(signal.SIGALRM, stop)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        unused, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(outer - (seconds - unused), 0.01))


BEGAN = time.monotonic()


def say(text: str) -> None:
    """Print progress, with the seconds since the start."""
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {text}", flush=True)


def synchronise() -> None:
    """Wait for the GPU."""
    if ON_GPU:
        torch.cuda.synchronize()


def synchronised(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return a call's result and its seconds, the GPU waited for before and after."""
    synchronise()
    began = time.perf_counter()
    result = call()
    synchronise()
    return result, time.perf_counter() - began


def median_seconds(call: Callable[[], Any], repeats: int = 10, warm_up: int = 3) -> float:
    """Return the median seconds of a call, the GPU waited for."""
    if not ON_GPU:
        repeats, warm_up = min(repeats, 2), min(warm_up, 1)
    for _ in range(warm_up):
        call()
    times: list[float] = []
    # Three of what takes long are enough.
    while len(times) < repeats and (len(times) < 3 or sum(times) <= 2):
        times.append(synchronised(call)[1])
    return statistics.median(times)


def peak_tflops(dtype: torch.dtype, side: int) -> float:
    """Return the TFLOP/s of a product of random matrices of `side` × `side`, the peak that can be reached."""
    left, right = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * side**3 / median_seconds(lambda: left @ right, repeats=20, warm_up=5) / 1e12


class Stages:
    """Seconds by stage; those of reading and preparing are summed over threads.

    `batch` is how many images the encoders take a call; None leaves it to them.
    """

    def __init__(self, batch: int | None = None) -> None:
        self.seconds: Counter[str] = Counter()
        self.batch = batch
        self._loading = False
        self._lock = Lock()

    def timing(self, stage: str, call: Callable[..., Any], waits: bool = False) -> Callable[..., Any]:
        """Return `call` with its time added to a stage; with `waits` the GPU is waited for before and after."""

        def timed_call(*arguments: Any, **named: Any) -> Any:
            result, seconds = (synchronised if waits else timed)(partial(call, *arguments, **named))
            with self._lock:
                # A load tries the model on a text: that is part of the load.
                self.seconds[stage] += 0 if self._loading else seconds
            return result

        return timed_call

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

        def timed_load(model: LocalModel) -> Any:
            self._loading = True
            loaded, seconds = synchronised(lambda: load(model))
            self._loading = False
            self.seconds["load"] += seconds
            if self.batch and isinstance(loaded, ClipEncoder):
                loaded.batch_size = self.batch
            return loaded

        def timed_chunks(*arguments: Any) -> Iterator[Any]:
            return iter(self.timing("wait for pictures", partial(next, ahead(*arguments), None)), None)

        with ExitStack() as stack:
            for owner, name, stage, waits in watched:
                stack.enter_context(mock.patch.object(owner, name, self.timing(stage, getattr(owner, name), waits)))
            stack.enter_context(mock.patch.object(LocalModel, "load", timed_load))
            stack.enter_context(mock.patch.object(missing_scores, "read_ahead", timed_chunks))
            if self.batch:
                stack.enter_context(mock.patch.object(missing_scores, "CHUNK_IMAGES", self.batch))
            yield


# Random models


def tokenizer() -> CLIPTokenizer:
    """Return a tokenizer of CLIP's form and size: a byte alphabet and, for full size, made-up merges of two letters."""
    letters = sorted(ByteLevel.alphabet())
    ends = [f"{letter}</w>" for letter in letters]
    merges = list(islice(product(letters, ends), MERGES))
    words = [*letters, *ends, *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: place for place, word in enumerate(words)}, merges, model_max_length=77)


def text_config(tower: Tower, **options: Any) -> CLIPTextConfig:
    """Return the configuration of a text encoder with the tokenizer's vocabulary."""
    end = VOCABULARY_SIZE - 1
    special = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    return CLIPTextConfig(**tower.config, vocab_size=VOCABULARY_SIZE, max_position_embeddings=77, **special, **options)


def stir(model: nn.Module, seed: int) -> nn.Module:
    """Set weights so large that what goes in shows in what comes out: at their usual scale it hardly does."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5, generator=generator)
        elif name.endswith("bias"):
            nn.init.normal_(weight, std=0.1, generator=generator)
    return model


def save_clip(folder: Path) -> dict[str, Path]:
    """Write a random CLIP ViT-L/14 in transformers' form, fp32 as published, and both aesthetic heads."""
    clip, v1, v2 = folder / "clip", folder / "v1", folder / "v2"
    width = {"projection_dim": CLIP_WIDTH}
    vision = CLIP_IMAGE.config | {"patch_size": 14, "image_size": 224} | width
    config = CLIPConfig(text_config=text_config(CLIP_TEXT, **width), vision_config=vision, **width)
    with torch.device(DEVICE):
        model = stir(CLIPModel(config), 0)
    model.save_pretrained(clip)
    tokenizer().save_pretrained(clip)
    preprocessing = {"crop_size": 224, "size": 224, "resample": 3, "image_mean": MEAN, "image_std": STD}
    (clip / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    # As published: the heads lie beside a whole image tower, V1 in safetensors and V2 in torch's form.
    tower = {k: v for k, v in model.state_dict().items() if k.startswith(("vision_model.", "visual_projection."))}
    v1.mkdir()
    v2.mkdir()
    save_file(_on_cpu(tower | _head("predictor.", (CLIP_WIDTH,), gain=12)), v1 / "model.safetensors")
    second = _head("layers.", (CLIP_WIDTH, 1024, 128, 64, 16), gain=1.6)
    torch.save(_on_cpu(tower | second), v2 / "pytorch_model.bin")
    return {"clip": clip, "aesthetic_linear": v1, "aesthetic_v2": v2}


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _head(prefix: str, widths: tuple[int, ...], gain: float) -> dict[str, Tensor]:
    """Return an aesthetic head whose scores spread as published ones do, about 5."""
    torch.manual_seed(1)
    head = aesthetic.AestheticHead(widths)
    for weight in head.parameters():
        nn.init.normal_(weight, std=gain * weight.shape[-1] ** -0.5) if weight.dim() > 1 else nn.init.zeros_(weight)
    nn.init.constant_(head.output_layer.bias, 5.0)
    return {f"{prefix}{name}": value for name, value in head.state_dict().items()}


def save_hps(folder: Path) -> Path:
    """Write a random HPS v2.1 in open_clip's form, fp16 in torch's file as published."""
    image, text = HPS_IMAGE, HPS_TEXT
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (VOCABULARY_SIZE, text.width),
        "positional_embedding": (77, text.width),
        "text_projection": (text.width, HPS_WIDTH),
        "visual.class_embedding": (image.width,),
        "visual.positional_embedding": (257, image.width),
        "visual.conv1.weight": (image.width, 3, 14, 14),
        "visual.proj": (image.width, HPS_WIDTH),
    }
    norms = {"ln_final": text.width, "visual.ln_pre": image.width, "visual.ln_post": image.width}
    for prefix, tower in (("", text), ("visual.", image)):
        linear = {
            "attn.in_proj_": (3 * tower.width, tower.width),
            "attn.out_proj.": (tower.width, tower.width),
            "mlp.c_fc.": (tower.mlp, tower.width),
            "mlp.c_proj.": (tower.width, tower.mlp),
        }
        for name in (f"{prefix}transformer.resblocks.{layer}." for layer in range(tower.layers)):
            norms |= {f"{name}ln_1": tower.width, f"{name}ln_2": tower.width}
            for part, shape in linear.items():
                shapes |= {f"{name}{part}weight": shape, f"{name}{part}bias": shape[:1]}
    generator = torch.Generator(DEVICE).manual_seed(2)

    def drawn(shape: tuple[int, ...]) -> Tensor:
        scale = math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
        return torch.randn(shape, generator=generator, device=DEVICE) * scale

    state = {"logit_scale": torch.tensor(4.6)} | {name: drawn(shape) for name, shape in shapes.items()}
    for name, width in norms.items():
        state |= {f"{name}.weight": torch.ones(width), f"{name}.bias": drawn((width,))}
    folder.mkdir()
    half = {name: value.half() for name, value in state.items()}
    torch.save({"state_dict": _on_cpu(half)}, folder / "HPS_v2.1_compressed.pt")
    return folder


def save_lpips(folder: Path) -> Path:
    """Write a random VGG16's convolutions; LPIPS' own heads come with its package."""
    with torch.device("meta"):
        features = vgg16(weights=None, init_weights=False).features
    state = stir(features.to_empty(device=DEVICE), 3).state_dict(prefix="features.")
    folder.mkdir()
    save_file(_on_cpu(state), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"side": LPIPS_SIDE}))
    return folder


def sdxl_parts(in_channels: int = 4) -> dict[str, Any]:
    """Return the components of an SDXL pipeline, built on the device."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device(DEVICE):
        unet = UNet2DConditionModel(
            in_channels=in_channels,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=CLIP_TEXT.width + TEXT_G.width,
            use_linear_projection=True,
            addition_embed_type="text_time",
            projection_class_embeddings_input_dim=6 * UNET["addition_time_embed_dim"] + TEXT_G.width,
            **UNET,
        )
        vae = AutoencoderKL(**_vae_blocks(), latent_channels=4, scaling_factor=0.13025)
        first = CLIPTextModel(text_config(CLIP_TEXT))
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return {"unet": unet.to(HALF).eval(), "scheduler": scheduler} | _shared_parts(vae, first)


def sd3_parts() -> dict[str, Any]:
    """Return the components of a Stable Diffusion 3 (medium) pipeline without T5, which it may lack."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    torch.manual_seed(0)
    width = {
        "caption_projection_dim": SD3["num_attention_heads"] * SD3["attention_head_dim"],
        "pooled_projection_dim": CLIP_TEXT.width + TEXT_G.width,
    }
    bare = {"use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5305, "shift_factor": 0.0609}
    with torch.device(DEVICE):
        transformer = SD3Transformer2DModel(in_channels=16, out_channels=16, **SD3, **width)
        vae = AutoencoderKL(**_vae_blocks(), latent_channels=16, **bare)
        first = ProjectedTextModel(text_config(CLIP_TEXT, projection_dim=CLIP_TEXT.width))
    parts = {"transformer": transformer.to(HALF).eval(), "text_encoder_3": None, "tokenizer_3": None}
    return parts | {"scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)} | _shared_parts(vae, first)


def _vae_blocks() -> dict[str, Any]:
    depth = len(VAE["block_out_channels"])
    types = {"down_block_types": ("DownEncoderBlock2D",) * depth, "up_block_types": ("UpDecoderBlock2D",) * depth}
    return VAE | types | {"force_upcast": False}


def _shared_parts(vae: nn.Module, text_encoder: nn.Module) -> dict[str, Any]:
    with torch.device(DEVICE):
        second = ProjectedTextModel(text_config(TEXT_G, projection_dim=TEXT_G.width, hidden_act="gelu"))
    modules = {"vae": vae, "text_encoder": text_encoder, "text_encoder_2": second}
    words = tokenizer()
    return {n: part.to(HALF).eval() for n, part in modules.items()} | {"tokenizer": words, "tokenizer_2": words}


ENGINES = {
    "sdxl": ("resources.engines.sdxl:SdxlEngine", sdxl_parts),
    "sd3": ("resources.engines.sd3:Sd3Engine", sd3_parts),
    # Its UNet sees the source in four more channels.
    "editor": ("resources.engines.instruct_pix2pix:InstructPix2PixEditor", partial(sdxl_parts, in_channels=8)),
}


def build_engine(name: str, batch_size: int, parts: Mapping[str, Any] | None = None) -> Any:
    """Return one of `ENGINES` around `parts`, or new components, placed on the device as the product places them."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    kind, make_parts = ENGINES[name]
    module, _, cls = kind.partition(":")
    components = parts or make_parts()

    def load(pipeline_class: Any, folder: Path, dtype: torch.dtype, **options: Any) -> Any:
        return pipeline_class(**components, **options)

    with mock.patch.object(pipeline, "load_pipeline", load):
        return getattr(import_module(module), cls)(Path(), batch_size, "fp16" if ON_GPU else "fp32")


def engine_model(name: str, batch_size: int) -> LocalModel:
    """Return one of `ENGINES` as the model slot takes it: without a folder there is nothing to check."""
    return LocalModel(name, None, f"{__name__}:build_engine", {"name": name, "batch_size": batch_size})


def own_bytes(model: Any) -> int:
    """Return the bytes of a model's weights and buffers."""
    parts = model.pipeline.components.values() if hasattr(model, "pipeline") else [model.model]
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return sum(t.nbytes for module in modules for t in (*module.parameters(), *module.buffers()))


# What all sections share


def prompts(count: int) -> list[str]:
    """Return as many prompts, a hundred of them distinct."""
    subjects = ("an old castle of glass", "a fox in the rain", "two portraits, oil on canvas", "neon streets at dawn")
    return [f"{subjects[index % 4]}, number {index % 100}" for index in range(count)]


def draw_images(folder: Path, count: int, side: int, distinct: int) -> list[tuple[str, str]]:
    """Write PNG files as noisy as photographs; return their paths below the folder, and their SHA-256."""
    (folder / "bench").mkdir(parents=True)

    def draw(index: int) -> str:
        rng = np.random.default_rng(index)
        rough = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((side, side), 3)
        noisy = np.asarray(rough, np.int16) + rng.integers(-10, 11, (side, side, 3), dtype=np.int16)
        file = folder / f"bench/{index:05d}.png"
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(file, compress_level=1)
        return hashlib.sha256(file.read_bytes()).hexdigest()

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        hashes = list(pool.map(draw, range(distinct)))
    for index in range(distinct, count):
        (folder / f"bench/{index:05d}.png").hardlink_to(folder / f"bench/{index % distinct:05d}.png")
    return [(f"bench/{index:05d}.png", hashes[index % distinct]) for index in range(count)]


def scoring_work(
    folder: Path, models: Mapping[str, Path], files: Iterable[tuple[str, str]] = (), precision: str = "auto"
) -> Work:
    """Return the product's scoring with these models in place of the published ones.

    Its database is new, with a row for each file, a path below the folder and its SHA-256.
    """
    home = folder / f"home-{uuid4().hex[:8]}"
    home.mkdir()
    lines = [f'{name} = "{path}"\n' for name, path in models.items()]
    (home / "models.toml").write_text("[models]\n" + "".join(lines))
    environment = {"FLEXY_HOME": str(home), "FLEXY_MODELS": "full", "FLEXY_IMAGES": str(folder)}
    environment |= {"FLEXY_MODEL_REGISTRY": str(home / "models.toml"), "FLEXY_PRECISION": precision}
    work = Work.from_settings(Settings.read(environment))
    files = list(files)
    rows = [
        {"id": uuid4(), "engine": "bench", "batch": BATCH, "prompt": prompt, "image_path": path, "image_sha256": sha}
        for (path, sha), prompt in zip(files, prompts(len(files)), strict=True)
    ]
    with work.database.begin() as connection:
        metadata.create_all(connection)
        add_images(connection, rows)
    # A folder of the user's own is hashed once a process, one of the hub's cache never.
    with ThreadPoolExecutor() as pool:
        list(pool.map(work.fingerprint, models))
    return work


@dataclass
class Bench:
    """Models and pictures, made when a section first needs them, and the goals recorded."""

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
        models = save_clip(folder) | {"hps": save_hps(folder / "hps"), "lpips": save_lpips(folder / "lpips")}
        compute.release_memory()
        scoring_work(self.folder, models)
        say(f"scorers written and hashed in {time.perf_counter() - began:.1f} s")
        return models

    @cached_property
    def pictures(self) -> list[tuple[str, str]]:
        """Paths below the folder and SHA-256 of the PNG files."""
        pictures, seconds = timed(lambda: draw_images(self.folder, IMAGES, PICTURE_SIDE, DISTINCT_IMAGES))
        say(f"{IMAGES} files drawn in {seconds:.1f} s")
        return pictures


def requests(count: int, side: int, steps: int) -> list[ImageRequest]:
    """Return images of equal steps and size, each with a prompt, guidance and seed of its own."""
    return [
        ImageRequest(prompt, None, steps, 2.0 + seed % 7, seed, side, side)
        for seed, prompt in enumerate(prompts(count))
    ]


# Sections


def scores(bench: Bench, result: dict[str, Any]) -> None:
    """The four scores from files to committed rows, and the towers alone."""
    result |= {"images": IMAGES, "runs": {}, "towers": {}, "skipped": []}
    _ = bench.models, bench.pictures
    runs: list[tuple[str, list[str], int | None]] = [("all four", [*SPAN], None)]
    runs += [(f"all four, batch size {size}", [*SPAN], size) for size in SCORING_BATCHES]
    runs += [(f"{METRICS[name].label} alone", [name], None) for name in SPAN]
    longest = 0.0
    for name, chosen, batch in runs:
        if bench.left < 1.5 * longest + 10:
            result["skipped"].append(name)
            say(f"{name}: skipped, {bench.left:.0f} s left")
            continue
        result["runs"][name] = run = score_files(bench, chosen, batch)
        longest = max(longest, run["wall_s"])
        say(f"{name}: {run['wall_s']:.2f} s, {run['images_a_second']:.0f} images/s, MFU {run['mfu']:.2f}")
        if name == "all four":
            bench.goal(f"four scores of {IMAGES} files", "≤ 10 s", run["wall_s"], run["wall_s"] <= 10, of_gpu=True)
            bench.goal("MFU of the image forward passes", "≥ 0.40", run["mfu"], run["mfu"] >= 0.4, of_gpu=True)
            work = scoring_work(bench.folder, bench.models)
            for tower, size in product(TOWERS, TOWER_BATCHES):
                model = work.slot.get(work.model(tower)).model
                result["towers"][f"{tower}, batch size {size}"] = tower_rate(bench, model, TOWERS[tower], size)
                del model
            work.slot.free()
        committed = f"{run['committed']} of {run['asked']}"
        bench.goal(f"{name}: every score committed", "all", committed, run["committed"] == run["asked"])
    stages = ("load", "wait for pictures", "image forward", "stack and transfer", "text calls", "rest")
    rows = [{"run": name} | run for name, run in result["runs"].items()]
    print_table(rows, "run", "wall_s", "images_a_second", "forward_share", "mfu", *stages)
    threads = {k: v for k, v in rows[0]["stages_s"].items() if "threads" in k}
    rows = [{"stage": name, "s": s, "ms_an_image": 1e3 * s / IMAGES} for name, s in threads.items()]
    print_table(rows, "stage", "s", "ms_an_image")
    towers = [{"image_tower_alone": name} | tower for name, tower in result["towers"].items()]
    print_table(towers, "image_tower_alone", "images_a_second", "tflops", "mfu")


def score_files(bench: Bench, chosen: Sequence[str], batch: int | None) -> dict[str, Any]:
    """Return the times of one run over all files with a new database, loading included."""
    work, stages = scoring_work(bench.folder, bench.models, bench.pictures), Stages(batch)
    of_clip = [name for name in chosen if METRICS[name].reads]
    with stages.watching():
        began = time.perf_counter()
        if of_clip:
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
    s = stages.seconds
    gflop = IMAGES * (CLIP_IMAGE.gflop * bool(of_clip) + HPS_IMAGE.gflop * (len(of_clip) < len(chosen)))
    return {
        "wall_s": wall,
        "images_a_second": IMAGES / wall,
        "forward_share": (s["image forward"] + s["text forward"]) / wall,
        "mfu": gflop / 1e3 / max(s["image forward"], 1e-9) / bench.peak["half"],
        **{stage: s[stage] for stage in ("load", "wait for pictures", "image forward", "text calls")},
        # Stacking, host to device, normalising, device to host.
        "stack and transfer": s["image calls"] - s["image forward"],
        "rest": wall - s["load"] - s["wait for pictures"] - s["image calls"] - s["text calls"],
        "stages_s": dict(s),
        "committed": committed,
        "asked": IMAGES * len(chosen),
        "batch_size": batch,
    }


@torch.inference_mode()
def tower_rate(bench: Bench, model: CLIPModel, tower: Tower, size: int) -> dict[str, float]:
    """Return the rates of the image tower on pixels that are on the device."""
    pixels = torch.randn(size, 3, 224, 224, device=DEVICE, dtype=model.dtype)
    seconds = median_seconds(lambda: model.get_image_features(pixels))
    tflops = size * tower.gflop / 1e3 / seconds
    return {"images_a_second": size / seconds, "tflops": tflops, "mfu": tflops / bench.peak["half"]}


def parity(bench: Bench, result: dict[str, Any]) -> None:
    """Half precision against full, the same weights and pixels."""
    store, models, texts = ImageStore(str(bench.folder)), bench.models, prompts(PARITY_IMAGES)
    pictures = [store.read(path) for path, _ in bench.pictures[:PARITY_IMAGES]]
    values: dict[str, dict[str, NDArray[np.floating]]] = {name: {} for name in SPAN}
    heads = {
        name: aesthetic.load_aesthetic(models["aesthetic_v2"], "mlp") for name in ("aesthetic_score", "aes_v2_score")
    }
    for encoder in (ClipEncoder(models["clip"]), HpsScorer(models["hps"], tokenizer=models["clip"])):
        _set_tf32(False)
        whole, prepared = encoder.model, [encoder.prepare(picture) for picture in pictures]
        for precision in ("fp32", *TOLERANCE):
            encoder.model = copy.deepcopy(whole).to(compute.torch_dtype(precision))
            image_vectors, text_vectors = (
                np.concatenate([call(part[i : i + 16]) for i in range(0, len(part), 16)])
                for call, part in ((encoder.images, prepared), (encoder.texts, texts))
            )
            is_hps = isinstance(encoder, HpsScorer)
            cosines = np.einsum("nd,nd->n", image_vectors, text_vectors)
            values["hps_v2_score" if is_hps else "clip_score"][precision] = cosines
            for name, head in ({} if is_hps else heads).items():
                values[name][precision] = head.score_embeddings(image_vectors)
        encoder.model = whole = None  # type: ignore[assignment]
        _set_tf32(True)
    compute.release_memory()
    rows = result.setdefault("differences", [])
    for (name, by_precision), (precision, share) in product(values.items(), TOLERANCE.items()):
        apart = np.abs(by_precision[precision].astype(np.float64) - by_precision["fp32"])
        bar, spread = share * SPAN[name], float(np.std(by_precision["fp32"]))
        row = {"metric": name, "precision": precision, "largest": float(apart.max()), "mean": float(apart.mean())}
        rows.append(row | {"bar": bar, "spread_of_fp32": spread, "pictures": len(pictures)})
        bench.goal(f"{name} in {precision} against fp32", f"≤ {bar:.0e}", row["largest"], row["largest"] <= bar, True)
    print_table(rows, "metric", "precision", "largest", "mean", "bar", "spread_of_fp32")


def _set_tf32(on: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def generation(bench: Bench, result: dict[str, Any]) -> None:
    """Batched against one by one."""
    engine, engine_name, longest = None, "", 0.0
    for name, side, steps, repeats, counts in GENERATION:
        began = time.monotonic()
        if bench.left < longest:
            say(f"{name} at {side}²: skipped, {bench.left:.0f} s left")
            result[f"{name} {side}"] = "skipped"
            continue
        if name != engine_name:
            engine = None
            compute.release_memory()
            engine, engine_name = build_engine(name, max(counts)), name
            say(f"{name} built")
        result[f"{name} {side}"] = made = {}
        generation_rates(bench, engine, side, steps, repeats, counts, made)
        longest = max(longest, time.monotonic() - began)
        print(f"\n{name}, {side} × {side}, {steps} steps, {made['gflop_an_image']:.0f} GFLOP an image", end="")
        # The differences are those of the first image from the one made alone, of 255.
        columns = ("speedup", "share_of_peak", "peak_gb", "largest_difference", "mean_difference")
        rows = [{"images_a_call": size} | row for size, row in made["by_batch"].items()]
        print_table(rows, "images_a_call", "images_a_second", *columns)
        speedup, deviation = made["speedup"], made["deviation"]
        bench.goal(f"{name} at {side}²: not of one colour", "deviation > 1", deviation, deviation > 1, of_gpu=True)
        if (name, side) == ("sdxl", 512):
            bench.goal("SDXL at 512², batched against one by one", "≥ 1.5", speedup, speedup >= 1.5, of_gpu=True)


def generation_rates(
    bench: Bench, engine: Any, side: int, steps: int, repeats: int, counts: dict[int, int], result: dict[str, Any]
) -> None:
    """Measure images a second by batch size, and how the first image differs from the one made alone."""
    engine.generate(requests(1, side, 1))
    gflop = []
    for few in (1, 2):
        with FlopCounterMode(display=False) as counter:
            engine.generate(requests(1, side, few))
        gflop.append(counter.get_total_flops() / 1e9)
    an_image = gflop[0] + (steps - 1) * (gflop[1] - gflop[0])
    by_batch: dict[int, dict[str, Any]] = {}
    result |= {"side": side, "steps": steps, "gflop_an_image": an_image, "by_batch": by_batch}
    alone: NDArray[np.int16] | None = None
    for size, count in counts.items():
        batches = [requests(count, side, steps)[i : i + size] for i in range(0, count, size)]
        engine.generate(requests(size, side, 2))
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        make_all = partial(generate_batches, engine, batches)
        images, times = zip(*(synchronised(make_all) for _ in range(repeats)), strict=True)
        first = np.asarray(images[0][0], np.int16)
        alone = first if alone is None else alone
        rate, apart = count / statistics.median(times), np.abs(first - alone)
        by_batch[size] = {
            "images_a_second": rate,
            "seconds": list(times),
            "speedup": rate / by_batch[1]["images_a_second"] if by_batch else 1.0,
            "share_of_peak": rate * an_image / 1e3 / bench.peak["half"],
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
            "largest_difference": int(apart.max()),
            "mean_difference": float(apart.mean()),
        }
        result |= {"speedup": max(row["speedup"] for row in by_batch.values()), "deviation": float(alone.std())}
        say(f"{side}², {size} a call: {rate:.2f} images/s")


def generate_batches(engine: Any, batches: Sequence[Sequence[ImageRequest]]) -> list[Image.Image]:
    """Return the images of all batches, a call each."""
    return [image for batch in batches for image in engine.generate(batch)]


def slot(bench: Bench, result: dict[str, Any]) -> None:
    """The memory after each switch of the model slot, each model used once."""
    work = scoring_work(bench.folder, bench.models)
    held, side = ModelSlot(), GENERATION[0][1]
    compute.release_memory()
    # Without a GPU it is 0.
    allocated = torch.cuda.memory_allocated
    before, rows = allocated(), result.setdefault("switches", [])

    def switch(name: str, model: LocalModel) -> None:
        # Nothing here may refer to the model once this returns.
        loaded, seconds = timed(lambda: held.get(model))
        after, own = allocated() - before, own_bytes(loaded)
        if hasattr(loaded, "generate"):
            loaded.generate(requests(1, side, 2))
        else:
            loaded.images([loaded.prepare(Image.new("RGB", (64, 64), "teal"))] * 4)
        rows.append({"model": name, "load_s": seconds, "own_mb": own / MB, "after_mb": after / MB})
        rows[-1] |= {"used_mb": (allocated() - before) / MB, "alone": after <= 1.02 * own + LEFTOVER}

    for name in ("clip", "hps", "sdxl", "clip", "sd3", "hps"):
        switch(name, engine_model(name, 4) if name in ENGINES else work.model(name))
    held.free()
    result["left_mb"] = left = (allocated() - before) / MB
    print_table(rows, "model", "load_s", "own_mb", "after_mb", "used_mb", "alone")
    say(f"after the last was freed: {left:.0f} MB")
    most, alone = max(row["after_mb"] for row in rows), all(row["alone"] for row in rows)
    bench.goal("after each switch the new model's memory alone", "own + 2 % + 128 MB", most, alone)
    bench.goal("after the last was freed", "≤ 128 MB", left, left * MB <= LEFTOVER)


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


def memory(bench: Bench, result: dict[str, Any]) -> None:
    """Out of memory halved, offloading forced; each by itself."""
    free = {"resident": 80 * GIB, "offload": 8 * GIB, "sequential": 4 * GIB}
    placement = {name: pipeline.choose_placement(7 * GIB, 5 * GIB, size) for name, size in free.items()}
    result["placement"] = placement
    as_named = all(name == chosen for name, chosen in placement.items())
    bench.goal("placement by free memory", "as named", list(placement.values()), as_named)
    attempts: dict[str, Callable[[], dict[str, Any]]] = {
        "SDXL at 1024², out of memory halved": halve_sdxl,
        "CLIP's image tower, out of memory halved": lambda: halve_tower(bench),
        "SDXL at 1024² in 8 GB, offloaded": lambda: offload(8, 1024, 8, "offload"),
        "SDXL at 512² in 5 GB, offloaded layer by layer": lambda: offload(5, 512, 2, "sequential"),
    }
    for name, call in (
        attempts if ON_GPU else {"SDXL, out of memory (a fake error) halved": halve_by_fake_error}
    ).items():
        result[name] = row = {"done": False}
        try:
            row |= call()
        except Exception as error:
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}"
        compute.release_memory()
        bench.goal(name, "done", row.get("ended_at", row.get("peak_gb", row.get("error"))), row["done"])
        say(f"{name}: {row}")


Call = Callable[[Sequence[Any]], Sequence[Any]]


def halve(call: Call, items: Sequence[Any]) -> dict[str, Any]:
    """Return what `HalvingBatches` makes of all items in one call that is too much."""
    halving, calls = HalvingBatches(len(items)), []

    def counted(part: Sequence[Any]) -> Sequence[Any]:
        calls.append(len(part))
        return call(part)

    results = halving(counted, items)
    failed = sum(isinstance(result, FlexyError) for result in results)
    done = halving.size < len(items) == len(results) and not failed
    return {"asked_a_call": len(items), "ended_at": halving.size, "failed": failed, "done": done, "calls": calls}


def halve_by_fake_error() -> dict[str, Any]:
    """The reduced form: an engine that cannot make more than two at a time."""
    engine = build_engine("sdxl", 8)

    def call(part: Sequence[ImageRequest]) -> list[Image.Image]:
        if len(part) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return engine.generate(part)

    return halve(call, requests(8, GENERATION[0][1], 1))


def halve_in_little_memory(call: Call, items: Sequence[Any]) -> dict[str, Any]:
    """`halve` in memory that is enough for about three of the items at a time."""
    # What a call of one and of two takes says what each further item takes.
    peaks = []
    for few in (1, 2):
        compute.release_memory()
        torch.cuda.reset_peak_memory_stats()
        call(items[:few])
        peaks.append(torch.cuda.max_memory_reserved())
    an_item = max(peaks[1] - peaks[0], 32 * 2**20)
    limit = peaks[1] + an_item
    with at_most(limit):
        return halve(call, items) | {"limit_gb": limit / 1e9, "an_item_gb": an_item / 1e9}


def halve_sdxl() -> dict[str, Any]:
    """SDXL given more than fits."""
    return halve_in_little_memory(build_engine("sdxl", 16).generate, requests(16, 1024, 2))


def halve_tower(bench: Bench) -> dict[str, Any]:
    """CLIP's image tower given more than fits; an item is 32 pictures, one is less than the allocator rounds to."""
    work = scoring_work(bench.folder, bench.models)
    encoder = work.slot.get(work.model("clip"))
    items = [[encoder.prepare(Image.new("RGB", (224, 224), (7 * i, 90, 120)))] * 32 for i in range(16)]

    def call(part: Sequence[Any]) -> list[Any]:
        vectors = encoder.images([pixels for item in part for pixels in item])
        return list(vectors.reshape(len(part), 32, -1))

    return halve_in_little_memory(call, items)


def offload(limit_gb: int, side: int, steps: int, wanted: str) -> dict[str, Any]:
    """Return how an SDXL engine is placed in so much memory, by the product's own rule, and how it runs there."""
    limit, parts = limit_gb * GIB, sdxl_parts()
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.cpu()
    with at_most(limit):
        whole = torch.cuda.mem_get_info()[1]
        # What the process is allowed is all there is for it.
        with (
            mock.patch.object(torch.cuda, "mem_get_info", lambda *_: (limit, whole)),
            mock.patch.object(pipeline, "choose_placement", side_effect=pipeline.choose_placement) as rule,
        ):
            engine = build_engine("sdxl", 1, parts)
            placed = pipeline.choose_placement(*rule.call_args.args)
        engine.generate(requests(1, side, 1))
        torch.cuda.reset_peak_memory_stats()
        (image,), seconds = synchronised(lambda: engine.generate(requests(1, side, steps)))
        peak = torch.cuda.max_memory_allocated()
    row = {"limit_gb": limit_gb, "side": side, "steps": steps, "seconds": seconds, "peak_gb": peak / GIB}
    return row | {"placed_as": placed, "done": image.size == (side, side) and placed == wanted}


def edit_search(bench: Bench, result: dict[str, Any]) -> None:
    """One task searched by both methods at equal cost, through the product's own search."""
    work = scoring_work(bench.folder, bench.models)
    rough = np.random.default_rng(5).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    path = "edits/sources/bench.png"
    sha = work.store.write(path, Image.fromarray(rough).resize((EDIT_SIDE, EDIT_SIDE), 3))
    scouts = EacpsParameters(scouts=2)
    plan = Comparison("bench_editor", EDIT_STEPS, 4.0, "bench", budgets=(4,), eacps=scouts)
    run, budget = plan.run_id, plan.nfe[0]
    task = EditTaskRow(uuid5(run, "one"), run, plan.batch(0), 0, "one", "make the sky red", path, sha)
    with work.database.begin() as connection:
        edits.save_comparison(connection, run, plan.to_json(), [task])
    result |= {"budget": budget, "methods": {}}
    methods, model, load = result["methods"], engine_model("editor", 4), LocalModel.load
    loads: list[float] = []

    def timed_load(local_model: LocalModel) -> Any:
        loaded, seconds = timed(lambda: load(local_model))
        loads.append(seconds)
        return loaded

    with (
        mock.patch.object(registry, "find_editor", lambda name, settings: model),
        mock.patch.object(LocalModel, "load", timed_load),
    ):
        for method in METHODS:
            loads.clear()
            began, searching = time.perf_counter(), SearchRunner(work, plan, method, [task])
            searching.run(lambda nfe, method=method: say(f"{method}: {nfe} denoising steps"))
            candidates = searching.candidates()
            winners = list(searching.winners(candidates))
            edit_metrics.score_independent(work, [task], winners)
            with work.database.begin() as connection:
                edits.record_selections(connection, winners)
            steps = sum(candidate.nfe for candidate in candidates)
            methods[method] = {
                "nfe": steps,
                "candidates": len(candidates),
                "stages": sorted({candidate.stage for candidate in candidates}),
                "failed": [candidate.error for candidate in candidates if candidate.error],
                "unmeasured": sum(value is None for candidate in candidates for value in candidate.scores.values()),
                "winners": len(winners),
                "seconds": time.perf_counter() - began,
                "load_s": sum(loads),
                "loads": len(loads),
                "steps_a_second": 1e3 * steps / max(sum(c.elapsed_ms or 0 for c in candidates), 1),
            }
    work.slot.free()
    columns = ("nfe", "candidates", "winners", "seconds", "load_s", "loads", "steps_a_second")
    print_table([{"method": name} | row for name, row in methods.items()], "method", *columns)
    nfe = {name: row["nfe"] for name, row in methods.items()}
    bench.goal("both methods at equal NFE", str(budget), nfe, set(nfe.values()) == {budget})
    sound = all(row["winners"] == 1 and not row["failed"] and not row["unmeasured"] for row in methods.values())
    bench.goal("each search done, every candidate measured, one winner", "yes", sound, sound)


# Variants

Variants = Iterator[tuple[str, Callable[[], str], float]]
"""The name of each variant, what measures it, and the seconds it may take."""


def explore(bench: Bench, result: dict[str, Any]) -> None:
    """Variants, each by itself and bounded: one that fails or takes too long leaves the others alone."""
    print("\n| variant | result |\n|---|---|")
    for variants in (picture_variants, tower_variants, transfer_variants, sdxl_variants):
        for name, call, seconds in variants(bench):
            left = bench.left - 5
            if left < 1:
                result[name] = "skipped: no time left"
                continue
            try:
                with limited(min(seconds, left)):
                    result[name] = call()
            except (Exception, OverBudget) as error:
                result[name] = f"{type(error).__name__}: {error!s}".partition("\n")[0][:300]
            print(f"| {name} | {result[name]} |", flush=True)


def milliseconds(call: Callable[[], Any], digits: int) -> str:
    """Return the median time of a call."""
    return f"{1e3 * median_seconds(call):.{digits}f} ms"


def picture_variants(bench: Bench) -> Variants:
    """Decoding, preparing and encoding on the CPU."""
    store = ImageStore(str(bench.folder))
    files = [path for path, _ in bench.pictures[: 256 if ON_GPU else 8]]
    clip, hps = Preprocessing(224, MEAN, STD), Letterbox(224, MEAN, STD)
    picture = store.read(files[0])

    def prepare(path: str) -> None:
        read = store.read(path)
        clip(read)
        hps(read)

    def prepare_files(threads: int) -> str:
        some = files[: 32 * threads]
        with ThreadPoolExecutor(threads) as pool:
            _, seconds = timed(lambda: list(pool.map(prepare, some)))
        return f"{len(some) / seconds:.0f} files/s"

    for threads in (1, 4, 8, 16):
        yield f"read, decode and prepare for both, {threads} threads", partial(prepare_files, threads), 20
    steps = {
        "read and decode": partial(store.read, files[0]),
        "prepare for CLIP": partial(clip, picture),
        "prepare for HPS": partial(hps, picture),
    }
    for level in (1, 4, 6):
        steps[f"PNG encode, level {level}"] = partial(picture.save, io.BytesIO(), "PNG", compress_level=level)
    for name, step in steps.items():
        yield f"{name}, one thread", partial(milliseconds, step, 1), 20


def tower_variants(bench: Bench) -> Variants:
    """The image towers by batch size and attention kernel, and compiled."""
    work = scoring_work(bench.folder, bench.models)
    sizes, size = ((32, 64, 128, 256, 512), 128) if ON_GPU else ((2,), 2)

    def rate(model: CLIPModel, tower: Tower, size: int, backend: SDPBackend | None = None) -> str:
        with sdpa_kernel(backend) if backend else nullcontext():
            measured = tower_rate(bench, model, tower, size)
        return f"{measured['images_a_second']:.0f} images/s, MFU {measured['mfu']:.2f}"

    def rate_compiled(model: CLIPModel, tower: Tower) -> str:
        compiled = torch.compile(model.vision_model.forward)
        with mock.patch.object(model.vision_model, "forward", compiled):
            text, seconds = timed(lambda: rate(model, tower, size))
        return f"{text}, {seconds:.0f} s in all"

    for name, tower in TOWERS.items():
        model = work.slot.get(work.model(name)).model
        for each in sizes:
            yield f"{name} tower, batch size {each}", partial(rate, model, tower, each), 10
        for kernel in (*BACKENDS, SDPBackend.MATH):
            yield f"{name} tower, {kernel.name}, batch size {size}", partial(rate, model, tower, size, kernel), 10
        if ON_GPU:
            yield f"{name} tower, torch.compile, batch size {size}", partial(rate_compiled, model, tower), 40
        del model
    work.slot.free()


def transfer_variants(bench: Bench) -> Variants:
    """What feeds the image towers."""
    size = 128 if ON_GPU else 2
    pixels = [np.random.default_rng(i).integers(0, 256, (3, 224, 224), dtype=np.uint8) for i in range(size)]
    floats = [image.astype(np.float32) / 255 for image in pixels]
    pinned, pinned_floats = (
        torch.empty((size, 3, 224, 224), dtype=dtype, pin_memory=ON_GPU) for dtype in (torch.uint8, torch.float32)
    )

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
        yield f"{size} images to the device: {name}", partial(milliseconds, feed, 2), 10


def sdxl_variants(bench: Bench) -> Variants:
    """The UNet's step and the VAE's decoding."""
    parts = sdxl_parts()
    unet, vae, side = parts["unet"], parts["vae"], 64 if ON_GPU else 8

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=HALF)

    @torch.inference_mode()
    def step(
        size: int, backend: SDPBackend | None = None, network: Any = unet, layout: Any = torch.contiguous_format
    ) -> str:
        time_ids = torch.tensor([[512.0, 512, 0, 0, 512, 512]], device=DEVICE, dtype=HALF).expand(size, -1)
        inputs = {
            "sample": random(size, 4, side, side).to(memory_format=layout),
            "timestep": 500,
            "encoder_hidden_states": random(size, 77, unet.config.cross_attention_dim),
            "added_cond_kwargs": {"text_embeds": random(size, TEXT_G.width), "time_ids": time_ids},
        }
        with sdpa_kernel(backend) if backend else nullcontext():
            seconds = median_seconds(lambda: network(**inputs), repeats=5, warm_up=2)
        return f"{1e3 * seconds:.1f} ms, {1e3 * seconds / size:.2f} ms an image"

    @torch.inference_mode()
    def decode(layout: Any = torch.contiguous_format) -> str:
        latents = random(4 if ON_GPU else 1, 4, side, side).to(memory_format=layout)
        return f"{1e3 * median_seconds(lambda: vae.decode(latents).sample, repeats=5, warm_up=2):.1f} ms"

    def step_compiled(layout: Any) -> str:
        text, seconds = timed(lambda: step(16, network=torch.compile(unet), layout=layout))
        return f"{text}, {seconds:.0f} s in all"

    sizes = (2, 8, 16, 32) if ON_GPU else (2,)
    for size in sizes:
        yield f"SDXL UNet, 512², {size} at a time", partial(step, size), 20
    yield "VAE decode, 512², 4 at a time", decode, 20
    for backend in BACKENDS:
        yield f"SDXL UNet, 512², 16 at a time, {backend.name}", partial(step, 16 if ON_GPU else 2, backend), 20
    last = torch.channels_last
    unet.to(memory_format=last)
    vae.to(memory_format=last)
    for size in sizes[:3]:
        yield f"SDXL UNet, 512², {size} at a time, channels_last", partial(step, size, layout=last), 20
    yield "VAE decode, 512², 4 at a time, channels_last", partial(decode, last), 20
    if ON_GPU:
        yield "SDXL UNet, 512², 16 at a time, channels_last, torch.compile", partial(step_compiled, last), 80


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
    """Return what this runs on."""
    return {
        "device": torch.cuda.get_device_name() if ON_GPU else "CPU, reduced form",
        "cpu_cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "full_size": ON_GPU,
    } | ({"memory_gb": torch.cuda.mem_get_info()[1] / 1e9} if ON_GPU else {})


def run(bench: Bench, chosen: Sequence[str], out: Path) -> dict[str, Any]:
    """Run the sections, writing the results after each."""
    results: dict[str, Any] = {"machine": machine(), "sections": {}, "goals": bench.goals}
    say(", ".join(f"{name}: {value}" for name, value in results["machine"].items()))
    side = 8192 if ON_GPU else 256
    bench.peak = {"half": peak_tflops(HALF, side), "bf16": peak_tflops(torch.bfloat16, side)}
    results["peak_tflops"] = bench.peak
    say(f"matrix product: {bench.peak['half']:.3g} TFLOP/s in {HALF}, {bench.peak['bf16']:.3g} in bf16")
    write_results(out, results)
    for name in chosen:
        say(f"section {name}, {BUDGETS[name]} s at most")
        began, section = time.perf_counter(), {"status": "ok", "result": {}}
        bench.until = time.monotonic() + BUDGETS[name]
        results["sections"][name] = section
        try:
            with limited(BUDGETS[name]):
                SECTIONS[name](bench, section["result"])
        except (Exception, OverBudget) as error:
            traceback.print_exc()
            status = "over budget" if isinstance(error, OverBudget) else "failed"
            section |= {"status": status, "error": traceback.format_exc()}
        section["seconds"] = time.perf_counter() - began
        with suppress(Exception):
            if ON_GPU:
                torch.cuda.set_per_process_memory_fraction(1.0)
            gc.unfreeze()
            compute.release_memory()
        write_results(out, results)
        say(f"section {name}: {section['status']}, {section['seconds']:.1f} s")
    return results


def main() -> None:
    parser = argument_parser(__doc__, "gpu")
    parser.add_argument("--only", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--explore", action="store_true", help="measure variants as well")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else [name for name in SECTIONS if name != "explore"]
    if options.explore and "explore" not in chosen:
        chosen.append("explore")
    if unknown := set(chosen) - SECTIONS.keys():
        parser.error(f"there is no section {', '.join(sorted(unknown))}: use {', '.join(SECTIONS)}")
    # Models and pictures are written in memory where there is room.
    shared = Path("/dev/shm")
    in_memory = ON_GPU and shared.is_dir() and shutil.disk_usage(shared).free > 16 * GIB
    with tempfile.TemporaryDirectory(dir=shared if in_memory else None) as folder:
        results = run(Bench(Path(folder)), chosen, options.out)
    print_table(results["goals"], "goal", "bar", "measured", "met")
    say(f"written to {options.out}")
    failed = [name for name, section in results["sections"].items() if section["status"] != "ok"]
    sys.exit(bool(failed) or not all(goal["met"] for goal in results["goals"]))


if __name__ == "__main__":
    main()
