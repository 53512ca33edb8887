"""Servers on loopback for tests and benchmarks: one that serves images, and one that judges them."""

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
GOOD_ANSWER = '{"reasoning": "as it was", "likeness": 7.5, "sharpness": 4}'
SCORE_NAMES = ("identity", "quality", "consistency")
"""The scores that `FaceJudgeServer` gives."""


class LoopbackServer(ThreadingHTTPServer):
    """A server on a free port of loopback."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.lock = threading.Lock()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """Print nothing: a client that is killed, or does not wait for an answer, leaves a broken pipe."""


S = TypeVar("S", bound=LoopbackServer)


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


class ImageServer(LoopbackServer):
    """Serves images by path, and counts the requests and complete deliveries by path."""

    def __init__(self) -> None:
        super().__init__(_ImageHandler)
        self.images: dict[str, bytes] = {}
        self.requested: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()

    def url(self, path: str, content: bytes, signature: str = SIGNATURE) -> str:
        """Serve an image at `path` and return its URL, signed as for a bucket."""
        self.images[path] = content
        return f"http://{self.host}{path}?v=1&X-Amz-Expires=600&X-Amz-Signature={signature}"


class _ImageHandler(BaseHTTPRequestHandler):
    server: ImageServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with self.server.lock:
            self.server.requested[path] += 1
        content = self.server.images.get(path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")
        with self.server.lock:
            self.server.delivered[path] += 1


@dataclass
class JudgeReply:
    """An answer of the judge: `text` in the protocol's form, or `body` unchanged."""

    text: str = GOOD_ANSWER
    body: bytes | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0
    drips: bool = False
    breaks_off: bool = False

    @classmethod
    def json(cls, document: Any, status: int = 200, **headers: str) -> JudgeReply:
        return cls(body=json.dumps(document).encode(), status=status, headers=headers)


@dataclass
class JudgeRequest:
    path: str
    headers: dict[str, str]
    document: Any
    at: float


class JudgeServer(LoopbackServer):
    """Speaks Gemini's and Moondream's protocols, answers by a script, and records the requests."""

    def __init__(self) -> None:
        super().__init__(_JudgeHandler)
        self.script: list[JudgeReply] = []
        """The next replies; after the last one, the answers are good."""
        self.requests: list[JudgeRequest] = []

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def reply(self, request: JudgeRequest) -> JudgeReply:
        with self.lock:
            self.requests.append(request)
            return self.script.pop(0) if self.script else JudgeReply()


class _JudgeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JudgeServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.reply(JudgeRequest(self.path, headers, json.loads(body), time.monotonic()))
        time.sleep(reply.after)
        make_answer = make_gemini_answer if self.path.endswith(":generateContent") else make_moondream_answer
        content = json.dumps(make_answer(reply.text)).encode() if reply.body is None else reply.body
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


def make_gemini_answer(text: str, finish: str = "STOP", **more: Any) -> dict[str, Any]:
    """Return an answer of `generateContent`, thoughts first."""
    parts = [{"text": "Let me see. {", "thought": True}, {"text": text}]
    usage = {"promptTokenCount": 1000, "candidatesTokenCount": 40, "thoughtsTokenCount": 60, "totalTokenCount": 1100}
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": finish, "index": 0}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini"} | more


def make_moondream_answer(text: str) -> dict[str, Any]:
    """Return an answer of `/query`."""
    return {
        "request_id": "2026-01-01_query_1",
        "answer": text,
        "metrics": {"input_tokens": 735, "output_tokens": 20, "decode_time_ms": 1.0},
        "finish_reason": "stop",
    }


class FaceJudgeServer(JudgeServer):
    """A judge of faces whose scores follow from the pixels it receives, so that invented scores are detected.

    Repeated requests about the same images get different answers, as from a model. A share of `fault_rate` of its
    calls, drawn from a seed, fails in the ways of `FAULTS` in turn; a silent one takes `hang_seconds`.
    """

    def __init__(self, seed: int = 0, fault_rate: float = 0.0, hang_seconds: float = 3.0) -> None:
        super().__init__()
        self.fault_rate = fault_rate
        self.hang_seconds = hang_seconds
        self.answers: dict[str, list[dict[str, float]]] = {}
        """The good answers, in order, by the images (`hash_images`)."""
        self.faults: Counter[str] = Counter()
        self._rng = random.Random(seed)

    def reply(self, request: JudgeRequest) -> JudgeReply:
        images = _request_images(request.document)
        with self.lock:
            answers = self.answers.setdefault(images, [])
            scores = _draw_scores(f"{images} {len(answers)}")
            if self._rng.random() >= self.fault_rate:
                answers.append(scores)
                return JudgeReply(json.dumps({"reasoning": "by the pixels", **scores}))
            fault = FAULTS[self.faults.total() % len(FAULTS)]
            self.faults[fault] += 1
        return self._fail(fault, scores)

    @property
    def calls(self) -> int:
        """The number of requests."""
        return self.faults.total() + sum(map(len, self.answers.values()))

    def _fail(self, fault: str, scores: dict[str, float]) -> JudgeReply:
        good = json.dumps(scores)
        match fault:
            case "error":
                return JudgeReply.json({"error": {"message": "out of order"}}, 500)
            case "too many requests":
                return JudgeReply.json({"error": {"message": "slow down"}}, 429, Retry_After="0")
            case "silence":
                return JudgeReply(good, after=self.hang_seconds)
            case "not JSON":
                return JudgeReply(body=json.dumps(make_gemini_answer(good)).encode()[:-40])
            case "refusal":
                return JudgeReply.json({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "error": "refused"})
            case "off the scale":
                return JudgeReply(json.dumps(scores | {"identity": 11}))
            case "nonsense":
                return JudgeReply("A fine face, 8 of 10 I should say.")
            case "no number":
                return JudgeReply(json.dumps(scores | {"quality": None}))
        raise ValueError(fault)


FAULTS = (
    "off the scale",
    "error",
    "refusal",
    "too many requests",
    "not JSON",
    "silence",
    "nonsense",
    "no number",
)


def hash_images(images: Sequence[Image.Image]) -> str:
    """Return a hash of the RGB pixels of some images."""
    pixels = [f"{image.size}".encode() + image.convert("RGB").tobytes() for image in images]
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in pixels)).hexdigest()


def _request_images(document: Any) -> str:
    """Return the hash of the images in a request of either protocol."""
    match document:
        case {"contents": [{"parts": [*parts]}]}:
            data = [part["inlineData"]["data"] for part in parts if "inlineData" in part]
        case {"image_url": str(url)}:
            data = [url.partition(",")[2]]
    return hash_images([Image.open(io.BytesIO(base64.b64decode(content))) for content in data])


def _draw_scores(seed: str) -> dict[str, float]:
    """Return scores from 0 to 10, drawn from `seed`."""
    rng = random.Random(seed)
    return {name: round(rng.uniform(0, 10), 4) for name in SCORE_NAMES}
