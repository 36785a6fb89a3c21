"""The custom metrics API from outside."""

import json
from typing import Any, Final

from tests.e2e.kubectl import Namespace, run

APIS: Final = ("v1beta1.custom.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io")
SERVICE: Final = "tinybird-proxy-operator-metrics-api"
METRIC: Final = "tinybird_proxy_buffer_rows"


def figures(namespace: Namespace, metric: str = METRIC, *, version: str = "v1beta2") -> str:
    """The path at which the pods of a namespace tell a metric, as the HPA asks for it."""
    return f"/apis/custom.metrics.k8s.io/{version}/namespaces/{namespace.name}/pods/%2A/{metric}"


def values(namespace: Namespace, metric: str = METRIC, *, version: str = "v1beta2") -> dict[str, int]:
    """What each pod tells. Raises ``CommandFailed``."""
    found = json.loads(run("kubectl", "get", "--raw", figures(namespace, metric, version=version)))
    return {item["describedObject"]["name"]: int(item["value"]) for item in found["items"]}


def registrations() -> dict[str, dict[str, Any]]:
    """Both APIServices of the group, those that exist."""
    found = json.loads(run("kubectl", "get", "apiservices", "--output", "json"))["items"]
    return {each["metadata"]["name"]: each for each in found if each["metadata"]["name"] in APIS}


def available() -> bool:
    """Whether the API server finds both versions."""

    def is_available(service: dict[str, Any]) -> bool:
        conditions = service.get("status", {}).get("conditions", [])
        return any(each["type"] == "Available" and each["status"] == "True" for each in conditions)

    found = registrations()
    return len(found) == len(APIS) and all(map(is_available, found.values()))
