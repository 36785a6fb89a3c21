"""What is asked, and the JSON that answers it: discovery, values, and every refusal as a ``Status``. Pure.

    /apis                                                                     APIGroupList
    /apis/custom.metrics.k8s.io                                               APIGroup
    /apis/custom.metrics.k8s.io/VERSION                                       APIResourceList; the aggregator's probe
    …/namespaces/NAMESPACE/pods/NAME or */METRIC?labelSelector=               a value for each pod
    …/namespaces/NAMESPACE/tinybirdproxies.tinybird-proxy.io/NAME or */METRIC one value for all pods of a TinybirdProxy

There is nothing else: no OpenAPI, no metrics of other kinds. Nobody is ever answered with anything but JSON.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import unquote

from tinybird_proxy_operator.metrics_api.selectors import Selector, parse
from tinybird_proxy_operator.names import GROUP as PROXY_GROUP
from tinybird_proxy_operator.names import PLURAL
from tinybird_proxy_operator.scaling.targets import METRICS

GROUP: Final = "custom.metrics.k8s.io"
# The preferred one first.
VERSIONS: Final = ("v1beta2", "v1beta1")
PODS: Final = "pods"
PROXIES: Final = f"{PLURAL}.{PROXY_GROUP}"
ALL: Final = "*"
_REASONS: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    500: "InternalError",
    503: "ServiceUnavailable",
}
Document = dict[str, Any]


class Refused(Exception):
    """The answer is a ``Status`` with this code and sentence."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    def status(self) -> Document:
        """As JSON."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": _REASONS[self.code],
            "code": self.code,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricQuery:
    """Values that somebody wants. ``name`` may be ``*``: then ``selector`` says of which."""

    version: str
    namespace: str
    resource: str
    name: str
    metric: str
    selector: Selector

    def __str__(self) -> str:
        return f"{self.metric} of {self.resource}/{self.name} in {self.namespace}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One value of one object."""

    kind: str
    api_version: str
    namespace: str
    name: str
    value: int
    at: datetime


def parts_of(raw_path: str) -> tuple[str, ...]:
    """The parts of a path as it was sent: decoded after it is split, as ``%2F`` is no slash."""
    return tuple(unquote(part) for part in raw_path.strip("/").split("/"))


def find(parts: Sequence[str], query: Mapping[str, str]) -> Document | MetricQuery:
    """The document at a path, or the values that it asks for. Raises ``Refused``."""
    match parts:
        case ["apis"]:
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group()]}
        case ["apis", group] if group == GROUP:
            return {"kind": "APIGroup", "apiVersion": "v1", **_group()}
        case ["apis", group, version] if group == GROUP and version in VERSIONS:
            return _resources(version)
        case ["apis", group, version, "namespaces", namespace, resource, name, metric] if (
            group == GROUP and version in VERSIONS and resource in (PODS, PROXIES) and metric in METRICS
        ):
            if query.get("metricLabelSelector", "").strip():
                raise Refused(404, f"{metric} has no labels, so none of it matches metricLabelSelector")
            try:
                selector = parse(query.get("labelSelector", ""))
            except ValueError as error:
                raise Refused(400, f"labelSelector cannot be read: {error}") from error
            return MetricQuery(
                version=version,
                namespace=namespace,
                resource=resource,
                name=name,
                metric=metric,
                selector=selector,
            )
    raise Refused(404, "the server could not find the requested resource")


def metric_value_list(version: str, metric: str, values: Iterable[Value]) -> Document:
    """The answer to a query, in the shape of a version."""
    items = []
    for each in values:
        described = {
            "kind": each.kind,
            "namespace": each.namespace,
            "name": each.name,
            "apiVersion": each.api_version,
        }
        named: Document = {"metricName": metric, "selector": None}
        if version == "v1beta2":
            named = {"metric": {"name": metric, "selector": None}}
        at = each.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        items.append({"describedObject": described, **named, "timestamp": at, "value": str(each.value)})
    return {"kind": "MetricValueList", "apiVersion": f"{GROUP}/{version}", "metadata": {}, "items": items}


def _group() -> Document:
    versions = [{"groupVersion": f"{GROUP}/{version}", "version": version} for version in VERSIONS]
    return {"name": GROUP, "versions": versions, "preferredVersion": versions[0]}


def _resources(version: str) -> Document:
    resources = [
        {
            "name": f"{resource}/{metric}",
            "singularName": "",
            "namespaced": True,
            "kind": "MetricValueList",
            "verbs": ["get"],
        }
        for resource in (PODS, PROXIES)
        for metric in METRICS
    ]
    group_version = f"{GROUP}/{version}"
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}
