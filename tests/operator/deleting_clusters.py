"""A resource that is being deleted: a fake API, proxies that drain, and a clock that may be wrong."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from tests.operator.clusters import EPOCH, Clock, Cluster, running_around
from tests.operator.draining_proxies import Drainable, running_drainable

from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.names import KIND, finalizer
from tinybird_proxy_operator.testing.fake_api import FakeApi
from tinybird_proxy_operator.testing.field_owners import Object

OURS, THEIRS = finalizer(""), "example.com/theirs"
DELETED_AT = "2026-01-01T00:16:40Z"  # what the cluster's clock begins with
RUNNING = {"containerStatuses": [{"name": "proxy", "state": {"running": {}}}]}


@dataclass(slots=True)
class SkewedClock(Clock):
    """A wall clock that may be wrong."""

    skew_s: float = 0.0

    def utc_now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.seconds + self.skew_s)


class Deleting(Cluster):
    """A cluster with proxies that drain."""

    proxies: Drainable
    clock: SkewedClock

    async def installed_and_deleted(
        self, spec: Object | None = None, *, rows: tuple[int, ...] = (), **kept: Any
    ) -> None:
        """A resource with two pods that is being deleted in the background."""
        await self.installed({"replicas": 2, **(spec or {})})
        self.pods_run()
        self.proxies.hold(*rows)
        self.delete(**kept)

    def pods_run(self) -> None:
        """As their node says."""
        for pod in self.api.all("Pod"):
            self.api.put({**pod, "status": {**pod["status"], **RUNNING}})

    def delete(self, *more: str, annotations: dict[str, str] | None = None) -> None:
        """As kubectl does; ``more``: finalizers of Kubernetes."""
        body = self.api.get(KIND, "events")
        metadata = {**body["metadata"], "deletionTimestamp": f"{self.clock.utc_now():%Y-%m-%dT%H:%M:%SZ}"}
        metadata["finalizers"] = [*metadata.get("finalizers", []), *more]
        self.api.put({**body, "metadata": {**metadata, "annotations": annotations or {}}})

    def restart(self) -> None:
        """Another process of the operator."""
        self.reconciler = self.operator()

    def gone(self) -> bool:
        return "events" not in self.api.names(KIND)

    @property
    def finalizers(self) -> list[str]:
        found: list[str] = self.api.get(KIND, "events")["metadata"].get("finalizers", [])
        return found

    @property
    def written(self) -> list[str]:
        """Paths of all writes, but those of Events and of the resource itself."""
        return [path for _, path in self.api.writes if "/events" not in path or "/deployments/" in path]


@asynccontextmanager
async def running_deleting(directory: Path) -> AsyncIterator[Deleting]:

    def make(api: FakeApi, kube: Kube, proxies: Drainable, session: aiohttp.ClientSession) -> Deleting:
        api.put({"kind": "Namespace", "metadata": {"name": "shop"}, "spec": {}})
        return Deleting(api, kube, proxies, session, SkewedClock())

    async with running_around(running_drainable(), make, directory) as cluster:
        yield cluster
