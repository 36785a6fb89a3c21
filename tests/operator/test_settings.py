"""The operator's own variables."""

import pytest
from tests.operator.resources import OPERATOR_ENV

from tinybird_proxy import __version__
from tinybird_proxy_operator.errors import SettingsError
from tinybird_proxy_operator.lease import Timing
from tinybird_proxy_operator.settings import OperatorSettings, from_env

LEAST = {"POD_NAMESPACE": "tinybird-system", "OPERATOR_POD_LABELS": "app=operator"}


def refusal(**env: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as refused:
        from_env({**LEAST, **env})
    return refused.value.problems


def test_the_times_of_the_lease_can_be_set_and_must_go_together() -> None:
    times = {
        "LEASE_DURATION_SECONDS": "3",
        "LEASE_RENEW_DEADLINE_SECONDS": "2",
        "LEASE_RETRY_PERIOD_SECONDS": "1",
    }
    settings = from_env({**LEAST, "LEASE_NAME": "mine", **times})
    assert (settings.lease_name, settings.lease_timing) == (
        "mine",
        Timing(lease_duration_s=3, renew_deadline_s=2, retry_period_s=1),
    )
    assert from_env(LEAST).lease_timing == Timing()
    assert refusal(LEASE_DURATION_SECONDS="5") == (
        "LEASE_DURATION_SECONDS must be greater than LEASE_RENEW_DEADLINE_SECONDS",
    )
    assert len(refusal(LEASE_DURATION_SECONDS="soon")) == 1


def test_only_where_it_runs_must_be_said() -> None:
    assert from_env(LEAST) == OperatorSettings(
        proxy_image=f"ghcr.io/tinybird-proxy/tinybird-proxy:{__version__}",
        proxy_image_pull_policy="IfNotPresent",
        allowed_upstreams=("*.tinybird.co",),
        allowed_collectors=(),
        allowed_images=("ghcr.io/tinybird-proxy/tinybird-proxy",),
        controller_class="",
        operator_namespace="tinybird-system",
        operator_pod_name="tinybird-proxy-operator",
        operator_pod_labels={"app": "operator"},
        watch_namespaces=(),
        resync_seconds=300,
        metrics_port=8080,
        metrics_api_pod_labels={},
        log_level="info",
        log_format="auto",
        upgrade_max_concurrent=1,
    )


def test_everything_can_be_said() -> None:
    env = {
        "PROXY_IMAGE": "registry.example:5000/proxy:2@sha256:00",
        "PROXY_IMAGE_PULL_POLICY": "Never",
        "ALLOWED_UPSTREAMS": "*.tinybird.co, Emulator.test.svc,*.tinybird.co",
        "ALLOWED_COLLECTORS": "*",
        "ALLOWED_IMAGES": "registry.example:5000/*,ghcr.io/a/b:1",
        "CONTROLLER_CLASS": "blue",
        "POD_NAMESPACE": "ops",
        "POD_NAME": "operator-abc",
        "OPERATOR_POD_LABELS": "app.kubernetes.io/name=operator,app.kubernetes.io/instance=a",
        "WATCH_NAMESPACES": "shop,blog",
        "RESYNC_SECONDS": "60",
        "METRICS_PORT": "9090",
        "LOG_LEVEL": "debug",
        "LOG_FORMAT": "json",
        "UPGRADE_MAX_CONCURRENT": "5",
        "METRICS_API_POD_LABELS": "app.kubernetes.io/component=metrics-api",
    }
    assert from_env(env) == OperatorSettings(
        proxy_image="registry.example:5000/proxy:2@sha256:00",
        proxy_image_pull_policy="Never",
        allowed_upstreams=("*.tinybird.co", "emulator.test.svc"),
        allowed_collectors=("*",),
        allowed_images=("registry.example:5000/*", "ghcr.io/a/b:1"),
        controller_class="blue",
        operator_namespace="ops",
        operator_pod_name="operator-abc",
        operator_pod_labels={"app.kubernetes.io/name": "operator", "app.kubernetes.io/instance": "a"},
        watch_namespaces=("shop", "blog"),
        resync_seconds=60,
        metrics_port=9090,
        log_level="debug",
        log_format="json",
        upgrade_max_concurrent=5,
        metrics_api_pod_labels={"app.kubernetes.io/component": "metrics-api"},
    )


def test_an_empty_list_allows_nothing() -> None:
    settings = from_env({**LEAST, "ALLOWED_UPSTREAMS": "", "ALLOWED_IMAGES": " , "})
    assert (settings.allowed_upstreams, settings.allowed_images) == ((), ())


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("PROXY_IMAGE", "", "is set but empty"),
        ("PROXY_IMAGE", "two words", "must be an image"),
        ("PROXY_IMAGE_PULL_POLICY", "always", "must be one of Always, IfNotPresent, Never"),
        ("ALLOWED_UPSTREAMS", "https://api.tinybird.co", "must be a host"),
        ("ALLOWED_UPSTREAMS", "api.*.tinybird.co", "must be a host"),
        ("ALLOWED_COLLECTORS", "collector:4318", "must be a host"),
        ("ALLOWED_IMAGES", "ghcr.io/a*", "must be an image, a repository"),
        ("POD_NAMESPACE", "Ops", "must be a namespace's name"),
        ("WATCH_NAMESPACES", "shop,a_b", "must be a namespace's name"),
        ("OPERATOR_POD_LABELS", "app", "must be a label as key=value"),
        ("OPERATOR_POD_LABELS", "", "is missing"),
        ("METRICS_API_POD_LABELS", "app", "must be a label as key=value"),
        ("RESYNC_SECONDS", "0", "must be a whole number from 1 to 86400"),
        ("METRICS_PORT", "70000", "must be a whole number from 1 to 65535"),
        ("METRICS_PORT", "http", "must be a whole number from 1 to 65535"),
        ("LOG_LEVEL", "loud", "must be one of debug, info, warning, error"),
        ("LOG_FORMAT", "xml", "must be one of auto, json, console"),
        ("UPGRADE_MAX_CONCURRENT", "-1", "must be a whole number from 1 to 1000"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(variable: str, value: str, says: str) -> None:
    [problem] = refusal(**{variable: value})
    assert problem.startswith(f"{variable}: ")
    assert says in problem


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        from_env({"LOG_LEVEL": "loud", "METRICS_PORT": "x"})
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [
        "POD_NAMESPACE",
        "OPERATOR_POD_LABELS",
        "METRICS_PORT",
        "LOG_LEVEL",
    ]


def test_what_tests_use_is_itself_valid() -> None:
    assert from_env(OPERATOR_ENV).operator_namespace == "tinybird-system"


def test_one_host_may_be_an_ip_address() -> None:
    assert from_env({**LEAST, "ALLOWED_UPSTREAMS": "10.0.0.1,fd00::1"}).allowed_upstreams == ("10.0.0.1", "fd00::1")
