"""Which OTEL_* variables switch tracing on, and which of them stop the start."""

import subprocess
import sys
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.util.re import parse_env_headers

from tinybird_proxy.errors import Problem, TokenFileError
from tinybird_proxy.telemetry.otel_env import parse_headers, problems, wants_tracing

NOT_A_HEADER = "header {} is not key=value, as in OTEL_EXPORTER_OTLP_HEADERS"
NOT_IN_A_HEADER = "header {} holds characters that cannot stand in a header, or only percent-encoded"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}


@pytest.mark.parametrize(
    ("env", "wanted"),
    [
        pytest.param({}, False, id="nothing is set"),
        pytest.param(ENDPOINT, True, id="a collector is named"),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/v1/traces"}, True, id="a collector for traces alone"
        ),
        pytest.param({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://c"}, False, id="a collector for metrics alone"),
        pytest.param({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False, id="an empty endpoint is none"),
        pytest.param({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, False, id="the SDK is switched off"),
        pytest.param({**ENDPOINT, "OTEL_SDK_DISABLED": "false"}, True, id="the SDK is not switched off"),
        pytest.param({**ENDPOINT, "OTEL_TRACES_EXPORTER": " none "}, False, id="traces go nowhere"),
        pytest.param({**ENDPOINT, "OTEL_TRACES_EXPORTER": "otlp"}, True, id="traces go over OTLP"),
        pytest.param({"OTEL_TRACES_EXPORTER": "otlp"}, False, id="an exporter alone names no collector"),
    ],
)
def test_tracing_is_on_when_a_collector_is_named_and_nothing_switches_it_off(
    env: Mapping[str, str], wanted: bool
) -> None:
    assert wants_tracing(env) is wanted


@pytest.mark.parametrize(
    "env",
    [
        pytest.param(ENDPOINT, id="an endpoint"),
        pytest.param({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://me:secret@[::1]:4318/otlp?key=secret"}, id="a full URL"),
        pytest.param({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, id="our protocol"),
        pytest.param(
            {
                **ENDPOINT,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            id="our protocol for traces, another for the rest",
        ),
        pytest.param({**ENDPOINT, "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}, id="compression"),
        pytest.param({**ENDPOINT, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}, id="a sampler"),
        pytest.param({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, id="anything, while no collector is named"),
        pytest.param(
            {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_SDK_DISABLED": "true"},
            id="anything, while the SDK is switched off",
        ),
    ],
)
def test_what_is_supported_is_no_problem(env: Mapping[str, str]) -> None:
    assert problems(env) == []


URL_WANTED = "must be an http or https URL such as http://localhost:4318"


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        pytest.param(
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            Problem("OTEL_EXPORTER_OTLP_PROTOCOL", "'grpc': only http/protobuf is supported; use port 4318"),
            id="grpc",
        ),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            Problem("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "'http/json': only http/protobuf is supported"),
            id="JSON for traces",
        ),
        pytest.param(
            {"OTEL_TRACES_EXPORTER": "zipkin"},
            Problem("OTEL_TRACES_EXPORTER", "'zipkin': must be otlp or none"),
            id="another exporter",
        ),
        pytest.param(
            {"OTEL_TRACES_EXPORTER": "otlp,console"},
            Problem("OTEL_TRACES_EXPORTER", "'otlp,console': must be otlp or none"),
            id="several exporters",
        ),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"},
            Problem("OTEL_EXPORTER_OTLP_COMPRESSION", "'zstd': must be one of none, gzip, deflate"),
            id="another compression",
        ),
        pytest.param(
            {"OTEL_TRACES_SAMPLER": "jaeger_remote"},
            Problem(
                "OTEL_TRACES_SAMPLER",
                "'jaeger_remote': must be one of always_on, always_off, traceidratio, parentbased_always_on, "
                "parentbased_always_off, parentbased_traceidratio",
            ),
            id="another sampler",
        ),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"},
            Problem("OTEL_EXPORTER_OTLP_ENDPOINT", URL_WANTED),
            id="an endpoint without a scheme",
        ),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://"},
            Problem("OTEL_EXPORTER_OTLP_ENDPOINT", URL_WANTED),
            id="an endpoint without a host",
        ),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:port"},
            Problem("OTEL_EXPORTER_OTLP_ENDPOINT", URL_WANTED),
            id="an endpoint whose port is no number",
        ),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318\n"},
            Problem("OTEL_EXPORTER_OTLP_ENDPOINT", URL_WANTED),
            id="an endpoint with a line break",
        ),
        pytest.param(
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "ftp://me:secret@c"},
            Problem("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", URL_WANTED),
            id="an endpoint for traces with another scheme, not shown",
        ),
    ],
)
def test_what_is_not_supported_is_named_with_what_is(setting: Mapping[str, str], problem: Problem) -> None:
    assert problems({**ENDPOINT, **setting}) == [problem]


def test_every_problem_is_named_at_once() -> None:
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_TRACES_EXPORTER": "jaeger",
    }
    assert [problem.variable for problem in problems(env)] == [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        "OTEL_TRACES_EXPORTER",
    ]


def test_asking_whether_tracing_is_wanted_does_not_import_opentelemetry() -> None:
    code = "import sys, tinybird_proxy.telemetry.otel_env; assert 'opentelemetry' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestParseHeaders:
    """A file's headers, in the format of OTEL_EXPORTER_OTLP_HEADERS."""

    @pytest.mark.parametrize(
        ("text", "headers"),
        [
            ("x-honeycomb-team=key", {"x-honeycomb-team": "key"}),
            ("X-Honeycomb-Team=Key\n", {"x-honeycomb-team": "Key"}),
            ("a=1,b=2", {"a": "1", "b": "2"}),
            (" a = 1 ,\n\tb=2 ,", {"a": "1", "b": "2"}),
            ("authorization=Basic%20dXNlcjprZXk=", {"authorization": "Basic dXNlcjprZXk="}),
            ("authorization=Basic dXNlcjprZXk=", {"authorization": "Basic dXNlcjprZXk="}),
            ("authorization=Bearer 100%25", {"authorization": "Bearer 100%25"}),
            ("a=1%0A 2", {"a": "1%0A 2"}),  # with a space nothing is decoded
            ("a=%22%2C%3B%5C", {"a": '",;\\'}),
            ("a=", {"a": ""}),
            ("a=1,A=2", {"a": "2"}),
        ],
    )
    def test_good_headers_are_what_the_sdk_reads_from_the_variable(self, text: str, headers: dict[str, str]) -> None:
        assert parse_headers(text) == headers == parse_env_headers(text, liberal=True)

    @given(st.text(st.sampled_from('aB-=,; %20"\\\n\tä')) | st.text())
    def test_whatever_is_taken_the_sdk_would_read_alike(self, text: str) -> None:
        try:
            headers = parse_headers(text)
        except TokenFileError:
            return
        assert headers == parse_env_headers(text, liberal=True)
        assert all(value.isascii() and value.isprintable() for value in (*headers, *headers.values()))

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("", "holds no header"),
            (" \n", "holds no header"),
            (",", "holds no header"),
            ("s3cret", NOT_A_HEADER.format(1)),
            ("a=1,s3cret", NOT_A_HEADER.format(2)),
            ("Authorization: Bearer s3cret", NOT_A_HEADER.format(1)),
            ("=s3cret", NOT_A_HEADER.format(1)),
            ("a b=s3cret", NOT_A_HEADER.format(1)),
            ("a\n=s3cret", NOT_A_HEADER.format(1)),
            ("a=\ns3cret", NOT_IN_A_HEADER.format(1)),
            ('a="s3cret"', NOT_IN_A_HEADER.format(1)),
            ("a=s3cret;b=2", NOT_IN_A_HEADER.format(1)),
            ("a=s3cret\nb=2", NOT_IN_A_HEADER.format(1)),
            ("a=s3cret%0D%0Ab:2", NOT_IN_A_HEADER.format(1)),
            ("a=s3cr%C3%A8t", NOT_IN_A_HEADER.format(1)),
            ("a%0A=s3cret", NOT_IN_A_HEADER.format(1)),
            ("a=s3crèt", NOT_IN_A_HEADER.format(1)),
        ],
    )
    def test_what_is_malformed_is_refused_as_a_whole_by_its_number_alone(self, text: str, problem: str) -> None:
        with pytest.raises(TokenFileError) as raised:
            parse_headers(text)
        assert str(raised.value) == problem
