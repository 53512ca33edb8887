"""How long to wait before a service is asked again."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def backoff_seconds(attempt: int, backoff: float, longest: float) -> float:
    """Seconds after the `attempt`-th attempt, from 1: up to `backoff`, doubled each time, `longest` at the most.

    At random, so that those who failed together do not come back together.
    """
    return min(longest, backoff * 2.0 ** (attempt - 1) * random.uniform(0.5, 1))


def parse_retry_after(*said: str | None) -> float:
    """Seconds that a service asks to wait, by the first of `said` that can be read, as in Retry-After; else 0."""
    for wait in said:
        try:
            seconds = float(str(wait).removesuffix("s"))
        except ValueError:
            try:
                seconds = (parsedate_to_datetime(str(wait)) - datetime.now(UTC)).total_seconds()
            except (ValueError, TypeError):
                continue
        if not math.isnan(seconds):
            return max(0.0, seconds)
    return 0.0
