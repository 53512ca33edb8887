"""FLUX.2."""

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from diffusers import Flux2Pipeline

from resources.engines.pipeline import DistilledGuidanceEngine
from resources.errors import FlexyError
from resources.models.loading import load_error, named_loading_errors


class Flux2Engine(DistilledGuidanceEngine):
    """FLUX.2-dev."""

    kind = Flux2Pipeline


class Flux2FourBitEngine(Flux2Engine):
    """FLUX.2-dev whose transformer and text encoder are stored in 4 bit (bitsandbytes' NF4)."""

    def __init__(self, folder: Path, batch_size: int = 4, precision: str = "fp32") -> None:
        """Load a folder in diffusers' form. Raises `FlexyError` without bitsandbytes or a GPU, or for other weights."""
        if not find_spec("bitsandbytes"):
            raise FlexyError("cannot load FLUX.2-dev in 4 bit: bitsandbytes is missing: pip install 'flexy[four-bit]'")
        if not torch.cuda.is_available():
            raise FlexyError("cannot load FLUX.2-dev in 4 bit: there is no GPU: use flux2_dev, or a machine with one")
        for name in ("transformer", "text_encoder"):
            with named_loading_errors(folder / name):
                config = json.loads((folder / name / "config.json").read_text("utf-8"))
                if not (config.get("quantization_config") or {}).get("load_in_4bit"):
                    raise load_error(folder / name, "its weights are not in 4 bit")
        super().__init__(folder, batch_size, precision)
