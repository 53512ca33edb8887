"""`flexy models` says which models there are and where they stand, quickly and in any set-up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants

from flexy_assets.cli.app import main
from resources.models.registry import MODELS
from resources.models.weights import MINI_WEIGHTS, hub_snapshot_folder

ROOT = Path(__file__).parent.parent
Flexy = Callable[..., Result]


@pytest.fixture
def flexy(home: Path, monkeypatch: pytest.MonkeyPatch) -> Flexy:
    """The command, on a machine without models but the embedded ones."""
    for name in ("FLEXY_MODEL_REGISTRY", "HPS_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *arguments: CliRunner().invoke(main, arguments, prog_name="flexy")


def rows(result: Result) -> dict[str, dict[str, Any]]:
    assert result.exit_code == 0, result.output
    assert result.stderr == "" and result.stdout.count("\n") == 1
    return {row["name"]: row for row in json.loads(result.stdout)["models"]}


def refused(result: Result) -> str:
    """The one line of bad input: thing, cause and remedy."""
    assert result.exit_code == 2 and (not result.stdout or json.loads(result.stdout).keys() == {"error"}), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("flexy: ") and line.count(": ") >= 2, line
    return line


def registry(home: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes) -> Path:
    file = home / "registry" / "models.toml"
    file.parent.mkdir()
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("FLEXY_MODEL_REGISTRY", str(file))
    return file


def test_every_model_of_both_sets_has_a_row(flexy: Flexy) -> None:
    found = rows(flexy("models", "--json"))
    embedded = {f"mini_{name.removeprefix('mini_')}" for name, entry in MODELS.items() if entry.embedded}
    assert found.keys() == embedded | {name for name, entry in MODELS.items() if entry.in_set("full")}
    assert {found[name]["state"] for name in embedded} == {"embedded"}
    assert found["mini_clip"] == {
        "name": "mini_clip",
        "kind": "scorer",
        "set": "mini",
        "state": "embedded",
        "folder": str(MINI_WEIGHTS / "clip"),
        "gigabytes": found["mini_clip"]["gigabytes"],
        "memory": None,
        "licence": None,
        "commercial": None,
        "gated": False,
        "repo": None,
        "revision": None,
        "files": None,
    }
    assert 0 < found["mini_clip"]["gigabytes"] < 0.02
    assert found["sd3"]["state"] == "gated" and found["realvis_xl"]["state"] == "missing"
    published = MODELS["sd3"].published
    assert published is not None
    assert {key: found["sd3"][key] for key in ("repo", "revision", "licence", "commercial", "gated", "folder")} == {
        "repo": published.repo,
        "revision": published.revision,
        "licence": published.licence,
        "commercial": False,
        "gated": True,
        "folder": None,
    }


def test_a_model_in_the_hubs_cache_is_present_with_its_size(flexy: Flexy, home: Path) -> None:
    published = MODELS["clip"].published
    assert published is not None
    folder = hub_snapshot_folder(published)
    folder.mkdir(parents=True)
    *files, last = published.files
    for file in files:
        (folder / file).write_bytes(bytes(1000))
    assert rows(flexy("models", "--json"))["clip"]["state"] == "missing"
    blob = home / "blob"
    blob.write_bytes(bytes(50_000))
    (folder / last).symlink_to(blob)
    row = rows(flexy("models", "--json"))["clip"]
    assert (row["state"], row["folder"]) == ("present", str(folder))
    assert row["gigabytes"] == (len(files) * 1000 + 50_000) / 1e9


def test_a_model_that_the_user_must_supply_says_which_files_and_is_found_where_they_are_named(
    flexy: Flexy, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(flexy("models", "--json"))["buffalo_l"]
    files = ["det_10g.onnx", "w600k_r50.onnx"]
    assert (before["state"], before["files"], before["folder"]) == ("user must supply", files, None)
    assert (before["licence"], before["commercial"]) == ("non-commercial research", False)
    monkeypatch.setenv("COLUMNS", "250")
    (line,) = (line for line in flexy("models").stdout.splitlines() if line.startswith("buffalo_l "))
    assert "user must supply" in line and line.endswith("yours: det_10g.onnx, w600k_r50.onnx")
    folder = registry(home, monkeypatch, '[models]\nbuffalo_l = "pack"\n').parent / "pack"
    folder.mkdir()
    (folder / files[0]).write_bytes(bytes(2000))
    assert rows(flexy("models", "--json"))["buffalo_l"]["state"] == "missing"
    (folder / files[1]).write_bytes(bytes(2000))
    after = rows(flexy("models", "--json"))["buffalo_l"]
    assert (after["state"], after["folder"], after["gigabytes"]) == ("your folder", str(folder), 4e-6)


def test_an_alias_says_which_engine_it_is(flexy: Flexy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXY_MODELS", "full")
    result = flexy("sweep", "new", "--engine", "flux_dev", "--images", "3", "--steps", "60")
    alias, error = result.stderr.splitlines()
    assert (result.exit_code, alias) == (2, "flux_dev is FlexyFace's name of flux_schnell")
    assert error.startswith("flexy: invalid steps '60' for flux_schnell: it is made for 1:8: use steps 1:8")


def test_the_table_fits_its_width_and_lists_the_same(flexy: Flexy, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = flexy("models")
    assert shown.exit_code == 0, shown.output
    heading, *lines, aliases, last = shown.stdout.splitlines()
    assert aliases == "FlexyFace's names: flux_dev is flux_schnell, sd3_medium is sd3"
    titles = ["name", "kind", "set", "state", "GB", "memory", "commercial", "licence", "repository@revision"]
    assert heading.split() == titles
    assert [line.split()[0] for line in lines] == list(rows(flexy("models", "--json")))
    assert max(map(len, shown.stdout.splitlines())) <= 120
    assert last.startswith("fetch a missing model: flexy models fetch NAME; supply one yourself: ")
    assert flexy("models", "list").stdout == shown.stdout
    # Where there is room, nothing is cut.
    monkeypatch.setenv("COLUMNS", "250")
    wide = flexy("models").stdout
    assert "…" in shown.stdout and "…" not in wide
    assert all(entry.published.repo in wide for entry in MODELS.values() if entry.published)


def test_the_users_folders_are_distinguished(flexy: Flexy, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = registry(home, monkeypatch, '[models]\nclip = "here/clip"\nsd3 = "/nowhere/sd3"\n')
    # A relative folder starts at the file's.
    clip = file.parent / "here" / "clip"
    clip.mkdir(parents=True)
    (clip / "model.safetensors").write_bytes(bytes(2000))
    monkeypatch.setenv("HPS_ROOT", str(home))
    found = rows(flexy("models", "--json"))
    assert (found["clip"]["state"], found["clip"]["folder"]) == ("your folder", str(clip))
    assert found["clip"]["gigabytes"] == 2e-6
    assert (found["hps"]["state"], found["hps"]["folder"]) == ("your folder", str(home))
    assert (found["sd3"]["state"], found["sd3"]["folder"]) == ("missing", None)
    assert found["mini_clip"]["state"] == "embedded"
    for arguments in (["hps"], ["clip", "hps"]):
        done = flexy("models", "fetch", *arguments, "--json")
        # hps needs clip, so both are looked for.
        assert json.loads(done.stdout) == {"fetched": [], "already": ["clip", "hps"], "bytes": 0}
    line = flexy("models", "fetch", "sd3").stderr
    assert "no weights for sd3: there is no folder /nowhere/sd3" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[models", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        ('[models]\nnosuch = "x"\n', "names an unknown model 'nosuch': use mini_sdxl, "),
        ("models = 3\n", "maps no models to folders"),
        ("[models]\nclip = 3\n", "maps no models to folders"),
        ('clip = "/models/clip"\n', "maps no models to folders"),
    ],
    ids=["not TOML", "not text", "unknown name", "not a table", "not a folder", "no table"],
)
@pytest.mark.parametrize("command", [["models", "--json"], ["models", "fetch", "clip"]], ids=["list", "fetch"])
def test_an_invalid_registry_file_is_named(
    flexy: Flexy, home: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes, words: str, command: list[str]
) -> None:
    file = registry(home, monkeypatch, content)
    line = refused(flexy(*command))
    assert f"FLEXY_MODEL_REGISTRY {file} " in line and words in line


def test_a_missing_registry_file_is_named(flexy: Flexy, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXY_MODEL_REGISTRY", str(home / "none.toml"))
    line = refused(flexy("models"))
    assert f"cannot read FLEXY_MODEL_REGISTRY {home / 'none.toml'}: No such file" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fetch", "dall_e"], "model 'dall_e' is unknown: use realvis_xl, "),
        (["fetch", "mini_sdxl"], "mini_sdxl cannot be fetched: all it takes lies in the repository"),
        (["fetch", "mini_clip"], "mini_clip cannot be fetched: all it takes lies in the repository"),
        (["fetch", "mini_buffalo_l"], "mini_buffalo_l cannot be fetched: all it takes lies in the repository"),
        (
            ["fetch", "clip", "inswapper_128"],
            "inswapper_128 is not redistributable and never downloaded: name the folder that has inswapper_128.onnx as"
            " inswapper_128 in FLEXY_MODEL_REGISTRY",
        ),
        (["fetch"], "Missing argument 'NAME...': see flexy models fetch --help"),
        (["bring"], "No such command 'bring': see flexy models --help"),
    ],
    ids=" ".join,
)
def test_an_invalid_request_is_refused_in_one_line(flexy: Flexy, arguments: list[str], words: str) -> None:
    assert words in refused(flexy("models", *arguments))


@pytest.mark.usefixtures("flexy")
def test_a_lost_embedded_model_is_missing(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for part in ("flexy_assets", "resources"):
        shutil.copytree(ROOT / part, tree / part)
    shutil.rmtree(tree / "resources" / "mini" / "weights" / "hps")
    command = [sys.executable, "-m", "flexy_assets.cli.app", "models", "--json"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=60, check=True)
    states = {row["name"]: row["state"] for row in json.loads(done.stdout)["models"]}
    assert (states["mini_hps"], states["mini_clip"]) == ("missing", "embedded")


@pytest.mark.usefixtures("flexy")
def test_listing_imports_no_model_library() -> None:
    program = (
        "import sys; from flexy_assets.cli.app import main\n"
        "try: main(['models'], prog_name='flexy')\n"
        "except SystemExit as end: assert not end.code\n"
        "print({'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'dagster'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
