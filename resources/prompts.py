"""Checks prompts, and reads files of them: text, JSON, JSON lines, CSV and TSV."""

import csv
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resources.errors import BadInputError

MAX_PROMPT = 2_000
"""Characters; the text encoders in use read less than a tenth of it."""
MAX_FILE_BYTES = 50_000_000
MAX_CATEGORY = 100
"""Characters of a category or a complexity."""

# PartiPrompts names its columns Prompt, Category and Challenge, DrawBench Prompts and Category.
PROMPT_NAMES = ("prompt", "prompts", "text", "caption")
CATEGORY_NAMES = ("category",)
COMPLEXITY_NAMES = ("complexity", "challenge")


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the group and the difficulty that its file gives it."""

    text: str
    category: str | None = None
    complexity: str | None = None


def check_prompt(prompt: str, where: str) -> None:
    """Raise `BadInputError`, beginning with `where`, for a prompt with control characters or one that is too long."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in prompt):
        raise BadInputError(f"{where}: control characters: write plain text, one prompt per line")
    if len(prompt) > MAX_PROMPT:
        raise BadInputError(f"{where}: over {MAX_PROMPT} characters: shorten it")


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Return the prompts of a UTF-8 file, in their order. Its content says what it is:

    - a JSON list of prompts, or an object with such a list as `prompts`;
    - JSON lines;
    - CSV or TSV, with a column for prompts (`PROMPT_NAMES`) in the first line;
    - text, one prompt per line; blank lines and lines that begin with # are skipped.

    Raises `BadInputError` naming the file and, where there is one, the line, for what is none of these.
    """
    text = _read_text(path)
    prompts = []
    for where, entry in _read_entries(text, path):
        if prompt := _parse_entry(entry, where):
            prompts.append(prompt)
    if not prompts:
        raise BadInputError(f"prompts {path}: the file has no prompts: write one per line")
    return tuple(prompts)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadInputError(
            f"cannot read prompts {path}: {error.strerror}: name a text, JSON, CSV or TSV file of prompts"
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise BadInputError(f"prompts {path}: over {MAX_FILE_BYTES // 10**6} MB: split the file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(f"prompts {path} are not UTF-8 text (byte {error.start}): save the file as UTF-8") from None


def _read_entries(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each entry with the place it stands at: a text, or the fields of an object or row."""
    lines = text.splitlines()
    header = next((line for line in lines if line.strip()), "")
    if _looks_like_json(text, header, path):
        yield from _read_json(text, lines, path)
    elif path.suffix.lower() in (".csv", ".tsv") or _is_header(header):
        yield from _read_table(text, header, path)
    else:
        for number, line in enumerate(lines, 1):
            if not line.lstrip().startswith("#"):
                yield f"prompts {path}, line {number}", line


def _looks_like_json(text: str, header: str, path: Path) -> bool:
    """A text's prompt may begin with a bracket, as in `[close-up] a fox`."""
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        return True
    return text.lstrip()[:1] in ("{", "[") and bool(re.match(r'\s*[{\[]\s*($|"|\{|\[|\})', header))


def _read_json(text: str, lines: list[str], path: Path) -> Iterator[tuple[str, Any]]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        first = next((line for line in lines if line.strip()), "")
        if not _parses(first):
            line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise BadInputError(f"prompts {path}{line}: not valid JSON: correct it, or write text") from None
        yield from _read_json_lines(lines, path)
        return
    if isinstance(document, dict):
        one_line = _find(document, PROMPT_NAMES)
        document = [document] if isinstance(one_line, str) else document.get("prompts")
    if not isinstance(document, list):
        raise BadInputError(
            f"prompts {path}: no list of prompts: write a JSON list, or an object with one as 'prompts'"
        )
    for number, entry in enumerate(document, 1):
        yield f"prompts {path}, entry {number}", entry


def _read_json_lines(lines: list[str], path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            if not _parses(line):
                raise BadInputError(f"prompts {path}, line {number}: not valid JSON: write one object per line")
            yield f"prompts {path}, line {number}", json.loads(line)


def _parses(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_header(line: str) -> bool:
    """Whether a text's first line names the columns of a table: it may be a prompt with a comma."""
    names = {name.strip().strip('"').lower() for name in re.split(r"[\t,;]", line)}
    return bool(names & {"prompt", "prompts"}) and bool(names & {*CATEGORY_NAMES, *COMPLEXITY_NAMES, "id"})


def _read_table(text: str, header: str, path: Path) -> Iterator[tuple[str, Any]]:
    delimiter = next((mark for mark in "\t,;" if mark in header), ",")
    lines = text.splitlines(keepends=True)
    if delimiter == "\t":
        # PartiPrompts has quotation marks as they are.
        rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] = []
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if not names:
                names = [name.strip().strip('"').lower() for name in row]
                if not any(name in PROMPT_NAMES for name in names):
                    shown = ", ".join(names[:8])
                    raise BadInputError(
                        f"prompts {path}: no column for prompts among {shown}: name it 'prompt' in the first line"
                    )
                continue
            where = f"prompts {path}, line {rows.line_num}"
            if len(row) > len(names):
                raise BadInputError(
                    f"{where}: {len(row)} cells for {len(names)} columns: put quotation marks around it"
                )
            yield where, dict(zip(names, row, strict=False))
    except csv.Error as error:
        raise BadInputError(f"prompts {path}, line {rows.line_num}: {error}: correct the quotation marks") from None


def _parse_entry(entry: Any, where: str) -> Prompt | None:
    """Return an entry's prompt; None for a blank text or cell. Raises `BadInputError` for an entry without one."""
    fields = {"prompt": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict):
        raise BadInputError(f"{where}: neither text nor an object: write the prompt, or an object with 'prompt'")
    text = _find(fields, PROMPT_NAMES)
    if not isinstance(text, str):
        raise BadInputError(f"{where}: no prompt: give the text as 'prompt'")
    if not (text := text.strip()):
        return None
    check_prompt(text, where)
    groups = []
    for names in (CATEGORY_NAMES, COMPLEXITY_NAMES):
        group = _find(fields, names)
        group = str(group).strip() if isinstance(group, str | int | float) else ""
        check_prompt(group, where)
        if len(group) > MAX_CATEGORY:
            raise BadInputError(f"{where}: {names[0]} over {MAX_CATEGORY} characters: shorten it")
        groups.append(group or None)
    return Prompt(text, *groups)


def _find(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Return the value of the first of these names, whatever their case."""
    lowered = {str(name).lower(): value for name, value in fields.items()}
    return next((lowered[name] for name in names if lowered.get(name) is not None), None)
