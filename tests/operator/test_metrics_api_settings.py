"""The metrics API's own variables."""

import pytest
from tests.operator.metrics_apis import ENV

from tinybird_proxy_operator.errors import SettingsError
from tinybird_proxy_operator.metrics_api.settings import MetricsApiSettings, from_env
from tinybird_proxy_operator.serving.renewal import Lifetimes

LEAST = {key: ENV[key] for key in ("POD_NAMESPACE", "SERVICE_NAME", "CLUSTER_ROLE", "CERTIFICATE_SECRET")}


def test_only_the_names_must_be_said() -> None:
    assert from_env(LEAST) == MetricsApiSettings(
        namespace="tinybird-system",
        service="metrics",
        cluster_role="operator-metrics-api",
        secret="operator-metrics-api-certificates",
        port=6443,
        metrics_port=8080,
        lifetimes=Lifetimes(serving_s=7_776_000, overlap_s=600),
        log_level="info",
        log_format="auto",
    )


def test_the_first_server_name_is_the_one_that_the_api_server_asks_by() -> None:
    assert from_env(LEAST).server_names == (
        "metrics.tinybird-system.svc",
        "metrics",
        "metrics.tinybird-system",
        "metrics.tinybird-system.svc.cluster.local",
    )


@pytest.mark.parametrize(
    ("env", "problem"),
    [
        ({"SERVICE_NAME": "a.b"}, "SERVICE_NAME: 'a.b': must be"),
        ({"CLUSTER_ROLE": "A"}, "CLUSTER_ROLE: 'A': must be an object's name"),
        ({"CERTIFICATE_LIFETIME_SECONDS": "5"}, "CERTIFICATE_LIFETIME_SECONDS: '5': must be a whole number from 20"),
        ({"METRICS_PORT": "6443"}, "METRICS_PORT: must not be TLS_PORT"),
        (
            {"CERTIFICATE_LIFETIME_SECONDS": "100", "CERTIFICATE_OVERLAP_SECONDS": "26"},
            "CERTIFICATE_OVERLAP_SECONDS: 26: must be at most a quarter of CERTIFICATE_LIFETIME_SECONDS (100)",
        ),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL: 'loud': must be one of"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(env: dict[str, str], problem: str) -> None:
    with pytest.raises(SettingsError) as refused:
        from_env({**LEAST, **env})
    [said] = refused.value.problems
    assert said.startswith(problem)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        from_env({"TLS_PORT": "x"})
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [*LEAST, "TLS_PORT"]
