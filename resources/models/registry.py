"""The models by name. A new scorer, engine or editor is one file and one entry here, and one for its weights.

A loader is named by its module, which is imported only when the model is loaded: the webserver reads
this registry and must not import torch. Licences, gating, hashes and sizes are those of the pinned commits.
"""

from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from resources.errors import BadInputError
from resources.models import weights
from resources.models.entry import Kind, LocalModel, ModelEntry
from resources.models.schedulers import SCHEDULERS
from resources.models.weights import MINI, MINI_WEIGHTS, PublishedWeights, UserProvidedWeights
from resources.settings import MODEL_SETS, Settings

_UNGUIDED = frozenset({"guidance", "negative_prompt"})
_NO_NEGATIVE = frozenset({"negative_prompt"})

_PIPELINE = ("model_index.json", "*/*.json", "*/*.safetensors", "tokenizer*/*")
"""The files of a pipeline in diffusers' form, without the single-file copies some repositories add."""
_FP16 = ("*/*.fp16.*",)
"""The half-precision copies that some repositories add to the full ones."""
_SDXL = ("model_index.json", "*/*.json", "*/*.fp16.safetensors", "tokenizer*/*")
_SDXL_OTHER_VAES = ("vae_*/*",)
_HPS_FILE = "HPS_v2.1_compressed.pt"
_LAION_FILE = "sac+logos+ava1-l14-linearMSE.pth"
_LAION_COMMIT = "6934dd81792f086e613a121dbce43082cb8be85e"

_REVISIONS = {
    "SG161222/RealVisXL_V5.0": "ac93e0dda1f6d448cae19bbfab8c5e720a5e48bc",
    "SG161222/RealVisXL_V4.0": "26dfe44930964cd70d0a817b6d1cc945c130e38d",
    "stabilityai/stable-diffusion-xl-base-1.0": "462165984030d82259a11f4367a4eed129e94a7b",
    "stabilityai/sdxl-turbo": "71153311d3dbb46851df1931d3ca6e939de83304",
    "ByteDance/SDXL-Lightning": "c9a24f48e1c025556787b0c58dd67a091ece2e44",
    "black-forest-labs/FLUX.1-schnell": "741f7c3ce8b383c54771c7003378a50191e9efe9",
    "black-forest-labs/FLUX.1-dev": "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
    "stabilityai/stable-diffusion-3-medium-diffusers": "ea42f8cef0f178587cf766dc8129abd379c90671",
    "stabilityai/stable-diffusion-3.5-medium": "b940f670f0eda2d07fbb75229e779da1ad11eb80",
    # No public source states this repository's commit, so the branch is fetched and its commit recorded.
    "HiDream-ai/HiDream-I1-Full": "main",
    "HiDream-ai/HiDream-I1-Dev": "e2447070a9a4fe4cf1b9299066d42e1347a4e2dd",
    "black-forest-labs/FLUX.2-dev": "26afe3a78bb242c0a8bb181dcc8937bb16e5c66c",
    "diffusers/FLUX.2-dev-bnb-4bit": "c30ad107542e63f222f864a8de510204394fb18a",
    "Qwen/Qwen-Image-Edit": "ac7f9318f633fc4b5778c59367c8128225f1e3de",
    "Qwen/Qwen-Image-Edit-2511": "6f3ccc0b56e431dc6a0c2b2039706d7d26f22cb9",
    "black-forest-labs/FLUX.1-Kontext-dev": "24e9dedc4ef646698dc8eb4e18ae2cec3c9fea0d",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "shunk031/aesthetics-predictor-v1-vit-large-patch14": "74fd3ab002ca9252b5593f079514e6a1eaa132f9",
    "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE": "684098de3856fa4678bf800efc05635de5b6cde5",
    "xswu/HPSv2": "697403c78157020a1ae59d23f111aa58ced35b0a",
    "timm/vgg16.tv_in1k": "b8d8aa2dd860af9233c8c67385a8097fd6c35d3f",
    "Qwen/Qwen2.5-VL-7B-Instruct": "cc594898137f460bfe9f0759e9844b3ce807cfb5",
    "meta-llama/Llama-3.1-8B-Instruct": "0e9e39f249a16976918f6564b8830bc894c89659",
}
"""The pinned commit of each repository of the hub."""

_COMMERCIAL = {
    "none stated": None,
    "sai-nc-community": False,
    "stabilityai-nc-research-community": False,
    "flux-dev-non-commercial-license": False,
    "flux-1-dev-non-commercial-license": False,
}
"""Whether a licence allows commercial use, where it does not."""

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
_LIGHTNING_SHA256 = {
    2: "15a96a3b213b8b4d6ea720b4fa5bf6723cd877170bd1a90f58e34da2968ef854",
    4: "39a90a8a2a25c1372633c1e8eb1a96f85eab937bcb58cfc6ec9baf66242ec23c",
    8: "471d8260fda0b17b8906feb24573ce64933d4b6b99ba7a1fa43ca051b994e869",
}
"""Of SDXL-Lightning's UNets, by the number of steps that each was distilled to."""
_UNET_SHA256 = "ea10386073d39ffdde9fda426745b3f5e9dcd2af204c128ece0f4ea84570ffee"
_HPS_SHA256 = "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"
_VGG_SHA256 = "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8"


def _hub(repo: str, files: tuple[str, ...], licence: str, gigabytes: float, **options: Any) -> PublishedWeights:
    commercial = _COMMERCIAL.get(licence, True)
    return PublishedWeights(repo, _REVISIONS[repo], files, licence, gigabytes, commercial=commercial, **options)


def _lightning_file(steps: int) -> str:
    return f"sdxl_lightning_{steps}step_unet.safetensors"


_PUBLISHED = {
    "realvis_xl": _hub(
        "SG161222/RealVisXL_V5.0",
        _SDXL,
        "openrail++",
        6.9,
        sha256={"unet/diffusion_pytorch_model.fp16.safetensors": _UNET_SHA256},
    ),
    "realvis_xl_v4": _hub("SG161222/RealVisXL_V4.0", _SDXL, "openrail++", 6.9),
    "sdxl": _hub("stabilityai/stable-diffusion-xl-base-1.0", _SDXL, "openrail++", 6.9, without=_SDXL_OTHER_VAES),
    "sdxl_turbo": _hub("stabilityai/sdxl-turbo", _SDXL, "sai-nc-community", 6.9, without=_SDXL_OTHER_VAES),
    **{
        f"sdxl_lightning_{steps}": _hub(
            "ByteDance/SDXL-Lightning",
            (_lightning_file(steps),),
            "openrail++",
            5.1,
            sha256={_lightning_file(steps): sha256},
        )
        for steps, sha256 in _LIGHTNING_SHA256.items()
    },
    "flux_1_dev": _hub(
        "black-forest-labs/FLUX.1-dev", _PIPELINE, "flux-1-dev-non-commercial-license", 33.7, gated=True
    ),
    "flux_schnell": _hub("black-forest-labs/FLUX.1-schnell", _PIPELINE, "apache-2.0", 33.7, gated=True),
    "sd3": _hub(
        "stabilityai/stable-diffusion-3-medium-diffusers",
        _PIPELINE,
        "stabilityai-nc-research-community",
        15.5,
        without=_FP16,
        gated=True,
    ),
    "sd35": _hub(
        "stabilityai/stable-diffusion-3.5-medium", _PIPELINE, "stabilityai-ai-community", 16, without=_FP16, gated=True
    ),
    "hidream": _hub("HiDream-ai/HiDream-I1-Full", _PIPELINE, "mit", 47.2),
    # Of the same components as Full.
    "hidream_dev": _hub("HiDream-ai/HiDream-I1-Dev", _PIPELINE, "mit", 47.2),
    "flux2_dev": _hub("black-forest-labs/FLUX.2-dev", _PIPELINE, "flux-dev-non-commercial-license", 112, gated=True),
    # No public source lists its files' sizes; those who use it speak of 32 to 34 GB.
    "flux2_dev_4bit": _hub("diffusers/FLUX.2-dev-bnb-4bit", _PIPELINE, "flux-dev-non-commercial-license", 34),
    "qwen_image_edit": _hub("Qwen/Qwen-Image-Edit", (*_PIPELINE, "processor/*"), "apache-2.0", 57.7),
    "qwen_image_edit_plus": _hub("Qwen/Qwen-Image-Edit-2511", (*_PIPELINE, "processor/*"), "apache-2.0", 57.7),
    "flux_kontext": _hub(
        "black-forest-labs/FLUX.1-Kontext-dev", _PIPELINE, "flux-1-dev-non-commercial-license", 33.7, gated=True
    ),
    "clip": _hub("openai/clip-vit-large-patch14", tuple(_CLIP_SHA256), "mit", 1.7, sha256=_CLIP_SHA256),
    "aesthetic_linear": _hub(
        "shunk031/aesthetics-predictor-v1-vit-large-patch14", ("model.safetensors",), "none stated", 1.2
    ),
    # LAION's own file, which no repository of its authors has on the hub; read as tensors only.
    "aesthetic_v1": PublishedWeights(
        "christophschuhmann/improved-aesthetic-predictor",
        _LAION_COMMIT,
        (_LAION_FILE,),
        "none stated",
        0.003714759,
        sha256={_LAION_FILE: "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"},
        commercial=None,
        url=f"https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/{_LAION_COMMIT}/"
        + _LAION_FILE.replace("+", "%2B"),
    ),
    # The same head. At this commit there are no safetensors; the file is read as tensors only.
    "aesthetic_v2": _hub(
        "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE", ("pytorch_model.bin",), "none stated", 1.2
    ),
    "hps": _hub("xswu/HPSv2", (_HPS_FILE,), "apache-2.0", 2.0, sha256={_HPS_FILE: _HPS_SHA256}),
    "lpips": _hub(
        "timm/vgg16.tv_in1k", ("model.safetensors",), "bsd-3-clause", 0.55, sha256={"model.safetensors": _VGG_SHA256}
    ),
    "qwen25_vl_7b": _hub(
        "Qwen/Qwen2.5-VL-7B-Instruct", ("*.json", "merges.txt", "model-*.safetensors"), "apache-2.0", 16.6
    ),
    "llama_31_8b": _hub(
        "meta-llama/Llama-3.1-8B-Instruct", ("*.json", "model-*.safetensors"), "llama3.1", 16.1, gated=True
    ),
}
"""The published weights, by model: repository, files, licence, gigabytes."""

_USER_PROVIDED = {
    "inswapper_128": UserProvidedWeights(("inswapper_128.onnx",), "non-commercial research", 0.55),
    "buffalo_l": UserProvidedWeights(("det_10g.onnx", "w600k_r50.onnx"), "non-commercial research", 0.19),
    "face_restorer": UserProvidedWeights(("*.onnx",), "as its authors say", 0.35, commercial=None),
}


def _model(
    kind: Kind,
    package: str,
    name: str,
    loader: str,
    half_precision: Literal["fp16", "bf16"] | None = None,
    embedded: str | None = None,
    batch_size: int | None = None,
    **fields: Any,
) -> ModelEntry:
    """Return the entry of a model, with its weights; `embedded` is the folder of its mini weights."""
    if batch_size:
        fields["options"] = {"batch_size": batch_size, **fields.get("options", {})}
    if package_and_loader := fields.get("reference"):
        fields["reference"] = (package_and_loader[0], f"{package}.references:{package_and_loader[1]}")
    published = _PUBLISHED.get(name) or _PUBLISHED.get(fields.get("weights_of", ""))
    sources = (published, MINI_WEIGHTS / embedded if embedded else None, _USER_PROVIDED.get(name))
    return ModelEntry(name, kind, f"{package}.{loader}", *sources, half_precision=half_precision, **fields)


_engine = partial(_model, "engine", "resources.engines")
_sdxl = partial(_engine, loader="sdxl:SdxlEngine", half_precision="fp16", batch_size=8, memory=7, multiple=8)
# HiDream works at a megapixel whatever the requested size.
_hidream = partial(
    _engine,
    half_precision="bf16",
    batch_size=2,
    memory=63,
    side=1024,
    required_models={"llama": "llama_31_8b"},
)
_flux2 = partial(
    _engine,
    half_precision="bf16",
    batch_size=2,
    steps=50,
    steps_range=(1, 50),
    guidance_range=(1, 10),
    ignored_settings=_NO_NEGATIVE,
)
_editor = partial(_model, "editor", "resources.engines")
_scorer = partial(_model, "scorer", "resources.scorers")
_judge = partial(_model, "judge", "resources.judges")
_face = partial(_model, "face", "resources.faces")

_HPSV2, _AESTHETICS = "hpsv2", "simple-aesthetics-predictor"
_REFERENCES = {_HPSV2: "1.2.0", _AESTHETICS: "0.1.2"}
"""The packages that FLEXY_SCORERS=reference scores by, and the versions that ours are held against."""

_ENTRIES = (
    _engine(
        "mini_sdxl",
        "sdxl:SdxlEngine",
        embedded="sdxl",
        batch_size=16,
        prompts=MINI / "prompts.txt",
        side=64,
        multiple=8,
        guidance=2.0,
        schedulers=SCHEDULERS,
    ),
    _sdxl("realvis_xl", steps=30, guidance=5.0, schedulers=SCHEDULERS),
    _sdxl("realvis_xl_v4", steps=30, guidance=5.0, schedulers=SCHEDULERS),
    _sdxl("sdxl", side=1024, steps=40, guidance=5.0, schedulers=SCHEDULERS),
    _sdxl("sdxl_turbo", loader="sdxl:DistilledSdxlEngine", steps=4, steps_range=(1, 4), ignored_settings=_UNGUIDED),
    *(
        _sdxl(
            f"sdxl_lightning_{steps}",
            loader="sdxl:LightningEngine",
            side=1024,
            steps=steps,
            steps_range=(steps, steps),
            ignored_settings=_UNGUIDED,
            required_models={"base": "sdxl"},
            options={"file": _lightning_file(steps)},
        )
        for steps in _LIGHTNING_SHA256
    ),
    _engine(
        "flux_schnell",
        "flux:FluxEngine",
        "bf16",
        batch_size=4,
        memory=34,
        steps=4,
        steps_range=(1, 8),
        ignored_settings=_UNGUIDED,
    ),
    _engine(
        "flux_1_dev",
        "flux:FluxDevEngine",
        "bf16",
        batch_size=4,
        memory=34,
        steps=50,
        guidance=3.5,
        steps_range=(1, 50),
        guidance_range=(1, 10),
        ignored_settings=_NO_NEGATIVE,
    ),
    _engine("sd3", "sd3:Sd3Engine", "fp16", batch_size=8, memory=16, steps=28, guidance=7.0),
    _engine("sd35", "sd3:Sd3Engine", "bf16", batch_size=8, memory=17, steps=40, guidance=4.5),
    _hidream("hidream", "hidream:HiDreamEngine", steps=50, guidance=5.0),
    _hidream("hidream_dev", "hidream:HiDreamDevEngine", steps=28, steps_range=(1, 50), ignored_settings=_UNGUIDED),
    _flux2("flux2_dev", "flux2:Flux2Engine", memory=112),
    _flux2("flux2_dev_4bit", "flux2:Flux2FourBitEngine", memory=35),
    # With more steps nearly every edit of the mini editor succeeds, and a search has little to gain.
    _editor(
        "mini_instruct",
        "instruct_pix2pix:InstructPix2PixEditor",
        embedded="instruct",
        batch_size=16,
        side=64,
        multiple=8,
        steps=4,
        guidance=2.0,
    ),
    _editor("qwen_image_edit", "qwen_image_edit:QwenImageEditor", "bf16", batch_size=2, memory=58, supports_faces=True),
    _editor("qwen_image_edit_plus", "qwen_image_edit:QwenImageEditPlusEditor", "bf16", batch_size=2, memory=58),
    _editor("flux_kontext", "flux:KontextEditor", "bf16", batch_size=4, memory=34),
    _scorer("clip", "clip:ClipEncoder", "fp16", embedded="clip", memory=1, reference=(_AESTHETICS, "ReferenceClip")),
    # As open_clip computes ViT-L-14 with OpenAI's weights, unless QuickGELU is asked for.
    _scorer(
        "clip_gelu",
        "clip:ClipEncoder",
        "fp16",
        embedded="clip",
        weights_of="clip",
        memory=1,
        options={"activation": "gelu"},
        reference=(_AESTHETICS, "ReferenceClip"),
    ),
    _scorer(
        "aesthetic_v1",
        "aesthetic:load_aesthetic",
        embedded="aesthetic_v1",
        weights_of="aesthetic_v2",
        options={"form": "mlp"},
        reference=(_AESTHETICS, "load_reference_aesthetic"),
    ),
    _scorer(
        "aesthetic_v2",
        "aesthetic:load_aesthetic",
        embedded="aesthetic_v2",
        options={"form": "mlp"},
        reference=(_AESTHETICS, "load_reference_aesthetic"),
    ),
    _scorer(
        "aesthetic_linear",
        "aesthetic:load_aesthetic",
        embedded="aesthetic_linear",
        options={"form": "linear"},
        reference=(_AESTHETICS, "load_reference_aesthetic"),
    ),
    # The checkpoint of HPS has no vocabulary; CLIP's is the same.
    _scorer(
        "hps",
        "hps:HpsScorer",
        "fp16",
        embedded="hps",
        memory=2,
        required_models={"tokenizer": "clip"},
        reference=(_HPSV2, "ReferenceHps"),
    ),
    _scorer("lpips", "perceptual:LpipsScorer", embedded="lpips", memory=0.1),
    _judge("qwen25_vl_7b", "local_vlm:VisionLanguageModel", "bf16", memory=19),
    _face(
        "inswapper_128",
        "insight:FaceSwapper",
        embedded="faces",
        memory=2,
        required_models={"pack": "buffalo_l"},
        optional_models={"restorer": "face_restorer"},
    ),
    _face("buffalo_l", "insight:FaceFinder", embedded="faces/buffalo_l", memory=1),
    _face("face_restorer", "restore:FaceRestorer", memory=2),
    ModelEntry("llama_31_8b", "part", "transformers:LlamaForCausalLM", _PUBLISHED["llama_31_8b"], memory=16),
)

MODELS = {entry.name: entry for entry in _ENTRIES}

ALIASES = {"flux_dev": "flux_schnell", "sd3_medium": "sd3"}
"""FlexyFace's names of engines: its `flux_dev` loads FLUX.1-schnell."""


def model_names(kind: Kind, settings: Settings) -> list[str]:
    """Return the names of the set's models of one kind, the default first."""
    return [entry.name for entry in _ENTRIES if entry.kind == kind and entry.in_set(settings.models)]


def find_model(name: str, kind: Kind, settings: Settings) -> ModelEntry:
    """Return the set's model called `name`, or of which it is an alias. Raises `BadInputError` with the known names."""
    name = ALIASES.get(name, name)
    known = model_names(kind, settings)
    if name not in known:
        other = next((m for m in MODEL_SETS if name in MODELS and MODELS[name].in_set(m)), None)
        remedy = f"set FLEXY_MODELS={other}, or use" if other and other != settings.models else "use"
        raise BadInputError(f"unknown {kind} {name!r} with FLEXY_MODELS={settings.models}: {remedy} {', '.join(known)}")
    return MODELS[name]


def local_model(entry: ModelEntry, settings: Settings) -> LocalModel:
    """Return the model of `entry` on this machine: in the user's folder, else at its set's default location."""
    if settings.models == "mini" and entry.embedded:
        name = f"mini_{entry.name.removeprefix('mini_')}"
        # So small a model gains a quarter from a second thread, and is many times slower with it where another
        # process uses that core: one thread is the better default.
        return LocalModel(name, entry.embedded, entry.loader, entry.options, threads=1)
    folders = weights.read_user_folders(settings, [*MODELS, *ALIASES])
    folders = {ALIASES.get(name, name): folder for name, folder in folders.items()}
    folder = folders.get(entry.name) or folders.get(entry.weights_of or "")
    published = None if folder else entry.published
    optional = {argument: name for argument, name in entry.optional_models.items() if name in folders}
    needed = {**entry.required_models, **optional}
    return LocalModel(
        entry.name,
        folder or (weights.hub_snapshot_folder(published) if published else None),
        entry.loader,
        entry.options,
        {argument: local_model(MODELS[name], settings) for argument, name in needed.items()},
        half_precision=entry.half_precision,
        requested_precision=settings.precision,
        published=published,
        user_provided=entry.user_provided,
    )


def _find_local_model(kind: Kind, name: str, settings: Settings) -> LocalModel:
    """Return the set's model called `name` on this machine. Raises `BadInputError` with the known names."""
    return local_model(find_model(name, kind, settings), settings)


find_engine = partial(_find_local_model, "engine")
find_editor = partial(_find_local_model, "editor")
find_face_finder = partial(_find_local_model, "face", "buffalo_l")
find_face_swapper = partial(_find_local_model, "face", "inswapper_128")


def find_face_editor(settings: Settings) -> str | None:
    """Return the name of the set's default editor for faces; None where it has none."""
    return next((name for name in model_names("editor", settings) if MODELS[name].supports_faces), None)


def find_scorer(name: str, settings: Settings) -> LocalModel:
    """Return the scoring model called `name`, or the one without weights that "module:callable" makes.

    With FLEXY_SCORERS=reference it computes by the code of the package that has it. Raises `BadInputError` where that
    is not installed.
    """
    if ":" in name:
        return LocalModel(name.rpartition(":")[2], None, name)
    entry = find_model(name, "scorer", settings)
    model = local_model(entry, settings)
    # The mini MLPs have fewer layers than simple-aesthetics-predictor's class.
    if (
        settings.scorers == "own"
        or not entry.reference
        or (settings.models, entry.options.get("form")) == ("mini", "mlp")
    ):
        return model
    package, loader = entry.reference
    return replace(model, loader=loader, package=f"{package} {_installed_version(package)}")


def check_references(settings: Settings) -> None:
    """Raise `BadInputError` where FLEXY_SCORERS asks for a package that is not installed."""
    if settings.scorers == "reference":
        for package in _REFERENCES:
            _installed_version(package)


def _installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        needed = " ".join(f"{each}=={number}" for each, number in _REFERENCES.items())
        remedy = f"pip install --no-deps {needed}, or set FLEXY_SCORERS=own"
        raise BadInputError(f"FLEXY_SCORERS=reference: {package} is not installed: {remedy}") from None
