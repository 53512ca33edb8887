"""The settings of Flexy: environment variables, then `.env` and `flexy.toml` in the working directory."""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import SplitResult, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, DotEnvSettingsSource, SettingsConfigDict

from resources.errors import BadInputError

ModelSet = Literal["mini", "full"]
MODEL_SETS: tuple[str, ...] = get_args(ModelSet)
PROMPT_TABLES = ("bench_run_results", "bench_runs")
JUDGE_KEY = "JUDGE_API_KEY"
"""Stands for the variable that holds the key of the judge, one of `JUDGE_KEY_VARIABLES`."""

JUDGE_KEY_VARIABLES = ("GEMINI_API_KEY", "MOONDREAM_API_KEY")

Sources = Mapping[str, Mapping[str, Any]]
"""The variables that each source sets, by the source's name; the first source that sets a variable wins."""


class _InvalidPartError(ValueError):
    """One entry of a list is invalid: the message names it and not the whole list."""

    def __init__(self, part: str, remedy: str) -> None:
        super().__init__(remedy)
        self.part = part


def _expand_path(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("write the path in full") from None


def _check_digits(value: Any) -> Any:
    # pydantic also takes " 500", "1_000" and "500.0".
    if isinstance(value, bool) or (isinstance(value, str) and not re.fullmatch("[0-9]{1,9}", value)):
        raise ValueError("")
    return value


def _parse_switch(value: Any) -> bool:
    if value not in ("0", "1", 0, 1):
        raise ValueError("choose 1 or 0")
    return value in ("1", 1)


def _parse_column(name: Any) -> tuple[str, str]:
    table, _, column = str(name).rpartition(".")
    table = table or PROMPT_TABLES[0]
    if table not in PROMPT_TABLES or not column:
        raise ValueError(f"write COLUMN, for one of {PROMPT_TABLES[0]}, or {PROMPT_TABLES[1]}.COLUMN")
    return table, column


def _parse_roots(value: Any) -> tuple[tuple[str, Path], ...]:
    """Return (prefix, folder) pairs; a prefix has no slash at its end."""
    roots: dict[str, Path] = {}
    for text in _split_list(value):
        prefix, _, folder = (part.strip().rstrip("/") for part in text.partition("="))
        path = _expand_path(Path(folder))
        if not prefix.startswith("/") or not path.is_absolute() or ".." in Path(prefix).parts or prefix in roots:
            raise _InvalidPartError(text, "write /PREFIX=/FOLDER, each prefix once, separated by commas")
        roots[prefix] = path
    return tuple(roots.items())


def _check_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("write a name like Europe/Berlin") from None
    return name


def _check_key(key: SecretStr) -> SecretStr:
    if not re.fullmatch("[!-~]*", key.get_secret_value()):
        raise ValueError("must be printable ASCII without spaces")
    return key


def _split_url(url: str) -> SplitResult | None:
    """Return the parts of an HTTP URL; None for any other text."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.split() == [url]
    except ValueError:
        return None
    return parts if valid else None


def _check_webhook(url: SecretStr) -> SecretStr:
    if not _split_url(url.get_secret_value()):
        raise ValueError("write https://HOST/PATH")
    return url


def _check_service_url(url: str) -> str:
    parts = _split_url(url)
    if not parts or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("write https://HOST/PATH without user, key or query")
    return url.rstrip("/")


def _split_list(value: Any) -> Iterable[str]:
    """Return the entries of a comma-separated text, or of a list as TOML has it."""
    entries = value if isinstance(value, list) else str(value).split(",")
    return (str(entry).strip() for entry in entries if str(entry).strip())


def _parse_owners(value: Any) -> tuple[str, ...]:
    owners = tuple(_split_list(value))
    # Dagster accepts no other owners, and reports one in a page of traceback.
    pattern = r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}|team:[\w. -]+"
    for owner in owners or (str(value),):
        if not re.fullmatch(pattern, owner):
            raise _InvalidPartError(owner, "write e-mail addresses or team:NAME, separated by commas")
    return owners


def _parse_hosts(value: Any) -> frozenset[tuple[str, int | None]]:
    return frozenset(map(_parse_host, _split_list(value)))


def _parse_host(text: str) -> tuple[str, int | None]:
    """Return a host as URLs spell it, in lower case and IPv6 in brackets and compressed, and its port."""
    match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+?)\.?(?::([0-9]{1,5}))?", text.lower())
    try:
        if not match or not 0 < int(match[2] or 80) < 65536:
            raise ValueError
        host = f"[{ipaddress.IPv6Address(match[1][1:-1])}]" if match[1].startswith("[") else match[1]
    except ValueError:
        raise _InvalidPartError(text, "write HOST or HOST:PORT, separated by commas") from None
    return host, int(match[2]) if match[2] else None


Integer = Annotated[int, BeforeValidator(_check_digits)]
Folder = Annotated[Path, AfterValidator(_expand_path)]
ServiceUrl = Annotated[str, AfterValidator(_check_service_url)]
Key = Annotated[SecretStr, AfterValidator(_check_key)]


class Settings(BaseSettings):
    """All settings, checked. Each field's alias is the variable that sets it, its docstring says what it is for."""

    model_config = SettingsConfigDict(
        frozen=True,
        case_sensitive=True,
        validate_default=False,
        use_attribute_docstrings=True,
        alias_generator=lambda name: f"FLEXY_{name.upper()}",
    )

    home: Annotated[Folder, AfterValidator(Path.absolute)] = Field(Path(".flexy"), validate_default=True)
    """Folder of everything Flexy writes, unless another setting says otherwise."""
    database_url: str = Field(
        default_factory=lambda values: f"sqlite:///{values.get('home', Path()) / 'flexy.sqlite'}", repr=False
    )
    """Database of the results: `postgresql://USER:PASSWORD@HOST/NAME` or `sqlite:///FILE`."""
    images: str = Field(default_factory=lambda values: str(values.get("home", Path()) / "images"))
    """Root of the image files: a folder or an fsspec URL such as `s3://BUCKET/PATH`."""
    image_roots: Annotated[tuple[tuple[str, Path], ...], BeforeValidator(_parse_roots)] = ()
    """Where recorded paths are read that begin with another prefix: `/PREFIX=/FOLDER` pairs, separated by commas."""
    follow_links: Annotated[bool, BeforeValidator(_parse_switch)] = False
    """1: read images through symbolic links that lead out of their root. 0: refuse them."""
    models: ModelSet = "mini"
    """Model set: `mini`, which is embedded, or `full`, the published weights."""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Precision of the models of `full`; `auto` is half precision on a GPU and fp32 on a CPU."""
    scorers: Literal["own", "reference"] = "own"
    """Code that scores: `own`, or `reference`, the packages hpsv2 and simple-aesthetics-predictor."""
    model_registry: Folder | None = None
    """TOML file that maps models to local folders."""
    hps_root: Folder | None = Field(None, alias="HPS_ROOT")
    """Folder of `HPS_v2.1_compressed.pt`, as the hpsv2 package uses it."""
    prompt_column: Annotated[tuple[str, str] | None, BeforeValidator(_parse_column)] = Field(
        None,
        description="Column of the prompts in an existing table: `COLUMN` of bench_run_results, or"
        " `bench_runs.COLUMN`; without it, `prompt`.",
    )
    batch_size: Integer = Field(500, ge=1, le=10_000)
    """Images of an existing table in a seed batch."""
    nightly: str = "0 2 * * *"
    """Cron schedule of the nightly backfill of missing scores."""
    timezone: Annotated[str, AfterValidator(_check_timezone)] = "UTC"
    """Time zone of the nightly backfill."""
    score_new: Annotated[bool, BeforeValidator(_parse_switch)] = False
    """1: score new rows at once. 0: leave them to the nightly backfill."""
    watch_seconds: Integer = Field(60, ge=1, le=99_999)
    """Seconds between two looks for new rows or tasks."""
    failure_webhook: Annotated[SecretStr, AfterValidator(_check_webhook)] = SecretStr("")
    """URL that failed Dagster runs are posted to, as JSON."""
    files_url: Annotated[str, AfterValidator(lambda url: url.rstrip("/"))] = "http://127.0.0.1:3001"
    """URL of the server of report, CSV and tables, for links in the UI."""
    owners: Annotated[tuple[str, ...], BeforeValidator(_parse_owners)] = ("team:flexy",)
    """Owners of each asset in the UI: e-mail addresses or `team:NAME`, separated by commas."""
    judge: str = "none"
    """Vision-language judge: `none`, `gemini`, `moondream` or `local`."""
    judge_model: str = ""
    """Model of the judge; without it, the judge's own default."""
    judge_url: ServiceUrl = ""
    """URL of the judge; without it, the published one."""
    judge_key: Key = Field(SecretStr(""), alias="JUDGE_API_KEY")
    """API key of the judge; each is read for its own judge only."""
    judge_rpm: Integer | None = Field(None, ge=1, le=999_999_999)
    """Requests to the judge a minute, at most."""
    judge_max_calls: Integer | None = Field(None, ge=1, le=999_999_999)
    """Requests to the judge by one process, at most."""
    judge_timeout: Integer = Field(120, ge=1, le=99_999)
    """Seconds an answer of the judge may take."""
    label_studio_url: ServiceUrl = Field("", alias="LABEL_STUDIO_URL")
    """URL of a Label Studio server."""
    label_studio_key: Key = Field(SecretStr(""), alias="LABEL_STUDIO_API_KEY")
    """Token for Label Studio, legacy or personal."""
    label_studio_project: Integer | None = Field(None, ge=0, le=999_999_999)
    """Number of the Label Studio project whose new tasks are imported automatically."""
    allowed_hosts: Annotated[frozenset[tuple[str, int | None]], BeforeValidator(_parse_hosts)] = Field(
        frozenset(),
        description="Hosts of the private network that images may be downloaded from: `HOST`, for ports 80 and 443,"
        " or `HOST:PORT`, separated by commas.",
    )

    @property
    def tables(self) -> Path:
        """The folder of finished tables, reports and CSVs, one file per asset."""
        return self.home / "assets"

    @property
    def judge_key_variable(self) -> str:
        """The variable of the judge's key, for example GEMINI_API_KEY."""
        return _judge_key_variable(self.judge)

    def with_models(self, models: str) -> Settings:
        """Return these settings with another model set."""
        return self.model_copy(update={"models": models})

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Return the settings in `environment` alone, by default of all sources; raise `BadInputError` as `merge`."""
        return cls.merge(read_sources() if environment is None else {"environment": environment})

    @classmethod
    def merge(cls, sources: Sources) -> Settings:
        """Return the settings in `sources`. Raises `BadInputError` naming the first variable that is invalid."""
        values = {variable: value for variable, (value, _) in set_variables(sources).items()}
        try:
            return cls(**values)
        except ValidationError as error:
            raise BadInputError(_error_message(error.errors()[0], values.get("FLEXY_JUDGE"))) from None

    @classmethod
    def settings_customise_sources(cls, *arguments: Any, **sources: Any) -> tuple[Any, ...]:
        # Only what `merge` passes: tests read settings from a mapping alone.
        return (sources["init_settings"],)


def read_sources() -> dict[str, Mapping[str, Any]]:
    """Return the variables of environment, `.env` and `flexy.toml`. Raises `BadInputError` for a malformed file."""
    try:
        dotenv = DotEnvSettingsSource(Settings, env_file=".env").env_vars
        document = tomllib.loads(Path("flexy.toml").read_text("utf-8")) if Path("flexy.toml").exists() else {}
    except UnicodeDecodeError:
        raise BadInputError("cannot read .env or flexy.toml: not UTF-8 text: save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise BadInputError(f'invalid flexy.toml: {error}: write one setting a line, as in models = "full"') from None
    variables = [*JUDGE_KEY_VARIABLES, *(variable for variable in variable_names() if variable != JUDGE_KEY)]
    names = {toml_key(variable): variable for variable in variables}
    if unknown := document.keys() - names.keys():
        raise BadInputError(f"invalid flexy.toml: unknown setting {min(unknown)!r}: choose from {', '.join(names)}")
    toml = {names[key]: value for key, value in document.items()}
    return {"environment": os.environ, ".env": dotenv, "flexy.toml": toml}


def set_variables(sources: Sources) -> dict[str, tuple[Any, str]]:
    """Return the value and the source of each variable that is set; one that is empty is not set."""

    def look_up(variable: str) -> tuple[Any, str] | None:
        entries = ((values.get(variable), source) for source, values in sources.items())
        return next((entry for entry in entries if entry[0] not in (None, "")), None)

    judge = look_up("FLEXY_JUDGE")
    aliases = {JUDGE_KEY: _judge_key_variable(str(judge[0]))} if judge else {}
    entries = {variable: look_up(aliases.get(variable, variable)) for variable in variable_names()}
    return {variable: entry for variable, entry in entries.items() if entry}


def variable_names() -> list[str]:
    """Return the variable of each setting; `JUDGE_KEY` stands for the variable of the judge's key."""
    return [str(field.alias) for field in Settings.model_fields.values()]


def _judge_key_variable(judge: str) -> str:
    return f"{judge.upper()}_API_KEY"


def toml_key(variable: str) -> str:
    """Return the name of a variable in `flexy.toml`."""
    return variable.removeprefix("FLEXY_").lower()


def _error_message(error: Any, judge: str | None) -> str:
    """Return the thing, the value unless it may hold a secret, and the remedy."""
    (field,) = (each for each in Settings.model_fields.values() if each.alias == error["loc"][0])
    variable = _judge_key_variable(str(judge)) if field.alias == JUDGE_KEY else field.alias
    cause = error.get("ctx", {}).get("error")
    if bounds := [getattr(each, name) for each in field.metadata for name in ("ge", "le") if hasattr(each, name)]:
        remedy = f"must be an integer from {bounds[0]} to {bounds[1]}"
    elif error["type"] == "literal_error":
        *most, last = get_args(field.annotation)
        remedy = f"choose {', '.join(most)} or {last}"
    else:
        remedy = str(cause) if cause else "must be text"
    value = cause.part if isinstance(cause, _InvalidPartError) else str(error["input"])
    # An address may hold a key where it is invalid.
    secret = field.annotation is SecretStr or str(field.alias).endswith("_URL")
    return f"invalid {variable}{'' if secret else f' {value[:80]!r}'}: {remedy}"
