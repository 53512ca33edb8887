"""The training loop: stages, workers, and checkpoints from which a killed run resumes."""

import json
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.random import Generator
from torch import Tensor, nn
from tqdm import tqdm


@dataclass(frozen=True)
class Stage:
    """Length of a stage: optimiser steps, images per worker and step, peak learning rate."""

    steps: int
    batch: int
    rate: float


STAGES = {
    "clip": Stage(steps=1100, batch=64, rate=1e-3),
    "looks": Stage(steps=350, batch=64, rate=4e-4),
    "aesthetic": Stage(steps=2000, batch=256, rate=2e-3),
    "aesthetic_mlp": Stage(steps=2000, batch=256, rate=2e-3),
    "hps": Stage(steps=300, batch=64, rate=2e-4),
    "vae": Stage(steps=2500, batch=32, rate=2e-3),
    "unet": Stage(steps=1900, batch=32, rate=1e-3),
    "editor": Stage(steps=800, batch=32, rate=6e-4),
    "layout": Stage(steps=900, batch=32, rate=8e-4),
    "perceptual": Stage(steps=600, batch=64, rate=3e-3),
    "face_detector": Stage(steps=1600, batch=16, rate=3e-3),
    "face_recogniser": Stage(steps=700, batch=72, rate=2e-3),
    "face_swapper": Stage(steps=1700, batch=16, rate=2e-3),
    "face_details": Stage(steps=6000, batch=8, rate=2e-3),
}


@dataclass
class TrainingRun:
    """One worker of a training run: its folders, seed and rank."""

    out: Path
    work: Path
    seed: int
    rank: int
    workers: int
    scale: float

    def rng(self, name: str, step: int) -> Generator:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode()), self.rank, step])

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def record(self, name: str, values: dict[str, Any]) -> None:
        """Record a stage's results in training.json in the weights' folder."""
        path = self.out / "training.json"
        log = json.loads(path.read_text()) if path.exists() else {}
        log[name] = values
        path.write_text(json.dumps(log, indent=1) + "\n")
        tqdm.write(f"{name}: {json.dumps(values)}")


def train_model(
    run: TrainingRun, name: str, model: nn.Module, loss: Callable[[Generator], Tensor], average: float = 0.0
) -> None:
    """Train `model` in place for its stage; `average` > 0 ends with an exponential average of the weights.

    Gradients are averaged over the workers. Resumes from `<work>/<name>.pt`, written every 100 steps.
    """
    stage = STAGES[name]
    steps = max(10, round(stage.steps * run.scale))
    params = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=stage.rate, betas=(0.9, 0.99), weight_decay=0.01)
    mean = [p.detach().clone() for p in params] if average else []
    checkpoint = run.work / f"{name}.pt"
    first, busy, recent = 0, 0.0, math.nan
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        mean, first, busy, recent = saved["mean"], saved["step"], saved["seconds"], saved["loss"]
    model.train()
    began = time.monotonic() - busy
    bar = tqdm(range(first, steps), desc=name, initial=first, total=steps, disable=not run.leads, mininterval=5)
    for step in bar:
        progress = step / steps
        warm = min(1.0, (step + 1) / (0.04 * steps))
        for group in optimiser.param_groups:
            group["lr"] = stage.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        value = loss(run.rng(name, step))
        optimiser.zero_grad()
        value.backward()
        _share_gradients(params, run.workers)
        nn.utils.clip_grad_norm_(params, 1.0)
        optimiser.step()
        if average:
            decay = min(average, (step + 1) / (step + 10))
            torch._foreach_lerp_(mean, [p.detach() for p in params], 1 - decay)
        recent = value.item() if math.isnan(recent) else 0.98 * recent + 0.02 * value.item()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{recent:.4f}", refresh=False)
        if run.leads and ((step + 1) % 100 == 0 or step + 1 == steps):
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "mean": mean}
            torch.save(
                state | {"step": step + 1, "seconds": time.monotonic() - began, "loss": recent},
                checkpoint.with_suffix(".new"),
            )
            checkpoint.with_suffix(".new").replace(checkpoint)
    if average:
        for p, value in zip(params, mean, strict=True):
            p.data.copy_(value)
    model.eval()
    if run.workers > 1:
        dist.barrier()
    if run.leads:
        samples = steps * stage.batch * run.workers
        run.record(
            name,
            {
                "steps": steps,
                "samples": samples,
                "seconds": round(time.monotonic() - began),
                "loss": round(recent, 5),
            },
        )


def _share_gradients(params: list[nn.Parameter], workers: int) -> None:
    if workers == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in params if p.grad is not None])
    dist.all_reduce(flat)
    flat /= workers
    offset = 0
    for p in params:
        if p.grad is not None:
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()


def pixel_tensor(images: list[np.ndarray]) -> Tensor:
    """Return uint8 (h, w, 3) images as float32 (n, 3, h, w) in −1 to 1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
