"""Image files under one root: the only module that opens, writes and checks them."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from resources.errors import BadInputError, FlexyError
from resources.files import describe_os_error, write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

KEPT_BYTES = 2_000_000_000
"""How much `read_for` keeps: two thousand and more pictures of 512 × 512."""

MAX_PIXELS = 64_000_000
"""A larger picture is refused before it is decoded: a small file can claim a billion pixels."""


class UnreadableImageError(FlexyError):
    """A picture that is missing, broken, too large, or outside the root."""


class ImageStore:
    """Images below `root`, a folder or an fsspec URL such as `s3://bucket/folder`.

    Paths are relative to the root with forward slashes, as the rows of `bench_run_results` hold them.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._kept: dict[tuple[str, str | None], tuple[Image, set[str]]] = {}
        self._kept_bytes = 0
        self._lock = Lock()

    @cached_property
    def _remote(self) -> tuple[Any, str] | None:
        """The fsspec file system and folder of a URL; None for a plain folder."""
        if "://" not in self.root:
            return None
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.root)
        # What a file system raises where its package, its server or the rights are missing is its own.
        except Exception as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> BadInputError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return BadInputError(f"the image root {self} cannot be used: {reason}: check FLEXY_IMAGES")

    def __str__(self) -> str:
        """The root without a password."""
        return re.sub("(://[^/@]*:)[^/@]*@", r"\1***@", self.root)

    def _locate(self, path: str) -> str:
        parts = PurePosixPath(path or "")  # a row may have none
        if not parts.parts:
            raise UnreadableImageError("no image path is recorded")
        # A folder's own full path may stand before; what that leads to is seen below.
        if (parts.is_absolute() and self._remote) or ".." in parts.parts or "\\" in path:
            raise UnreadableImageError(f"image path {path!r} leads outside the image root {self}")
        if self._remote:
            return f"{self._remote[1]}/{parts}"
        located = Path(self.root, parts)
        try:
            inside = located.resolve().is_relative_to(Path(self.root).resolve())
        except (OSError, ValueError, RuntimeError):  # a loop of links, a NUL in the name
            inside = False
        if not inside:
            raise UnreadableImageError(f"image path {path!r} leads outside the image root {self}")
        return str(located)

    def check(self) -> None:
        """Raises `BadInputError` where the root is not there: every picture would look lost."""
        remote = self._remote
        try:
            there = remote[0].exists(remote[1]) if remote else Path(self.root).is_dir()
        except Exception as error:
            raise self._unusable(error) from error
        if not there:
            raise BadInputError(f"the image root {self} is not there: set FLEXY_IMAGES to where the images lie")

    def write(self, path: str, image: Image) -> str:
        """Write `image` as PNG, whole or not at all, and return its SHA-256.

        A file that is these bytes already is left alone. Else they are on disk (temporary file, fsync, rename)
        before this returns. Raises `FlexyError` where they cannot be, a full disk for one.
        """
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=4)
        return self.keep(path, buffer.getvalue())

    def keep(self, path: str, content: bytes) -> str:
        """Write a picture file as it came; else as `write`."""
        sha256 = hashlib.sha256(content).hexdigest()
        located = self._locate(path)
        with suppress(UnreadableImageError):
            self.verify(path, sha256)
            return sha256
        try:
            if self._remote:
                self._remote[0].pipe_file(located, content)
            else:
                write_atomically(Path(located), content)
        except OSError as error:
            raise FlexyError(f"cannot write image {located}: {describe_os_error(error)}") from error
        return sha256

    def discard_unfinished(self, folder: str) -> None:
        """Remove the temporary files that a killed writer left in `folder`; nobody may be writing there."""
        if not self._remote:
            for leftover in Path(self._locate(folder)).glob(".*.png.*"):
                leftover.unlink(missing_ok=True)

    def read(self, path: str, sha256: str | None = None) -> Image:
        """The picture at `path` in RGB; transparency is laid on white, EXIF rotation applied.

        Raises `UnreadableImageError` with the reason; with `sha256` also where the file has changed.
        """
        import numpy as np
        from PIL import Image

        located, picture = self._decode(path, sha256)
        try:
            if picture.mode in ("I", "F"):
                raise UnreadableImageError(f"image {located} has 32-bit pixels of unknown range: save it with 8 or 16")
            if picture.mode.startswith("I;16"):
                # Pillow would clip these to 8 bits where they have to be scaled.
                picture = Image.frombytes("L", picture.size, (np.asarray(picture) >> 8).astype(np.uint8).tobytes())
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                return Image.alpha_composite(white, picture).convert("RGB")
            return picture.convert("RGB")
        except UnreadableImageError:
            raise
        # There is hardly an exception that Pillow's decoders do not raise on some broken file.
        except Exception as error:
            raise UnreadableImageError(f"cannot decode image {located}: {error}") from error

    def read_as_is(self, path: str, sha256: str | None = None) -> Image:
        """The picture at `path` in its file's own mode, for one whose transparency means something; else as `read`."""
        return self._decode(path, sha256)[1]

    def content(self, path: str, sha256: str | None = None) -> bytes:
        """The picture file at `path` as it is; else as `verify`."""
        located = self._locate(path)
        try:
            content: bytes = self._remote[0].cat_file(located) if self._remote else Path(located).read_bytes()
        except OSError as error:
            raise UnreadableImageError(f"cannot read image {located}: {error.strerror or error}") from error
        if sha256 and hashlib.sha256(content).hexdigest() != sha256:
            raise UnreadableImageError(f"image {located} is not the one recorded: its SHA-256 differs")
        return content

    def _decode(self, path: str, sha256: str | None) -> tuple[str, Image]:
        """Where a picture is, and its first frame, decoded and turned as EXIF says."""
        from PIL import Image, ImageOps

        content, located = self.content(path, sha256), self._locate(path)
        try:
            file = Image.open(io.BytesIO(content))
            if file.width * file.height > MAX_PIXELS:
                raise UnreadableImageError(f"image {located} claims {file.width}×{file.height} pixels: too large")
            picture: Image.Image = ImageOps.exif_transpose(file)
            picture.load()
        except UnreadableImageError:
            raise
        except Exception as error:
            raise UnreadableImageError(f"cannot decode image {located}: {error}") from error
        return located, picture

    def verify(self, path: str, sha256: str | None = None) -> None:
        """See that the file at `path` is there and, with `sha256`, as recorded; nothing is decoded.

        Raises `UnreadableImageError` with the reason.
        """
        located = self._locate(path)
        try:
            with self._remote[0].open(located) if self._remote else Path(located).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest() if sha256 else None
        except OSError as error:
            raise UnreadableImageError(f"cannot read image {located}: {error.strerror or error}") from error
        if sha256 and found != sha256:
            raise UnreadableImageError(f"image {located} is not the one recorded: its SHA-256 differs")

    def read_for(self, reader: str, readers: Collection[str], path: str, sha256: str | None = None) -> Image:
        """`read` for one of several `readers`, each of which wants the picture: it is decoded for the first.

        It is let go of when the last has had it. What would go beyond `KEPT_BYTES` is not kept. Safe to call
        from several threads.
        """
        key = path, sha256
        with self._lock:
            picture, left = self._kept.get(key, (None, set()))
            if picture is not None:
                left.discard(reader)
                if not left:
                    self._kept_bytes -= _bytes(self._kept.pop(key)[0])
                return picture
        picture = self.read(path, sha256)
        left = set(readers) - {reader}
        with self._lock:
            if left and key not in self._kept and self._kept_bytes + _bytes(picture) <= KEPT_BYTES:
                self._kept[key] = picture, left
                self._kept_bytes += _bytes(picture)
        return picture

    def read_many(self, files: Sequence[tuple[str, str | None]]) -> list[Image | UnreadableImageError]:
        """The pictures at (path, sha256) pairs, decoded in parallel; an error stands in an unreadable one's place."""
        return _map_in_threads(self.read, files)

    def verify_many(self, files: Sequence[tuple[str, str | None]]) -> list[UnreadableImageError | None]:
        """`verify` of (path, sha256) pairs, in parallel; an error where the file is not as recorded."""
        return _map_in_threads(self.verify, files)


def _map_in_threads(
    function: Callable[[str, str | None], T], files: Sequence[tuple[str, str | None]]
) -> list[T | UnreadableImageError]:
    def one(file: tuple[str, str | None]) -> T | UnreadableImageError:
        try:
            return function(*file)
        except UnreadableImageError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(one, files))


def _bytes(picture: Image) -> int:
    return picture.width * picture.height * len(picture.getbands())
