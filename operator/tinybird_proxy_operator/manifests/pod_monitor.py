"""Tells prometheus-operator to scrape the pods' admin port.

Prometheus must also be let in by ``networkPolicy.metricsFrom``.
"""

from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests.desired import Desired, Manifest, metadata


def build(desired: Desired) -> Manifest | None:
    """None unless the resource asks for it."""
    if desired.proxy.spec.monitoring.pod_monitor == "Disabled":
        return None
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata(desired),
        "spec": {
            "selector": {"matchLabels": names.selector_labels(desired.proxy.name)},
            "podMetricsEndpoints": [{"port": names.ADMIN_PORT_NAME, "path": "/metrics"}],
        },
    }
