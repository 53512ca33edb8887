"""A Label Studio server, over its REST API (https://api.labelstud.io): tasks in, predictions and images out."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import Any
from urllib.parse import quote, urlsplit

from resources.errors import BadInputError, FlexyError
from resources.http.client import HttpAnswer, HttpClient, HttpLimits, RetryableError
from resources.settings import Settings

PAGE_TASKS = 100
"""Tasks in one page of the list."""


class LabelStudioError(FlexyError):
    """A request that failed; the token is not in the message."""


class LabelStudioRefusedError(LabelStudioError):
    """A request that the server refused with the HTTP status `code`; after 400 or 404 other requests may succeed."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Prediction:
    """A prediction for a task, identified by `task`, Label Studio's own number, and `model_version`.

    `result` holds regions in Label Studio's form, `score` is a finite number or None.
    """

    task: int
    model_version: str
    score: float | None
    result: list[dict[str, Any]]


@dataclass(frozen=True)
class PushResult:
    """The result of a push: the `id` on the server, `created`, `replaced` or `unchanged`, duplicates `removed`."""

    id: int
    action: str
    removed: int = 0


class LabelStudioClient:
    """One server and one person's token: a legacy token, or a personal access token (a JWT).

    Failures raise `LabelStudioError` with the cause on one line. Safe to use from several threads.
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
        """Return the client for the server in the settings. Raises `BadInputError` where they name none."""
        if not settings.label_studio_url or not settings.label_studio_key:
            remedy = "set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY (under Account & Settings there)"
            raise BadInputError(f"no Label Studio is configured: {remedy}")
        return cls(settings.label_studio_url, settings.label_studio_key.get_secret_value(), limits)

    def __repr__(self) -> str:
        return f"LabelStudio({self.url!r})"

    def authorization(self) -> str:
        """Return the Authorization header; a personal access token is exchanged for one that is valid for minutes."""
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

    # Reading

    def tasks(self, project: int) -> Iterator[dict[str, Any]]:
        """Yield the tasks of a project as an export has them, annotations and predictions included, by number."""
        numbers: set[int] = set()
        for page in count(1):
            path = f"api/tasks?project={int(project)}&fields=all&page_size={PAGE_TASKS}&page={page}"
            try:
                document = self.call("GET", path)
            except LabelStudioRefusedError as error:
                # The last page may have been deleted in the meantime.
                if error.code == 404 and page > 1:
                    return
                raise
            match document:
                case {"tasks": [*tasks], "total": int(total)}:
                    pass
                case _:
                    raise LabelStudioError(f"{self.http.name} answers without tasks: check LABEL_STUDIO_URL")
            numbered = [task for task in tasks if isinstance(task, dict) and isinstance(task.get("id"), int)]
            new = {task["id"]: task for task in numbered if task["id"] not in numbers}
            yield from new.values()
            numbers |= new.keys()
            if not new or page * PAGE_TASKS >= total:
                return

    def label_config(self, project: int) -> str:
        """Return the project's labelling form, as XML."""
        match self.call("GET", f"api/projects/{int(project)}"):
            case {"label_config": str(config)}:
                return config
        raise LabelStudioError(f"{self.http.name} answers without a project: check LABEL_STUDIO_URL")

    def predictions(self, task: int) -> list[dict[str, Any]]:
        """Return the predictions of a task, the oldest first."""
        return self.http.call_with_retries(lambda: self._predictions(task))

    # Writing

    def push(self, prediction: Prediction) -> PushResult:
        """Make sure that the server holds `prediction`, once.

        An equal prediction is left alone, a different one is replaced, duplicates are removed. Between any two
        requests the task has a prediction if it had one, so a killed push is simply repeated.
        """
        if not prediction.model_version or (prediction.score is not None and not math.isfinite(prediction.score)):
            rule = "must have a model version, and a finite score or none"
            raise BadInputError(f"invalid prediction for task {prediction.task}: {rule}")
        return self.http.call_with_retries(lambda: self._push(prediction))

    def delete(self, prediction: int) -> None:
        """Delete a prediction by its id; one that does not exist is no error."""
        self.http.call_with_retries(lambda: self._delete(prediction))

    def upload(self, project: int, content: bytes, extension: str = "png") -> str:
        """Upload an image file to a project, once by its content, and return its path on the server.

        The path begins with `/`: a task or a prediction of the same server can hold it, and a signed-in user can
        open it. No task is created.
        """
        name = f"{hashlib.sha256(content).hexdigest()[:32]}.{extension}"
        with self._lock:
            uploads = self._uploads.get(project)
        if uploads is None or name not in uploads:
            uploads = self.http.call_with_retries(lambda: self._upload(project, name, content))
            with self._lock:
                self._uploads[project] = uploads
        return f"{urlsplit(self.url).path}/data/{quote(uploads[name])}"

    def call(self, method: str, path: str, document: Any = None) -> Any:
        """Return the server's answer, as JSON, to any request of its API; None where it has no content.

        A POST is tried once, because a second one could create a duplicate.
        """
        return self.http.call_with_retries(lambda: self._send(method, path, document), 1 if method == "POST" else None)

    def _predictions(self, task: int) -> list[dict[str, Any]]:
        match self._send("GET", f"api/predictions/?task={int(task)}"):
            case [*rows] if all(isinstance(row, dict) and isinstance(row.get("id"), int) for row in rows):
                return sorted(rows, key=lambda row: row["id"])
        raise LabelStudioError(f"{self.http.name} answers without predictions: check LABEL_STUDIO_URL")

    def _push(self, prediction: Prediction) -> PushResult:
        """Push in one attempt; it begins by reading the server's state, so another may follow wherever it ended."""
        wanted = json.loads(json.dumps(vars(prediction)))
        rows = self._predictions(prediction.task)
        existing = [row for row in rows if row.get("model_version") == prediction.model_version]
        if not existing:
            match self._send("POST", "api/predictions/", wanted):
                case {"id": int(number)}:
                    return PushResult(number, "created")
            raise LabelStudioError(f"{self.http.name} answers without a prediction: check LABEL_STUDIO_URL")
        first, *duplicates = existing
        equal = all(first.get(key) == value for key, value in wanted.items())
        if not equal:
            self._send("PUT", f"api/predictions/{first['id']}/", wanted)
        for duplicate in duplicates:
            self._delete(duplicate["id"])
        return PushResult(first["id"], "unchanged" if equal else "replaced", len(duplicates))

    def _delete(self, prediction: int) -> None:
        try:
            self._send("DELETE", f"api/predictions/{int(prediction)}/")
        except LabelStudioRefusedError as error:
            if error.code != 404:
                raise

    def _upload(self, project: int, name: str, content: bytes) -> dict[str, str]:
        """Upload in one attempt; return the project's uploads: the server's names by ours."""
        uploads = self._list_uploads(project)
        if name in uploads:
            return uploads
        refusal = LabelStudioError(f"{self.http.name} does not list {name} after its upload: check the project")
        try:
            self._send("POST", f"api/projects/{int(project)}/import?commit_to_project=false", file=(name, content))
        except LabelStudioRefusedError as error:
            # With several images in the form the server cannot create a task, which is not wanted: the file is kept.
            if error.code != 400:
                raise
            refusal = error
        uploads = self._list_uploads(project)
        if name not in uploads:
            raise refusal
        return uploads

    def _list_uploads(self, project: int) -> dict[str, str]:
        rows = self._send("GET", f"api/projects/{int(project)}/file-uploads?all=true")
        files = [str(row.get("file")) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        # The server puts a prefix of its own before a name.
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
        return "set LABEL_STUDIO_URL to the URL that it redirects to"
    return "check the project and the task" if status == 404 else "check what was sent"
