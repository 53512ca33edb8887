"""`flexy models`, `gallery`, `example` and `config`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flexy_assets.cli.command import json_command
from flexy_assets.cli.session import Session
from resources.errors import BadInputError


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
    from resources.models.catalogue import format_model_table, list_models

    rows = list_models(Session().settings)
    remedy = (
        "fetch a missing model: flexy models fetch NAME; supply one yourself: set its folder in FLEXY_MODEL_REGISTRY"
    )
    return {"models": rows, "text": f"{format_model_table(rows)}\n{remedy}"}


@models.command("fetch")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@json_command
def models_fetch(names: tuple[str, ...]) -> dict[str, Any]:
    """Fetch models from the Hugging Face hub.

    Models of the set full, with the models they need. An interrupted download continues.
    """
    from resources.models.fetch import fetch_models

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
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BadInputError(f"cannot write to {folder}: it exists and is not empty: name a new folder")
    if kind == "edits":
        from resources.mini.edits import write_edit_example

        file = write_edit_example(folder, tasks, seed)
        usage = f"flexy compare --dataset {file} --out {folder / 'results'}"
    else:
        from resources.mini.faces import write_face_example

        file = write_face_example(folder, tasks, seed)
        usage = f"flexy inpaint import {file} && flexy inpaint run"
    return {"file": str(file), "tasks": tasks, "text": f"{tasks} tasks in {file}\nuse them: {usage}"}


@click.command()
@json_command
def config() -> dict[str, Any]:
    """Show settings and where they come from.

    Environment variables win over .env, and .env over flexy.toml. Secrets are masked.
    """
    from flexy_assets.cli.configuration import format_settings, list_settings

    rows = list_settings()
    return {"settings": rows, "text": format_settings(rows)}
