"""What all commands share: --json, errors in one line, the exit status, deprecated names."""

import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click

from resources.errors import BadInputError, FlexyError

INTERRUPTED, INTERRUPTED_STATUS = "interrupted: completed work is kept: run the same command to continue", 130


def json_command(function: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """Add --json, print what the function returns, and turn an error into one line and its exit status.

    The function returns {"text": for a person, "failed": what went wrong, if anything did, "failed_status": the exit
    status then, …}; the rest is the JSON document, with what went wrong as `error`.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
    @wraps(function)
    def run(as_json: bool, **options: Any) -> None:
        try:
            answer = function(**options)
        except FlexyError as error:
            answer = {"failed": str(error), "failed_status": error.status}
        except OSError as error:
            from resources.files import describe_os_error

            answer = {"failed": f"cannot use {error.filename or 'a file'}: {describe_os_error(error)}"}
        except KeyboardInterrupt:
            fail(INTERRUPTED, INTERRUPTED_STATUS)
        text, failed = answer.pop("text", ""), answer.pop("failed", None)
        status = answer.pop("failed_status", FlexyError.status)
        if as_json:
            answer |= {"error": " ".join(failed.split())} if failed else {}
            click.echo(json.dumps(_finite(answer), allow_nan=False))
        elif text:
            click.echo(text)
        if failed:
            fail(failed, status)

    return run


def _finite(value: Any) -> Any:
    """Return the value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fail(message: str, status: int) -> NoReturn:
    """Print the message in one line on standard error and exit."""
    with suppress(OSError):  # the terminal may be closed
        # An error of a database or a library may have several lines.
        click.echo(f"{click.style('flexy:', fg='red')} {' '.join(message.split())}", err=True)
    sys.exit(status)


def echo_alias(name: str) -> None:
    """Say on standard error which model it is, if FlexyFace's name of one was given."""
    from resources.models.registry import ALIASES

    if name in ALIASES:
        click.echo(f"{name} is FlexyFace's name of {ALIASES[name]}", err=True)


class OutputPath(click.Path):
    """The path of a file to write, or with `folder` of a folder; anything else that lies there is refused."""

    def __init__(self, folder: bool = False) -> None:
        super().__init__(path_type=Path)
        self._folder = folder

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from resources.files import check_output

        try:
            return check_output(Path(value), self._folder)
        except BadInputError as error:
            self.fail(str(error), param, ctx)


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Take SIGTERM and SIGHUP for Ctrl-C in the block, so that a Dagster run under way is closed by them too.

    Dagster replaces SIGINT's handler while it works, and SIGTERM's by it. A signal that was ignored, as by nohup or
    in the background of a script, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}

    def interrupt(number: int, frame: Any) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler) and handler is not interrupt:
            handler(number, frame)
        elif before[signal.Signals(number)] is not signal.SIG_IGN:
            raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


class NamesOption(click.Option):
    """An option whose help ends with the names that it takes, which are looked up when the help is shown."""

    def __init__(self, *arguments: Any, names: Callable[[], Iterable[str]], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.names, self.purpose = names, self.help

    def get_help_record(self, context: click.Context) -> tuple[str, str] | None:
        self.help = f"{self.purpose} {', '.join(self.names())}."
        return super().get_help_record(context)


def engine_names() -> list[str]:
    """Return the engines of the registry."""
    return _model_names("engine")


def editor_names() -> list[str]:
    """Return the editors of the registry."""
    return _model_names("editor")


def scheduler_names() -> list[str]:
    """Return the schedulers that Stable Diffusion XL takes."""
    from resources.models.schedulers import SCHEDULERS

    return list(SCHEDULERS)


def _model_names(kind: str) -> list[str]:
    from resources.models.registry import MODELS

    return [entry.name for entry in MODELS.values() if entry.kind == kind]


def print_tables(tables: Mapping[str, Any]) -> str:
    """Return the tables that have rows, each below its heading, as wide as the terminal."""
    from flexy_assets.reporting.text_tables import format_text_table

    sections = [
        f"{click.style(name, bold=True)}\n{format_text_table(table)}" for name, table in tables.items() if table
    ]
    return "\n\n".join(sections)


class OneLineGroup(click.Group):
    """A group that reports a usage error and an interruption in one line; click itself prints four."""

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        if os.environ.get("NO_COLOR"):
            options["color"] = False
        try:
            with _signals_as_interrupts():
                sys.exit(super().main(*arguments, **options | {"standalone_mode": False}))
        except (KeyboardInterrupt, click.Abort):
            fail(INTERRUPTED, INTERRUPTED_STATUS)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "flexy"
            fail(f"{error.format_message().rstrip('.')}: see {command} --help", BadInputError.status)


def deprecated_alias(command: click.Command, name: str, replacement: str) -> click.Command:
    """Return a hidden copy of a command, or of a group with its commands, that warns on standard error."""
    alias = copy(command)
    alias.name, alias.hidden = name, True
    if isinstance(alias, click.Group):
        alias.commands = {
            each: deprecated_alias(subcommand, each, f"{replacement} {each}")
            for each, subcommand in alias.commands.items()
        }
        return alias

    @click.pass_context
    def run(context: click.Context, **options: Any) -> Any:
        click.echo(f"{context.command_path} is deprecated: use {replacement}", err=True)
        return context.invoke(command, **options)

    alias.callback = run
    return alias


def parse_numbers(name: str, texts: tuple[str, ...]) -> dict[str, float]:
    """Return the numbers of `METRIC=N` texts by metric. Raises `BadInputError` for any other text."""
    numbers = {}
    for text in texts:
        metric, _, number = text.partition("=")
        try:
            numbers[metric] = float(number)
        except ValueError:
            raise BadInputError(f"invalid {name} {text!r}: write METRIC=N, for example clip_score=2") from None
    return numbers
