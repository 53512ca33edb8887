"""Model files are hostile until checked: each ends in a model that scores, or in one line that says why not."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.models import vgg16

from resources.errors import FlexyError
from resources.models import registry
from resources.settings import Settings
from tests.support import references

pytestmark = pytest.mark.slow(seconds=30)

FILES = {
    "clip": "model.safetensors",
    "aesthetic_linear": "model.safetensors",
    "aesthetic_v2": "model.safetensors",
    "hps": "HPS_v2.1_compressed.pt",
    "lpips": "vgg16-397923af.pth",
}
PICKLED = {name: file for name, file in FILES.items() if not file.endswith(".safetensors")} | {
    "aesthetic_linear": "pytorch_model.bin",
    "aesthetic_v2": "pytorch_model.bin",
}
MAPPED = FILES | {"hps": "HPS_v2.1.safetensors", "lpips": "model.safetensors"}
PICTURES = [Image.new("RGB", (60, 40), colour) for colour in ("red", "navy")]
State = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each model, as it is published but small."""
    if not references.FOLDER.is_dir():
        pytest.fail(f"the reference implementations are not in {references.FOLDER}: make references")
    root = tmp_path_factory.mktemp("whole")
    references.save_clip(root / "clip", full=False)
    for version in (1, 2):
        references.save_predictor(root / f"predictor{version}", root / "clip", version)
        head = root / ("aesthetic_linear", "aesthetic_v2")[version - 1]
        head.mkdir()
        shutil.move(root / f"predictor{version}/model.safetensors", head)
    references.save_hps(root / "hps", full=False)
    (root / "lpips").mkdir()
    torch.manual_seed(0)
    features = vgg16(weights=None).features.state_dict()
    torch.save({f"features.{name}": value for name, value in features.items()}, root / "lpips" / FILES["lpips"])
    return root


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Callable[[str], Path]:
    """`copy(name)` is a folder of the test's own with the model's files, to be replaced and not written to."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(whole / name, tmp_path / name, copy_function=os.link))

    return copy


def load(name: str, place: Path, **folders: Path) -> Any:
    """The model as a user names it: by HPS_ROOT, or in a registry file written to `place`."""
    environment = {
        "FLEXY_MODELS": "full",
        "FLEXY_PRECISION": "fp32",
        "FLEXY_MODEL_REGISTRY": str(place / "models.toml"),
    }
    if "hps" in folders:
        environment["HPS_ROOT"] = str(folders.pop("hps"))
    lines = ["[models]", *(f'{known} = "{folder}"' for known, folder in folders.items())]
    (place / "models.toml").write_text("\n".join(lines))
    return registry.find_scorer(name, Settings.read(environment)).load()


@pytest.fixture(scope="module")
def seen(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """CLIP's embeddings of the two pictures."""
    return load("clip", tmp_path_factory.mktemp("registry"), clip=whole / "clip").embed(PICTURES)


@pytest.fixture
def scores(whole: Path, seen: np.ndarray, tmp_path: Path) -> Callable[[str, Path], np.ndarray]:
    """`scores(name, folder)` are the two pictures' scores by the model in `folder`."""

    def scores(name: str, folder: Path) -> np.ndarray:
        model = load(name, tmp_path, **{"clip": whole / "clip", name: folder})
        if name == "clip":
            return model.embed(PICTURES) @ model.texts(["a fox " * 60])[0]
        if name.startswith("aesthetic"):
            return model.score_embeddings(seen)
        pixels = [model.prepare(picture) for picture in PICTURES]
        if name == "hps":
            return model.scores(pixels, ["a fox", "a fox"])
        return model.distances(pixels, pixels[:1] * 2)

    return scores


@pytest.fixture
def complaint(scores: Callable[[str, Path], np.ndarray]) -> Callable[[str, Path], str]:
    """`complaint(name, folder)` is the one line that is said instead: the place, the cause and the remedy."""

    def complaint(name: str, folder: Path) -> str:
        with pytest.raises(FlexyError) as caught:
            scores(name, folder)
        message = str(caught.value)
        assert "\n" not in message
        assert str(folder) in message
        assert message.count(": ") >= 2, f"no remedy in {message!r}"
        return message

    return complaint


Scores = Callable[[str, Path], np.ndarray]
Copy = Callable[[str], Path]
Complaint = Callable[[str, Path], str]


def replace(file: Path, content: bytes) -> None:
    file.unlink(missing_ok=True)  # it may be a link to the whole one
    file.write_bytes(content)


def state_of(folder: Path, name: str) -> dict[str, torch.Tensor]:
    file = folder / FILES[name]
    if file.suffix == ".safetensors":
        return load_file(file)
    loaded = torch.load(file, weights_only=True)
    return dict(loaded.get("state_dict", loaded))


def save(folder: Path, file: str, content: Any, **form: Any) -> None:
    """The only weights in `folder`: `content` in the form that the file's name says."""
    for other in {*FILES.values(), *PICKLED.values(), *MAPPED.values()}:
        (folder / other).unlink(missing_ok=True)
    if file.endswith(".safetensors"):
        save_file({name: value.contiguous() for name, value in content.items()}, folder / file)
    else:
        torch.save(content, folder / file, **form)


# What is whole


@pytest.mark.parametrize("name", FILES)
def test_a_model_from_outside_loads_and_tells_pictures_apart(name: str, whole: Path, scores: Scores) -> None:
    found = scores(name, whole / name)
    assert np.isfinite(found).all()
    assert abs(found[0] - found[1]) > 1e-3


def test_weights_are_read_in_every_form_they_are_published_in(copy: Copy, whole: Path, scores: Scores) -> None:
    for name in ("aesthetic_v2", "hps"):
        expected, state, folder = scores(name, whole / name), state_of(whole / name, name), copy(name)
        save(folder, MAPPED[name], state)
        assert (scores(name, folder) == expected).all()
        for form in ({}, {"_use_new_zipfile_serialization": False}):
            save(folder, PICKLED[name], state, **form)
            assert (scores(name, folder) == expected).all()


def test_a_packed_archive_is_unpacked_and_not_taken_for_weights(copy: Copy, whole: Path, scores: Scores) -> None:
    folder = copy("hps")
    with zipfile.ZipFile(whole / "hps" / FILES["hps"]) as plain:
        (folder / FILES["hps"]).unlink()
        with zipfile.ZipFile(folder / FILES["hps"], "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
    assert (scores("hps", folder) == scores("hps", whole / "hps")).all()


def test_without_the_tokenizers_settings_a_long_prompt_is_still_cut(copy: Copy, whole: Path, scores: Scores) -> None:
    folder = copy("clip")
    (folder / "tokenizer_config.json").unlink()
    assert (scores("clip", folder) == scores("clip", whole / "clip")).all()


# What is not


@pytest.mark.parametrize("name", FILES)
def test_a_folder_or_weights_that_are_missing_are_named(
    name: str, copy: Copy, tmp_path: Path, complaint: Complaint
) -> None:
    assert "there is no folder" in complaint(name, tmp_path / "nowhere")
    folder = copy(name)
    (folder / FILES[name]).unlink()
    assert FILES[name] in complaint(name, folder)


@pytest.mark.parametrize("share", [0, 0.0001, 0.3, 0.999])
@pytest.mark.parametrize("name", FILES)
def test_weights_that_are_cut_short_are_refused(name: str, share: float, copy: Copy, complaint: Complaint) -> None:
    folder = copy(name)
    content = (folder / FILES[name]).read_bytes()
    replace(folder / FILES[name], content[: int(share * len(content))])
    assert "cut short" in complaint(name, folder)


def test_an_archive_that_lost_a_tensors_bytes_is_refused(copy: Copy, whole: Path, complaint: Complaint) -> None:
    folder = copy("aesthetic_linear")
    save(folder, "pytorch_model.bin", state_of(whole / "aesthetic_linear", "aesthetic_linear"))
    with zipfile.ZipFile(folder / "pytorch_model.bin") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    (folder / "pytorch_model.bin").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        for name, content in records.items():
            archive.writestr(name, b"" if name.endswith("data/0") else content)
    assert "record size" in complaint("aesthetic_linear", folder)


# Both aesthetic heads are read alike.
@pytest.mark.parametrize(("name", "other"), [(a, b) for a in FILES for b in FILES if a[:9] != b[:9]])
def test_another_models_weights_are_refused(
    name: str, other: str, copy: Copy, whole: Path, complaint: Complaint
) -> None:
    folder = copy(name)
    save(folder, FILES[name], state_of(whole / other, other))
    complaint(name, folder)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("clip", "logit_scale"),
        ("clip", "vision_model.encoder.layers.1.mlp.fc1.bias"),
        ("aesthetic_linear", "predictor.bias"),
        ("aesthetic_v2", "layers.0.weight"),
        ("hps", "visual.transformer.resblocks.1.attn.in_proj_bias"),
    ],
)
def test_a_weight_that_is_missing_is_not_made_up(
    name: str, lost: str, copy: Copy, whole: Path, complaint: Complaint
) -> None:
    folder, state = copy(name), state_of(whole / name, name)
    del state[lost]
    save(folder, FILES[name], state)
    complaint(name, folder)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("clip", "visual_projection.weight"),
        ("aesthetic_linear", "predictor.weight"),
        ("aesthetic_v2", "layers.2.weight"),
        ("hps", "positional_embedding"),
        ("hps", "visual.conv1.weight"),
        ("lpips", "features.28.bias"),
    ],
)
def test_a_weight_of_another_shape_is_refused(
    name: str, place: str, copy: Copy, whole: Path, complaint: Complaint
) -> None:
    folder, state = copy(name), state_of(whole / name, name)
    assert place in state
    save(folder, FILES[name], state | {place: torch.zeros(7, 5, 3, 3)})
    complaint(name, folder)


def test_weights_that_make_nothing_finite_are_refused(copy: Copy, whole: Path, complaint: Complaint) -> None:
    for name, bad in (("clip", "visual_projection.weight"), ("hps", "text_projection")):
        folder, state = copy(name), state_of(whole / name, name)
        save(folder, FILES[name], state | {bad: state[bad] * float("nan")})
        assert "not finite" in complaint(name, folder)


def test_a_head_for_another_encoder_says_so_when_it_is_used(copy: Copy, complaint: Complaint) -> None:
    folder = copy("aesthetic_linear")
    save(folder, FILES["aesthetic_linear"], {"predictor.weight": torch.ones(1, 50), "predictor.bias": torch.ones(1)})
    assert "reads embeddings of width 50, CLIP's have width 96" in complaint("aesthetic_linear", folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"x"', b"5", b"\xff\xfe\x00"], ids=repr)
def test_garbage_beside_the_weights_is_refused(content: bytes, copy: Copy, complaint: Complaint) -> None:
    folder = copy("clip")
    for file in ("config.json", "preprocessor_config.json", "tokenizer_config.json", "vocab.json", "tokenizer.json"):
        kept = (folder / file).read_bytes() if (folder / file).exists() else None
        replace(folder / file, content)
        complaint("clip", folder)
        (folder / file).unlink()
        if kept is not None:
            (folder / file).write_bytes(kept)


@pytest.mark.parametrize("lost", ["config.json", "preprocessor_config.json", "vocab.json", "merges.txt"])
def test_a_file_beside_the_weights_is_not_made_up(lost: str, copy: Copy, complaint: Complaint) -> None:
    folder = copy("clip")
    content = (folder / lost).read_bytes()
    replace(folder / lost, content[: len(content) // 2])
    complaint("clip", folder)
    (folder / lost).unlink()
    complaint("clip", folder)


@pytest.mark.parametrize("name", ["clip", "hps"])
def test_a_tokenizer_that_is_not_whole_is_refused(name: str, copy: Copy, whole: Path, tmp_path: Path) -> None:
    words = copy("clip")
    # Cut at a line's end, or left out with the vocabulary, it is a tokenizer still, which reads other words.
    merges = (words / "merges.txt").read_text().split("\n")
    for remaining in ("\n".join(merges[:20_000]), "", None):
        replace(words / "merges.txt", (remaining or "").encode())
        if remaining is None:
            (words / "merges.txt").unlink()
            (words / "vocab.json").unlink()
        cause = "it has no vocabulary" if remaining is None else "its tokenizer is incomplete: .* merges"
        with pytest.raises(FlexyError, match=f"cannot load {words}: {cause}: "):
            load(name, tmp_path, clip=words, hps=whole / "hps")


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_size": 100},
        {"crop_size": -1},
        {"crop_size": 10**9},
        {"crop_size": "224"},
        {"image_mean": [0, 0]},
        {"image_std": [0, 0, 0]},
        {"image_std": "abc"},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_preprocessing_the_model_cannot_use_is_refused(
    wrong: dict[str, Any], copy: Copy, complaint: Complaint
) -> None:
    folder = copy("clip")
    replace(folder / "preprocessor_config.json", json.dumps(references.PREPROCESSOR | wrong).encode())
    complaint("clip", folder)


# What would run code


class Bomb:
    """Pickled, it is a call that creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("form", ["bare", "in an archive", "among the weights", "in the first format"])
@pytest.mark.parametrize("name", PICKLED)
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    name: str, form: str, copy: Copy, whole: Path, tmp_path: Path, complaint: Complaint
) -> None:
    folder, target = copy(name), tmp_path / "ran"
    file = folder / PICKLED[name]
    state = state_of(whole / name, name) if form == "among the weights" else {}
    save(folder, file.name, state | {"x": Bomb(target)}, _use_new_zipfile_serialization=form != "in the first format")
    if form == "bare":
        replace(file, pickle.dumps(Bomb(target), protocol=2))
    assert f"{file}: it is damaged, or holds more than tensors and might run code" in complaint(name, folder)
    assert not target.exists()
    # The bomb is live: who trusts the file runs it.
    if form != "bare":
        torch.load(file, weights_only=False)
        assert target.exists()


def test_code_in_a_clip_folder_is_not_looked_at(
    copy: Copy, tmp_path: Path, whole: Path, scores: Scores, complaint: Complaint
) -> None:
    folder, target = copy("clip"), tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(target)!r}, 'w')\nclass Evil: pass\n")
    for file, named in (
        ("config.json", {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
    ):
        config = json.loads((folder / file).read_text()) | {"auto_map": named}
        # An attention of that form would be fetched from the hub, as code.
        replace(folder / file, json.dumps(config | {"_attn_implementation": "someone/attention"}).encode())
    assert (scores("clip", folder) == scores("clip", whole / "clip")).all()
    torch.save({"x": Bomb(target)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in complaint("clip", folder)
    assert not target.exists()


# What claims to be huge


@pytest.mark.parametrize("claim", ["header of exabytes", "header of 100 MB", "tensors of terabytes"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_claims_a_huge_size_is_refused_at_once(
    name: str, claim: str, copy: Copy, whole: Path, complaint: Complaint
) -> None:
    folder = copy(name)
    tensor = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    header = json.dumps(dict.fromkeys(state_of(whole / name, name), tensor)).encode()
    sizes = {"header of exabytes": 2**62, "header of 100 MB": 10**8, "tensors of terabytes": len(header)}
    (folder / FILES[name]).unlink()
    replace(folder / MAPPED[name], sizes[claim].to_bytes(8, "little") + header)
    assert "header" in complaint(name, folder)
