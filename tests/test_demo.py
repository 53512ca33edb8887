"""The demo and the README's examples: the advice against the world's rule, the notebooks, Dagster's UI in Chromium."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from benchmarks.truth import rule_scores
from flexy_assets.cli.app import main
from flexy_assets.execution import dagster_instance
from flexy_assets.storage.runs import list_sweeps
from flexy_assets.storage.tables import METRIC_COLUMNS
from resources.database import Database
from resources.http.file_server import file_server
from resources.models import registry
from resources.settings import Settings
from tests.conftest import ROOT, free_port
from tests.support import forked
from tests.support.browser import Browser
from tests.support.notebooks import drawn, executed
from tests.test_readme import shell_blocks

pytestmark = [pytest.mark.slow(seconds=300), pytest.mark.timeout(900)]

GROUPS = ("sweep", "scores", "results", "edits", "labels")
STILL = "document.getAnimations().every(each => !(each instanceof CSSTransition))"


@dataclass(frozen=True)
class UI:
    """Dagster's UI at `address`, of a home with the finished demo."""

    address: str
    home: Path

    def runs(self) -> dict[str, int]:
        """How many images each sweep is to have."""
        with Database(Settings.read().database_url).begin(reading=True) as connection:
            return {str(run.id): run.target or 0 for run in list_sweeps(connection)}


@pytest.fixture(scope="module")
def ui(browser: Browser, drawn_figures: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UI]:
    """What `make demo` and `make ui` leave a person with; all is ended at the end."""
    home, port = tmp_path_factory.mktemp("ui"), free_port()
    with ExitStack() as ended:
        environment = ended.enter_context(pytest.MonkeyPatch.context())
        files = ended.enter_context(file_server(home / "assets", "127.0.0.1", 0))
        Thread(target=files.serve_forever, daemon=True).start()
        ended.callback(files.shutdown)
        for name in ("FLEXY_DATABASE_URL", "FLEXY_IMAGES"):
            environment.delenv(name, raising=False)
        for name, value in {
            "FLEXY_HOME": home,
            "FLEXY_MODELS": "mini",
            "FLEXY_FILES_URL": f"http://127.0.0.1:{files.server_port}",
            "DAGSTER_HOME": ROOT,
            "FLEXY_DAGSTER_STORAGE": home / "dagster",
        }.items():
            environment.setenv(name, str(value))
        # Dagster's own tables: two processes that make them at once leave them with two versions.
        with dagster_instance(Settings.read()):
            pass
        log = ended.enter_context((home / "log").open("wb"))
        command = ["dagster", "dev", "--workspace", "workspace.yaml", "--host", "127.0.0.1", "--port", str(port)]
        # A session of its own: what the servers have started ends with them, whatever it is at.
        servers = forked.Popen([sys.executable, "-m", *command], stdout=log, stderr=log, start_new_session=True)
        ended.callback(servers.wait, 30)
        ended.callback(os.killpg, servers.pid, signal.SIGKILL)
        # Their start, and the demo meanwhile, take a core each.
        flexy("demo")
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while not _answers(address):
            assert servers.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.2)
        browser.resize(1600, 1000)
        yield UI(address, home)
        # Its page would go on asking servers that have ended.
        browser.open("about:blank")


@pytest.fixture(scope="module")
def examples(ui: UI, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the README's examples were run, with the demo's home."""
    section = (ROOT / "README.md").read_text().partition("## Three examples")[2].partition("\n## ")[0]
    lines = [shlex.split(line, comments=True) for block in shell_blocks(section) for line in block]
    commands = [words[1:] for words in lines if words[0] == "flexy"]
    assert len(commands) == 9
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        for arguments in commands:
            result = CliRunner().invoke(main, arguments, prog_name="flexy")
            assert result.exit_code == 0, f"flexy {shlex.join(arguments)}: {result.output}"
    yield folder


def flexy(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*arguments, "--json"], prog_name="flexy")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/server_info", timeout=5):
            return True
    except OSError:
        return False


def shows(*words: str) -> str:
    """That the page shows all of these words."""
    return f"{json.dumps(words)}.every(words => document.body.innerText.includes(words))"


def click(browser: Browser, words: str) -> None:
    """Click, by mouse, the last and innermost thing that says exactly this, once it stands still and can be clicked."""
    found = f"[...document.querySelectorAll('*')].filter(each => each.innerText?.trim() === {json.dumps(words)}).at(-1)"
    browser.until(f"!!{found} && {STILL}")
    # Dagster's buttons that can do nothing yet say so by the pointer alone.
    browser.until(f"(button => !button || getComputedStyle(button).cursor === 'pointer')({found}.closest('button'))")
    browser.evaluate(f"{found}.scrollIntoView({{block: 'nearest'}})")
    browser.settle()
    place = f"(box => [box.x + box.width / 2, box.y + box.height / 2])({found}.getBoundingClientRect())"
    browser.click(*browser.evaluate(place))


def see_the_picture(browser: Browser) -> None:
    """Open what the page has as Markdown, and wait for the picture in it."""
    click(browser, "[Show Markdown]")
    browser.until("[...document.images].some(image => image.src.startsWith('data:') && image.naturalWidth > 100)")
    browser.until(STILL)


def test_its_advice_is_what_the_rule_of_the_world_says(ui: UI) -> None:
    """The small form of benchmarks.truth. The rule reads new pictures without a model, of scenes no sweep has."""
    said = {
        name: pl.read_parquet(ui.home / "assets" / f"{name}.parquet") for name in ("sweet_spots", "diminishing_returns")
    }
    spot, returns = (table.row(by_predicate=pl.col("target") == "overall", named=True) for table in said.values())
    # The rule's mark has its peak near guidance 2, at 8 to 10 steps it has nearly all it gets (benchmarks.truth).
    assert any(cell["steps"] >= 10 and 1.5 <= cell["guidance"] <= 3 for cell in spot["region"])
    assert (returns["low"] or 0) <= 10 and (returns["high"] or 40) >= 8
    steps, guidance = spot["steps"], spot["guidance"]
    engine = registry.find_engine("mini_sdxl", Settings.read({})).load()
    found = rule_scores(engine, [(steps, guidance), (4, guidance), (steps, 12.0)], images=24, turn=4)
    best, hurried, driven = (found / found.std(axis=(0, 2))[:, None]).mean(axis=1)
    for other in (hurried, driven):
        apart = best - other
        assert apart.mean() > 2 * apart.std() / np.sqrt(len(apart))


def test_its_notebook_draws_what_the_tables_say(ui: UI) -> None:
    printed, figures = executed("sweep_analysis.ipynb")
    assert "120 images" in printed and "how many steps" in printed and len(figures) == 5 and all(map(drawn, figures))


def test_the_readmes_examples_run_as_they_stand(ui: UI, examples: Path) -> None:
    assert (examples / "mine.html").stat().st_size > 100_000
    assert (ui.home / "assets" / "edit_report.html").exists()


def test_the_notebook_of_edits_draws_what_the_example_compared(ui: UI, examples: Path) -> None:
    printed, figures = executed("edit_comparison.ipynb")
    assert "6 edits" in printed and len(figures) == 3 and all(map(drawn, figures))
    assert printed.count("data:image/webp;base64,") == 4


def test_the_notebook_of_faces_shows_what_the_example_selected(ui: UI, examples: Path) -> None:
    printed, figures = executed("label_review.ipynb")
    found = re.search(r"6 tasks, (\d) of them with a selected image", printed)
    selected = int(found[1]) if found else 0
    assert selected > 3 and re.search(rf"it rose in [{selected - 1}{selected}] of {selected}", printed)
    assert "nothing was reviewed" in printed and len(figures) == 2
    assert all(map(drawn, figures)) and printed.count("data:image/webp;base64,") >= selected


def test_the_lineage_tells_what_is_made_from_what(ui: UI, browser: Browser, screenshots: Path) -> None:
    browser.open(f"{ui.address}/asset-groups")
    # At the left, and as nodes of the graph.
    browser.until(
        f"{json.dumps(GROUPS)}.every(name => document.body.innerText.split(/\\s+/).filter(w => w === name)[1])"
    )
    browser.until("!document.body.innerText.includes('fetching statuses')")
    browser.until(STILL)
    browser.screenshot(screenshots / "ui_lineage.png")
    browser.open(f"{ui.address}/locations/flexy/asset-groups/scores/lineage")
    browser.until(shows("clip_embeddings", "clip_scores", "hps_v2_scores", "sweep_scores", "sweep_csv", "100% filled"))
    browser.screenshot(screenshots / "ui_scores.png")


def test_an_assets_page_says_what_it_is_whose_and_shows_its_pictures(
    ui: UI, browser: Browser, screenshots: Path
) -> None:
    browser.open(f"{ui.address}/assets/generated_images")
    browser.until(shows("Image files and their rows", "Owners", "flexy", "seconds per image", "diffusers"))
    browser.screenshot(screenshots / "ui_generated_images.png")
    see_the_picture(browser)
    browser.screenshot(screenshots / "ui_contact_sheet.png")
    browser.open(f"{ui.address}/assets/sweep_response")
    browser.until(shows("Columns", "predicted", "The score expected at these settings", "Float64", "Row count"))
    browser.screenshot(screenshots / "ui_columns.png")
    see_the_picture(browser)
    browser.screenshot(screenshots / "ui_plot.png")


def test_the_report_is_one_click_away(ui: UI, browser: Browser, screenshots: Path) -> None:
    browser.open(f"{ui.address}/assets/sweep_report")
    link = "document.querySelector('a[href$=\"/sweep_report.html\"]')"
    browser.until(f"!!{link}")
    browser.screenshot(screenshots / "ui_report.png")
    browser.open(browser.evaluate(f"{link}.href"))
    assert browser.evaluate("document.title") == "Sweep report"


def test_a_sweep_that_is_planned_by_clicks_is_made_scored_and_reported(
    ui: UI, browser: Browser, screenshots: Path
) -> None:
    before = ui.runs()
    browser.open(f"{ui.address}/assets/sweep_plan")
    browser.until(shows("images to generate"))
    buttons = "[...document.querySelectorAll('button')]"
    place = f"{buttons}.findIndex(each => each.innerText.trim() === 'Materialize')"
    browser.evaluate(f"{buttons}[{place} + 1].click()")
    click(browser, "Open launchpad")
    editor = "document.querySelector('.CodeMirror').CodeMirror"
    browser.until(f"!!document.querySelector('.CodeMirror') && {editor}.getValue().includes('images: 120')")
    wanted = f"{editor}.getValue().replace('images: 120', 'images: 5').replace('steps: \"\"', 'steps: \"2:12\"')"
    browser.evaluate(f"{editor}.setValue({wanted})")
    browser.until(shows("No errors"))
    browser.screenshot(screenshots / "ui_launchpad.png")
    click(browser, "Materialize")
    browser.until("location.pathname.startsWith('/runs/')")
    browser.until(shows("Success"), 120)
    browser.screenshot(screenshots / "ui_run.png")
    (new,) = ui.runs().keys() - before.keys()
    assert ui.runs()[new] == 5
    browser.open(f"{ui.address}/assets/sweep_plan")
    browser.until(shows(new))
    # Without another click: its images, their scores and the report.
    deadline = time.monotonic() + 180
    report = ui.home / "assets" / "sweep_report.html"
    while new[:8] not in report.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline, flexy("status")
        time.sleep(1)
    (made,) = (run for run in flexy("status")["runs"] if run["run"] == new)
    assert made["images"] == 5 and all(made[metric]["scored"] == 5 for metric in METRIC_COLUMNS)
