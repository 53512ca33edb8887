"""The models by name: one entry each. A new scorer, engine or editor is one file and one entry here.

A loader is named by its module, which is imported only when the model is loaded: the webserver reads
this registry and must not import torch. Licences, gating, hashes and sizes are those of the pinned commits.
"""

from __future__ import annotations

from resources.errors import BadInputError
from resources.models.entry import Kind, LocalModel, ModelEntry
from resources.models.weights import (
    MINI,
    MINI_WEIGHTS,
    PublishedWeights,
    UserProvidedWeights,
    hub_snapshot_folder,
    read_user_folders,
)
from resources.settings import MODEL_SETS, Settings

GUIDANCE_AND_NEGATIVE_PROMPT = frozenset({"guidance", "negative_prompt"})
NO_NEGATIVE_PROMPT = frozenset({"negative_prompt"})

_PIPELINE = ("model_index.json", "*/*.json", "*/*.safetensors", "tokenizer*/*")
"""The files of a pipeline in diffusers' form, without the single-file copies some repositories add."""

_HALVES = ("*/*.fp16.*",)
"""The half-precision copies that some repositories add to the full ones."""

_TOKENIZER = ("merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json")

_CLIP_SHA256 = {
    "config.json": "8a09b467700c58138c29d53c605b34ebc69beaadd13274a8a2af8ad2c2f4032a",
    "merges.txt": "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
    "model.safetensors": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
    "preprocessor_config.json": "910e70b3956ac9879ebc90b22fb3bc8a75b6a0677814500101a4c072bd7857bd",
    "special_tokens_map.json": "f8c0d6c39aee3f8431078ef6646567b0aba7f2246e9c54b8b99d55c22b707cbf",
    "tokenizer.json": "a83e0809aa4c3af7208b2df632a7a69668c6d48775b3c3fe4e1b1199d1f8b8f4",
    "tokenizer_config.json": "deef455e52fa5e8151e339add0582e4235f066009601360999d3a9cda83b1129",
    "vocab.json": "3f0c4f7d2086b61b38487075278ea9ed04edb53a03cbb045b86c27190fa8fb69",
}

_ENTRIES = (
    # Engines
    ModelEntry(
        "mini_sdxl",
        "engine",
        "resources.engines.sdxl:SdxlEngine",
        embedded=MINI_WEIGHTS / "sdxl",
        options={"batch_size": 16},
        prompts=MINI / "prompts.txt",
        side=64,
        multiple=8,
        guidance=2.0,
    ),
    ModelEntry(
        "realvis_xl",
        "engine",
        "resources.engines.sdxl:SdxlEngine",
        PublishedWeights(
            "SG161222/RealVisXL_V5.0",
            "ac93e0dda1f6d448cae19bbfab8c5e720a5e48bc",
            ("model_index.json", "*/*.json", "*/*.fp16.safetensors", "tokenizer*/*"),
            "openrail++",
            gigabytes=6.9,
            sha256={
                "unet/diffusion_pytorch_model.fp16.safetensors": (
                    "ea10386073d39ffdde9fda426745b3f5e9dcd2af204c128ece0f4ea84570ffee"
                )
            },
        ),
        options={"batch_size": 8},
        half_precision="fp16",
        memory=7,
        multiple=8,
        steps=30,
        guidance=5.0,
    ),
    ModelEntry(
        "flux_schnell",
        "engine",
        "resources.engines.flux:FluxEngine",
        PublishedWeights(
            "black-forest-labs/FLUX.1-schnell",
            "741f7c3ce8b383c54771c7003378a50191e9efe9",
            _PIPELINE,
            "apache-2.0",
            gigabytes=33.7,
            gated=True,
        ),
        options={"batch_size": 4},
        half_precision="bf16",
        memory=34,
        ignored_settings=GUIDANCE_AND_NEGATIVE_PROMPT,
        steps=4,
    ),
    ModelEntry(
        "sd3",
        "engine",
        "resources.engines.sd3:Sd3Engine",
        PublishedWeights(
            "stabilityai/stable-diffusion-3-medium-diffusers",
            "ea42f8cef0f178587cf766dc8129abd379c90671",
            _PIPELINE,
            "stabilityai-nc-research-community",
            gigabytes=15.5,
            without=_HALVES,
            gated=True,
            commercial=False,
        ),
        options={"batch_size": 8},
        half_precision="fp16",
        memory=16,
        steps=28,
        guidance=7.0,
    ),
    ModelEntry(
        "sd35",
        "engine",
        "resources.engines.sd3:Sd3Engine",
        PublishedWeights(
            "stabilityai/stable-diffusion-3.5-medium",
            "b940f670f0eda2d07fbb75229e779da1ad11eb80",
            _PIPELINE,
            "stabilityai-ai-community",
            gigabytes=16,
            without=_HALVES,
            gated=True,
        ),
        options={"batch_size": 8},
        half_precision="bf16",
        memory=17,
        steps=40,
        guidance=4.5,
    ),
    ModelEntry(
        "hidream",
        "engine",
        "resources.engines.hidream:HiDreamEngine",
        # No public source states this repository's commit, so the branch is fetched and its commit recorded.
        PublishedWeights("HiDream-ai/HiDream-I1-Full", "main", _PIPELINE, "mit", gigabytes=47.2),
        required_models={"llama": "llama_31_8b"},
        options={"batch_size": 2},
        half_precision="bf16",
        memory=63,
        # It works at a megapixel whatever the requested size.
        side=1024,
        steps=50,
        guidance=5.0,
    ),
    ModelEntry(
        "flux2_dev",
        "engine",
        "resources.engines.flux2:Flux2Engine",
        PublishedWeights(
            "black-forest-labs/FLUX.2-dev",
            "26afe3a78bb242c0a8bb181dcc8937bb16e5c66c",
            _PIPELINE,
            "flux-dev-non-commercial-license",
            gigabytes=112,
            gated=True,
            commercial=False,
        ),
        options={"batch_size": 2},
        half_precision="bf16",
        memory=112,
        ignored_settings=NO_NEGATIVE_PROMPT,
        steps=50,
    ),
    # Editors
    ModelEntry(
        "mini_instruct",
        "editor",
        "resources.engines.instruct_pix2pix:InstructPix2PixEditor",
        embedded=MINI_WEIGHTS / "instruct",
        options={"batch_size": 16, "image_guidance": 1.5},
        side=64,
        multiple=8,
        # With more steps nearly every edit succeeds, and a search has little to gain.
        steps=4,
        guidance=2.0,
    ),
    ModelEntry(
        "qwen_image_edit",
        "editor",
        "resources.engines.qwen_image_edit:QwenImageEditor",
        PublishedWeights(
            "Qwen/Qwen-Image-Edit",
            "ac7f9318f633fc4b5778c59367c8128225f1e3de",
            (*_PIPELINE, "processor/*"),
            "apache-2.0",
            gigabytes=57.7,
        ),
        options={"batch_size": 2},
        supports_faces=True,
        half_precision="bf16",
        memory=58,
    ),
    ModelEntry(
        "qwen_image_edit_plus",
        "editor",
        "resources.engines.qwen_image_edit:QwenImageEditPlusEditor",
        PublishedWeights(
            "Qwen/Qwen-Image-Edit-2511",
            "6f3ccc0b56e431dc6a0c2b2039706d7d26f22cb9",
            (*_PIPELINE, "processor/*"),
            "apache-2.0",
            gigabytes=57.7,
        ),
        options={"batch_size": 2},
        half_precision="bf16",
        memory=58,
    ),
    ModelEntry(
        "flux_kontext",
        "editor",
        "resources.engines.flux:KontextEditor",
        PublishedWeights(
            "black-forest-labs/FLUX.1-Kontext-dev",
            "24e9dedc4ef646698dc8eb4e18ae2cec3c9fea0d",
            _PIPELINE,
            "flux-1-dev-non-commercial-license",
            gigabytes=33.7,
            gated=True,
            commercial=False,
        ),
        options={"batch_size": 4},
        half_precision="bf16",
        memory=34,
    ),
    # Scorers
    ModelEntry(
        "clip",
        "scorer",
        "resources.scorers.clip:ClipEncoder",
        PublishedWeights(
            "openai/clip-vit-large-patch14",
            "32bd64288804d66eefd0ccbe215aa642df71cc41",
            ("config.json", "model.safetensors", "preprocessor_config.json", *_TOKENIZER),
            "mit",
            gigabytes=1.7,
            sha256=_CLIP_SHA256,
        ),
        embedded=MINI_WEIGHTS / "clip",
        half_precision="fp16",
        memory=1,
    ),
    ModelEntry(
        "aesthetic_v1",
        "scorer",
        "resources.scorers.aesthetic:load_aesthetic",
        PublishedWeights(
            "shunk031/aesthetics-predictor-v1-vit-large-patch14",
            "74fd3ab002ca9252b5593f079514e6a1eaa132f9",
            ("model.safetensors",),
            "none stated",
            gigabytes=1.2,
            commercial=None,
        ),
        embedded=MINI_WEIGHTS / "aesthetic_v1",
        options={"version": 1},
    ),
    ModelEntry(
        "aesthetic_v2",
        "scorer",
        "resources.scorers.aesthetic:load_aesthetic",
        PublishedWeights(
            "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE",
            "684098de3856fa4678bf800efc05635de5b6cde5",
            # At this commit there are no safetensors; the file is read as tensors only.
            ("pytorch_model.bin",),
            "none stated",
            gigabytes=1.2,
            commercial=None,
        ),
        embedded=MINI_WEIGHTS / "aesthetic_v2",
        options={"version": 2},
    ),
    ModelEntry(
        "hps",
        "scorer",
        "resources.scorers.hps:HpsScorer",
        PublishedWeights(
            "xswu/HPSv2",
            "697403c78157020a1ae59d23f111aa58ced35b0a",
            ("HPS_v2.1_compressed.pt",),
            "apache-2.0",
            gigabytes=2.0,
            sha256={"HPS_v2.1_compressed.pt": "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"},
        ),
        embedded=MINI_WEIGHTS / "hps",
        # The checkpoint has no vocabulary; CLIP's is the same.
        required_models={"tokenizer": "clip"},
        half_precision="fp16",
        memory=2,
    ),
    ModelEntry(
        "lpips",
        "scorer",
        "resources.scorers.perceptual:LpipsScorer",
        PublishedWeights(
            "timm/vgg16.tv_in1k",
            "b8d8aa2dd860af9233c8c67385a8097fd6c35d3f",
            ("model.safetensors",),
            "bsd-3-clause",
            gigabytes=0.55,
            sha256={"model.safetensors": "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8"},
        ),
        embedded=MINI_WEIGHTS / "lpips",
        memory=0.1,
    ),
    # Judges
    ModelEntry(
        "qwen25_vl_7b",
        "judge",
        "resources.judges.local_vlm:VisionLanguageModel",
        PublishedWeights(
            "Qwen/Qwen2.5-VL-7B-Instruct",
            "cc594898137f460bfe9f0759e9844b3ce807cfb5",
            ("*.json", "merges.txt", "model-*.safetensors"),
            "apache-2.0",
            gigabytes=16.6,
        ),
        half_precision="bf16",
        memory=19,
    ),
    # Faces
    ModelEntry(
        "inswapper_128",
        "face",
        "resources.faces.insight:FaceSwapper",
        embedded=MINI_WEIGHTS / "faces",
        user_provided=UserProvidedWeights(("inswapper_128.onnx",), "non-commercial research", gigabytes=0.55),
        required_models={"pack": "buffalo_l"},
        optional_models={"restorer": "face_restorer"},
        options={"det_size": 640},
        memory=2,
    ),
    ModelEntry(
        "buffalo_l",
        "face",
        "resources.faces.insight:FaceFinder",
        embedded=MINI_WEIGHTS / "faces" / "buffalo_l",
        user_provided=UserProvidedWeights(
            ("det_10g.onnx", "w600k_r50.onnx"), "non-commercial research", gigabytes=0.19
        ),
        options={"det_size": 640},
        memory=1,
    ),
    ModelEntry(
        "face_restorer",
        "face",
        "resources.faces.restore:FaceRestorer",
        user_provided=UserProvidedWeights(("*.onnx",), "as its authors say", gigabytes=0.35, commercial=None),
        memory=2,
    ),
    # Parts of other models
    ModelEntry(
        "llama_31_8b",
        "part",
        "transformers:LlamaForCausalLM",
        PublishedWeights(
            "meta-llama/Llama-3.1-8B-Instruct",
            "0e9e39f249a16976918f6564b8830bc894c89659",
            ("*.json", "model-*.safetensors"),
            "llama3.1",
            gigabytes=16.1,
            gated=True,
        ),
        memory=16,
    ),
)

MODELS = {entry.name: entry for entry in _ENTRIES}
"""Every model, by name."""


def model_names(kind: Kind, settings: Settings) -> list[str]:
    """Return the names of the set's models of one kind, the default first."""
    return [entry.name for entry in _ENTRIES if entry.kind == kind and entry.in_set(settings.models)]


def find_model(name: str, kind: Kind, settings: Settings) -> ModelEntry:
    """Return the set's model called `name`. Raises `BadInputError` with the known names."""
    known = model_names(kind, settings)
    if name not in known:
        other = next((m for m in MODEL_SETS if name in MODELS and MODELS[name].in_set(m)), None)
        remedy = f"set FLEXY_MODELS={other}, or use" if other and other != settings.models else "use"
        raise BadInputError(f"unknown {kind} {name!r} with FLEXY_MODELS={settings.models}: {remedy} {', '.join(known)}")
    return MODELS[name]


def local_model(entry: ModelEntry, settings: Settings) -> LocalModel:
    """Return the model of `entry` on this machine: in the user's folder, else at its set's default location."""
    is_mini = settings.models == "mini" and entry.embedded is not None
    user_folders = {} if is_mini else read_user_folders(settings, MODELS.keys())
    user_folder = user_folders.get(entry.name)
    published = None if is_mini or user_folder else entry.published
    required_models = dict(entry.required_models) | {
        argument: name for argument, name in entry.optional_models.items() if name in user_folders
    }
    return LocalModel(
        name=f"mini_{entry.name.removeprefix('mini_')}" if is_mini else entry.name,
        folder=user_folder or (entry.embedded if is_mini else hub_snapshot_folder(published) if published else None),
        loader=entry.loader,
        options=entry.options,
        required_models={}
        if is_mini
        else {a: local_model(MODELS[needed], settings) for a, needed in required_models.items()},
        # So small a model gains a quarter from a second thread, and is many times slower with it where another
        # process uses that core: one thread is the better default.
        threads=1 if is_mini else None,
        half_precision=None if is_mini else entry.half_precision,
        requested_precision=settings.precision,
        published=published,
        user_provided=None if is_mini else entry.user_provided,
    )


def find_engine(name: str, settings: Settings) -> LocalModel:
    """Return the engine called `name` on this machine."""
    return local_model(find_model(name, "engine", settings), settings)


def find_editor(name: str, settings: Settings) -> LocalModel:
    """Return the editor called `name` on this machine."""
    return local_model(find_model(name, "editor", settings), settings)


def find_face_editor(settings: Settings) -> str | None:
    """Return the name of the set's default editor for faces; None where it has none."""
    return next((name for name in model_names("editor", settings) if MODELS[name].supports_faces), None)


def find_scorer(name: str, settings: Settings) -> LocalModel:
    """Return the scoring model called `name`, or the one without weights that "module:callable" makes."""
    if ":" in name:
        return LocalModel(name.rpartition(":")[2], None, name)
    return local_model(find_model(name, "scorer", settings), settings)


def find_face_finder(settings: Settings) -> LocalModel:
    """Return the `FaceFinder` on this machine."""
    return local_model(find_model("buffalo_l", "face", settings), settings)


def find_face_swapper(settings: Settings) -> LocalModel:
    """Return the `FaceSwapper` on this machine."""
    return local_model(find_model("inswapper_128", "face", settings), settings)
