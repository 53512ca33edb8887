"""The published pipelines' very classes with a few thousand random weights each, in folders of diffusers' form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

WIDTH = 16
"""Of every text encoder."""

LIGHTNING_FILE = "sdxl_lightning_4step_unet.safetensors"

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


def clip_tokenizer(tokens: int = 77) -> CLIPTokenizer:
    """Return a tokenizer with one token per letter, so that every prompt is in its vocabulary."""
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=tokens)


def t5_tokenizer() -> T5TokenizerFast:
    letters = [(chr(code), -3.0) for code in range(33, 127)]
    return T5TokenizerFast(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters], extra_ids=0, model_max_length=512
    )


def byte_tokenizer(*special: str) -> Tokenizer:
    words = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(LETTERS)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(list(special))
    return words


def qwen_tokenizer() -> Qwen2Tokenizer:
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    words = [*LETTERS, "<|endoftext|>"]
    return Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], additional_special_tokens=special)


def loud(network: Any, factor: float = 3) -> Any:
    """The same, heeding what it is told: weights as small as new ones are would let prompts hardly matter."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                weight *= factor
            elif name.endswith("bias"):
                weight.zero_()
    return network


def clip_text(kind: Any, words: CLIPTokenizer, tokens: int = 77) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokens,
        projection_dim=WIDTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        initializer_factor=8.0,
    )
    return kind(config)


def t5(words: T5TokenizerFast) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(words), d_model=WIDTH, d_kv=8, d_ff=2 * WIDTH, num_layers=2, num_heads=2, is_gated_act=True
    )
    return T5EncoderModel(config)


def vae(levels: int, **options: Any) -> AutoencoderKL:
    """One latent for 2^(levels - 1) pixels along each side."""
    return AutoencoderKL(
        block_out_channels=(4,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        mid_block_add_attention=False,
        **options,
    )


def flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def shifting_flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def sdxl_parts(in_channels: int) -> dict[str, Any]:
    words = clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2),
        norm_num_groups=4,
        use_linear_projection=True,
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return {
        "vae": vae(3, force_upcast=False),
        "text_encoder": clip_text(CLIPTextModel, words),
        "text_encoder_2": clip_text(CLIPTextModelWithProjection, words),
        "tokenizer": words,
        "tokenizer_2": words,
        "unet": unet,
        "scheduler": EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    }


def sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(**sdxl_parts(in_channels=4))


def instruct_pix2pix() -> StableDiffusionXLInstructPix2PixPipeline:
    parts = sdxl_parts(in_channels=8)
    loud(parts["vae"].encoder)
    return StableDiffusionXLInstructPix2PixPipeline(**parts)


def sd3() -> StableDiffusion3Pipeline:
    words, pieces = clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=32,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        vae=vae(3, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(CLIPTextModelWithProjection, words),
        text_encoder_2=clip_text(CLIPTextModelWithProjection, words),
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=len(pieces), d_model=2 * WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        ),
        tokenizer=words,
        tokenizer_2=words,
        tokenizer_3=pieces,
        transformer=transformer,
        scheduler=flow(),
    )


def flux_parts(levels: int, guidance: bool) -> dict[str, Any]:
    words, pieces = clip_tokenizer(), t5_tokenizer()
    return {
        "vae": vae(levels, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        "text_encoder": clip_text(CLIPTextModel, words),
        "text_encoder_2": t5(pieces),
        "tokenizer": words,
        "tokenizer_2": pieces,
        "transformer": loud(
            FluxTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                pooled_projection_dim=WIDTH,
                guidance_embeds=guidance,
                axes_dims_rope=(4, 6, 6),
            )
        ),
        "scheduler": shifting_flow(),
    }


def flux_schnell() -> FluxPipeline:
    return FluxPipeline(**flux_parts(3, guidance=False))


def flux_1_dev() -> FluxPipeline:
    return FluxPipeline(**flux_parts(3, guidance=True))


def flux_kontext() -> FluxKontextPipeline:
    # A megapixel is 256 tokens.
    parts = flux_parts(6, guidance=True)
    loud(parts["vae"].encoder)
    return FluxKontextPipeline(**parts)


def flux2() -> Flux2Pipeline:
    words = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer("<s>", "</s>", "<pad>", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
    )
    template = (
        "{{ bos_token }}{% for m in messages %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endfor %}"
    )
    # The published one is asked for the states of its 10th, 20th and 30th layer.
    text = {
        "model_type": "mistral",
        "vocab_size": len(words),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 30,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "initializer_range": 0.5,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 8,
        "image_size": 32,
        "patch_size": 16,
    }
    image_token = words.convert_tokens_to_ids("[IMG]")
    levels = 3
    return Flux2Pipeline(
        vae=AutoencoderKLFlux2(
            block_out_channels=(8,) * levels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            mid_block_add_attention=False,
        ),
        text_encoder=Mistral3ForConditionalGeneration(
            Mistral3Config(text_config=text, vision_config=vision, image_token_index=image_token)
        ),
        tokenizer=PixtralProcessor(PixtralImageProcessor(), words, chat_template=template),
        transformer=loud(
            Flux2Transformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=3 * WIDTH,
                timestep_guidance_channels=16,
                axes_dims_rope=(4, 4, 4, 4),
            )
        ),
        scheduler=shifting_flow(),
    )


def llama() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    words = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer("<|begin_of_text|>", "<|eot_id|>"),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        model_max_length=2048,
    )
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    return LlamaForCausalLM(config), words


def hidream() -> HiDreamImagePipeline:
    tokens = 128
    words, pieces = clip_tokenizer(tokens), t5_tokenizer()
    return HiDreamImagePipeline(
        vae=vae(2, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip_text(CLIPTextModelWithProjection, words, tokens),
        text_encoder_2=clip_text(CLIPTextModelWithProjection, words, tokens),
        text_encoder_3=t5(pieces),
        text_encoder_4=None,
        tokenizer=words,
        tokenizer_2=words,
        tokenizer_3=pieces,
        tokenizer_4=None,
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[WIDTH, WIDTH],
            text_emb_dim=2 * WIDTH,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(128, 128),
            llama_layers=[0, 1],
        ),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


def qwen_vae() -> AutoencoderKLQwenImage:
    """A latent for 16 × 16 pixels, where the published one has one for 8 × 8: a megapixel is 1024 tokens."""
    network = AutoencoderKLQwenImage(
        base_dim=2,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=0,
        temperal_downsample=[False, False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    with torch.no_grad():
        for name, gain in network.named_parameters():
            # The norm of a single channel is its sign: rounding errors would show.
            if name.endswith("gamma") and len(gain) == 1:
                gain.zero_()
    return loud(network, factor=1.5)


def qwen_parts(**options: Any) -> dict[str, Any]:
    words = qwen_tokenizer()
    identity = words.convert_tokens_to_ids
    # Small pictures for the text encoder; the VAE sees a megapixel all the same.
    eye = {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}}
    return {
        "vae": qwen_vae(),
        "text_encoder": Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                text_config={
                    "vocab_size": len(words),
                    "hidden_size": WIDTH,
                    "intermediate_size": WIDTH,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 1,
                    "initializer_range": 0.5,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
                },
                vision_config={
                    "depth": 1,
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_heads": 2,
                    "out_hidden_size": WIDTH,
                    "fullatt_block_indexes": [0],
                },
                image_token_id=identity("<|image_pad|>"),
                video_token_id=identity("<|video_pad|>"),
                vision_start_token_id=identity("<|vision_start|>"),
                vision_end_token_id=identity("<|vision_end|>"),
            )
        ),
        "tokenizer": words,
        "processor": Qwen2VLProcessor(Qwen2VLImageProcessor(**eye), words, Qwen2VLVideoProcessor(**eye)),
        "transformer": loud(
            QwenImageTransformer2DModel(
                in_channels=16,
                out_channels=4,
                num_layers=1,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=WIDTH,
                axes_dims_rope=(4, 2, 2),
                **options,
            )
        ),
        "scheduler": shifting_flow(),
    }


def qwen_image_edit() -> QwenImageEditPipeline:
    return QwenImageEditPipeline(**qwen_parts())


def qwen_image_edit_plus() -> QwenImageEditPlusPipeline:
    # As of 2511 the source's tokens are taken for noiseless ones.
    return QwenImageEditPlusPipeline(**qwen_parts(zero_cond_t=True))


PIPELINES: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (
        sdxl,
        sd3,
        flux_schnell,
        flux_1_dev,
        flux2,
        hidream,
        flux_kontext,
        qwen_image_edit,
        qwen_image_edit_plus,
        instruct_pix2pix,
    )
}


def save(name: str, folder: Path) -> Path:
    """Write the pipeline called `name`, or Llama, or a UNet of SDXL's alone, and return `folder`."""
    torch.manual_seed(1 if name == "lightning" else 0)
    if name == "llama":
        for part in llama():
            part.save_pretrained(folder)
        return folder
    if name == "lightning":
        folder.mkdir()
        save_file(sdxl().unet.state_dict(), folder / LIGHTNING_FILE)
        return folder
    PIPELINES[name]().save_pretrained(folder)
    if name == "hidream":
        # The published index does not speak of Llama.
        index = json.loads((folder / "model_index.json").read_text())
        kept = {key: value for key, value in index.items() if not key.endswith("_4")}
        (folder / "model_index.json").write_text(json.dumps(kept))
    return folder
