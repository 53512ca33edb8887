"""Trials wait for their turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from flexy_assets.gallery import queue
from flexy_assets.gallery.queue import QueueFullError, TrialQueue
from flexy_assets.sweep.try_image import Trial


def trial(seed: int) -> Trial:
    return Trial("mini_sdxl", "a red circle", None, 2, 2.0, seed, 64, 64)


def ask(waiting: TrialQueue, seed: int) -> None:
    waiting.add(trial(seed), trial(seed).image_id)


def states(waiting: TrialQueue) -> list[tuple[int, str, int]]:
    """Seed, state and how many are before it, the last asked for first."""
    return [(asked.trial.seed, asked.state, before) for asked, before in waiting.snapshot()]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Workshop:
    """Makes a trial when it is let; seed 13 fails, and seed 14 as nobody foresaw."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.let = threading.Semaphore(0)
        self.queue = TrialQueue(self.make)

    def make(self, asked: Trial) -> list[str]:
        self.let.acquire()
        self.made.append(asked.seed)
        if asked.seed == 14:
            raise ZeroDivisionError
        return ["the engine\nwould not"] if asked.seed == 13 else []

    def finish(self) -> None:
        self.let.release(1000)
        until(lambda: all(state in ("done", "failed") for _, state, _ in states(self.queue)))


def test_one_is_made_at_a_time_in_the_order_they_came_and_none_twice() -> None:
    shop = Workshop()
    for seed in (1, 2, 3, 2, 1):
        ask(shop.queue, seed)
    until(lambda: states(shop.queue) == [(3, "waiting", 2), (2, "waiting", 1), (1, "running", 0)])
    shop.finish()
    assert shop.made == [1, 2, 3]
    assert all(asked.seconds is not None for asked, _ in shop.queue.snapshot())


def test_one_that_fails_says_why_and_the_next_is_made() -> None:
    shop = Workshop()
    for seed in (13, 14, 15):
        ask(shop.queue, seed)
    shop.finish()
    states = {asked.trial.seed: (asked.state, asked.error) for asked, _ in shop.queue.snapshot()}
    assert states == {
        13: ("failed", "the engine\nwould not"),
        14: ("failed", "ZeroDivisionError"),
        15: ("done", None),
    }


def test_there_is_room_for_so_many_and_the_oldest_that_ended_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "MAX_WAITING", 30)
    shop = Workshop()
    ask(shop.queue, 0)
    until(lambda: states(shop.queue) == [(0, "running", 0)])
    for seed in range(1, 31):
        ask(shop.queue, seed)
    with pytest.raises(QueueFullError, match="the queue is full: 30 trials are waiting"):
        ask(shop.queue, 31)
    shop.finish()
    assert [seed for seed, _, _ in states(shop.queue)] == list(range(30, 10, -1))


def test_closing_drops_what_waits_and_ends_with_the_trial_under_way() -> None:
    shop = Workshop()
    ask(shop.queue, 1)
    until(lambda: states(shop.queue) == [(1, "running", 0)])
    ask(shop.queue, 2)
    closing = threading.Thread(target=shop.queue.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    shop.let.release(2)
    closing.join(20)
    assert shop.made == [1]
