"""The settings are what the environment says, or one line that names the variable; secrets are never repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from resources.errors import BadInputError
from resources.settings import Settings


def read(**variables: str) -> Settings:
    return Settings.read({f"FLEXY_{name}": value for name, value in variables.items()})


def complaint(variable: str, value: str) -> str:
    with pytest.raises(BadInputError) as caught:
        read(**{variable: value})
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"FLEXY_{variable}")
    return message


def test_without_any_variable_all_is_below_the_working_folder_and_nothing_works_by_itself() -> None:
    settings = Settings.read({})
    assert settings.home == Path(".flexy").absolute()
    assert settings.database_url == f"sqlite:///{settings.home}/flexy.sqlite"
    assert settings.images == str(settings.home / "images")
    assert (settings.prompt_column, settings.batch_size) == (None, 500)
    assert (settings.nightly, settings.timezone, settings.score_new) == ("0 2 * * *", "UTC", False)
    assert (settings.failure_webhook, settings.owners) == ("", ("team:flexy",))
    assert (settings.judge, settings.judge_model, settings.judge_url, settings.judge_key) == ("none", "", "", "")
    assert (settings.judge_rpm, settings.judge_max_calls) == (None, None)
    assert (settings.allowed_hosts, settings.label_studio_url, settings.label_studio_key) == (frozenset(), "", "")


def test_a_variable_that_is_empty_is_one_that_is_not_set() -> None:
    names = (
        "PROMPT_COLUMN",
        "BATCH_SIZE",
        "NIGHTLY",
        "TIMEZONE",
        "SCORE_NEW",
        "FAILURE_WEBHOOK",
        "DATABASE_URL",
        "IMAGES",
        "JUDGE",
        "JUDGE_MODEL",
        "JUDGE_URL",
        "JUDGE_RPM",
        "JUDGE_MAX_CALLS",
        "JUDGE_TIMEOUT",
        "ALLOWED_HOSTS",
        "OWNERS",
    )
    assert read(**dict.fromkeys(names, "")) == Settings.read({})


def test_each_variable_is_read() -> None:
    settings = read(
        PROMPT_COLUMN="bench_runs.Caption",
        BATCH_SIZE="10000",
        NIGHTLY="30 1 * * 1-5",
        TIMEZONE="Europe/Berlin",
        SCORE_NEW="1",
        FAILURE_WEBHOOK="https://hooks.example:8443/T0/B1?x=1",
    )
    assert settings.prompt_column == ("bench_runs", "Caption")
    assert (settings.batch_size, settings.nightly, settings.timezone) == (10_000, "30 1 * * 1-5", "Europe/Berlin")
    assert settings.score_new
    assert settings.failure_webhook == "https://hooks.example:8443/T0/B1?x=1"
    assert not read(SCORE_NEW="0").score_new


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("caption", ("bench_run_results", "caption")),
        ("bench_run_results.caption", ("bench_run_results", "caption")),
        ("the prompt; DROP TABLE x", ("bench_run_results", "the prompt; DROP TABLE x")),
    ],
)
def test_a_column_without_a_table_is_one_of_the_results(name: str, column: tuple[str, str]) -> None:
    assert read(PROMPT_COLUMN=name).prompt_column == column


@pytest.mark.parametrize(
    "name", ["users.password", "bench_runs.", ".", "public.bench_runs.prompt", "pg_authid.rolpassword"]
)
def test_prompts_are_in_no_other_table(name: str) -> None:
    assert "write COLUMN, for one of bench_run_results, or bench_runs.COLUMN" in complaint("PROMPT_COLUMN", name)


@pytest.mark.parametrize("size", ["0", "-1", "10001", "500.0", "1e3", "0x10", "1_000", " 500", "many", "٣", "9" * 5000])
def test_a_batch_of_no_size_that_is_known_is_refused(size: str) -> None:
    assert complaint("BATCH_SIZE", size).endswith("use 1 to 10000 images a batch")


@pytest.mark.parametrize("variable", ["WATCH_SECONDS", "JUDGE_TIMEOUT"])
@pytest.mark.parametrize("seconds", ["0", "-1", "100000", "1.5", " 60", "a minute", "9" * 5000])
def test_waits_are_in_whole_seconds(variable: str, seconds: str) -> None:
    assert read(WATCH_SECONDS="5").watch_seconds == read(JUDGE_TIMEOUT="5").judge_timeout == 5
    assert complaint(variable, seconds).endswith("use 1 to 99999 seconds")


@pytest.mark.parametrize(
    "zone",
    [
        "Mars/Base",
        "berlin",
        "UTC+1",
        "Europe",
        "Europe/Berlin ",
        "tzdata.zi",
        "/etc/localtime",
        "../../etc/passwd",
        "a\0b",
    ],
)
def test_a_time_zone_that_there_is_not_is_refused(zone: str) -> None:
    assert complaint("TIMEZONE", zone).endswith("is no time zone: write one as in Europe/Berlin")


@pytest.mark.parametrize("switch", ["yes", "true", "on", "2", "01", " 1"])
def test_a_switch_is_one_or_nought(switch: str) -> None:
    assert complaint("SCORE_NEW", switch) == f"FLEXY_SCORE_NEW={switch} is neither on nor off: use 1 or 0"


@pytest.mark.parametrize(
    "address",
    [
        "hooks.example/opensesame",
        "ftp://hooks.example/opensesame",
        "javascript:opensesame",
        "https:///opensesame",
        "https://hooks.example:port/opensesame",
        "https://hooks.example:99999/opensesame",
        "https://[::1/opensesame",
        "https://hooks.example/opensesame and more",
        "https://hooks.example/opensesame\n",
    ],
)
def test_an_address_that_cannot_be_is_refused_and_not_repeated(address: str) -> None:
    assert complaint("FAILURE_WEBHOOK", address) == "FLEXY_FAILURE_WEBHOOK is no address: write https://HOST/PATH"


def test_a_judge_has_its_own_key_and_no_other() -> None:
    keys = {"GEMINI_API_KEY": "of-gemini", "MOONDREAM_API_KEY": "of-moondream"}
    found = {
        judge: Settings.read(keys | {"FLEXY_JUDGE": judge}).judge_key for judge in ("gemini", "moondream", "local", "")
    }
    assert found == {"gemini": "of-gemini", "moondream": "of-moondream", "local": "", "": ""}
    settings = read(JUDGE="gemini", JUDGE_MODEL="m", JUDGE_URL="http://h:2020/v1", JUDGE_RPM="60", JUDGE_MAX_CALLS="9")
    assert (settings.judge_model, settings.judge_url) == ("m", "http://h:2020/v1")
    assert (settings.judge_rpm, settings.judge_max_calls) == (60, 9)


@pytest.mark.parametrize("key", ["open sesame", "opensesame\n", "öpensesame", "opensesame\r\nX-More: 1"])
def test_a_key_that_cannot_be_one_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(BadInputError) as caught:
        Settings.read({"FLEXY_JUDGE": "gemini", "GEMINI_API_KEY": key})
    assert str(caught.value) == "GEMINI_API_KEY holds what no key can: set it to a valid one"


@pytest.mark.parametrize(
    "address",
    [
        "generativelanguage.googleapis.com",
        "ftp://h/v1",
        "https:///v1",
        "https://h:99999",
        "https://u:opensesame@h/v1",
        "https://h/v1?key=opensesame",
        "https://h/v1#opensesame",
        "https://h/v 1",
    ],
)
def test_a_judges_address_holds_no_key_and_is_not_repeated(address: str) -> None:
    words = "is no address without user, key or query: write https://HOST/PATH"
    assert complaint("JUDGE_URL", address) == f"FLEXY_JUDGE_URL {words}"


@pytest.mark.parametrize("variable", ["JUDGE_RPM", "JUDGE_MAX_CALLS"])
@pytest.mark.parametrize("count", ["0", "-1", "1.5", "1e3", " 60", "many", "٣", "9" * 5000])
def test_a_limit_is_a_whole_number_above_nought(variable: str, count: str) -> None:
    assert complaint(variable, count).endswith("use 1 to 999999999, or leave it out for no limit")


def test_hosts_are_read_as_addresses_name_them() -> None:
    settings = read(ALLOWED_HOSTS=" Pictures.lan, 10.0.0.7:8080,[0:0::1]:81 ,[fd00::1],files.lan., ")
    assert settings.allowed_hosts == {
        ("pictures.lan", None),
        ("10.0.0.7", 8080),
        ("[::1]", 81),
        ("[fd00::1]", None),
        ("files.lan", None),
    }


@pytest.mark.parametrize(
    "host",
    [
        "http://pictures.lan",
        "pictures.lan/a",
        "a@pictures.lan",
        "pictures.lan:0",
        "pictures.lan:65536",
        "pictures.lan:http",
        "::1",
        "[::1",
        "[pictures.lan]",
        "*.lan",
        "*",
        "10.0.0.0/8",
        "pictures lan",
        "bücher.lan",
        "a\nb",
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    assert complaint("ALLOWED_HOSTS", f"good.lan,{host}") == (
        f"FLEXY_ALLOWED_HOSTS: {host!r} is no host: write HOST or HOST:PORT, with commas between"
    )


def test_owners_are_addresses_and_teams() -> None:
    assert read(OWNERS=" ada@example.org,team:image lab, ").owners == ("ada@example.org", "team:image lab")


@pytest.mark.parametrize("owner", ["ada", "team:", "ada@example", "@example.org", "user:ada", "a b@example.org"])
def test_whoever_dagster_cannot_name_as_owner_is_refused(owner: str) -> None:
    assert complaint("OWNERS", f"team:flexy,{owner}") == (
        f"FLEXY_OWNERS: {owner!r} is no owner: write e-mail addresses or team:NAME, with commas between"
    )


def test_label_studio_is_where_its_own_variables_say() -> None:
    settings = Settings.read({"LABEL_STUDIO_URL": "https://labels.example/ls/", "LABEL_STUDIO_API_KEY": "opensesame"})
    assert (settings.label_studio_url, settings.label_studio_key) == ("https://labels.example/ls", "opensesame")
    assert "opensesame" not in f"{settings} {settings!r}"
    for variables, words in (
        ({"LABEL_STUDIO_URL": "https://u:opensesame@labels.example"}, "LABEL_STUDIO_URL is no address without user"),
        ({"LABEL_STUDIO_URL": "labels.example"}, "LABEL_STUDIO_URL is no address without user"),
        ({"LABEL_STUDIO_API_KEY": "open\nsesame"}, "LABEL_STUDIO_API_KEY holds what no key can"),
    ):
        with pytest.raises(BadInputError, match=words) as caught:
            Settings.read(variables)
        assert "sesame" not in str(caught.value)


def test_what_may_hold_a_password_is_not_shown_with_the_settings() -> None:
    settings = read(DATABASE_URL="postgresql://u:opensesame@h/n", FAILURE_WEBHOOK="https://u:opensesame@h/opensesame")
    assert "opensesame" not in f"{settings} {settings!r}"
    settings = Settings.read({"FLEXY_JUDGE": "gemini", "GEMINI_API_KEY": "opensesame"})
    assert settings.judge_key == "opensesame" and "opensesame" not in f"{settings} {settings!r}"
