"""The queue of trials: each is a Dagster run of the job `try_image`, one at a time, first in, first out."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import UUID

from flexy_assets.sweep.try_image import Trial
from resources.errors import FlexyError

MAX_WAITING = 100  # trials at once
MAX_REMEMBERED = 20  # ended trials that are still listed


class QueueFullError(FlexyError):
    """The queue holds its maximum of waiting trials."""


@dataclass
class QueuedTrial:
    """A trial in the queue; `state` is waiting, running, done or failed, `error` is why it failed."""

    trial: Trial
    image_id: UUID
    state: str = "waiting"
    error: str | None = None
    began: float = 0
    seconds: float | None = None

    def elapsed_seconds(self) -> float | None:
        """Return the seconds it has run so far, or took."""
        return time.monotonic() - self.began if self.state == "running" else self.seconds


class TrialQueue:
    """Runs trials on a thread; `run` returns the errors of a trial, each in one line."""

    def __init__(self, run: Callable[[Trial], list[str]]) -> None:
        self._run = run
        self._trials: dict[UUID, QueuedTrial] = {}
        self._closed = False
        self._changed = threading.Condition()
        # A daemon, so that a second Ctrl-C need not wait for a trial that takes minutes.
        self._thread = threading.Thread(target=self._work, name="trials", daemon=True)
        self._thread.start()

    def add(self, trial: Trial, image_id: UUID) -> QueuedTrial:
        """Add a trial, unless the same one waits or runs already. Raises `QueueFullError` if `MAX_WAITING` wait."""
        with self._changed:
            known = self._trials.get(image_id)
            if known and known.state in ("waiting", "running"):
                return known
            if len(self._waiting()) >= MAX_WAITING:
                message = f"the queue is full: {MAX_WAITING} trials are waiting: try again when some have ended"
                raise QueueFullError(message)
            self._trials.pop(image_id, None)
            queued = self._trials[image_id] = QueuedTrial(trial, image_id)
            self._changed.notify()
            return queued

    def snapshot(self) -> list[tuple[QueuedTrial, int]]:
        """Return copies of the trials, the last added first, each with how many are before it."""
        with self._changed:
            waiting, running = self._waiting(), any(trial.state == "running" for trial in self._trials.values())
            before = {trial.image_id: place + running for place, trial in enumerate(waiting)}
            return [(replace(trial), before.get(trial.image_id, 0)) for trial in reversed(self._trials.values())]

    def close(self) -> None:
        """Drop the waiting trials, and return when the running one has ended."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _waiting(self) -> list[QueuedTrial]:
        return [trial for trial in self._trials.values() if trial.state == "waiting"]

    def _work(self) -> None:
        while trial := self._next():
            try:
                problems = self._run(trial.trial)
            # Whatever a run raises, the next trial is run.
            except (Exception, KeyboardInterrupt) as error:
                problems = [" ".join(str(error).split()) or type(error).__name__]
            with self._changed:
                trial.seconds, trial.error = trial.elapsed_seconds(), "; ".join(problems) or None
                trial.state = "failed" if problems else "done"
                ended = [each for each in self._trials.values() if each.state in ("done", "failed")]
                for old in ended[:-MAX_REMEMBERED]:
                    del self._trials[old.image_id]

    def _next(self) -> QueuedTrial | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting())
            if self._closed:
                return None
            trial = self._waiting()[0]
            trial.state, trial.began = "running", time.monotonic()
            return trial
