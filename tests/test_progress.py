"""A person at a terminal sees how far the work is; Dagster's log of a step does not swallow it."""

from __future__ import annotations

import json
import os
import pty
import sys
from pathlib import Path

import pytest

from tests.support import forked

pytestmark = pytest.mark.slow(seconds=20)

FLEXY = [sys.executable, "-m", "flexy_assets.cli.app"]
ROOT = Path(__file__).parent.parent


def test_a_terminal_shows_rate_and_time_left(home: Path) -> None:
    new = [*FLEXY, "sweep", "new", "--engine", "mini_sdxl", "--images", "2", "--steps", "1", "--json"]
    run = json.loads(forked.run(new, check=True, capture_output=True, text=True).stdout)["run"]
    ours, terminal = pty.openpty()
    process = forked.Popen([*FLEXY, "sweep", "run", run], stdout=forked.DEVNULL, stderr=terminal)
    os.close(terminal)
    seen = b""
    try:
        while piece := os.read(ours, 4096):
            seen += piece
    except OSError:  # how Linux says that the other side is closed
        pass
    assert process.wait(timeout=60) == 0
    bars = seen.decode()
    for name in ("images generated", "images embedded", "clip_score", "hps_v2_score"):
        assert f"{name:<16}" in bars
    assert "2/2" in bars and "images/s" in bars and "<00:00" in bars
