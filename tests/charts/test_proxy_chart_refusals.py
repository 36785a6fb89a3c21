"""charts/tinybird-proxy: which values it refuses, and what it says of them."""

import re

import pytest
from tests.charts.proxy_chart import OWN, PROXY
from tests.charts.rendering import Object, refusal

from tinybird_proxy_operator.errors import SpecError
from tinybird_proxy_operator.spec import quantity_bytes


@pytest.mark.parametrize("size", ["10MB", "10mb", "512", "-1Mi", "1,5Gi", " 1Mi", "", "1Pi", "99999999999999Ti"])
def test_a_size_that_is_none_or_out_of_bounds_is_refused(size: str) -> None:
    """Whatever the operator refuses, and what its CRD refuses by its bounds."""
    try:
        meant = quantity_bytes(size, field="")
    except SpecError:
        assert f'buffer.maxSize: "{size}" is not a size such as 512Mi or 10M' in refusal(
            PROXY, {"buffer": {"maxSize": size}}
        )
    else:
        assert not 1000 <= meant <= 10**12
        assert re.search(
            r"buffer\.maxSize: .* (must be from 1k to 1T|is not a size)", refusal(PROXY, {"buffer": {"maxSize": size}})
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"autoscaling": {}}, "additional properties 'autoscaling' not allowed"),
        ({"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match pattern"),
        ({"image": {"tag": 5}}, "at '/image/tag': got number, want string"),
        ({"replicas": "2"}, "at '/replicas': got string, want null or integer"),
        ({"batch": None}, "missing property 'batch'"),
        ({"batch": {"maxRows": 0}}, "at '/batch/maxRows': minimum: got 0, want 1"),
        ({"drain": {"shutdownTimeoutSeconds": 5}}, "at '/drain/shutdownTimeoutSeconds': minimum: got 5, want 10"),
        ({"service": {"type": "ExternalName"}}, "at '/service/type': value must be one of 'ClusterIP', 'NodePort'"),
        ({"networkPolicy": {"from": [{"pod": {}}]}}, "at '/networkPolicy/from/0': additional properties 'pod' not"),
        ({"extraEnv": [{"name": "TZ", "value": 1}]}, "at '/extraEnv/0/value': got number, want string"),
        ({"extraEnv": [{"name": "TZ", "value": "", "valueFrom": {"fieldRef": {}}}]}, "at '/extraEnv/0': 'not' failed"),
        ({"fullnameOverride": "x" * 53}, "at '/fullnameOverride': maxLength: got 53, want 52"),
        (
            {"fullnameOverride": "1st"},
            "fullnameOverride: the Service would be called 1st, and its name must begin with",
        ),
        ({"tinybird": {"token": {"existingSecret": "x"}}}, "clients: a proxy with a token of Tinybird's needs tokens"),
        ({"clients": {"existingSecret": "x"}}, "clients: has no use without tinybird.token"),
        ({**OWN, "clients": {"existingSecret": "x", "anyone": True}}, "clients: give only one of"),
        (
            {**OWN, "tinybird": {"token": {"existingSecret": "x", "value": "p.z"}}},
            "tinybird.token: has an existingSecret",
        ),
        ({**OWN, "clients": {"value": " # nobody\n\n"}}, "clients.value: holds no token; write one a line"),
        (
            {"batch": {"maxSize": "512Mi"}, "buffer": {"maxSize": "256Mi"}},
            "batch.maxSize: 512Mi is more than buffer.max",
        ),
        ({"batch": {"maxSize": "2G"}}, "batch.maxSize: 2G must be from 1k to 1G"),
        ({"buffer": {"maxRows": 99_999}}, "batch.maxRows: 100000 is more than buffer.maxRows, 99999"),
        ({"resources": {"limits": {"memory": "767Mi"}}}, "resources.limits.memory: 767Mi is less than 768Mi, which a"),
        ({"resources": {"limits": {"memory": "1GB"}}}, 'resources.limits.memory: "1GB" is not a size such as 1Gi'),
        (
            {"resources": {"requests": {"memory": "1Gi"}}},
            "resources.requests.memory: 1Gi is more than the limit, 896Mi",
        ),
        ({"telemetry": {"otlpEndpoint": "collector:4318"}}, "telemetry.otlpEndpoint: must be an http or https URL"),
        (
            {"telemetry": {"otlpHeaders": {"existingSecret": "collector"}}},
            "telemetry.otlpHeaders: needs telemetry.otlpEndpoint: there is no collector to send headers to",
        ),
        ({"ingress": {"enabled": True}}, "ingress.host: is missing"),
        (
            {"ingress": {"enabled": True, "host": "a.b"}, "service": {"enabled": False}},
            "ingress.enabled: an Ingress needs",
        ),
        ({"podDisruptionBudget": {"maxUnavailable": "0%"}}, "podDisruptionBudget.maxUnavailable: must be above 0"),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, "podDisruptionBudget.maxUnavailable: must be above 0"),
        ({"podLabels": {"tinybird-proxy.io/proxy": "x"}}, "podLabels: tinybird-proxy.io/proxy is set by the chart"),
        ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "commonLabels: app.kubernetes.io/name is set by the chart"),
        ({"podAnnotations": {"kubectl.kubernetes.io/default-container": "x"}}, "podAnnotations: kubectl.kubernetes.io"),
        (
            {"extraEnv": [{"name": "BUFFER_BYTES", "value": "1"}]},
            "extraEnv: BUFFER_BYTES is set from a value of its own",
        ),
        ({"extraEnv": [{"name": "TZ", "value": "1"}, {"name": "TZ", "value": "2"}]}, "extraEnv: TZ is there twice"),
        (
            {"helmTest": {"postEvent": {"dataSource": "a-b"}}},
            "at '/helmTest/postEvent/dataSource': 'a-b' does not match",
        ),
        (
            {"helmTest": {"postEvent": {"dataSource": "a"}}},
            "helmTest.postEvent: clients show Tinybird's own tokens here",
        ),
    ],
    ids=lambda part: part[:40] if isinstance(part, str) else "",
)
def test_a_wrong_value_is_refused_with_its_place_and_what_is_right(given: Object, message: str) -> None:
    assert message in refusal(PROXY, given)


def test_all_that_is_wrong_is_said_at_once_and_no_secret_with_it() -> None:
    said = refusal(
        PROXY,
        {
            "tinybird": {"url": "https://me:hunter2@api.tinybird.co", "token": {"value": "p.secret "}},
            "batch": {"maxSize": "10MB"},
        },
    )
    for place in (
        "tinybird.url: must be an origin",
        "tinybird.token.value: holds",
        "clients: a proxy",
        "batch.maxSize:",
    ):
        assert place in said
    assert "p.secret" not in said
    assert "hunter2" not in said
