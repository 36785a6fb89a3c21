"""Which CA the API server knows the webhook by. Pure.

The MutatingWebhookConfiguration is the chart's; nothing but the CA in it is ours, in the entries that lead to us.
"""

import base64
import binascii
from collections.abc import Iterator
from typing import Any, Final

KIND: Final = "MutatingWebhookConfiguration"
Object = dict[str, Any]


def owner(live: Object) -> Object:
    """The configuration as an ownerReference: what goes with it is not there while the chart's value is off."""
    metadata = live["metadata"]
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": KIND,
        "name": metadata["name"],
        "uid": metadata["uid"],
    }


def registered_bundle(live: Object, namespace: str, service: str) -> str | None:
    """The CAs that the API server knows us by. None if there are none at all, empty if entries differ."""
    bundles = {entry["clientConfig"].get("caBundle") or "" for entry in _ours(live, namespace, service)}
    if bundles <= {""}:
        return None
    try:
        return base64.b64decode(bundles.pop()).decode() if len(bundles) == 1 else ""
    except (binascii.Error, UnicodeDecodeError):
        return ""


def with_bundle(live: Object, namespace: str, service: str, bundle: str) -> Object:
    """What is applied, so that the API server knows us by these CAs: no other field. Raises ``ValueError``."""
    encoded = base64.b64encode(bundle.encode()).decode()
    entries = [
        {"name": entry["name"], "clientConfig": {"caBundle": encoded}} for entry in _ours(live, namespace, service)
    ]
    name = live["metadata"]["name"]
    if not entries:
        raise ValueError(f"no entry of the {KIND} {name} leads to the Service {namespace}/{service}")
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": KIND,
        "metadata": {"name": name},
        "webhooks": entries,
    }


def _ours(live: Object, namespace: str, service: str) -> Iterator[Object]:
    for entry in live.get("webhooks") or []:
        its = (entry.get("clientConfig") or {}).get("service") or {}
        if (its.get("namespace"), its.get("name")) == (namespace, service):
            yield entry
