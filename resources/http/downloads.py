"""Downloads images from URLs that others wrote: from the public network and from hosts that are allowed.

Proxies of the environment are not used: a proxy resolves names itself, so the address that was checked would not be
the one that is connected to. Where the network is reached through a proxy alone, put the images beside the export.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import socket
import ssl
import time
import zlib
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from threading import Timer
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from requests import certs

from resources.errors import FlexyError
from resources.files import resolve_inside
from resources.http.client import RETRYABLE_STATUS, HttpLimits, RetryableError, call_with_retries, parse_retry_after
from resources.http.public_addresses import (
    DEFAULT_PORTS,
    AddressError,
    AddressGuard,
    Resolver,
    masked_url,
    parse_url,
    resolve_host,
    url_origin,
)
from resources.images import MAX_PIXELS, ImageStore, describe_format, open_image

if TYPE_CHECKING:
    from resources.label_studio.client import LabelStudioClient

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
"""The accepted formats. Pillow knows more, some of which (EPS) it hands to other programs."""

MAX_REDIRECTS = 5

DOWNLOAD_LIMITS = HttpLimits(timeout=120.0, idle_timeout=20.0, attempts=4, answer_bytes=50_000_000)
"""An attempt includes its redirects, but not the resolver's time; the size holds compressed and decompressed."""


class DownloadError(FlexyError):
    """A failed download; the message holds no query and no password, because these may be secrets."""


@dataclass(frozen=True)
class DownloadedImage:
    """An image file that was decoded: its bytes, their SHA-256, `png` or another format, its size in pixels."""

    content: bytes = field(repr=False)
    sha256: str
    format: str
    width: int
    height: int


class ImageDownloader:
    """Downloads images over http(s) from public addresses and from `allowed` hosts (see `AddressGuard`).

    So it does from `server`, whatever its address. That alone receives its authorization, for its uploads, as long as
    the request was not redirected by another server. Each host name is resolved once an attempt, all its addresses are
    checked, and the connection is made to one of these; TLS is verified against the name. Safe for several threads.
    """

    def __init__(
        self,
        allowed: Collection[tuple[str, int | None]] = (),
        server: LabelStudioClient | None = None,
        limits: HttpLimits = DOWNLOAD_LIMITS,
        resolve: Resolver = resolve_host,
        tls_context: ssl.SSLContext | None = None,
    ) -> None:
        self.server = server
        self.limits = limits
        self._server_origin = url_origin(parse_url(server.url)) if server else None
        self._guard = AddressGuard(allowed, self._server_origin, resolve)
        if tls_context:
            self._tls_context = tls_context

    @cached_property
    def _tls_context(self) -> ssl.SSLContext:
        """By default the authorities of this machine, SSL_CERT_FILE among them, and those that browsers know."""
        context = ssl.create_default_context()
        context.load_verify_locations(certs.where())
        return context

    def is_url(self, location: str) -> bool:
        """Return whether `location` begins with a scheme or is a path on `server`; otherwise it is a file."""
        return bool(re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|[/\\]{2}", location)) or (
            self.server is not None and location.startswith("/")
        )

    def download(self, url: str) -> DownloadedImage:
        """Return the image at `url`, or at a path on `server`. Raises `DownloadError` with the reason."""
        if self.server and url.startswith("/") and not re.match(r"/[/\\]", url):
            url = urljoin(self.server.url, url)
        name = masked_url(url)

        def attempt() -> DownloadedImage:
            with _Deadline(self.limits.timeout) as deadline:
                return decode_image(self._follow_redirects(url, deadline), name)

        return call_with_retries(attempt, self.limits, lambda reason: DownloadError(f"{name} {reason}"))

    def _follow_redirects(self, url: str, deadline: _Deadline) -> bytes:
        """Return the bytes at `url`, wherever it redirects to."""
        first, authorized = masked_url(url), True
        for redirects in range(MAX_REDIRECTS + 1):
            try:
                parts = parse_url(url)
            except AddressError as error:
                raise DownloadError(f"{first}: redirected to an {error}" if redirects else str(error)) from None
            name = f"{first}, redirected to {masked_url(url)}," if redirects else first
            authorized = authorized and url_origin(parts) == self._server_origin
            try:
                answer = self._request(parts, self._guard.resolve(parts), authorized, name, deadline)
            except AddressError as error:
                raise DownloadError(f"{name} {error}") from None
            if isinstance(answer, bytes):
                return answer
            try:
                url = urljoin(url, answer)
            except ValueError:
                raise DownloadError(f"{first} redirects to an invalid URL: check the URL") from None
        raise DownloadError(f"{first} redirects more than {MAX_REDIRECTS} times: use the URL that it ends at")

    def _request(
        self, parts: SplitResult, addresses: Sequence[str], authorized: bool, name: str, deadline: _Deadline
    ) -> bytes | str:
        """Send one request to one of `addresses`; return the body, or the URL of a redirect."""
        scheme, host, port = url_origin(parts)
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        query = quote(parts.query, safe="/%:@!$&'()*+,;=~?")
        headers = {
            "Host": host if port == DEFAULT_PORTS[scheme] else f"{host}:{port}",
            "User-Agent": "flexy",
            "Accept": "image/*,*/*;q=0.8",
            "Accept-Encoding": "identity",
        }
        if authorized and self.server and _is_upload(parts.path, urlsplit(self.server.url).path):
            headers["Authorization"] = self.server.authorization()
        connection = http.client.HTTPConnection(host, port)
        try:
            connection.sock = self._connect(addresses, (scheme, host, port), deadline)
            connection.request("GET", f"{path}?{query}" if query else path, headers=headers)
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308) and (location := response.getheader("Location")):
                # http.client decodes headers as Latin-1, whatever they were.
                return location.encode("latin-1").decode("utf-8", "replace")
            if response.status in RETRYABLE_STATUS:
                wait = parse_retry_after(response.getheader("Retry-After"))
                raise RetryableError(f"is answered with status {response.status}", wait)
            if response.status != 200:
                expired = "it needs a key, or its signature has expired: export again"
                remedy = expired if response.status in (401, 403) else "check the URL"
                raise DownloadError(f"{name} is answered with status {response.status}: {remedy}")
            content = self._read(response, name)
            if deadline.expired:
                raise TimeoutError
            return content
        except ssl.SSLCertVerificationError as error:
            cause = error.verify_message.rstrip(".")
            raise DownloadError(f"{name} has no valid certificate: {cause}: check the URL") from None
        except (OSError, http.client.HTTPException) as error:
            if deadline.expired:
                raise RetryableError(f"did not arrive within {self.limits.timeout:g} s") from None
            if isinstance(error, TimeoutError):
                raise RetryableError(f"sent nothing for {self.limits.longest_silence:g} s") from None
            raise RetryableError(f"cannot be reached, or the connection broke off ({type(error).__name__})") from None
        finally:
            connection.close()

    def _connect(self, addresses: Sequence[str], origin: tuple[str, str, int], deadline: _Deadline) -> socket.socket:
        """Return a connection to the first of `addresses` that accepts one."""
        scheme, host, port = origin
        last_error: OSError = OSError("no address")
        for address in addresses:
            timeout = min(self.limits.longest_silence, deadline.remaining_seconds)
            try:
                sock = socket.create_connection((address, port), timeout)
            except OSError as error:
                last_error = error
                continue
            deadline.watch(sock)
            sock.settimeout(self.limits.longest_silence)
            if scheme == "http":
                return sock
            try:
                return self._tls_context.wrap_socket(sock, server_hostname=host.strip("[]"))
            except BaseException:
                sock.close()
                raise
        raise last_error

    def _read(self, response: http.client.HTTPResponse, name: str) -> bytes:
        """Return the decompressed body; no more of it than the limit is ever in memory."""
        limit = self.limits.answer_bytes
        encoding = (response.getheader("Content-Encoding") or "identity").lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise DownloadError(f"{name} has the content encoding {encoding[:20]!r}: use gzip, deflate or none")
        too_large = DownloadError(f"{name} is larger than {limit} bytes: make it smaller")
        if (response.length or 0) > limit:
            raise too_large
        decompressor = None if encoding == "identity" else zlib.decompressobj(wbits=47 if encoding == "gzip" else 15)
        parts, remaining, received = [], limit, 0
        while chunk := response.read1(65536):
            received += len(chunk)
            try:
                part = decompressor.decompress(chunk, remaining + 1) if decompressor else chunk
            except zlib.error:
                raise DownloadError(f"{name} cannot be decompressed: check the URL") from None
            remaining -= len(part)
            if remaining < 0 or received > limit:
                raise too_large
            parts.append(part)
        if response.length or (decompressor and received and not decompressor.eof):
            raise RetryableError("broke off")
        return b"".join(parts)


class _Deadline(ExitStack):
    """Shuts the watched connections down when the time is over: a server that drips bytes never runs into a timeout."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._end = time.monotonic() + seconds

    @property
    def remaining_seconds(self) -> float:
        return max(0.001, self._end - time.monotonic())

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self._end

    def watch(self, sock: socket.socket) -> None:
        # A second handle on the connection, because the first one moves into the TLS socket.
        handle = self.enter_context(sock.dup())
        timer = Timer(self.remaining_seconds, _shut_down, [handle])
        timer.daemon = True
        timer.start()
        self.callback(timer.join)
        self.callback(timer.cancel)


def _shut_down(handle: socket.socket) -> None:
    with suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)


def _masked_name(location: str) -> str:
    """Return a file's name for messages; in a URL without its scheme, the query could be a secret."""
    return re.split("[?#]", location, maxsplit=1)[0][:200]


def _is_upload(path: str, base: str) -> bool:
    """Return whether `path` is one at which Label Studio keeps images; the author of a task may name other paths."""
    relative = path.removeprefix(base.rstrip("/"))
    uploads = r"/(data|storage-data|(tasks|projects)/[0-9]+/(resolve|presign))/"
    return bool(re.match(uploads, relative)) and not re.search(r"\.\.|%2e", path.lower())


def decode_image(content: bytes, name: str) -> DownloadedImage:
    """Return `content` as an image that decodes. Raises `DownloadError` naming `name` where it does not."""
    from PIL import UnidentifiedImageError

    if not content:
        raise DownloadError(f"{name} is empty: use the URL of an image")
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body)", content[:200], re.IGNORECASE):
        raise DownloadError(f"{name} is HTML, not an image: use the URL of the image itself")
    try:
        with open_image(content, IMAGE_FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise DownloadError(f"{name} claims {file.width}×{file.height} pixels: make it smaller")
            file.load()
            kind = (file.format or "").lower()
            width, height = file.size
    except DownloadError:
        raise
    # Pillow's decoders raise almost any exception on a broken file.
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"it is {describe_format(content)}" if unknown else type(error).__name__
        raise DownloadError(f"{name} cannot be decoded ({reason}): use one of {', '.join(IMAGE_FORMATS)}") from None
    return DownloadedImage(content, hashlib.sha256(content).hexdigest(), kind, width, height)


def read_image_file(folder: Path, name: str, limit: int = DOWNLOAD_LIMITS.answer_bytes) -> DownloadedImage:
    """Return the image in the file `name` of `folder`, where an export lies, or below it.

    Raises `DownloadError` where that is elsewhere, a link out of the folder included, larger than `limit` bytes,
    missing or not an image.
    """
    parts = PurePosixPath(name)
    label = f"file {_masked_name(name)!r}"
    file = resolve_inside(folder, parts)
    if file is None or parts.is_absolute() or ".." in parts.parts or "\\" in name:
        raise DownloadError(f"{label} leads out of the export's folder: put it there and name it from there")
    try:
        if not file.is_file():  # a pipe would block for ever
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with file.open("rb") as opened:
            content = opened.read(limit + 1)
    except OSError as error:
        raise DownloadError(f"{label} cannot be read: {error.strerror}: put it beside the export") from None
    if len(content) > limit:
        raise DownloadError(f"{label} is larger than {limit} bytes: make it smaller")
    return decode_image(content, label)


def download_images(
    store: ImageStore,
    folder: str,
    locations: Iterable[str],
    downloader: ImageDownloader,
    export_folder: Path | None,
    threads: int = 4,
) -> dict[str, tuple[str, str] | FlexyError]:
    """Return path and SHA-256, in `store`, of the image at each of `locations`, or the error that prevented it.

    A location is a URL, or a file in `export_folder`, where there is one. Each distinct location is downloaded once;
    an image is stored unchanged in `folder` of the store, named by its content.
    """

    def store_image(location: str) -> tuple[str, str] | FlexyError:
        try:
            if downloader.is_url(location):
                image = downloader.download(location)
            elif location.startswith("/data/"):
                name = _masked_name(location)
                raise DownloadError(f"{name!r} is a path on a Label Studio server: set LABEL_STUDIO_URL to its URL")
            elif export_folder is not None:
                image = read_image_file(export_folder, location, downloader.limits.answer_bytes)
            else:
                raise DownloadError(f"{_masked_name(location)!r} is not a URL: write https://HOST/PATH")
            path = f"{folder}/{image.sha256[:32]}.{image.format}"
            return path, store.keep(path, image.content)
        except FlexyError as error:
            return error

    distinct = list(dict.fromkeys(locations))
    with ThreadPoolExecutor(max_workers=threads) as pool:
        return dict(zip(distinct, pool.map(store_image, distinct), strict=True))
