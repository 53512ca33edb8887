"""Where things are, from the environment: the one place that reads `FLEXY_*`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resources.errors import BadInputError

MODEL_SETS = ("mini", "full")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Settings:
    """`home` holds everything by default; the others may be pointed elsewhere.

    `database_url` is SQLAlchemy's; it may hold a password, so it is never shown (see `Database`).
    `images` is a folder or an fsspec URL. `files_url` is where `make ui` serves `tables`, so that the
    UI can link to the report. `precision` is what models compute in (`auto`: half on a GPU, fp32 on a CPU),
    `model_registry` a TOML file that names folders of models, `hps_root` the HPS checkpoint's folder.
    """

    home: Path
    database_url: str
    images: str
    models: str
    files_url: str
    precision: str = "auto"
    model_registry: Path | None = None
    hps_root: Path | None = None

    @property
    def tables(self) -> Path:
        """Finished tables, reports and CSVs, one file an asset."""
        return self.home / "assets"

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Settings from the variables of the README's table.

        Raises `BadInputError` for a model set or a precision there is not.
        """
        home = Path(environment.get("FLEXY_HOME") or ".flexy").expanduser().absolute()
        models = environment.get("FLEXY_MODELS") or "mini"
        if models not in MODEL_SETS:
            raise BadInputError(f"FLEXY_MODELS={models} is no model set: use {' or '.join(MODEL_SETS)}")
        precision = environment.get("FLEXY_PRECISION") or "auto"
        if precision not in PRECISIONS:
            raise BadInputError(f"FLEXY_PRECISION={precision} is no precision: use {', '.join(PRECISIONS)}")
        registry, hps_root = (environment.get(name) for name in ("FLEXY_MODEL_REGISTRY", "HPS_ROOT"))
        return cls(
            home=home,
            database_url=environment.get("FLEXY_DATABASE_URL") or f"sqlite:///{home / 'flexy.sqlite'}",
            images=environment.get("FLEXY_IMAGES") or str(home / "images"),
            models=models,
            files_url=(environment.get("FLEXY_FILES_URL") or "http://127.0.0.1:3001").rstrip("/"),
            precision=precision,
            model_registry=Path(registry).expanduser() if registry else None,
            hps_root=Path(hps_root).expanduser() if hps_root else None,
        )
