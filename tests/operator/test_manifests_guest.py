"""What would have an API server refuse apps' pods is told of the resource, and nothing is rendered with it."""

from typing import Any

import pytest
from tests.operator.resources import OWN_TOKEN, operator_settings, resource

from tinybird_proxy_operator.checks import problems
from tinybird_proxy_operator.names import Reason


def said(mode: str = "Sidecar", **pod: Any) -> list[tuple[Reason, str]]:
    return problems(resource({"mode": mode, **OWN_TOKEN, "pod": pod}), operator_settings())


def field(path: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"name": "POD_X", "valueFrom": {"fieldRef": {"fieldPath": path, **more}}}]


@pytest.mark.parametrize(
    ("pod", "says"),
    [
        (
            {"resources": {"requests": {"cpu": 1}, "limits": {"cpu": "500m"}}},
            "spec.pod.resources.requests.cpu: 1 is more than the limit, 500m",
        ),
        (
            {"resources": {"requests": {"ephemeral-storage": "2Gi"}, "limits": {"ephemeral-storage": "1Gi"}}},
            "spec.pod.resources.requests.ephemeral-storage: 2Gi is more than the limit, 1Gi",
        ),
        ({"resources": {"requests": {"cpu": "-1"}}}, "spec.pod.resources.requests.cpu: '-1' is not an amount"),
        ({"resources": {"limits": {"cpu": "1e1.5"}}}, "spec.pod.resources.limits.cpu: '1e1.5' is not an amount"),
        ({"resources": {"limits": {"cpu": "1e9999999"}}}, "spec.pod.resources.limits.cpu: '1e9999999' is not an"),
        (
            {"resources": {"limits": {"nvidia.com/gpu": 1}}},
            "spec.pod.resources.limits.nvidia.com/gpu: a sidecar may ask for cpu, memory, ephemeral-storage alone",
        ),
        ({"env": field("spec.bogus")}, "spec.pod.env[0].valueFrom.fieldRef: 'spec.bogus' is no field of a pod"),
        ({"env": field("metadata.labels['a b']")}, "spec.pod.env[0].valueFrom.fieldRef: "),
        ({"env": field("metadata.name", apiVersion="v2")}, "spec.pod.env[0].valueFrom.fieldRef: "),
    ],
)
def test_what_apps_pods_would_be_refused_for_is_an_invalid_spec(pod: dict[str, Any], says: str) -> None:
    [(reason, sentence)] = said(**pod)
    assert reason == Reason.INVALID_SPEC
    assert sentence.startswith(says)


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": "0.05"}}},
        {"resources": {"limits": {"cpu": "10m", "ephemeral-storage": "1Gi"}}},
        *({"env": field(path)} for path in ("status.podIPs", "metadata.annotations['example.com/a']", "metadata.uid")),
    ],
)
def test_what_they_would_not_be_refused_for_has_no_problem(pod: dict[str, Any]) -> None:
    assert said(**pod) == []


def test_a_deployment_is_the_api_servers_to_refuse() -> None:
    assert said("Deployment", resources={"limits": {"nvidia.com/gpu": 1}}) == []


def test_a_size_that_is_none_is_told_once() -> None:
    assert len(said(resources={"limits": {"memory": "x"}})) == 1
