"""What the environment may say, what it may not, and in which words a person hears of it: all at once."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.config import OPTIONS, Config, describe, format_duration, from_env, suspicious_variables
from tinybird_proxy.errors import ConfigError

SECRET: Final = "p.eyJ1IjoiMTIzIn0.sEcReT"


def problems(env: Mapping[str, str]) -> list[str]:
    """Every problem with ``env``, as it is shown."""
    found = outcome(env)
    return [] if isinstance(found, Config) else [str(problem) for problem in found.problems]


def outcome(env: Mapping[str, str]) -> Config | ConfigError:
    try:
        return from_env(env)
    except ConfigError as error:
        return error


def value(variable: str, text: str) -> Any:
    """What ``variable`` comes to, with everything around it made to fit."""
    fitting = {"TINYBIRD_TOKEN": "t"} if variable.startswith("AUTHORIZATION_TOKEN") else {}
    fitting |= {"TINYBIRD_TOKEN": "t"} if variable == "TINYBIRD_METRICS_DATASOURCE" else {}
    fitting |= {"TINYBIRD_TOKEN_FILE": "/t"} if variable == "TOKEN_FILE_WAIT" else {}
    fitting |= {"TLS_KEY_FILE": "/k"} if variable == "TLS_CERT_FILE" else {}
    fitting |= {"TLS_CERT_FILE": "/c"} if variable == "TLS_KEY_FILE" else {}
    option = next(option for option in OPTIONS if variable in (option.variable, *option.aliases))
    return getattr(from_env({**fitting, variable: text}), option.field)


# Defaults.

DEFAULTS: Final = {
    "PORT": 8000,
    "HOST": "0.0.0.0",  # noqa: S104 - the documented default
    "ADMIN_PORT": 8001,
    "ADMIN_HOST": "127.0.0.1",
    "ADMIN_TOKEN": None,
    "ADMIN_TOKEN_FILE": None,
    "TLS_CERT_FILE": None,
    "TLS_KEY_FILE": None,
    "TINYBIRD_URL": "https://api.tinybird.co",
    "TINYBIRD_TOKEN": None,
    "TINYBIRD_TOKEN_FILE": None,
    "AUTHORIZATION_TOKEN": None,
    "AUTHORIZATION_TOKEN_FILE": None,
    "TOKEN_FILE_WAIT": False,
    "PASS_THROUGH": False,
    "BATCH_SIZE": 100_000,
    "BATCH_BYTES": 10_000_000,
    "FLUSH_INTERVAL": 1.0,
    "BUFFER_SIZE": 1_000_000,
    "BUFFER_BYTES": 512_000_000,
    "RECEIVE_BYTES": 64_000_000,
    "MAX_BODY_BYTES": 10_000_000,
    "MAX_INFLATED_BYTES": 64_000_000,
    "MAX_DESTINATIONS": 1000,
    "MAX_AGE": None,
    "DEAD_LETTER_BYTES": 64_000_000,
    "UPSTREAM_WAIT": True,
    "UPSTREAM_RATE": 90.0,
    "UPSTREAM_CONCURRENCY": 16,
    "UPSTREAM_TIMEOUT": 60.0,
    "COMPRESSION": "gzip",
    "CLIENT_WAIT": "honor",
    "WAIT_TIMEOUT": 25.0,
    "MAX_WAITERS": 2000,
    "DRAIN_DELAY": 0.0,
    "SHUTDOWN_TIMEOUT": 25.0,
    "MAX_CONNECTIONS": 10_000,
    "MAX_HEADER_BYTES": 32_768,
    "HEADER_TIMEOUT": 10.0,
    "BODY_TIMEOUT": 60.0,
    "KEEPALIVE_TIMEOUT": 650.0,
    "KEEPALIVE_MAX_AGE": 300.0,
    "NODE_ID": None,
    "TINYBIRD_METRICS_DATASOURCE": None,
    "OTEL_EXPORTER_OTLP_HEADERS_FILE": None,
    "LOG_LEVEL": "info",
    "LOG_FORMAT": "auto",
}


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    config = from_env({})
    assert {option.variable: getattr(config, option.field) for option in OPTIONS} == DEFAULTS


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.variable)
def test_every_default_is_what_its_own_text_would_give(option: Any) -> None:
    # The README's table shows the text, so the text must be what somebody could write.
    if option.default is not None:
        assert value(option.variable, option.default) == DEFAULTS[option.variable]


def test_the_table_of_options_is_the_configuration() -> None:
    assert [option.field for option in OPTIONS] == [field.name for field in dataclasses.fields(Config)]
    names = [name for option in OPTIONS for name in (option.variable, *option.aliases)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.variable)
def test_every_option_is_explained_in_a_sentence(option: Any) -> None:
    assert option.help.endswith(".")
    assert option.help[0].isupper() or option.help[0] == "`" or option.variable in ("LOG_LEVEL", "LOG_FORMAT")


def test_no_option_is_named_as_a_service_of_ours_would_inject_it() -> None:
    assert not [option.variable for option in OPTIONS if option.variable.startswith("TINYBIRD_PROXY_")]


# Values.


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("1000B", 1000),
        ("10kB", 10_000),
        ("10KB", 10_000),
        ("10kb", 10_000),
        ("10MB", 10_000_000),
        ("1GB", 1_000_000_000),
        ("10Ki", 10_240),
        ("10ki", 10_240),
        ("10Mi", 10_485_760),
        ("0.5GB", 500_000_000),
        ("0.5Mi", 524_288),
        ("1.001kB", 1001),
        ("1000.9", 1000),
        (" 10 MB ", 10_000_000),
    ],
)
def test_sizes_are_powers_of_a_thousand_or_of_1024(text: str, size: int) -> None:
    assert value("MAX_INFLATED_BYTES", text) == size


@pytest.mark.parametrize(
    "text",
    ["10M", "10KiB", "10 M B", "MB", "-1", "+5000", "1e6", "1,000", ".5MB", "5.MB", "0x10", "٣000", "9" * 400, "ten"],
)
def test_what_is_no_size_is_refused_with_examples(text: str) -> None:
    assert problems({"BATCH_BYTES": text}) == [
        f"BATCH_BYTES: {text!r}: must be a size such as 10MB, 512Ki or 1000000 (kB/MB/GB are 1000ⁿ, Ki/Mi/Gi 1024ⁿ)"
    ]


@pytest.mark.parametrize("text", ["999", "0", "0.9kB", "1000000001", "1.1GB", "1Gi", "99999999999999999999GB"])
def test_a_size_out_of_bounds_is_refused_with_the_bounds(text: str) -> None:
    assert problems({"BATCH_BYTES": text}) == [
        f"BATCH_BYTES: {text!r}: must be at least 1000 and at most 1000000000 bytes"
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("1s", 1.0),
        ("1.5s", 1.5),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("0.01d", 864.0),
        (" 2 s ", 2.0),
        ("1000", 1.0),
        ("1", 0.001),
    ],
)
def test_durations_have_a_unit_and_a_bare_flush_interval_is_milliseconds(text: str, seconds: float) -> None:
    assert value("FLUSH_INTERVAL", text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("DRAIN_DELAY", "5"),
        ("DRAIN_DELAY", "0"),
        ("WAIT_TIMEOUT", "25"),
        ("FLUSH_INTERVAL", "1S"),
        ("FLUSH_INTERVAL", "1sec"),
        ("FLUSH_INTERVAL", "-1s"),
        ("FLUSH_INTERVAL", "s"),
        ("FLUSH_INTERVAL", "1m30s"),
        ("FLUSH_INTERVAL", "٣s"),
    ],
)
def test_what_is_no_duration_is_refused_with_examples(variable: str, text: str) -> None:
    assert problems({variable: text}) == [f"{variable}: {text!r}: must be a duration such as 250ms, 1s or 5m"]


@pytest.mark.parametrize(
    ("variable", "text", "bounds"),
    [
        ("FLUSH_INTERVAL", "0ms", "from 1ms to 1h"),
        ("FLUSH_INTERVAL", "61m", "from 1ms to 1h"),
        ("WAIT_TIMEOUT", "50ms", "from 100ms to 1h"),
        ("SHUTDOWN_TIMEOUT", "2d", "from 0s to 1d"),
        ("SHUTDOWN_TIMEOUT", "9" * 400 + "s", "from 0s to 1d"),
    ],
)
def test_a_duration_out_of_bounds_is_refused_with_the_bounds(variable: str, text: str, bounds: str) -> None:
    assert problems({variable: text}) == [f"{variable}: {text!r}: must be {bounds}"]


@pytest.mark.parametrize(
    ("text", "flag"),
    [("true", True), ("TRUE", True), ("1", True), ("yes", True), ("false", False), ("0", False), ("No", False)],
)
def test_flags_are_true_or_false_in_a_few_spellings(text: str, flag: bool) -> None:
    assert value("PASS_THROUGH", text) is flag


@pytest.mark.parametrize(
    ("variable", "text", "bad"),
    [
        ("PASS_THROUGH", "on", "must be true or false"),
        ("COMPRESSION", "br", "must be one of gzip, zstd, none"),
        ("CLIENT_WAIT", "never", "must be one of honor, ack"),
        ("LOG_LEVEL", "warn", "must be one of debug, info, warning, error"),
        ("LOG_FORMAT", "text", "must be one of auto, json, console"),
        ("BATCH_SIZE", "0", "must be a whole number from 1 to 10000000"),
        ("BATCH_SIZE", "-1", "must be a whole number from 1 to 10000000"),
        ("BATCH_SIZE", "1.5", "must be a whole number from 1 to 10000000"),
        ("BATCH_SIZE", "1_000", "must be a whole number from 1 to 10000000"),
        ("BATCH_SIZE", "٣", "must be a whole number from 1 to 10000000"),
        ("BATCH_SIZE", "9" * 5000, "must be a whole number from 1 to 10000000"),
        ("PORT", "65536", "must be a whole number from 0 to 65535"),
        ("PORT", "tcp://10.0.0.1:80", "must be a whole number from 0 to 65535"),
        ("UPSTREAM_RATE", "0", "must be a number from 0.01 to 100000"),
        ("UPSTREAM_RATE", "-1", "must be a number from 0.01 to 100000"),
        ("UPSTREAM_RATE", "nan", "must be a number from 0.01 to 100000"),
        ("UPSTREAM_RATE", "1e3", "must be a number from 0.01 to 100000"),
        ("NODE_ID", "a b", "must be 1 to 128 letters, digits, dots, dashes or underscores"),
        ("NODE_ID", "x" * 129, "must be 1 to 128 letters, digits, dots, dashes or underscores"),
        ("MAX_HEADER_BYTES", "32", "must be at least 1024 and at most 1000000 bytes"),
        ("KEEPALIVE_MAX_AGE", "300", "must be a duration such as 250ms, 1s or 5m"),
    ],
    ids=lambda text: text if len(text) < 40 else "long",
)
def test_a_bad_value_is_named_with_its_variable_and_what_is_allowed(variable: str, text: str, bad: str) -> None:
    assert problems({variable: text}) == [f"{variable}: {text!r}: {bad}"]


@pytest.mark.parametrize("text", ["9lives", "a-b", "x" * 257, "a b", "é"], ids=lambda text: text[:10])
def test_the_data_source_of_the_proxys_own_rows_needs_a_name_that_tinybird_takes(text: str) -> None:
    assert problems({"TINYBIRD_TOKEN": "t", "TINYBIRD_METRICS_DATASOURCE": text}) == [
        f"TINYBIRD_METRICS_DATASOURCE: {text!r}: must be a data source's name: letters, digits and underscores"
    ]


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("COMPRESSION", "ZSTD", "zstd"),
        ("LOG_LEVEL", "Debug", "debug"),
        ("UPSTREAM_RATE", "0.5", 0.5),
        ("UPSTREAM_RATE", "1000", 1000.0),
        ("PORT", "0", 0),
        ("NODE_ID", "proxy-0.eu_1", "proxy-0.eu_1"),
        ("MAX_WAITERS", "0", 0),
        ("BATCH_SIZE", "1", 1),
        ("AUTHORIZATION_TOKEN", "a name=x\nb # two", "a name=x\nb # two"),
        ("TLS_CERT_FILE", "/c", "/c"),
        ("TOKEN_FILE_WAIT", "1", True),
        ("MAX_AGE", "7d", 604_800.0),
        ("DEAD_LETTER_BYTES", "0", 0),
        ("TINYBIRD_METRICS_DATASOURCE", "ops.proxy_2", "ops.proxy_2"),
    ],
)
def test_good_values_are_taken(variable: str, text: str, expected: Any) -> None:
    assert value(variable, text) == expected


# Below, lowest, highest, above.
BOUNDS: Final = {
    "PORT": ("-1", "0", "65535", "65536"),
    "ADMIN_PORT": ("-1", "0", "65535", "65536"),
    "BATCH_SIZE": ("0", "1", "10000000", "10000001"),
    "BATCH_BYTES": ("999", "1000", "1GB", "1000000001"),
    "FLUSH_INTERVAL": ("0.9ms", "1ms", "1h", "3601s"),
    "BUFFER_SIZE": ("0", "1", "1000000000", "1000000001"),
    "BUFFER_BYTES": ("999", "1000", "1000GB", "1000000000001"),
    "RECEIVE_BYTES": ("65535", "64Ki", "1000GB", "1000000000001"),
    "MAX_BODY_BYTES": ("0", "1", "1GB", "1000000001"),
    "MAX_INFLATED_BYTES": ("0", "1", "1GB", "1000000001"),
    "MAX_DESTINATIONS": ("0", "1", "10000", "10001"),
    "MAX_AGE": ("999ms", "1s", "365d", "366d"),
    "DEAD_LETTER_BYTES": ("-1", "0", "1000GB", "1000000000001"),
    "UPSTREAM_RATE": ("0.009", "0.01", "100000", "100000.1"),
    "UPSTREAM_CONCURRENCY": ("0", "1", "1000", "1001"),
    "UPSTREAM_TIMEOUT": ("99ms", "100ms", "1h", "3601s"),
    "WAIT_TIMEOUT": ("99ms", "100ms", "1h", "3601s"),
    "MAX_WAITERS": ("-1", "0", "1000000", "1000001"),
    "DRAIN_DELAY": ("-1s", "0s", "1h", "3601s"),
    "SHUTDOWN_TIMEOUT": ("-1s", "0s", "1d", "86401s"),
    "MAX_CONNECTIONS": ("0", "1", "1000000", "1000001"),
    "MAX_HEADER_BYTES": ("1023", "1Ki", "1MB", "1000001"),
    "HEADER_TIMEOUT": ("99ms", "100ms", "1h", "3601s"),
    "BODY_TIMEOUT": ("99ms", "100ms", "1h", "3601s"),
    "KEEPALIVE_TIMEOUT": ("999ms", "1s", "1d", "86401s"),
    "KEEPALIVE_MAX_AGE": ("999ms", "1s", "1d", "86401s"),
}
# Numbers that need not be given.
UNSET_NUMBERS: Final = {"MAX_AGE"}


@pytest.mark.parametrize(("variable", "bounds"), BOUNDS.items(), ids=BOUNDS)
def test_every_number_has_bounds(variable: str, bounds: tuple[str, str, str, str]) -> None:
    parse = next(option.parse for option in OPTIONS if option.variable == variable)
    below, lowest, highest, above = bounds
    assert parse(lowest) <= parse(highest)
    for outside in (below, above):
        with pytest.raises(ValueError, match=r"^must be "):
            parse(outside)


def test_no_number_is_without_bounds() -> None:
    numbers = {variable for variable, default in DEFAULTS.items() if type(default) in (int, float)}
    assert set(BOUNDS) == numbers | UNSET_NUMBERS


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.variable)
@pytest.mark.parametrize("empty", ["", "  \n"], ids=["empty", "blank"])
def test_a_variable_that_is_set_but_empty_stops_the_start(option: Any, empty: str) -> None:
    for name in (option.variable, *option.aliases):
        assert f"{name}: is set but empty; give it a value or leave it unset" in problems({name: empty})


# Tinybird's URL.


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://api.us-east.tinybird.co", "https://api.us-east.tinybird.co"),
        ("https://api.tinybird.co/", "https://api.tinybird.co"),
        ("HTTPS://API.Tinybird.co", "https://api.tinybird.co"),
        ("http://localhost:7181", "http://localhost:7181"),
        ("http://tinybird_local:7181/", "http://tinybird_local:7181"),
        ("http://[::1]:7181", "http://[::1]:7181"),
        ("http://127.0.0.1", "http://127.0.0.1"),
    ],
)
@pytest.mark.parametrize("variable", ["TINYBIRD_URL", "TINYBIRD_BASE_URL"])
def test_tinybirds_url_is_an_origin(variable: str, text: str, origin: str) -> None:
    assert value(variable, text) == origin


@pytest.mark.parametrize(
    "text",
    [
        "api.tinybird.co",
        "ftp://api.tinybird.co",
        "https://",
        "https://a b",
        "https://a:0",
        "https://a:65536",
        "https://a:b",
        "https://[::1",
        'https://a"b',
        "https://bücher.example",
        "//api.tinybird.co",
        "https:api.tinybird.co",
    ],
)
def test_what_is_no_url_is_refused_with_an_example(text: str) -> None:
    assert problems({"TINYBIRD_URL": text}) == [
        f"TINYBIRD_URL: {text!r}: must be a URL such as https://api.us-east.tinybird.co"
    ]


def test_a_path_in_tinybirds_url_is_refused_with_the_reason() -> None:
    assert problems({"TINYBIRD_URL": "https://api.tinybird.co/v0/events"}) == [
        "TINYBIRD_URL: 'https://api.tinybird.co/v0/events': must be an origin alone, without a path: "
        "the proxy adds /v0/events itself"
    ]


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{SECRET}@api.tinybird.co",
        f"https://{SECRET}@api.tinybird.co",
        f"https://api.tinybird.co/v0/events?name=clicks&token={SECRET}",
        f"https://api.tinybird.co?token={SECRET}",
        f"https://api.tinybird.co#{SECRET}",
        f"nonsense?token={SECRET}",
    ],
)
def test_a_secret_in_a_url_is_refused_and_never_shown(text: str) -> None:
    (problem,) = problems({"TINYBIRD_URL": text})
    assert problem.startswith("TINYBIRD_URL: (not shown): must ")
    assert "sEcReT" not in problem


# Contradictions.


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        pytest.param(
            {"TINYBIRD_TOKEN": "t", "TINYBIRD_TOKEN_FILE": "/t"},
            ["TINYBIRD_TOKEN_FILE: is set together with TINYBIRD_TOKEN; set one of them"],
            id="a token twice",
        ),
        pytest.param(
            {"ADMIN_TOKEN": "t", "ADMIN_TOKEN_FILE": "/t"},
            ["ADMIN_TOKEN_FILE: is set together with ADMIN_TOKEN; set one of them"],
            id="an admin token twice",
        ),
        pytest.param(
            {"AUTHORIZATION_TOKEN": "t", "AUTHORIZATION_TOKEN_FILE": "/t", "TINYBIRD_TOKEN": "t"},
            ["AUTHORIZATION_TOKEN_FILE: is set together with AUTHORIZATION_TOKEN; set one of them"],
            id="clients' tokens twice",
        ),
        pytest.param(
            {"AUTHORIZATION_TOKEN": "t"},
            ["AUTHORIZATION_TOKEN: needs TINYBIRD_TOKEN: without it clients send Tinybird's own tokens"],
            id="clients' tokens alone",
        ),
        pytest.param(
            {"AUTHORIZATION_TOKEN_FILE": "/t"},
            ["AUTHORIZATION_TOKEN_FILE: needs TINYBIRD_TOKEN: without it clients send Tinybird's own tokens"],
            id="a file of clients' tokens alone",
        ),
        pytest.param(
            {"TINYBIRD_METRICS_DATASOURCE": "ops"},
            ["TINYBIRD_METRICS_DATASOURCE: needs TINYBIRD_TOKEN: the proxy's own rows need a token of ours"],
            id="rows of the proxy's own without a token",
        ),
        pytest.param(
            {"TOKEN_FILE_WAIT": "true", "TINYBIRD_TOKEN": "t"},
            ["TOKEN_FILE_WAIT: needs TINYBIRD_TOKEN_FILE: there is no file to wait for"],
            id="waiting for no file",
        ),
        pytest.param(
            {"TLS_CERT_FILE": "/c"},
            ["TLS_KEY_FILE: is missing: TLS needs both TLS_CERT_FILE and TLS_KEY_FILE"],
            id="a certificate without its key",
        ),
        pytest.param(
            {"TLS_KEY_FILE": "/k"},
            ["TLS_CERT_FILE: is missing: TLS needs both TLS_CERT_FILE and TLS_KEY_FILE"],
            id="a key without its certificate",
        ),
        pytest.param({"PORT": "8001"}, ["ADMIN_PORT: 8001: must differ from PORT"], id="one port for both"),
        pytest.param(
            {"BATCH_SIZE": "10", "BUFFER_SIZE": "9"},
            ["BATCH_SIZE: 10: must be at most BUFFER_SIZE, 9"],
            id="a batch with more rows than the buffer",
        ),
        pytest.param(
            {"BUFFER_SIZE": "99999"},
            ["BATCH_SIZE: 100000: must be at most BUFFER_SIZE, 99999"],
            id="the same against a default",
        ),
        pytest.param(
            {"BUFFER_BYTES": "1MB"},
            ["BATCH_BYTES: 10MB: must be at most BUFFER_BYTES, 1MB"],
            id="a batch with more bytes than the buffer",
        ),
        pytest.param(
            {"MAX_BODY_BYTES": "65MB"},
            ["MAX_BODY_BYTES: 65MB: must be at most RECEIVE_BYTES, 64MB"],
            id="a body that could never be received",
        ),
        pytest.param(
            {"DRAIN_DELAY": "30s"},
            ["DRAIN_DELAY: 30s: must be at most SHUTDOWN_TIMEOUT, 25s"],
            id="a delay longer than the stop",
        ),
        pytest.param(
            {"TINYBIRD_URL": "https://a", "TINYBIRD_BASE_URL": "https://b"},
            ["TINYBIRD_BASE_URL: differs from TINYBIRD_URL, which means the same; set one of them"],
            id="two names for one thing",
        ),
    ],
)
def test_options_that_contradict_each_other_are_named(env: Mapping[str, str], expected: list[str]) -> None:
    assert problems(env) == expected


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({"PORT": "0", "ADMIN_PORT": "0"}, id="any two free ports"),
        pytest.param({"BATCH_SIZE": "7", "BUFFER_SIZE": "7"}, id="a batch as large as the buffer"),
        pytest.param({"DRAIN_DELAY": "25s"}, id="a delay as long as the stop"),
        pytest.param({"TINYBIRD_URL": "https://a", "TINYBIRD_BASE_URL": "https://a"}, id="one thing under two names"),
        pytest.param({"TOKEN_FILE_WAIT": "false"}, id="not waiting for no file"),
        pytest.param({"TINYBIRD_METRICS_DATASOURCE": "ops", "TINYBIRD_TOKEN_FILE": "/t"}, id="the proxy's own rows"),
        pytest.param({"AUTHORIZATION_TOKEN_FILE": "/a", "TINYBIRD_TOKEN_FILE": "/t"}, id="two files"),
    ],
)
def test_options_that_fit_together_are_taken(env: Mapping[str, str]) -> None:
    assert problems(env) == []


def test_every_problem_is_told_at_once_in_the_order_of_the_table() -> None:
    assert problems({"LOG_LEVEL": "loud", "PORT": "x", "BATCH_SIZE": "0", "TLS_KEY_FILE": "/k", "HOST": ""}) == [
        "PORT: 'x': must be a whole number from 0 to 65535",
        "HOST: is set but empty; give it a value or leave it unset",
        "BATCH_SIZE: '0': must be a whole number from 1 to 10000000",
        "LOG_LEVEL: 'loud': must be one of debug, info, warning, error",
        "TLS_CERT_FILE: is missing: TLS needs both TLS_CERT_FILE and TLS_KEY_FILE",
    ]


@pytest.mark.parametrize(
    ("env", "own_tokens", "checks"),
    [
        ({}, False, False),
        ({"TINYBIRD_TOKEN": "t"}, True, False),
        ({"TINYBIRD_TOKEN_FILE": "/t"}, True, False),
        ({"TINYBIRD_TOKEN": "t", "AUTHORIZATION_TOKEN": "a"}, True, True),
        ({"TINYBIRD_TOKEN_FILE": "/t", "AUTHORIZATION_TOKEN_FILE": "/a"}, True, True),
    ],
)
def test_the_mode_follows_from_which_tokens_are_set(env: Mapping[str, str], own_tokens: bool, checks: bool) -> None:
    config = from_env(env)
    assert (config.own_token_mode, config.checks_clients) == (own_tokens, checks)


# Secrets.

SECRETS: Final = {"TINYBIRD_TOKEN": SECRET, "AUTHORIZATION_TOKEN": f"{SECRET} name=web", "ADMIN_TOKEN": SECRET}


def test_secrets_are_in_no_description_and_no_repr() -> None:
    config = from_env(SECRETS)
    assert config.tinybird_token == SECRET
    assert "sEcReT" not in repr(config)
    shown = dict(describe(config))
    assert [shown[variable] for variable in SECRETS] == ["(set, not shown)"] * 3


@pytest.mark.parametrize("variable", ["TINYBIRD_TOKEN", "ADMIN_TOKEN"])
@pytest.mark.parametrize("bad", [f"{SECRET} two", f"{SECRET}\u00e9", f"{SECRET}\n{SECRET}", f"{SECRET}\x7f"])
def test_a_bad_token_is_refused_without_being_shown(variable: str, bad: str) -> None:
    assert problems({variable: bad}) == [
        f"{variable}: (not shown): holds characters that cannot stand in an Authorization header"
    ]


def test_every_option_that_is_a_token_is_secret() -> None:
    tokens = {option.variable for option in OPTIONS if option.variable.endswith("_TOKEN")}
    assert {option.variable for option in OPTIONS if option.secret} == tokens == set(SECRETS)


# What is not ours.


@pytest.mark.parametrize(
    ("variable", "warning"),
    [
        ("FLUSH_INTERVALL", "did you mean FLUSH_INTERVAL?"),
        ("BATCHSIZE", "did you mean BATCH_SIZE?"),
        ("TINYBIRD_TOKENS", "did you mean TINYBIRD_TOKEN?"),
        ("TINBIRD_TOKEN", "did you mean TINYBIRD_TOKEN?"),
        ("MAX_BODY_BYTE", "did you mean MAX_BODY_BYTES?"),
        ("TINYBIRD_BASEURL", "did you mean TINYBIRD_BASE_URL?"),
        ("LOGLEVEL", "did you mean LOG_LEVEL?"),
        ("BUFFER_ROWS_AT_MOST", "and has no effect"),
        ("UPSTREAM_RETRIES", "and has no effect"),
        ("KEEPALIVE_AGE_AT_MOST", "and has no effect"),
        ("DEAD_LETTER_ROWS_AT_MOST", "and has no effect"),
        ("MAX_CONNECTION", "did you mean MAX_CONNECTIONS?"),
    ],
)
def test_a_variable_that_looks_like_one_of_ours_is_warned_about(variable: str, warning: str) -> None:
    (problem,) = suspicious_variables({variable: SECRET, "PATH": "/bin"})
    assert problem.variable == variable
    assert str(problem).startswith(f"{variable}: is not an option of tinybird-proxy")
    assert str(problem).endswith(warning)
    assert SECRET not in str(problem)


def test_ordinary_variables_and_ours_are_no_reason_for_a_warning() -> None:
    env = {option.variable: "x" for option in OPTIONS} | {"TINYBIRD_BASE_URL": "x"}
    env |= dict.fromkeys(("PATH", "HOME", "HOSTNAME", "LANG", "PWD", "TZ", "HTTPS_PROXY", "SSL_CERT_FILE"), "x")
    env |= dict.fromkeys(("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME", "KUBERNETES_PORT"), "x")
    assert suspicious_variables(env) == []


def test_what_a_service_named_tinybird_proxy_injects_is_ignored() -> None:
    injected = {
        "TINYBIRD_PROXY_PORT": "tcp://10.0.0.1:8000",
        "TINYBIRD_PROXY_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "TINYBIRD_PROXY_SERVICE_HOST": "10.0.0.1",
        "TINYBIRD_PROXY_SERVICE_PORT": "8000",
    }
    assert from_env(injected) == from_env({})
    assert suspicious_variables(injected) == []


# What `check` shows.


def test_the_description_can_be_set_again_and_means_the_same() -> None:
    env = {
        "FLUSH_INTERVAL": "250",
        "BATCH_BYTES": "5Mi",
        "PASS_THROUGH": "yes",
        "UPSTREAM_RATE": "12.5",
        "NODE_ID": "a",
    }
    config = from_env(env)
    shown = {variable: text for variable, text in describe(config) if text != "(not set)"}
    assert list(dict(describe(config))) == [option.variable for option in OPTIONS]
    assert shown["FLUSH_INTERVAL"] == "250ms"
    assert shown["BATCH_BYTES"] == "5242880"
    assert shown["PASS_THROUGH"] == "true"
    assert shown["UPSTREAM_RATE"] == "12.5"
    assert shown["DRAIN_DELAY"] == "0s"
    assert from_env(shown) == config


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.001, "1ms"),
        (0.25, "250ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59, "59s"),
        (60, "1m"),
        (90, "90s"),
        (300, "5m"),
        (3600, "1h"),
        (5400, "90m"),
        (86400, "1d"),
        (172800, "2d"),
    ],
)
def test_durations_are_shown_as_a_person_would_write_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 3_600_000))
def test_a_shown_flush_interval_can_be_read_back(milliseconds: int) -> None:
    seconds = from_env({"FLUSH_INTERVAL": str(milliseconds)}).flush_interval_s
    assert from_env({"FLUSH_INTERVAL": format_duration(seconds)}).flush_interval_s == pytest.approx(seconds, rel=1e-5)


@settings(deadline=None, max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from([name for option in OPTIONS for name in (option.variable, *option.aliases)]),
        st.sampled_from(
            ["", "0", "1", "true", "10MB", "1s", "https://a", "9" * 400, "\x00", "٣", "1e5", "gzip", "\udc80"]
        )
        | st.text(max_size=8),
        max_size=5,
    )
)
def test_whatever_is_set_the_answer_is_a_configuration_or_its_problems(env: dict[str, str]) -> None:
    found = outcome(env)
    if isinstance(found, Config):
        assert found.batch_bytes <= found.buffer_bytes
        assert len(describe(found)) == len(OPTIONS)
    else:
        assert found.problems
        assert str(found) == "; ".join(map(str, found.problems))
        assert {problem.variable for problem in found.problems} <= {*DEFAULTS, "TINYBIRD_BASE_URL"}
