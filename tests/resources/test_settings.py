"""Settings come from the environment, `.env` and `flexy.toml`, or one line names the invalid variable and no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from resources.errors import BadInputError
from resources.settings import Settings, read_sources, set_variables, variable_names

HUGE = "9" * 5000


def read(**variables: str) -> Settings:
    return Settings.read({f"FLEXY_{name}": value for name, value in variables.items()})


def error_of(variables: dict[str, str]) -> str:
    with pytest.raises(BadInputError) as caught:
        Settings.read(variables)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 250
    assert "sesame" not in message
    return message


def error(variable: str, value: str) -> str:
    return error_of({f"FLEXY_{variable}": value})


def test_without_any_variable_everything_is_below_the_working_folder_and_nothing_runs_by_itself() -> None:
    settings = Settings.read({})
    assert settings.home == Path(".flexy").absolute()
    assert settings.database_url == f"sqlite:///{settings.home}/flexy.sqlite"
    assert settings.images == str(settings.home / "images")
    assert (settings.prompt_column, settings.batch_size) == (None, 500)
    assert (settings.nightly, settings.timezone, settings.score_new) == ("0 2 * * *", "UTC", False)
    assert (settings.judge, settings.judge_model, settings.judge_url) == ("none", "", "")
    assert (settings.judge_rpm, settings.judge_max_calls, settings.owners) == (None, None, ("team:flexy",))
    assert (settings.allowed_hosts, settings.label_studio_url) == (frozenset(), "")
    assert not (settings.failure_webhook or settings.judge_key or settings.label_studio_key)


def test_an_empty_variable_is_not_set() -> None:
    assert Settings.read(dict.fromkeys(variable_names(), "")) == Settings.read({})


def test_each_variable_is_read() -> None:
    settings = read(
        PROMPT_COLUMN="bench_runs.Caption",
        BATCH_SIZE="10000",
        NIGHTLY="30 1 * * 1-5",
        TIMEZONE="Europe/Berlin",
        SCORE_NEW="1",
        FAILURE_WEBHOOK="https://hooks.example:8443/T0/B1?x=1",
        OWNERS=" ada@example.org,team:image lab, ",
    )
    assert settings.prompt_column == ("bench_runs", "Caption")
    assert (settings.batch_size, settings.nightly, settings.timezone) == (10_000, "30 1 * * 1-5", "Europe/Berlin")
    assert settings.score_new and not read(SCORE_NEW="0").score_new
    assert settings.failure_webhook.get_secret_value() == "https://hooks.example:8443/T0/B1?x=1"
    assert settings.owners == ("ada@example.org", "team:image lab")
    assert read(HOME="~/flexy").home == Path.home() / "flexy"
    for name in ("caption", "the prompt; DROP TABLE x"):
        assert read(PROMPT_COLUMN=name).prompt_column == ("bench_run_results", name)


def test_settings_with_another_model_set_are_otherwise_the_same() -> None:
    settings = read(BATCH_SIZE="7")
    assert settings.with_models("full") == read(BATCH_SIZE="7", MODELS="full")


@pytest.mark.parametrize(
    ("variable", "values", "remedy"),
    [
        ("MODELS", ["X", "Mini"], "choose mini or full"),
        ("PRECISION", ["half"], "choose auto, fp32, fp16 or bf16"),
        (
            "PROMPT_COLUMN",
            ["users.password", "bench_runs.", ".", "public.bench_runs.prompt", "pg_authid.rolpassword"],
            "write COLUMN, for one of bench_run_results, or bench_runs.COLUMN",
        ),
        (
            "BATCH_SIZE",
            ["0", "-1", "10001", "500.0", "1e3", "0x10", "1_000", " 500", "many", "٣", HUGE],
            "must be an integer from 1 to 10000",
        ),
        (
            "WATCH_SECONDS",
            ["0", "-1", "100000", "1.5", " 60", "a minute", HUGE],
            "must be an integer from 1 to 99999",
        ),
        ("JUDGE_TIMEOUT", ["0", "100000"], "must be an integer from 1 to 99999"),
        ("JUDGE_RPM", ["0", "-1", "1.5", " 60", "٣", HUGE], "must be an integer from 1 to 999999999"),
        ("JUDGE_MAX_CALLS", ["0", "1e3", "many"], "must be an integer from 1 to 999999999"),
        ("LABEL_STUDIO_PROJECT", ["faces", "-1"], "must be an integer from 0 to 999999999"),
        ("SCORE_NEW", ["yes", "true", "on", "2", "01", " 1"], "choose 1 or 0"),
        (
            "TIMEZONE",
            ["Mars/Base", "berlin", "UTC+1", "Europe", "Europe/Berlin ", "/etc/localtime", "../../etc/passwd", "a\0b"],
            "write a name like Europe/Berlin",
        ),
    ],
)
def test_an_invalid_value_is_named_with_the_remedy(variable: str, values: list[str], remedy: str) -> None:
    for value in values:
        assert error(variable, value) == f"invalid FLEXY_{variable} {value[:80]!r}: {remedy}"


def test_an_invalid_url_is_not_repeated() -> None:
    for url in (
        "hooks.example/opensesame",
        "ftp://hooks.example/opensesame",
        "javascript:opensesame",
        "https:///opensesame",
        "https://hooks.example:port/opensesame",
        "https://hooks.example:99999/opensesame",
        "https://[::1/opensesame",
        "https://hooks.example/opensesame and more",
        "https://hooks.example/opensesame\n",
    ):
        assert error("FAILURE_WEBHOOK", url) == "invalid FLEXY_FAILURE_WEBHOOK: write https://HOST/PATH"
        for variable in ("FLEXY_JUDGE_URL", "LABEL_STUDIO_URL"):
            remedy = "write https://HOST/PATH without user, key or query"
            assert error_of({variable: url}) == f"invalid {variable}: {remedy}"


def test_the_url_of_a_service_holds_no_secret() -> None:
    for url in ("https://u:opensesame@h/v1", "https://h/v1?key=opensesame", "https://h/v1#opensesame"):
        assert "without user, key or query" in error("JUDGE_URL", url)
        assert "without user, key or query" in error_of({"LABEL_STUDIO_URL": url})


def test_a_judge_has_its_own_key_and_no_other() -> None:
    keys = {"GEMINI_API_KEY": "of-gemini", "MOONDREAM_API_KEY": "of-moondream"}
    by_judge = {
        judge: Settings.read(keys | {"FLEXY_JUDGE": judge}).judge_key.get_secret_value()
        for judge in ("gemini", "moondream", "local", "")
    }
    assert by_judge == {"gemini": "of-gemini", "moondream": "of-moondream", "local": "", "": ""}
    settings = read(JUDGE="gemini", JUDGE_MODEL="m", JUDGE_URL="http://h:2020/v1", JUDGE_RPM="60", JUDGE_MAX_CALLS="9")
    assert (settings.judge_model, settings.judge_url) == ("m", "http://h:2020/v1")
    assert (settings.judge_rpm, settings.judge_max_calls) == (60, 9)
    assert settings.judge_key_variable == "GEMINI_API_KEY"


def test_an_invalid_key_is_not_repeated() -> None:
    remedy = "must be printable ASCII without spaces"
    for key in ("open sesame", "opensesame\n", "öpensesame", "opensesame\r\nX-More: 1"):
        assert error_of({"FLEXY_JUDGE": "gemini", "GEMINI_API_KEY": key}) == f"invalid GEMINI_API_KEY: {remedy}"
        assert error_of({"LABEL_STUDIO_API_KEY": key}) == f"invalid LABEL_STUDIO_API_KEY: {remedy}"


def test_hosts_are_read_as_urls_spell_them() -> None:
    settings = read(ALLOWED_HOSTS=" Pictures.lan, 10.0.0.7:8080,[0:0::1]:81 ,[fd00::1],files.lan., ")
    assert settings.allowed_hosts == {
        ("pictures.lan", None),
        ("10.0.0.7", 8080),
        ("[::1]", 81),
        ("[fd00::1]", None),
        ("files.lan", None),
    }


def test_an_invalid_entry_of_a_list_is_named_alone() -> None:
    remedy = "write HOST or HOST:PORT, separated by commas"
    hosts = ["http://pictures.lan", "pictures.lan/a", "a@pictures.lan", "pictures.lan:0", "pictures.lan:65536"]
    hosts += ["pictures.lan:http", "::1", "[::1", "[pictures.lan]", "*.lan", "*", "10.0.0.0/8", "a b", "bücher.lan"]
    for host in [*hosts, "a\nb"]:
        assert error("ALLOWED_HOSTS", f"good.lan,{host}") == f"invalid FLEXY_ALLOWED_HOSTS {host!r}: {remedy}"
    remedy = "write e-mail addresses or team:NAME, separated by commas"
    for owner in ("ada", "team:", "ada@example", "@example.org", "user:ada", "a b@example.org"):
        assert error("OWNERS", f"team:flexy,{owner}") == f"invalid FLEXY_OWNERS {owner!r}: {remedy}"
    assert error("OWNERS", ",") == f"invalid FLEXY_OWNERS ',': {remedy}"


def test_image_roots_are_prefixes_and_folders_in_full() -> None:
    text = "/app/data=/srv/flexyface/backend/data/, /home/ann/data/ = ~/data"
    roots = (("/app/data", Path("/srv/flexyface/backend/data")), ("/home/ann/data", Path("~/data").expanduser()))
    assert read(IMAGE_ROOTS=text).image_roots == roots
    assert (read().image_roots, read().follow_links, read(FOLLOW_LINKS="1").follow_links) == ((), False, True)
    for entry in ("/app/data", "app=/srv", "/=/srv", "/app=srv", "/app=", "=/srv", "/app/../x=/srv"):
        message = error("IMAGE_ROOTS", f"/a=/b,{entry}")
        assert message == (
            f"invalid FLEXY_IMAGE_ROOTS {entry!r}: write /PREFIX=/FOLDER, each prefix once, separated by commas"
        )
    assert "each prefix once" in error("IMAGE_ROOTS", "/app=/a,/app/=/b")


def test_label_studio_has_its_own_variables() -> None:
    settings = Settings.read({"LABEL_STUDIO_URL": "https://labels.example/ls/", "LABEL_STUDIO_API_KEY": "opensesame"})
    assert settings.label_studio_url == "https://labels.example/ls"
    assert settings.label_studio_key.get_secret_value() == "opensesame"


def test_no_secret_is_shown_with_the_settings() -> None:
    for variables in (
        {"FLEXY_DATABASE_URL": "postgresql://u:opensesame@h/n"},
        {"FLEXY_FAILURE_WEBHOOK": "https://u:opensesame@h/opensesame"},
        {"FLEXY_JUDGE": "gemini", "GEMINI_API_KEY": "opensesame"},
        {"LABEL_STUDIO_API_KEY": "opensesame"},
    ):
        settings = Settings.read(variables)
        assert "sesame" not in f"{settings} {settings!r}"


# Files in the working directory


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, and no variable of Flexy in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in variable_names():
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_environment_wins_over_dotenv_and_dotenv_over_the_toml_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "flexy.toml").write_text(
        'batch_size = 1\nwatch_seconds = 2\nnightly = "1 1 * * *"\nscore_new = true\njudge = "gemini"\n'
        'owners = ["team:a", "team:b"]\nallowed_hosts = ["a.lan:80"]\nlabel_studio_url = "https://labels.example"\n'
    )
    (folder / ".env").write_text("FLEXY_WATCH_SECONDS=3\nFLEXY_BATCH_SIZE=4\nGEMINI_API_KEY='secret'\nOTHER=x\n")
    monkeypatch.setenv("FLEXY_BATCH_SIZE", "5")
    monkeypatch.setenv("FLEXY_NIGHTLY", "")
    settings = Settings.read()
    assert (settings.batch_size, settings.watch_seconds, settings.nightly) == (5, 3, "1 1 * * *")
    assert settings.score_new and settings.owners == ("team:a", "team:b")
    assert settings.allowed_hosts == {("a.lan", 80)} and settings.label_studio_url == "https://labels.example"
    assert (settings.judge, settings.judge_key.get_secret_value()) == ("gemini", "secret")
    sources = {variable: source for variable, (_, source) in set_variables(read_sources()).items()}
    assert sources["FLEXY_BATCH_SIZE"] == "environment"
    assert sources["FLEXY_WATCH_SECONDS"] == sources["JUDGE_API_KEY"] == ".env"
    assert sources["FLEXY_NIGHTLY"] == "flexy.toml" and "FLEXY_MODELS" not in sources
    # A mapping is read alone.
    assert Settings.read({}).batch_size == 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("batch_size = 1_0_\n", "invalid flexy.toml: "),
        ("batch_sise = 10\n", "invalid flexy.toml: unknown setting 'batch_sise': choose from gemini_api_key, "),
        ("[batch]\nsize = 10\n", "invalid flexy.toml: unknown setting 'batch': choose from "),
        ("batch_size = 0\n", "invalid FLEXY_BATCH_SIZE '0': must be an integer from 1 to 10000"),
        ("batch_size = true\n", "invalid FLEXY_BATCH_SIZE 'True': must be an integer from 1 to 10000"),
        ("batch_size = 1.5\n", "invalid FLEXY_BATCH_SIZE '1.5': must be an integer from 1 to 10000"),
        ("judge_model = 7\n", "invalid FLEXY_JUDGE_MODEL '7': must be text"),
        ("judge = 7\n", "invalid FLEXY_JUDGE '7': must be text"),
        ("hps_root = 7\n", "invalid HPS_ROOT '7': must be text"),
        ('score_new = "yes"\n', "invalid FLEXY_SCORE_NEW 'yes': choose 1 or 0"),
        ('label_studio_api_key = "open sesame"\n', "invalid LABEL_STUDIO_API_KEY: must be printable ASCII"),
    ],
)
def test_an_invalid_toml_file_is_named(folder: Path, content: str, message: str) -> None:
    (folder / "flexy.toml").write_text(content)
    with pytest.raises(BadInputError) as caught:
        Settings.read()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value) and "sesame" not in str(caught.value)


@pytest.mark.parametrize("name", [".env", "flexy.toml"])
def test_a_file_that_is_no_text_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b'models = "\xff"\n')
    with pytest.raises(BadInputError, match="not UTF-8"):
        Settings.read()
