"""A machine with a judge in reach, and pictures to show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resources.judges import Judge, JudgeQuestion
from resources.judges.client import JudgeClient, JudgeLimits
from resources.judges.gemini import Gemini
from resources.judges.moondream import Moondream
from tests.support.servers import JudgeServer, running

KEY = "verySecretKey-0123456789"


@dataclass
class World:
    """A machine with a service in reach."""

    service: JudgeServer
    home: Path

    def client(self, path: str = "", **limits: Any) -> JudgeClient:
        header = "X-Moondream-Auth" if path else "x-goog-api-key"
        url, turns = self.service.url + path, self.home / "turns"
        return JudgeClient(url, header, KEY, "check the key", turns, JudgeLimits(**{"backoff": 0.01} | limits))

    def judge(self, kind: str = "gemini", **limits: Any) -> Judge:
        backend = Gemini(self.client(**limits)) if kind == "gemini" else Moondream(self.client("/v1", **limits))
        return Judge(backend, self.home / "judgements")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running(JudgeServer()) as service:
        yield World(service, tmp_path)


@pytest.fixture
def question() -> JudgeQuestion:
    pictures = ("the original", "the edited picture")
    return JudgeQuestion("twins", 1, "How alike, how sharp?", pictures, {"likeness": (0, 10), "sharpness": (0, 10)})


@pytest.fixture
def picture() -> Callable[[int], Image.Image]:
    """`picture(seed)` is a picture that differs from those of other seeds."""

    def picture(seed: int) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
        return Image.fromarray(pixels)

    return picture


@pytest.fixture
def pair(picture: Callable[[int], Image.Image]) -> list[Image.Image]:
    return [picture(0), picture(1)]
