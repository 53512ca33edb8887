"""Writes the reference pages from the code, for `make docs`: `python -m docs.reference`.

Commands are read from click, assets from Dagster's definitions, columns from their schemas and the database's tables.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flexy_assets.cli.app import main
from flexy_assets.cli.configuration import configuration_page
from flexy_assets.cli.json_keys import JSON_KEYS

if TYPE_CHECKING:
    import dagster as dg

FOLDER = Path(__file__).parent / "reference"
DATABASE_COLUMNS = {
    "id": "Id of the row",
    "task": "Id of the task",
    "label_task": "Id of the task in label_tasks, where it is one",
    "candidate": "Id of the candidate",
    "position": "Its place among the others, from 0",
    "encoder": "Fingerprint of what made the vector",
    "value": "The score; null where it failed or is asked for again",
    "attempts": "How often it was tried without success",
    **dict.fromkeys(("scored_at", "fetched_at", "updated_at", "compared_at", "selected_at"), "When that was, in UTC"),
    "sha256": "SHA-256 of the file",
    **{
        f"{name}_sha256": f"SHA-256 of the {name}"
        for name in ("image", "mask", "character", "final", "reference", "prompt")
    },
    "character_id": "The character's id in its project",
    "character_name": "The character's name",
    "agreeing": "Sampled scores that the variant gives",
    "mean_difference": "Mean difference of the sampled scores",
    "correlation": "Pearson's correlation of the sampled scores with the variant's",
    "tf32_enabled": "Whether matrix products ran in TF32",
    "gpu_name": "The GPU; null on a CPU",
    "model_load_ms": "Milliseconds that loading the model took",
    **{f"{name}_version": f"Version of {name}" for name in ("torch", "diffusers", "transformers")},
    "identity_after": "ArcFace's cosine to the character after the swap",
    "images_in_call": "Images that were made in one call of the model",
    "model_version": "The prediction's version, as Label Studio shows it",
}
"""What columns mean that no table of an asset has and that say nothing themselves."""
NOTE = "This page is generated from the code by `make docs`."


def list_commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    """Return every command of a group that help shows, by its words after `flexy`."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from list_commands(command, *path, name)
        elif not command.hidden:
            yield " ".join((*path, name)), command


def commands_page() -> str:
    """Return the page of all commands: arguments, options with choices and defaults, and the keys of `--json`."""
    lines = ["# Commands", "", NOTE, "", str(main.epilog), ""]
    for words, command in list_commands(main):
        context = click.Context(command, info_name=f"flexy {words}")
        usage = command.collect_usage_pieces(context)
        lines += [f"## flexy {words}", "", f"    {context.info_name} {' '.join(usage)}", ""]
        lines += [cleandoc(command.help or ""), ""]
        records = [each.get_help_record(context) for each in command.params if isinstance(each, click.Option)]
        lines += ["| option | purpose |", "|---|---|"]
        lines += [f"| `{_cell(option)}` | {_cell(help)} |" for option, help in filter(None, records)]
        lines += ["", "Keys of `--json`, and `error` where the command fails:", "", "| key | value |", "|---|---|"]
        lines += [f"| `{key}` | {_cell(meaning)} |" for key, meaning in JSON_KEYS[words].items()]
        lines += [""]
    return "\n".join(lines)


def assets_page(definitions: dg.Definitions) -> str:
    """Return the page of all assets by group, with the jobs, schedules and sensors."""
    nodes = sorted(definitions.resolve_asset_graph().asset_nodes, key=lambda node: node.key)
    checks = defaultdict(list)
    for check in definitions.resolve_asset_graph().asset_check_keys:
        checks[check.asset_key].append(check.name)
    lines = ["# Assets", "", NOTE, "", "The lineage, by group. Columns are described under [Columns](columns.md).", ""]
    for group in dict.fromkeys(node.group_name for node in sorted(nodes, key=_group_position)):
        lines += [f"## Group {group}", ""]
        for node in (each for each in nodes if each.group_name == group):
            name, parents = node.key.to_user_string(), sorted(key.to_user_string() for key in node.parent_keys)
            partitions = node.partitions_def
            facts = [f"Made from {_codes(parents)}."] if parents else []
            facts += [f"Partitioned by `{getattr(partitions, 'name', None)}`."] if partitions else []
            facts += [f"Checks: {_codes(sorted(checks[node.key]))}."] if node.key in checks else []
            if schema := node.metadata.get("dagster/column_schema"):
                facts.append(f"Columns: {_codes([column.name for column in schema.columns])}.")
            lines += [f"### {name}", "", node.description or "", "", *facts, ""]
    repository = definitions.get_repository_def()
    automation = [*repository.schedule_defs, *repository.sensor_defs]
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    for title, entries in (("Jobs", jobs), ("Schedules and sensors", automation)):
        lines += [f"## {title}", "", "| name | purpose |", "|---|---|"]
        lines += [f"| `{each.name}` | {_cell(each.description or '')} |" for each in entries] + [""]
    return "\n".join(lines)


def columns_page(definitions: dg.Definitions) -> str:
    """Return the page of all columns: of the tables that assets write, and of the database."""
    from flexy_assets.reporting.columns import COLUMN_DESCRIPTIONS
    from flexy_assets.storage.tables import metadata

    meanings = COLUMN_DESCRIPTIONS | DATABASE_COLUMNS
    lines = ["# Columns", "", NOTE, ""]
    lines += ["Tables of assets are Parquet files in `.flexy/assets`, with these columns:", ""]
    for node in sorted(definitions.resolve_asset_graph().asset_nodes, key=lambda node: node.key):
        if schema := node.metadata.get("dagster/column_schema"):
            lines += [f"## {node.key.to_user_string()}", "", "| column | type | meaning |", "|---|---|---|"]
            lines += [f"| `{each.name}` | {each.type} | {_cell(each.description)} |" for each in schema.columns] + [""]
    lines += ["## The database", "", "Tables of `FLEXY_DATABASE_URL`; the first two are FlexyFace's, adopted."]
    for table in metadata.sorted_tables:
        lines += ["", f"### Table {table.name}", "", "| column | type | meaning |", "|---|---|---|"]
        lines += [
            f"| `{column.name}` | {column.type} | {_cell(column.comment or meanings[column.name])} |"
            for column in table.columns
        ]
    return "\n".join([*lines, ""])


def _group_position(node: object) -> int:
    groups = ("sweep", "scores", "results", "edits", "labels")
    return groups.index(name) if (name := getattr(node, "group_name", "")) in groups else len(groups)


def _codes(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _cell(text: str) -> str:
    """Return a text in one line of a Markdown table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def write_pages(folder: Path = FOLDER) -> None:
    """Write all reference pages into the folder."""
    from flexy_assets.definitions import build_definitions
    from resources.settings import Settings

    definitions = build_definitions(Settings.read({}))
    pages = {"configuration": configuration_page(), "commands": commands_page()}
    pages |= {"assets": assets_page(definitions), "columns": columns_page(definitions)}
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text, "utf-8")


if __name__ == "__main__":
    write_pages()
