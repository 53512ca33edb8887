"""Trains all mini weights from a seed: `python -m resources.mini.training.train`.

Stages run in order because each needs earlier weights: the tokenizer, CLIP, the aesthetic heads on it, the VAE, the
UNet on that VAE's latents and that CLIP's text, the preference model tuned from CLIP, and the editor from the UNet;
LPIPS and the faces (`train_faces`) are independent. Each stage reads its inputs from disk, so that `--only` trains
some and leaves the others unchanged. Every random number comes from (seed, stage, worker, step), so a killed run
resumes from its last checkpoint and ends with the same weights.
"""

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
    aesthetic_rule_v1,
    aesthetic_rule_v2,
    difference,
    draw_image,
    preference,
    sketch_drawing,
)
from resources.models.registry import MODELS
from resources.scorers.aesthetic import AestheticHead, normalize_embedding
from resources.scorers.aesthetic import load_aesthetic as load_head
from resources.scorers.clip import ClipEncoder
from resources.scorers.perceptual import LpipsScorer

WEIGHTS = Path(__file__).parents[1] / "weights"
DRAWINGS_PER_CAPTION = 24
"""Latents per caption that the UNet trains on."""
EDITS = 9000
"""Edits per worker that the editor trains on."""
PAIRS = 3000
"""Pairs of drawings that LPIPS' channel weights are fitted to."""


def sample_drawings(rng: Generator, count: int, flawed: float) -> tuple[list[Drawing], Tensor]:
    """Return drawings of random scenes, a share of them flawed, and their pixels."""
    drawings = [sketch_drawing(SCENES[i], rng) for i in rng.integers(len(SCENES), size=count)]
    drawings = [add_flaws(d, rng) if rng.random() < flawed else d for d in drawings]
    return drawings, pixel_tensor([draw_image(d, rng) for d in drawings])


class ClipLesson(nn.Module):
    """CLIP with auxiliary classifiers; only CLIP is saved."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.model, self.heads = model, architecture.AttributeHeads()
        self.tokenizer = tokenizer

    def loss(self, rng: Generator) -> Tensor:
        drawings, images = sample_drawings(rng, STAGES["clip"].batch, flawed=0.5)
        captions = caption_scenes(rng, drawings)
        texts = self.tokenizer([scene.caption for scene in captions], padding=True, return_tensors="pt")
        image_vectors = normalize_embedding(self.model.get_image_features(images).pooler_output)
        text_vectors = normalize_embedding(self.model.get_text_features(**texts).pooler_output)
        similarity = image_vectors @ text_vectors.T * self.model.logit_scale.exp().clamp(max=60)
        fits = caption_matches(drawings, captions)
        total = (F.cross_entropy(similarity, shares(fits)) + F.cross_entropy(similarity.T, shares(fits.T))) / 2
        for name, values in ATTRIBUTES.items():
            for embedding, scenes in ((image_vectors, [d.scene for d in drawings]), (text_vectors, captions)):
                # Unspecified attributes have no target.
                truth = torch.tensor(
                    [values.index(s.attributes[name]) if name in s.attributes else -100 for s in scenes]
                )
                total = total + 0.2 * F.cross_entropy(10 * self.heads.attributes[name](embedding), truth)
        return total + 2 * self._looks_loss(image_vectors, drawings)

    def freeze_text(self) -> None:
        """Freeze the text encoder, so that only the vision encoder trains further."""
        for part in (self.model.text_model, self.model.text_projection):
            part.requires_grad_(False)
        self.model.logit_scale.requires_grad_(False)

    def looks_loss(self, rng: Generator) -> Tensor:
        """Return the loss of cleanliness and composition, which captions do not contain, and of the captions."""
        drawings, images = sample_drawings(rng, STAGES["looks"].batch, flawed=0.7)
        image_vectors = normalize_embedding(self.model.get_image_features(images).pooler_output)
        captions = caption_scenes(rng, drawings)
        texts = self.tokenizer([scene.caption for scene in captions], padding=True, return_tensors="pt")
        with torch.no_grad():
            text_vectors = normalize_embedding(self.model.get_text_features(**texts).pooler_output)
        similarity = image_vectors @ text_vectors.T * self.model.logit_scale.exp().clamp(max=60)
        return F.cross_entropy(similarity, shares(caption_matches(drawings, captions))) + 30 * self._looks_loss(
            image_vectors, drawings
        )

    def _looks_loss(self, image_vectors: Tensor, drawings: list[Drawing]) -> Tensor:
        truth = torch.tensor([[d.flaws.cleanliness, d.composition] for d in drawings])
        return F.mse_loss(self.heads.looks(image_vectors) * 3, truth)


def caption_scenes(rng: Generator, drawings: list[Drawing]) -> list[DrawnScene]:
    """Return a caption scene for each drawing: half in full, the others less detailed."""
    detail_level = rng.choice(3, size=len(drawings), p=(0.5, 0.3, 0.2))
    return [d.scene.with_less_detail()[b] for d, b in zip(drawings, detail_level, strict=True)]


def caption_matches(drawings: list[Drawing], captions: list[DrawnScene]) -> Tensor:
    """Return (drawings, captions): 1 where the drawing shows every attribute of the caption."""
    return torch.tensor(
        [[float(all(scene.attributes_shown_in(d.scene).values())) for scene in captions] for d in drawings]
    )


def shares(fits: Tensor) -> Tensor:
    """Return the matrix with each row normalised to sum 1."""
    return fits / fits.sum(1, keepdim=True)


def train_clip(run: TrainingRun) -> None:
    tokenizer = architecture.train_tokenizer()
    model = architecture.make_clip(tokenizer)
    _initialise_positions(model)
    trainee = ClipLesson(model, tokenizer)
    train_model(run, "clip", trainee, trainee.loss)
    torch.manual_seed(run.seed)
    trainee.freeze_text()
    train_model(run, "looks", trainee, trainee.looks_loss)
    if run.leads:
        _save_clip(run.out / "clip", model, tokenizer)
        run.record("clip_accuracy", accuracy.clip_accuracy(ClipEncoder(run.out / "clip")))
    dist.barrier()


def _initialise_positions(model: CLIPModel) -> None:
    """Initialise vision positions with sines and cosines of row and column, which speeds up training."""
    table = model.vision_model.embeddings.position_embedding.weight
    side, width = int((len(table) - 1) ** 0.5), table.shape[1]
    place = torch.arange(side).float()
    waves = place[:, None] * torch.pi / side * torch.arange(1, width // 4 + 1)
    line = torch.cat([waves.sin(), waves.cos()], 1)
    grid = torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], 2).flatten(0, 1)
    with torch.no_grad():
        table[1:] = 0.1 * grid


AESTHETIC_HEADS: dict[str, dict[str, tuple[int, ...]]] = {
    "aesthetic": {"aesthetic_linear": (EMBEDDING,), "aesthetic_v2": (EMBEDDING, 128, 64, 16)},
    "aesthetic_mlp": {"aesthetic_v1": (EMBEDDING, 128, 64, 16)},
}
"""The widths of the aesthetic heads that are trained together, by stage; all but V2 learn the first rule."""


def train_aesthetic(run: TrainingRun, stage: str) -> None:
    # As in all later stages, inputs are the shipped half-precision weights, read from disk.
    model = CLIPModel.from_pretrained(run.out / "clip", dtype=torch.float32).requires_grad_(False)
    heads = {name: AestheticHead(widths) for name, widths in AESTHETIC_HEADS[stage].items()}
    rules = {name: aesthetic_rule_v2 if name == "aesthetic_v2" else aesthetic_rule_v1 for name in heads}

    embeddings: list[Tensor] = []
    scores: dict[str, list[float]] = {name: [] for name in rules}
    for index in tqdm(range(24), desc="embeddings", disable=not run.leads, mininterval=5):
        drawings, images = sample_drawings(run.rng("embeddings", index), 256, flawed=0.8)
        with torch.no_grad():
            embeddings.append(normalize_embedding(model.get_image_features(images).pooler_output))
        for name, rule in rules.items():
            scores[name] += [rule(d) for d in drawings]
    seen = torch.cat(embeddings)
    truth = {name: torch.tensor(values, dtype=torch.float32) for name, values in scores.items()}

    def loss(rng: Generator) -> Tensor:
        some = torch.from_numpy(rng.integers(len(seen), size=STAGES[stage].batch))
        return sum((F.mse_loss(heads[name](seen[some]), truth[name][some]) for name in heads), torch.zeros(()))

    # A head starts at the middle of the scale, which saves steps.
    for head in heads.values():
        nn.init.constant_(head.output_layer.bias, 5.0)
    train_model(run, stage, nn.ModuleDict(heads), loss)
    if run.leads:
        for name, head in heads.items():
            folder = run.out / name
            folder.mkdir(exist_ok=True)
            save_file({k: v.half().contiguous() for k, v in head.state_dict().items()}, folder / "model.safetensors")
        loaded = {name: load_head(run.out / name, "linear" if "linear" in name else "mlp") for name in heads}
        correlations = accuracy.aesthetic_correlation(ClipEncoder(run.out / "clip"), loaded)
        run.record(f"{stage}_rank_correlation", correlations)
    dist.barrier()


def train_hps(run: TrainingRun) -> None:
    """Tune CLIP on simulated human preferences among several drawings for one caption."""
    tokenizer = architecture.train_tokenizer()
    model = CLIPModel.from_pretrained(run.out / "clip", dtype=torch.float32)
    group = 8

    def loss(rng: Generator) -> Tensor:
        captions, drawings = accuracy.preference_groups(rng, STAGES["hps"].batch // group, group)
        texts = tokenizer([s.caption for s in captions], padding=True, return_tensors="pt")
        image_vectors = normalize_embedding(
            model.get_image_features(pixel_tensor([draw_image(d, rng) for d in drawings])).pooler_output
        )
        text_vectors = normalize_embedding(model.get_text_features(**texts).pooler_output)
        score = (image_vectors.view(len(captions), group, -1) * text_vectors[:, None]).sum(-1)
        target = (
            torch.tensor([preference(d, captions[i // group]) for i, d in enumerate(drawings)]).view_as(score).float()
        )
        odds = 25 * (score[:, :, None] - score[:, None, :])
        target_odds = torch.sigmoid(12 * (target[:, :, None] - target[:, None, :]))
        return F.binary_cross_entropy_with_logits(odds, target_odds) + 5 * F.mse_loss(score, 0.1 + 0.3 * target)

    train_model(run, "hps", model, loss)
    if run.leads:
        _save_clip(run.out / "hps", model, tokenizer)
        run.record("hps_rank_correlation", accuracy.hps_correlation(ClipEncoder(run.out / "hps")))
    dist.barrier()


def train_vae(run: TrainingRun) -> None:
    model = architecture.make_vae()

    def loss(rng: Generator) -> Tensor:
        drawings = [sketch_drawing(SCENES[i], rng) for i in rng.integers(len(SCENES), size=STAGES["vae"].batch)]
        drawings = [add_flaws(d, rng) if rng.random() < 0.15 else d for d in drawings]
        crops = []
        for drawing in drawings:
            # Half-size crops near the shape take a quarter of the time and miss few edges.
            x, y = (int(np.clip(round(c + rng.uniform(-16, 16)) - 16, 0, 32)) for c in (drawing.x, drawing.y))
            crops.append(draw_image(drawing, rng)[y : y + 32, x : x + 32])
        image = pixel_tensor(crops)
        distribution = model.encode(image).latent_dist
        noise = torch.from_numpy(rng.standard_normal(distribution.mean.shape, dtype=np.float32))
        reconstruction = model.decode(distribution.mean + distribution.std * noise).sample
        return (
            F.l1_loss(reconstruction, image)
            + F.mse_loss(reconstruction, image)
            + 1e-4 * distribution.kl().mean() / distribution.mean[0].numel()
        )

    train_model(run, "vae", model, loss, average=0.995)
    rng = np.random.default_rng([run.seed, 1])
    latents = model.encode(sample_drawings(rng, 256, flawed=0.0)[1]).latent_dist.mean
    model.register_to_config(scaling_factor=float(1 / latents.std()))
    if run.leads:
        run.record("vae_quality", _reconstruction_quality(model) | {"scaling_factor": model.config.scaling_factor})
        model.half().save_pretrained(run.out / "sdxl" / "vae")
    dist.barrier()


def load_trained_vae(run: TrainingRun) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(run.out / "sdxl" / "vae", torch_dtype=torch.float32).requires_grad_(False)


@torch.no_grad()
def _reconstruction_quality(model: AutoencoderKL) -> dict[str, float]:
    """Return the PSNR in dB, and the share of reconstructions of which the rule reads all attributes correctly."""
    drawings, images = accuracy.held_out_drawings(256, flawed=False)
    before = pixel_tensor([np.asarray(image) for image in images])
    after = model.decode(model.encode(before).latent_dist.mean).sample.clamp(-1, 1)
    shown = ((after + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    right = [all(read_drawing(p).agreement(d.scene).values()) for p, d in zip(shown, drawings, strict=True)]
    psnr = 10 * torch.log10(4 / (after - before).pow(2).mean())
    return {"psnr": float(psnr), "read_right": float(np.mean(right))}


@torch.no_grad()
def encode_training_scenes(run: TrainingRun, model: AutoencoderKL) -> Tensor:
    """Return this worker's training latents of the UNet: (captions, drawings, 4, 16, 16), scaled."""
    path = run.work / f"latents_{run.rank}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    rows = []
    for index, scene in enumerate(tqdm(SCENES, desc="latents", disable=not run.leads, mininterval=5)):
        rng = run.rng("latents", index)
        images = pixel_tensor([draw_image(sketch_drawing(scene, rng)) for _ in range(DRAWINGS_PER_CAPTION)])
        rows.append(model.encode(images).latent_dist.mean * model.config.scaling_factor)
    torch.save(torch.stack(rows), path)
    return torch.stack(rows)


def load_text_encoder(run: TrainingRun) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection.from_pretrained(run.out / "clip", dtype=torch.float32).eval()


@torch.no_grad()
def encode_captions(tower: CLIPTextModelWithProjection, tokenizer: CLIPTokenizer) -> tuple[Tensor, Tensor]:
    """Return the UNet's text inputs for each of `CAPTIONED_SCENES`, for "" and, last, for no prompt (zeros)."""
    texts = tokenizer(
        [*(scene.caption for scene in CAPTIONED_SCENES), ""],
        padding="max_length",
        max_length=architecture.PROMPT_TOKENS,
        return_tensors="pt",
    )
    output = tower(texts.input_ids, output_hidden_states=True)
    hidden, pooled = output.hidden_states[-2], output.text_embeds
    return torch.cat([hidden, torch.zeros_like(hidden[:1])]), torch.cat([pooled, torch.zeros_like(pooled[:1])])


def train_unet(run: TrainingRun) -> None:
    tokenizer, tower, autoencoder = architecture.train_tokenizer(), load_text_encoder(run), load_trained_vae(run)
    hidden, pooled = encode_captions(tower, tokenizer)
    latents = encode_training_scenes(run, autoencoder)
    # A scene's captions from most to least detailed, then the empty prompt, then no prompt.
    place = {scene: index for index, scene in enumerate(CAPTIONED_SCENES)}
    captions = np.array(
        [[*(place[w] for w in s.with_less_detail()), len(CAPTIONED_SCENES), len(CAPTIONED_SCENES) + 1] for s in SCENES]
    )
    model = architecture.make_unet()

    def loss(rng: Generator) -> Tensor:
        count = STAGES["unet"].batch
        scene_index = rng.integers(len(SCENES), size=count)
        clean = latents[scene_index, rng.integers(DRAWINGS_PER_CAPTION, size=count)]
        caption_index = captions[scene_index, rng.choice(5, size=count, p=(0.3, 0.3, 0.3, 0.02, 0.08))]
        return denoising_loss(model, rng, clean, hidden[caption_index], pooled[caption_index])

    train_model(run, "unet", model, loss, average=0.9985)
    if run.leads:
        _save_pipeline(run.out / "sdxl", StableDiffusionXLPipeline, model, autoencoder, tower, tokenizer)
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
    """Return the loss of the UNet's predicted velocity at a random time for each of the `clean` latents.

    `source` is an additional input of the UNet. Times are T·u^`power` for u uniform in 0 to 1: a
    power below 1 draws noisier ones.
    """
    count, alphas = len(clean), architecture.make_scheduler().alphas_cumprod
    # One time from each of `count` equal slices: the loss is less noisy than with independent times.
    places = (rng.permutation(count) + rng.random(count)) / count
    times = torch.from_numpy((places**power * len(alphas)).astype(np.int64))
    noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
    signal, grain = (v.view(-1, 1, 1, 1) for v in (alphas[times].sqrt(), (1 - alphas[times]).sqrt()))
    size_and_crop = torch.tensor([SIDE, SIDE, 0, 0, SIDE, SIDE], dtype=torch.float32)
    added = {"text_embeds": pooled, "time_ids": size_and_crop.expand(count, -1)}
    noisy = signal * clean + grain * noise
    prediction = model(
        noisy if source is None else torch.cat([noisy, source], dim=1), times, hidden, added_cond_kwargs=added
    ).sample
    return F.mse_loss(prediction, signal * noise - grain * clean)


@torch.no_grad()
def encode_training_edits(run: TrainingRun, model: AutoencoderKL) -> tuple[list[int], Tensor]:
    """Return this worker's training edits: each prompt's index in `CAPTIONED_SCENES`, and the latents.

    These are (edits, 2, 4, 16, 16), source and target, unscaled, as the pipeline passes the source.
    """
    place = {scene: index for index, scene in enumerate(CAPTIONED_SCENES)}
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
            images = [draw_image(d) for edit in edits[first : first + 20] for d in (edit.source, edit.target)]
            rows.append(model.encode(pixel_tensor(images)).latent_dist.mean.unflatten(0, (-1, 2)))
        latents = torch.cat(rows)
        torch.save(latents, path)
    return [place[edit.requested] for edit in edits], latents


def train_editor(run: TrainingRun) -> None:
    """Train the UNet to edit a source image, as InstructPix2Pix (Brooks et al. 2023) does.

    Text, source and both are each dropped one time in twenty, so that each has its own guidance. The source's layout
    is trained last, mostly at the noisy times that determine it.
    """
    tokenizer, tower, autoencoder = architecture.train_tokenizer(), load_text_encoder(run), load_trained_vae(run)
    hidden, pooled = encode_captions(tower, tokenizer)
    prompts, latents = encode_training_edits(run, autoencoder)
    caption_indices = np.array(prompts)
    generator = UNet2DConditionModel.from_pretrained(run.out / "sdxl" / "unet", torch_dtype=torch.float32)
    model = architecture.widen_for_editing(generator)

    def loss(rng: Generator, power: float = 1.0) -> Tensor:
        some = rng.integers(len(caption_indices), size=STAGES["editor"].batch)
        dropout = rng.random(len(some))
        caption_index = np.where((dropout < 0.05) | (dropout >= 0.95), len(CAPTIONED_SCENES) + 1, caption_indices[some])
        keeps_source = torch.from_numpy(dropout < 0.9).float().view(-1, 1, 1, 1)
        source, target = latents[some].unbind(1)
        scaled = target * autoencoder.config.scaling_factor
        return denoising_loss(
            model, rng, scaled, hidden[caption_index], pooled[caption_index], source * keeps_source, power
        )

    train_model(run, "editor", model, loss, average=0.9985)
    train_model(run, "layout", model, partial(loss, power=0.5), average=0.9985)
    if run.leads:
        folder = run.out / "instruct"
        _save_pipeline(folder, StableDiffusionXLInstructPix2PixPipeline, model, autoencoder, tower, tokenizer)
        entry = MODELS["mini_instruct"]
        editor = InstructPix2PixEditor(folder, **entry.options)
        run.record("edits", accuracy.edit_accuracy(editor, accuracy.held_out_edits(120), entry.steps, entry.guidance))
    dist.barrier()


def train_perceptual(run: TrainingRun) -> None:
    """Train a trunk that classifies attributes and flaws; then, as LPIPS does, fit non-negative channel weights."""
    trainee = architecture.PerceptualLesson()

    def loss(rng: Generator) -> Tensor:
        drawings, images = sample_drawings(rng, STAGES["perceptual"].batch, flawed=0.4)
        features = trainee(images)[-1].flatten(1)
        flaws = torch.tensor([astuple(d.flaws) for d in drawings])
        total = 5 * F.mse_loss(trainee.flaws(features), flaws)
        for name, values in ATTRIBUTES.items():
            truth = torch.tensor([values.index(d.scene.attributes[name]) for d in drawings])
            total = total + F.cross_entropy(trainee.attributes[name](features), truth)
        return total

    train_model(run, "perceptual", trainee, loss, average=0.995)
    if run.leads:
        folder = run.out / "lpips"
        folder.mkdir(exist_ok=True)
        save_file({k: v.half() for k, v in trainee.trunk.state_dict().items()}, folder / "model.safetensors")
        save_file(_heads(trainee, run.rng("heads", 0)), folder / "heads.safetensors")
        (folder / "config.json").write_text(json.dumps({"side": SIDE}) + "\n")
        run.record("lpips_rank_correlation", accuracy.lpips_correlation(LpipsScorer(folder)))
    dist.barrier()


@torch.no_grad()
def _heads(trainee: architecture.PerceptualLesson, rng: Generator) -> dict[str, Tensor]:
    """Return the channel weights, block by block, that fit the drawings' distance best."""
    pairs = accuracy.drawing_pairs(rng, PAIRS)
    columns = []
    for start in range(0, PAIRS, 50):
        some = [draw_image(d, rng) for pair in pairs[start : start + 50] for d in pair]
        blocks = [normalize_tensor(block).unflatten(0, (-1, 2)) for block in trainee(pixel_tensor(some))]
        columns.append(torch.cat([(b[:, 0] - b[:, 1]).square().mean((2, 3)) for b in blocks], dim=1))
    weights, _ = nnls(torch.cat(columns).double().numpy(), np.array([difference(*pair) for pair in pairs]))
    widths = [block.shape[2] for block in blocks]
    parts = torch.from_numpy(weights).half().split(widths)
    return {f"lin{i}.model.1.weight": part.view(1, -1, 1, 1).contiguous() for i, part in enumerate(parts)}


def _save_pipeline(
    folder: Path,
    kind: Any,
    model: UNet2DConditionModel,
    autoencoder: AutoencoderKL,
    tower: CLIPTextModelWithProjection,
    tokenizer: CLIPTokenizer,
) -> None:
    pipeline = kind(
        vae=autoencoder,
        unet=model,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=tower,
        tokenizer_2=tokenizer,
        scheduler=architecture.make_scheduler(),
        add_watermarker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    _remove_origin(folder / "vae" / "config.json")


def _save_clip(folder: Path, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Save the model in half precision with its tokenizer and preprocessing configuration."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preprocessing = {
        "crop_size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing) + "\n")


def _remove_origin(config: Path) -> None:
    """Remove the folder that the model was loaded from from its configuration."""
    settings = {name: value for name, value in json.loads(config.read_text()).items() if name != "_name_or_path"}
    config.write_text(json.dumps(settings, indent=2) + "\n")


def write_manifest(folder: Path) -> None:
    """Write SHA-256 and size of every weight file, which loading checks."""
    files = {
        str(path.relative_to(folder)): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(p for pattern in ("*.safetensors", "*.onnx") for p in folder.rglob(pattern))
    }
    (folder / "manifest.json").write_text(json.dumps(files, indent=1) + "\n")


def single_process(part: Callable[[TrainingRun], None]) -> Callable[[TrainingRun], None]:
    """Return a part that one process trains while the others wait."""

    def train(run: TrainingRun) -> None:
        if run.leads:
            part(replace(run, workers=1))
        dist.barrier()

    return train


PARTS: dict[str, Callable[[TrainingRun], None]] = {
    "clip": train_clip,
    **{stage: partial(train_aesthetic, stage=stage) for stage in AESTHETIC_HEADS},
    "vae": train_vae,
    "unet": train_unet,
    "hps": train_hps,
    "editor": train_editor,
    "perceptual": train_perceptual,
    "face_detector": single_process(train_faces.train_detector),
    "face_recogniser": single_process(train_faces.train_recogniser),
    "face_swapper": single_process(train_faces.train_swapper),
}
"""The parts, each after those that it depends on."""


def _worker(rank: int, port: int, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=options.workers)
    run = TrainingRun(options.out, options.work, options.seed, rank, options.workers, options.scale)
    for part in options.only or PARTS:
        # All workers start with equal weights; their data differ.
        torch.manual_seed(options.seed)
        PARTS[part](run)
    if run.leads:
        write_manifest(run.out)
    dist.destroy_process_group()


def run_training() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="output folder of the weights")
    parser.add_argument("--work", type=Path, default=Path(".flexy/mini-training"), help="checkpoints and latents")
    parser.add_argument("--seed", type=int, default=20261)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each (part of the recipe)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every stage's steps")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="train these parts; the others are in --out")
    parser.add_argument("--restart", action="store_true", help="delete checkpoints first")
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
    run_training()
