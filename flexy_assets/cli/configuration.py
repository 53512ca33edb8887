"""Every variable with its value, source and purpose: the table of `flexy config` and the reference page."""

import os
import re
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from resources.settings import JUDGE_KEY, JUDGE_KEY_VARIABLES, Settings, read_sources, set_variables, toml_key

MASK = "***"

LIBRARY_VARIABLES = {
    "DAGSTER_HOME": "Folder of Dagster's `dagster.yaml`: the repository, or `deploy/postgres`.",
    "FLEXY_DAGSTER_STORAGE": "Folder of Dagster's SQLite files and logs; by default `dagster` in FLEXY_HOME.",
    "FLEXY_DAGSTER_URL": "Dagster's own Postgres database, with `DAGSTER_HOME=deploy/postgres`.",
    "HF_HOME": "Folder of the Hugging Face cache.",
    "HF_TOKEN": "Token for models whose licence must be accepted.",
    "HF_HUB_OFFLINE": "1: download nothing.",
}
"""Variables that Dagster and the Hugging Face libraries read, from the environment alone."""

_DEFAULTS = {"FLEXY_DATABASE_URL": "SQLite in `FLEXY_HOME`", "FLEXY_IMAGES": "`images` in `FLEXY_HOME`"}
"""Defaults that follow from other variables."""


def list_settings() -> list[dict[str, str]]:
    """Return a row for each variable: `variable`, `value` with secrets masked, `source` and `purpose`.

    Raises `BadInputError` for a file that cannot be parsed or a variable that is invalid.
    """
    sources = read_sources()
    settings, values = Settings.merge(sources), set_variables(sources)
    rows: list[tuple[str, str, str, str]] = []
    for name, field in Settings.model_fields.items():
        variable, setting = str(field.alias), getattr(settings, name)
        value, source = values.get(variable, (setting, "default"))
        text = MASK if isinstance(setting, SecretStr) and value else _mask(variable, _text(value))
        if variable == JUDGE_KEY:
            variable = settings.judge_key_variable if value else ", ".join(JUDGE_KEY_VARIABLES)
        rows.append((variable, text, source, str(field.description)))
    for variable, purpose in LIBRARY_VARIABLES.items():
        value = os.environ.get(variable, "")
        text = MASK if value and variable.endswith("TOKEN") else _mask(variable, value)
        rows.append((variable, text, "environment" if value else "default", purpose))
    names = ("variable", "value", "source", "purpose")
    return [dict(zip(names, (*row[:3], row[3].replace("`", "")), strict=True)) for row in rows]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, list | tuple | frozenset):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _mask(variable: str, text: str) -> str:
    """Return the text with the password of a URL masked, and its query, which may hold one too."""
    if variable in ("FLEXY_DATABASE_URL", "FLEXY_DAGSTER_URL") and text and "://" not in text:
        return MASK
    text = re.sub(r"(://[^:/@]*):.*@", rf"\1:{MASK}@", text)
    return re.sub(r"(://.*?)\?.*", rf"\1?{MASK}", text)


def configuration_page() -> str:
    """Return docs/reference/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "Settings are environment variables. They can also stand in `.env` (`NAME=value`) or in `flexy.toml` in the",
        "working directory, where the name is in lower case and without `FLEXY_`. The environment wins over `.env`,",
        "and `.env` over `flexy.toml`; an empty variable is not set. `flexy config` shows each value and its source.",
        "",
        "| variable | in `flexy.toml` | default | purpose |",
        "|---|---|---|---|",
    ]
    for field in Settings.model_fields.values():
        variables = JUDGE_KEY_VARIABLES if field.alias == JUDGE_KEY else (str(field.alias),)
        default = "" if field.default_factory else _text(field.default)
        default = _DEFAULTS.get(str(field.alias), f"`{default}`" if default else "–")
        names, keys = (", ".join(f"`{each}`" for each in some) for some in (variables, map(toml_key, variables)))
        lines.append(f"| {names} | {keys} | {default} | {field.description} |")
    lines += ["", "Dagster and the Hugging Face libraries read these from the environment alone:", ""]
    lines += ["| variable | purpose |", "|---|---|"]
    lines += [f"| `{variable}` | {purpose} |" for variable, purpose in LIBRARY_VARIABLES.items()]
    lines += ["", "This page is generated: `python -m flexy_assets.cli.configuration`.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    Path("docs/reference/configuration.md").write_text(configuration_page(), "utf-8")
