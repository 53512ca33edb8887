"""The tiny pipelines, written and loaded once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from diffusers import HiDreamImagePipeline

from resources.engines.flux import FluxDevEngine, FluxEngine, KontextEditor
from resources.engines.flux2 import Flux2Engine
from resources.engines.hidream import HiDreamDevEngine, HiDreamEngine
from resources.engines.instruct_pix2pix import InstructPix2PixEditor
from resources.engines.qwen_image_edit import QwenImageEditor, QwenImageEditPlusEditor
from resources.engines.sd3 import Sd3Engine
from resources.engines.sdxl import LightningEngine, SdxlEngine

from .tiny_models import LIGHTNING_FILE, save

LOADERS: dict[str, Any] = {
    "sdxl": SdxlEngine,
    "sd3": Sd3Engine,
    "lightning": LightningEngine,
    "flux_schnell": FluxEngine,
    "flux_1_dev": FluxDevEngine,
    "flux2": Flux2Engine,
    "hidream": HiDreamEngine,
    "hidream_dev": HiDreamDevEngine,
    "flux_kontext": KontextEditor,
    "qwen_image_edit": QwenImageEditor,
    "qwen_image_edit_plus": QwenImageEditPlusEditor,
    "instruct_pix2pix": InstructPix2PixEditor,
}

Folders = Callable[[str], Path]
Loaded = Callable[..., Any]


@pytest.fixture(scope="session", autouse=True)
def small_resolution() -> Iterator[None]:
    """Qwen's and HiDream's pipelines work at a sixteenth of a megapixel, not at one whatever the size asked for."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("edit", "edit_plus", "edit_inpaint"):
            module: Any = import_module(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_{name}")
            real = module.calculate_dimensions
            patch.setattr(module, "calculate_dimensions", lambda area, ratio, real=real: real(area // 16, ratio))
        make = HiDreamImagePipeline.__init__

        @wraps(make)
        def make_smaller(pipeline: Any, *arguments: Any, **options: Any) -> None:
            make(pipeline, *arguments, **options)
            pipeline.default_sample_size //= 4

        patch.setattr(HiDreamImagePipeline, "__init__", make_smaller)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """`tiny(name)` returns the folder of the tiny pipeline of that name."""
    root = tmp_path_factory.mktemp("tiny")
    return cache(lambda name: save(name, root / name))


@pytest.fixture(scope="session")
def loaded(tiny: Folders) -> Loaded:
    """`loaded(name, **options)` returns the engine or editor of the tiny pipeline of that name."""

    def load(name: str, **options: Any) -> Any:
        folder = tiny("hidream" if name == "hidream_dev" else name)
        needed = {"llama": tiny("llama")} if name.startswith("hidream") else {}
        needed |= {"base": tiny("sdxl"), "file": LIGHTNING_FILE} if name == "lightning" else {}
        return LOADERS[name](folder, **needed, **options)

    return cache(load)
