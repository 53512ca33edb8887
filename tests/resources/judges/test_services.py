"""Services are asked in their own protocol, again where that may help, in turn, within the budget; the key stays."""

from __future__ import annotations

import base64
import io
import logging
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resources.errors import BadInputError
from resources.judges import Judge, JudgeCost, JudgeQuestion, UnansweredError, make_judge
from resources.judges.moondream import tile_side_by_side
from resources.settings import Settings
from tests.support.servers import GOOD_ANSWER, JudgeReply, make_gemini_answer

from .conftest import KEY, World

KINDS = ("gemini", "moondream")
Pair = list[Image.Image]


def decoded(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


# What is sent, and what is read


def test_gemini_is_sent_each_picture_as_it_is_with_what_it_is_and_the_form_of_the_answer(
    world: World, question: JudgeQuestion, pair: Pair
) -> None:
    verdict = world.judge().ask(question, pair, readings=1)
    assert verdict.values == {"likeness": 7.5, "sharpness": 4.0}
    assert verdict.cost == JudgeCost(requests=1, tokens_in=1000, tokens_out=100)
    assert verdict.fingerprint == "gemini/gemini-3.5-flash"
    (request,) = world.service.requests
    assert request.path == "/v1beta/models/gemini-3.5-flash:generateContent"
    assert request.headers["x-goog-api-key"] == KEY
    # As google-genai 3.4.0 sends it, but for the version in the path and the camel case.
    (content,) = request.document.pop("contents")
    assert content["role"] == "user"
    first, original, second, edited, words = content["parts"]
    assert (first, second) == ({"text": "Picture 1: the original."}, {"text": "Picture 2: the edited picture."})
    assert words == {"text": question.prompt}
    for part, picture in zip((original, edited), pair, strict=True):
        assert list(part) == ["inlineData"] and part["inlineData"]["mimeType"] == "image/png"
        assert np.array_equal(np.asarray(decoded(part["inlineData"]["data"])), np.asarray(picture))
    assert request.document == {
        "generationConfig": {
            "responseMimeType": "application/json",
            "responseJsonSchema": {
                "type": "object",
                "properties": {
                    "reasoning": {"type": "string"},
                    "likeness": {"type": "number", "minimum": 0, "maximum": 10},
                    "sharpness": {"type": "number", "minimum": 0, "maximum": 10},
                },
                "required": ["reasoning", "likeness", "sharpness"],
            },
            "maxOutputTokens": 8192,
        }
    }


def test_moondream_is_sent_the_pictures_side_by_side(world: World, question: JudgeQuestion, pair: Pair) -> None:
    verdict = world.judge("moondream").ask(question, pair, readings=1)
    assert verdict.values == {"likeness": 7.5, "sharpness": 4.0}
    assert verdict.cost == JudgeCost(requests=1, tokens_in=735, tokens_out=20)
    assert verdict.fingerprint == "moondream@127.0.0.1"
    (request,) = world.service.requests
    assert (request.path, request.headers["x-moondream-auth"]) == ("/v1/query", KEY)
    kind, _, data = request.document["image_url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert decoded(data).size == (2 * round(32 * 512 / 24) + 16, 512)
    assert request.document["question"].endswith(question.prompt)
    assert "from left to right" in request.document["question"]
    assert (request.document["stream"], "model" in request.document) == (False, False)


def test_one_picture_is_shown_to_moondream_as_it_is(picture: Callable[[int], Image.Image]) -> None:
    one = picture(3)
    assert tile_side_by_side([one]) is one
    sheet = tile_side_by_side([Image.new("RGB", (10, 20), "red"), Image.new("RGB", (40, 20), "blue")])
    assert (sheet.getpixel((5, 5)), sheet.getpixel((sheet.width - 5, 5))) == ((255, 0, 0), (0, 0, 255))


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_picture_is_made_smaller_and_what_was_given_stays_as_it_was(
    world: World, question: JudgeQuestion, kind: str
) -> None:
    large = [Image.new("L", (3000, 1500), 90), Image.new("RGBA", (50, 60))]
    assert world.judge(kind).ask(question, large, readings=1).values
    assert [picture.size for picture in large] == [(3000, 1500), (50, 60)]
    if kind == "gemini":
        parts = world.service.requests[0].document["contents"][0]["parts"]
        assert [decoded(part["inlineData"]["data"]).size for part in parts if "inlineData" in part] == [
            (1024, 512),
            (50, 60),
        ]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (
            {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}},
            "Gemini refused the images or the question: PROH",
        ),
        (
            {"promptFeedback": {"blockReason": "SAFETY"}, "candidates": []},
            "Gemini refused the images or the question",
        ),
        ({"candidates": [{"finishReason": "SAFETY", "index": 0}]}, "Gemini broke off its answer: SAFETY"),
        (make_gemini_answer(GOOD_ANSWER, finish="MAX_TOKENS"), "Gemini broke off its answer: MAX_TOKENS"),
        ({"candidates": []}, "Gemini gave no answer and no reason"),
        ({"candidates": [{"content": {"parts": [{"text": GOOD_ANSWER}]}}]}, "Gemini gave no answer and no reason"),
        ({"candidates": [{"finishReason": "STOP"}]}, "Gemini broke off its answer: STOP"),
        ({"candidates": [{"finishReason": "STOP", "content": {"parts": []}}]}, "the answer is not one JSON object: ''"),
        ({"candidates": {"0": "x"}}, "Gemini gave no answer"),
        ({}, "Gemini gave no answer"),
        ([], "Gemini gave no answer"),
        ("text", "Gemini gave no answer"),
        (7, "Gemini gave no answer"),
    ],
)
def test_what_gemini_blocks_or_cuts_short_has_no_values_and_is_not_asked_twice(
    world: World, question: JudgeQuestion, pair: Pair, document: Any, reason: str
) -> None:
    world.service.script = [JudgeReply.json(document)]
    verdict = world.judge().ask(question, pair, readings=1)
    assert verdict.values is None and verdict.spread is None
    assert verdict.error is not None and verdict.error.startswith(reason)
    assert len(world.service.requests) == 1


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"error": "model\n not loaded"}, "Moondream could not answer: model not loaded"),
        ({"answer": None}, "Moondream gave no answer and no reason"),
        ({"answer": {"likeness": 7}}, "Moondream gave no answer"),
        ([], "Moondream gave no answer"),
    ],
)
def test_what_moondream_cannot_answer_has_no_values(
    world: World, question: JudgeQuestion, pair: Pair, document: Any, reason: str
) -> None:
    world.service.script = [JudgeReply.json(document)]
    verdict = world.judge("moondream").ask(question, pair, readings=1)
    assert verdict.values is None
    assert verdict.error is not None and verdict.error.startswith(reason)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "says", ["I'm sorry, I can't compare faces.", GOOD_ANSWER.replace("7.5", "NaN"), GOOD_ANSWER.replace("4", "11")]
)
def test_nonsense_is_paid_for_shown_and_no_value(
    world: World, question: JudgeQuestion, pair: Pair, kind: str, says: str
) -> None:
    world.service.script = [JudgeReply(says)]
    verdict = world.judge(kind).ask(question, pair, readings=1)
    assert verdict.values is None and verdict.error
    assert verdict.raw == (says,)
    assert verdict.cost.requests == 1 and verdict.cost.tokens_in > 0


# Errors that may pass, and those that will not


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_an_error_that_may_pass_is_tried_again(
    world: World, question: JudgeQuestion, pair: Pair, kind: str, status: int
) -> None:
    world.service.script = [JudgeReply.json({"error": {"code": status, "message": "busy"}}, status)] * 2
    verdict = world.judge(kind).ask(question, pair, readings=1)
    assert verdict.values == {"likeness": 7.5, "sharpness": 4.0}
    assert verdict.cost.requests == len(world.service.requests) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 413])
def test_an_error_that_stays_is_not_tried_again(
    world: World, question: JudgeQuestion, pair: Pair, kind: str, status: int
) -> None:
    message = {"error": {"code": status, "message": "Nothing\nfor you here."}}
    world.service.script = [JudgeReply.json(message, status, Location=f"{world.service.url}/elsewhere")]
    verdict = world.judge(kind).ask(question, pair, readings=1)
    assert verdict.error == f"127.0.0.1 answers with status {status} (Nothing for you here.): check the key"
    assert verdict.values is None
    assert verdict.cost.requests == len(world.service.requests) == 1


def test_waits_grow_until_the_last_try(world: World, question: JudgeQuestion, pair: Pair) -> None:
    world.service.script = [JudgeReply(status=500)] * 9
    verdict = world.judge(backoff=0.1, attempts=4).ask(question, pair, readings=1)
    assert verdict.error == "127.0.0.1 answers with status 500, tried 4 times: run again later"
    at = [request.at for request in world.service.requests]
    waits = np.diff(at)
    assert len(waits) == 3
    for wait, longest in zip(waits, (0.1, 0.2, 0.4), strict=True):
        assert longest / 2 <= wait < longest + 0.15


@pytest.mark.parametrize(
    "reply",
    [
        JudgeReply(status=429, headers={"Retry-After": "0.4"}),
        JudgeReply.json({"error": {"code": 429, "details": [{"@type": "RetryInfo", "retryDelay": "0.4s"}, 7]}}, 429),
    ],
    ids=["header", "Google's"],
)
def test_a_service_that_asks_to_wait_is_given_the_time(
    world: World, question: JudgeQuestion, pair: Pair, reply: JudgeReply
) -> None:
    world.service.script = [reply]
    assert world.judge().ask(question, pair, readings=1).values
    first, second = world.service.requests
    assert 0.4 <= second.at - first.at < 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_wait_that_is_too_long_ends_it(world: World, question: JudgeQuestion, pair: Pair, form: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    header = date if form == "date" else "3600"
    world.service.script = [JudgeReply(status=429, headers={"Retry-After": header})]
    verdict = world.judge().ask(question, pair, readings=1)
    assert verdict.error is not None
    assert verdict.error.startswith("127.0.0.1 answers with status 429 and asks to wait 3")
    assert len(world.service.requests) == 1


def test_a_wait_in_the_past_or_in_no_form_is_as_good_as_none(world: World, question: JudgeQuestion, pair: Pair) -> None:
    past = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    world.service.script = [
        JudgeReply(status=503, headers={"Retry-After": value}) for value in (past, "-5", "soon", "")
    ]
    assert world.judge().ask(question, pair, readings=1).values


@pytest.mark.parametrize("reply", [JudgeReply(after=0.6), JudgeReply(drips=True)], ids=["silent", "dripping"])
def test_an_answer_that_does_not_come_in_time_is_asked_for_again(
    world: World, question: JudgeQuestion, pair: Pair, reply: JudgeReply
) -> None:
    world.service.script = [reply]
    assert world.judge(timeout=0.3).ask(question, pair, readings=1).values
    assert len(world.service.requests) == 2

    world.service.script = [reply] * 2
    verdict = world.judge(timeout=0.3, attempts=2).ask(question, pair[::-1], readings=1)
    assert verdict.error == "127.0.0.1 did not answer within 0.3 s, tried 2 times: run again later"


def test_a_connection_that_breaks_off_is_tried_again_and_one_that_there_is_not_is_named(
    world: World, question: JudgeQuestion, pair: Pair
) -> None:
    world.service.script = [JudgeReply(breaks_off=True)]
    assert world.judge().ask(question, pair, readings=1).values
    assert len(world.service.requests) == 2

    nobody = world.judge(attempts=2)
    backend: Any = nobody.backend
    backend.client.http.url = "http://127.0.0.1:9"
    assert nobody.ask(question, pair[::-1], readings=1).error == (
        "no connection to 127.0.0.1, or it broke off (ConnectionError), tried 2 times:"
        " check the key, or run again later"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "body", [b"", b"<html>please log in</html>", b"\xff\xfe", GOOD_ANSWER.encode()[:-5], b"[" * 100_000]
)
def test_what_is_not_json_is_no_answer(
    world: World, question: JudgeQuestion, pair: Pair, kind: str, body: bytes
) -> None:
    world.service.script = [JudgeReply(body=body)]
    verdict = world.judge(kind).ask(question, pair, readings=1)
    assert verdict.error == "127.0.0.1 answers with what is not JSON: check the key"
    assert len(world.service.requests) == 1


def test_a_huge_answer_is_not_read_to_its_end(world: World, question: JudgeQuestion, pair: Pair) -> None:
    world.service.script = [JudgeReply(body=b" " * 50_000_000)]
    verdict = world.judge(answer_bytes=100_000).ask(question, pair, readings=1)
    assert verdict.error == "127.0.0.1 answers with more than 100000 bytes: check the key"
    world.service.script = [JudgeReply(text="x" * 50_000)]
    verdict = world.judge(answer_bytes=100_000).ask(question, pair, readings=1)
    assert verdict.error == "the answer is 50000 characters long"
    assert len(verdict.raw[0]) == 20_000


def test_a_service_that_stays_down_is_given_up_on_until_the_next_run(
    world: World, question: JudgeQuestion, picture: Callable[[int], Image.Image]
) -> None:
    world.service.script = [JudgeReply(status=403)] * 3
    judging = world.judge()
    verdicts = [judging.ask(question, [picture(i), picture(i)], readings=1) for i in range(20)]
    assert len(world.service.requests) == 3
    assert all(verdict.values is None for verdict in verdicts)
    assert verdicts[-1].cost == JudgeCost()
    assert str(verdicts[-1].error).startswith("not sent: 3 questions in a row failed: 127.0.0.1 ans")
    assert all(world.judge().ask(question, [picture(i), picture(i)], readings=1).values for i in range(3))


def test_a_service_that_answers_now_and_then_is_not_given_up_on(
    world: World, question: JudgeQuestion, picture: Callable[[int], Image.Image]
) -> None:
    world.service.script = [JudgeReply(status=status) for status in (403, 403, 200, 403, 403, 200)]
    judging = world.judge()
    verdicts = [judging.ask(question, [picture(i), picture(i)], readings=1) for i in range(6)]
    assert [verdict.values is not None for verdict in verdicts] == [False, False, True] * 2


# Rate and budget


def test_threads_and_processes_together_keep_to_the_rate(world: World, question: JudgeQuestion) -> None:
    # Each has a client of its own, as each process has, and nothing in common but the file.
    judges = [world.judge(requests_per_minute=1200) for _ in range(3)]
    pictures = [[Image.new("RGB", (8, 8), (i, 0, 0))] * 2 for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        verdicts = list(pool.map(lambda i: judges[i % 3].ask(question, pictures[i], readings=1), range(12)))
    assert all(verdict.values for verdict in verdicts)
    at = sorted(request.at for request in world.service.requests)
    # One may take longer to arrive than another.
    assert at[-1] - at[0] >= 0.8 * 11 * 60 / 1200


@pytest.mark.parametrize("content", ["", "nonsense", "nan", "inf", "9e99", "-1"])
def test_a_rate_file_that_makes_no_sense_holds_nobody_up(
    world: World, question: JudgeQuestion, pair: Pair, content: str
) -> None:
    (world.home / "turns").write_text(content)
    begun = time.monotonic()
    assert world.judge(requests_per_minute=600).ask(question, pair, readings=2).values
    assert time.monotonic() - begun < 2


def test_a_budget_that_is_spent_ends_it_with_a_reason_and_keeps_what_was_answered(
    world: World, question: JudgeQuestion, pair: Pair
) -> None:
    verdict = world.judge(max_requests=3).ask(question, pair)
    assert verdict.values is None
    assert verdict.error == (
        "reading 4 of 4: the budget of 3 requests is spent: run again, or raise FLEXY_JUDGE_MAX_CALLS"
    )
    assert len(verdict.raw) == verdict.cost.requests == len(world.service.requests) == 3
    assert world.judge(max_requests=1).ask(question, pair).values, "one reading was left"


def test_tries_count_towards_the_budget(world: World, question: JudgeQuestion, pair: Pair) -> None:
    world.service.script = [JudgeReply(status=500)] * 9
    verdict = world.judge(max_requests=2).ask(question, pair, readings=1)
    assert str(verdict.error).startswith("the budget of 2 requests is spent")
    assert verdict.cost.requests == len(world.service.requests) == 2


# The key


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_is_in_no_message_log_repr_answer_or_file(
    world: World, question: JudgeQuestion, pair: Pair, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = {"error": {"message": f"Consumer 'api_key:{KEY}' has been suspended."}}
    judging = world.judge(kind, attempts=2, timeout=0.3)
    backend: Any = judging.backend
    seen = [repr(judging), repr(backend), repr(backend.client)]
    for script in (
        [JudgeReply.json(echo, 403)],
        [JudgeReply.json(echo, 429)] * 2,
        [JudgeReply.json(echo, 302, Location=f"{world.service.url}/?key={KEY}")],
        [JudgeReply(f"{KEY}: {GOOD_ANSWER}")],
        [JudgeReply(body=KEY.encode())],
        [JudgeReply(after=0.5)] * 2,
        [JudgeReply(breaks_off=True)] * 2,
        [],
    ):
        world.service.script = script
        verdict = judging.ask(question, pair, readings=1)
        seen += [repr(verdict), str(verdict.error), *verdict.raw]
        backend.client._unanswered = 0
        try:
            judging.backend.answer(question, pair)
        except UnansweredError:
            seen.append(traceback.format_exc())
    seen += [file.read_text() for file in world.home.rglob("*") if file.is_file()]
    seen += [str(file) for file in world.home.rglob("*")]
    assert caplog.text and len(seen) > 20
    assert all(KEY not in text for text in [*seen, caplog.text])
    assert all(KEY in request.headers.values() for request in world.service.requests), "it was sent"
    assert all(KEY not in request.path for request in world.service.requests)


# From the settings


def configured(world: World, **variables: str) -> Judge | None:
    return make_judge(Settings.read({"FLEXY_HOME": str(world.home), **variables}))


def test_without_a_judge_named_there_is_none(world: World) -> None:
    assert configured(world) is None
    assert configured(world, FLEXY_JUDGE="none", GEMINI_API_KEY=KEY) is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_settings_say_who_is_asked_where_with_which_key_and_how_often(
    world: World, question: JudgeQuestion, pair: Pair, kind: str
) -> None:
    variables = {
        "FLEXY_JUDGE": kind,
        "FLEXY_JUDGE_MODEL": "a/b model",
        "FLEXY_JUDGE_URL": f"{world.service.url}/gate/",
        "FLEXY_JUDGE_RPM": "6000",
        "FLEXY_JUDGE_MAX_CALLS": "4",
        f"{kind.upper()}_API_KEY": KEY,
    }
    judging = configured(world, **variables)
    assert judging is not None and judging.fingerprint == f"{kind}/a/b model"
    assert judging.ask(question, pair).values
    assert "budget of 4 requests" in str(judging.ask(question, pair[::-1]).error)
    path = {"gemini": "/gate/v1beta/models/a%2Fb%20model:generateContent", "moondream": "/gate/query"}[kind]
    assert {request.path for request in world.service.requests} == {path}
    assert KEY in world.service.requests[0].headers.values()
    if kind == "moondream":
        assert world.service.requests[0].document["model"] == "a/b model"
    assert (world.home / "judgements" / f"{kind}.turns").exists()


def test_a_server_of_ones_own_needs_no_key_and_the_published_one_does(
    world: World, question: JudgeQuestion, pair: Pair
) -> None:
    own = configured(world, FLEXY_JUDGE="moondream", FLEXY_JUDGE_URL=f"{world.service.url}/v1", GEMINI_API_KEY=KEY)
    assert own is not None and own.ask(question, pair, readings=1).values
    assert "x-moondream-auth" not in world.service.requests[0].headers, "another service's key is not for it"
    with pytest.raises(BadInputError, match="FLEXY_JUDGE=gemini needs a key: set GEMINI_API_KEY, or FLEXY_JUDGE_URL"):
        configured(world, FLEXY_JUDGE="gemini", MOONDREAM_API_KEY=KEY)


def test_a_judge_nobody_knows_is_answered_with_those_there_are(world: World) -> None:
    with pytest.raises(BadInputError, match="invalid FLEXY_JUDGE 'gpt': choose gemini, moondream, local or none"):
        configured(world, FLEXY_JUDGE="gpt")
    with pytest.raises(BadInputError, match="invalid FLEXY_JUDGE_MODEL 'gpt': choose qwen25_vl_7b"):
        configured(world, FLEXY_JUDGE="local", FLEXY_JUDGE_MODEL="gpt")


def test_many_threads_share_a_judge(
    world: World, question: JudgeQuestion, picture: Callable[[int], Image.Image]
) -> None:
    judging = world.judge()
    barrier = threading.Barrier(8)

    def ask(i: int) -> bool:
        barrier.wait()
        return judging.ask(question, [picture(i % 2)] * 2, readings=2).values is not None

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
    assert len(world.service.requests) == 4, "two things to ask, two readings each"
