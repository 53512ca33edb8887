"""What a Label Studio that errs, lies or breaks off makes of the client; the real one is in test_label_studio.py."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from resources.errors import BadInputError
from resources.http.client import HttpLimits
from resources.label_studio.client import LabelStudioClient, LabelStudioError, Prediction, PushResult
from resources.settings import Settings

KEY = "0123456789abcdef0123456789abcdef01234567"
QUICK = HttpLimits(timeout=1, attempts=3, backoff=0.02, longest_wait=1, answer_bytes=10_000)
RESULT = [{"type": "textarea", "value": {"text": ["x"]}}]
Trouble = Callable[["Handler"], None]


class Studio(ThreadingHTTPServer):
    """The predictions of one task, as Label Studio keeps them; `troubles` come instead of the next answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.troubles: list[Trouble | None] = []
        self.held: dict[int, dict[str, Any]] = {}
        self.asked: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """Silence: who does not wait for an answer leaves a broken pipe."""


class Handler(BaseHTTPRequestHandler):
    server: Studio

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        studio = self.server
        studio.asked.append((self.command, self.path, self.headers["Authorization"]))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        trouble = studio.troubles.pop(0) if studio.troubles else None
        document = json.loads(body) if body else {}
        number = int(self.path.strip("/").rpartition("/")[2]) if self.command in ("PUT", "DELETE") else 0
        answer: Any = None
        if trouble is None or trouble is loses_the_answer:
            if self.command == "GET":
                answer = list(studio.held.values())
            elif self.command == "POST":
                number = max(studio.held, default=0) + 1
                answer = studio.held[number] = document | {"id": number}
            elif self.command == "PUT":
                answer = studio.held[number] = document | {"id": number}
            else:
                answer = studio.held.pop(number, None)
        if trouble:
            trouble(self)
        else:
            self.answer(answer)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def answer(self, document: Any, status: int = 200, **headers: str) -> None:
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)


def says(document: Any, status: int = 200, **headers: str) -> Trouble:
    return lambda handler: handler.answer(document, status, **headers)


def breaks_off(handler: Handler) -> None:
    handler.connection.close()


def loses_the_answer(handler: Handler) -> None:
    """What was asked for is done, and nobody hears of it."""
    handler.connection.close()


def drips(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" ")
        time.sleep(0.1)


@pytest.fixture
def studio() -> Iterator[Studio]:
    studio = Studio()
    thread = threading.Thread(target=studio.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield studio
    studio.shutdown()
    studio.server_close()
    thread.join()


@pytest.fixture
def client(studio: Studio) -> LabelStudioClient:
    return LabelStudioClient(studio.url, KEY, QUICK)


def prediction(score: float = 0.5) -> Prediction:
    return Prediction(1, "flexy", score, RESULT)


def kept(studio: Studio) -> list[tuple[str, float]]:
    return [(each["model_version"], each["score"]) for each in studio.held.values()]


# Once and no more


@pytest.mark.parametrize("trouble", [breaks_off, loses_the_answer, says({}, 429), says("", 502), says({}, 500)])
@pytest.mark.parametrize("at", range(2))
def test_a_push_that_is_disturbed_anywhere_makes_one_prediction(
    studio: Studio, client: LabelStudioClient, trouble: Trouble, at: int
) -> None:
    studio.troubles = [None] * at + [trouble]
    pushed = client.push(prediction())
    assert kept(studio) == [("flexy", 0.5)]
    assert pushed.action == ("unchanged" if at and trouble is loses_the_answer else "created")


@pytest.mark.parametrize("trouble", [breaks_off, loses_the_answer])
@pytest.mark.parametrize("at", range(4))
def test_a_pusher_killed_anywhere_leaves_a_prediction_and_the_next_one_ends_it(
    studio: Studio, trouble: Trouble, at: int
) -> None:
    """Three doubles to be made one: list, replace, remove, remove."""
    for number, version in enumerate(("flexy", "other", "flexy", "flexy"), 1):
        studio.held[number] = {"id": number, "task": 1, "model_version": version, "score": 0.1, "result": []}
    studio.troubles = [None] * at + [trouble]
    with pytest.raises(LabelStudioError):
        LabelStudioClient(studio.url, KEY, HttpLimits(attempts=1)).push(prediction())
    assert "flexy" in [version for version, _ in kept(studio)]
    LabelStudioClient(studio.url, KEY, QUICK).push(prediction())
    assert sorted(kept(studio)) == [("flexy", 0.5), ("other", 0.1)]
    assert client_pushes_nothing_more(studio)


def client_pushes_nothing_more(studio: Studio) -> bool:
    asked = len(studio.asked)
    pushed = LabelStudioClient(studio.url, KEY, QUICK).push(prediction())
    return pushed == PushResult(1, "unchanged") and [method for method, *_ in studio.asked[asked:]] == ["GET"]


def test_what_could_be_made_twice_is_sent_once(studio: Studio, client: LabelStudioClient) -> None:
    studio.troubles = [loses_the_answer]
    with pytest.raises(LabelStudioError, match="tried once: check LABEL_STUDIO_URL, or run again later"):
        client.call("POST", "api/predictions/", {"task": 1})
    assert len(studio.asked) == len(studio.held) == 1
    studio.troubles = [breaks_off, says({}, 503)]
    assert client.call("GET", "api/predictions/") == [{"task": 1, "id": 1}]


@pytest.mark.parametrize(("version", "score"), [("", 0.5), ("flexy", float("nan")), ("flexy", float("inf"))])
def test_what_is_no_prediction_is_not_sent(
    studio: Studio, client: LabelStudioClient, version: str, score: float
) -> None:
    with pytest.raises(BadInputError, match="invalid prediction for task 1: must have a model version"):
        client.push(Prediction(1, version, score, RESULT))
    assert studio.asked == []


# Answers that are none


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (says({"detail": "Invalid token."}, 401), "status 401 (Invalid token.): check LABEL_STUDIO_API_KEY, and that"),
        (says({"detail": f"no {KEY}\n\x1b[31m"}, 403), "status 403 (no *** [31m): check LABEL_STUDIO_API_KEY"),
        (says({"validation_errors": {"task": ["no"]}}, 400), 'status 400 ({"task": ["no"]}): check what was sent'),
        (says({"detail": "x" * 10_000_000}, 400), "answers with more than 10000 bytes"),
        (says(b"<html>", 404), "status 404: check the project and the task"),
        (
            says(b"", 302, Location="http://127.0.0.1:9/"),
            "status 302: set LABEL_STUDIO_URL to the URL that it redirects",
        ),
        (says(b"<html>"), "answers with what is not JSON: check LABEL_STUDIO_URL"),
        (says(b"[" * 9000), "answers with what is not JSON"),
        (says({}), "answers without predictions: check LABEL_STUDIO_URL"),
        (says([{"id": "1"}]), "answers without predictions"),
        (says([1]), "answers without predictions"),
    ],
)
def test_an_answer_that_is_none_is_one_line_and_not_asked_for_again(
    studio: Studio, client: LabelStudioClient, trouble: Trouble, reason: str
) -> None:
    studio.troubles = [trouble]
    with pytest.raises(LabelStudioError) as caught:
        client.predictions(1)
    message = str(caught.value)
    assert message.startswith("Label Studio at 127.0.0.1 answers with") and reason in message
    assert KEY not in message and "\n" not in message and "\x1b" not in message
    assert len(studio.asked) == 1


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (says({}, 429), "answers with status 429"),
        (says({}, 500), "answers with status 500"),
        (breaks_off, "no connection to Label Studio at 127.0.0.1, or it broke off (ConnectionError)"),
        (drips, "did not answer within 1 s"),
    ],
)
def test_what_does_not_pass_is_given_up_on(
    studio: Studio, client: LabelStudioClient, trouble: Trouble, reason: str
) -> None:
    studio.troubles = [trouble] * 5
    with pytest.raises(LabelStudioError) as caught:
        client.predictions(1)
    message = str(caught.value)
    assert f"{reason}, tried 3 times: " in message and message.endswith("run again later")
    assert len(studio.asked) == 3


def test_a_server_that_asks_to_wait_is_waited_for_but_not_for_long(studio: Studio, client: LabelStudioClient) -> None:
    studio.troubles = [says({}, 429, Retry_After="0.3")]
    began = time.monotonic()
    assert client.predictions(1) == []
    assert time.monotonic() - began > 0.3
    studio.troubles = [says({}, 429, Retry_After="3600")]
    with pytest.raises(LabelStudioError, match="status 429 and asks to wait 3600 s, tried once"):
        client.predictions(1)


@pytest.mark.parametrize("document", [[], {}, {"tasks": 5}, {"tasks": [], "total": "all"}, 7])
def test_what_is_no_list_of_tasks_is_said_so(studio: Studio, client: LabelStudioClient, document: Any) -> None:
    studio.troubles = [says(document)]
    with pytest.raises(LabelStudioError, match="answers without tasks: check LABEL_STUDIO_URL"):
        list(client.tasks(1))


def test_a_list_of_tasks_that_never_ends_is_ended(studio: Studio, client: LabelStudioClient) -> None:
    page = says({"tasks": [{"id": 1}, {"id": 2}, {"id": 1}, "x"], "total": 10**9})
    studio.troubles = [page] * 9
    assert list(client.tasks(1)) == [{"id": 1}, {"id": 2}]
    assert len(studio.asked) == 2


# The token


def test_the_token_is_the_servers_alone(
    studio: Studio, client: LabelStudioClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    other = Studio()
    thread = threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        studio.troubles = [says(b"", 307, Location=f"{other.url}/api/predictions/?task=1")]
        with pytest.raises(LabelStudioError, match="status 307"):
            client.predictions(1)
    finally:
        other.shutdown()
        other.server_close()
    assert other.asked == []
    assert [told for *_, told in studio.asked] == [f"Token {KEY}"]
    assert KEY not in f"{client!r} {client}"


def test_a_personal_token_that_gives_no_access_is_said_so(studio: Studio) -> None:
    client = LabelStudioClient(studio.url, "head.body.opensesame", QUICK)
    for answer in (says({}), says([]), says({"access": 5})):
        studio.troubles = [answer]
        with pytest.raises(LabelStudioError, match="gives no access token: check LABEL_STUDIO_API_KEY"):
            client.predictions(1)
    studio.troubles = [says({"access": "no.jwt"}), says([]), says([])]
    assert client.predictions(1) == client.predictions(1) == []
    assert [told for *_, told in studio.asked[-3:]] == [None, "Bearer no.jwt", "Bearer no.jwt"]


def test_a_server_without_address_or_token_is_asked_for() -> None:
    for variables in ({}, {"LABEL_STUDIO_URL": "http://h"}, {"LABEL_STUDIO_API_KEY": "x"}):
        with pytest.raises(BadInputError, match="no Label Studio is configured: set LABEL_STUDIO_URL and"):
            LabelStudioClient.from_settings(Settings.read(variables))
