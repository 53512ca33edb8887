"""Sends a question to a service: in turn, again where that may help, and never beyond the budget."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from resources.errors import BadInputError
from resources.http.retries import backoff_seconds, parse_retry_after
from resources.images import describe_os_error
from resources.judges import JudgeCost, UnansweredError
from resources.settings import Settings

RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})
"""The statuses after which the same request may succeed."""

FATAL_STATUS = 3
"""So many questions left unanswered one after another, and no more are sent: a service that is down stays down."""


@dataclass(frozen=True)
class JudgeLimits:
    """How much is asked of a service, and for how long.

    `a_minute` requests are sent by all processes together, `requests` by this one in all; None is without limit.
    A request is sent up to `attempts` times. Between them pass up to `backoff` seconds, doubled each time, and what
    the service asks for, if that is no more than `longest_wait`. An answer takes up to `timeout` seconds and has up
    to `answer_bytes` bytes.
    """

    a_minute: int | None = None
    requests: int | None = None
    attempts: int = 5
    backoff: float = 1.0
    longest_wait: float = 60.0
    timeout: float = 120.0
    answer_bytes: int = 1_000_000


class _RetryableError(Exception):
    """An attempt that failed; another may succeed, no sooner than after `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0) -> None:
        super().__init__(reason)
        self.wait = wait


class _Session(requests.Session):
    """Follows no redirect: the key is for one service alone. Nor does it read what comes with one, however long."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class JudgeClient:
    """Posts JSON to a service, with the key in a header; the key is in no message and no answer.

    `remedy` is what to look at when the service refuses. `turns` is the file by which processes keep to
    `limits.a_minute` together. Safe to use from several threads.
    """

    def __init__(self, url: str, header: str, key: str, remedy: str, turns: Path, limits: JudgeLimits) -> None:
        self.url = url.rstrip("/")
        self.host = urlsplit(url).hostname or ""
        self.limits = limits
        self._header = header
        self._key = key
        self._remedy = remedy
        self._turns = turns
        self._lock = Lock()
        self._sent = 0
        self._unanswered = 0
        self._last_reason = ""

    @classmethod
    def of(cls, settings: Settings, url: str, header: str) -> JudgeClient:
        """The client for FLEXY_JUDGE's service, at `url` unless FLEXY_JUDGE_URL says otherwise.

        Raises `BadInputError` where the published service is to be asked without a key.
        """
        variable = settings.judge_key_variable
        if not (settings.judge_key or settings.judge_url):
            raise BadInputError(f"FLEXY_JUDGE={settings.judge} needs a key: set {variable}, or FLEXY_JUDGE_URL")
        return cls(
            settings.judge_url or url,
            header,
            settings.judge_key.get_secret_value(),
            remedy=f"check {variable}, FLEXY_JUDGE_MODEL and FLEXY_JUDGE_URL",
            turns=settings.home / "judgements" / f"{settings.judge}.turns",
            limits=JudgeLimits(settings.judge_rpm, settings.judge_max_calls, timeout=settings.judge_timeout),
        )

    def post(self, path: str, document: Mapping[str, Any]) -> tuple[Any, JudgeCost]:
        """The service's answer, as JSON, and the requests it took.

        Raises `UnansweredError` with the reason where none came, the budget is spent, or the service was given up on.
        """
        with self._lock:
            if self._unanswered >= FATAL_STATUS:
                raise UnansweredError(
                    f"not asked, as {FATAL_STATUS} questions in a row were left unanswered: {self._last_reason}"
                )
        body = json.dumps(document).encode()
        attempt = 0
        while True:
            self._spend(attempt)
            self._wait_for_turn()
            attempt += 1
            try:
                answer = self._send(path, body)
            except UnansweredError as error:
                error.cost = JudgeCost(requests=attempt)
                self._count(str(error))
                raise
            except _RetryableError as error:
                if attempt >= self.limits.attempts or error.wait > self.limits.longest_wait:
                    asks = f" and asks to wait {error.wait:.0f} s" if error.wait else ""
                    reason = f"{error}{asks}, tried {attempt} times: run again later"
                    self._count(reason)
                    raise UnansweredError(reason, cost=JudgeCost(requests=attempt)) from None
                time.sleep(error.wait + backoff_seconds(attempt, self.limits.backoff, self.limits.longest_wait))
            else:
                self._count("")
                return answer, JudgeCost(requests=attempt)

    def _count(self, reason: str) -> None:
        """Note a question that was left unanswered, with the reason, or, without one, answered."""
        with self._lock:
            self._unanswered = self._unanswered + 1 if reason else 0
            self._last_reason = reason

    def _spend(self, attempt: int) -> None:
        """Count a request. Raises `UnansweredError` where the budget does not allow for it."""
        with self._lock:
            if self.limits.requests is not None and self._sent >= self.limits.requests:
                spent = f"the budget of {self.limits.requests} requests is spent"
                raise UnansweredError(f"{spent}: run again, or raise FLEXY_JUDGE_MAX_CALLS", cost=JudgeCost(attempt))
            self._sent += 1

    def _wait_for_turn(self) -> None:
        """Wait until a request may be sent: the file holds the time of the next one, whoever sends it."""
        if not self.limits.a_minute:
            return
        apart = 60 / self.limits.a_minute
        try:
            self._turns.parent.mkdir(parents=True, exist_ok=True)
            with self._turns.open("a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                now = time.time()
                try:
                    turn = float(file.read())
                except ValueError:
                    turn = now
                # Hours ahead is no queue, but a clock that was put back.
                turn = turn if now <= turn <= now + 3600 else now
                file.truncate(0)
                file.write(repr(turn + apart))
        except OSError as error:
            raise UnansweredError(
                f"cannot keep the request rate in {self._turns}: {describe_os_error(error)}"
            ) from None
        time.sleep(turn - now)

    def _send(self, path: str, body: bytes) -> Any:
        """One attempt. Raises `_AgainError` where another may succeed, `UnansweredError` where none will."""
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers[self._header] = self._key
        try:
            with (
                _Session() as session,
                session.post(
                    f"{self.url}/{path}", data=body, headers=headers, timeout=self.limits.timeout, stream=True
                ) as response,
            ):
                content = self._read(response)
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            raise _RetryableError(f"{self.host} did not answer within {self.limits.timeout:g} s") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            # Their words may hold the address, and with it what is secret.
            raise _RetryableError(f"no connection to {self.host}, or it broke off ({type(error).__name__})") from None
        text = content.decode("utf-8", "replace")
        if self._key:
            text = text.replace(self._key, "***")
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        if response.status_code in RETRYABLE_STATUS:
            status = f"{self.host} answers with status {response.status_code}"
            raise _RetryableError(status, _asked_to_wait(response.headers.get("Retry-After"), answer))
        if response.status_code != 200:
            said = f" ({words})" if (words := _message(answer)) else ""
            raise UnansweredError(f"{self.host} answers with status {response.status_code}{said}: {self._remedy}")
        if answer is None:
            raise UnansweredError(f"{self.host} answers with what is not JSON: {self._remedy}")
        return answer

    def _read(self, response: requests.Response) -> bytes:
        """The answer's bytes; of one that is too long or too slow, no more than that much."""
        end = time.monotonic() + self.limits.timeout
        content = b""
        while part := response.raw.read1(65536, decode_content=True):
            content += part
            if len(content) > self.limits.answer_bytes:
                raise UnansweredError(
                    f"{self.host} answers with more than {self.limits.answer_bytes} bytes: {self._remedy}"
                )
            if time.monotonic() > end:
                raise requests.Timeout
        return content


def _asked_to_wait(header: str | None, answer: Any) -> float:
    """Seconds that a service asks to wait: by Retry-After, or as Google says it in the answer; 0 if it does not."""
    match answer:
        case {"error": {"details": [*details]}}:
            return parse_retry_after(
                header, *(detail.get("retryDelay") for detail in details if isinstance(detail, dict))
            )
    return parse_retry_after(header)


def _message(answer: Any) -> str:
    """What a service says of an error, on one line."""
    match answer:
        case {"error": {"message": str(words)}} | {"error": str(words)} | {"message": str(words)}:
            return " ".join(words.split())[:200]
    return ""


def count_tokens(document: Any, *names: str) -> int:
    """The sum of some counts in a service's account of what was used; what it does not say counts nothing."""
    counts = [document.get(name) for name in names] if isinstance(document, dict) else []
    return sum(count for count in counts if isinstance(count, int))
