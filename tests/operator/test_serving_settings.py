"""Settings of every process that the API server connects to."""

import pytest

from tinybird_proxy_operator.serving.renewal import Lifetimes
from tinybird_proxy_operator.serving.settings import lifetimes, ports, server_names
from tinybird_proxy_operator.variables import Reader


def test_the_first_name_is_the_one_that_the_api_server_asks_by() -> None:
    assert server_names("hook", "here") == ("hook.here.svc", "hook", "hook.here", "hook.here.svc.cluster.local")


def test_unset_variables_have_values() -> None:
    read = Reader({})
    assert ports(read) == (6443, 8080)
    assert lifetimes(read) == Lifetimes(serving_s=7_776_000, overlap_s=600)
    assert read.problems == []


@pytest.mark.parametrize(
    ("env", "problems"),
    [
        ({"METRICS_PORT": "6443"}, ["METRICS_PORT: must not be TLS_PORT"]),
        (
            {"CERTIFICATE_LIFETIME_SECONDS": "100", "CERTIFICATE_OVERLAP_SECONDS": "26"},
            ["CERTIFICATE_OVERLAP_SECONDS: 26: must be at most a quarter of CERTIFICATE_LIFETIME_SECONDS (100)"],
        ),
        (
            {"TLS_PORT": "0", "CERTIFICATE_LIFETIME_SECONDS": "1"},
            [
                "TLS_PORT: '0': must be a whole number from 1 to 65535",
                "CERTIFICATE_LIFETIME_SECONDS: '1': must be a whole number from 20 to 315360000",
            ],
        ),
    ],
    ids=["one port for both", "an overlap that is too long", "what is no number in range, and no more than that"],
)
def test_what_is_wrong_is_named(env: dict[str, str], problems: list[str]) -> None:
    read = Reader(env)
    ports(read)
    lifetimes(read)
    assert read.problems == problems
