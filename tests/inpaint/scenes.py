"""Label Studio tasks whose pictures lie on a small web server of the test's own."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from PIL import Image

SIZE = 40, 24
SIGNATURE = "0123opensesame4567"


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def noise(seed: int, size: tuple[int, int] = SIZE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return encoded(Image.fromarray(pixels))


def masked(box: tuple[int, int, int, int] | None = (8, 4, 20, 16), size: tuple[int, int] = SIZE) -> bytes:
    picture = Image.new("L", size)
    if box:
        picture.paste(255, box)
    return encoded(picture)


class Site(ThreadingHTTPServer):
    """Serves pictures by path, each after `seconds`, and remembers what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pictures: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.seconds = 0.0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def url(self, path: str, content: bytes, signature: str = SIGNATURE) -> str:
        """Where a picture is from now on, with a signature as a bucket would ask for."""
        self.pictures[path] = content
        return f"http://{self.host}{path}?v=1&X-Amz-Expires=600&X-Amz-Signature={signature}"

    def handle_error(self, *_: Any) -> None:
        """Silence: who is killed leaves a broken pipe."""


class _Handler(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked[path] += 1
        time.sleep(self.server.seconds)
        content = self.server.pictures.get(path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")


@contextmanager
def serving() -> Iterator[Site]:
    site = Site()
    thread = Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.shutdown()
        site.server_close()
        thread.join()


def data(site: Site, number: int, signature: str = SIGNATURE, **changes: Any) -> dict[str, Any]:
    """A task's data: a scene and a mask of its own, and the character that all share."""
    fields = {
        "id": str(7000 + number),
        "character_id": "CHA-1",
        "character_name": "Ada é",
        "prompt": "Ada in a garden",
        "init_image_url": site.url(f"/scene{number}.png", noise(number), signature),
        "mask_image_url": site.url(f"/mask{number}.png", masked((4, 4, 6 + number % 30, 12)), signature),
        "character_image_url": site.url("/ada.png", noise(10**6), signature),
    } | changes
    return {name: value for name, value in fields.items() if value is not None}


def entry(
    fields: dict[str, Any], annotations: Sequence[dict[str, Any]] = (), project: int | None = 3
) -> dict[str, Any]:
    number = 100 + int(fields["id"])
    return {"id": number, "data": fields, "annotations": list(annotations), "predictions": [], "project": project}


def chosen(*choices: str, **changes: Any) -> dict[str, Any]:
    """An annotation with a verdict."""
    result = {"from_name": "issues", "to_name": "final", "type": "choices", "value": {"choices": list(choices)}}
    return {"id": 1, "result": [result], "was_cancelled": False, "updated_at": "2025-10-01T10:00:00Z"} | changes


def write(file: Path, entries: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(entries))
    return file
