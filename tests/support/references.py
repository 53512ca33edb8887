"""The reference implementations of the scorers, as people use them, and random models of the published classes.

`make references` installs them separately from the environment, without their pins. The models have random weights:
no hub is needed, and a difference between two implementations shows as well as with trained ones.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import resources  # noqa: F401  torchvision is imported through it

# isort: split

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

FOLDER = Path(sys.prefix) / "references"
PROMPTS = (
    "a small red circle on the left of a blue background",
    "A photograph of an old fisherman's hands — mending a net, at dawn",
    "ein Café in Zürich, 1924 (Ölgemälde)",
    "a dog &amp; a cat, they're asleep",
    "solarpunk city, trending, 8k, highly detailed " * 12,
    "x",
)

# What transformers, simple-aesthetics-predictor and torchmetrics are given: the published file, as it stands.
PREPROCESSOR = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}

HEADS: dict[int, Literal["linear", "mlp"]] = {1: "linear", 2: "mlp"}
"""The forms of the heads by simple-aesthetics-predictor's versions."""

Score = Callable[[Path, str], float]
"""A reference as it is used: a picture's file and its prompt to a score."""


def install() -> None:
    """Make the references importable. Raises SystemExit where they are not installed."""
    if not FOLDER.is_dir():
        sys.exit(f"the reference implementations are not in {FOLDER}: make references")
    if str(FOLDER) in sys.path:
        return
    sys.path.append(str(FOLDER))
    vocabulary = FOLDER / "hpsv2/src/open_clip/bpe_simple_vocab_16e6.txt.gz"
    if not vocabulary.exists():
        shutil.copy(FOLDER / "open_clip" / vocabulary.name, vocabulary)
    # hpsv2 imports a name it never uses from turtle, which wants a screen's library.
    try:
        import turtle  # noqa: F401
    except ImportError:
        sys.modules["turtle"] = ModuleType("turtle")
        sys.modules["turtle"].forward = None  # type: ignore[attr-defined]


def save_tokenizer(folder: Path) -> None:
    """CLIP's own vocabulary in transformers' form."""
    lines = gzip.decompress((FOLDER / "open_clip/bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _stir(model: nn.Module, seed: int, gain: float) -> None:
    """Weights so large that what goes in shows in what comes out: at their usual scale it hardly does."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            fan = weight.shape[1:].numel() if weight.dim() > 2 or "proj" in name else weight.shape[-1]
            nn.init.normal_(weight, std=gain / fan**0.5, generator=generator)
        elif name.endswith("bias"):
            nn.init.normal_(weight, std=0.1, generator=generator)


def save_clip(folder: Path, full: bool, seed: int = 0) -> Path:
    """A random CLIP with its tokenizer: ViT-L/14 itself, or a narrow and shallow one of the same input."""
    folder.mkdir(parents=True, exist_ok=True)
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    if not full:
        small = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2}
        text, vision = text | small, vision | small
    width = {"projection_dim": 768 if full else 96}
    config = CLIPConfig(**width, text_config=text | width, vision_config=vision | width | {"patch_size": 14})
    torch.manual_seed(seed)
    model = CLIPModel(config)
    _stir(model, seed, gain=1.0)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return folder


def processor(folder: Path, pillow: bool = True) -> CLIPProcessor:
    """CLIP's processor, resizing by Pillow as the references do at the versions they ask for.

    From version 5 on transformers resizes by torchvision, which rounds some pixels the other way.
    """
    found = CLIPProcessor.from_pretrained(folder)
    if pillow:
        found.image_processor = CLIPImageProcessorPil.from_pretrained(folder)
    return found


def clip_score(folder: Path, pillow: bool = True) -> Score:
    """torchmetrics' CLIPScore of one picture and prompt, over 100. It reports no less than 0."""
    install()
    from torchmetrics.functional.multimodal import clip_score

    class Adapter(CLIPModel):
        """torchmetrics 1.9 expects the tensors that transformers returned before version 5."""

        def get_image_features(self, *arguments: Any, **named: Any) -> Any:
            return super().get_image_features(*arguments, **named).pooler_output

        def get_text_features(self, *arguments: Any, **named: Any) -> Any:
            return super().get_text_features(*arguments, **named).pooler_output

    both = Adapter.from_pretrained(folder).eval(), processor(folder, pillow)

    @torch.inference_mode()
    def score(picture: Path, prompt: str) -> float:
        from torchvision.transforms.functional import pil_to_tensor

        pixels = pil_to_tensor(Image.open(picture).convert("RGB"))
        return float(clip_score(pixels, prompt, model_name_or_path=lambda: both)) / 100

    return score


def save_predictor(folder: Path, clip: Path, version: int, seed: int = 0) -> Path:
    """simple-aesthetics-predictor's model V1 or V2 on the image tower of `clip`, with a random head."""
    predictor = _predictor(version).from_pretrained(clip)
    head = predictor.predictor if version == 1 else predictor.layers
    generator = torch.Generator().manual_seed(seed)
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            # Marks that spread as published ones do, by about one half.
            gain = 12 if version == 1 else 1.6
            nn.init.normal_(layer.weight, std=gain / layer.in_features**0.5, generator=generator)
            nn.init.constant_(layer.bias, 0.0)
    last = head if version == 1 else head[-1]
    nn.init.constant_(last.bias, 5.0)
    predictor.save_pretrained(folder)
    CLIPProcessor.from_pretrained(clip).save_pretrained(folder)
    return folder


def _predictor(version: int) -> Any:
    install()
    from aesthetics_predictor import AestheticsPredictorV1, AestheticsPredictorV2Linear

    return AestheticsPredictorV1 if version == 1 else AestheticsPredictorV2Linear


def aesthetic(folder: Path, version: int, pillow: bool = True) -> Score:
    """simple-aesthetics-predictor's mark of one picture, as its page shows it."""
    predictor = _predictor(version).from_pretrained(folder).eval()
    prepare = processor(folder, pillow)

    @torch.inference_mode()
    def score(picture: Path, prompt: str) -> float:
        inputs = prepare(images=Image.open(picture).convert("RGB"), return_tensors="pt")
        return float(predictor(**inputs).logits)

    return score


def save_laion_head(folder: Path, width: int, seed: int = 0) -> Path:
    """A random MLP in improved-aesthetic-predictor's file, with the names it has there; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    generator, state = torch.Generator().manual_seed(seed), {}
    for place, inputs, outputs in zip((0, 2, 4, 6, 7), (width, 1024, 128, 64, 16), (1024, 128, 64, 16, 1), strict=True):
        state[f"layers.{place}.weight"] = torch.randn(outputs, inputs, generator=generator) * 1.6 / inputs**0.5
        state[f"layers.{place}.bias"] = torch.full((outputs,), 5.0 if outputs == 1 else 0.0)
    file = folder / "sac+logos+ava1-l14-linearMSE.pth"
    torch.save(state, file)
    return file


def laion_scores(file: Path, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """The marks of L2-normalised embeddings by the MLP as its authors describe it: linear layers, no activation."""
    state, marks = torch.load(file, weights_only=True), torch.from_numpy(embeddings)
    for place in (0, 2, 4, 6, 7):
        marks = marks @ state[f"layers.{place}.weight"].T + state[f"layers.{place}.bias"]
    return marks[:, 0].numpy()


class OpenClip:
    """open_clip's own model, preprocessing and tokenizer, with the weights of the CLIP that `save_clip` wrote."""

    def __init__(self, folder: Path, quick_gelu: bool) -> None:
        install()
        from open_clip import get_tokenizer, image_transform
        from open_clip.model import CLIP

        from resources.scorers.hps import to_open_clip

        source = CLIPModel.from_pretrained(folder).eval()
        vision, text = source.config.vision_config, source.config.text_config
        self.model = CLIP(
            source.config.projection_dim,
            {
                **{"image_size": vision.image_size, "patch_size": vision.patch_size, "width": vision.hidden_size},
                **{"layers": vision.num_hidden_layers, "mlp_ratio": vision.intermediate_size / vision.hidden_size},
                "head_width": vision.hidden_size // vision.num_attention_heads,
            },
            {
                **{"width": text.hidden_size, "heads": text.num_attention_heads, "layers": text.num_hidden_layers},
                "mlp_ratio": text.intermediate_size / text.hidden_size,
            },
            quick_gelu=quick_gelu,
        ).eval()
        self.model.load_state_dict(to_open_clip(source.state_dict(), self.model.state_dict()))
        self.prepare = image_transform(vision.image_size, is_train=False)
        self.tokenize = get_tokenizer("ViT-L-14")

    @torch.inference_mode()
    def images(self, files: Sequence[Path]) -> NDArray[np.float32]:
        """(n, width) L2-normalised vectors of image files, one at a time."""
        pictures = (self.prepare(Image.open(file).convert("RGB"))[None] for file in files)
        return torch.cat([self.model.encode_image(picture, normalize=True) for picture in pictures]).numpy()

    @torch.inference_mode()
    def texts(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """(n, width) L2-normalised vectors of prompts, one at a time."""
        return torch.cat([self.model.encode_text(self.tokenize([p]), normalize=True) for p in prompts]).numpy()


def save_hps(folder: Path, full: bool, seed: int = 0) -> Path:
    """A random model of hpsv2's own class as the published checkpoint holds it; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = hps_model(full)
    _stir(model, seed, gain=1.0)
    file = folder / "HPS_v2.1_compressed.pt"
    torch.save({"state_dict": model.half().state_dict()}, file)  # "compressed" says that it is in half precision
    return file


def hps_model(full: bool) -> Any:
    """hpsv2's own model: ViT-H/14, or a narrow and shallow one of the same input."""
    install()
    from hpsv2.src.open_clip.model import CLIP

    vision: dict[str, Any] = {"image_size": 224, "patch_size": 14, "head_width": 80, "layers": 32, "width": 1280}
    text: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "layers": 24, "width": 1024, "heads": 16}
    if not full:
        vision, text = vision | {"layers": 3, "width": 160}, text | {"layers": 3, "width": 128, "heads": 2}
    return CLIP(embed_dim=1024 if full else 96, vision_cfg=vision, text_cfg=text, output_dict=True)


def hps(checkpoint: Path, full: bool) -> Score:
    """`hpsv2.score` of one image and prompt: it reads the checkpoint at every call."""
    install()
    from hpsv2 import img_score
    from hpsv2.src.open_clip.transform import image_transform

    # What its initialize_model() makes of the hub's model, which the checkpoint then overwrites.
    img_score.model_dict |= {
        "model": hps_model(full),
        "preprocess_val": image_transform(224, is_train=False, resize_longest_max=True),
    }

    def score(picture: Path, prompt: str) -> float:
        return float(img_score.score(str(picture), prompt, cp=str(checkpoint))[0])

    return score


def save_vgg(folder: Path, seed: int = 0) -> Path:
    """A random VGG16 in torchvision's file, where torchvision looks for it below TORCH_HOME=`folder`."""
    from torchvision.models import vgg16

    torch.manual_seed(seed)
    place = folder / "hub/checkpoints"
    place.mkdir(parents=True, exist_ok=True)
    torch.save(vgg16(weights=None).state_dict(), place / "vgg16-397923af.pth")
    return place


def lpips(folder: Path) -> Callable[[Path, Path], float]:
    """lpips' own model, with the VGG16 below TORCH_HOME=`folder`; two pictures at 256 × 256 to their distance."""
    import torch.hub
    from lpips import LPIPS
    from torchvision.transforms import Compose, Normalize, Resize, ToTensor

    before = torch.hub.get_dir()
    torch.hub.set_dir(str(folder / "hub"))
    try:
        model = LPIPS(net="vgg", verbose=False)
    finally:
        torch.hub.set_dir(before)
    prepare = Compose([Resize((256, 256)), ToTensor(), Normalize([0.5] * 3, [0.5] * 3)])

    @torch.inference_mode()
    def distance(left: Path, right: Path) -> float:
        pixels = [prepare(Image.open(picture).convert("RGB"))[None] for picture in (left, right)]
        return float(model(*pixels))

    return distance


def tokenize(prompts: Sequence[str]) -> torch.Tensor:
    """(n, 77) token ids by open_clip's tokenizer, as hpsv2 brings it."""
    install()
    from hpsv2.src.open_clip.tokenizer import tokenize

    return tokenize(list(prompts))


def tokenizer(folder: Path) -> CLIPTokenizer:
    """transformers' tokenizer of the same vocabulary."""
    return CLIPTokenizer.from_pretrained(folder)
