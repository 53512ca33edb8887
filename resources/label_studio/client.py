"""A Label Studio server, over its REST API (https://api.labelstud.io): tasks in, predictions and pictures out."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import requests
import urllib3

from resources.errors import BadInputError, FlexyError
from resources.http.retries import backoff_seconds, parse_retry_after
from resources.settings import Settings

T = TypeVar("T")

RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504})
"""The statuses after which the same request may succeed."""

PAGE_TASKS = 100
"""Tasks asked for at a time."""


class LabelStudioError(FlexyError):
    """What the server would not do, or did not answer; the token is not in the message."""


class _RetryableError(Exception):
    """An attempt that failed; another may succeed, no sooner than after `wait` seconds."""

    def __init__(self, reason: str, wait: float = 0) -> None:
        super().__init__(reason)
        self.wait = wait


class LabelStudioRefusedError(LabelStudioError):
    """An answer that says no, and its HTTP `code`; where it is 400 or 404, another request may still succeed."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class LabelStudioLimits:
    """How long is waited for the server, and how often it is asked.

    An answer takes up to `timeout` seconds and has up to `answer_bytes` bytes. There are up to `attempts`, with up to
    `backoff` seconds between the first two, doubled each time, and what the server asks for, if that is no more than
    `longest_wait`.
    """

    timeout: float = 60.0
    attempts: int = 5
    backoff: float = 1.0
    longest_wait: float = 60.0
    answer_bytes: int = 500_000_000


@dataclass(frozen=True)
class Prediction:
    """An answer to a task: known by `task`, Label Studio's own number, and `model_version`; there is one of each.

    `result` is a list of regions in Label Studio's form, `score` a finite number or None.
    """

    task: int
    model_version: str
    score: float | None
    result: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class PushResult:
    """What became of a prediction: its `id` on the server, `created`, `replaced` or `unchanged`, doubles removed."""

    id: int
    action: str
    removed: int = 0


class _Session(requests.Session):
    """Follows no redirect: the token is for one server alone."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class LabelStudioClient:
    """One server, asked with one person's token: a legacy token, or a personal access token (a JWT).

    What cannot be done raises `LabelStudioError` with the reason in a line. Safe to use from several threads.
    """

    def __init__(self, url: str, key: str, limits: LabelStudioLimits | None = None) -> None:
        self.url = url.rstrip("/")
        self.limits = limits or LabelStudioLimits()
        self._key = key
        self._host = urlsplit(url).hostname or ""
        self._lock = Lock()
        self._access = ""
        self._until = 0.0
        self._uploads: dict[int, dict[str, str]] = {}

    @classmethod
    def of(cls, settings: Settings, limits: LabelStudioLimits | None = None) -> LabelStudioClient:
        """The server that the settings name. Raises `BadInputError` where they name none."""
        if not settings.label_studio_url or not settings.label_studio_key:
            raise BadInputError(
                "no Label Studio is named: set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY (Account & Settings there)"
            )
        return cls(settings.label_studio_url, settings.label_studio_key.get_secret_value(), limits)

    def __repr__(self) -> str:
        return f"LabelStudio({self.url!r})"

    # Who asks

    def authorization(self) -> str:
        """What the Authorization header says; a personal access token is exchanged for one of minutes."""
        if self._key.count(".") != 2:
            return f"Token {self._key}"
        with self._lock:
            if time.time() >= self._until:
                found = self._again(lambda: self._send("POST", "api/token/refresh/", {"refresh": self._key}, bare=True))
                match found:
                    case {"access": str(access)}:
                        # Clocks differ: a token is not used to its end, and one without an end for a minute.
                        self._access, self._until = access, (_expiry(access) or time.time() + 90) - 30
                    case _:
                        raise LabelStudioError(f"{self._name} gives no access token: check LABEL_STUDIO_API_KEY")
            return f"Bearer {self._access}"

    # What there is

    def tasks(self, project: int) -> Iterator[dict[str, Any]]:
        """The tasks of a project in the form of an export, annotations and predictions included, by number."""
        seen: set[int] = set()
        page = 1
        while True:
            asked = f"api/tasks?project={int(project)}&fields=all&page_size={PAGE_TASKS}&page={page}"
            try:
                found = self.call("GET", asked)
            except LabelStudioRefusedError as error:
                # What was the last page may be gone by now.
                if error.code == 404 and page > 1:
                    return
                raise
            match found:
                case {"tasks": [*tasks], "total": int(total)}:
                    pass
                case _:
                    raise LabelStudioError(f"{self._name} answers with no tasks: check LABEL_STUDIO_URL")
            before = len(seen)
            for task in tasks:
                number = task.get("id") if isinstance(task, dict) else None
                if isinstance(number, int) and number not in seen:
                    seen.add(number)
                    yield task
            if len(seen) == before or page * PAGE_TASKS >= total:
                return
            page += 1

    def label_config(self, project: int) -> str:
        """The project's labelling form, as XML."""
        match self.call("GET", f"api/projects/{int(project)}"):
            case {"label_config": str(config)}:
                return config
        raise LabelStudioError(f"{self._name} answers with no project: check LABEL_STUDIO_URL")

    def predictions(self, task: int) -> list[dict[str, Any]]:
        """The predictions of a task, the oldest first."""
        return self._again(lambda: self._predictions(task))

    # What is sent

    def push(self, prediction: Prediction) -> PushResult:
        """See that the server holds `prediction`, once.

        What is there already is left alone, what differs is replaced, doubles are removed. Between any two requests
        the task has a prediction if it had one, so whoever is killed may simply push again.
        """
        if not prediction.model_version or (prediction.score is not None and not math.isfinite(prediction.score)):
            raise BadInputError(
                f"the prediction for task {prediction.task} has no model version or no finite score: give it both"
            )
        return self._again(lambda: self._push(prediction))

    def delete(self, prediction: int) -> None:
        """Remove a prediction by its id; one that is gone already is none to remove."""
        self._again(lambda: self._delete(prediction))

    def upload(self, project: int, content: bytes, extension: str = "png") -> str:
        """Put a picture file into a project's uploads, once by its content, and return its path on the server.

        The path begins with `/`: a task or a prediction of the same server can hold it, and who is signed in there
        can open it. It makes no task.
        """
        name = f"{hashlib.sha256(content).hexdigest()[:32]}.{extension}"
        with self._lock:
            known = self._uploads.get(project)
        if known is None or name not in known:
            known = self._again(lambda: self._upload(project, name, content))
            with self._lock:
                self._uploads[project] = known
        return f"{urlsplit(self.url).path}/data/{quote(known[name])}"

    def call(self, method: str, path: str, document: Any = None) -> Any:
        """The server's answer, as JSON, to any request of its API; None where it has no content.

        A POST is sent once: what it makes could be made twice.
        """
        return self._again(lambda: self._send(method, path, document), 1 if method == "POST" else None)

    def _predictions(self, task: int) -> list[dict[str, Any]]:
        match self._send("GET", f"api/predictions/?task={int(task)}"):
            case [*found] if all(isinstance(each, dict) and isinstance(each.get("id"), int) for each in found):
                return sorted(found, key=lambda each: each["id"])
        raise LabelStudioError(f"{self._name} answers with no predictions: check LABEL_STUDIO_URL")

    def _push(self, prediction: Prediction) -> PushResult:
        """One attempt; as it begins with what is there, another may follow wherever it ended."""
        wanted = json.loads(
            json.dumps(
                {
                    "task": prediction.task,
                    "model_version": prediction.model_version,
                    "score": prediction.score,
                    "result": [*prediction.result],
                }
            )
        )
        held = [
            each for each in self._predictions(prediction.task) if each.get("model_version") == prediction.model_version
        ]
        if not held:
            match self._send("POST", "api/predictions/", wanted):
                case {"id": int(number)}:
                    return PushResult(number, "created")
            raise LabelStudioError(f"{self._name} answers with no prediction: check LABEL_STUDIO_URL")
        first, *doubles = held
        same = all(first.get(key) == value for key, value in wanted.items())
        if not same:
            self._send("PUT", f"api/predictions/{first['id']}/", wanted)
        for double in doubles:
            self._delete(double["id"])
        return PushResult(first["id"], "unchanged" if same else "replaced", len(doubles))

    def _delete(self, prediction: int) -> None:
        try:
            self._send("DELETE", f"api/predictions/{int(prediction)}/")
        except LabelStudioRefusedError as error:
            if error.code != 404:
                raise

    def _upload(self, project: int, name: str, content: bytes) -> dict[str, str]:
        """One attempt, and the project's uploads after it: names as they were given, by them the server's own."""
        held = self._held(project)
        if name in held:
            return held
        refused = LabelStudioError(f"{self._name} does not list {name} after its upload: check the project")
        try:
            self._send("POST", f"api/projects/{int(project)}/import?commit_to_project=false", file=(name, content))
        except LabelStudioRefusedError as error:
            # Of a form with several pictures it cannot make a task, which it was not to make: the file is kept.
            if error.code != 400:
                raise
            refused = error
        held = self._held(project)
        if name not in held:
            raise refused
        return held

    def _held(self, project: int) -> dict[str, str]:
        found = self._send("GET", f"api/projects/{int(project)}/file-uploads?all=true")
        files = [str(each.get("file")) for each in found if isinstance(each, dict)] if isinstance(found, list) else []
        # The server puts something of its own before a name.
        return {file.rpartition("/")[2].partition("-")[2]: file for file in files}

    # How it is sent

    @property
    def _name(self) -> str:
        return f"Label Studio at {self._host}"

    def _again(self, function: Callable[[], T], attempts: int | None = None) -> T:
        """What `function` gives, called anew where that may help."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return function()
            except _RetryableError as error:
                if attempt >= (attempts or self.limits.attempts) or error.wait > self.limits.longest_wait:
                    asks = f" and asks to wait {error.wait:.0f} s" if error.wait else ""
                    times = "once" if attempt == 1 else f"{attempt} times"
                    raise LabelStudioError(f"{error}{asks}, tried {times}: run again later") from None
                time.sleep(error.wait + backoff_seconds(attempt, self.limits.backoff, self.limits.longest_wait))

    def _send(
        self, method: str, path: str, document: Any = None, file: tuple[str, bytes] | None = None, bare: bool = False
    ) -> Any:
        """One attempt, `bare` without the token. Raises `_AgainError` where another may succeed."""
        told = "" if bare else self.authorization()

        def signed(request: requests.PreparedRequest) -> requests.PreparedRequest:
            # As a function, because the user's .netrc would overwrite the header.
            if told:
                request.headers["Authorization"] = told
            return request

        try:
            with (
                _Session() as session,
                session.request(
                    method,
                    f"{self.url}/{path}",
                    json=document,
                    files={"file": file} if file else None,
                    auth=signed,
                    timeout=self.limits.timeout,
                    stream=True,
                ) as response,
            ):
                content = self._read(response)
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            raise _RetryableError(f"{self._name} did not answer within {self.limits.timeout:g} s") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            # Their words may hold the address, and with it what is secret.
            raise _RetryableError(
                f"no connection to {self._name}, or it broke off ({type(error).__name__}): check LABEL_STUDIO_URL"
            ) from None
        status = response.status_code
        if status in RETRYABLE_STATUS:
            wait = parse_retry_after(response.headers.get("Retry-After"))
            raise _RetryableError(f"{self._name} answers with status {status}", wait)
        if status == 204 or (status < 300 and not content.strip()):
            return None
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if status == 401 and told.startswith("Bearer "):
            # It may have run out by the server's clock.
            with self._lock:
                self._until = 0.0
            raise _RetryableError(f"{self._name} does not take the access token that it gave")
        if not 200 <= status < 300:
            said = f" ({words})" if (words := self._hidden(_message(answer))) else ""
            raise LabelStudioRefusedError(status, f"{self._name} answers with status {status}{said}: {_remedy(status)}")
        if answer is None:
            raise LabelStudioError(f"{self._name} answers with what is not JSON: check LABEL_STUDIO_URL")
        return answer

    def _hidden(self, text: str) -> str:
        for secret in (self._key, self._access):
            text = text.replace(secret, "***") if secret else text
        return text

    def _read(self, response: requests.Response) -> bytes:
        """The answer's bytes; of one that is too long or too slow, no more than that much."""
        end = time.monotonic() + self.limits.timeout
        parts, length = [], 0
        while part := response.raw.read1(65536, decode_content=True):
            parts.append(part)
            length += len(part)
            if length > self.limits.answer_bytes:
                raise LabelStudioError(f"{self._name} answers with more than {self.limits.answer_bytes} bytes")
            if time.monotonic() > end:
                raise requests.Timeout
        return b"".join(parts)


def _expiry(token: str) -> float | None:
    """When a JWT ends, in seconds of the epoch, if it says so."""
    try:
        said = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["exp"]
        return float(said)
    except (ValueError, LookupError, TypeError):
        return None


def _message(answer: Any) -> str:
    """What the server says of an error, on one line."""
    match answer:
        case {"validation_errors": dict(errors)} if errors:
            words = json.dumps(errors, ensure_ascii=False)
        case {"detail": str(words)}:
            pass
        case _:
            return ""
    return re.sub(r"[\x00-\x1f\x7f]", "", " ".join(words.split()))[:200]


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "check LABEL_STUDIO_API_KEY, and that such tokens are enabled there"
    if 300 <= status < 400:
        return "set LABEL_STUDIO_URL to where it sends its visitors"
    return "check the project and the task" if status == 404 else "check what was sent"
