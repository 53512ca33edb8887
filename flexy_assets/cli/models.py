"""`flexy models`, `gallery`, `example` and `config`."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from flexy_assets.cli.command import echo_alias, json_command
from flexy_assets.cli.session import Session
from flexy_assets.reporting.formatting import format_count
from resources.errors import BadInputError

WIDE = 110
"""Columns from which a terminal shows each model in one line."""


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List and fetch models."""
    if context.invoked_subcommand is None:
        context.invoke(models_list, as_json=as_json)


@models.command("list")
@json_command
def models_list() -> dict[str, Any]:
    """List the models of both sets.

    With licence, size and whether each is on this machine, as flexy models alone does.
    """
    from flexy_assets.reporting.text_tables import format_text_table
    from resources.models.catalogue import list_models
    from resources.models.registry import ALIASES

    rows = list_models(Session().settings)
    remedy = (
        "fetch a missing model: flexy models fetch NAME; supply one yourself: set its folder in FLEXY_MODEL_REGISTRY"
    )
    aliases = f"FlexyFace's names: {', '.join(f'{alias} is {name}' for alias, name in ALIASES.items())}"
    text = "\n".join([format_text_table(_model_table(rows)), aliases, remedy])
    return {"models": rows, "aliases": ALIASES, "text": text}


def _model_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows for a person, memory in GB too; licences and repositories are cut to a wide terminal's width."""
    table = [
        {name: row[name] for name in ("name", "kind", "set", "state")}
        | {"GB": round(row["gigabytes"], 1 if row["gigabytes"] >= 1 else 2), "memory": row["memory"]}
        | {"commercial": {True: "yes", False: "no", None: "?" if row["licence"] else ""}[row["commercial"]]}
        | {"licence": row["licence"] or "", "repository@revision": _origin(row)}
        for row in rows
    ]
    columns = shutil.get_terminal_size((80, 24)).columns
    if columns < WIDE:
        return table
    widths = {name: max(len(name), *(len(str(row[name])) for row in table)) for name in table[0]}
    *fixed, licence, origin = widths
    left = columns - sum(widths[name] + 2 for name in fixed) - 2
    widths[licence] = min(widths[licence], left * 2 // 5)
    widths[origin] = min(widths[origin], left - widths[licence])
    # The end of a repository's name, with its revision, says most.
    return [
        row | {licence: _truncate(row[licence], widths[licence]), origin: _truncate(row[origin], widths[origin], 2 / 3)}
        for row in table
    ]


def _origin(row: Mapping[str, Any]) -> str:
    """Return where the files are from: a repository, or the user, by their names."""
    if row["files"]:
        return f"yours: {', '.join(row['files'])}"
    return f"{row['repo']}@{row['revision'][:7]}" if row["repo"] else ""


def _truncate(text: str, width: int, tail: float = 0) -> str:
    """Return the text, cut by an ellipsis to the width; after it comes the end, over the part `tail` of the width."""
    end = int(tail * width)
    return text if len(text) <= width else f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


@models.command("fetch")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@json_command
def models_fetch(names: tuple[str, ...]) -> dict[str, Any]:
    """Fetch models from the Hugging Face hub.

    Models of the set full, with the models they need. An interrupted download continues.
    """
    from resources.models.fetch import fetch_models

    for name in names:
        echo_alias(name)
    fetched = list(fetch_models(names, Session().settings))
    received = {model.name: model.received_bytes for model in fetched if model.received_bytes is not None}
    return {
        "fetched": list(received),
        "already": [model.name for model in fetched if model.name not in received],
        "bytes": sum(received.values()),
        "text": "\n".join(map(str, fetched)),
    }


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=3400, show_default=True, help="0 for any free port.")
@json_command
def gallery(port: int) -> dict[str, Any]:
    """Serve a page to try and browse images.

    On this machine only. Ctrl-C ends it.
    """
    from flexy_assets.gallery.app import serve_gallery

    def on_ready(address: str) -> None:
        click.echo(f"gallery at {address}: Ctrl-C ends it", err=True)

    session = Session()
    serve_gallery(port, session.definitions, session.database, session.settings, on_ready)
    return {"port": port, "text": "gallery closed: completed work is kept"}


@click.command()
@click.argument("kind", metavar="{edits|faces}", type=click.Choice(["edits", "faces"]))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--tasks", type=click.IntRange(1, 10_000), default=24, show_default=True, help="Number of tasks.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same tasks.")
@json_command
def example(kind: str, folder: Path, tasks: int, seed: int) -> dict[str, Any]:
    """Draw example tasks into a folder.

    edits for flexy compare, faces for flexy inpaint, both of the small world the embedded models know.
    """
    from resources.mini.edits import write_edit_example
    from resources.mini.faces import write_face_example

    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BadInputError(f"cannot write to {folder}: it exists and is not empty: name a new folder")
    file = (write_edit_example if kind == "edits" else write_face_example)(folder, tasks, seed)
    edits_usage = f"flexy compare --dataset {file} --out {folder / 'results'}"
    usage = edits_usage if kind == "edits" else f"flexy inpaint import {file} && flexy inpaint run"
    return {"file": str(file), "tasks": tasks, "text": f"{format_count(tasks, 'task')} in {file}\nuse: {usage}"}


@click.command()
@json_command
def config() -> dict[str, Any]:
    """Show settings and where they come from.

    Environment variables win over .env, and .env over flexy.toml. Secrets are masked.
    """
    from flexy_assets.cli.configuration import list_settings
    from flexy_assets.reporting.text_tables import format_text_table

    rows = list_settings()
    return {"settings": rows, "text": format_text_table(rows)}
