"""What all commands share: --json, errors in one line, the exit status, deprecated names."""

import json
import math
import sys
from collections.abc import Callable
from copy import copy
from functools import wraps
from typing import Any, NoReturn

import click

from resources.errors import BadInputError, FlexyError

INTERRUPTED_STATUS = 130


def json_command(function: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """Add --json, print what the function returns, and turn an error into one line and its exit status.

    The function returns {"text": for a person, "failed": what went wrong, if anything did, "failed_status": the exit
    status then, …}; the rest is the JSON document.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
    @wraps(function)
    def run(as_json: bool, **options: Any) -> None:
        try:
            answer = function(**options)
        except FlexyError as error:
            fail(str(error), error.status)
        except OSError as error:
            from resources.files import describe_os_error

            fail(f"cannot use {error.filename or 'a file'}: {describe_os_error(error)}", FlexyError.status)
        except KeyboardInterrupt:
            fail("interrupted: completed work is kept: run the same command to continue", INTERRUPTED_STATUS)
        text, failed = answer.pop("text"), answer.pop("failed", None)
        status = answer.pop("failed_status", FlexyError.status)
        click.echo(json.dumps(_finite(answer), allow_nan=False) if as_json else text)
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
    # An error of a database or a library may have several lines.
    click.echo(f"flexy: {' '.join(message.split())}", err=True)
    sys.exit(status)


def echo_alias(name: str) -> None:
    """Say on standard error which model it is, if FlexyFace's name of one was given."""
    from resources.models.registry import ALIASES

    if name in ALIASES:
        click.echo(f"{name} is FlexyFace's name of {ALIASES[name]}", err=True)


class OneLineGroup(click.Group):
    """A group that reports a usage error in one line; click itself prints four."""

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        try:
            sys.exit(super().main(*arguments, **options | {"standalone_mode": False}))
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
