"""The architectures of the mini models, untrained: production's own classes with small sizes."""

import json
from dataclasses import fields
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from lpips.lpips import ScalingLayer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from resources.mini.world import ATTRIBUTES, CAPTIONED_SCENES, SIDE, Flaws
from resources.scorers.perceptual import VggFeatures

TEXT_WIDTH = 128
EMBEDDING = 128
PROMPT_TOKENS = 32
LATENT_SIDE = SIDE // 4
LATENT_CHANNELS = 4


def train_tokenizer() -> CLIPTokenizer:
    """Return a byte-pair tokenizer in CLIP's form, trained on the captions; it can encode any text."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    learner.decoder = decoders.ByteLevel()
    learner.train_from_iterator(
        [scene.caption for scene in CAPTIONED_SCENES],
        trainers.BpeTrainer(vocab_size=1000, end_of_word_suffix="</w>", show_progress=False),
    )
    merges: Any = [tuple(pair) for pair in _merges(learner)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(pair) for pair in merges]
    tokens = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        model_max_length=PROMPT_TOKENS,
    )


def _merges(learner: Tokenizer) -> list[list[str]]:
    return json.loads(learner.to_str())["model"]["merges"]


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return a CLIP with 8-pixel patches, 4 vision and 3 text layers of width 128."""
    tower = {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_attention_heads": 4,
        "projection_dim": EMBEDDING,
    }
    text = tower | {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 3,
        "max_position_embeddings": PROMPT_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {"num_hidden_layers": 4, "image_size": SIDE, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBEDDING))


def make_vae() -> AutoencoderKL:
    """Return a VAE from 64×64 images to 16×16×4 latents, without attention, so that it can train on crops."""
    return AutoencoderKL(
        block_out_channels=(16, 24, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=SIDE,
        force_upcast=False,
    )


def make_unet(in_channels: int = LATENT_CHANNELS) -> UNet2DConditionModel:
    """Return SDXL's UNet with cross-attention at every level of the encoder, so that it can distinguish shapes."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=[1, 2, 3],
        norm_num_groups=8,
        use_linear_projection=True,
        cross_attention_dim=TEXT_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + EMBEDDING,
    )


def widen_for_editing(generator: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return the UNet with four more input channels, for the source's latents, with zero weights."""
    model = make_unet(2 * LATENT_CHANNELS)
    weights = generator.state_dict()
    known = weights["conv_in.weight"]
    model.load_state_dict(weights | {"conv_in.weight": torch.cat([known, torch.zeros_like(known)], dim=1)})
    return model


def make_scheduler() -> EulerDiscreteScheduler:
    """Return SDXL's scheduler (Euler steps, leading spacing) with v-prediction."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="leading",
        steps_offset=1,
    )


class PerceptualLesson(nn.Module):
    """A small VGG for LPIPS with the classifiers that train it; only the trunk is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = ScalingLayer()
        self.trunk = VggFeatures(((8,), (16,), (24,), (24,), (24,)))
        cells = 24 * (SIDE // 16) ** 2
        self.attributes = nn.ModuleDict({name: nn.Linear(cells, len(values)) for name, values in ATTRIBUTES.items()})
        self.flaws = nn.Linear(cells, len(fields(Flaws)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the trunk's features of (n, 3, 64, 64) images in −1 to 1, as `LpipsDistance` computes them."""
        return self.trunk(self.scale(images))


class AttributeHeads(nn.Module):
    """Classifiers that train CLIP's embeddings to contain the attributes; discarded after training."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes = nn.ModuleDict({name: nn.Linear(EMBEDDING, len(v)) for name, v in ATTRIBUTES.items()})
        self.looks = nn.Linear(EMBEDDING, 2)
        """Cleanliness and composition, which the aesthetic heads read."""
