"""What KEDA is told, and that it can find the pods."""

from typing import Any

import pytest
from tests.operator.hpas import CPU
from tests.operator.resources import desired
from tests.operator.test_manifests_service import SELECTOR

from tinybird_proxy_operator.manifests import metrics_service
from tinybird_proxy_operator.manifests.deployment import build as build_deployment
from tinybird_proxy_operator.manifests.horizontal_pod_autoscaler import BEHAVIOR
from tinybird_proxy_operator.manifests.scaled_object import build
from tinybird_proxy_operator.scaling.autoscaling import Plan

TARGETS = {"bufferRowsPerPod": 200_000, "cpuPercent": 70}
KEDA: dict[str, Any] = {"autoscaling": {"maxReplicas": 4, "targets": TARGETS, "provider": "KEDA"}}


def test_keda_scales_the_resource_and_sums_up_what_each_pod_says() -> None:
    manifest = build(desired(KEDA))
    assert manifest is not None
    assert (manifest["apiVersion"], manifest["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    spec = manifest["spec"]
    assert spec["scaleTargetRef"] == {
        "apiVersion": "tinybird-proxy.io/v1alpha1",
        "kind": "TinybirdProxy",
        "name": "events",
    }
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 4)
    assert spec["advanced"] == {"horizontalPodAutoscalerConfig": {"behavior": BEHAVIOR}}
    rows, cpu = spec["triggers"]
    assert rows == {
        "type": "metrics-api",
        "metricType": "AverageValue",
        "metadata": {
            "url": "http://events-metrics.shop.svc:8001/metrics",
            "format": "prometheus",
            "valueLocation": "tinybird_proxy_buffer_rows",
            "targetValue": "200000",
            "aggregateFromKubeServiceEndpoints": "true",
            "aggregationType": "sum",
        },
    }
    assert (cpu["metadata"]["valueLocation"], cpu["metadata"]["targetValue"]) == (CPU.metric, "70")


def test_while_tinybird_throttles_no_pod_is_added() -> None:
    manifest = build(desired(KEDA, plan=Plan(targets=(CPU,), throttled=True)))
    assert manifest is not None
    behavior = manifest["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleUp"]["selectPolicy"] == "Disabled"


def test_the_service_that_keda_looks_for_has_the_pods_admin_port() -> None:
    """KEDA takes the port of the URL only if it is one of the EndpointSlices', which are the containers'."""
    wanted = desired(KEDA)
    service = metrics_service.build(wanted)
    assert service is not None
    assert service["metadata"]["name"] == "events-metrics"
    spec = service["spec"]
    assert (spec["type"], spec["clusterIP"], spec["selector"]) == ("ClusterIP", "None", SELECTOR)
    [port] = spec["ports"]
    ports = build_deployment(wanted)["spec"]["template"]["spec"]["containers"][0]["ports"]
    [admin] = [each for each in ports if each["name"] == port["targetPort"]]
    assert admin["containerPort"] == port["port"] == 8001


@pytest.mark.parametrize("provider", [None, "Builtin", "PrometheusAdapter", "External"])
def test_there_is_nothing_for_keda_unless_it_is_asked_for(provider: str | None) -> None:
    spec = {} if provider is None else {"autoscaling": {**KEDA["autoscaling"], "provider": provider}}
    assert build(desired(spec)) is None
    assert metrics_service.build(desired(spec)) is None
