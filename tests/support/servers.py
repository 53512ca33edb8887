"""Servers on loopback that are asked over the network: for pictures, and as a judge. Used by tests and benchmarks."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

from PIL import Image

SIGNATURE = "0123opensesame4567"
GOOD = '{"reasoning": "as it was", "likeness": 7.5, "sharpness": 4}'
MARKS = ("identity", "quality", "consistency")
"""What `Oracle` is asked for."""


class Server(ThreadingHTTPServer):
    """On a free port of loopback; whoever breaks off is no matter."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.lock = threading.Lock()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """Silence: who is killed, or does not wait for an answer, leaves a broken pipe."""


S = TypeVar("S", bound=Server)


@contextmanager
def running(server: S) -> Iterator[S]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# Pictures


class Site(Server):
    """Serves pictures by path, each after `seconds`, and remembers what it was asked for and gave whole."""

    def __init__(self) -> None:
        super().__init__(_Giving)
        self.pictures: dict[str, bytes] = {}
        self.asked: Counter[str] = Counter()
        self.given: Counter[str] = Counter()
        self.seconds = 0.0

    def url(self, path: str, content: bytes, signature: str = SIGNATURE) -> str:
        """Where a picture is from now on, with a signature as a bucket would ask for."""
        self.pictures[path] = content
        return f"http://{self.host}{path}?v=1&X-Amz-Expires=600&X-Amz-Signature={signature}"


class _Giving(BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.asked[path] += 1
        time.sleep(self.server.seconds)
        content = self.server.pictures.get(path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")
        with self.server.lock:
            self.server.given[path] += 1


# A judge


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


class Service(Server):
    """Speaks Gemini's and Moondream's protocols, errs as it is told, and remembers what it was sent."""

    def __init__(self) -> None:
        super().__init__(_Judging)
        self.script: list[Reply] = []
        """The next replies; when there are none left, all is well."""
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def reply(self, request: Request) -> Reply:
        with self.lock:
            self.requests.append(request)
            return self.script.pop(0) if self.script else Reply()


class _Judging(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.reply(Request(self.path, headers, json.loads(body), time.monotonic()))
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


class Oracle(Service):
    """A judge of faces whose marks follow from the pixels it is shown, so that each can be told from an invented one.

    Asked again about the same pictures it says something else, as a model would. Of `ill` of its calls, drawn from a
    seed, it makes something wrong, each of `AILMENTS` in its turn; one that hangs does so for `hangs` seconds.
    """

    def __init__(self, seed: int = 0, ill: float = 0.0, hangs: float = 3.0) -> None:
        super().__init__()
        self.ill = ill
        self.hangs = hangs
        self.said: dict[str, list[dict[str, float]]] = {}
        """Every sound answer, in order, by what was shown (`shown`)."""
        self.ailments: Counter[str] = Counter()
        self._dice = random.Random(seed)

    def reply(self, request: Request) -> Reply:
        shown = _shown(request.document)
        with self.lock:
            before = self.said.setdefault(shown, [])
            marks = _marks(f"{shown} {len(before)}")
            if self._dice.random() >= self.ill:
                before.append(marks)
                return Reply(json.dumps({"reasoning": "by the pixels", **marks}))
            ailment = AILMENTS[self.ailments.total() % len(AILMENTS)]
            self.ailments[ailment] += 1
        return self._ailing(ailment, marks)

    @property
    def calls(self) -> int:
        """How often it was asked."""
        return self.ailments.total() + sum(map(len, self.said.values()))

    def _ailing(self, ailment: str, marks: dict[str, float]) -> Reply:
        good = json.dumps(marks)
        match ailment:
            case "error":
                return Reply.json({"error": {"message": "out of order"}}, 500)
            case "too many requests":
                return Reply.json({"error": {"message": "slow down"}}, 429, Retry_After="0")
            case "silence":
                return Reply(good, after=self.hangs)
            case "not JSON":
                return Reply(body=json.dumps(gemini_says(good)).encode()[:-40])
            case "refusal":
                return Reply.json({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "error": "refused"})
            case "off the scale":
                return Reply(json.dumps(marks | {"identity": 11}))
            case "nonsense":
                return Reply("A fine face, 8 of 10 I should say.")
            case "no number":
                return Reply(json.dumps(marks | {"quality": None}))
        raise ValueError(ailment)


AILMENTS = (
    "off the scale",
    "error",
    "refusal",
    "too many requests",
    "not JSON",
    "silence",
    "nonsense",
    "no number",
)


def shown(pictures: Sequence[Image.Image]) -> str:
    """What names some pictures, by their pixels in RGB."""
    each = [f"{picture.size}".encode() + picture.convert("RGB").tobytes() for picture in pictures]
    return hashlib.sha256(b"".join(hashlib.sha256(one).digest() for one in each)).hexdigest()


def _shown(document: Any) -> str:
    """The name of the pictures in a request of either protocol."""
    match document:
        case {"contents": [{"parts": [*parts]}]}:
            data = [part["inlineData"]["data"] for part in parts if "inlineData" in part]
        case {"image_url": str(url)}:
            data = [url.partition(",")[2]]
    return shown([Image.open(io.BytesIO(base64.b64decode(one))) for one in data])


def _marks(of: str) -> dict[str, float]:
    """Marks from 0 to 10 that hold for nothing else."""
    dice = random.Random(of)
    return {name: round(dice.uniform(0, 10), 4) for name in MARKS}
