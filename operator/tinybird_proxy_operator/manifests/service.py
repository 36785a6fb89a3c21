"""The Service in front of the pods. The admin port is not exposed by it."""

from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests.desired import Desired, Manifest, metadata


def build(desired: Desired) -> Manifest | None:
    """None if the resource wants none."""
    service = desired.proxy.spec.service
    if service.policy == "None":
        return None
    port = {
        "name": names.EVENTS_PORT_NAME,
        "port": service.port,
        "targetPort": names.EVENTS_PORT_NAME,
        "protocol": "TCP",
        "appProtocol": "http",
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(desired, annotations=service.annotations),
        "spec": {"type": service.type, "selector": names.selector_labels(desired.proxy.name), "ports": [port]},
    }
