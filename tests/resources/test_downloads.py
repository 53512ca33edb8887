"""Pictures come from where they may come from, whole and as pictures; what aims inward is refused, however written."""

from __future__ import annotations

import gzip
import hashlib
import io
import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resources.errors import FlexyError
from resources.http.client import HttpLimits
from resources.http.downloads import (
    DownloadedImage,
    DownloadError,
    ImageDownloader,
    decode_image,
    download_images,
    read_image_file,
)
from resources.http.public_addresses import is_public, masked_url, resolve_host
from resources.images import MAX_PIXELS, ImageStore

QUICK = HttpLimits(timeout=2, idle_timeout=0.5, attempts=3, backoff=0.02, longest_wait=1, answer_bytes=100_000)
SECRET = "opensesame"


def encoded(format: str = "PNG", seed: int = 0, side: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


PNG = encoded()


class Site(ThreadingHTTPServer):
    """A web server that answers a path as it was told to, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        super().__init__(address, Handler)
        self.pages: dict[str, Callable[[Handler], None]] = {"/a.png": gives(PNG)}
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def where(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def url(self, path: str = "/a.png") -> str:
        return f"http://{self.where}{path}"

    def handle_error(self, *_: Any) -> None:
        """Silence: who does not wait for an answer leaves a broken pipe."""


class Handler(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        self.server.pages[self.path.partition("?")[0]](self)

    def answer(self, content: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)


def gives(content: bytes = b"", status: int = 200, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(content, status, **headers)


def redirects(to: str) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(status=302, Location=to.replace("{where}", handler.server.where))


def in_turn(*answers: Callable[[Handler], None]) -> Callable[[Handler], None]:
    left = list(answers)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(65536))


def never_stops_after_a_packed_picture(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()
    handler.wfile.write(gzip.compress(PNG))
    while True:
        handler.wfile.write(bytes(65536))


def drips(handler: Handler) -> None:
    """A byte now and then, each in time: no read ever times out."""
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.1)


def drips_a_body(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for byte in PNG * 100:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.1)


def breaks_off(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(PNG)))
    handler.end_headers()
    handler.wfile.write(PNG[: len(PNG) // 2])


def breaks_off_in_chunks(handler: Handler) -> None:
    half = PNG[: len(PNG) // 2]
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(half), half))


def in_chunks(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(PNG), PNG))


@pytest.fixture
def site() -> Iterator[Site]:
    with running(Site()) as site:
        yield site


class running:  # noqa: N801
    """A site that answers inside the block."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.thread = threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Site:
        self.thread.start()
        return self.site

    def __exit__(self, *_: Any) -> None:
        self.site.shutdown()
        self.site.server_close()
        self.thread.join()


def downloads(site: Site, **settings: Any) -> ImageDownloader:
    """Downloads that may ask `site`."""
    return ImageDownloader(**{"allowed": {("127.0.0.1", site.server_port)}, "limits": QUICK} | settings)


def refusal(get: Callable[[], Any]) -> str:
    with pytest.raises(DownloadError) as caught:
        get()
    message = str(caught.value)
    assert "\n" not in message and SECRET not in message
    return message


# What comes


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_a_picture_comes_as_it_is(site: Site, format: str) -> None:
    content = encoded(format)
    site.pages["/a"] = gives(content)
    found = downloads(site).download(site.url("/a?x=1#part"))
    assert found == DownloadedImage(content, hashlib.sha256(content).hexdigest(), format.lower(), 24, 24)
    (path, headers), *more = site.asked
    assert (path, more) == ("/a?x=1", [])
    assert headers["host"] == site.where
    assert "authorization" not in headers and "cookie" not in headers


@pytest.mark.parametrize(
    "page",
    [
        in_chunks,
        gives(gzip.compress(PNG), Content_Encoding="gzip"),
        redirects("a.png"),
        in_turn(redirects("?again"), redirects("//{where}/x.png"), redirects("http://{where}/a.png")),
    ],
    ids=["in chunks", "packed", "redirected", "redirected thrice"],
)
def test_a_picture_comes_whichever_way_it_is_sent(site: Site, page: Callable[[Handler], None]) -> None:
    site.pages["/x.png"] = page
    assert downloads(site).download(site.url("/x.png")).content == PNG


def test_names_and_spaces_are_sent_as_addresses_want_them(site: Site) -> None:
    site.pages["/f%C3%A9%20b%2Fc.png"] = gives(PNG)
    assert downloads(site).download(site.url("/fé b%2Fc.png?q=ö&s=a%2Bb"))
    assert site.asked[0][0] == "/f%C3%A9%20b%2Fc.png?q=%C3%B6&s=a%2Bb"


def test_proxies_of_the_environment_are_not_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert downloads(site).download(site.url())


# What is refused

INWARD = [
    "http://127.0.0.1/",
    "http://127.0.0.1:80/a.png",
    "http://127.1/",
    "http://127.0.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://127.0.0.1./",
    "http://127.000.000.001/",
    "http://0/",
    "http://0.0.0.0/",
    "http://localhost/",
    "http://localhost./",
    "http://LOCALHOST/",
    "http://[::1]/",
    "http://[::]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    "http://[2002:7f00:0001::]/",
    "http://[2002:a00:1::1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::7f00:1]/",
    "http://[2001:0:53aa:64c:0:fffe:80ff:fffe]/",
    "http://[fe80::1]/",
    "http://[fe80::1%25lo]/",
    "http://[::1%25lo]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[::1/",
    "http://::1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.1.1/",
    "http://168.63.129.16/",
    "http://100.100.100.200/",
    "http://100.64.0.1/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://192.0.0.1/",
    "http://192.0.2.1/",
    "http://192.88.99.1/",
    "http://198.18.0.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    f"http://good.example:{SECRET}@127.0.0.1/",
    f"http://{SECRET}@public.example/a.png",
    f"http://{SECRET}%40public.example/a.png",
    "http://127.0.0.1\\@public.example/",
    "http://public.example\\@127.0.0.1/",
    "http:\\\\127.0.0.1\\",
    "http:/127.0.0.1/",
    "http:127.0.0.1/",
    "http:///127.0.0.1/",
    "//127.0.0.1/",
    "http://127.0.0.1\t/",
    "http://127.0.\n0.1/",
    "http://127.0.0.1 /",
    "http://public.example/\ud800",
    "http://１２７.0.0.1/",
    "http://127。0。0。1/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/",
    "http://①②⑦.0.0.1/",
    "http://127.0.0.1%00.public.example/",
    "http://127.0.0.1%2epublic.example/",
    "http://public.example:22/",
    "http://public.example:0/",
    "http://public.example:99999/",
    "http://public.example:８０/",
    "http://public..example/",
    "http://inward.example/",
    "http://both.example/",
    "http://mapped.example/",
    "http://linked.example/",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "FILE:/etc/passwd",
    "ftp://public.example/a.png",
    "gopher://127.0.0.1:70/_GET",
    "dict://127.0.0.1:11211/stat",
    "data:image/png;base64,iVBORw0KGgo=",
    "jar:http://127.0.0.1!/",
    "javascript:alert(1)",
    "s3://bucket/a.png",
    "C:\\pictures\\a.png",
    "",
    " http://127.0.0.1/",
    "a.png",
]

NAMES = {
    "public.example": ["93.184.215.14"],
    "inward.example": ["10.1.2.3"],
    "both.example": ["93.184.215.14", "127.0.0.1"],
    "mapped.example": ["::ffff:192.168.0.1"],
    "linked.example": ["fe80::1%eth0"],
}


def looked_up(host: str, port: int) -> list[str]:
    """Names of the tests' own; what is not among them the real resolver knows."""
    return NAMES.get(host) or resolve_host(host, port)


@pytest.mark.parametrize("url", INWARD)
def test_nothing_that_aims_at_this_machine_or_its_network_is_asked(url: str) -> None:
    asking = ImageDownloader(limits=QUICK, resolve=looked_up)
    words = refusal(lambda: asking.download(url))
    assert any(
        said in words
        for said in ("not allowed", "not in the usual form", "correct it", "has no scheme", "a user or password")
    ), words


@pytest.mark.parametrize(
    "host",
    ["134744072", "0x08080808", "010.8.8.8", "8.8.2056", "8.8.8.8.8", "8.8.8.08", "[2606:4700::1%25lo]", "[v1.a]"],
)
def test_not_even_a_public_address_is_asked_in_an_odd_form(host: str) -> None:
    """Who checks and who connects may read it differently."""
    words = refusal(lambda: ImageDownloader(limits=QUICK).download(f"http://{host}/a.png"))
    assert words == "invalid URL: its host or port is not in the usual form: write the host name in ASCII"


def test_an_inward_answer_is_refused_and_not_only_unreachable(site: Site) -> None:
    """Each of these would reach the site, were it asked."""
    port = site.server_port
    hosts = ["127.1", "2130706433", "0x7f.1", "0177.0.0.1", "localhost", "localhost.", "[::ffff:127.0.0.1]", "0.0.0.0"]
    asking = downloads(site)
    for host in hosts:
        assert refusal(lambda url=f"http://{host}:{port}/a.png": asking.download(url))
    assert site.asked == []


@pytest.mark.parametrize("url", [url for url in INWARD if url.strip() == url and ":" in url and url.isprintable()])
def test_nobody_is_redirected_inward(site: Site, url: str) -> None:
    site.pages["/x.png"] = redirects(url.encode().decode("latin-1"))
    words = refusal(lambda: downloads(site, resolve=looked_up).download(site.url(f"/x.png?key={SECRET}")))
    # What has no scheme is a path on the same site, which is not there.
    assert words.startswith(f"{site.url('/x.png')}")
    assert all(path.startswith("/x.png") or not path.endswith("a.png") for path, _ in site.asked)


def test_a_redirect_to_an_inward_site_never_arrives(site: Site) -> None:
    with running(Site()) as inner:
        site.pages["/x.png"] = redirects(inner.url(f"/a.png?token={SECRET}"))
        words = refusal(lambda: downloads(site).download(site.url("/x.png")))
        assert inner.asked == []
        assert words == (
            f"{site.url('/x.png')}, redirected to {inner.url()}, uses port {inner.server_port} of 127.0.0.1,"
            f" which is not allowed: allow it with FLEXY_ALLOWED_HOSTS=127.0.0.1:{inner.server_port}"
        )


def test_what_was_checked_is_what_is_asked(site: Site) -> None:
    """A name that leads elsewhere when it is looked up again is not looked up again."""
    answers = iter(["127.0.0.1", "93.184.215.14", "93.184.215.14"])
    asked = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return [next(answers)]

    allowed = {("pictures.example", site.server_port)}
    url = f"http://pictures.example:{site.server_port}/a.png"
    assert ImageDownloader(allowed=allowed, limits=QUICK, resolve=rebinding).download(url).content == PNG
    assert asked == ["pictures.example"]
    assert site.asked[0][1]["host"] == f"pictures.example:{site.server_port}"


def test_a_host_is_allowed_at_its_port_and_no_other(site: Site) -> None:
    for allowed in ({("127.0.0.1", None)}, {("127.0.0.1", 80)}, {("localhost", site.server_port)}, set()):
        assert "allow it with FLEXY_ALLOWED_HOSTS=127.0.0.1:" in refusal(
            lambda allowed=allowed: downloads(site, allowed=allowed).download(site.url())
        )
    inward = ImageDownloader(limits=QUICK, resolve=looked_up)
    assert refusal(lambda: inward.download("https://inward.example/a.png")) == (
        "https://inward.example/a.png leads to inward.example inside this machine or its network,"
        " which is not allowed: allow it with FLEXY_ALLOWED_HOSTS=inward.example"
    )
    assert site.asked == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("8.8.8.8", True),
        ("172.32.0.1", True),
        ("100.128.0.1", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::8.8.8.8", True),
        ("::8.8.8.8", False),
        ("2002:808:808::1", False),
    ],
)
def test_public_is_what_is_one_machine_of_the_public_network(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_tls_is_checked_against_the_name_and_not_the_address(site: Site, tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=pictures.example"
    )
    more = ["-addext", "subjectAltName=DNS:pictures.example", "-keyout", key, "-out", certificate]
    subprocess.run([*make.split(), *more], check=True, capture_output=True)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    site.socket = serving.wrap_socket(site.socket, server_side=True)
    context = ssl.create_default_context(cafile=str(certificate))
    port = site.server_port
    allowed = {("pictures.example", port), ("others.example", port)}
    settings = {"allowed": allowed, "limits": QUICK, "resolve": lambda *_: ["127.0.0.1"]}
    asking = ImageDownloader(tls_context=context, **settings)
    assert asking.download(f"https://pictures.example:{port}/a.png").content == PNG
    assert asking.download(f"https://pictures.example.:{port}/a.png").content == PNG
    words = refusal(lambda: asking.download(f"https://others.example:{port}/a.png"))
    assert "has no valid certificate: Hostname mismatch" in words
    words = refusal(lambda: ImageDownloader(**settings).download(f"https://pictures.example:{port}/a.png"))
    assert "has no valid certificate: self-signed certificate" in words
    assert len(site.asked) == 2


# What does not come


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (gives(status=404), "is answered with status 404: check the URL"),
        (gives(status=403), "status 403: it needs a key, or its signature has expired"),
        (gives(status=400), "is answered with status 400"),
        (gives(status=304), "is answered with status 304"),
        (gives(b""), "is empty"),
        (gives(status=204), "is answered with status 204"),
        (gives(b"\n <!DOCTYPE html><html>sign in</html>"), "is HTML, not an image"),
        (gives(b"<HTML>no</HTML>", Content_Type="image/png"), "is HTML, not an image"),
        (gives(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "cannot be decoded"),
        (gives(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "cannot be decoded"),
        (gives(PNG[:-200]), "cannot be decoded"),
        (gives(encoded("JPEG")[:-200]), "cannot be decoded"),
        (gives(encoded("PPM")), "cannot be decoded"),
        (gives(bytes(100_001)), "is larger than 100000 bytes: make it smaller"),
        (endless, "is larger than 100000 bytes"),
        (gives(b"x", Content_Length="5000000000"), "is larger than 100000 bytes"),
        (gives(gzip.compress(bytes(50_000_000)), Content_Encoding="gzip"), "is larger than 100000 bytes"),
        (never_stops_after_a_packed_picture, "is larger than 100000 bytes"),
        (gives(b"not packed", Content_Encoding="gzip"), "cannot be decompressed"),
        (gives(PNG, Content_Encoding="br"), "has the content encoding 'br'"),
        (redirects("/x.png"), "redirects more than 5 times"),
        (redirects("http://[::1"), "redirects to an invalid URL"),
        (redirects("file:///etc/passwd"), ": redirected to an invalid URL: the scheme file: is not allowed"),
    ],
)
def test_what_will_not_come_is_asked_for_once(site: Site, page: Callable[[Handler], None], reason: str) -> None:
    site.pages["/x.png"] = page
    words = refusal(lambda: downloads(site).download(site.url(f"/x.png?X-Signature={SECRET}#{SECRET}")))
    assert words.startswith(site.url("/x.png")) and reason in words
    assert len(site.asked) == (6 if "5 times" in reason else 1)


def test_a_bomb_is_not_unpacked_in_memory(site: Site) -> None:
    import tracemalloc

    site.pages["/x.png"] = gives(gzip.compress(bytes(200_000_000)), Content_Encoding="gzip")
    asking = downloads(site, limits=HttpLimits(answer_bytes=1_000_000))
    tracemalloc.start()
    try:
        refusal(lambda: asking.download(site.url("/x.png")))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_small_file_that_claims_a_huge_picture_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("1", (8100, 8100)).save(buffer, "PNG")
    assert MAX_PIXELS < 8100**2
    assert refusal(lambda: decode_image(buffer.getvalue(), "x")) == "x claims 8100×8100 pixels: make it smaller"


@pytest.mark.parametrize("passing", [gives(status=429), gives(status=500), gives(status=503, Retry_After="0")])
def test_what_may_pass_is_asked_for_again(site: Site, passing: Callable[[Handler], None]) -> None:
    site.pages["/x.png"] = in_turn(passing, breaks_off, gives(PNG))
    assert downloads(site).download(site.url("/x.png")).content == PNG
    assert len(site.asked) == 3


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (gives(status=500), "is answered with status 500"),
        (gives(status=504), "is answered with status 504"),
        (breaks_off, "broke off"),
        (breaks_off_in_chunks, "broke off"),
        (gives(gzip.compress(PNG)[:-300], Content_Encoding="gzip"), "broke off"),
        (lambda handler: handler.connection.close(), "cannot be reached, or the connection broke off"),
        (lambda handler: handler.wfile.write(b"hello\r\n\r\n"), "cannot be reached, or the connection broke off"),
    ],
)
def test_what_does_not_pass_is_given_up_on(site: Site, page: Callable[[Handler], None], reason: str) -> None:
    site.pages["/x.png"] = page
    words = refusal(lambda: downloads(site).download(site.url(f"/x.png?{SECRET}")))
    assert words.startswith(f"{site.url('/x.png')} ") and reason in words
    assert words.endswith("tried 3 times: run again later")
    assert len(site.asked) == 3


@pytest.mark.parametrize("page", [drips, drips_a_body], ids=["headers", "body"])
def test_a_slow_server_has_so_long_and_no_longer(site: Site, page: Callable[[Handler], None]) -> None:
    site.pages["/x.png"] = page
    began = time.monotonic()
    words = refusal(
        lambda: downloads(site, limits=HttpLimits(timeout=0.5, idle_timeout=0.4, attempts=1)).download(
            site.url("/x.png")
        )
    )
    assert "did not arrive within 0.5 s" in words
    assert time.monotonic() - began < 5


def test_a_silent_server_is_not_waited_for() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        asking = ImageDownloader(allowed={("127.0.0.1", port)}, limits=HttpLimits(idle_timeout=0.2, attempts=1))
        assert "sent nothing for 0.2 s" in refusal(lambda: asking.download(f"http://127.0.0.1:{port}/"))
        assert "sent nothing for 0.2 s" in refusal(lambda: asking.download(f"https://127.0.0.1:{port}/"))


def test_a_server_that_asks_to_wait_is_waited_for_but_not_for_long(site: Site) -> None:
    site.pages["/x.png"] = in_turn(gives(status=429, Retry_After="0.4"), gives(PNG))
    began = time.monotonic()
    assert downloads(site).download(site.url("/x.png"))
    assert time.monotonic() - began > 0.4
    site.pages["/x.png"] = gives(status=429, Retry_After="3600")
    assert "status 429 and asks to wait 3600 s, tried once" in refusal(
        lambda: downloads(site).download(site.url("/x.png"))
    )


def test_a_name_that_nobody_has_is_said_so() -> None:
    def nobody(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    words = refusal(
        lambda: ImageDownloader(limits=QUICK, resolve=nobody).download(f"https://nobody.example/a?{SECRET}")
    )
    assert words == "https://nobody.example/a cannot be reached: the host nobody.example does not exist: check the URL"


def test_an_address_that_no_server_would_take_is_refused() -> None:
    assert "too long" in refusal(lambda: ImageDownloader().download("https://public.example/" + "a" * 8000))


def test_an_address_is_shown_without_what_may_be_a_key() -> None:
    assert (
        masked_url(f"HTTPS://Public.Example:8443/a/b.png?X={SECRET}#{SECRET}") == "https://public.example:8443/a/b.png"
    )
    assert masked_url("http://h/" + "a" * 300) == "http://h/" + "a" * 190 + "…"
    for url in (f"http://u:{SECRET}@h/", f"http://u:{SECRET}\\@h/", f"//{SECRET}", f"ftp://{SECRET}@h/", f"{SECRET}"):
        assert masked_url(url) == "the URL"


# Label Studio


@dataclass
class Studio:
    url: str

    def authorization(self) -> str:
        return f"Token {SECRET}"


def test_label_studio_alone_is_shown_the_token_and_only_for_pictures(site: Site) -> None:
    with running(Site()) as other:
        upload = "/data/upload/1/a.png"
        dotted = ("/data/../api/users", "/data/%2E%2e/api/users")
        pages = (upload, f"/ls{upload}", "/api/users", *dotted, "/tasks/1/data/x")
        for page in pages:
            site.pages[page] = gives(PNG)
        site.pages["/tasks/1/resolve/"] = redirects(other.url("/a.png"))
        other.pages["/back.png"] = redirects(site.url("/data/upload/1/a.png"))
        asking = downloads(site, server=Studio(site.url("")), allowed={("127.0.0.1", other.server_port)})
        for place, told in (
            ("/data/upload/1/a.png", True),
            (site.url("/data/upload/1/a.png"), True),
            (site.url("/api/users"), False),
            ("/data/../api/users", False),
            ("/tasks/1/data/x", False),
            (site.url("/data/../api/users"), False),
            (site.url("/data/%2E%2e/api/users"), False),
            ("/tasks/1/resolve/?fileuri=x", True),
            (other.url("/back.png"), False),
        ):
            site.asked.clear()
            assert asking.download(place).content == PNG
            ((_, headers),) = site.asked
            assert headers.get("authorization") == (f"Token {SECRET}" if told else None), place
        assert other.asked and all("authorization" not in headers for _, headers in other.asked)
        below = downloads(site, server=Studio(site.url("/ls/")))
        assert below.download("/ls/data/upload/1/a.png")
        assert site.asked[-1][1]["authorization"] == f"Token {SECRET}"


def test_a_path_on_label_studio_is_no_address_where_there_is_none(site: Site) -> None:
    assert downloads(site, server=Studio(site.url(""))).is_url("/data/upload/1/a.png")
    assert not downloads(site).is_url("/data/upload/1/a.png")
    for place in ("http://h/", "file:a.png", "//h/a.png", "C:\\a.png", "\\\\h\\a.png", "data:x"):
        assert downloads(site).is_url(place)
    for place in ("a.png", "more/a.png", "", "../a.png", "a b.png"):
        assert not downloads(site).is_url(place)


# Files beside an export


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    (folder / "more").mkdir(parents=True)
    for file in (folder / "a.png", folder / "more" / "é b.png", tmp_path / "outside.png"):
        file.write_bytes(PNG)
    return folder


def test_a_file_beside_the_export_is_read(folder: Path) -> None:
    (folder / "link.png").symlink_to("a.png")
    for name in ("a.png", "./a.png", "more/é b.png", "link.png"):
        assert read_image_file(folder, name).content == PNG


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../outside.png", "leads out of the export's folder"),
        ("more/../../outside.png", "leads out"),
        ("more/../a.png", "leads out"),
        ("/etc/passwd", "leads out"),
        ("out.png", "leads out"),
        ("out/outside.png", "leads out"),
        ("loop.png", "leads out"),
        ("more\\a.png", "leads out"),
        ("a\0b", "leads out"),
        ("none.png", "cannot be read: No such file"),
        ("more", "cannot be read: No such file"),
        ("pipe", "cannot be read: No such file"),
        ("x" * 300, "cannot be read: File name too long"),
        ("page.png", "is HTML"),
        ("large.png", "is larger than 100000 bytes"),
    ],
)
def test_no_other_file_is_read(folder: Path, name: str, reason: str) -> None:
    (folder / "out.png").symlink_to(folder.parent / "outside.png")
    (folder / "out").symlink_to(folder.parent)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "page.png").write_bytes(b"<html>")
    (folder / "large.png").write_bytes(bytes(100_001))
    os.mkfifo(folder / "pipe")
    assert reason in refusal(lambda: read_image_file(folder, name, limit=100_000))


# Many


def test_each_place_is_asked_once_and_what_fails_leaves_the_rest(site: Site, folder: Path, tmp_path: Path) -> None:
    for i in range(6):
        site.pages[f"/{i}"] = gives(encoded(seed=i % 3))
    store = ImageStore(str(tmp_path / "images"))
    places = [site.url(f"/{i}") for i in range(6)] * 3 + ["a.png", "../outside.png", "file:///etc/passwd"]
    asking = downloads(site)
    found = download_images(store, "labels/sources", places, asking, folder)
    assert list(found) == list(dict.fromkeys(places))
    assert sorted(path for path, _ in site.asked) == [f"/{i}" for i in range(6)]
    for i in range(6):
        path, sha256 = found[site.url(f"/{i}")]
        assert sha256 == hashlib.sha256(encoded(seed=i % 3)).hexdigest()
        assert path == f"labels/sources/{sha256[:32]}.png"
        store.verify(path, sha256)
    assert len(list(Path(store.root, "labels/sources").iterdir())) == 3
    failed = {place: error for place, error in found.items() if isinstance(error, FlexyError)}
    assert list(failed) == ["../outside.png", "file:///etc/passwd"]
    assert download_images(store, "labels/sources", places, asking, folder).keys() == found.keys()
    (unknown,) = download_images(store, "labels/sources", ["/data/upload/1/a.png"], asking, folder).values()
    assert str(unknown) == "'/data/upload/1/a.png' is a path on a Label Studio server: set LABEL_STUDIO_URL to its URL"
    (alone,) = download_images(store, "labels/sources", ["a.png"], asking, None).values()
    assert str(alone) == "'a.png' is not a URL: write https://HOST/PATH"


def test_a_stored_picture_keeps_its_transparency(site: Site, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 4), 90, np.uint8), "RGBA").save(buffer, "PNG")
    site.pages["/mask"] = gives(buffer.getvalue())
    store = ImageStore(str(tmp_path))
    (found,) = download_images(store, "m", [site.url("/mask")], downloads(site), None).values()
    assert not isinstance(found, FlexyError)
    assert store.read_as_is(*found).getpixel((0, 0)) == (90, 90, 90, 90)
    assert store.read(*found).mode == "RGB"
