"""Whose pods there are: by the chain of controllers, pod → ReplicaSet → Deployment → TinybirdProxy, not by labels.

Labels only keep the lists short. A pod that merely looks like a proxy's could otherwise scale somebody else's.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tinybird_proxy_operator.children import controller_uid
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.names import APP, CONTAINER, KIND, NAME_LABEL
from tinybird_proxy_operator.recent import Recent

# A HorizontalPodAutoscaler asks every 15 s, for one metric after the other.
KEEP_S: Final = 2.0
_NAMESPACES_KEPT: Final = 200
_NAMESPACES_AT_ONCE: Final = 4
Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class OurPod:
    """A pod of a proxy's that runs and is to stay. ``proxy``: the name of its TinybirdProxy."""

    uid: str
    name: str
    ip: str
    proxy: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Inventory:
    """What is in a namespace: the labels of its TinybirdProxies by name, and their pods."""

    proxies: Mapping[str, Mapping[str, str]]
    pods: tuple[OurPod, ...]


def take_inventory(
    *,
    proxies: Sequence[Object],
    deployments: Sequence[Object],
    replica_sets: Sequence[Object],
    pods: Sequence[Object],
) -> Inventory:
    """Join the lists of a namespace."""
    names = {proxy["metadata"]["uid"]: proxy["metadata"]["name"] for proxy in proxies}
    of_deployment = {
        each["metadata"]["uid"]: names[owner] for each in deployments if (owner := controller_uid(each)) in names
    }
    of_set = {
        each["metadata"]["uid"]: of_deployment[owner]
        for each in replica_sets
        if (owner := controller_uid(each)) in of_deployment
    }
    ours = [
        OurPod(
            uid=pod["metadata"]["uid"],
            name=pod["metadata"]["name"],
            ip=pod["status"]["podIP"],
            proxy=of_set[owner],
            labels=pod["metadata"].get("labels") or {},
        )
        for pod in pods
        if (owner := controller_uid(pod)) in of_set and _runs(pod)
    ]
    labels = {each["metadata"]["name"]: each["metadata"].get("labels") or {} for each in proxies}
    return Inventory(labels, tuple(sorted(ours, key=lambda pod: pod.name)))


def _runs(pod: Object) -> bool:
    status = pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    return (
        "deletionTimestamp" not in pod["metadata"]
        and status.get("phase") == "Running"
        and bool(status.get("podIP"))
        and any(each.get("name") == CONTAINER and "running" in (each.get("state") or {}) for each in containers)
    )


class Inventories:
    """Asks the API server, four lists a namespace, and remembers for a moment what is in it."""

    def __init__(self, kube: Kube, *, now: Callable[[], float]) -> None:
        self._kube = kube
        self._recent: Recent[str, Inventory] = Recent(
            self._listed, keep_s=KEEP_S, capacity=_NAMESPACES_KEPT, at_once=_NAMESPACES_AT_ONCE, now=now
        )

    async def of(self, namespace: str) -> Inventory:
        """What is in a namespace. Raises ``KubeError``."""
        return await self._recent.get(namespace)

    async def close(self) -> None:
        """Ask no more."""
        await self._recent.close()

    async def _listed(self, namespace: str) -> Inventory:
        labels = {NAME_LABEL: APP}
        proxies, deployments, replica_sets, pods = await asyncio.gather(
            self._kube.list(KIND, namespace, cached=True),
            self._kube.list("Deployment", namespace, labels=labels, cached=True),
            self._kube.list("ReplicaSet", namespace, labels=labels, cached=True),
            self._kube.list("Pod", namespace, labels=labels, cached=True),
        )
        return take_inventory(proxies=proxies, deployments=deployments, replica_sets=replica_sets, pods=pods)
