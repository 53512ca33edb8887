"""Sends a question to a service within the request rate and the budget."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from resources.errors import BadInputError
from resources.files import describe_os_error, folder_lock
from resources.http.client import HttpAnswer, HttpClient, HttpLimits
from resources.judges import JudgeCost, UnansweredError
from resources.settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_UNANSWERED = 3
"""After this many unanswered questions in a row no more are sent: the service is taken to be down."""


@dataclass(frozen=True, kw_only=True)
class JudgeLimits(HttpLimits):
    """Limits on the requests to a judge; None is without limit.

    All processes together send `requests_per_minute`, this one sends `max_requests` in all.
    """

    requests_per_minute: int | None = None
    max_requests: int | None = None
    timeout: float = 120.0
    answer_bytes: int = 1_000_000


class _NotSentError(UnansweredError):
    """A request that was not sent, which says nothing about the service."""


class JudgeClient:
    """Posts JSON to a service, with the key in a header; the key is in no message and no answer.

    `remedy` says what to check when the service refuses. `turns` is the file by which processes keep to
    `limits.requests_per_minute` together. Safe to use from several threads.
    """

    def __init__(self, url: str, header: str, key: str, remedy: str, turns: Path, limits: JudgeLimits) -> None:
        self.http = HttpClient(url, limits, UnansweredError, remedy)
        self.limits = limits
        self._header = header
        self._key = key
        self._turns = turns
        self._lock = Lock()
        self._sent = 0
        self._unanswered = 0
        self._last_error = ""

    @classmethod
    def from_settings(cls, settings: Settings, url: str, header: str) -> JudgeClient:
        """Return the client for FLEXY_JUDGE's service, by default at `url`. Raises `BadInputError` without its key."""
        variable = settings.judge_key_variable
        if not (settings.judge_key or settings.judge_url):
            raise BadInputError(f"FLEXY_JUDGE={settings.judge} needs a key: set {variable}, or FLEXY_JUDGE_URL")
        return cls(
            settings.judge_url or url,
            header,
            settings.judge_key.get_secret_value(),
            remedy=f"check {variable}, FLEXY_JUDGE_MODEL and FLEXY_JUDGE_URL",
            turns=settings.home / "judgements" / f"{settings.judge}.turns",
            limits=JudgeLimits(
                requests_per_minute=settings.judge_rpm,
                max_requests=settings.judge_max_calls,
                timeout=settings.judge_timeout,
            ),
        )

    def post(self, path: str, document: Mapping[str, Any]) -> tuple[Any, JudgeCost]:
        """Return the service's answer, as JSON, and the requests it took.

        Raises `UnansweredError` with the reason where no answer came, the budget is spent, or too many questions in
        a row were left unanswered.
        """
        with self._lock:
            if self._unanswered >= MAX_UNANSWERED:
                raise UnansweredError(f"not sent: {MAX_UNANSWERED} questions in a row failed: {self._last_error}")
        sent = 0

        def send() -> HttpAnswer:
            nonlocal sent
            self._spend()
            self._wait_for_turn()
            sent += 1
            headers = {self._header: self._key} if self._key else {}
            return self.http.send("POST", path, document, headers=headers, secrets=[self._key])

        try:
            answer = self.http.call_with_retries(send)
            if answer.status != 200:
                raise UnansweredError(f"{self.http.describe_status(answer)}: {self.http.remedy}")
            content = self.http.require_document(answer)
        except UnansweredError as error:
            error.cost = JudgeCost(requests=sent)
            if not isinstance(error, _NotSentError):
                with self._lock:
                    self._unanswered, self._last_error = self._unanswered + 1, str(error)
            raise
        with self._lock:
            self._unanswered = 0
        return content, JudgeCost(requests=sent)

    def _spend(self) -> None:
        """Count a request. Raises `UnansweredError` where the budget is spent."""
        with self._lock:
            if self.limits.max_requests is not None and self._sent >= self.limits.max_requests:
                spent = f"the budget of {self.limits.max_requests} requests is spent"
                raise _NotSentError(f"{spent}: run again, or raise FLEXY_JUDGE_MAX_CALLS")
            self._sent += 1

    def _wait_for_turn(self) -> None:
        """Wait until a request may be sent: the file holds the time of the next one of any process."""
        if not self.limits.requests_per_minute:
            return
        interval = 60 / self.limits.requests_per_minute
        try:
            with folder_lock(self._turns.parent):
                now = time.time()
                try:
                    turn = float(self._turns.read_text())
                except (FileNotFoundError, ValueError):
                    turn = now
                # A time hours ahead is not a queue but a clock that was set back.
                turn = turn if now <= turn <= now + 3600 else now
                self._turns.write_text(repr(turn + interval))
        except OSError as error:
            raise _NotSentError(f"cannot keep the request rate in {self._turns}: {describe_os_error(error)}") from None
        time.sleep(turn - now)


def count_tokens(document: Any, usage: str, *names: str) -> int:
    """Return the sum of the token counts called `names` under `usage` in a service's answer; missing ones count 0."""
    match document:
        case dict() if isinstance(counts := document.get(usage), dict):
            return sum(counts[name] for name in names if isinstance(counts.get(name), int))
    return 0


def encode_image(image: Image, file_format: str, **options: Any) -> str:
    """Return the file of an image, `PNG` or `JPEG`, in base64."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return base64.b64encode(buffer.getvalue()).decode()
