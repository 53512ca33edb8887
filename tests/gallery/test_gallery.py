"""The gallery as a browser and as a stranger meet it: a real server, a real run, a real Chromium."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
import requests
from PIL import Image

from flexy_assets.execution import dagster_instance
from flexy_assets.storage.runs import add_images
from flexy_assets.sweep.try_image import trial_sweep_id
from resources.database import Database
from resources.images import ImageStore
from resources.metrics.sweep import METRICS
from resources.settings import Settings
from tests.support import forked
from tests.support.browser import Browser

pytestmark = pytest.mark.slow(seconds=40)

ROOT = Path(__file__).parent.parent.parent
HOSTILE = '<img src=x onerror="window.pwned=1">\'"></script><script>window.pwned=1</script>'
TRIAL = {"prompt": "a large red circle on a white background", "seed": 7, "steps": 2}


@dataclass(frozen=True)
class Gallery:
    """A server with a home of its own."""

    address: str
    home: Path
    database: Database

    def get(self, path: str, **parameters: Any) -> Any:
        answer = requests.get(f"{self.address}{path}", params=parameters, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, body: str | bytes, **headers: str) -> requests.Response:
        own = {"Origin": self.address, "Content-Type": "application/json"}
        return requests.post(f"{self.address}/trials", data=body, headers=own | headers, timeout=60)

    def raw(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and document of a path that is sent as it is."""
        host = urlsplit(self.address)
        with socket.create_connection((host.hostname, host.port), timeout=60) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host.netloc}\r\nConnection: close\r\n\r\n".encode())
            head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)

    def made(self, image_id: str) -> dict[str, Any]:
        """What the page is told of a trial when it has ended."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            told = next(trial for trial in self.get("/trials")["trials"] if trial["id"] == image_id)
            if told["state"] in ("done", "failed"):
                return told
            time.sleep(0.2)
        raise TimeoutError(told)

    def add(self, **columns: Any) -> str:
        """The id of a new image that nobody but us knows of."""
        row = {"id": uuid4(), "engine": "mini_sdxl", "prompt": "a cross", "steps": 8, "batch": "x"} | columns
        with self.database.begin() as connection:
            add_images(connection, [row])
        return str(row["id"])

    def rows(self) -> list[dict[str, Any]]:
        with self.database.begin(reading=True) as connection:
            return [dict(row) for row in connection.exec_driver_sql("SELECT * FROM bench_run_results").mappings()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gallery")


@pytest.fixture(scope="module")
def gallery(home: Path) -> Iterator[Gallery]:
    """`flexy gallery` as a process of its own; Ctrl-C ends it in good order."""
    own = {"FLEXY_HOME": home, "FLEXY_DAGSTER_STORAGE": home / "dagster", "DAGSTER_HOME": ROOT, "FLEXY_MODELS": "mini"}
    others = {name: value for name, value in os.environ.items() if not name.startswith("FLEXY_")}
    process = forked.Popen(
        [sys.executable, "-m", "flexy_assets.cli.app", "gallery", "--port", "0"],
        cwd=ROOT,
        env=others | {name: str(value) for name, value in own.items()},
        stdout=forked.PIPE,
        stderr=forked.PIPE,
        text=True,
    )
    assert process.stderr
    said = process.stderr.readline()
    address = next(word.rstrip(":") for word in said.split() if word.startswith("http"))
    database = Database(f"sqlite:///{home / 'flexy.sqlite'}")
    try:
        yield Gallery(address, home, database)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out, errors) == (0, "gallery closed: completed work is kept\n", "")
    finally:
        process.kill()
        process.wait()
        database.engine.dispose()


@pytest.fixture(scope="module")
def trial(gallery: Gallery) -> dict[str, Any]:
    """A trial that was asked for and has ended, as the page is told of it."""
    answer = gallery.post(json.dumps(TRIAL))
    assert (answer.status_code, answer.json()["exists"]) == (202, False)
    return gallery.made(answer.json()["id"])


# Trying


def test_a_trial_ends_as_an_image_with_four_scores_in_the_tables_and_a_run_in_dagster(
    gallery: Gallery, trial: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (trial["state"], trial["error"]) == ("done", None)
    image, (row,) = trial["image"], [row for row in gallery.rows() if row["prompt"] == TRIAL["prompt"]]
    assert {name: image["scores"][name]["value"] for name in METRICS} == {name: row[name] for name in METRICS}
    assert None not in {row[name] for name in METRICS}
    assert (row["seed"], row["steps"], row["batch"]) == (7, 2, "trials_mini_sdxl")
    assert UUID(row["run_id"]) == trial_sweep_id("mini_sdxl")
    assert image in gallery.get("/images", prompt="LARGE RED circle")["images"]
    monkeypatch.setenv("FLEXY_DAGSTER_STORAGE", str(gallery.home / "dagster"))
    monkeypatch.setenv("DAGSTER_HOME", str(ROOT))
    with dagster_instance(Settings.read({"FLEXY_HOME": str(gallery.home)})) as instance:
        assert "try_image" in {run.job_name for run in instance.get_runs()}


def test_the_same_trial_again_makes_no_other_row(gallery: Gallery, trial: dict[str, Any]) -> None:
    there = gallery.rows()
    answer = gallery.post(json.dumps(TRIAL)).json()
    assert answer == {"id": trial["id"], "exists": True}
    assert gallery.made(trial["id"])["state"] == "done"
    assert gallery.rows() == there


# Looking


def test_an_image_comes_by_its_id_small_and_whole(gallery: Gallery, trial: dict[str, Any]) -> None:
    for parameters, kind, size in (({"side": 32}, "WEBP", (32, 32)), ({}, "PNG", (64, 64))):
        answer = requests.get(f"{gallery.address}/image/{trial['id']}", params=parameters, timeout=60)
        with Image.open(io.BytesIO(answer.content)) as picture:
            assert (answer.headers["Content-Type"], picture.format, picture.size) == (
                f"image/{kind.lower()}",
                kind,
                size,
            )
    (row,) = [row for row in gallery.rows() if row["id"] == UUID(trial["id"]).hex]
    stored = ImageStore(str(gallery.home / "images")).read(row["image_path"])
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.convert("RGB").tobytes() == stored.tobytes()


def test_pages_are_filtered_sorted_and_cut(gallery: Gallery) -> None:
    ids = [gallery.add(prompt=f"sorted {i}", engine="them", clip_score=i / 100) for i in range(30)]
    for page, best in (("1", ids[:5:-1]), ("2", ids[5::-1])):
        found = gallery.get("/images", prompt="SORTED", engine="them", sort="clip_score", page=page)
        assert (found["count"], [image["id"] for image in found["images"]]) == (30, best)
    assert gallery.get("/images", engine="nobody") == {"images": [], "count": 0, "size": 24}


# Strangers


def test_other_names_for_this_machine_are_refused(gallery: Gallery) -> None:
    for host in ("evil.test", "127.0.0.1.evil.test", ""):
        answer = requests.get(f"{gallery.address}/images", headers={"Host": host}, timeout=60)
        assert answer.status_code == 400, host


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.test"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
    ids=str,
)
def test_a_trial_is_taken_from_the_gallerys_own_page_alone(
    gallery: Gallery, headers: dict[str, str], status: int
) -> None:
    asked = gallery.get("/trials")
    answer = gallery.post(json.dumps({"prompt": "a stranger's"}), **headers)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert gallery.get("/trials") == asked


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ('{"prompt": "x", "seed": -1}', 400, "invalid seed -1"),
        ('{"prompt": "x", "width": 1000000}', 400, "invalid image side 1000000"),
        (f'{{"prompt": "x", "steps": 1{"0" * 400}}}', 400, "steps"),
        ('{"prompt": "x", "guidance": NaN}', 400, "guidance"),
        ('{"prompt": "x", "colour": "red"}', 400, "unknown setting 'colour'"),
        ('{"prompt": {"env": "HOME"}}', 400, "prompt"),
        ('{"prompt": "\\ud800"}', 400, "the prompt: control characters"),
        ("{}", 400, "prompt"),
        ("[1]", 400, "send one JSON object"),
        ("[" * 60_000, 400, "send one JSON object"),
        ('{"prompt": "' + "x" * 70_000 + '"}', 413, "at most 65536 bytes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_cannot_be_are_refused_in_one_line(gallery: Gallery, body: str, status: int, words: str) -> None:
    asked = gallery.get("/trials")
    answer = gallery.post(body)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert gallery.get("/trials") == asked


def test_no_file_is_reached_but_the_images_of_the_tables(gallery: Gallery, trial: dict[str, Any]) -> None:
    secret = gallery.home / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    for path in ("/image/../../secret.png", "/image/..%2f..%2fsecret.png", "/gallery.js/../app.py", "/app.py"):
        assert gallery.raw(path)[0] == 404, path
    assert gallery.raw(f"/image/{uuid4()}")[0] == 404
    for outside in (str(secret), "../secret.png"):
        status, said = gallery.raw(f"/image/{gallery.add(image_path=outside)}")
        assert (status, "leads outside the image root" in said["error"]) == (404, True)
    for side in ("0", "-1", "1e3", "1025", "99999999999"):
        status, said = gallery.raw(f"/image/{trial['id']}?side={side}")
        assert (status, "side" in said["error"]) == (400, True)


@pytest.mark.parametrize(
    "query", ["page=0", "page=99999999", "page=x", "sort=id;", "prompt=%00", f"engine={'x' * 3000}"]
)
def test_a_page_that_cannot_be_is_refused(gallery: Gallery, query: str) -> None:
    status, said = gallery.raw(f"/images?{query}")
    assert (status, list(said)) == (400, ["error"])


def test_every_answer_tells_the_browser_to_trust_nothing_else(gallery: Gallery) -> None:
    for path in ("/", "/gallery.js", "/images", "/nothing"):
        headers = requests.get(f"{gallery.address}{path}", timeout=60).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert (headers["X-Content-Type-Options"], headers["Cross-Origin-Resource-Policy"]) == (
            "nosniff",
            "same-origin",
        )
        assert "Access-Control-Allow-Origin" not in headers


# In a browser


def visit(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.until("document.querySelectorAll('.card').length > 0")


def count(browser: Browser, selector: str) -> int:
    return browser.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")


def words(browser: Browser, selector: str) -> str:
    return browser.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")


def clean(browser: Browser, gallery: Gallery) -> None:
    assert browser.errors == []
    assert [asked for asked in browser.requests if not asked.startswith(gallery.address)] == []


@pytest.fixture
def keys(browser: Browser) -> Callable[[str], None]:
    """`keys(words)` types into what has the focus."""
    return browser.write


def test_a_person_tries_looks_and_compares(
    gallery: Gallery, trial: dict[str, Any], browser: Browser, keys: Callable[[str], None], screenshots: Path
) -> None:
    browser.resize(1400, 1000)
    # The others' files are not there.
    visit(browser, f"{gallery.address}/?prompt=red+circle")
    browser.evaluate("document.querySelector('[name=prompt]').focus()")
    keys(str(TRIAL["prompt"]))
    for name, value in {"steps": 3, "seed": 7}.items():
        browser.evaluate(f"document.querySelector('[name={name}]').select()")
        keys(str(value))
    browser.evaluate("document.getElementById('try').focus()")
    browser.press("Enter")
    browser.until("document.querySelector('#latest .settings')?.innerText.includes('3 steps')")
    browser.until("document.getElementById('state').innerText.startsWith('done')")
    assert count(browser, "#latest dd:not(.missing)") == 4
    browser.until("document.querySelector('#latest img').naturalWidth > 0")
    browser.screenshot(screenshots / "gallery_trial.png")

    browser.until(f"document.querySelectorAll('.card input[data-id=\"{trial['id']}\"]').length == 1")
    for box in (f'.card input[data-id="{trial["id"]}"]', "#latest input[data-id]"):
        browser.evaluate(f"document.querySelector({json.dumps(box)}).click()")
    browser.evaluate("document.querySelector('#tray .main').click()")
    browser.until("[...document.querySelectorAll('#view img')].filter(image => image.naturalWidth > 0).length == 2")
    differs = browser.evaluate(
        "[...document.querySelectorAll('#view .differs th')].map(th => th.firstChild.textContent)"
    )
    assert "Steps" in differs
    assert not {"Prompt", "Seed", "Guidance", "Engine", "Size"} & set(differs)
    browser.dark(True)
    browser.screenshot(screenshots / "gallery_compare_dark.png")
    browser.dark(False)

    browser.evaluate("document.querySelector('#view figure button').click()")
    assert count(browser, "dialog[open]") == 0
    assert browser.evaluate(
        "['prompt', 'steps', 'seed'].map(name => document.querySelector(`[name=${name}]`).value)"
    ) == [
        TRIAL["prompt"],
        "2",
        "7",
    ]
    clean(browser, gallery)


def test_what_comes_from_outside_is_text_and_a_narrow_page_needs_no_scrolling_sideways(
    gallery: Gallery, browser: Browser, screenshots: Path
) -> None:
    gallery.add(prompt=HOSTILE, engine=HOSTILE[:50], negative_prompt=HOSTILE, image_path=f"{HOSTILE}.png")
    browser.resize(400, 900)
    visit(browser, gallery.address)
    browser.until("document.querySelector('.card .absent') !== null")
    assert HOSTILE in words(browser, ".card .prompt")
    browser.evaluate("document.querySelector('.card .picture').click()")
    assert browser.evaluate("window.pwned") is None
    assert browser.evaluate("document.documentElement.scrollWidth") == 400
    browser.screenshot(screenshots / "gallery_narrow.png", whole=True)
    # The picture that is not there; nothing else was amiss.
    assert all("404" in error for error in browser.errors), browser.errors
    assert [asked for asked in browser.requests if not asked.startswith(gallery.address)] == []


def test_every_control_has_a_name_and_every_picture_words(gallery: Gallery, browser: Browser) -> None:
    visit(browser, gallery.address)
    controls = "[...document.querySelectorAll('button, input, select, textarea')]"
    named = "each.labels?.length || each.innerText.trim() || each.querySelector('img[alt], .absent')"
    assert browser.evaluate(f"{controls}.filter(each => !({named})).length") == 0
    assert browser.evaluate("[...document.images].filter(image => !image.alt).length") == 0
