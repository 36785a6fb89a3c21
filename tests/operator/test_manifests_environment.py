"""The container's environment, read back as the proxy will read it."""

from typing import Any, Final

import pytest
from hypothesis import given, settings
from tests.operator.resources import EVERYTHING, OWN_TOKEN, desired, resource, valid_specs

from tinybird_proxy.config import OPTIONS, Config, from_env, suspicious_variables
from tinybird_proxy.telemetry.otel_env import problems as tracing_problems
from tinybird_proxy.telemetry.otel_env import wants_tracing
from tinybird_proxy_operator.errors import SpecError
from tinybird_proxy_operator.manifests.deployment import build
from tinybird_proxy_operator.manifests.environment import AUTOSCALED, RATE_PER_DATA_SOURCE, RESERVED, container_env
from tinybird_proxy_operator.spec import ProxySpec, quantity_bytes

POD_NAME: Final = "events-7d4f9c6b5d-x2x7k"


def read(spec: dict[str, Any]) -> dict[str, str]:
    """The variables as kubelet gives them to the container."""
    fields = {"metadata.name": POD_NAME, "status.podIP": "10.0.0.7"}
    entries = container_env(desired(spec))
    assert len({entry["name"] for entry in entries}) == len(entries)
    return {
        entry["name"]: entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in entries
    }


def files(spec: dict[str, Any]) -> set[str]:
    """Every file that the pod's Secrets come to."""
    pod = build(desired(spec))["spec"]["template"]["spec"]
    directories = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    return {
        f"{directories[volume['name']]}/{item['path']}"
        for volume in pod["volumes"]
        for item in volume["secret"]["items"]
    }


def named(config: Config) -> set[str | None]:
    """Every file that the proxy reads."""
    tokens = {config.tinybird_token_file, config.authorization_token_file, config.admin_token_file}
    return {*tokens, config.otlp_headers_file} - {None}


def expect(config: Config, spec: ProxySpec) -> None:
    assert (config.host, config.port, config.admin_host, config.admin_port) == ("::", 8000, "::", 8001)
    assert config.tinybird_url == spec.tinybird.url
    assert config.own_token_mode is (spec.tinybird.token_secret_ref is not None)
    assert config.checks_clients is config.own_token_mode
    assert config.batch_size == spec.batch.max_rows
    assert config.batch_bytes == quantity_bytes(spec.batch.max_size, field="")
    assert config.flush_interval_s == pytest.approx(spec.batch.flush_interval_milliseconds / 1000)
    assert config.buffer_size == spec.buffer.max_rows
    assert config.buffer_bytes == quantity_bytes(spec.buffer.max_size, field="")
    assert config.shutdown_timeout_s == spec.drain.shutdown_timeout_seconds
    assert config.drain_delay_s == 5
    assert config.upstream_rate == 90 or spec.autoscaling is not None
    assert config.node_id == POD_NAME


@pytest.mark.parametrize("spec", [{}, OWN_TOKEN, EVERYTHING], ids=["nothing", "own token", "everything"])
def test_the_proxy_reads_from_the_environment_what_the_spec_says(spec: dict[str, Any]) -> None:
    env = read(spec)
    config = from_env(env)
    expect(config, resource(spec).spec)
    assert suspicious_variables(env) == []
    assert named(config) == files(spec)


@given(spec=valid_specs())
@settings(max_examples=150, deadline=None)
def test_any_valid_spec_reaches_the_proxy_as_it_is(spec: dict[str, Any]) -> None:
    config = from_env(read(spec))
    expect(config, resource(spec).spec)
    assert named(config) == files(spec)


def test_options_of_which_the_spec_says_nothing_keep_the_proxys_defaults() -> None:
    config = from_env(read({}))
    said = {"host", "port", "admin_host", "admin_port", "admin_token_file", "drain_delay_s", "node_id"}
    said |= {"buffer_bytes", "shutdown_timeout_s"}
    for option in OPTIONS:
        if option.field not in said:
            default = None if option.default is None else option.parse(option.default)
            assert getattr(config, option.field) == default


def test_sizes_go_in_as_plain_bytes() -> None:
    env = read({"batch": {"maxSize": "1Mi"}, "buffer": {"maxSize": "1G"}})
    assert (env["BATCH_BYTES"], env["BUFFER_BYTES"]) == ("1048576", "1000000000")


def test_a_collector_switches_tracing_on() -> None:
    assert not wants_tracing(read({}))
    env = read(EVERYTHING)
    assert env["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector.observability.svc:4318"
    assert wants_tracing(env)
    assert tracing_problems(env) == []


def test_headers_for_the_collector_are_read_from_a_file() -> None:
    assert "OTEL_EXPORTER_OTLP_HEADERS_FILE" not in read({})
    assert from_env(read(EVERYTHING)).otlp_headers_file == "/etc/tinybird-proxy/otlp/headers"


def test_options_without_a_field_of_their_own_may_be_given_by_hand() -> None:
    env = [{"name": "COMPRESSION", "value": "zstd"}, {"name": "UPSTREAM_RATE", "value": "45"}]
    config = from_env(read({"pod": {"env": env}}))
    assert (config.compression, config.upstream_rate) == ("zstd", 45)


@pytest.mark.parametrize(("most", "rate"), [(1, 90), (4, 22), (90, 1), (1000, 1)])
def test_tinybirds_limit_is_shared_out_among_the_most_pods_that_there_may_be(most: int, rate: int) -> None:
    autoscaling = {"maxReplicas": most, "provider": "External"}
    assert from_env(read({"autoscaling": autoscaling})).upstream_rate == rate
    assert from_env(read({"autoscaling": autoscaling, "replicas": 7})).upstream_rate == rate


@pytest.mark.parametrize("autoscaling", [{"maxReplicas": 9, "targets": {"cpuPercent": 70}}, {"provider": "External"}])
def test_where_pods_are_added_clients_connections_end_soon_so_that_new_pods_get_some(
    autoscaling: dict[str, Any],
) -> None:
    assert from_env(read({"autoscaling": {"maxReplicas": 9, **autoscaling}})).keepalive_max_age_s == 30
    assert "KEEPALIVE_MAX_AGE" not in read({"replicas": 9})


@pytest.mark.parametrize(
    ("name", "value", "read_as"),
    [
        pytest.param("UPSTREAM_RATE", "45", (45, 30), id="some have a higher limit"),
        pytest.param("KEEPALIVE_MAX_AGE", "2m", (10, 120), id="connections may be dear"),
    ],
)
def test_what_is_given_by_hand_stays_with_autoscaling(name: str, value: str, read_as: tuple[int, int]) -> None:
    env = {"pod": {"env": [{"name": name, "value": value}]}}
    config = from_env(read({"autoscaling": {"maxReplicas": 9}, **env}))
    assert (config.upstream_rate, config.keepalive_max_age_s) == read_as


def test_the_rate_of_a_single_pod_is_the_proxys_default() -> None:
    [option] = [option for option in OPTIONS if option.field == "upstream_rate"]
    assert option.parse(str(option.default)) == RATE_PER_DATA_SOURCE


# What libraries read: with these the token, or what is sent with it, could go where no list of allowed hosts names.
STEERING = (
    *("https_proxy", "ALL_PROXY", "LOCALDOMAIN", "RES_OPTIONS", "HOSTALIASES", "SSLKEYLOGFILE", "SSL_CERT_FILE"),
    *("LD_PRELOAD", "PYTHONPATH", "OPENSSL_CONF", "GLIBC_TUNABLES", "NODE", "OTEL", "otel_x", "XOTEL_A"),
)


def refusal(*entries: dict[str, Any]) -> str:
    with pytest.raises(SpecError) as refused:
        container_env(desired({"pod": {"env": list(entries)}}))
    return str(refused.value)


OPERATORS = {entry["name"] for entry in container_env(desired(EVERYTHING))[:-2]} - AUTOSCALED.keys()


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_no_name_that_the_operator_sets_may_be_given_by_hand(name: str) -> None:
    assert f"spec.pod.env[0]: {name} is set by the operator" in refusal({"name": name, "value": "x"})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("TINYBIRD_BASE_URL", "is set by the operator; use spec.tinybird.url"),
        ("BUFFER_BYTES", "is set by the operator; use spec.buffer.maxSize"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "is set by the operator; use spec.telemetry.otlpEndpoint"),
        ("OTEL_EXPORTER_OTLP_HEADERS_FILE", "is set by the operator; use spec.telemetry.otlpHeadersSecretRef"),
        ("TINYBIRD_TOKEN", "would show a token"),
        ("AUTHORIZATION_TOKEN", "would show a token"),
        ("ADMIN_TOKEN", "would show a token"),
        ("TLS_CERT_FILE", "names a file that nothing mounts"),
        *((name, "might lead what it sends elsewhere") for name in STEERING),
        ("1X", "is not the name of a variable"),
        ("", "is not the name of a variable"),
    ],
)
def test_names_that_would_do_harm_are_refused(name: str, says: str) -> None:
    assert says in refusal({"name": name, "value": "x"})


@pytest.mark.parametrize("name", ["COMPRESSION", "TZ", "OTEL_RESOURCE_ATTRIBUTES", "NODE_NAME", "POD_UID", "K8S_ZONE"])
def test_names_of_options_of_tracing_and_of_what_others_refer_to_are_taken(name: str) -> None:
    container_env(desired({"pod": {"env": [{"name": name, "value": "zstd"}]}}))


def test_every_option_that_holds_a_token_or_names_a_file_is_refused() -> None:
    for option in OPTIONS:
        if option.secret or option.variable.endswith("_FILE"):
            assert option.variable in RESERVED


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "POD_A", "valueFrom": {"secretKeyRef": {"name": "other", "key": "token"}}},
        {"name": "POD_A", "valueFrom": {"configMapKeyRef": {"name": "other", "key": "token"}}},
        {"name": "POD_A", "valueFrom": {"fieldRef": {"fieldPath": "x"}, "secretKeyRef": {"name": "other", "key": "t"}}},
        {"name": "POD_A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "POD_A", "value": 1},
    ],
)
def test_an_entry_is_a_value_or_a_field_of_the_pod_and_never_reads_a_secret(entry: dict[str, Any]) -> None:
    assert "must have either a value or a valueFrom.fieldRef" in refusal(entry)


def test_every_wrong_entry_is_named_at_once() -> None:
    says = refusal({"name": "PORT", "value": "1"}, {"name": "POD_A", "value": "1"}, {"name": "POD_A", "value": "2"}, {})
    assert "spec.pod.env[0]: PORT" in says
    assert "spec.pod.env[2]: POD_A is there twice" in says
    assert "spec.pod.env[3].name: None" in says
