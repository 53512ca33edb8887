"""Where things are, from the environment: the one place that reads `FLEXY_*`."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from resources.errors import BadInputError

MODEL_SETS = ("mini", "full")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
PROMPT_TABLES = ("bench_run_results", "bench_runs")


@dataclass(frozen=True)
class Settings:
    """`home` holds everything by default; the others may be pointed elsewhere.

    `database_url` is SQLAlchemy's; it may hold a password, so it is never shown (see `Database`).
    `images` is a folder or an fsspec URL. `files_url` is where `make ui` serves `tables`, so that the
    UI can link to the report. `precision` is what models compute in (`auto`: half on a GPU, fp32 on a CPU),
    `model_registry` a TOML file that names folders of models, `hps_root` the HPS checkpoint's folder.

    For a table that was there before: `prompt_column` is where its prompts are, COLUMN or TABLE.COLUMN, and
    `batch_size` how many of its images make a batch. `nightly` is the cron line at which missing scores are
    looked for, in `timezone`; new rows are looked for every `watch_seconds`, and with `score_new` scored as they
    come. `failure_webhook` is told of failed runs; it is as good as a password, so it is never shown.

    `judge` names who judges pictures (`none`, or one of `resources.judges.JUDGES`), `judge_model` which of its models,
    `judge_url` where it is asked if not at its published address. Of `judge_rpm` requests a minute and
    `judge_max_calls` requests a process, None is without limit; an answer may take `judge_timeout` seconds.

    `allowed_hosts` are hosts that pictures are downloaded from wherever they are, each at a port, or, with None, at 80
    and 443. `label_studio_url` is where Label Studio is, "" for nowhere, `label_studio_key` the token for it,
    `label_studio_project` the project there whose new tasks are taken up by themselves.

    `owners` are whom the UI names beside each asset: e-mail addresses and `team:` names.
    """

    home: Path
    database_url: str = field(repr=False)
    images: str
    models: str
    files_url: str
    precision: str = "auto"
    model_registry: Path | None = None
    hps_root: Path | None = None
    prompt_column: tuple[str, str] | None = None
    batch_size: int = 500
    nightly: str = "0 2 * * *"
    timezone: str = "UTC"
    score_new: bool = False
    watch_seconds: int = 60
    failure_webhook: str = field(default="", repr=False)
    judge: str = "none"
    judge_model: str = ""
    judge_url: str = ""
    judge_key: str = field(default="", repr=False)
    judge_rpm: int | None = None
    judge_max_calls: int | None = None
    judge_timeout: int = 120
    allowed_hosts: frozenset[tuple[str, int | None]] = frozenset()
    label_studio_url: str = ""
    label_studio_key: str = field(default="", repr=False)
    label_studio_project: int | None = None
    owners: tuple[str, ...] = ("team:flexy",)

    @property
    def tables(self) -> Path:
        """Finished tables, reports and CSVs, one file an asset."""
        return self.home / "assets"

    @property
    def judge_key_variable(self) -> str:
        """The variable that holds the judge's key, GEMINI_API_KEY for one."""
        return _key_variable(self.judge)

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Settings from the variables of the README's table.

        Raises `BadInputError` naming the one that cannot be.
        """
        home = Path(environment.get("FLEXY_HOME") or ".flexy").expanduser().absolute()
        models = environment.get("FLEXY_MODELS") or "mini"
        if models not in MODEL_SETS:
            raise BadInputError(f"FLEXY_MODELS={models} is no model set: use {' or '.join(MODEL_SETS)}")
        precision = environment.get("FLEXY_PRECISION") or "auto"
        if precision not in PRECISIONS:
            raise BadInputError(f"FLEXY_PRECISION={precision} is no precision: use {', '.join(PRECISIONS)}")
        judge = environment.get("FLEXY_JUDGE") or "none"
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
            prompt_column=_column(environment.get("FLEXY_PROMPT_COLUMN") or ""),
            batch_size=_batch_size(environment.get("FLEXY_BATCH_SIZE") or "500"),
            nightly=environment.get("FLEXY_NIGHTLY") or "0 2 * * *",
            timezone=_timezone(environment.get("FLEXY_TIMEZONE") or "UTC"),
            score_new=_switch("FLEXY_SCORE_NEW", environment.get("FLEXY_SCORE_NEW") or "0"),
            watch_seconds=_seconds("FLEXY_WATCH_SECONDS", environment.get("FLEXY_WATCH_SECONDS") or "60"),
            failure_webhook=_webhook(environment.get("FLEXY_FAILURE_WEBHOOK") or ""),
            judge=judge,
            judge_model=environment.get("FLEXY_JUDGE_MODEL") or "",
            judge_url=_service_url("FLEXY_JUDGE_URL", environment.get("FLEXY_JUDGE_URL") or ""),
            judge_key=_key(_key_variable(judge), environment.get(_key_variable(judge)) or ""),
            judge_rpm=_count("FLEXY_JUDGE_RPM", environment.get("FLEXY_JUDGE_RPM") or ""),
            judge_max_calls=_count("FLEXY_JUDGE_MAX_CALLS", environment.get("FLEXY_JUDGE_MAX_CALLS") or ""),
            judge_timeout=_seconds("FLEXY_JUDGE_TIMEOUT", environment.get("FLEXY_JUDGE_TIMEOUT") or "120"),
            allowed_hosts=_hosts(environment.get("FLEXY_ALLOWED_HOSTS") or ""),
            label_studio_url=_service_url("LABEL_STUDIO_URL", environment.get("LABEL_STUDIO_URL") or "").rstrip("/"),
            label_studio_key=_key("LABEL_STUDIO_API_KEY", environment.get("LABEL_STUDIO_API_KEY") or ""),
            label_studio_project=_project(environment.get("FLEXY_LABEL_STUDIO_PROJECT") or ""),
            owners=_owners(environment.get("FLEXY_OWNERS") or "team:flexy"),
        )


def _column(name: str) -> tuple[str, str] | None:
    if not name:
        return None
    table, _, column = name.rpartition(".")
    table = table or PROMPT_TABLES[0]
    if table not in PROMPT_TABLES or not column:
        raise BadInputError(
            f"FLEXY_PROMPT_COLUMN={name} names no column: write COLUMN, for one of {PROMPT_TABLES[0]},"
            f" or {PROMPT_TABLES[1]}.COLUMN"
        )
    return table, column


def _batch_size(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= 10_000:
        raise BadInputError(f"FLEXY_BATCH_SIZE={text} is out of bounds: use 1 to 10000 images a batch")
    return int(text)


def _seconds(variable: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) < 1:
        raise BadInputError(f"{variable}={text} is out of bounds: use 1 to 99999 seconds")
    return int(text)


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadInputError(f"FLEXY_TIMEZONE={name} is no time zone: write one as in Europe/Berlin") from None
    return name


def _switch(variable: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise BadInputError(f"{variable}={text} is neither on nor off: use 1 or 0")
    return text == "1"


def _count(variable: str, text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise BadInputError(f"{variable}={text} is out of bounds: use 1 to 999999999, or leave it out for no limit")
    return int(text)


def _project(text: str) -> int | None:
    if text and not re.fullmatch("[0-9]{1,9}", text):
        raise BadInputError(f"FLEXY_LABEL_STUDIO_PROJECT={text} is no project: write the number in its address")
    return int(text) if text else None


def _owners(text: str) -> tuple[str, ...]:
    owners = tuple(each.strip() for each in text.split(",") if each.strip())
    # Dagster takes no others, and says so in a page of traceback.
    kinds = r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}|team:[\w. -]+"
    wrong = next((owner for owner in owners if not re.fullmatch(kinds, owner)), None)
    if wrong or not owners:
        raise BadInputError(
            f"FLEXY_OWNERS: {wrong or text!r} is no owner: write e-mail addresses or team:NAME, with commas between"
        )
    return owners


def _key_variable(judge: str) -> str:
    return f"{judge.upper()}_API_KEY"


def _key(variable: str, key: str) -> str:
    if not re.fullmatch("[!-~]*", key):
        raise BadInputError(f"{variable} holds what no key can: set it to a valid one")
    return key


def _address(url: str) -> SplitResult | None:
    """The parts of a URL over HTTP; None where it is no such URL."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.split() == [url]
    except ValueError:
        return None
    return parts if sound else None


def _webhook(url: str) -> str:
    if url and not _address(url):
        # The address is as good as a password, so it is not repeated.
        raise BadInputError("FLEXY_FAILURE_WEBHOOK is no address: write https://HOST/PATH")
    return url


def _service_url(variable: str, url: str) -> str:
    parts = _address(url)
    if url and (not parts or parts.query or parts.fragment or "@" in parts.netloc):
        # What is too much in it may be a key, so it is not repeated.
        raise BadInputError(f"{variable} is no address without user, key or query: write https://HOST/PATH")
    return url


def _hosts(text: str) -> frozenset[tuple[str, int | None]]:
    return frozenset(_host(each.strip()) for each in text.split(",") if each.strip())


def _host(text: str) -> tuple[str, int | None]:
    """A host as addresses name it: in small letters, IPv6 in brackets and short."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+?)\.?(?::([0-9]{1,5}))?", text.lower())
    try:
        if not found or not 0 < int(found[2] or 80) < 65536:
            raise ValueError
        host = f"[{ipaddress.IPv6Address(found[1][1:-1])}]" if found[1].startswith("[") else found[1]
    except ValueError:
        raise BadInputError(
            f"FLEXY_ALLOWED_HOSTS: {text!r} is no host: write HOST or HOST:PORT, with commas between"
        ) from None
    return host, int(found[2]) if found[2] else None
