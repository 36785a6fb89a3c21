"""Who may reach the pods. Kubelet probes are not subject to it; what the pods may reach is left alone."""

from typing import Any

from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests.desired import Desired, Manifest, metadata


def build(desired: Desired) -> Manifest | None:
    """None if the resource wants none. The admin port is for the operator, its metrics API, and ``metricsFrom``."""
    policy = desired.proxy.spec.network_policy
    if policy.policy == "None":
        return None
    settings = desired.settings
    home = {"matchLabels": {"kubernetes.io/metadata.name": settings.operator_namespace}}
    # No labels would be every pod of that namespace.
    ours = [
        {"namespaceSelector": home, "podSelector": {"matchLabels": dict(labels)}}
        for labels in (settings.operator_pod_labels, settings.metrics_api_pod_labels)
        if labels
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(desired),
        "spec": {
            "podSelector": {"matchLabels": names.selector_labels(desired.proxy.name)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {**_event_clients(desired), "ports": [_tcp(names.EVENTS_PORT)]},
                {"from": [*ours, *policy.metrics_from], "ports": [_tcp(names.ADMIN_PORT)]},
            ],
        },
    }


def _event_clients(desired: Desired) -> dict[str, list[dict[str, Any]]]:
    spec = desired.proxy.spec
    if spec.network_policy.from_peers:
        return {"from": list(spec.network_policy.from_peers)}
    # Whoever asks for a NodePort or a load balancer wants clients from outside, and no namespace selects these.
    outside = spec.service.policy == "Managed" and spec.service.type != "ClusterIP"
    return {} if outside else {"from": [{"namespaceSelector": {}}]}


def _tcp(port: int) -> dict[str, Any]:
    return {"protocol": "TCP", "port": port}
