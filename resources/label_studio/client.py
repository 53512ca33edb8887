"""A Label Studio server, over its REST API (https://api.labelstud.io): tasks in, predictions and pictures out."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any
from urllib.parse import quote, urlsplit

from resources.errors import BadInputError, FlexyError
from resources.http.client import HttpAnswer, HttpClient, HttpLimits, RetryableError
from resources.settings import Settings

PAGE_TASKS = 100
"""Tasks asked for at a time."""


class LabelStudioError(FlexyError):
    """What the server would not do, or did not answer; the token is not in the message."""


class LabelStudioRefusedError(LabelStudioError):
    """An answer that says no, and its HTTP `code`; where it is 400 or 404, another request may still succeed."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


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


class LabelStudioClient:
    """One server, asked with one person's token: a legacy token, or a personal access token (a JWT).

    What cannot be done raises `LabelStudioError` with the reason in a line. Safe to use from several threads.
    """

    def __init__(self, url: str, key: str, limits: HttpLimits | None = None) -> None:
        self.url = url.rstrip("/")
        name = f"Label Studio at {urlsplit(url).hostname or ''}"
        self.http = HttpClient(url, limits or HttpLimits(), LabelStudioError, "check LABEL_STUDIO_URL", name)
        self._key = key
        self._lock = Lock()
        self._access = ""
        self._expires = 0.0
        self._uploads: dict[int, dict[str, str]] = {}

    @classmethod
    def from_settings(cls, settings: Settings, limits: HttpLimits | None = None) -> LabelStudioClient:
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
            if time.time() >= self._expires:
                answer = self.http.call_with_retries(
                    lambda: self.http.send("POST", "api/token/refresh/", {"refresh": self._key})
                )
                match self._read_document(answer):
                    case {"access": str(access)}:
                        # Clocks differ: a token is renewed 30 s before its end, one that names no end after a minute.
                        self._access, self._expires = access, (_expiry(access) or time.time() + 90) - 30
                    case _:
                        raise LabelStudioError(f"{self.http.name} gives no access token: check LABEL_STUDIO_API_KEY")
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
                    raise LabelStudioError(f"{self.http.name} answers with no tasks: check LABEL_STUDIO_URL")
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
        raise LabelStudioError(f"{self.http.name} answers with no project: check LABEL_STUDIO_URL")

    def predictions(self, task: int) -> list[dict[str, Any]]:
        """The predictions of a task, the oldest first."""
        return self.http.call_with_retries(lambda: self._predictions(task))

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
        return self.http.call_with_retries(lambda: self._push(prediction))

    def delete(self, prediction: int) -> None:
        """Remove a prediction by its id; one that is gone already is none to remove."""
        self.http.call_with_retries(lambda: self._delete(prediction))

    def upload(self, project: int, content: bytes, extension: str = "png") -> str:
        """Put a picture file into a project's uploads, once by its content, and return its path on the server.

        The path begins with `/`: a task or a prediction of the same server can hold it, and who is signed in there
        can open it. It makes no task.
        """
        name = f"{hashlib.sha256(content).hexdigest()[:32]}.{extension}"
        with self._lock:
            known = self._uploads.get(project)
        if known is None or name not in known:
            known = self.http.call_with_retries(lambda: self._upload(project, name, content))
            with self._lock:
                self._uploads[project] = known
        return f"{urlsplit(self.url).path}/data/{quote(known[name])}"

    def call(self, method: str, path: str, document: Any = None) -> Any:
        """Return the server's answer, as JSON, to any request of its API; None where it has no content.

        A POST is sent once: what it makes could be made twice.
        """
        return self.http.call_with_retries(lambda: self._send(method, path, document), 1 if method == "POST" else None)

    def _predictions(self, task: int) -> list[dict[str, Any]]:
        match self._send("GET", f"api/predictions/?task={int(task)}"):
            case [*found] if all(isinstance(each, dict) and isinstance(each.get("id"), int) for each in found):
                return sorted(found, key=lambda each: each["id"])
        raise LabelStudioError(f"{self.http.name} answers with no predictions: check LABEL_STUDIO_URL")

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
            raise LabelStudioError(f"{self.http.name} answers with no prediction: check LABEL_STUDIO_URL")
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
        refused = LabelStudioError(f"{self.http.name} does not list {name} after its upload: check the project")
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

    # Requests

    def _send(self, method: str, path: str, document: Any = None, file: tuple[str, bytes] | None = None) -> Any:
        """Send one request with the token. Raises `RetryableError` where another attempt may succeed."""
        token = self.authorization()
        answer = self.http.send(method, path, document, headers={"Authorization": token}, file=file)
        if answer.status == 401 and token.startswith("Bearer "):
            # By the server's clock it may have expired.
            with self._lock:
                self._expires = 0.0
            raise RetryableError(f"{self.http.name} does not accept the access token that it issued")
        return self._read_document(answer)

    def _read_document(self, answer: HttpAnswer) -> Any:
        """Return the JSON document of an answer, None where it is empty. Raises `LabelStudioError` for a refusal."""
        if not 200 <= answer.status < 300:
            reason = self.http.describe_status(answer, (self._key, self._access))
            raise LabelStudioRefusedError(answer.status, f"{reason}: {_remedy(answer.status)}")
        return None if answer.empty else self.http.require_document(answer)


def _expiry(token: str) -> float | None:
    """Return when a JWT expires, in seconds since the epoch; None where it does not say."""
    try:
        return float(json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["exp"])
    except (ValueError, LookupError, TypeError):
        return None


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "check LABEL_STUDIO_API_KEY, and that such tokens are enabled there"
    if 300 <= status < 400:
        return "set LABEL_STUDIO_URL to where it sends its visitors"
    return "check the project and the task" if status == 404 else "check what was sent"
