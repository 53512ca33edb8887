"""Splits sequences into chunks."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def split_chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield `items` in order, at most `size` at a time."""
    for first in range(0, len(items), size):
        yield items[first : first + size]
