"""Downloads the published files of models from the Hugging Face hub into its cache on this machine."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, errors, get_token, hf_hub_url, snapshot_download
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import WeakFileLock, build_hf_headers, disable_progress_bars, logging
from tqdm import tqdm

from resources.errors import BadInputError, FlexyError
from resources.files import describe_os_error, file_sha256, write_atomically
from resources.models import registry, weights
from resources.models.weights import PublishedWeights
from resources.settings import Settings

_OTHERWISE = "name a folder that has it in FLEXY_MODEL_REGISTRY"


@dataclass(frozen=True)
class FetchedModel:
    """A model that is now on this machine: its folder, and the bytes downloaded; None where it was complete."""

    name: str
    folder: Path
    received_bytes: int | None
    is_user_folder: bool = False
    """Whether the folder is the user's, named in FLEXY_MODEL_REGISTRY or HPS_ROOT."""

    def __str__(self) -> str:
        done = "is here already" if self.received_bytes is None else f"fetched, {self.received_bytes / 1e9:.2f} GB came"
        return f"{self.name}: {'your folder is used, nothing to fetch' if self.is_user_folder else done}: {self.folder}"


def fetch_models(names: Sequence[str], settings: Settings) -> Iterator[FetchedModel]:
    """Download the models called `names`, each after its required models; interrupted downloads resume.

    Raises `BadInputError` for a name with nothing to download, before the first download, and `FlexyError` with
    the cause of a failed one.
    """
    # The library's own bars and notes would mix with ours, and show signed addresses.
    logging.set_verbosity_error()
    disable_progress_bars()
    if not re.fullmatch("[!-~]*", get_token() or ""):
        raise BadInputError("HF_TOKEN holds what no token can: set it to a valid one")
    full = settings.with_models("full")
    for name in _with_required_models(names):
        model = registry.local_model(registry.MODELS[name], full)
        assert model.folder
        if model.published is None:
            model.check()
            yield FetchedModel(name, model.folder, None, is_user_folder=True)
            continue
        try:
            received = _fetch(name, model.published)
        # errors.HTTPError is what the library's HTTP client raises, whichever client it is.
        except (errors.HTTPError, OSError, ValueError) as error:
            # Their messages may contain a token or a signed address: only our own are shown.
            raise FlexyError(f"cannot fetch {name}: {_explain_error(error, model.published)}") from None
        yield FetchedModel(name, weights.hub_snapshot_folder(model.published), received)


def _with_required_models(names: Sequence[str]) -> list[str]:
    """Return the names, each after those of its required models, and each once."""
    fetchable = [name for name, entry in registry.MODELS.items() if entry.published]
    ordered: dict[str, None] = {}
    for name in (registry.ALIASES.get(name, name) for name in names):
        if name not in fetchable:
            if (entry := registry.MODELS.get(name)) and entry.user_provided:
                remedy = weights.describe_user_provided(name, entry.user_provided)
                raise BadInputError(f"{name} is not redistributable and never downloaded: {remedy}")
            if name in registry.MODELS or name.removeprefix("mini_") in registry.MODELS:
                raise BadInputError(f"{name} cannot be fetched: all it takes lies in the repository")
            raise BadInputError(f"model {name!r} is unknown: use {', '.join(fetchable)}")
        ordered |= dict.fromkeys([*_with_required_models([*registry.MODELS[name].required_models.values()]), name])
    return list(ordered)


def _fetch(name: str, published: PublishedWeights) -> int | None:
    """Download one model; return the bytes downloaded, None where it was complete."""
    folder = weights.hub_snapshot_folder(published)
    is_complete = published.url or weights.list_files(folder, published)
    if is_complete and not weights.missing_files(folder, published):
        _verify(name, folder, published)
        return None
    if constants.is_offline_mode():
        raise BadInputError(f"cannot fetch {name}: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: unset it")
    if published.url:
        return _fetch_file(name, folder, published)
    # For a branch, the recorded commit: a resumed download must not mix two commits.
    info = HfApi().model_info(
        published.repo, revision=folder.name, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    files = {file.rfilename: file for file in info.siblings or ()}
    for pattern in published.files:
        if not weights.select_files(files, [pattern]):
            cause = f"{published.repo} has no file {pattern} at {folder.name[:12]}"
            raise FlexyError(f"cannot fetch {name}: {cause}: {_OTHERWISE}")
    commit = str(info.sha)
    folder = folder.with_name(commit)
    if commit != published.revision:
        write_atomically(folder.parent.parent / "refs" / published.revision, commit.encode())
    needed = weights.select_files(files, published.files, published.without)
    received = _download_files(name, folder, published.repo, [files[file] for file in needed])
    _verify(name, folder, published)
    return received


def _fetch_file(name: str, folder: Path, published: PublishedWeights) -> int:
    """Download the one file of a model that is not on the hub; return the bytes downloaded."""
    ((file, sha256),) = published.sha256.items()
    blob, size = folder.parent.parent / "blobs" / sha256, round(published.gigabytes * 1e9)
    present = _present_bytes(blob)
    with tqdm(total=size, initial=present, desc=name, unit="B", unit_scale=True, disable=None) as bar:
        _download_blob(published.url, blob, size, bar, token=False)
    if not blob.exists():
        raise FlexyError(_damaged(name, file))
    folder.mkdir(parents=True, exist_ok=True)
    blob.replace(folder / file)
    return size - present


def _download_files(name: str, folder: Path, repo: str, files: Sequence[RepoSibling]) -> int:
    """Download the missing `files` of `folder`, with a progress bar on a terminal; return the bytes downloaded.

    The hub's library puts files in place, but restarts an interrupted file. Large files, which the cache names by
    their SHA-256, are therefore downloaded there first, where the library finds them.
    """
    missing = [file for file in files if not (folder / file.rfilename).exists()]
    small = [file for file in missing if not file.lfs]
    large = {folder.parent.parent / "blobs" / file.lfs.sha256: file for file in missing if file.lfs}
    left = _size(small) + _size(large.values()) - sum(map(_present_bytes, large))
    _check_disk_space(name, folder, left)

    done = _size(files) - left
    with tqdm(total=done + left, initial=done, desc=name, unit="B", unit_scale=True, disable=None) as bar:
        for blob, file in large.items():
            _download_blob(hf_hub_url(repo, file.rfilename, revision=folder.name), blob, file.size or 0, bar)
            if not blob.exists():
                raise FlexyError(_damaged(name, file.rfilename))
        snapshot_download(repo, revision=folder.name, allow_patterns=[file.rfilename for file in missing])
        bar.update(_size(small))
    return left


def _download_blob(url: str, blob: Path, size: int, bar: tqdm, token: bool | None = None) -> None:
    """Download a file to `blob`, whose name is its SHA-256, resuming a partial one; delete it if damaged.

    With `token` False the hub's token is not sent.
    """
    lock = blob.parents[2] / ".locks" / blob.parents[1].name / f"{blob.name}.lock"
    for folder in (lock.parent, blob.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        with _partial(blob).open("ab") as file:
            if file.tell() > size:
                file.seek(0)
                file.truncate()
            http_get(
                url,
                file,
                resume_size=file.tell(),
                # The rest of a compressed response could not be requested.
                headers=build_hf_headers(token=token, headers={"Accept-Encoding": "identity"}),
                expected_size=size,
                tqdm_class=lambda **_: nullcontext(bar),  # type: ignore[arg-type]
            )
            file.flush()
            os.fsync(file.fileno())
        if file_sha256(_partial(blob)) == blob.name:
            _partial(blob).replace(blob)
        else:
            _partial(blob).unlink()


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _present_bytes(blob: Path) -> int:
    """Return the bytes of a file that were downloaded already."""
    return next((path.stat().st_size for path in (blob, _partial(blob)) if path.exists()), 0)


def _size(files: Iterable[RepoSibling]) -> int:
    return sum(file.size or 0 for file in files)


def _check_disk_space(name: str, folder: Path, needed: int) -> None:
    """Raise `FlexyError` where the disk would be full before the model is complete."""
    disk = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(disk).free
    if free < needed:
        cause = f"{needed / 1e9:.1f} GB are to come and {disk} has {free / 1e9:.1f} GB free"
        raise FlexyError(f"cannot fetch {name}: {cause}: free some space, or set HF_HOME to a folder with more")


def _verify(name: str, folder: Path, published: PublishedWeights) -> None:
    """Delete a file that is not as published, and raise `FlexyError`."""
    for file, sha256 in published.sha256.items():
        path = folder / file
        if file_sha256(path) != sha256:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise FlexyError(_damaged(name, file))


def _damaged(name: str, file: str) -> str:
    return f"weights for {name} were damaged: {file} had another SHA-256, it is deleted: flexy models fetch {name}"


def _explain_error(error: Exception, published: PublishedWeights) -> str:
    """Return cause and remedy of an error of the hub's library."""
    while isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # what it raises when it cannot fall back on the cache
    repo, page = published.repo, f"https://huggingface.co/{published.repo}"
    hub = urlsplit(published.url or constants.ENDPOINT).netloc.rpartition("@")[2] or "HF_ENDPOINT"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 401 and get_token():
            return f"the hub does not accept the token: set HF_TOKEN to a valid one, see {page}"
        if status == 403:
            remedy = f"accept the licence at {page} with its account, and let it read gated repositories"
            return f"the token has no access to {repo}: {remedy}"
        if isinstance(error, errors.GatedRepoError):
            return f"{repo} is gated: accept the licence at {page}, then set HF_TOKEN"
        if isinstance(error, errors.RepositoryNotFoundError):
            return f"{hub} shows no repository {repo}: set HF_TOKEN if it is private, or {_OTHERWISE}"
        if isinstance(error, errors.RevisionNotFoundError):
            return f"{repo} has no revision {published.revision}: {_OTHERWISE}"
        return f"{hub} answers with status {status}: run again later, it goes on where it was"
    if isinstance(error, OSError) and error.errno:
        return describe_os_error(error)
    if isinstance(error, (errors.HTTPError, OSError)):
        cause = f"no connection to {hub}, or it broke off ({type(error).__name__})"
        return f"{cause}: check the network and HF_ENDPOINT and run again, it goes on where it was"
    return f"{hub} does not answer as a hub does: check HF_ENDPOINT"
