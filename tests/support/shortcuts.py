"""What tests do faster than production, where speed is not the claim. `apply` is called once in each test process."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage
from matplotlib.figure import Figure
from PIL import Image
from sqlalchemy import Engine

MEMORY_FILE_SYSTEM = Path("/dev/shm")
MIN_FREE_BYTES = 6 * 2**30
"""Temporary folders of a whole test session stay below half of this."""
MAX_ENGINES = 64
_draw = Figure.savefig


def apply() -> None:
    # Threads that wait for each other's cores are slower than one.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    # A process that compiles every module again takes a second longer.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if _has_free_memory():
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY_FILE_SYSTEM))
    _share_engines()
    _share_migrations()
    Figure.savefig = _save_blank  # type: ignore[method-assign]


def freeze() -> None:
    """Keep what lives now out of every later search for garbage; those that look at the youngest come less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 50)


def find_fast_folder() -> Path:
    """Return where temporary folders with a short path are made."""
    return MEMORY_FILE_SYSTEM if _has_free_memory() else Path("/tmp")


def _has_free_memory() -> bool:
    """Whether there is a file system in memory with room for temporary folders: SQLite's commits cost nothing there."""
    return MEMORY_FILE_SYSTEM.is_dir() and shutil.disk_usage(MEMORY_FILE_SYSTEM).free >= MIN_FREE_BYTES


def _share_engines() -> None:
    """Let Dagster's SQLite storage keep its engines: it makes a new one, without compiled statements, for each query.

    The engines have no pool, so no connection is kept.
    """
    create_engine = sqlite_event_log.create_engine
    engines: dict[str, Engine] = {}

    def get_engine(url: str, **options: Any) -> Engine:
        if url not in engines:
            if len(engines) >= MAX_ENGINES:
                engines.clear()
            engines[url] = create_engine(url, **options)
        return engines[url]

    for module in (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage):
        module.create_engine = get_engine  # type: ignore[attr-defined]


def _share_migrations() -> None:
    """Read the migrations once in a process: Dagster reads its eighty twice for each Dagster run."""
    from_config = ScriptDirectory.from_config
    scripts: dict[str, ScriptDirectory] = {}

    def get_scripts(config: Config) -> ScriptDirectory:
        location = config.get_main_option("script_location") or ""
        if location not in scripts:
            scripts[location] = from_config(config)
        return scripts[location]

    ScriptDirectory.from_config = staticmethod(get_scripts)  # type: ignore[method-assign, assignment]


def _save_blank(_: Figure, file: IO[bytes], **options: Any) -> None:
    """Save a figure that has been built as one pixel: its text and ticks take matplotlib half the time of a job."""
    Image.new("RGBA", (1, 1)).save(file, format=options["format"])


@contextmanager
def drawn_figures() -> Iterator[None]:
    """Let matplotlib draw what it saves, for a test of the pictures."""
    Figure.savefig = _draw  # type: ignore[method-assign]
    try:
        yield
    finally:
        Figure.savefig = _save_blank  # type: ignore[method-assign, assignment]
