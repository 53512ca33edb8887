"""The pages of docs/: every public name has its entry, every command in them parses, and the built site is sound."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import click
import pytest

import docs.reference as reference
from flexy_assets.cli.app import main
from flexy_assets.cli.configuration import LIBRARY_VARIABLES
from flexy_assets.cli.json_keys import JSON_KEYS
from flexy_assets.definitions import build_definitions
from flexy_assets.storage.tables import metadata
from resources.settings import JUDGE_KEY, JUDGE_KEY_VARIABLES, Settings
from tests.conftest import ROOT, Flexy
from tests.support.browser import Browser

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MKDOCS = ROOT / ".venv" / "docs" / "bin" / "mkdocs"
ACCESSIBILITY = (ROOT / "tests/support/accessibility.js").read_text().rstrip()
QUICK = ("config", "models", "status")
"""Commands that run in a second; the examples of the README run in the demo's folder, all others parse."""


def entries(page: str) -> set[str]:
    """Return the names that a page has as the first cell of a row or as a heading."""
    rows = re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)} | set(re.findall(r"^#+ (.+)$", page, re.M))


def section(page: str, heading: str) -> str:
    return page.partition(f"\n{heading}\n")[2].partition(f"\n{heading.split()[0]} ")[0]


def test_every_variable_command_and_option_has_its_entry() -> None:
    page = reference.commands_page()
    for words, command in reference.list_commands(main):
        shown = section(page, f"## flexy {words}")
        for parameter in command.params:
            names = (
                parameter.opts
                if isinstance(parameter, click.Option)
                else [parameter.make_metavar(click.Context(command))]
            )
            assert all(name in shown for name in names), f"{words}: {names}"
    variables = {str(field.alias) for field in Settings.model_fields.values()} - {JUDGE_KEY}
    variables |= {*JUDGE_KEY_VARIABLES, *LIBRARY_VARIABLES}
    assert variables <= entries((ROOT / "docs/reference/configuration.md").read_text())


def test_every_command_says_its_json_keys() -> None:
    assert JSON_KEYS.keys() == {words for words, _ in reference.list_commands(main)}
    assert all(key and meaning for keys in JSON_KEYS.values() for key, meaning in keys.items())


def test_every_asset_and_every_column_has_its_entry() -> None:
    definitions = build_definitions(Settings.read({}))
    assets, columns = reference.assets_page(definitions), reference.columns_page(definitions)
    repository = definitions.get_repository_def()
    names = {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()}
    names |= {each.name for each in (*repository.schedule_defs, *repository.sensor_defs)}
    assert names <= entries(assets)
    assert {check.name for check in repository.asset_graph.asset_check_keys} <= set(re.findall(r"`(\w+)`", assets))
    for node in repository.asset_graph.asset_nodes:
        if schema := node.metadata.get("dagster/column_schema"):
            assert {each.name for each in schema.columns} <= entries(
                section(columns, f"## {node.key.to_user_string()}")
            )
    for table in metadata.sorted_tables:
        assert set(table.columns.keys()) <= entries(section(columns, f"### Table {table.name}")), table.name
    assert "|  |" not in assets + columns, "an entry without a meaning"


def commands() -> Iterator[tuple[str, list[str]]]:
    """Return the words of each command line in the pages' shell blocks, with the page's name."""
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                if "()" not in line:
                    yield page.name, shlex.split(line, comments=True)
        for code in re.findall(r"`((?:python -m|make) [^`]+)`", page.read_text("utf-8")):
            yield page.name, shlex.split(code)


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command of `flexy` that words name, and its arguments."""
    command: click.Command = main
    while words and isinstance(command, click.Group) and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


def test_every_command_in_the_pages_exists_and_its_options_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resources.files.check_output", lambda path, folder=False: path)
    targets = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split())
    checked = 0
    for page, words in commands():
        if "flexy" in [Path(word).name for word in words[:2]] and words[0] != "pip":
            command, arguments = find_command(words[1 + (Path(words[1]).name == "flexy") :])
            command.make_context(page, arguments)
        elif words[:1] == ["make"]:
            assert {word for word in words[1:] if word.isalpha()} <= targets, f"{page}: {words}"
        elif words[:2] == ["python", "-m"]:
            found = importlib.util.find_spec(words[2]) if words[2] != "benchmarks.NAME" else None
            source = Path(found.origin or "").read_text() if found else ""
            assert found or words[2] == "benchmarks.NAME", f"{page}: {words}"
            assert all(f'"{word}"' in source for word in words[3:] if word.startswith("--")), f"{page}: {words}"
        else:
            continue
        checked += 1
    assert checked > 60


def test_every_flexy_command_in_the_text_exists() -> None:
    """Commands between backquotes are often cut short: their words and options are looked up."""
    for page in PAGES:
        for code in re.findall(r"`flexy ([^`]+)`", page.read_text("utf-8")):
            command, rest = find_command(code.split())
            known = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in rest if word.startswith("--")} <= known | {"--help"}, f"{page.name}: flexy {code}"
            assert isinstance(command, click.Group) <= (not rest or rest[0].startswith("--")), (
                f"{page.name}: flexy {code}"
            )


def test_the_quick_commands_in_the_pages_run(flexy: Flexy, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    lines = {shlex.join(words[1:]) for _, words in commands() if words[:1] == ["flexy"] and words[1] in QUICK}
    lines -= {line for line in lines if line.startswith("models fetch")}
    assert len(lines) >= 2
    for line in sorted(lines):
        result = flexy(*shlex.split(line))
        assert result.exit_code == 0, f"flexy {line}: {result.output}"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the site, built strictly and served."""
    if not MKDOCS.exists():
        pytest.skip("no MkDocs in .venv/docs")
    reference.write_pages()
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [str(MKDOCS), "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_pages_are_for_narrow_dark_and_offline_screens(browser: Browser, site: str, screenshots: Path) -> None:
    found = []
    for number, page in enumerate(("", "glossary/", "report/", "methods/", "contributing/", "reference/commands/")):
        browser.resize(390, 844)
        browser.dark(bool(number % 2))
        browser.open(f"{site}/{page}")
        dark = browser.evaluate("document.body.dataset.mdColorScheme") == "slate"
        assert dark == bool(number % 2), page
        assert browser.errors == [] and all(each.startswith(site) for each in browser.requests), page
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390, page
        assert browser.evaluate("[...document.images].every(image => image.alt && image.naturalWidth)"), page
        found += [(page, *each) for each in browser.evaluate(f"{ACCESSIBILITY}.contrasts()") if each[0] < 4.5]
        browser.screenshot(screenshots / f"docs-{page.strip('/').replace('/', '-') or 'index'}.png")
    browser.resize()
    browser.dark(False)
    assert found == []
