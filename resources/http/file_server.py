"""Serves the finished tables, CSVs and reports of one folder: `python -m resources.http.file_server FOLDER`."""

import argparse
import html
import io
import os
import sys
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from resources.errors import BadInputError


class FileHandler(SimpleHTTPRequestHandler):
    """Serves the files that `/` lists: the regular ones of the folder itself, no link, nothing hidden, no subfolder.

    A request must name this server in its Host, against DNS rebinding: an address, localhost or one of `host_names`.
    """

    server_version, sys_version = "Flexy", ""
    timeout = 60

    def __init__(self, *arguments: Any, host_names: frozenset[str] = frozenset(), **options: Any) -> None:
        self._host_names = host_names | {"localhost"}
        super().__init__(*arguments, **options)

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Send the headers and return the body; None after an error."""
        if not self._is_own_host(self.headers.get("Host", "")):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "another host's name: open this server by its own")
            return None
        names = self._list_names()
        if urlsplit(self.path).path == "/":
            return self._send_list(names)
        located = Path(self.translate_path(self.path))
        if located.name not in names or located.parent != Path(self.directory) or self.path.endswith("/"):
            self.send_error(HTTPStatus.NOT_FOUND, "not listed at /")
            return None
        return super().send_head()

    def end_headers(self) -> None:
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def _list_names(self) -> list[str]:
        try:
            with os.scandir(self.directory) as entries:
                files = [each.name for each in entries if each.is_file(follow_symlinks=False)]
        except OSError:  # nothing is made yet
            return []
        return sorted(name for name in files if not name.startswith("."))

    def _send_list(self, names: list[str]) -> io.BytesIO:
        items = "".join(f'<li><a href="/{quote(name)}">{html.escape(name)}</a></li>' for name in names)
        title = "Flexy: report, CSV and tables"
        page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>'
        body = f"{page}<ul>{items}</ul></html>".encode("utf-8", "surrogateescape")
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return io.BytesIO(body)

    def _is_own_host(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._host_names:
                return True
            ip_address(name)
        except ValueError:
            return False
        return True


def file_server(folder: Path, host: str, port: int, host_names: frozenset[str] = frozenset()) -> ThreadingHTTPServer:
    """Return a server of `folder`, which need not exist yet; `host_names` are names it is reached by.

    Raises `BadInputError` where it cannot listen there.
    """
    handler = partial(FileHandler, directory=str(folder.absolute()), host_names=host_names | {host})
    try:
        return ThreadingHTTPServer((host, port), handler)
    except (OSError, OverflowError) as error:
        raise BadInputError(f"cannot serve {folder} on {host}:{port}: {error}: name another port") from None


def serve_files() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=3001)
    options = parser.parse_args()
    name = urlsplit(os.environ.get("FLEXY_FILES_URL", "")).hostname
    try:
        file_server(options.folder, options.host, options.port, frozenset({name} if name else ())).serve_forever()
    except BadInputError as error:
        sys.exit(f"flexy: {error}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    serve_files()
