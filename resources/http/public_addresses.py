"""The guard against server-side request forgery: which addresses may be connected to when others wrote the URL.

Stricter than `ipaddress.is_global`, which lets multicast, Azure's host and NAT64 prefixes through.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Collection, Iterable
from urllib.parse import SplitResult, urlsplit

from resources.errors import FlexyError
from resources.http.client import RetryableError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

DEFAULT_PORTS = {"http": 80, "https": 443}
"""The schemes that are allowed, and the port of each."""

# IANA's special-purpose registries: addresses that are not one machine of the public network. The last is Azure's host.
_NON_PUBLIC = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32"),
    )
)
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
# Protocol assignments with Teredo, documentation, 6to4, documentation again.
_NON_PUBLIC_V6 = tuple(ipaddress.IPv6Network(n) for n in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class AddressError(FlexyError):
    """A URL that is refused; the message holds no query and no password, because these may be secrets."""


Resolver = Callable[[str, int], Iterable[str]]
"""Return the addresses of a host name, as text. Raises `OSError`."""


def resolve_host(host: str, port: int) -> list[str]:
    """Return the addresses of a host name from the machine's own resolver."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class AddressGuard:
    """Resolves hosts, and refuses those that are not public.

    An allowed (host, port) may have any address, at that port; with None as the port, at 80 and 443. So may the
    origin `trusted`.
    """

    def __init__(
        self, allowed: Collection[tuple[str, int | None]], trusted: tuple[str, str, int] | None, resolve: Resolver
    ) -> None:
        self.allowed = frozenset(allowed)
        self.trusted = trusted
        self._resolve = resolve

    def resolve(self, parts: SplitResult) -> list[str]:
        """Return the addresses of a URL's host, all of them checked: the only ones that may be connected to.

        Raises `AddressError` for a host or port that is not allowed and a name that does not exist, `RetryableError`
        where the name cannot be resolved at the moment.
        """
        host, port = url_origin(parts)[1:]
        entries = {(host, port), (host, None)} if port in DEFAULT_PORTS.values() else {(host, port)}
        allowed = bool(self.allowed & entries) or url_origin(parts) == self.trusted
        if port != DEFAULT_PORTS[parts.scheme] and not allowed:
            remedy = f"allow it with FLEXY_ALLOWED_HOSTS={host}:{port}"
            raise AddressError(f"uses port {port} of {host}, which is not allowed: {remedy}")
        try:
            addresses = [ipaddress.ip_address(host.strip("[]"))]
        except ValueError:
            addresses = self._resolve_name(host, port)
        if not allowed and not all(map(is_public, addresses)):
            cause = f"leads to {host} inside this machine or its network, which is not allowed"
            raise AddressError(f"{cause}: allow it with FLEXY_ALLOWED_HOSTS={host}")
        return [str(address) for address in dict.fromkeys(addresses)]

    def _resolve_name(self, host: str, port: int) -> list[IpAddress]:
        try:
            return [ipaddress.ip_address(address) for address in self._resolve(host, port)]
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise RetryableError(f"cannot be reached: the host name {host} cannot be resolved now") from None
            raise AddressError(f"cannot be reached: the host {host} does not exist: check the URL") from None
        except (OSError, ValueError):
            raise AddressError(f"cannot be reached: the host name {host} cannot be resolved: check the URL") from None


def is_public(address: IpAddress) -> bool:
    """Return whether an address is one machine of the public network, in whichever form it is written."""
    if isinstance(address, ipaddress.IPv6Address):
        # Both lead to the IPv4 address in their last 32 bits.
        if address.ipv4_mapped or address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        return address in _PUBLIC_V6 and not any(address in network for network in _NON_PUBLIC_V6)
    return not any(address in network for network in _NON_PUBLIC)


def masked_url(url: str) -> str:
    """Return a URL for messages: without query, fragment, user and password, and at most 200 characters long."""
    try:
        parts = parse_url(url)
    except AddressError:
        # Where the parts are ambiguous, a password may be anywhere.
        return "the URL"
    text = f"{parts.scheme}://{url_origin(parts)[1]}{f':{parts.port}' if parts.port else ''}{parts.path}"
    return text if len(text) <= 200 else f"{text[:199]}…"


def parse_url(url: str) -> SplitResult:
    """Return the parts of an http(s) URL that is written so that all programs read it the same way.

    Raises `AddressError` for any other; the URL is not repeated, because it may hold a password.
    """
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]{0,19}):", url)
    if not scheme or scheme[1].lower() not in DEFAULT_PORTS:
        cause = f"the scheme {scheme[1].lower()}: is not allowed" if scheme else "it has no scheme"
        raise AddressError(f"invalid URL: {cause}: use https://, or a file beside the export")
    if re.search(r"[\x00-\x1f\x7f\\\ud800-\udfff]", url) or len(url) > 8000:
        raise AddressError("invalid URL: it has a backslash or control characters in it, or is too long: correct it")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise AddressError("invalid URL: its host or port is malformed: correct it") from None
    if "@" in parts.netloc:
        raise AddressError("invalid URL: it has a user or password in it: remove them")
    host = (parts.hostname or "").removesuffix(".")
    if parts.netloc.startswith("["):
        canonical = _is_address(host, ipaddress.IPv6Address) and "%" not in host
    elif _NUMBER.fullmatch(host.rpartition(".")[2]):
        # Other programs read 2130706433, 0x7f.1 and 0177.0.0.1 as addresses too; here there is one form.
        canonical = _is_address(host, ipaddress.IPv4Address)
    else:
        canonical = bool(_HOST_NAME.fullmatch(host))
    if not canonical or port == 0:
        raise AddressError("invalid URL: its host or port is not in the usual form: write the host name in ASCII")
    return parts


def _is_address(text: str, kind: Callable[[str], IpAddress]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def url_origin(parts: SplitResult) -> tuple[str, str, int]:
    """Return scheme, host and port; an IPv6 host in brackets, a host name without the dot at its end."""
    host = (parts.hostname or "").removesuffix(".")
    host = f"[{ipaddress.IPv6Address(host)}]" if ":" in host else host
    return parts.scheme, host, parts.port or DEFAULT_PORTS[parts.scheme]
