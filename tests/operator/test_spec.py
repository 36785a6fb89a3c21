"""What the API server gives, read; and sizes, hosts and images."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.resources import EVERYTHING, UID, resource

from tinybird_proxy_operator.errors import SpecError
from tinybird_proxy_operator.spec import (
    HeadersKey,
    ProxySpec,
    SecretKey,
    host_is_allowed,
    host_of,
    image_is_allowed,
    image_repository,
    parse,
    quantity_bytes,
)


def test_a_resource_that_says_nothing_has_the_defaults() -> None:
    metadata = {"name": "events", "namespace": "shop", "uid": UID}
    proxy = parse({"metadata": metadata, "spec": None})
    assert proxy.spec == ProxySpec()
    assert (proxy.name, proxy.namespace, proxy.uid, proxy.generation) == ("events", "shop", UID, 0)
    assert (proxy.annotations, proxy.deleting, proxy.spec.replicas) == ({}, False, None)


def test_every_field_is_read_under_its_kubernetes_name() -> None:
    proxy = resource(EVERYTHING, generation=7, resourceVersion="42", annotations={"a": "b"}, deletionTimestamp="now")
    assert (proxy.generation, proxy.resource_version, proxy.annotations, proxy.deleting) == (7, "42", {"a": "b"}, True)
    spec = proxy.spec
    assert spec.tinybird.token_secret_ref == SecretKey(name="tinybird", key="ingest")
    assert spec.telemetry.otlp_headers_secret_ref == HeadersKey(name="collector", key="all")
    assert spec.batch.flush_interval_milliseconds == 250
    assert spec.network_policy.from_peers == EVERYTHING["networkPolicy"]["from"]
    assert spec.network_policy.metrics_from == EVERYTHING["networkPolicy"]["metricsFrom"]
    assert spec.pod_disruption_budget.max_unavailable == "50%"
    assert spec.ingress.tls_secret_name == "events-tls"
    assert spec.pod.topology_spread_constraints == EVERYTHING["pod"]["topologySpreadConstraints"]
    assert spec.monitoring.pod_monitor == "Enabled"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"batch": {"maxRows": "many"}}, "$.batch.maxRows"),
        ({"mode": "StatefulSet"}, "$.mode"),
        ({"tinybird": {"tokenSecretRef": {}}}, "name"),
    ],
)
def test_a_field_of_another_type_is_named(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as refused:
        resource(spec)
    assert field in refused.value.problems[0]
    assert refused.value.problems[0].startswith("spec: ")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512Mi", 512 * 2**20),
        ("10M", 10_000_000),
        ("1k", 1000),
        ("1Ki", 1024),
        ("1.5Gi", 3 * 2**29),
        ("2T", 2 * 10**12),
        ("1Ti", 2**40),
        ("1000", 1000),
        (1000, 1000),
        ("0", 0),
    ],
)
def test_sizes_are_read_as_kubernetes_writes_them(text: str | int, count: int) -> None:
    assert quantity_bytes(text, field="spec.x") == count


@pytest.mark.parametrize("text", ["", "Mi", "10MB", "10 M", "-1", "1e9", "1m", "٣", "1.", ".5Gi", "0x10", "10Mi\n"])
def test_what_is_no_size_is_named_with_its_field(text: str) -> None:
    with pytest.raises(SpecError, match=r"^spec\.x: .* is not a size such as 512Mi or 10M$"):
        quantity_bytes(text, field="spec.x")


@given(st.text(alphabet="0123456789.eEkKMGTim -+", max_size=30) | st.integers())
def test_any_text_is_a_size_or_a_spec_error(text: str | int) -> None:
    try:
        count = quantity_bytes(text, field="spec.x")
    except SpecError:
        count = 0
    assert count >= 0


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://api.tinybird.co", "api.tinybird.co"),
        ("https://API.Tinybird.co:443/", "api.tinybird.co"),
        ("http://[::1]:7181", "::1"),
        ("api.tinybird.co", ""),
        ("http://[::1", ""),
        ("", ""),
    ],
)
def test_the_host_of_a_url(url: str, host: str) -> None:
    assert host_of(url) == host


@pytest.mark.parametrize(
    ("host", "patterns", "allowed"),
    [
        ("api.tinybird.co", ["*.tinybird.co"], True),
        ("api.us-west-2.aws.tinybird.co", ["*.tinybird.co"], True),
        ("tinybird.co", ["*.tinybird.co"], False),
        ("eviltinybird.co", ["*.tinybird.co"], False),
        ("api.tinybird.co.evil.example", ["*.tinybird.co"], False),
        ("emulator", ["emulator"], True),
        ("emulator.test", ["emulator"], False),
        ("anything", ["*"], True),
        ("anything", [], False),
        ("", ["*.tinybird.co"], False),
    ],
)
def test_which_hosts_patterns_allow(host: str, patterns: list[str], allowed: bool) -> None:
    assert host_is_allowed(host, patterns) is allowed


@pytest.mark.parametrize(
    ("image", "repository"),
    [
        ("ghcr.io/a/b:1", "ghcr.io/a/b"),
        ("ghcr.io/a/b@sha256:00", "ghcr.io/a/b"),
        ("ghcr.io/a/b:1@sha256:00", "ghcr.io/a/b"),
        ("localhost:5000/b", "localhost:5000/b"),
        ("localhost:5000/b:1", "localhost:5000/b"),
        ("b:1", "b"),
    ],
)
def test_the_repository_of_an_image(image: str, repository: str) -> None:
    assert image_repository(image) == repository


@pytest.mark.parametrize(
    ("image", "patterns", "allowed"),
    [
        ("ghcr.io/a/b:1", ["ghcr.io/a/b"], True),
        ("ghcr.io/a/b@sha256:00", ["ghcr.io/a/b"], True),
        ("ghcr.io/a/b:1", ["ghcr.io/a/b:1"], True),
        ("ghcr.io/a/b:2", ["ghcr.io/a/b:1"], False),
        ("ghcr.io/a/b:1@sha256:00", ["ghcr.io/a/b:1"], False),
        ("ghcr.io/a/bb:1", ["ghcr.io/a/b"], False),
        ("ghcr.io/a/b:1", ["ghcr.io/a/*"], True),
        ("ghcr.io/ab/b:1", ["ghcr.io/a/*"], False),
        ("evil.example/ghcr.io/a/b:1", ["ghcr.io/a/*"], False),
        ("anything", ["*"], True),
        ("anything", [], False),
    ],
)
def test_which_images_patterns_allow(image: str, patterns: list[str], allowed: bool) -> None:
    assert image_is_allowed(image, patterns) is allowed
