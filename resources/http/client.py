"""The HTTP client under the judges, Label Studio and the downloads: limits, retries, no redirects, secrets masked."""

import json
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3

from resources.errors import FlexyError
from resources.json_lines import parse_json

T = TypeVar("T")

RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class HttpLimits:
    """Limits on the requests to one server.

    An attempt takes up to `timeout` seconds, each wait for the next bytes up to `idle_timeout` (None: `timeout`). An
    answer has up to `answer_bytes` bytes. A request is tried up to `attempts` times. Between two attempts pass up to
    `backoff` seconds, doubled each time, and what the server asks for, if that is no more than `longest_wait` seconds.
    """

    timeout: float = 60.0
    idle_timeout: float | None = None
    attempts: int = 5
    backoff: float = 1.0
    longest_wait: float = 60.0
    answer_bytes: int = 500_000_000

    @property
    def longest_silence(self) -> float:
        """Seconds to wait for the next bytes."""
        return self.idle_timeout or self.timeout


class RetryableError(Exception):
    """A failed attempt after which another may succeed, `wait` seconds later at the earliest."""

    def __init__(self, reason: str, wait: float = 0, remedy: str = "run again later") -> None:
        super().__init__(reason)
        self.wait = wait
        self.remedy = remedy


@dataclass(frozen=True)
class HttpAnswer:
    """A server's answer: `document` is its body as JSON, None where it is not JSON."""

    status: int
    empty: bool
    document: Any


def call_with_retries(
    function: Callable[[], T], limits: HttpLimits, make_error: Callable[[str], FlexyError], attempts: int | None = None
) -> T:
    """Return what `function` returns, and call it again after each `RetryableError`.

    Raises `make_error(reason)` once `attempts`, by default those of `limits`, are exhausted, and at once where the
    server asks to wait longer than `limits` allow.
    """
    attempt = 1
    while True:
        try:
            return function()
        except RetryableError as error:
            if attempt >= (attempts or limits.attempts) or error.wait > limits.longest_wait:
                wait = f" and asks to wait {error.wait:.0f} s" if error.wait else ""
                times = "once" if attempt == 1 else f"{attempt} times"
                raise make_error(f"{error}{wait}, tried {times}: {error.remedy}") from None
            # Random, so that clients that failed together do not return together.
            backoff = limits.backoff * 2.0 ** (attempt - 1) * random.uniform(0.5, 1)
            time.sleep(error.wait + min(limits.longest_wait, backoff))
        attempt += 1


def parse_retry_after(*values: str | None) -> float:
    """Return the seconds to wait by the first of `values` that is readable as a Retry-After header; else 0."""
    for value in values:
        try:
            seconds = float(str(value).removesuffix("s"))
        except ValueError:
            try:
                seconds = (parsedate_to_datetime(str(value)) - datetime.now(UTC)).total_seconds()
            except (ValueError, TypeError):
                continue
        if not math.isnan(seconds):
            return max(0.0, seconds)
    return 0.0


class _Session(requests.Session):
    """Follows no redirect, because a secret is for one server alone, and does not read a redirect's body."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class HttpClient:
    """Sends requests to one server and reads its answers as JSON.

    `name` and `remedy` are the server's name and the last part of the message where it does not answer as expected;
    `make_error` makes that exception from its message. Safe to use from several threads.
    """

    def __init__(
        self, url: str, limits: HttpLimits, make_error: Callable[[str], FlexyError], remedy: str, name: str = ""
    ) -> None:
        self.url = url.rstrip("/")
        self.name = name or urlsplit(url).hostname or ""
        self.limits = limits
        self.remedy = remedy
        self._make_error = make_error

    def call_with_retries(self, function: Callable[[], T], attempts: int | None = None) -> T:
        """Return what `function` returns; it sends requests and is called again after a `RetryableError`."""
        return call_with_retries(function, self.limits, self._make_error, attempts)

    def send(
        self,
        method: str,
        path: str,
        document: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        file: tuple[str, bytes] | None = None,
        secrets: Iterable[str] = (),
    ) -> HttpAnswer:
        """Send one request and return the answer, whatever its status, with `secrets` masked in it.

        Raises `RetryableError` where another attempt may succeed, and `make_error` for an answer that is too large.
        """

        def set_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
            # Set here, because a .netrc of the user would overwrite an Authorization header.
            request.headers.update(headers or {})
            return request

        try:
            with (
                _Session() as session,
                session.request(
                    method,
                    f"{self.url}/{path}",
                    json=document,
                    files={"file": file} if file else None,
                    auth=set_headers,
                    timeout=self.limits.longest_silence,
                    stream=True,
                ) as response,
            ):
                content = self._read(response)
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            raise RetryableError(f"{self.name} did not answer within {self.limits.timeout:g} s") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            # The library's own words may hold the URL, and with it a secret.
            raise RetryableError(
                f"no connection to {self.name}, or it broke off ({type(error).__name__})",
                remedy=f"{self.remedy}, or run again later",
            ) from None
        text = mask_secrets(content.decode("utf-8", "replace"), secrets)
        try:
            document = parse_json(text)
        except ValueError:
            document = None
        answer = HttpAnswer(response.status_code, not text.strip(), document)
        if answer.status in RETRYABLE_STATUS:
            wait = _requested_wait(response.headers.get("Retry-After"), answer.document)
            raise RetryableError(f"{self.name} answers with status {answer.status}", wait)
        return answer

    def _read(self, response: requests.Response) -> bytes:
        """Return the body, and read no more of it than the limits on size and time allow."""
        end = time.monotonic() + self.limits.timeout
        parts, length = [], 0
        while part := response.raw.read1(65536, decode_content=True):
            parts.append(part)
            length += len(part)
            if length > (limit := self.limits.answer_bytes):
                raise self._make_error(f"{self.name} answers with more than {limit} bytes: {self.remedy}")
            if time.monotonic() > end:
                raise requests.Timeout
        return b"".join(parts)

    def describe_status(self, answer: HttpAnswer, secrets: Iterable[str] = ()) -> str:
        """Return the status of an answer that refuses, and the server's reason with `secrets` masked, on one line."""
        reason = mask_secrets(_error_message(answer.document), secrets)[:200]
        return f"{self.name} answers with status {answer.status}{f' ({reason})' if reason else ''}"

    def require_document(self, answer: HttpAnswer) -> Any:
        """Return the answer's JSON document. Raises `make_error` where it is not JSON."""
        if answer.document is None:
            raise self._make_error(f"{self.name} answers with what is not JSON: {self.remedy}")
        return answer.document


def mask_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return `text` with `***` in the place of each of `secrets`; empty ones are ignored."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def _error_message(document: Any) -> str:
    """Return the reason that a server gives for an error, on one line; "" where it gives none."""
    match document:
        case {"validation_errors": dict(errors)} if errors:
            text = json.dumps(errors, ensure_ascii=False)
        case {"error": {"message": str(text)}} | {"error": str(text)} | {"message": str(text)} | {"detail": str(text)}:
            pass
        case _:
            return ""
    return re.sub(r"[\x00-\x1f\x7f]", "", " ".join(text.split()))


def _requested_wait(header: str | None, document: Any) -> float:
    """Return the seconds that a server asks to wait, by Retry-After or by Google's RetryInfo in the answer; else 0."""
    match document:
        case {"error": {"details": [*details]}}:
            delays = [detail.get("retryDelay") for detail in details if isinstance(detail, dict)]
            return parse_retry_after(header, *delays)
    return parse_retry_after(header)
