"""HPAs and APIServices as the API server gives them."""

from collections.abc import Sequence
from typing import Any

from tests.operator.resources import UID

from tinybird_proxy_operator.names import API_VERSION, KIND
from tinybird_proxy_operator.scaling.targets import TARGETS

UTILIZATION, ROWS, DRAIN_TIME, CPU = TARGETS
ON_CHILD = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "events"}
ON_RESOURCE = {"apiVersion": API_VERSION, "kind": KIND, "name": "events"}
OURS = {"kind": KIND, "name": "events", "uid": UID, "controller": True}
KEDAS = {"kind": "ScaledObject", "name": "events", "uid": "so", "controller": True}


def hpa(
    name: str = "events",
    target: dict[str, str] = ON_RESOURCE,
    owner: dict[str, Any] | None = OURS,
    *,
    metrics: Sequence[str] = (),
    **status: Any,
) -> dict[str, Any]:
    """``metrics``: those of its spec. ``status``: its fields."""
    owners = {"ownerReferences": [owner]} if owner else {}
    pods = [{"type": "Pods", "pods": {"metric": {"name": metric}}} for metric in metrics]
    spec = {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 4, "metrics": pods}
    metadata = {"name": name, "namespace": "shop", **owners}
    return {"kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec, "status": status}


def condition(kind: str, status: str, reason: str = "Because", message: str = "it is so") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


WORKING = [
    condition("AbleToScale", "True"),
    condition("ScalingActive", "True", "ValidMetricFound"),
    condition("ScalingLimited", "False", "DesiredWithinRange"),
]


def limited(reason: str) -> list[dict[str, str]]:
    return [*WORKING[:2], condition("ScalingLimited", "True", reason)]


def seen(**values: str) -> list[dict[str, Any]]:
    """``currentMetrics``, by the last part of the metrics' names."""
    return [
        {"type": "Pods", "pods": {"metric": {"name": f"tinybird_proxy_{name}"}, "current": {"averageValue": value}}}
        for name, value in values.items()
    ]


def api_service(
    version: str = "v1beta1",
    service: tuple[str, str] = ("tinybird-system", "operator-metrics-api"),
    *,
    available: bool = True,
) -> dict[str, Any]:
    conditions = [condition("Available", str(available), "Passed", "endpoints for service are not there")]
    namespace, name = service
    return {
        "kind": "APIService",
        "metadata": {"name": f"{version}.custom.metrics.k8s.io"},
        "spec": {"service": {"namespace": namespace, "name": name}},
        "status": {"conditions": conditions},
    }
