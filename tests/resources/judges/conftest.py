"""A service of the tests' own, which speaks both protocols, errs as it is told, and remembers what it was sent."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resources.judges import Judge, Question
from resources.judges.client import Client, Limits
from resources.judges.gemini import Gemini
from resources.judges.moondream import Moondream

KEY = "verySecretKey-0123456789"
GOOD = '{"reasoning": "as it was", "likeness": 7.5, "sharpness": 4}'


@dataclass
class Reply:
    """How the service answers: with `says`, in its protocol's form, or with `body` as it is."""

    says: str = GOOD
    body: bytes | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0
    drips: bool = False
    breaks_off: bool = False

    @classmethod
    def json(cls, document: Any, status: int = 200, **headers: str) -> Reply:
        return cls(body=json.dumps(document).encode(), status=status, headers=headers)


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    document: Any
    at: float


class Service(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Reply] = []
        """The next replies; when there are none left, all is well."""
        self.requests: list[Request] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """Silence: who does not wait for an answer leaves a broken pipe."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.lock:
            self.server.requests.append(Request(self.path, headers, json.loads(body), time.monotonic()))
            reply = self.server.script.pop(0) if self.server.script else Reply()
        time.sleep(reply.after)
        speaks = gemini_says if self.path.endswith(":generateContent") else moondream_says
        content = json.dumps(speaks(reply.says)).encode() if reply.body is None else reply.body
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if reply.breaks_off:
            content = content[: len(content) // 2]
            self.close_connection = True
        for start in range(0, len(content), 1 if reply.drips else len(content)):
            self.wfile.write(content[start : start + (1 if reply.drips else len(content))])
            time.sleep(0.05 if reply.drips else 0)


def gemini_says(text: str, finish: str = "STOP", **more: Any) -> dict[str, Any]:
    """As `generateContent` answers, thoughts first."""
    parts = [{"text": "Let me see. {", "thought": True}, {"text": text}]
    used = {"promptTokenCount": 1000, "candidatesTokenCount": 40, "thoughtsTokenCount": 60, "totalTokenCount": 1100}
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": finish, "index": 0}
    return {"candidates": [candidate], "usageMetadata": used, "modelVersion": "gemini"} | more


def moondream_says(text: str) -> dict[str, Any]:
    """As `/query` answers."""
    return {
        "request_id": "2026-01-01_query_1",
        "answer": text,
        "metrics": {"input_tokens": 735, "output_tokens": 20, "decode_time_ms": 1.0},
        "finish_reason": "stop",
    }


@dataclass
class World:
    """A machine with a service in reach."""

    service: Service
    home: Path

    def client(self, path: str = "", **limits: Any) -> Client:
        header = "X-Moondream-Auth" if path else "x-goog-api-key"
        url, turns = self.service.url + path, self.home / "turns"
        return Client(url, header, KEY, "check the key", turns, Limits(**{"backoff": 0.01} | limits))

    def judge(self, kind: str = "gemini", **limits: Any) -> Judge:
        backend = Gemini(self.client(**limits)) if kind == "gemini" else Moondream(self.client("/v1", **limits))
        return Judge(backend, self.home / "judgements")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    service = Service()
    thread = threading.Thread(target=service.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield World(service, tmp_path)
    service.shutdown()
    service.server_close()
    thread.join()


@pytest.fixture
def question() -> Question:
    pictures = ("the original", "the edited picture")
    return Question("twins", 1, "How alike, how sharp?", pictures, {"likeness": (0, 10), "sharpness": (0, 10)})


@pytest.fixture
def picture() -> Callable[[int], Image.Image]:
    """`picture(seed)` is a picture that differs from those of other seeds."""

    def picture(seed: int) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
        return Image.fromarray(pixels)

    return picture


@pytest.fixture
def pair(picture: Callable[[int], Image.Image]) -> list[Image.Image]:
    return [picture(0), picture(1)]
