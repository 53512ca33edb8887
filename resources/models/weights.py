"""Locations of the models' files on this machine, and their checks."""

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
    """A model's published files: a repository of the Hugging Face hub at one commit, or one file of GitHub's at `url`.

    `files` are names or patterns of the needed files, except those that `without` matches; `sha256` holds known
    hashes. `gigabytes` is their size on disk. `gated` repositories require accepting their licence and a token;
    `commercial` says whether the licence allows commercial use, None where no licence is stated.
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
    url: str = ""


@dataclass(frozen=True)
class UserProvidedWeights:
    """Files that may not be redistributed: the user names their folder, and nothing is ever downloaded.

    `files` are names or patterns of the files read from that folder, which may hold others too; `gigabytes` is
    their size on disk.
    """

    files: tuple[str, ...]
    licence: str
    gigabytes: float
    commercial: bool | None = False


def hub_snapshot_folder(published: PublishedWeights) -> Path:
    """Return the folder of a repository's commit in the hub's cache, whether it exists or not.

    A branch has the commit that was recorded when it was downloaded; before that, its folder does not exist.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = Path(HF_HUB_CACHE, f"models--{published.repo.replace('/', '--')}")
    commit = published.revision
    if not re.fullmatch("[0-9a-f]{40}", commit):
        with suppress(OSError):
            commit = (repository / "refs" / commit).read_text("ascii").strip() or commit
    return repository / "snapshots" / commit


def select_files(names: Iterable[str], patterns: Iterable[str], without: Iterable[str] = ()) -> list[str]:
    """Return the names that match a pattern and none of `without`; a star does not match a slash."""

    def matches(name: str, patterns: Iterable[str]) -> bool:
        # With the same number of slashes in both, no star can have matched one.
        return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)

    patterns, without = list(patterns), list(without)
    return [name for name in names if matches(name, patterns) and not matches(name, without)]


def list_files(folder: Path, published: PublishedWeights) -> list[str] | None:
    """Return the names of the repository's files, if the hub's cache recorded them when it was downloaded."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return [file.path for file in get_cached_repo_tree(published.repo, revision=folder.name)]
    except CachedRepoTreeNotFoundError:
        return None


def read_user_folders(settings: Settings, known: Collection[str]) -> dict[str, Path]:
    """Return the folders that the user's registry file names, and HPS_ROOT for `hps`.

    The file is TOML, `[models]` with `name = "folder"`; folders are relative to the file. Raises `BadInputError`
    for a file that cannot be read and for a name that is not in `known`.
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
            raise BadInputError(f"FLEXY_MODEL_REGISTRY {file} names an unknown model {name!r}: use {', '.join(known)}")
    return folders | {name: file.absolute().parent / Path(folder).expanduser() for name, folder in named.items()}


def missing_files(
    folder: Path, published: PublishedWeights | None, user_provided: UserProvidedWeights | None = None
) -> list[str]:
    """Return the needed files that are not in `folder`; without a recorded list, the patterns without a match."""
    if not folder.is_dir():
        return [str(folder)]
    if user_provided:
        return [pattern for pattern in user_provided.files if not any(folder.glob(pattern))]
    if published is None:
        return []
    needed = select_files(list_files(folder, published) or (), published.files, published.without)
    missing = [name for name in needed if not (folder / name).exists()]
    return missing + [pattern for pattern in published.files if not any(folder.glob(pattern))]


def check_files(
    name: str, folder: Path, published: PublishedWeights | None, user_provided: UserProvidedWeights | None = None
) -> None:
    """Raise `FlexyError` naming a file of the model that is missing, or damaged where its hash is recorded.

    The hub's files are compared with their hashes when they are downloaded, the embedded ones here.
    """
    if folder.is_relative_to(MINI_WEIGHTS):
        for path, recorded in _read_manifest(folder).items():
            if not path.exists():
                raise FlexyError(f"no weights for {name}: {path} is missing: {_RESTORE}")
            if file_sha256(path) != recorded:
                raise FlexyError(f"weights for {name} are damaged: {path} has another SHA-256: {_RESTORE}")
        return
    missing = missing_files(folder, published, user_provided)
    if not missing:
        return
    otherwise = "or name its folder in FLEXY_MODEL_REGISTRY, or set FLEXY_MODELS=mini"
    if user_provided and folder.is_dir():
        raise FlexyError(f"no weights for {name}: {folder} has no {missing[0]}: put it there, {otherwise}")
    if published is None:
        raise FlexyError(f"no weights for {name}: there is no folder {folder}: name another or FLEXY_MODELS=mini")
    cause = f"{published.repo} is incomplete ({missing[0]} is missing)"
    raise FlexyError(f"no weights for {name}: {cause}: flexy models fetch {name}, {otherwise}")


def weights_fingerprint(
    folder: Path, published: PublishedWeights | None, user_provided: UserProvidedWeights | None = None
) -> str:
    """Return twelve hex digits that change with the weights: the hub's commit, or a hash of the files' hashes."""
    if published:
        return folder.name[:12]
    if folder.is_relative_to(MINI_WEIGHTS):
        hashes = [recorded for _, recorded in sorted(_read_manifest(folder).items())]
    elif user_provided:
        hashes = [file_sha256(path) for pattern in user_provided.files for path in sorted(folder.glob(pattern))]
    else:
        hashes = [file_sha256(path) for pattern in WEIGHT_FILES for path in sorted(folder.rglob(pattern))]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:12]


def _read_manifest(folder: Path) -> Mapping[Path, str]:
    """Return the weight files of a mini model and their SHA-256, from the manifest that training wrote."""
    manifest = MINI_WEIGHTS / "manifest.json"
    try:
        files = json.loads(manifest.read_text())
        recorded = {MINI_WEIGHTS / name: entry["sha256"] for name, entry in files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FlexyError(f"cannot read the weights' manifest {manifest}: {error}: {_RESTORE}") from None
    entries = {path: digest for path, digest in recorded.items() if path.is_relative_to(folder)}
    if not entries:
        raise FlexyError(f"the weights' manifest {manifest} has no entry for {folder}: {_RESTORE}")
    return entries


def describe_user_provided(name: str, user_provided: UserProvidedWeights) -> str:
    """Return the remedy for missing user-provided weights."""
    return f"name the folder that has {' and '.join(user_provided.files)} as {name} in FLEXY_MODEL_REGISTRY"


def folder_bytes(folder: Path) -> int:
    """Return the bytes of the files below `folder`, links followed; 0 where it does not exist."""
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sum(path.stat().st_size for path in paths if path.exists())
