"""Checks prompts, and reads files of them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from resources.errors import BadInputError

MAX_PROMPT = 2_000
"""Characters; the text encoders in use read less than a tenth of it."""


def check_prompt(prompt: str, where: str) -> None:
    """Raise `BadInputError`, beginning with `where`, for a prompt with control characters or one that is too long."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in prompt):
        raise BadInputError(f"{where}: control characters: write plain text, one prompt per line")
    if len(prompt) > MAX_PROMPT:
        raise BadInputError(f"{where}: over {MAX_PROMPT} characters: shorten it")


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the prompts in a UTF-8 text file, one per line; blank lines and lines that begin with # are skipped.

    Raises `BadInputError` naming the file and, where there is one, the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        remedy = "name a text file with one prompt per line"
        raise BadInputError(f"cannot read prompts {path}: {error.strerror}: {remedy}") from None
    except UnicodeDecodeError as error:
        raise BadInputError(f"prompts {path} are not UTF-8 text (byte {error.start}): save the file as UTF-8") from None
    prompts = []
    for number, line in enumerate(text.splitlines(), 1):
        prompt = line.strip()
        if not prompt or prompt.startswith("#"):
            continue
        check_prompt(prompt, f"prompts {path}, line {number}")
        prompts.append(prompt)
    if not prompts:
        raise BadInputError(f"prompts {path}: the file has no prompts: write one per line")
    return tuple(prompts)
