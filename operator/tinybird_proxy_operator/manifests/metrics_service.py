"""The Service by which KEDA finds the pods: it asks every address of its EndpointSlices.

It takes the port of its URL only if it is a port of theirs. The Service in front of the pods does not have the admin
port, and should not: it may be open to the outside.
"""

from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests.desired import Desired, Manifest, metadata


def build(desired: Desired) -> Manifest | None:
    """None unless the resource asks for KEDA. It is headless: only its endpoints matter."""
    autoscaling = desired.proxy.spec.autoscaling
    if autoscaling is None or autoscaling.provider != "KEDA":
        return None
    name = names.metrics_service(desired.proxy.name)
    port = {"name": names.ADMIN_PORT_NAME, "port": names.ADMIN_PORT, "targetPort": names.ADMIN_PORT_NAME}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(desired, name=name),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "selector": names.selector_labels(desired.proxy.name),
            "ports": [{**port, "protocol": "TCP"}],
        },
    }
