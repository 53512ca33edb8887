"""Progress bars on the terminal that the command was typed in."""

import os
from typing import Any

from tqdm import tqdm

# While a step runs, Dagster sends standard error to the step's log; the terminal is remembered before.
_TERMINAL = os.fdopen(os.dup(2), "w") if os.isatty(2) else None


def progress_bar(what: str, total: int, unit: str = " images") -> Any:
    """A bar with rate and time left; nothing without a terminal or without work."""
    return tqdm(total=total, desc=f"{what:<16}", unit=unit, file=_TERMINAL, disable=_TERMINAL is None or not total)
