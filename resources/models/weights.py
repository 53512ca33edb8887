"""Where the files of a model lie on this machine, and whether they are what was published."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from resources.errors import BadInputError, FlexyError
from resources.files import file_sha256
from resources.settings import Settings

MINI = Path(__file__).parent.parent / "mini"
MINI_WEIGHTS = MINI / "weights"
WEIGHT_FILES = ("*.safetensors", "*.pt", "*.pth", "*.bin", "*.onnx")

_RESTORE = "restore it with git, or train it with python -m resources.mini.training.train"


@dataclass(frozen=True)
class PublishedWeights:
    """Where a model's files are published: a repository of the Hugging Face hub at one commit.

    `files` are names or patterns of what is needed, but for what `without` matches; `sha256` holds the hashes
    known of them. `gigabytes` is what they take on disk. `gated` repositories want their licence accepted and
    a token; `commercial` says whether the licence allows such use, None where no licence is stated.
    """

    repo: str
    revision: str
    files: tuple[str, ...]
    licence: str
    gigabytes: float
    sha256: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    gated: bool = False
    commercial: bool | None = True


@dataclass(frozen=True)
class UserProvidedWeights:
    """Files that nobody may hand out: the user brings them, names their folder, and nothing is ever fetched.

    `files` are names or patterns of what is read of that folder, which may hold other things too; `gigabytes`
    is what they take on disk.
    """

    files: tuple[str, ...]
    licence: str
    gigabytes: float
    commercial: bool | None = False


def hub_snapshot_folder(published: PublishedWeights) -> Path:
    """Where the hub's cache keeps a repository at its commit, whether it is there or not.

    A branch has the commit that was recorded when it was fetched; before that, its folder does not exist.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    cached = Path(HF_HUB_CACHE, f"models--{published.repo.replace('/', '--')}")
    commit = published.revision
    if not re.fullmatch("[0-9a-f]{40}", commit):
        with suppress(OSError):
            commit = (cached / "refs" / commit).read_text("ascii").strip() or commit
    return cached / "snapshots" / commit


def select_files(names: Iterable[str], patterns: Iterable[str], without: Iterable[str] = ()) -> list[str]:
    """The names that match a pattern and none of `without`; a star stays within one folder."""

    def matches(name: str, patterns: Iterable[str]) -> bool:
        # With as many slashes in both, no star can have taken one.
        return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)

    patterns, without = list(patterns), list(without)
    return [name for name in names if matches(name, patterns) and not matches(name, without)]


def list_files(folder: Path, published: PublishedWeights) -> list[str] | None:
    """The names of the repository's files, where the hub's cache keeps them from when it was fetched."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [file.path for file in get_cached_repo_tree(published.repo, revision=folder.name)]
    except CachedRepoTreeNotFoundError:
        return None


def read_user_folders(settings: Settings, known: Collection[str]) -> dict[str, Path]:
    """The folders that the user's registry file names, and HPS_ROOT for `hps`.

    The file is TOML, `[models]` with `name = "folder"`; a relative folder starts at the file's. Raises
    `BadInputError` for a file that cannot be read and for a name that is not in `known`.
    """
    folders = {"hps": settings.hps_root} if settings.hps_root else {}
    file = settings.model_registry
    if file is None:
        return folders
    form = 'write [models] and, below it, lines such as clip = "/models/clip"'
    try:
        named = tomllib.loads(file.read_text("utf-8")).get("models")
    except OSError as error:
        raise BadInputError(f"cannot read FLEXY_MODEL_REGISTRY {file}: {error.strerror}: name a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInputError(f"FLEXY_MODEL_REGISTRY {file} is not TOML: {error}: {form}") from None
    if not isinstance(named, dict) or not all(isinstance(folder, str) and folder for folder in named.values()):
        raise BadInputError(f"FLEXY_MODEL_REGISTRY {file} maps no models to folders: {form}")
    for name in named:
        if name not in known:
            raise BadInputError(
                f"FLEXY_MODEL_REGISTRY {file} names {name!r}, which is no model: use {', '.join(known)}"
            )
    return folders | {name: file.absolute().parent / Path(folder).expanduser() for name, folder in named.items()}


def missing_files(
    folder: Path, published: PublishedWeights | None, brought: UserProvidedWeights | None = None
) -> list[str]:
    """The needed files that are not in `folder`; without a listing of them, a pattern counts as one."""
    if not folder.is_dir():
        return [str(folder)]
    if brought:
        return [pattern for pattern in brought.files if not any(folder.glob(pattern))]
    if published is None:
        return []
    needed = select_files(list_files(folder, published) or (), published.files, published.without)
    lacking = [name for name in needed if not (folder / name).exists()]
    return lacking + [pattern for pattern in published.files if not any(folder.glob(pattern))]


def check_files(
    name: str, folder: Path, published: PublishedWeights | None, brought: UserProvidedWeights | None = None
) -> None:
    """Raises `FlexyError` naming a file of the model that is missing, or damaged where its hash is recorded.

    The hub's files are held against their hashes when they are fetched, the embedded ones here.
    """
    if folder.is_relative_to(MINI_WEIGHTS):
        for path, recorded in _recorded(folder).items():
            if not path.exists():
                raise FlexyError(f"no weights for {name}: {path} is missing: {_RESTORE}")
            if file_sha256(path) != recorded:
                raise FlexyError(f"weights for {name} are damaged: {path} has another SHA-256: {_RESTORE}")
        return
    lacking = missing_files(folder, published, brought)
    if not lacking:
        return
    if brought and folder.is_dir():
        raise FlexyError(
            f"no weights for {name}: {folder} has no {lacking[0]}: put it there, or name its folder in"
            " FLEXY_MODEL_REGISTRY, or set FLEXY_MODELS=mini"
        )
    if published is None:
        raise FlexyError(f"no weights for {name}: there is no folder {folder}: name another or FLEXY_MODELS=mini")
    raise FlexyError(
        f"no weights for {name}: {published.repo} is not all here ({lacking[0]} is missing):"
        f" flexy models fetch {name}, or name its folder in FLEXY_MODEL_REGISTRY, or set FLEXY_MODELS=mini"
    )


def weights_fingerprint(
    folder: Path, published: PublishedWeights | None, brought: UserProvidedWeights | None = None
) -> str:
    """Twelve hex digits that change with the weights: the hub's commit, or a hash over the files' hashes."""
    if published:
        return folder.name[:12]
    if folder.is_relative_to(MINI_WEIGHTS):
        hashes = [recorded for _, recorded in sorted(_recorded(folder).items())]
    elif brought:
        hashes = [file_sha256(path) for pattern in brought.files for path in sorted(folder.glob(pattern))]
    else:
        hashes = [file_sha256(path) for pattern in WEIGHT_FILES for path in sorted(folder.rglob(pattern))]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:12]


def _recorded(folder: Path) -> Mapping[Path, str]:
    """The weight files of a mini model and their SHA-256, from the manifest that training wrote."""
    manifest = MINI_WEIGHTS / "manifest.json"
    try:
        files = json.loads(manifest.read_text())
        recorded = {MINI_WEIGHTS / name: entry["sha256"] for name, entry in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FlexyError(f"cannot read the weights' manifest {manifest}: {error}: {_RESTORE}") from None
    of_folder = {path: digest for path, digest in recorded.items() if path.is_relative_to(folder)}
    if not of_folder:
        raise FlexyError(f"the weights' manifest {manifest} says nothing of {folder}: {_RESTORE}")
    return of_folder


def describe_user_provided(name: str, brought: UserProvidedWeights) -> str:
    """What the user is to do for a model that is never fetched."""
    return f"name the folder that has {' and '.join(brought.files)} as {name} in FLEXY_MODEL_REGISTRY"


def folder_bytes(folder: Path) -> int:
    """What the files below `folder` take, links followed; 0 where it is not there."""
    return sum(
        Path(where, name).stat().st_size
        for where, _, names in os.walk(folder)
        for name in names
        if Path(where, name).exists()
    )
