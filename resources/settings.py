"""Where things are, from the environment: the one place that reads `FLEXY_*`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resources.errors import BadInputError

MODEL_SETS = ("mini", "full")


@dataclass(frozen=True)
class Settings:
    """`home` holds everything by default; the others may be pointed elsewhere.

    `database_url` is SQLAlchemy's; it may hold a password, so it is never shown (see `Database`).
    `images` is a folder or an fsspec URL. `files_url` is where `make ui` serves `tables`, so that the
    UI can link to the report.
    """

    home: Path
    database_url: str
    images: str
    models: str
    files_url: str

    @property
    def tables(self) -> Path:
        """Finished tables, reports and CSVs, one file an asset."""
        return self.home / "assets"

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Settings from `FLEXY_HOME`, `FLEXY_DATABASE_URL`, `FLEXY_IMAGES`, `FLEXY_MODELS`, `FLEXY_FILES_URL`.

        Raises `BadInputError` for a model set there is not.
        """
        home = Path(environment.get("FLEXY_HOME") or ".flexy").expanduser().absolute()
        models = environment.get("FLEXY_MODELS") or "mini"
        if models not in MODEL_SETS:
            raise BadInputError(f"FLEXY_MODELS={models} is no model set: use {' or '.join(MODEL_SETS)}")
        return cls(
            home=home,
            database_url=environment.get("FLEXY_DATABASE_URL") or f"sqlite:///{home / 'flexy.sqlite'}",
            images=environment.get("FLEXY_IMAGES") or str(home / "images"),
            models=models,
            files_url=(environment.get("FLEXY_FILES_URL") or "http://127.0.0.1:3001").rstrip("/"),
        )
