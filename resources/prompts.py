"""Prompts: what a prompt may hold, and files of them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from resources.errors import BadInputError

MAX_PROMPT = 2_000
"""Characters; no text encoder here reads a tenth of it."""


def check_prompt(prompt: str, where: str) -> None:
    """Raises `BadInputError`, beginning with `where`, for what is no line of text or too long."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in prompt):
        raise BadInputError(f"{where}: control characters in it: one prompt a line, plain text")
    if len(prompt) > MAX_PROMPT:
        raise BadInputError(f"{where}: over {MAX_PROMPT} characters: shorten it")


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts in a UTF-8 text file, one a line; blank lines and lines that begin with # are passed over.

    Raises `BadInputError` naming the file and, where there is one, the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadInputError(
            f"cannot read prompts {path}: {error.strerror}: name a text file, one prompt a line"
        ) from None
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
        raise BadInputError(f"prompts {path}: no prompt in it: write one a line")
    return tuple(prompts)
