"""The command's help, settings, deprecated names and JSON; and its errors: one line, the right exit status."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from math import inf
from pathlib import Path
from uuid import UUID, uuid4

import click
import pytest
from click.testing import CliRunner, Result
from dagster import DagsterExecutionInterruptedError
from dagster._utils.interrupts import capture_interrupts, raise_interrupts_as

from flexy_assets.cli.app import main
from flexy_assets.cli.command import OneLineGroup, json_command
from flexy_assets.cli.configuration import configuration_page
from flexy_assets.storage.migrate import migrate
from flexy_assets.storage.runs import add_images, save_sweep
from flexy_assets.storage.scores import ScoredImage, record_scores
from flexy_assets.sweep.plan import SAMPLINGS
from resources.database import Database
from resources.models import registry
from resources.models.schedulers import SCHEDULERS
from resources.settings import Settings
from tests.conftest import Flexy
from tests.support import forked

ROOT = Path(__file__).parent.parent


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    command = [sys.executable, "-m", "flexy_assets.cli.app", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)


def forked_process(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command, with the code in `folder`, as a process that is spared the imports."""
    command = [sys.executable, "-m", "flexy_assets.cli.app", *arguments]
    return forked.run(command, cwd=folder, capture_output=True, text=True, timeout=250)


def the_line(stderr: str) -> str:
    """Return the only line of standard error: thing, cause and remedy, and no traceback."""
    assert "Traceback" not in stderr
    (line,) = stderr.splitlines()
    assert line.startswith("flexy: ")
    assert line.count(": ") >= 2, f"no remedy in {line!r}"
    return line


def refused(result: Result) -> str:
    """Return the error line of a command with invalid input."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return the_line(result.stderr)


def planned(answer: Result) -> str:
    """Return the id of the sweep that `sweep new --json` planned."""
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)["run"]


# Help


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and group below `group`, by its words on the command line."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


def test_the_first_line_of_every_help_says_what_the_command_does_in_45_characters() -> None:
    for words, command in commands(main):
        first, *rest = (command.help or "").splitlines()
        assert 10 <= len(first) <= 45 and first.endswith("."), words
        assert not rest or rest[0] == "", f"the first line of {words} runs on"
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, f"{words} {option.name}"


def test_every_option_says_its_default_or_what_it_is_given_for() -> None:
    for words, command in commands(main):
        for option in command.params:
            if isinstance(option, click.Option) and not option.is_flag and not option.required:
                _, purpose = option.get_help_record(click.Context(command)) or ("", "")
                assert re.search(r"default|or give|instead|instruction to --image|none\.$", purpose), (
                    f"{words} {purpose}"
                )


def test_choices_are_those_of_the_registry_and_the_plan() -> None:
    shown = " ".join(CliRunner().invoke(main, ["sweep", "new", "--help"]).output.split())
    engines = [entry.name for entry in registry.MODELS.values() if entry.kind == "engine"]
    assert ", ".join(engines) in shown and ", ".join(SCHEDULERS) in shown and "|".join(SAMPLINGS) in shown


def test_no_help_line_is_cut() -> None:
    for words, command in [((), main), *commands(main)]:
        shown = CliRunner().invoke(main, [*words, "--help"], prog_name="flexy", terminal_width=80)
        assert shown.exit_code == 0
        for name, each in command.commands.items() if isinstance(command, click.Group) else ():
            line = re.search(rf"^  {name} +(.*)$", shown.output, re.MULTILINE)
            assert each.hidden if line is None else line[1] == str(each.help).splitlines()[0]


def test_help_imports_click_and_nothing_heavy() -> None:
    program = (
        "import sys; from flexy_assets.cli.app import main\n"
        "try: main(['--help'], prog_name='flexy')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'pydantic', 'sqlalchemy', 'dagster', 'numpy', 'polars', 'PIL', 'torch', 'asyncio'}\n"
        "print(heavy & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "set()"), done.stderr


def test_version_is_the_installed_one() -> None:
    result = CliRunner().invoke(main, ["--version"], prog_name="flexy")
    assert (result.exit_code, result.output) == (0, f"flexy {version('flexy')}\n")


# Deprecated names


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["heal"], ["backfill"]),
        (["labels", "import", "nowhere.json"], ["inpaint", "import", "nowhere.json"]),
        (["labels", "run"], ["inpaint", "run"]),
        (["labels", "push"], ["inpaint", "push"]),
    ],
    ids=" ".join,
)
def test_a_deprecated_name_warns_in_one_line_and_does_the_same(flexy: Flexy, old: list[str], new: list[str]) -> None:
    expected, result = flexy(*new, "--json"), flexy(*old, "--json")
    warning, *rest = result.stderr.splitlines()
    words = [word for word in old if "." not in word], [word for word in new if "." not in word]
    assert warning == f"flexy {' '.join(words[0])} is deprecated: use flexy {' '.join(words[1])}"
    assert (result.exit_code, result.stdout, rest) == (
        expected.exit_code,
        expected.stdout,
        expected.stderr.splitlines(),
    )
    shown = flexy("--help").stdout
    assert f"  {old[0]} " not in shown and f"  {new[0]} " in shown


# Settings


def test_config_shows_each_value_its_source_and_purpose_and_no_secret(
    flexy: Flexy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("FLEXY_JUDGE=gemini\nGEMINI_API_KEY=opensesame\nFLEXY_BATCH_SIZE=7\n")
    (tmp_path / "flexy.toml").write_text('owners = ["team:a", "team:b"]\nbatch_size = 8\nscore_new = true\n')
    monkeypatch.setenv("FLEXY_DATABASE_URL", "postgresql://flexy:open/s@me@h:5432/results?password=opensesame")
    monkeypatch.setenv("FLEXY_FAILURE_WEBHOOK", "https://hooks.example/opensesame")
    monkeypatch.setenv("HF_TOKEN", "opensesame")
    result = flexy("config", "--json")
    assert result.exit_code == 0, result.output
    rows = {row["variable"]: row for row in json.loads(result.stdout)["settings"]}
    found = {name: (row["value"], row["source"]) for name, row in rows.items()}
    assert found["FLEXY_HOME"] == (str(tmp_path), "environment")
    assert found["FLEXY_DATABASE_URL"] == ("postgresql://flexy:***@h:5432/results?***", "environment")
    assert found["FLEXY_BATCH_SIZE"] == ("7", ".env")
    assert found["FLEXY_OWNERS"] == ("team:a,team:b", "flexy.toml")
    assert found["FLEXY_SCORE_NEW"] == ("1", "flexy.toml")
    assert found["FLEXY_TIMEZONE"] == ("UTC", "default")
    assert found["GEMINI_API_KEY"] == ("***", ".env")
    assert found["FLEXY_FAILURE_WEBHOOK"] == found["HF_TOKEN"] == ("***", "environment")
    assert found["LABEL_STUDIO_API_KEY"] == ("", "default")
    assert all(row["purpose"] for row in rows.values())
    shown = flexy("config").stdout
    assert "opensesame" not in result.stdout + shown and "s@me" not in result.stdout + shown
    assert all(name in shown for name in rows)


def test_the_reference_page_of_variables_is_up_to_date() -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    assert page == configuration_page(), "run python -m flexy_assets.cli.configuration"


# Bad input: status 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "dall_e"], "unknown engine 'dall_e'"),
        (["--images", "0"], "invalid images 0"),
        (["--images", "-3"], "invalid images -3"),
        (["--images", "many"], "'many' is not a valid integer"),
        (["--steps", "60:4"], "invalid steps '60:4': the range is empty"),
        (["--steps", "abc"], "invalid steps 'abc'"),
        (["--steps", "0:5"], "must be integers from 1 to 1000"),
        (["--steps", "4:5.5"], "must be integers from 1 to 1000"),
        (["--steps", "4:60:0"], "invalid steps '4:60:0': the range is empty"),
        (["--steps", "1:2:3:4"], "invalid steps '1:2:3:4'"),
        (["--guidance", "-1:5"], "must be from 0 to 100"),
        (["--guidance", "nan"], "invalid guidance 'nan'"),
        (["--seed", "-1"], "invalid seed -1"),
        (["--size", "100"], "invalid image side 100"),
        (["--batch-size", "0"], "invalid batch size 0"),
        (["--sampling", "lucky"], "'lucky' is not one of 'uniform', 'even', 'paired'"),
        (["--colour", "red"], "No such option '--colour'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_invalid_sweep_is_refused_in_one_line_and_leaves_no_run(
    flexy: Flexy, home: Path, arguments: list[str], words: str
) -> None:
    # Of an option that is given twice, the last counts.
    line = refused(flexy("sweep", "new", "--engine", "mini_sdxl", "--images", "2", *arguments))
    assert words in line
    assert not (home / "flexy.sqlite").exists()
    assert not (home / "dagster").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "the file has no prompts"),
        (b"\n  \n# only a remark\n", "the file has no prompts"),
        (b"a fox\n\xff\xfe\n", "not UTF-8 text (byte 6)"),
        (b"a fox\na \x00 owl\n", "line 2: control characters"),
        (b"a fox\n" + 2001 * b"x", "line 2: over 2000 characters"),
    ],
    ids=["missing", "empty", "blank", "not UTF-8", "binary", "endless"],
)
def test_an_invalid_prompt_file_is_named_with_the_line(
    flexy: Flexy, tmp_path: Path, content: bytes | None, words: str
) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    line = refused(flexy("sweep", "new", "--engine", "mini_sdxl", "--images", "2", "--prompts", str(file)))
    assert words in line
    assert str(file) in line


@pytest.mark.parametrize("command", [["status"], ["sweep", "new", "--engine", "mini_sdxl", "--images", "2"], ["demo"]])
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hunter2", "invalid FLEXY_DATABASE_URL"),
        ("://flexy:hunter2@somewhere/results", "invalid FLEXY_DATABASE_URL"),
        ("postgresql://flexy:hunter2@127.0.0.1:port/results", "invalid FLEXY_DATABASE_URL"),
        ("mysql://flexy:hunter2@127.0.0.1/results", "FLEXY_DATABASE_URL: mysql is not supported"),
        # Nobody listens on port 1.
        ("postgresql://flexy:hunter2@127.0.0.1:1/results", "cannot reach postgresql://flexy:***@127.0.0.1:1/results"),
        ("sqlite:////dev/null/hunter2/flexy.sqlite", "cannot use sqlite:"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_and_its_password_never_shown(
    flexy: Flexy, monkeypatch: pytest.MonkeyPatch, command: list[str], url: str, words: str
) -> None:
    monkeypatch.setenv("FLEXY_DATABASE_URL", url)
    line = refused(flexy(*command))
    assert words in line
    assert "hunter2@" not in line
    assert ":hunter2" not in line


@pytest.mark.parametrize("command", [["sweep", "run"], ["export", "--out", "sweep.csv"]])
def test_the_beginning_of_an_id_must_name_exactly_one_sweep(
    flexy: Flexy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    database = Database(Settings.read().database_url)
    migrate(database)
    with database.begin() as connection:
        for run in ("4b7193fd-0000-4000-8000-000000000001", "4b7193fd-0000-4000-8000-000000000002"):
            save_sweep(connection, UUID(run), "mini_sdxl", 2, {})
    assert "unknown sweep '5': does not exist" in refused(flexy(*command, "5"))
    assert "unknown sweep '': does not exist" in refused(flexy(*command, ""))
    assert "unknown sweep '4b71': several ids begin with it" in refused(flexy(*command, "4b71"))
    assert not (tmp_path / "sweep.csv").exists()


@pytest.mark.parametrize("command", [["status"], ["demo"], ["sweep", "new", "--engine", "mini_sdxl", "--images", "2"]])
def test_an_unknown_model_set_is_refused(flexy: Flexy, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.setenv("FLEXY_MODELS", "nonsense")
    assert "invalid FLEXY_MODELS 'nonsense': choose mini or full" in refused(flexy(*command))


def test_an_engine_of_another_model_set_is_refused(flexy: Flexy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXY_MODELS", "full")
    line = refused(flexy("sweep", "new", "--engine", "mini_sdxl", "--images", "2"))
    assert "unknown engine 'mini_sdxl' with FLEXY_MODELS=full" in line


@pytest.mark.parametrize("folder", ["dagster", "/nowhere/dagster"])
def test_a_dagster_home_that_cannot_be_is_refused(flexy: Flexy, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("DAGSTER_HOME", folder)
    line = refused(flexy("backfill"))
    assert f"invalid DAGSTER_HOME {folder!r}: " in line and f"dagster.yaml, as {ROOT}" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bake"], "No such command 'bake': see flexy --help"),
        (["sweep", "new"], "Missing option '--engine': see flexy sweep new --help"),
        (["sweep", "run"], "Missing argument 'SWEEP': see flexy sweep run --help"),
        (["sweep", "new", "--engine", "mini_sdxl"], "give either --images or --hours"),
        (["sweep", "new", "--engine", "mini_sdxl", "--images", "3", "--hours", "1"], "give either --images or --hours"),
        (["sweep", "new", "--engine", "mini_sdxl", "--hours", "1"], "no image of mini_sdxl has been timed"),
        (["sweep", "new", "--engine", "mini_sdxl", "--hours", "nan"], "invalid hours nan"),
        (["export"], "Missing option '--out': see flexy export --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_usage_error_takes_one_line_too(flexy: Flexy, arguments: list[str], words: str) -> None:
    assert words in refused(flexy(*arguments))


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("device", "it is a device"),
        ("pipe", "it is a pipe"),
        ("socket", "it is a socket"),
        ("folder", "it is a folder"),
        ("link", "it is a symbolic link"),
        ("broken link", "it is a symbolic link"),
        ("no parent", "does not exist: make it first"),
        ("huge", "it is a file of 3.0 GB that Flexy did not write"),
    ],
)
def test_out_is_a_regular_file_or_refused_and_nothing_is_replaced(
    flexy: Flexy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    out, kept = Path("out"), Path("kept")
    kept.write_text("theirs")
    make: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(out),
        "socket": lambda: socket.socket(socket.AF_UNIX).bind(str(out)),
        "folder": out.mkdir,
        "link": lambda: out.symlink_to(kept),
        "broken link": lambda: out.symlink_to("nowhere"),
        "huge": lambda: (out.touch(), os.truncate(out, 3 * 10**9)),
    }
    make.get(form, lambda: None)()
    out = {"device": Path("/dev/null"), "no parent": Path("nowhere/out")}.get(form, out)
    before = out.lstat() if form != "no parent" else None
    comparison = ["compare", "--image", "x.png", "--prompt", "x"] if form != "folder" else []
    for command in (["export"], ["report"], comparison):
        if command:
            expected = "it is a file" if command is comparison and form == "huge" else reason
            assert expected in refused(flexy(*command, "--out", str(out)))
    after = out.lstat() if before else None
    assert (after and (after.st_ino, after.st_mode, after.st_size)) == (
        before and (before.st_ino, before.st_mode, before.st_size)
    )
    assert kept.read_text() == "theirs" and not Path("nowhere").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("in_dagster", [False, True])
def test_every_signal_to_end_is_one_line(number: int, in_dagster: bool, request: pytest.FixtureRequest) -> None:
    # Under nohup a closed terminal is to be survived.
    request.addfinalizer(partial(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_DFL)))
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    @click.command()
    @json_command
    def work() -> dict[str, object]:
        with capture_interrupts():
            pass  # Dagster has replaced the handlers, and put them back
        try:
            with raise_interrupts_as(DagsterExecutionInterruptedError) if in_dagster else nullcontext():
                signal.raise_signal(number)
        except DagsterExecutionInterruptedError:
            raise KeyboardInterrupt from None
        raise AssertionError("not reached")

    result = CliRunner().invoke(OneLineGroup("flexy", {"work": work}), ["work"], prog_name="flexy")
    assert (result.exit_code, result.stdout) == (130, "")
    assert the_line(result.stderr) == "flexy: interrupted: completed work is kept: run the same command to continue"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_json_says_why_nothing_was_done(flexy: Flexy) -> None:
    migrate(Database(Settings.read().database_url))
    assert "no sweeps yet" in json.loads(flexy("status", "--json").stdout)["reason"]
    assert "there are no images" in json.loads(flexy("backfill", "--json").stdout)["reason"]
    result = flexy("sweep", "run", "5", "--json")
    assert result.exit_code == 2
    assert the_line(result.stderr) == f"flexy: {json.loads(result.stdout)['error']}"


# Work that fails: status 1, and completed work is kept


def test_an_output_file_that_cannot_be_written_is_named(flexy: Flexy, tmp_path: Path) -> None:
    planned(flexy("sweep", "new", "--engine", "mini_sdxl", "--images", "2", "--json"))
    result = flexy("export", "--out", str(tmp_path / f"{'x' * 250}.csv"))  # its temporary file has no name
    assert result.exit_code == 1
    assert str(tmp_path / "xxx") in the_line(result.stderr)


@pytest.mark.slow(seconds=30)
def test_damaged_and_missing_weights_are_named_and_completed_work_is_kept(
    flexy: Flexy, home: Path, tmp_path: Path
) -> None:
    run = planned(flexy("sweep", "new", "--engine", "mini_sdxl", "--images", "2", "--steps", "1", "--json"))
    tree = tmp_path / "tree"
    for part in ("flexy_assets", "resources"):
        shutil.copytree(ROOT / part, tree / part)
    weights = tree / "resources" / "mini" / "weights"
    unet, clip = weights / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors", weights / "clip"
    whole = unet.read_bytes()
    unet.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    done = forked_process("sweep", "run", run, folder=tree)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"weights for mini_sdxl are damaged: {unet}" in the_line(done.stderr)
    assert not (home / "images").exists()

    unet.write_bytes(whole)
    (clip / "model.safetensors").unlink()
    done = forked_process("sweep", "run", run, folder=tree)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no weights for mini_clip: {clip / 'model.safetensors'} is missing" in the_line(done.stderr)
    (entry,) = json.loads(flexy("status", "--json").stdout)["runs"]
    assert entry["images"] == 2


@pytest.mark.slow(seconds=30)
def test_twenty_lost_pictures_are_made_again_bit_for_bit_and_gone_ones_are_pruned(flexy: Flexy, home: Path) -> None:
    new = ["sweep", "new", "--engine", "mini_sdxl", "--images", "24", "--steps", "1:3", "--batch-size", "12", "--json"]
    run = planned(flexy(*new))
    assert flexy("sweep", "run", run).exit_code == 0
    pictures = sorted((home / "images").rglob("*.png"))
    before = {path: path.read_bytes() for path in pictures}
    for number, path in enumerate(pictures[:20]):
        if number % 3 == 0:
            path.unlink()
        elif number % 3 == 1:
            path.write_bytes(before[pictures[23]])
        else:
            os.truncate(path, len(before[path]) // 2)
    # An adopted image has no plan.
    with Database(Settings.read().database_url).begin() as connection:
        add_images(connection, [{"id": uuid4(), "engine": "mini_sdxl", "image_path": "theirs.png", "batch": "theirs"}])
    lost = json.loads(flexy("status", "--json").stdout)["lost"]
    assert (lost["of"], lost["checked"], len(lost["images"]), sum(each["plan"] for each in lost["images"])) == (
        *(25, 25, 21, 20),
    )
    remedy = f"flexy sweep run {run[:8]} makes 20 again; 1 without a plan: restore it"
    assert f"missing or not as recorded: 21 (checked: all); {remedy}" in flexy("status").stdout
    result = flexy("sweep", "run", run)
    figures = "20 images made (20 of them lost before, bit for bit), 0 scores computed now; 24 of 24 images there"
    assert figures in result.stdout, result.output
    assert {path: path.read_bytes() for path in pictures} == before

    assert "would remove the rows of 1 image of 25" in json.loads(flexy("sweep", "prune", "--json").stdout)["reason"]
    assert flexy("sweep", "prune", "--yes").stdout == "1 row removed\n"
    assert "nothing is removed" in flexy("sweep", "prune", "--yes").stdout


@pytest.fixture
def disk(home: Path) -> Iterator[Callable[[str], None]]:
    """A file system of its own below the image root; called with a size, it is given that size."""
    folder = home / "images"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)

    yield resize
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow(seconds=30)
def test_a_full_disk_ends_the_run_in_one_line_and_the_next_run_continues(
    flexy: Flexy, home: Path, disk: Callable[[str], None]
) -> None:
    # A 64×64 PNG takes one to four pages of 4 KiB: a chunk of 16 fits here, 96 images do not.
    disk("288k")
    run = planned(flexy("sweep", "new", "--engine", "mini_sdxl", "--images", "96", "--steps", "1", "--json"))
    done = forked_process("sweep", "run", run)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the disk is full: free some space and run again" in the_line(done.stderr)

    with Database(Settings.read().database_url).begin(reading=True) as connection:
        hashes = dict(
            connection.exec_driver_sql("SELECT image_path, image_sha256 FROM bench_run_results").tuples().all()
        )
    assert 16 <= len(hashes) < 96
    for path, sha256 in hashes.items():
        assert hashlib.sha256((home / "images" / path).read_bytes()).hexdigest() == sha256

    disk("4m")
    result = flexy("sweep", "run", run, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert (answer["images_made"], answer["images"], answer["scores_computed"]) == (96 - len(hashes), 96, 4 * 96)
    assert [p.name for p in (home / "images").rglob(".*")] == [], "no half-written file is left"


# --json


@pytest.mark.slow(seconds=30)
def test_json_is_one_document_and_nothing_else_on_standard_output(flexy: Flexy, home: Path) -> None:
    # As processes: what a library prints past Python would show here.
    new = process("sweep", "new", "--engine", "mini_sdxl", "--images", "2", "--steps", "1", "--json")
    assert (new.returncode, new.stderr) == (0, "")
    plan = json.loads(new.stdout)
    batch = f"{plan['run'][:8]}_0000"
    assert plan == {"run": plan["run"], "engine": "mini_sdxl", "target": 2, "planned": 2, "batches": [batch]}

    all_scored = {"scored": 2, "missing": 0, "failed": 0}
    entry = {"run": plan["run"], "engine": "mini_sdxl", "images": 2, "target": 2} | dict.fromkeys(
        ("clip_score", "aesthetic_score", "aes_v2_score", "hps_v2_score"), all_scored
    )
    ranges = ("steps", "guidance", "first", "last")
    run = process("sweep", "run", plan["run"][:8], "--json")
    assert (run.returncode, run.stderr) == (0, "")
    made = {"images_made": 2, "scores_computed": 8}
    files = {"csv": str(home / "assets" / "sweep.csv"), "report": str(home / "assets" / "sweep_report.html")}
    counts = {"images_restored": 0, "images_replaced": 0, "images_missing": 0}
    answer = json.loads(run.stdout)
    expected = entry | {key: answer[key] for key in ranges} | made | files | counts | {"image_failures": []}
    assert answer == expected
    assert answer["steps"] == [1, 1] and answer["first"] <= answer["last"]

    status = flexy("status", "--json")
    found = json.loads(status.stdout)
    tables = {"totals", "metrics", "runs", "steps", "newest", "left_alone", "beside", "image_roots", "agreement"}
    assert (set(found), found["unknown_weights"]) == (tables | {"unknown_weights", "lost"}, {})
    assert found["lost"] == {"of": 2, "checked": 2, "images": []}
    assert [(root["rows"], root["found"]) for root in found["image_roots"]] == [(2, 2), (0, 0)]
    assert (found["totals"], found["runs"]) == (
        {"images": 2, "runs": 1, "complete": 2},
        [entry | {key: answer[key] for key in ranges}],
    )

    out = home / "out.csv"
    export = flexy("export", plan["run"], "--out", str(out), "--json")
    assert json.loads(export.stdout) == {"file": str(out), "rows": 2}
    assert out.read_bytes() == (home / "assets" / "sweep.csv").read_bytes()
    assert [r.stdout.count("\n") for r in (new, run, status, export)] == [1, 1, 1, 1]


def test_json_has_null_in_place_of_infinity_and_nan(flexy: Flexy) -> None:
    database = Database(Settings.read().database_url)
    migrate(database)
    with database.begin() as connection:
        row = {"id": uuid4(), "engine": "mini_sdxl", "image_path": "a.png", "guidance": inf, "clip_score": -inf}
        add_images(connection, [row])

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    result = flexy("status", "--json")
    (image,) = json.loads(result.stdout, parse_constant=refuse)["newest"]
    assert (image["guidance"], image["clip_score"]) == (None, None)
    assert flexy("status").exit_code == 0


def test_status_counts_scored_missing_and_failed_apart(flexy: Flexy) -> None:
    assert "no sweeps yet" in flexy("status").stdout
    assert json.loads(flexy("status", "--json").stdout)["runs"] == []
    run = UUID(planned(flexy("sweep", "new", "--engine", "mini_sdxl", "--images", "5", "--json")))
    ids = [UUID(int=n) for n in range(3)]
    rows = [{"id": i, "run_id": run, "engine": "mini_sdxl", "batch": "b", "prompt": "a fox"} for i in ids]
    with Database(Settings.read().database_url).begin() as connection:
        add_images(connection, rows)
        scores = [ScoredImage(ids[0], 0.2), ScoredImage(ids[1], None, "the file is gone")]
        record_scores(connection, "clip_score", "test", scores)
    (entry,) = json.loads(flexy("status", "--json").stdout)["runs"]
    assert (entry["images"], entry["target"]) == (3, 5)
    assert entry["clip_score"] == {"scored": 1, "missing": 1, "failed": 1}
    assert entry["hps_v2_score"] == {"scored": 0, "missing": 3, "failed": 0}
    shown = flexy("status").stdout
    assert "3 images in 1 sweep, 0 of them with all 4 scores" in shown
    assert f"{run.hex[:8]}  mini_sdxl  1/3, 1 failed  0/3" in shown
    assert "clip_score            1        1       1" in shown
    (failure,) = json.loads(flexy("status", "--failed", "--json").stdout)["failures"]
    assert (failure["image"], failure["metric"], failure["error"]) == (str(ids[1]), "clip_score", "the file is gone")
    assert (failure["attempts"], failure["given_up"]) == (1, False)
    assert "the file is gone" in flexy("status", "--failed").stdout
