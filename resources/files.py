"""Local files: written whole or not at all, hashed, locked, and their errors described."""

import errno
import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path, PurePath

from resources.errors import BadInputError

MAX_REPLACED_BYTES = 2**30
"""A larger file than this is nothing that Flexy wrote, and is not replaced."""

_LINK = "a symbolic link"
_FILE_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISLNK: _LINK,
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def describe_kind(mode: int) -> str | None:
    """Return what a file of this mode is; None for a regular file."""
    return next((kind for is_kind, kind in _FILE_KINDS.items() if is_kind(mode)), None)


def check_output(path: Path, folder: bool = False) -> Path:
    """Return `path` if a regular file, or with `folder` a folder, can be written there.

    Raises `BadInputError` where its folder is missing or something else lies there: a device, pipe, socket, symbolic
    link, a folder in a file's place or the reverse, or a file of over `MAX_REPLACED_BYTES`.
    """
    try:
        if not path.parent.is_dir():
            raise BadInputError(f"cannot write {path}: the folder {path.parent} does not exist: make it first")
        status = path.lstat()
    except FileNotFoundError:
        return path
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInputError(f"cannot write {str(path)!r}: {reason}: name another") from None
    kind, wanted = describe_kind(status.st_mode) or "a file", "a folder" if folder else "a file"
    if kind == "a file" and status.st_size > MAX_REPLACED_BYTES:
        kind = f"a file of {status.st_size / 1e9:.1f} GB that Flexy did not write"
    if kind != wanted:
        raise BadInputError(f"cannot write {path}: it is {kind}: name {wanted} that is new or may be replaced")
    return path


def open_regular(path: Path, max_bytes: int) -> BufferedReader:
    """Open a regular file of at most `max_bytes` for reading; nothing else is opened. Raises `OSError`."""
    _check_regular(path.stat(), max_bytes)
    # What replaced it meanwhile neither waits for a writer nor is read.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _check_regular(os.fstat(file.fileno()), max_bytes)
    except OSError:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result, max_bytes: int) -> None:
    if kind := describe_kind(status.st_mode):
        raise OSError(errno.EINVAL, f"it is {kind} and not a regular file")
    if status.st_size > max_bytes:
        size = f"it has {status.st_size / 1e9:.1f} GB"
        raise OSError(errno.EFBIG, f"{size}: files of up to {max_bytes / 1e9:.1f} GB are read")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a local file whole or not at all; the bytes are on disk before this returns."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the folder of `path` that replaces it, fsynced, if the block raises nothing.

    Raises `OSError` where a folder, device, pipe or socket lies there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        kind = describe_kind(path.lstat().st_mode)
        if kind and kind != _LINK:  # a link is replaced, not followed
            raise OSError(errno.EEXIST, f"it is {kind}", str(path))
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp's file is readable by its owner alone; the result is for everybody who may read the folder.
        temporary.chmod(0o644)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Make `folder` and hold its lock in the block; a killed process frees it. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def resolve_inside(folder: Path, path: PurePath) -> Path | None:
    """Return the real path of `path` in `folder`; None where it leads out of it, by a link too, or to nowhere."""
    try:
        resolved = (folder / path).resolve()
        return resolved if resolved.is_relative_to(folder.resolve()) else None
    except (OSError, ValueError, RuntimeError):  # a loop of links, a NUL in the name
        return None


def file_sha256(path: Path) -> str:
    """Return the file's SHA-256 in hex, computed once a process as long as the file is not written to."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@cache
def _sha256(path: Path, _size: int, _modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_os_error(error: OSError) -> str:
    """Return the cause and the remedy of a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free some space and run again; completed work is kept"
    return f"{error.strerror or error}: check the folder's permissions and run again"
