"""Whose the two APIServices are, and what ours look like. Pure.

There is one server for the whole group in a cluster, and ours is preferred: with one version ours and the other
somebody else's, that one would lose its clients to us. So both are ours, or neither is; what is not ours is never
written to.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tinybird_proxy_operator.metrics_api.api import GROUP, VERSIONS
from tinybird_proxy_operator.names import FIELD_MANAGER, MANAGED_BY_LABEL

SERVICE_PORT: Final = 443
GROUP_PRIORITY: Final = 100
# The greater one is preferred.
VERSION_PRIORITIES: Final = {"v1beta2": 200, "v1beta1": 100}
API_SERVICES: Final = tuple(f"{version}.{GROUP}" for version in VERSIONS)
Object = dict[str, Any]
# As they are, by name; None: there is none.
Lives = Mapping[str, Object | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registrant:
    """Whom the APIServices lead to, and what they go with: the chart's ClusterRole, there while its value is on."""

    namespace: str
    service: str
    cluster_role: str
    cluster_role_uid: str

    def owner(self) -> Object:
        """As an ownerReference."""
        return {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "name": self.cluster_role,
            "uid": self.cluster_role_uid,
        }

    def is_owner_of(self, live: Object) -> bool:
        """Whether an APIService leads to us, and goes with our ClusterRole."""
        uids = [owner.get("uid") for owner in live["metadata"].get("ownerReferences") or []]
        service = (live.get("spec") or {}).get("service") or {}
        its = (service.get("namespace"), service.get("name"))
        return its == (self.namespace, self.service) and self.cluster_role_uid in uids


def api_service(name: str, registrant: Registrant, bundle: str) -> Object:
    """One APIService, as it is to be."""
    version = name.partition(".")[0]
    service = {"namespace": registrant.namespace, "name": registrant.service, "port": SERVICE_PORT}
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {
            "name": name,
            "labels": {MANAGED_BY_LABEL: FIELD_MANAGER},
            "ownerReferences": [registrant.owner()],
        },
        "spec": {
            "group": GROUP,
            "version": version,
            "groupPriorityMinimum": GROUP_PRIORITY,
            "versionPriority": VERSION_PRIORITIES[version],
            "caBundle": base64.b64encode(bundle.encode()).decode(),
            "service": service,
        },
    }


def is_like(live: Object, wanted: Object) -> bool:
    """Whether there is nothing to write."""
    spec, service = wanted["spec"], wanted["spec"]["service"]
    its = live.get("spec") or {}
    return all(its.get(key) == value for key, value in spec.items() if key != "service") and all(
        (its.get("service") or {}).get(key) == value for key, value in service.items()
    )


def others(lives: Lives, registrant: Registrant) -> str | None:
    """Who is in the way, in a sentence; None if nobody is."""
    found = {name: live for name, live in lives.items() if live is not None and not registrant.is_owner_of(live)}
    if not found:
        return None
    owners = ", ".join(f"{name} is {_whose(live)}" for name, live in sorted(found.items()))
    return (
        f"Not registered, because a cluster has one server for {GROUP}: {owners}. It is left untouched. Have proxies"
        " scale by that one (spec.autoscaling.provider), or uninstall it; then this one is registered by itself."
    )


def registered_bundle(lives: Lives, registrant: Registrant) -> str | None:
    """The bundle that the API server knows of us. None if nothing of ours is registered, empty if versions differ."""
    bundles = {
        (live.get("spec") or {}).get("caBundle") or ""
        for live in lives.values()
        if live is not None and registrant.is_owner_of(live)
    }
    if not bundles:
        return None
    try:
        return base64.b64decode(bundles.pop()).decode() if len(bundles) == 1 else ""
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _whose(live: Object) -> str:
    service = (live.get("spec") or {}).get("service")
    if not service:
        return "the API server's own"
    return f"of the Service {service.get('namespace')}/{service.get('name')}"
