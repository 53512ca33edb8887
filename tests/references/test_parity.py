"""Our scores are the numbers the reference implementations give, on identical weights and the same files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import parity
from resources.errors import FlexyError
from resources.images import ImageStore
from resources.mini import world
from resources.models import registry
from resources.scorers import aesthetic
from resources.scorers.clip import ClipEncoder
from resources.scorers.hps import HpsScorer
from resources.scorers.preprocessing import Letterbox, Preprocessing
from resources.settings import Settings
from tests.support import references

pytestmark = pytest.mark.slow(seconds=60)

PICTURES = 18


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not references.FOLDER.is_dir():
        pytest.fail(f"the reference implementations are not in {references.FOLDER}: make references")
    references.install()
    return tmp_path_factory.mktemp("parity")


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Path]:
    (folder / "pictures").mkdir()
    return parity.draw_images(folder / "pictures", PICTURES)


@pytest.fixture(scope="module")
def read(files: Sequence[Path]) -> list[Image.Image]:
    store = ImageStore(str(files[0].parent))
    return [store.read(file.name) for file in files]


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return references.save_clip(folder / "clip", full=False)


def agree(found: parity.Difference) -> None:
    assert found.pictures > PICTURES * 0.8  # without those whose prompt the other reads otherwise
    # Scores that hardly differ between pictures would agree whatever was done to the pictures.
    assert found.spread > 100 * found.bar
    assert found.largest <= found.bar, found


def test_clip_score_and_both_aesthetic_marks_are_the_references(
    folder: Path, clip: Path, files: Sequence[Path], read: Sequence[Image.Image]
) -> None:
    found = list(parity.compare_clip_and_aesthetic(folder, clip, files, read, full=False))
    assert len(found) == 6
    for difference in found:
        agree(difference)


def test_clip_and_the_head_are_open_clips_with_quickgelu_and_without(
    folder: Path, clip: Path, files: Sequence[Path], read: Sequence[Image.Image]
) -> None:
    found = list(parity.compare_open_clip(folder, clip, files, read, full=False))
    assert len(found) == 5
    *same, (_, crossed) = [(difference.scorer, difference) for difference in found]
    for _, difference in same:
        agree(difference)
    assert crossed.largest > 10 * crossed.bar, "the two activations differ, and the test sees it"


def test_hps_is_the_references(folder: Path, clip: Path, files: Sequence[Path], read: Sequence[Image.Image]) -> None:
    agree(parity.compare_hps(folder, clip, files, read, full=False))


def test_lpips_is_the_references(folder: Path, files: Sequence[Path], read: Sequence[Image.Image]) -> None:
    # VGG16 at its full size takes a second a pair; benchmarks.parity compares them all.
    found = parity.compare_lpips(folder, files[:3], read[:3])
    assert found.spread > 100 * found.bar
    assert found.largest <= found.bar


def scores_of(settings: Settings, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, np.ndarray]:
    """The scores of the registry's scorers, by their fingerprints' names."""
    scorers = {name: registry.find_scorer(name, settings) for name in ("clip", "clip_gelu", "hps")}
    loaded = {name: model.load() for name, model in scorers.items()}
    scores = {"hps": loaded["hps"].scores([loaded["hps"].prepare(image) for image in images], prompts)}
    for name in ("clip", "clip_gelu"):
        vectors = loaded[name].embed(images)
        scores[name] = np.einsum("nd,nd->n", vectors, loaded[name].texts(prompts))
        for head in ("aesthetic_v1", "aesthetic_v2", "aesthetic_linear"):
            scorers[head] = registry.find_scorer(head, settings)
            scores[f"{name} {head}"] = scorers[head].load().score_embeddings(vectors) / 9
    by_package = {name for name, model in scorers.items() if model.package}
    mlps = {"aesthetic_v1", "aesthetic_v2"} if settings.models == "mini" else set()
    assert by_package == (scorers.keys() - mlps if settings.scorers == "reference" else set())
    return scores


@pytest.mark.parametrize("models", ["mini", "full"])
def test_the_registrys_scorers_are_the_packages_own(
    folder: Path, clip: Path, read: Sequence[Image.Image], tmp_path: Path, models: str
) -> None:
    images, prompts = read[:18], [references.PROMPTS[index % 3] for index in range(18)]
    folders = {
        "clip": clip,
        "hps": references.save_hps(tmp_path / "hps", full=False).parent,
        "aesthetic_v1": references.save_laion_head(tmp_path / "laion", 96).parent,
        "aesthetic_v2": references.save_predictor(tmp_path / "v2", clip, 2),
        "aesthetic_linear": references.save_predictor(tmp_path / "v1", clip, 1),
    }
    (tmp_path / "models.toml").write_text("[models]\n" + "\n".join(f'{n} = "{path}"' for n, path in folders.items()))
    if models == "mini":
        rng = np.random.default_rng(0)
        scenes = [world.SCENES[number] for number in range(18)]
        images = [Image.fromarray(world.draw_image(world.sketch_drawing(scene, rng), rng)) for scene in scenes]
        prompts = [scene.caption for scene in scenes]
    variables = {"FLEXY_MODELS": models, "FLEXY_MODEL_REGISTRY": str(tmp_path / "models.toml")}
    own, theirs = (
        scores_of(Settings.read(variables | {"FLEXY_SCORERS": each}), images, prompts) for each in ("own", "reference")
    )
    for name, scores in own.items():
        assert scores.std() > 100 * parity.MAX_DIFFERENCE, name
        np.testing.assert_allclose(theirs[name], scores, atol=parity.MAX_DIFFERENCE, err_msg=name)


def test_an_image_that_a_package_fails_on_is_named(clip: Path, tmp_path: Path) -> None:
    references.save_hps(tmp_path / "hps", full=False)
    (tmp_path / "models.toml").write_text(f'[models]\nclip = "{clip}"\nhps = "hps"\n')
    variables = {"FLEXY_MODELS": "full", "FLEXY_MODEL_REGISTRY": str(tmp_path / "models.toml")}
    scorer = registry.find_scorer("hps", Settings.read(variables | {"FLEXY_SCORERS": "reference"})).load()
    for size in ((224, 100), (1, 3000)):
        with pytest.raises(FlexyError, match=rf"cannot (prepare|score) an image of {size[0]}×{size[1]}"):
            scorer.prepare(Image.new("RGB", size))


def test_half_precision_keeps_to_its_documented_tolerance(
    folder: Path, clip: Path, files: Sequence[Path], read: Sequence[Image.Image]
) -> None:
    for found in parity.compare_half_precision(folder, clip, files, read, full=False):
        assert found.largest <= found.bar, found


@pytest.mark.parametrize("wrong", ["bilinear", "antialias off", "stretched"])
def test_another_resize_would_be_noticed(clip: Path, read: Sequence[Image.Image], wrong: str) -> None:
    encoder = ClipEncoder(clip)
    size = 224

    def resized(picture: Image.Image) -> Image.Image:
        width, height = (int(size * length / min(picture.size)) for length in picture.size)
        if wrong == "stretched":
            return picture.resize((size, size), Image.Resampling.BICUBIC)
        if wrong == "bilinear":
            return picture.resize((width, height), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float()
        pixels = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic").clamp(0, 255)
        return Image.fromarray(pixels[0].permute(1, 2, 0).round().byte().numpy())

    text = encoder.texts([references.PROMPTS[0]])[0]
    right = encoder.embed(read) @ text
    other = encoder.embed([resized(picture) for picture in read]) @ text
    assert np.abs(right - other).max() > 10 * parity.MAX_DIFFERENCE


def test_prompts_become_the_tokens_of_the_reference(clip: Path) -> None:
    prompts = [
        *references.PROMPTS,
        "",
        "  two   spaces\n",
        "🦊 fox",
        "Ünïcödé",
        "don't",
        "l’été",
        "100% 3.5",
        "a" * 500,
    ]
    tokenizer = references.tokenizer(clip)
    cleaned = [HpsScorer.clean(prompt) for prompt in prompts]
    ours = tokenizer(cleaned, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    for prompt, mine, theirs in zip(prompts, ours, references.tokenize(prompts), strict=True):
        length = int(theirs.argmax()) + 1  # the end token is the highest
        assert mine[:length].tolist() == theirs[:length].tolist(), prompt
        assert mine.shape == (77,)


def test_a_long_prompt_keeps_its_end_token(clip: Path) -> None:
    encoder = ClipEncoder(clip)
    long = "a very long prompt that goes on and on " * 30
    tokens = encoder.tokenizer([long], truncation=True)["input_ids"][0]
    assert len(tokens) == 77
    assert tokens[-1] == 49407
    assert np.isfinite(encoder.texts([long])).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3000, 31), (223, 224), (225, 224), (448, 449)])
def test_odd_sizes_are_prepared_as_the_references_prepare_them(clip: Path, size: tuple[int, int]) -> None:
    from hpsv2.src.open_clip.transform import image_transform

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    ours = Preprocessing.read(clip / "preprocessor_config.json")(picture)
    theirs = references.processor(clip)(images=picture, return_tensors="pt")["pixel_values"][0].numpy()
    assert ours.shape == (3, 224, 224)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)

    boxed = Letterbox(224, tuple(references.PREPROCESSOR["image_mean"]), tuple(references.PREPROCESSOR["image_std"]))
    assert boxed(picture).shape == (3, 224, 224)
    if max(size) != 224:  # there the reference forgets to pad, and fails
        theirs = image_transform(224, is_train=False, resize_longest_max=True)(picture).numpy()
        # It resizes by torch; 1e-4 is a fortieth of what one step of 255 is on this scale.
        np.testing.assert_allclose(boxed(picture), theirs, atol=1e-4)


def test_the_published_checkpoint_loads_key_by_key(folder: Path, clip: Path) -> None:
    # ViT-H/14's configuration: 32 and 24 layers, and every tensor has its place.
    from transformers import CLIPModel

    from resources.scorers.hps import _config, _convert

    with torch.device("meta"):
        state = references.hps_model(full=True).state_dict()
        model = CLIPModel(_config(state))
    places = {place: tuple(value.shape) for name, tensor in state.items() for place, value in _convert(name, tensor)}
    assert places == {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert len(places) == 910


def test_the_heads_are_read_from_published_files_of_every_form(folder: Path, clip: Path, tmp_path: Path) -> None:
    vectors = ClipEncoder(clip).texts(references.PROMPTS)
    for version in (1, 2):
        predictor = references.save_predictor(tmp_path / str(version), clip, version)
        marks = aesthetic.load_aesthetic(predictor, references.HEADS[version]).score_embeddings(vectors)
        from safetensors.torch import load_file

        state = load_file(predictor / "model.safetensors")
        old = tmp_path / f"{version}-bin"
        old.mkdir()
        torch.save(state, old / "pytorch_model.bin")
        assert (aesthetic.load_aesthetic(old, references.HEADS[version]).score_embeddings(vectors) == marks).all()
