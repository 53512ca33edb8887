"""Fetches pictures from addresses that others wrote: from the public network, and from nowhere else unless allowed.

Proxies in the environment are not used: a proxy looks names up itself, so what was checked here would not be what is
asked. Where the network is reached by a proxy alone, put the pictures beside the export and name the files.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import ipaddress
import os
import re
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from threading import Timer
from typing import Protocol
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from requests import certs

from resources.errors import FlexyError
from resources.http.retries import backoff_seconds, parse_retry_after
from resources.images import MAX_PIXELS, ImageStore, UnreadableImageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
"""What is taken for a picture. Pillow knows more, some of which (EPS) it hands to other programs."""

RETRYABLE_STATUS = frozenset({429, 500, 502, 503, 504})
"""The statuses after which the same request may succeed."""

REDIRECT_STATUS = 5

_PORTS = {"http": 80, "https": 443}

# IANA's special-purpose registries: what is not one machine of the public network. The last is Azure's own host.
_INWARD = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",
    )
)
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
# Protocol assignments with Teredo, documentation, 6to4, documentation again.
_INWARD_V6 = tuple(ipaddress.IPv6Network(n) for n in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class DownloadError(FlexyError):
    """A picture that did not come; the message holds no query and no password, for these may be keys."""


class _RetryableError(Exception):
    """An attempt that failed; another may succeed, no sooner than after `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class DownloadLimits:
    """How much is asked for one picture, and for how long.

    An attempt, redirects included, takes up to `seconds` (looking a name up takes what the machine's resolver takes
    besides); each wait for the next bytes up to `silence` seconds. There
    are up to `attempts`, with up to `backoff` seconds between the first two, doubled each time, and what the server
    asks for, if that is no more than `longest_wait`. A picture has up to `size` bytes, compressed or not.
    """

    seconds: float = 120.0
    silence: float = 20.0
    attempts: int = 4
    backoff: float = 1.0
    longest_wait: float = 60.0
    size: int = 50_000_000


class TrustedServer(Protocol):
    """A server that is trusted and wants to know who asks: Label Studio, for its uploads."""

    @property
    def url(self) -> str:
        """Where it is: scheme, host and, it may be, a port and a path."""
        ...

    def authorization(self) -> str:
        """What the Authorization header says to it. Raises `FlexyError`."""
        ...


@dataclass(frozen=True)
class DownloadedImage:
    """A picture file as it came, seen to be one: its bytes, their SHA-256, `png` or another format, its pixels."""

    content: bytes = field(repr=False)
    sha256: str
    format: str
    width: int
    height: int


Resolver = Callable[[str, int], Iterable[str]]
"""The addresses of a host's name, as text. Raises `OSError`."""


def resolve_host(host: str, port: int) -> list[str]:
    """What the machine's own resolver says."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class ImageDownloader:
    """Downloads pictures over http(s) from public addresses and from `allowed` hosts.

    An allowed (host, port) may be anywhere, at that port; with None, at 80 and 443. So may `server`, which alone is
    shown its authorization, and that only as long as no other server was asked on the way. Each name is looked up
    once an attempt, all its addresses are checked, and the connection is made to one of these; TLS is checked against
    the name. Safe to use from several threads.
    """

    def __init__(
        self,
        allowed: Collection[tuple[str, int | None]] = (),
        server: TrustedServer | None = None,
        limits: DownloadLimits | None = None,
        resolve: Resolver = resolve_host,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self.allowed = frozenset(allowed)
        self.server = server
        self.limits = limits or DownloadLimits()
        self._resolve = resolve
        self._given = trust
        self._home = _origin(_place(server.url)) if server else None

    @cached_property
    def _trust(self) -> ssl.SSLContext:
        """By default the authorities of this machine, SSL_CERT_FILE among them, and those that browsers know."""
        if self._given:
            return self._given
        trust = ssl.create_default_context()
        trust.load_verify_locations(certs.where())
        return trust

    def is_address(self, place: str) -> bool:
        """Whether `place` is to be downloaded: it begins with a scheme or is a path on `server`. Else it is a file."""
        return bool(re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|[/\\]{2}", place)) or (
            self._home is not None and place.startswith("/")
        )

    def get(self, url: str) -> DownloadedImage:
        """The picture at `url`, or at a path on `server`.

        Raises `DownloadError` where the address is refused, nothing comes, or what comes is no picture.
        """
        if self.server and url.startswith("/") and not re.match(r"/[/\\]", url):
            url = urljoin(self.server.url, url)
        what = masked_url(url)
        attempt = 0
        while True:
            attempt += 1
            try:
                with _seconds_header(self.limits.seconds) as clock:
                    return check_image(self._follow(url, clock), what)
            except _RetryableError as error:
                if attempt >= self.limits.attempts or error.wait > self.limits.longest_wait:
                    asks = f" and asks to wait {error.wait:.0f} s" if error.wait else ""
                    raise DownloadError(f"{what} {error}{asks}, tried {attempt} times: run again later") from None
                time.sleep(error.wait + backoff_seconds(attempt, self.limits.backoff, self.limits.longest_wait))

    def _follow(self, url: str, clock: _Clock) -> bytes:
        """The bytes at `url`, wherever it redirects to."""
        what, at_home = masked_url(url), True
        for hop in range(REDIRECT_STATUS + 1):
            try:
                parts = _place(url)
            except DownloadError as error:
                raise DownloadError(f"{what}: redirected to {error}") if hop else error from None
            where = f"{what}, redirected to {masked_url(url)}," if hop else what
            at_home = at_home and _origin(parts) == self._home
            found = self._ask(parts, self._addresses(parts, where), at_home, where, clock)
            if isinstance(found, bytes):
                return found
            try:
                url = urljoin(url, found)
            except ValueError:
                raise DownloadError(f"{what} redirects to what is no address") from None
        raise DownloadError(f"{what} redirects more than {REDIRECT_STATUS} times: give the address that it ends at")

    def _addresses(self, parts: SplitResult, what: str) -> list[str]:
        """Where a host is: checked, and the only addresses that are connected to."""
        host, port = _origin(parts)[1:]
        known = {(host, port), (host, None)} if port in _PORTS.values() else {(host, port)}
        allowed = bool(self.allowed & known) or _origin(parts) == self._home
        if port != _PORTS[parts.scheme] and not allowed:
            raise DownloadError(
                f"{what} is at port {port} of {host}, which is not asked: allow it by FLEXY_ALLOWED_HOSTS={host}:{port}"
            )
        try:
            found = [ipaddress.ip_address(host.strip("[]"))]
        except ValueError:
            try:
                found = [ipaddress.ip_address(address) for address in self._resolve(host, port)]
            except socket.gaierror as error:
                if error.errno == socket.EAI_AGAIN:
                    raise _RetryableError(f"cannot be reached: the name {host} cannot be looked up now") from None
                raise DownloadError(f"{what} cannot be reached: there is no host {host}: check the address") from None
            except (OSError, ValueError):
                raise DownloadError(f"{what} cannot be reached: the name {host} cannot be looked up") from None
        inward = [address for address in found if not is_public(address)]
        if inward and not allowed:
            raise DownloadError(
                f"{what} leads to {host} inside this machine or its network, which is not asked:"
                f" allow it by FLEXY_ALLOWED_HOSTS={host}"
            )
        return [str(address) for address in dict.fromkeys(found)]

    def _ask(
        self, parts: SplitResult, addresses: Sequence[str], at_home: bool, what: str, clock: _Clock
    ) -> bytes | str:
        """One request, to one of `addresses`: the bytes that come, or where it redirects to."""
        scheme, host, port = _origin(parts)
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        query = quote(parts.query, safe="/%:@!$&'()*+,;=~?")
        headers = {
            "Host": host if port == _PORTS[scheme] else f"{host}:{port}",
            "User-Agent": "flexy",
            "Accept": "image/*,*/*;q=0.8",
            "Accept-Encoding": "identity",
        }
        if at_home and self.server and _is_upload(parts.path, urlsplit(self.server.url).path):
            headers["Authorization"] = self.server.authorization()
        connection = http.client.HTTPConnection(host, port)
        try:
            connection.sock = self._connected(addresses, host, port, scheme, clock)
            connection.request("GET", f"{path}?{query}" if query else path, headers=headers)
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308) and (location := response.getheader("Location")):
                # Headers are read as Latin-1, whatever they were.
                return location.encode("latin-1").decode("utf-8", "replace")
            if response.status in RETRYABLE_STATUS:
                wait = parse_retry_after(response.getheader("Retry-After"))
                raise _RetryableError(f"is answered with status {response.status}", wait)
            if response.status != 200:
                raise DownloadError(f"{what} is answered with status {response.status}: {_remedy(response.status)}")
            content = self._read(response, what)
            if clock.ran_out:
                raise TimeoutError
            return content
        except ssl.SSLCertVerificationError as error:
            raise DownloadError(
                f"{what} cannot be trusted: {error.verify_message.rstrip('.')}: check the address"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            if clock.ran_out:
                raise _RetryableError(f"did not come within {self.limits.seconds:g} s") from None
            if isinstance(error, TimeoutError):
                raise _RetryableError(f"said nothing for {self.limits.silence:g} s") from None
            raise _RetryableError(f"cannot be reached, or it broke off ({type(error).__name__})") from None
        finally:
            connection.close()

    def _connected(self, addresses: Sequence[str], host: str, port: int, scheme: str, clock: _Clock) -> socket.socket:
        """A connection to the first of `addresses` that takes one."""
        failed: OSError = OSError("no address")
        for address in addresses:
            try:
                sock = socket.create_connection((address, port), min(self.limits.silence, clock.left))
            except OSError as error:
                failed = error
                continue
            clock.watch(sock)
            sock.settimeout(self.limits.silence)
            if scheme == "http":
                return sock
            try:
                return self._trust.wrap_socket(sock, server_hostname=host.strip("[]"))
            except BaseException:
                sock.close()
                raise
        raise failed

    def _read(self, response: http.client.HTTPResponse, what: str) -> bytes:
        """The body, unpacked; no more of it than is allowed is ever held."""
        packing = (response.getheader("Content-Encoding") or "identity").lower()
        if packing not in ("identity", "gzip", "deflate"):
            raise DownloadError(f"{what} comes packed as {packing[:20]!r}, which was not asked for")
        too_large = DownloadError(f"{what} is larger than {self.limits.size} bytes: make it smaller")
        if (response.length or 0) > self.limits.size:
            raise too_large
        unpack = None if packing == "identity" else zlib.decompressobj(wbits=47 if packing == "gzip" else 15)
        parts, left, came = [], self.limits.size, 0
        while part := response.read1(65536):
            came += len(part)
            try:
                whole = unpack.decompress(part, left + 1) if unpack else part
            except zlib.error:
                raise DownloadError(f"{what} comes packed, and cannot be unpacked") from None
            left -= len(whole)
            if left < 0 or came > self.limits.size:
                raise too_large
            parts.append(whole)
        if response.length or (unpack and came and not unpack.eof):
            raise _RetryableError("broke off")
        return b"".join(parts)


class _Clock:
    """Ends what is watched when the time is up: a server that sends a byte now and then would never time out."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._watched: list[tuple[Timer, socket.socket]] = []

    @property
    def left(self) -> float:
        return max(0.001, self._end - time.monotonic())

    @property
    def ran_out(self) -> bool:
        return time.monotonic() >= self._end

    def watch(self, sock: socket.socket) -> None:
        # A handle of its own on the connection: the other one moves into the TLS socket.
        handle = sock.dup()
        timer = Timer(self.left, _close_socket, [handle])
        timer.daemon = True
        self._watched.append((timer, handle))
        timer.start()

    def stop(self) -> None:
        for timer, handle in self._watched:
            timer.cancel()
            timer.join()
            handle.close()


def _close_socket(handle: socket.socket) -> None:
    with suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)


@contextmanager
def _seconds_header(seconds: float) -> Iterator[_Clock]:
    clock = _Clock(seconds)
    try:
        yield clock
    finally:
        clock.stop()


def is_public(address: Address) -> bool:
    """Whether an address is one machine of the public network, in whichever form it is written."""
    if isinstance(address, ipaddress.IPv6Address):
        # Both lead to the IPv4 address in their last 32 bits.
        if address.ipv4_mapped or address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        return address in _PUBLIC_V6 and not any(address in network for network in _INWARD_V6)
    return not any(address in network for network in _INWARD)


def masked_url(url: str) -> str:
    """An address for people to read: without query, fragment, user and password, and of no more than 200 characters."""
    try:
        parts = _place(url)
    except DownloadError:
        # What cannot be taken apart may hide a password anywhere.
        return "an address"
    text = f"{parts.scheme}://{_origin(parts)[1]}{f':{parts.port}' if parts.port else ''}{parts.path}"
    return text if len(text) <= 200 else f"{text[:199]}…"


def _name(place: str) -> str:
    """A file's name for people to read; were it an address without its scheme, what follows could be a key."""
    return re.split("[?#]", place, maxsplit=1)[0][:200]


def _place(url: str) -> SplitResult:
    """The parts of an address over http(s), if it is written so that all programs would read it alike.

    Raises `DownloadError` where it is not; the address is not repeated, for it may hold a password.
    """
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]{0,19}):", url)
    if not scheme or scheme[1].lower() not in _PORTS:
        kind = f"is of {scheme[1].lower()}:" if scheme else "has no scheme"
        raise DownloadError(f"an address {kind}, and is not asked: use https://, or a file beside the export")
    if re.search(r"[\x00-\x1f\x7f\\\ud800-\udfff]", url) or len(url) > 8000:
        raise DownloadError("an address has a backslash or control characters in it, or is too long: write it anew")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise DownloadError("an address has a host or port that cannot be: write it anew") from None
    if "@" in parts.netloc:
        raise DownloadError("an address has a user or password in it, and is not asked: leave them out")
    host = (parts.hostname or "").removesuffix(".")
    if parts.netloc.startswith("["):
        sound = _is_address(host, ipaddress.IPv6Address) and "%" not in host
    elif _NUMBER.fullmatch(host.rpartition(".")[2]):
        # Other programs read 2130706433, 0x7f.1 and 0177.0.0.1 as addresses too; here there is one form.
        sound = _is_address(host, ipaddress.IPv4Address)
    else:
        sound = bool(_NAME.fullmatch(host))
    if not sound or port == 0:
        raise DownloadError("an address has a host that is not written in the usual form: use its name in ASCII")
    return parts


def _is_address(text: str, kind: Callable[[str], Address]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _origin(parts: SplitResult) -> tuple[str, str, int]:
    """Scheme, host and port; an IPv6 host in brackets, a name without the dot at its end."""
    host = (parts.hostname or "").removesuffix(".")
    return parts.scheme, f"[{ipaddress.IPv6Address(host)}]" if ":" in host else host, parts.port or _PORTS[parts.scheme]


def _is_upload(path: str, base: str) -> bool:
    """Whether `path` is one at which Label Studio keeps pictures; whoever writes a task may name others of it."""
    inside = path.removeprefix(base.rstrip("/"))
    kept = r"/(data|storage-data|(tasks|projects)/[0-9]+/(resolve|presign))/"
    return bool(re.match(kept, inside)) and not re.search(r"\.\.|%2e", path.lower())


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "it wants a key, or its signature has run out: export again"
    return "check the address"


def check_image(content: bytes, what: str) -> DownloadedImage:
    """`content` as a picture that decodes. Raises `DownloadError` naming `what` where it does not."""
    from PIL import Image

    if not content:
        raise DownloadError(f"{what} is empty")
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|head|body)", content[:200], re.IGNORECASE):
        raise DownloadError(f"{what} is HTML, not a picture: give the address of the picture itself")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise DownloadError(f"{what} claims {file.width}×{file.height} pixels: too large")
            file.load()
            kind = (file.format or "").lower()
            width, height = file.size
    except DownloadError:
        raise
    # There is hardly an exception that Pillow's decoders do not raise on some broken file.
    except Exception as error:
        raise DownloadError(f"{what} is no picture that can be decoded ({type(error).__name__})") from None
    return DownloadedImage(content, hashlib.sha256(content).hexdigest(), kind, width, height)


def save_temporary(folder: Path, name: str, size: int = DownloadLimits.size) -> DownloadedImage:
    """The picture in the file `name` of `folder`, where an export lies, or below it.

    Raises `DownloadError` where that is elsewhere, a link out of the folder included, larger than `size` bytes, not
    there or no picture.
    """
    parts = PurePosixPath(name)
    what = f"file {_name(name)!r}"
    try:
        file = Path(folder, parts).resolve()
        inside = file.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a loop of links, a NUL in the name
        inside = False
    if not inside or parts.is_absolute() or ".." in parts.parts or "\\" in name:
        raise DownloadError(f"{what} leads out of the export's folder: put it there and name it from there")
    try:
        if not file.is_file():  # a pipe would wait for ever
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with file.open("rb") as opened:
            content = opened.read(size + 1)
    except OSError as error:
        raise DownloadError(f"{what} cannot be read: {error.strerror}: put it beside the export") from None
    if len(content) > size:
        raise DownloadError(f"{what} is larger than {size} bytes: make it smaller")
    return check_image(content, what)


def download_images(
    store: ImageStore,
    into: str,
    places: Iterable[str],
    downloads: ImageDownloader,
    folder: Path | None,
    threads: int = 4,
) -> dict[str, tuple[str, str] | FlexyError]:
    """Path and SHA-256, in `store`, of the picture at each of `places`, or why it could not be brought there.

    A place is an address, or a file in `folder`, where there is one. Each distinct place is asked once; a picture is
    stored as it came, under `into`, by its content.
    """

    def one(place: str) -> tuple[str, str] | FlexyError:
        try:
            if downloads.is_address(place):
                found = downloads.get(place)
            elif place.startswith("/data/"):
                raise DownloadError(f"{_name(place)!r} lies on a Label Studio: set LABEL_STUDIO_URL to where it is")
            elif folder is not None:
                found = save_temporary(folder, place, downloads.limits.size)
            else:
                raise DownloadError(f"{_name(place)!r} is no address: write https://HOST/PATH")
            path = f"{into}/{found.sha256[:32]}.{found.format}"
            return path, store.keep(path, found.content)
        except (FlexyError, UnreadableImageError) as error:
            return error

    distinct = list(dict.fromkeys(places))
    with ThreadPoolExecutor(max_workers=threads) as pool:
        return dict(zip(distinct, pool.map(one, distinct), strict=True))
