"""A resource that is scaled down: a fake API, controllers as Kubernetes has them, and proxies that drain."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from tests.operator.clusters import IPS, Clock, Cluster, running_around
from tests.operator.draining_proxies import Drainable, running_drainable

from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.names import DELETION_COST_ANNOTATION, DRAINING_LABEL, KIND, selector_labels
from tinybird_proxy_operator.testing.fake_api import FakeApi
from tinybird_proxy_operator.testing.field_owners import Object

A, B, C = (f"events-1-{number}" for number in range(3))
RUNNING = {"containerStatuses": [{"name": "proxy", "state": {"running": {}}}]}


class Scaled(Cluster):
    """A cluster whose controllers and kubelet can be let do their part."""

    proxies: Drainable

    async def with_pods(self, *rows: int, **spec: Any) -> None:
        """Three pods that run and hold so many rows."""
        await self.installed({"replicas": 3, **spec}, pods=3)
        self.proxies.token = self.admin_token()
        self.proxies.hold(*rows)
        self.kubernetes()
        await self.reconcile()
        self.forget()
        self.proxies.asked.clear()

    def admin_token(self) -> str:
        return base64.b64decode(self.api.get("Secret", "events-admin")["data"]["token"]).decode()

    def scale(self, replicas: int, **spec: Any) -> None:
        """As an autoscaler does, or an author."""
        body = self.api.get(KIND, "events")
        self.api.put({**body, "spec": {**body["spec"], "replicas": replicas, **spec}})

    def ip(self, pod: str) -> str:
        return str(self.api.get("Pod", pod)["status"]["podIP"])

    def set_ready(self, pod: str, ready: bool, **status: Any) -> None:
        found = self.api.get("Pod", pod)
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        self.api.put({**found, "status": {**found["status"], **RUNNING, **status, "conditions": conditions}})

    def kubelet(self) -> None:
        """Every pod is ready, but one that drains."""
        for pod in self.pods():
            self.set_ready(pod, not self.proxies.buffers[self.ip(pod)].draining)

    def kubernetes(self) -> None:
        """The kubelet's part, and that of the controllers."""
        self.kubelet()
        self.controllers()

    def controllers(self) -> None:
        """As many pods as the Deployment asks, by Kubernetes' own order, and what is told of them."""
        deployment = self.api.get("Deployment", "events")
        wanted = deployment["spec"]["replicas"]
        pods = sorted((self.api.get("Pod", pod) for pod in self.pods()), key=_order)
        for pod in pods[: max(0, len(pods) - wanted)]:
            self.api.remove("Pod", pod["metadata"]["name"])
        self.replica_set(wanted)
        names = [f"events-1-{number}" for number in range(3)]
        for name in [name for name in names if name not in self.pods()][: max(0, wanted - len(self.pods()))]:
            ip = next(ip for ip in IPS if ip not in [self.ip(pod) for pod in self.pods()])
            self.pod(name, self.api.get("ReplicaSet", "events-1"), labels=selector_labels("events"), ip=ip, **RUNNING)
        ready = sum(_is_ready(self.api.get("Pod", pod)) for pod in self.pods())
        counts = {"replicas": len(self.pods()), "updatedReplicas": len(self.pods())}
        counts |= {"readyReplicas": ready, "availableReplicas": ready}
        seen = {"observedGeneration": self.api.get("Deployment", "events")["metadata"]["generation"]}
        self.api.put({**self.api.get("Deployment", "events"), "status": {**counts, **seen}})

    def replica_set(self, replicas: int) -> None:
        """What it is to have, as its controller has seen."""
        found = self.api.put({**self.api.get("ReplicaSet", "events-1"), "spec": {"replicas": replicas}})
        self.api.put({**found, "status": {"observedGeneration": found["metadata"]["generation"]}})

    def pods(self) -> list[str]:
        return sorted(self.api.names("Pod"))

    def labelled(self) -> list[str]:
        pods = [self.api.get("Pod", pod)["metadata"] for pod in self.pods()]
        return [pod["name"] for pod in pods if DRAINING_LABEL in (pod.get("labels") or {})]

    def draining(self) -> list[str]:
        return [pod for pod in self.pods() if self.proxies.buffers[self.ip(pod)].draining]

    @property
    def replicas(self) -> int:
        return int(self.api.get("Deployment", "events")["spec"]["replicas"])

    async def turn(self, *, seconds: float = 1.0) -> float | None:
        """A look, and then time in which everybody else does their part."""
        again_s = await self.look()
        self.kubernetes()
        self.clock.seconds += seconds
        return again_s

    def conditions(self) -> list[str]:
        return [each["type"] for each in self.status()["conditions"]]

    def reasons(self) -> list[str]:
        return [reason for kind, reason, _ in self.told() if kind == "Warning"]


def _is_ready(pod: Object) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"]["conditions"])


def _order(pod: Object) -> tuple[Any, ...]:
    """Who goes first."""
    annotations = pod["metadata"].get("annotations") or {}
    cost = int(annotations.get(DELETION_COST_ANNOTATION, "0"))
    return pod["status"]["phase"] != "Pending", _is_ready(pod), cost


@asynccontextmanager
async def running_scaled(directory: Path) -> AsyncIterator[Scaled]:
    """Everything, until the block ends."""

    def make(api: FakeApi, kube: Kube, proxies: Drainable, session: aiohttp.ClientSession) -> Scaled:
        api.put({"kind": "Namespace", "metadata": {"name": "shop"}, "spec": {}})
        return Scaled(api, kube, proxies, session, Clock())

    async with running_around(running_drainable(), make, directory) as cluster:
        yield cluster
