"""A way in from outside the cluster, for the public port only."""

from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests.desired import Desired, Manifest, metadata


def build(desired: Desired) -> Manifest | None:
    """None unless the resource asks for one and names its host."""
    ingress = desired.proxy.spec.ingress
    if ingress.policy == "None" or not ingress.host:
        return None
    backend = {"service": {"name": desired.proxy.name, "port": {"name": names.EVENTS_PORT_NAME}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    tls = [{"hosts": [ingress.host], "secretName": ingress.tls_secret_name}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": metadata(desired, annotations=ingress.annotations),
        "spec": {
            **({"ingressClassName": ingress.class_name} if ingress.class_name else {}),
            "rules": [{"host": ingress.host, "http": {"paths": [path]}}],
            **({"tls": tls} if ingress.tls_secret_name else {}),
        },
    }
