"""Two who send at once to one Label Studio, which keeps what it is sent as the real one does."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from resources.database import Database
from resources.settings import Settings
from tests.conftest import Flexy
from tests.inpaint.scenes import choose, data, entry, serving, write
from tests.support import forked
from tests.support.servers import LoopbackServer, running

pytestmark = pytest.mark.slow(seconds=30)

TASKS = 4
FORM = '<View><Image name="init" value="$i"/><TextArea name="result" toName="init"/></View>'


class Studio(LoopbackServer):
    """The predictions and uploads of one project; each answer takes a moment, in which others are answered too."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.predictions: list[dict[str, Any]] = []
        self.uploads: list[str] = []
        self.asked: Counter[str] = Counter()


class _Handler(BaseHTTPRequestHandler):
    server: Studio

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        studio, parts = self.server, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with studio.lock:
            studio.asked[f"{self.command} {parts.path}"] += 1
            answer = self._answer(parts.path, parse_qs(parts.query), body)
        time.sleep(0.1)
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        studio = self.server
        match self.command, path.strip("/").split("/")[1:]:
            case "GET", ["projects", number]:
                return {"id": int(number), "label_config": FORM}
            case "GET", ["projects", _, "file-uploads"]:
                return [{"file": f"upload/3/{number:08x}-{name}"} for number, name in enumerate(studio.uploads)]
            case "POST", ["projects", _, "import"]:
                studio.uploads.append(body.partition(b'filename="')[2].partition(b'"')[0].decode())
                return {}
            case "GET", ["predictions"]:
                return [each for each in studio.predictions if str(each["task"]) in query["task"]]
            case "POST", ["predictions"]:
                studio.predictions.append(json.loads(body) | {"id": len(studio.predictions) + 1})
                return studio.predictions[-1]
        raise ValueError(self.path)


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    with running(Studio()) as studio:
        monkeypatch.setenv("LABEL_STUDIO_URL", f"http://{studio.host}")
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", "0" * 40)
        yield studio


@pytest.fixture
def chosen(flexy: Flexy, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of tasks with something chosen for each."""
    with serving() as site, monkeypatch.context() as patch:
        patch.setenv("FLEXY_ALLOWED_HOSTS", site.host)
        write(home / "export.json", [entry(data(site, n)) for n in range(TASKS)])
        assert flexy("inpaint", "import", str(home / "export.json")).exit_code == 0
    database = Database(Settings.read().database_url)
    choose(database, [10.0 + n for n in range(TASKS)])
    database.engine.dispose()


@pytest.mark.usefixtures("chosen")
def test_two_who_push_at_once_make_each_prediction_once(studio: Studio) -> None:
    command = [sys.executable, "-m", "flexy_assets.cli.app", "inpaint", "push", "--json"]
    pushers = [forked.Popen(command, stdout=forked.PIPE, stderr=forked.PIPE) for _ in range(2)]
    said = [pusher.communicate(timeout=100) for pusher in pushers]
    answers = [json.loads(out) for out, _ in said]
    assert [pusher.returncode for pusher in pushers] == [0, 0], said
    assert sorted((each["created"], each["unchanged"], each["unsent"]) for each in answers) == [
        (0, TASKS, 0),
        (TASKS, 0, 0),
    ]
    assert len({each["task"] for each in studio.predictions}) == len(studio.predictions) == TASKS
    assert len(set(studio.uploads)) == len(studio.uploads) == TASKS
    assert "PUT" not in {asked.split()[0] for asked in studio.asked}
