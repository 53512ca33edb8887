"""Trains every mini weight from a seed: `python -m resources.mini.training.train`.

Stages follow each other because each needs the last one's weights: the tokenizer, CLIP (it must
know shapes, or no text can ask for one), the aesthetic heads on it, the VAE, the UNet on that VAE's
latents and that CLIP's text, the preference model tuned from CLIP, and the editor from the UNet; LPIPS
stands by itself, and so do the faces (`train_faces`). Each reads from disk what it builds on, so that
`--only` trains some and leaves the others as they are. Every random number comes from (seed, stage, worker,
step), so a run that was killed goes on where its last checkpoint stood and ends with the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from lpips import normalize_tensor
from numpy.random import Generator
from safetensors.torch import save_file
from scipy.optimize import nnls
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer

from resources.engines.instruct_pix2pix import InstructPix2PixEditor
from resources.engines.sdxl import SdxlEngine
from resources.mini.edits import CHANGES, compose_edit
from resources.mini.evaluation import accuracy
from resources.mini.reader import read_drawing
from resources.mini.training import architecture, train_faces
from resources.mini.training.architecture import EMBEDDING
from resources.mini.training.loop import STAGES, TrainingRun, pixel_tensor, train_model
from resources.mini.world import (
    ATTRIBUTES,
    CAPTIONED_SCENES,
    SCENES,
    SIDE,
    Drawing,
    DrawnScene,
    add_flaws,
    difference,
    draw_image,
    preference,
    sketch_drawing,
    taste_v1,
    taste_v2,
)
from resources.models.registry import MODELS
from resources.scorers.aesthetic import AestheticHead, normalize_embedding
from resources.scorers.aesthetic import load_aesthetic as load_head
from resources.scorers.clip import ClipEncoder
from resources.scorers.perceptual import LpipsScorer

WEIGHTS = Path(__file__).parents[1] / "weights"
DRAWINGS_A_CAPTION = 24
"""Latents kept for each caption while the UNet trains."""
EDITS = 9000
"""Edits a worker keeps the latents of while the editor trains."""
PAIRS = 3000
"""Pairs of drawings that LPIPS' channels are weighed by."""


def sample_drawings(rng: Generator, count: int, spoiled: float) -> tuple[list[Drawing], Tensor]:
    """Drawings of random scenes, a share of them spoiled, and their pixels."""
    drawings = [sketch_drawing(SCENES[i], rng) for i in rng.integers(len(SCENES), size=count)]
    drawings = [add_flaws(d, rng) if rng.random() < spoiled else d for d in drawings]
    return drawings, pixel_tensor([draw_image(d, rng) for d in drawings])


class ClipLesson(nn.Module):
    """CLIP with the classifiers that help it see; only CLIP is kept."""

    def __init__(self, model: CLIPModel, words: CLIPTokenizer) -> None:
        super().__init__()
        self.model, self.heads = model, architecture.AttributeHeads()
        self.words = words

    def loss(self, rng: Generator) -> Tensor:
        drawings, pictures = sample_drawings(rng, STAGES["clip"].batch, spoiled=0.5)
        asked = caption_scenes(rng, drawings)
        texts = self.words([wish.caption for wish in asked], padding=True, return_tensors="pt")
        seen = normalize_embedding(self.model.get_image_features(pictures).pooler_output)
        said = normalize_embedding(self.model.get_text_features(**texts).pooler_output)
        likeness = seen @ said.T * self.model.logit_scale.exp().clamp(max=60)
        fits = fulfilment(drawings, asked)
        total = (F.cross_entropy(likeness, shares(fits)) + F.cross_entropy(likeness.T, shares(fits.T))) / 2
        for name, values in ATTRIBUTES.items():
            for embedding, scenes in ((seen, [d.scene for d in drawings]), (said, asked)):
                # What a caption leaves open teaches nothing.
                truth = torch.tensor([values.index(s.said[name]) if name in s.said else -100 for s in scenes])
                total = total + 0.2 * F.cross_entropy(10 * self.heads.attributes[name](embedding), truth)
        return total + 2 * self._looks(seen, drawings)

    def see_only(self) -> None:
        """Hold the text side still: what is learnt from here on is learnt by the eye."""
        for part in (self.model.text_model, self.model.text_projection):
            part.requires_grad_(False)
        self.model.logit_scale.requires_grad_(False)

    def looks_loss(self, rng: Generator) -> Tensor:
        """Cleanliness and composition, which the captions do not mention, without forgetting the captions."""
        drawings, pictures = sample_drawings(rng, STAGES["looks"].batch, spoiled=0.7)
        seen = normalize_embedding(self.model.get_image_features(pictures).pooler_output)
        asked = caption_scenes(rng, drawings)
        texts = self.words([wish.caption for wish in asked], padding=True, return_tensors="pt")
        with torch.no_grad():
            said = normalize_embedding(self.model.get_text_features(**texts).pooler_output)
        likeness = seen @ said.T * self.model.logit_scale.exp().clamp(max=60)
        return F.cross_entropy(likeness, shares(fulfilment(drawings, asked))) + 30 * self._looks(seen, drawings)

    def _looks(self, seen: Tensor, drawings: list[Drawing]) -> Tensor:
        truth = torch.tensor([[d.flaws.cleanliness, d.composition] for d in drawings])
        return F.mse_loss(self.heads.looks(seen) * 3, truth)


def caption_scenes(rng: Generator, drawings: list[Drawing]) -> list[DrawnScene]:
    """A caption for each drawing: half in full, the others briefer."""
    briefness = rng.choice(3, size=len(drawings), p=(0.5, 0.3, 0.2))
    return [d.scene.briefer()[b] for d, b in zip(drawings, briefness, strict=True)]


def fulfilment(drawings: list[Drawing], asked: list[DrawnScene]) -> Tensor:
    """(drawings, captions): 1 where the drawing shows all that the caption says."""
    return torch.tensor([[float(all(wish.shown_in(d.scene).values())) for wish in asked] for d in drawings])


def shares(fits: Tensor) -> Tensor:
    """Each row as a distribution."""
    return fits / fits.sum(1, keepdim=True)


def train_clip(run: TrainingRun) -> None:
    words = architecture.train_tokenizer()
    model = architecture.make_clip(words)
    _place_patches(model)
    lesson = ClipLesson(model, words)
    train_model(run, "clip", lesson, lesson.loss)
    torch.manual_seed(run.seed)
    lesson.see_only()
    train_model(run, "looks", lesson, lesson.looks_loss)
    if run.leads:
        _save_clip(run.out / "clip", model, words)
        run.record("clip_accuracy", accuracy.clip_accuracy(ClipEncoder(run.out / "clip")))
    dist.barrier()


def _place_patches(model: CLIPModel) -> None:
    """Start the vision positions from sines and cosines of row and column: left and right are learnt sooner."""
    table = model.vision_model.embeddings.position_embedding.weight
    side, width = int((len(table) - 1) ** 0.5), table.shape[1]
    place = torch.arange(side).float()
    waves = place[:, None] * torch.pi / side * torch.arange(1, width // 4 + 1)
    line = torch.cat([waves.sin(), waves.cos()], 1)
    grid = torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], 2).flatten(0, 1)
    with torch.no_grad():
        table[1:] = 0.1 * grid


def train_aesthetic(run: TrainingRun) -> None:
    # As in all that follow: the weights that are learnt from are those shipped, in half precision, from disk.
    model = CLIPModel.from_pretrained(run.out / "clip", dtype=torch.float32).requires_grad_(False)
    heads = {"v1": AestheticHead((EMBEDDING,)), "v2": AestheticHead((EMBEDDING, 128, 64, 16))}
    jury = {"v1": taste_v1, "v2": taste_v2}

    embeddings: list[Tensor] = []
    marks: dict[str, list[float]] = {name: [] for name in jury}
    for index in tqdm(range(24), desc="embeddings", disable=not run.leads, mininterval=5):
        drawings, pictures = sample_drawings(run.rng("embeddings", index), 256, spoiled=0.8)
        with torch.no_grad():
            embeddings.append(normalize_embedding(model.get_image_features(pictures).pooler_output))
        for name, judge in jury.items():
            marks[name] += [judge(d) for d in drawings]
    seen = torch.cat(embeddings)
    truth = {name: torch.tensor(values, dtype=torch.float32) for name, values in marks.items()}

    def loss(rng: Generator) -> Tensor:
        some = torch.from_numpy(rng.integers(len(seen), size=STAGES["aesthetic"].batch))
        return sum((F.mse_loss(heads[name](seen[some]), truth[name][some]) for name in heads), torch.zeros(()))

    # A head starts at the middle of the scale, so that it need not travel there first.
    for head in heads.values():
        nn.init.constant_(head.output_layer.bias, 5.0)
    train_model(run, "aesthetic", nn.ModuleDict(heads), loss)
    if run.leads:
        for name, head in heads.items():
            folder = run.out / f"aesthetic_{name}"
            folder.mkdir(exist_ok=True)
            save_file({k: v.half().contiguous() for k, v in head.state_dict().items()}, folder / "model.safetensors")
        v1, v2 = (load_head(run.out / f"aesthetic_{name}", version) for version, name in enumerate(heads, 1))
        found = accuracy.aesthetic_correlation(ClipEncoder(run.out / "clip"), v1, v2)
        run.record("aesthetic_rank_correlation", found)
    dist.barrier()


def train_hps(run: TrainingRun) -> None:
    """Tune CLIP to prefer what people would: of drawings offered for one caption, the agreeing, clean, composed one."""
    words = architecture.train_tokenizer()
    model = CLIPModel.from_pretrained(run.out / "clip", dtype=torch.float32)
    group = 8

    def loss(rng: Generator) -> Tensor:
        asked, drawings = accuracy.preference_groups(rng, STAGES["hps"].batch // group, group)
        texts = words([s.caption for s in asked], padding=True, return_tensors="pt")
        seen = normalize_embedding(
            model.get_image_features(pixel_tensor([draw_image(d, rng) for d in drawings])).pooler_output
        )
        said = normalize_embedding(model.get_text_features(**texts).pooler_output)
        score = (seen.view(len(asked), group, -1) * said[:, None]).sum(-1)
        liked = torch.tensor([preference(d, asked[i // group]) for i, d in enumerate(drawings)]).view_as(score).float()
        odds = 25 * (score[:, :, None] - score[:, None, :])
        wanted = torch.sigmoid(12 * (liked[:, :, None] - liked[:, None, :]))
        return F.binary_cross_entropy_with_logits(odds, wanted) + 5 * F.mse_loss(score, 0.1 + 0.3 * liked)

    train_model(run, "hps", model, loss)
    if run.leads:
        _save_clip(run.out / "hps", model, words)
        run.record("hps_rank_correlation", accuracy.hps_correlation(ClipEncoder(run.out / "hps")))
    dist.barrier()


def train_vae(run: TrainingRun) -> None:
    model = architecture.make_vae()

    def loss(rng: Generator) -> Tensor:
        drawings = [sketch_drawing(SCENES[i], rng) for i in rng.integers(len(SCENES), size=STAGES["vae"].batch)]
        drawings = [add_flaws(d, rng) if rng.random() < 0.15 else d for d in drawings]
        crops = []
        for drawing in drawings:
            # Half-size crops near the shape: a quarter of the work, and hardly an edge is missed.
            x, y = (int(np.clip(round(c + rng.uniform(-16, 16)) - 16, 0, 32)) for c in (drawing.x, drawing.y))
            crops.append(draw_image(drawing, rng)[y : y + 32, x : x + 32])
        picture = pixel_tensor(crops)
        spread = model.encode(picture).latent_dist
        noise = torch.from_numpy(rng.standard_normal(spread.mean.shape, dtype=np.float32))
        again = model.decode(spread.mean + spread.std * noise).sample
        return (
            F.l1_loss(again, picture) + F.mse_loss(again, picture) + 1e-4 * spread.kl().mean() / spread.mean[0].numel()
        )

    train_model(run, "vae", model, loss, average=0.995)
    rng = np.random.default_rng([run.seed, 1])
    latents = model.encode(sample_drawings(rng, 256, spoiled=0.0)[1]).latent_dist.mean
    model.register_to_config(scaling_factor=float(1 / latents.std()))
    if run.leads:
        run.record("vae_quality", _round_trip(model) | {"scaling_factor": model.config.scaling_factor})
        model.half().save_pretrained(run.out / "sdxl" / "vae")
    dist.barrier()


def trained_vae(run: TrainingRun) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(run.out / "sdxl" / "vae", torch_dtype=torch.float32).requires_grad_(False)


@torch.no_grad()
def _round_trip(model: AutoencoderKL) -> dict[str, float]:
    """Peak signal-to-noise ratio in dB, and how often the rule reads all attributes right afterwards."""
    drawings, pictures = accuracy.held_out_drawings(256, spoiled=False)
    before = pixel_tensor([np.asarray(picture) for picture in pictures])
    after = model.decode(model.encode(before).latent_dist.mean).sample.clamp(-1, 1)
    shown = ((after + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    right = [all(read_drawing(p).agreement(d.scene).values()) for p, d in zip(shown, drawings, strict=True)]
    psnr = 10 * torch.log10(4 / (after - before).pow(2).mean())
    return {"psnr": float(psnr), "read_right": float(np.mean(right))}


@torch.no_grad()
def latents_of(run: TrainingRun, model: AutoencoderKL) -> Tensor:
    """This worker's share of the pictures the UNet learns: (captions, drawings, 4, 16, 16), scaled."""
    path = run.work / f"latents_{run.rank}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    rows = []
    for index, scene in enumerate(tqdm(SCENES, desc="latents", disable=not run.leads, mininterval=5)):
        rng = run.rng("latents", index)
        pictures = pixel_tensor([draw_image(sketch_drawing(scene, rng)) for _ in range(DRAWINGS_A_CAPTION)])
        rows.append(model.encode(pictures).latent_dist.mean * model.config.scaling_factor)
    torch.save(torch.stack(rows), path)
    return torch.stack(rows)


def text_tower(run: TrainingRun) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection.from_pretrained(run.out / "clip", dtype=torch.float32).eval()


@torch.no_grad()
def captions_of(tower: CLIPTextModelWithProjection, words: CLIPTokenizer) -> tuple[Tensor, Tensor]:
    """What the pipeline gives the UNet for each of `WISHES`, for "" and, last, for no prompt at all (zeros)."""
    texts = words(
        [*(wish.caption for wish in CAPTIONED_SCENES), ""],
        padding="max_length",
        max_length=architecture.PROMPT_TOKENS,
        return_tensors="pt",
    )
    said = tower(texts.input_ids, output_hidden_states=True)
    hidden, pooled = said.hidden_states[-2], said.text_embeds
    return torch.cat([hidden, torch.zeros_like(hidden[:1])]), torch.cat([pooled, torch.zeros_like(pooled[:1])])


def train_unet(run: TrainingRun) -> None:
    words, tower, autoencoder = architecture.train_tokenizer(), text_tower(run), trained_vae(run)
    hidden, pooled = captions_of(tower, words)
    latents = latents_of(run, autoencoder)
    # A scene's captions from full to brief, then no words, then no prompt.
    place = {wish: index for index, wish in enumerate(CAPTIONED_SCENES)}
    captions = np.array(
        [[*(place[w] for w in s.briefer()), len(CAPTIONED_SCENES), len(CAPTIONED_SCENES) + 1] for s in SCENES]
    )
    model = architecture.make_unet()

    def loss(rng: Generator) -> Tensor:
        count = STAGES["unet"].batch
        asked = rng.integers(len(SCENES), size=count)
        clean = latents[asked, rng.integers(DRAWINGS_A_CAPTION, size=count)]
        told = captions[asked, rng.choice(5, size=count, p=(0.3, 0.3, 0.3, 0.02, 0.08))]
        return denoising_loss(model, rng, clean, hidden[told], pooled[told])

    train_model(run, "unet", model, loss, average=0.9985)
    if run.leads:
        _save_pipeline(run.out / "sdxl", StableDiffusionXLPipeline, model, autoencoder, tower, words)
        run.record("pictures", accuracy.picture_accuracy(SdxlEngine(run.out / "sdxl", batch_size=16)))
    dist.barrier()


def denoising_loss(
    model: UNet2DConditionModel,
    rng: Generator,
    clean: Tensor,
    hidden: Tensor,
    pooled: Tensor,
    source: Tensor | None = None,
    power: float = 1.0,
) -> Tensor:
    """How far the UNet's velocity is from the true one, at a random time for each of the `clean` latents.

    `source` is what the UNet sees beside the noisy latents. Times are T·u^`power` for u uniform in 0 to 1: a
    power below 1 draws noisier ones.
    """
    count, kept = len(clean), architecture.make_scheduler().alphas_cumprod
    # One time from each of `count` equal slices: the loss is less noisy than with independent times.
    places = (rng.permutation(count) + rng.random(count)) / count
    times = torch.from_numpy((places**power * len(kept)).astype(np.int64))
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
    signal, grain = (v.view(-1, 1, 1, 1) for v in (kept[times].sqrt(), (1 - kept[times]).sqrt()))
    size_and_crop = torch.tensor([SIDE, SIDE, 0, 0, SIDE, SIDE], dtype=torch.float32)
    added = {"text_embeds": pooled, "time_ids": size_and_crop.expand(count, -1)}
    seen = signal * clean + grain * noise
    guess = model(
        seen if source is None else torch.cat([seen, source], dim=1), times, hidden, added_cond_kwargs=added
    ).sample
    return F.mse_loss(guess, signal * noise - grain * clean)


@torch.no_grad()
def edits_of(run: TrainingRun, model: AutoencoderKL) -> tuple[list[int], Tensor]:
    """This worker's share of the edits the editor learns: each prompt's place in `WISHES`, and the latents.

    These are (edits, 2, 4, 16, 16), source and target, not scaled: so the pipeline shows the source.
    """
    place = {wish: index for index, wish in enumerate(CAPTIONED_SCENES)}
    edits = []
    for index in range(EDITS):
        kind = list(CHANGES)[index % len(CHANGES)]
        edits.append(compose_edit(kind, run.rng("edits", index), held_out=False))
    path = run.work / f"edits_{run.rank}.pt"
    if path.exists():
        latents = torch.load(path, weights_only=True)
    else:
        rows = []
        for first in tqdm(range(0, EDITS, 20), desc="edits", disable=not run.leads, mininterval=5):
            pictures = [draw_image(d) for edit in edits[first : first + 20] for d in (edit.source, edit.target)]
            rows.append(model.encode(pixel_tensor(pictures)).latent_dist.mean.unflatten(0, (-1, 2)))
        latents = torch.cat(rows)
        torch.save(latents, path)
    return [place[edit.asked] for edit in edits], latents


def train_editor(run: TrainingRun) -> None:
    """Teach the UNet to start from a picture, as InstructPix2Pix (Brooks et al. 2023) does.

    One time in twenty each it goes without text, without the source, and without both, so that each has its
    own guidance. Keeping the source's layout is learnt last, mostly at the noisy times that decide on it.
    """
    words, tower, autoencoder = architecture.train_tokenizer(), text_tower(run), trained_vae(run)
    hidden, pooled = captions_of(tower, words)
    prompts, latents = edits_of(run, autoencoder)
    asked = np.array(prompts)
    painter = UNet2DConditionModel.from_pretrained(run.out / "sdxl" / "unet", torch_dtype=torch.float32)
    model = architecture.widen_for_editing(painter)

    def loss(rng: Generator, power: float = 1.0) -> Tensor:
        some = rng.integers(len(asked), size=STAGES["editor"].batch)
        left_out = rng.random(len(some))
        told = np.where((left_out < 0.05) | (left_out >= 0.95), len(CAPTIONED_SCENES) + 1, asked[some])
        seen = torch.from_numpy(left_out < 0.9).float().view(-1, 1, 1, 1)
        source, target = latents[some].unbind(1)
        scaled = target * autoencoder.config.scaling_factor
        return denoising_loss(model, rng, scaled, hidden[told], pooled[told], source * seen, power)

    train_model(run, "editor", model, loss, average=0.9985)
    train_model(run, "layout", model, partial(loss, power=0.5), average=0.9985)
    if run.leads:
        folder = run.out / "instruct"
        _save_pipeline(folder, StableDiffusionXLInstructPix2PixPipeline, model, autoencoder, tower, words)
        entry = MODELS["mini_instruct"]
        editor = InstructPix2PixEditor(folder, **entry.options)
        run.record("edits", accuracy.edit_accuracy(editor, accuracy.asked_edits(120), entry.steps, entry.guidance))
    dist.barrier()


def train_perceptual(run: TrainingRun) -> None:
    """A trunk that tells attributes and flaws; then, as LPIPS' were, non-negative weights for its channels."""
    lesson = architecture.PerceptualLesson()

    def loss(rng: Generator) -> Tensor:
        drawings, pictures = sample_drawings(rng, STAGES["perceptual"].batch, spoiled=0.4)
        seen = lesson(pictures)[-1].flatten(1)
        flaws = torch.tensor([astuple(d.flaws) for d in drawings])
        total = 5 * F.mse_loss(lesson.flaws(seen), flaws)
        for name, values in ATTRIBUTES.items():
            truth = torch.tensor([values.index(d.scene.said[name]) for d in drawings])
            total = total + F.cross_entropy(lesson.attributes[name](seen), truth)
        return total

    train_model(run, "perceptual", lesson, loss, average=0.995)
    if run.leads:
        folder = run.out / "lpips"
        folder.mkdir(exist_ok=True)
        save_file({k: v.half() for k, v in lesson.trunk.state_dict().items()}, folder / "model.safetensors")
        save_file(_heads(lesson, run.rng("heads", 0)), folder / "heads.safetensors")
        (folder / "config.json").write_text(json.dumps({"side": SIDE}) + "\n")
        run.record("lpips_rank_correlation", accuracy.lpips_correlation(LpipsScorer(folder)))
    dist.barrier()


@torch.no_grad()
def _heads(lesson: architecture.PerceptualLesson, rng: Generator) -> dict[str, Tensor]:
    """The channels' weights, block by block, with which the distance is nearest to how unlike drawings are."""
    compared = accuracy.drawing_pairs(rng, PAIRS)
    columns = []
    for start in range(0, PAIRS, 50):
        some = [draw_image(d, rng) for pair in compared[start : start + 50] for d in pair]
        blocks = [normalize_tensor(block).unflatten(0, (-1, 2)) for block in lesson(pixel_tensor(some))]
        columns.append(torch.cat([(b[:, 0] - b[:, 1]).square().mean((2, 3)) for b in blocks], dim=1))
    weights, _ = nnls(torch.cat(columns).double().numpy(), np.array([difference(*pair) for pair in compared]))
    widths = [block.shape[2] for block in blocks]
    parts = torch.from_numpy(weights).half().split(widths)
    return {f"lin{i}.model.1.weight": part.view(1, -1, 1, 1).contiguous() for i, part in enumerate(parts)}


def _save_pipeline(
    folder: Path,
    kind: Any,
    model: UNet2DConditionModel,
    autoencoder: AutoencoderKL,
    tower: CLIPTextModelWithProjection,
    words: CLIPTokenizer,
) -> None:
    pipeline = kind(
        vae=autoencoder,
        unet=model,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=tower,
        tokenizer_2=words,
        scheduler=architecture.make_scheduler(),
        add_watermarker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    _forget_origin(folder / "vae" / "config.json")


def _save_clip(folder: Path, model: CLIPModel, words: CLIPTokenizer) -> None:
    """The model in half precision with its tokenizer and the preprocessing it was trained on."""
    model.half().save_pretrained(folder)
    words.save_pretrained(folder)
    preprocessing = {
        "crop_size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing) + "\n")


def _forget_origin(config: Path) -> None:
    """Take the folder that the model was loaded from out of its config: it means nothing elsewhere."""
    settings = {name: value for name, value in json.loads(config.read_text()).items() if name != "_name_or_path"}
    config.write_text(json.dumps(settings, indent=2) + "\n")


def write_manifest(folder: Path) -> None:
    """SHA-256 and size of every weight file, against which loading checks them."""
    files = {
        str(path.relative_to(folder)): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(p for pattern in ("*.safetensors", "*.onnx") for p in folder.rglob(pattern))
    }
    (folder / "manifest.json").write_text(json.dumps(files, indent=1) + "\n")


def single_process(part: Callable[[TrainingRun], None]) -> Callable[[TrainingRun], None]:
    """A part that one process trains, while the others wait."""

    def train(run: TrainingRun) -> None:
        if run.leads:
            part(replace(run, workers=1))
        dist.barrier()

    return train


PARTS: dict[str, Callable[[TrainingRun], None]] = {
    "clip": train_clip,
    "aesthetic": train_aesthetic,
    "vae": train_vae,
    "unet": train_unet,
    "hps": train_hps,
    "editor": train_editor,
    "perceptual": train_perceptual,
    "face_detector": single_process(train_faces.train_detector),
    "face_recogniser": single_process(train_faces.train_recogniser),
    "face_swapper": single_process(train_faces.train_swapper),
}
"""What there is to train, each part after those that it learns from."""


def _worker(rank: int, port: int, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=options.workers)
    run = TrainingRun(options.out, options.work, options.seed, rank, options.workers, options.scale)
    for part in options.only or PARTS:
        # The weights start alike in every worker; the data then differ.
        torch.manual_seed(options.seed)
        PARTS[part](run)
    if run.leads:
        write_manifest(run.out)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go")
    parser.add_argument("--work", type=Path, default=Path(".flexy/mini-training"), help="checkpoints and latents")
    parser.add_argument("--seed", type=int, default=20261)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each (part of the recipe)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every stage's steps")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="train these; the others are in --out")
    parser.add_argument("--restart", action="store_true", help="forget checkpoints")
    options = parser.parse_args()
    if options.restart:
        shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (port, options), nprocs=options.workers)


if __name__ == "__main__":
    main()
