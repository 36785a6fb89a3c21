"""The generated Secrets, as they are created if absent: apps and pods hold what is in them. See ``rotation``, too.

They do not carry the label that lets a Secret of a user's be mounted: no other resource may send them anywhere.
"""

import base64
from collections.abc import Mapping
from typing import Any, Final

from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests.desired import Desired, Manifest, metadata
from tinybird_proxy_operator.rotation import ROTATE_ANNOTATION, ROTATED_FOR_ANNOTATION
from tinybird_proxy_operator.spec import Proxy

# On a client Secret without an owner: NAMESPACE/NAME of the resource that it outlives, and of the one that may use it.
RETAINED_FOR_ANNOTATION: Final = f"{names.GROUP}/retained-for"


def client_secret(desired: Desired, token: str) -> Manifest:
    """``token`` for apps to send, and the list of what the proxy accepts, where it goes by the Secret's name.

    One that is to outlive its resource has no owner.
    """
    proxy, name = desired.proxy, names.client_secret(desired.proxy.name)
    accepted = f"{token} name={name}\n"
    manifest = _secret(desired, name, {names.CLIENT_TOKEN_KEY: token, names.CLIENT_ACCEPTED_KEY: accepted})
    annotations = {}
    if asked := proxy.annotations.get(ROTATE_ANNOTATION):
        annotations[ROTATED_FOR_ANNOTATION] = asked  # what is new need not be rotated
    if proxy.spec.clients.secret_deletion_policy == "Retain":  # noqa: S105 - no password
        annotations[RETAINED_FOR_ANNOTATION] = _retained_for(proxy)
        del manifest["metadata"]["ownerReferences"]
    if annotations:
        manifest["metadata"]["annotations"] = annotations
    return manifest


def is_retained_for(live: Mapping[str, Any], proxy: Proxy) -> bool:
    """Whether ``live`` is a client Secret that an operator made and kept for a resource of this name and namespace.

    Nothing controls such a Secret, and it says for which resource it is: a stranger's does not, nor does a copy of ours
    in another namespace or under another name.
    """
    found = live["metadata"]
    annotations, labels = found.get("annotations") or {}, found.get("labels") or {}
    return (
        found["name"] == names.client_secret(proxy.name)
        and not any(owner.get("controller") for owner in found.get("ownerReferences") or [])
        and annotations.get(RETAINED_FOR_ANNOTATION) == _retained_for(proxy)
        and labels.get(names.MANAGED_BY_LABEL) == names.FIELD_MANAGER
        and labels.get(names.PROXY_LABEL) == proxy.name
    )


def _retained_for(proxy: Proxy) -> str:
    return f"{proxy.namespace}/{proxy.name}"


def admin_secret(desired: Desired, token: str) -> Manifest:
    """``token`` for the actions of the pods' admin port."""
    return _secret(desired, names.admin_secret(desired.proxy.name), {names.ADMIN_TOKEN_KEY: token})


def _secret(desired: Desired, name: str, values: dict[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(desired, name=name),
        "type": "Opaque",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
    }
