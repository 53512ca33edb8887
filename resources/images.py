"""Image files under their roots: the only module that opens, writes and checks them."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from resources.errors import BadInputError, FlexyError
from resources.files import describe_os_error, file_sha256, open_regular, resolve_inside, write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

    from resources.settings import Settings

T = TypeVar("T")

MAX_SHARED_BYTES = 2_000_000_000
"""Bytes of decoded images that `read_for` keeps: over two thousand of 512 × 512 pixels."""

MAX_PIXELS = 64_000_000
"""A larger image is rejected before it is decoded, because a small file can claim a billion pixels."""


MAX_FILE_BYTES = 512_000_000
"""A larger file is not opened: of `MAX_PIXELS` with 8 bytes each, none is larger."""

MAX_CHUNK_BYTES = 16_000_000
"""The largest text or colour profile that is unpacked from a PNG; workflows of ComfyUI have some megabytes."""

_OTHER_FORMATS = {
    b"": "an empty file",
    b"version https://git-lfs": "a Git LFS pointer: fetch it with git lfs pull",
    b"<svg": "an SVG drawing",
    b"<?xml": "XML",
    b"<!doctype": "an HTML page",
    b"<html": "an HTML page",
    b"%pdf": "a PDF",
    b"pk\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjxl": "JPEG XL",
}
"""By their first bytes, in lower case, files that are no images or of a format that is not read."""


class UnreadableImageError(FlexyError):
    """An image that is missing, broken, too large, or outside the root."""


class LostImageError(UnreadableImageError):
    """An image whose file is not there, or not the one recorded."""


class ImageStore:
    """Images below `root`, a folder or an fsspec URL such as `s3://bucket/folder`.

    Paths are relative to the root with forward slashes, as the rows of `bench_run_results` hold them. A path that
    begins with the prefix of one of `other_roots` is read from its folder instead, by the longest prefix; nothing is
    written there. With `follow_links` images are also read through symbolic links that lead out of their root.
    """

    def __init__(
        self, root: str, other_roots: Collection[tuple[str, str | Path]] = (), follow_links: bool = False
    ) -> None:
        self.root = root
        self._follow_links = follow_links
        longest_first = sorted(other_roots, key=lambda pair: -len(pair[0]))
        self.other_roots = [(prefix, ImageStore(str(folder), (), follow_links)) for prefix, folder in longest_first]
        self._shared: dict[tuple[str, str | None], tuple[Image, set[str]]] = {}
        self._shared_bytes = 0
        self._lock = Lock()

    @classmethod
    def from_settings(cls, settings: Settings) -> ImageStore:
        """Return the images that the settings name; nothing is opened yet."""
        return cls(settings.images, settings.image_roots, settings.follow_links)

    @cached_property
    def _remote(self) -> tuple[Any, str] | None:
        """The fsspec file system and the path of a URL; None for a plain folder."""
        if "://" not in self.root:
            return None
        import fsspec

        try:
            return fsspec.core.url_to_fs(self.root)
        # Each file system has errors of its own for a missing package, server or permission.
        except Exception as error:
            raise self._root_error(error) from error

    def _root_error(self, error: Exception) -> BadInputError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return BadInputError(f"the image root {self} cannot be used: {reason}: check FLEXY_IMAGES")

    def __str__(self) -> str:
        """The root without a password."""
        return re.sub("(://[^/@]*:)[^/@]*@", r"\1***@", self.root)

    def _find(self, path: str) -> tuple[ImageStore, str]:
        """Return the root that `path` is read from, and where the file is."""
        for prefix, store in self.other_roots:
            if (path or "").startswith(f"{prefix}/"):
                return store, store._locate(path.removeprefix(prefix).lstrip("/"), self._follow_links)
        return self, self._locate(path, self._follow_links)

    def own_prefixes(self) -> list[str]:
        """Return what full paths of files in this folder begin with; nothing for a URL."""
        names = () if self._remote else (Path(self.root).absolute(), Path(self.root).resolve())
        return list(dict.fromkeys(map(str, names)))

    def _locate(self, path: str, follow_links: bool = False) -> str:
        parts = PurePosixPath(path or "")  # a row may have no path
        if not parts.parts:
            raise UnreadableImageError("no image path is recorded")
        # An absolute path is allowed in a plain folder; where it leads is checked below.
        if (parts.is_absolute() and self._remote) or ".." in parts.parts or "\\" in path or "\0" in path:
            raise UnreadableImageError(f"image path {path!r} leads outside the image root {self}")
        if self._remote:
            return f"{self._remote[1]}/{parts}"
        located = Path(self.root, parts)
        by_name = follow_links and (not parts.is_absolute() or any(map(parts.is_relative_to, self.own_prefixes())))
        if not by_name and resolve_inside(Path(self.root), parts) is None:
            remedy = ": give its folder in FLEXY_IMAGE_ROOTS" if parts.is_absolute() else ""
            raise UnreadableImageError(f"image path {path!r} leads outside the image root {self}{remedy}")
        return str(located)

    def exists(self) -> bool:
        """Return whether the root exists. Raises `BadInputError` for a URL that cannot be used."""
        remote = self._remote
        try:
            return bool(remote[0].exists(remote[1]) if remote else Path(self.root).is_dir())
        except Exception as error:
            raise self._root_error(error) from error

    def list_files(self) -> Iterator[str]:
        """Yield the paths of all files below a root that is a folder, through no link; none of a URL's."""
        if not self._remote:
            for folder, _, names in os.walk(self.root):
                for name in names:
                    yield Path(folder, name).relative_to(self.root).as_posix()

    def check(self) -> None:
        """Raise `BadInputError` where a root does not exist, because all of its images would look missing."""
        for prefix, store in self.other_roots:
            if not store.exists():
                raise BadInputError(f"the folder {store} of {prefix} does not exist: check FLEXY_IMAGE_ROOTS")
        if not self.exists():
            raise BadInputError(f"the image root {self} does not exist: set FLEXY_IMAGES to the folder of the images")

    def write(self, path: str, image: Image) -> str:
        """Write `image` as PNG, whole or not at all, and return its SHA-256.

        A file that has these bytes already is left alone. Otherwise they are on disk (temporary file, fsync, rename)
        before this returns. Raises `FlexyError` where they cannot be written, for example on a full disk.
        """
        return self.keep(path, encode_png(image))

    def keep(self, path: str, content: bytes) -> str:
        """Write an image file unchanged; otherwise as `write`."""
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
        """Remove the temporary files that a killed writer left in `folder`; no other process may write there."""
        if not self._remote:
            for leftover in Path(self._locate(folder)).glob(".*.png.*"):
                leftover.unlink(missing_ok=True)

    def read(self, path: str, sha256: str | None = None) -> Image:
        """Return the image at `path` in RGB; transparency is put on white, EXIF rotation is applied.

        Raises `UnreadableImageError` with the reason; with `sha256` also where the file has changed.
        """
        return self._decode(path, sha256, _convert_to_rgb)

    def read_as_is(self, path: str, sha256: str | None = None) -> Image:
        """Return the image at `path` in its file's own mode, where its transparency matters; otherwise as `read`."""
        return self._decode(path, sha256)

    def content(self, path: str, sha256: str | None = None) -> bytes:
        """Return the bytes of the image file at `path`; otherwise as `verify`."""
        store, located = self._find(path)
        try:
            content: bytes
            if store._remote:
                content = store._remote[0].cat_file(located, end=MAX_FILE_BYTES + 1)
            else:
                with open_regular(Path(located), MAX_FILE_BYTES) as file:
                    content = file.read(os.fstat(file.fileno()).st_size)
            if len(content) > MAX_FILE_BYTES:
                raise OSError(errno.EFBIG, f"it has over {MAX_FILE_BYTES / 1e9:.1f} GB")
        except OSError as error:
            raise _describe_unreadable(located, error) from error
        if sha256 and hashlib.sha256(content).hexdigest() != sha256:
            raise LostImageError(f"image {located} is not the one recorded: its SHA-256 differs")
        return content

    def _decode(self, path: str, sha256: str | None, convert: Callable[[Image], Image] | None = None) -> Image:
        """Return the first frame of an image, rotated as EXIF says and converted."""
        from PIL import ImageOps, UnidentifiedImageError

        content, (_, located) = self.content(path, sha256), self._find(path)
        file_format = ""
        try:
            file = open_image(content)
            file_format = f" ({file.format})"
            if file.width * file.height > MAX_PIXELS:
                raise UnreadableImageError(f"claims {file.width}×{file.height} pixels: make it smaller")
            image: Image = ImageOps.exif_transpose(file)
            image.load()
            return convert(image) if convert else image
        except UnreadableImageError as error:
            raise UnreadableImageError(f"image {located} {error}") from None
        except UnidentifiedImageError:
            raise UnreadableImageError(f"cannot decode image {located}: it is {describe_format(content)}") from None
        # Pillow's decoders raise almost any exception on a broken file.
        except Exception as error:
            raise UnreadableImageError(f"cannot decode image {located}{file_format}: {error}") from error

    def verify(self, path: str, sha256: str | None = None) -> None:
        """Raise `UnreadableImageError` where the file at `path` is missing or, with `sha256`, not as recorded."""
        store, located = self._find(path)
        try:
            if store._remote:
                with store._remote[0].open(located) as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest() if sha256 else None
            else:
                open_regular(Path(located), MAX_FILE_BYTES).close()
                digest = file_sha256(Path(located)) if sha256 else None
        except OSError as error:
            raise _describe_unreadable(located, error) from error
        if sha256 and digest != sha256:
            raise LostImageError(f"image {located} is not the one recorded: its SHA-256 differs")

    def read_for(self, reader: str, readers: Collection[str], path: str, sha256: str | None = None) -> Image:
        """Return the image for one of several `readers`; it is decoded, as by `read`, for the first of them only.

        It is kept in memory until the last one has read it, unless that takes more than `MAX_SHARED_BYTES` in all.
        Safe to call from several threads.
        """
        key = path, sha256
        with self._lock:
            image, remaining = self._shared.get(key, (None, set()))
            if image is not None:
                remaining.discard(reader)
                if not remaining:
                    self._shared_bytes -= _count_bytes(self._shared.pop(key)[0])
                return image
        image = self.read(path, sha256)
        remaining = set(readers) - {reader}
        with self._lock:
            if remaining and key not in self._shared and self._shared_bytes + _count_bytes(image) <= MAX_SHARED_BYTES:
                self._shared[key] = image, remaining
                self._shared_bytes += _count_bytes(image)
        return image

    def read_many(self, files: Sequence[tuple[str, str | None]]) -> list[Image | UnreadableImageError]:
        """Return the images at (path, sha256) pairs, decoded in parallel; an error in place of an unreadable one."""
        return _map_in_threads(self.read, files)

    def find_lost(self, files: Sequence[tuple[str, str | None]]) -> list[LostImageError | None]:
        """Return an error in place of each (path, sha256) whose file is missing or not as recorded.

        Below a URL, where reading costs a download, only whether it is there is looked at.
        """
        remote = self._remote is not None
        errors = self.verify_many([(path, None if remote else sha256) for path, sha256 in files])
        return [error if isinstance(error, LostImageError) else None for error in errors]

    def verify_many(self, files: Sequence[tuple[str, str | None]]) -> list[UnreadableImageError | None]:
        """Verify (path, sha256) pairs in parallel; return an error in place of a file that is not as recorded."""
        return _map_in_threads(self.verify, files)


def _describe_unreadable(located: str, error: OSError) -> UnreadableImageError:
    kind = LostImageError if isinstance(error, FileNotFoundError | NotADirectoryError) else UnreadableImageError
    return kind(f"cannot read image {located}: {error.strerror or error}")


def encode_png(image: Image) -> bytes:
    """Return the file that `ImageStore.write` writes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def open_image(content: bytes, formats: tuple[str, ...] | None = None) -> ImageFile:
    """Return an image file that is not decoded yet; texts and colour profiles are read up to `MAX_CHUNK_BYTES`."""
    from PIL import Image, PngImagePlugin

    PngImagePlugin.MAX_TEXT_CHUNK = MAX_CHUNK_BYTES
    return Image.open(io.BytesIO(content), formats=formats)


def describe_format(content: bytes) -> str:
    """Return what a file is that no decoder knows."""
    start = content[:64].lstrip().lower()
    if start[4:8] == b"ftyp":
        return f"of the format {start[8:12].decode('ascii', 'replace').strip()}, which is not read: save it as PNG"
    known = (name for magic, name in _OTHER_FORMATS.items() if start.startswith(magic) and (magic or not start))
    return next(known, f"of no known image format (it begins with {content[:8].hex(' ')})")


def _convert_to_rgb(image: Image) -> Image:
    import numpy as np
    from PIL import Image

    if image.mode in ("I", "F"):
        raise UnreadableImageError("has 32-bit pixels of unknown range: save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        # Pillow would clip these to 8 bits instead of scaling them.
        image = Image.frombytes("L", image.size, (np.asarray(image) >> 8).astype(np.uint8).tobytes())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _map_in_threads(
    function: Callable[[str, str | None], T], files: Sequence[tuple[str, str | None]]
) -> list[T | UnreadableImageError]:
    def call(file: tuple[str, str | None]) -> T | UnreadableImageError:
        try:
            return function(*file)
        except UnreadableImageError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        return list(pool.map(call, files))


def _count_bytes(image: Image) -> int:
    return image.width * image.height * len(image.getbands())
