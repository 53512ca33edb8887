"""Trials that wait for their turn: each is a run of the job `try_image`, one at a time, in the order they came."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import UUID

from flexy_assets.sweep.try_image import Trial
from resources.errors import FlexyError

MAX_WAITING = 100
"""Trials that may wait at once."""

MAX_REMEMBERED = 20
"""Trials that are still listed after they have ended."""


class QueueFullError(FlexyError):
    """There are as many trials waiting as there may be."""


@dataclass
class QueuedTrial:
    """A trial that was asked for; `state` is waiting, running, done or failed, and `error` why it failed."""

    trial: Trial
    image_id: UUID
    state: str = "waiting"
    error: str | None = None
    began: float = 0
    seconds: float | None = None

    def took(self) -> float | None:
        """Seconds it has run so far, or did."""
        return time.monotonic() - self.began if self.state == "running" else self.seconds


class TrialQueue:
    """Makes trials on a thread of its own; `make` returns what went wrong, each in one line."""

    def __init__(self, make: Callable[[Trial], list[str]]) -> None:
        self._make = make
        self._asked: dict[UUID, QueuedTrial] = {}
        self._closed = False
        self._changed = threading.Condition()
        # A daemon, so that a second Ctrl-C need not wait for a trial that takes minutes.
        self._thread = threading.Thread(target=self._work, name="trials", daemon=True)
        self._thread.start()

    def ask(self, trial: Trial, image_id: UUID) -> QueuedTrial:
        """Let the trial wait its turn; one that is waiting or running is not asked for twice.

        Raises `FullError` where there is no room.
        """
        with self._changed:
            known = self._asked.get(image_id)
            if known and known.state in ("waiting", "running"):
                return known
            if len(self._waiting()) >= MAX_WAITING:
                raise QueueFullError(f"{MAX_WAITING} trials are waiting already: wait for some of them")
            self._asked.pop(image_id, None)
            asked = self._asked[image_id] = QueuedTrial(trial, image_id)
            self._changed.notify()
            return asked

    def snapshot(self) -> list[tuple[QueuedTrial, int]]:
        """The trials as they are now, the last asked for first, each with how many are before it."""
        with self._changed:
            waiting, running = self._waiting(), any(asked.state == "running" for asked in self._asked.values())
            before = {asked.image_id: place + running for place, asked in enumerate(waiting)}
            return [(replace(asked), before.get(asked.image_id, 0)) for asked in reversed(self._asked.values())]

    def close(self) -> None:
        """Drop what waits, and return when the trial under way has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _waiting(self) -> list[QueuedTrial]:
        return [asked for asked in self._asked.values() if asked.state == "waiting"]

    def _work(self) -> None:
        while asked := self._next():
            try:
                problems = self._make(asked.trial)
            # Whatever a run raises, the next trial is to be made.
            except (Exception, KeyboardInterrupt) as error:
                problems = [" ".join(str(error).split()) or type(error).__name__]
            with self._changed:
                asked.seconds, asked.error = asked.took(), "; ".join(problems) or None
                asked.state = "failed" if problems else "done"
                ended = [each for each in self._asked.values() if each.state in ("done", "failed")]
                for old in ended[:-MAX_REMEMBERED]:
                    del self._asked[old.image_id]

    def _next(self) -> QueuedTrial | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting())
            if self._closed:
                return None
            asked = self._waiting()[0]
            asked.state, asked.began = "running", time.monotonic()
            return asked
