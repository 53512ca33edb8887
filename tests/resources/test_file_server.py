"""The file server of `make ui` serves what it lists, follows no link, and answers to its own name alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread

import pytest

from resources.errors import BadInputError
from resources.http.file_server import file_server


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    folder = tmp_path / "assets"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (folder / "report <1>.html").write_text("report")
    for name in ("index.html", ".hidden", "sub/inner"):
        (folder / name).write_text("page" if name == "index.html" else "secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "loop").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    with file_server(folder, "127.0.0.1", 0, frozenset({"flexy.example"})) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def get(port: int, path: str, host: str = "127.0.0.1:1") -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_what_is_listed_is_served_and_nothing_else(port: int) -> None:
    status, listing = get(port, "/")
    assert status == 200 and listing.count("<li>") == 2
    assert 'href="/report%20%3C1%3E.html">report &lt;1&gt;.html<' in listing and "/index.html" in listing
    assert get(port, "/report%20%3C1%3E.html?x=1") == (200, "report") and get(port, "/index.html") == (200, "page")
    others = ["/link", "/loop/secret", "/loop/", "/pipe", "/.hidden", "/sub", "/sub/", "/sub/inner", "/index.html/"]
    for path in [*others, "/../secret", "/%2e%2e/secret", "//etc/passwd", "/no", "/%00", "/loop/assets/index.html"]:
        status, text = get(port, path)
        assert status == 404 and "secret" not in text, path


@pytest.mark.parametrize("host", ["localhost:3001", "127.0.0.1", "[::1]:3001", "10.0.0.7", "flexy.example"])
def test_its_own_names_and_addresses_are_answered(port: int, host: str) -> None:
    assert get(port, "/index.html", host) == (200, "page")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "localhost.evil"])
def test_another_name_is_refused(port: int, host: str) -> None:
    assert get(port, "/index.html", host)[0] == 421


def test_a_port_in_use_is_named(port: int, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=f"on 127.0.0.1:{port}: .*name another port"):
        file_server(tmp_path, "127.0.0.1", port)
