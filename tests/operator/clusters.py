"""What tests of the operator run on: a fake API server with the real client before it, and proxies that answer.

The controllers of Kubernetes are played by ``Cluster.roll_out``. Time stands still until a test moves it.
"""

import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import pytest
from aiohttp import web
from tests.operator.resources import operator_settings

from tinybird_proxy_operator import kube as kube_module
from tinybird_proxy_operator.events import Events
from tinybird_proxy_operator.kube import AGAIN_AFTER_S, Kube, kubernetes_connection
from tinybird_proxy_operator.names import API_VERSION, KIND, USE_LABEL, selector_labels
from tinybird_proxy_operator.pods import Pods
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.reconcile import Reconciler
from tinybird_proxy_operator.testing.fake_api import FakeApi, running_api
from tinybird_proxy_operator.testing.field_owners import Object

IPS: Final = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
TOKEN_HASH: Final = "69b6bc28"
# So often a read or an apply is sent before the client gives it up.
TRIES: Final = len(AGAIN_AFTER_S) + 1
_P = TypeVar("_P")
_C = TypeVar("_C")


def report(**changes: Any) -> dict[str, Any]:
    """A proxy's ``/status``, all well. Fields of ``buffer`` and of ``token`` by their names, ``destinations`` whole."""
    token = {"hash": TOKEN_HASH, "since": None, "accepted_at": None, "denied_at": None}
    buffer = {"rows": 0, "bytes": 0, "utilisation": 0.0, "oldest_age_s": None, "capacity_rows": 1000}
    return {
        "sentence": "All is well.",
        "buffer": {name: changes.get(name, value) for name, value in buffer.items()},
        "tokens": {
            "mode": "own",
            "clients": {"entries": 1, "hash": changes.get("clients_hash")},
            "tinybird": {name: changes.get(name, value) for name, value in token.items()},
            "candidate": changes.get("candidate"),
        },
        "destinations": changes.get("destinations", []),
    }


def stuck(rows: int, **changes: Any) -> dict[str, Any]:
    """A proxy whose rows are not delivered."""
    sentence = f"Tinybird does not answer, the oldest row waits for {rows} s."
    destination = {"data_source": "clicks", "buffered_rows": rows, "sentence": sentence, "cause": "unreachable"}
    return report(rows=rows, destinations=[destination], **changes)


class Proxies:
    """Proxies on several addresses of loopback, all with one port. Made by ``running_proxies``."""

    def __init__(self) -> None:
        self.port = 0
        self.says: dict[str, Any] = {}
        self.asked: list[str] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """``/status`` of the proxy at the address that was asked."""
        assert request.transport is not None
        ip = request.transport.get_extra_info("sockname")[0]
        self.asked.append(ip)
        said = self.says.get(ip, report())
        if isinstance(said, web.StreamResponse):
            return said
        return web.json_response(said)


@asynccontextmanager
async def running_proxies() -> AsyncIterator[Proxies]:
    """Proxies until the block ends."""
    proxies, app = Proxies(), web.Application()
    app.router.add_get("/status", proxies.handle)
    async with running(app, proxies):
        yield proxies


@asynccontextmanager
async def running(app: web.Application, proxies: Proxies) -> AsyncIterator[None]:
    """``app`` on every address of ``proxies``, until the block ends."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        for ip in IPS:
            site = socket.create_server((ip, proxies.port))
            proxies.port = site.getsockname()[1]
            await web.SockSite(runner, site).start()
        yield
    finally:
        await runner.cleanup()


@dataclass(slots=True)
class Clock:
    """Both clocks."""

    seconds: float = 1000.0

    def now(self) -> float:
        return self.seconds

    def utc_now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.seconds)


@dataclass(slots=True)
class Cluster:
    """The API server, the proxies and a reconciler."""

    api: FakeApi
    kube: Kube
    proxies: Proxies
    session: aiohttp.ClientSession
    clock: Clock
    reconciler: Reconciler = field(init=False)

    def __post_init__(self) -> None:
        self.reconciler = self.operator()

    def operator(self, **env: str) -> Reconciler:
        """An operator that starts now, with these variables."""
        numbers = count(1)
        events = Events(
            self.kube, "operator-1", now=self.clock.now, utc_now=self.clock.utc_now, chance=lambda: f"{next(numbers)}"
        )
        return Reconciler(
            self.kube,
            Pods(self.session, port=self.proxies.port),
            events,
            operator_settings(**env),
            make_token=lambda: f"token-{next(numbers)}",
            utc_now=self.clock.utc_now,
            now=self.clock.now,
        )

    def resource(self, spec: Mapping[str, Any] | None = None, *, name: str = "events", **metadata: Any) -> Object:
        """Write a TinybirdProxy as its author does: status and annotations that are not given stay."""
        old = self.api.get(KIND, name) if name in self.api.names(KIND) else {"metadata": {}}
        kept = {key: value for key, value in old["metadata"].items() if key in ("uid", "annotations", "managedFields")}
        body = {**old, "apiVersion": API_VERSION, "kind": KIND, "spec": dict({"replicas": 2} if spec is None else spec)}
        return self.api.put({**body, "metadata": {"name": name, "namespace": "shop", **kept, **metadata}})

    def secret(
        self, name: str = "tinybird", *, value: str = "dG9rZW4=", key: str = "token", shared: bool = True
    ) -> None:
        """Write a user's Secret."""
        labels = {USE_LABEL: "token"} if shared else {}
        metadata = {"name": name, "namespace": "shop", "labels": labels}
        self.api.put({"kind": "Secret", "metadata": metadata, "data": {key: value}})

    async def reconcile(self, name: str = "events") -> float | None:
        """Reconcile everything, as after an event, until nothing more is to be done at once."""
        self.reconciler.changed(Key("shop", name))
        return await self.look(name)

    async def look(self, name: str = "events") -> float | None:
        """Reconcile because it is time again, without an event, until nothing more is to be done at once."""
        for _ in range(4):
            if (again_s := await self.reconciler.reconcile(Key("shop", name))) != 0.0:
                return again_s
        raise AssertionError("the reconciler does not come to rest")

    async def installed(self, spec: Mapping[str, Any] | None = None, *, name: str = "events", pods: int = 2) -> None:
        """A resource whose pods run."""
        self.resource(spec, name=name)
        await self.reconcile(name)
        self.roll_out(name, pods=pods)
        await self.reconcile(name)

    def roll_out(self, name: str = "events", *, pods: int = 2, first_ip: int = 0, **status: Any) -> None:
        """Do what the controllers do: one ReplicaSet, so many ready pods, and the Deployment's status."""
        deployment = self.api.get("Deployment", name)
        counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), pods)
        seen = {"observedGeneration": deployment["metadata"]["generation"]}
        deployment = self.api.put({**deployment, "status": {**counts, **seen, **status}})
        sets = self.api.put(
            {"kind": "ReplicaSet", "metadata": owned(f"{name}-1", selector_labels(name), deployment), "spec": {}}
        )
        for number in range(pods):
            self.pod(f"{name}-1-{number}", sets, labels=selector_labels(name), ip=IPS[first_ip + number])

    def pod(self, pod: str, owner: Object, *, labels: Mapping[str, str], ip: str, **status: Any) -> None:
        """Write a running pod."""
        ready = {"conditions": [{"type": "Ready", "status": "True"}], "phase": "Running", "podIP": ip}
        self.api.put({"kind": "Pod", "metadata": owned(pod, labels, owner), "spec": {}, "status": {**ready, **status}})

    def status(self, name: str = "events") -> dict[str, Any]:
        """The status of the resource."""
        found: dict[str, Any] = self.api.get(KIND, name)["status"]
        return found

    def condition(self, kind: str, name: str = "events") -> tuple[str, str]:
        """Status and reason of a condition."""
        found = next(each for each in self.status(name)["conditions"] if each["type"] == kind)
        return found["status"], found["reason"]

    def message(self, kind: str, name: str = "events") -> str:
        """The sentence of a condition."""
        return next(str(each["message"]) for each in self.status(name)["conditions"] if each["type"] == kind)

    def told(self) -> list[tuple[str, str, str]]:
        """Type, reason and message of every Event."""
        return [(event["type"], event["reason"], event["message"]) for event in self.api.all("Event")]

    def forget(self) -> None:
        """Begin to count writes anew."""
        self.api.asked.clear()


def owned(name: str, labels: Mapping[str, str], owner: Object) -> Object:
    """Metadata of a child of ``owner``."""
    controller = {"kind": owner["kind"], "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}
    references = [{**controller, "apiVersion": owner["apiVersion"], "controller": True}]
    return {"name": name, "namespace": "shop", "labels": dict(labels), "ownerReferences": references}


@asynccontextmanager
async def connection(api: FakeApi, directory: Path) -> AsyncIterator[Kube]:
    """The real client before the fake server, by KUBECONFIG. It does not wait before it tries again."""
    path = directory / "kubeconfig"
    path.write_text(api.kubeconfig())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        patch.setattr(kube_module, "AGAIN_AFTER_S", (0.0,) * len(AGAIN_AFTER_S))
        async with kubernetes_connection(str(path)) as kube:
            yield kube


@asynccontextmanager
async def running_around(
    proxies: AbstractAsyncContextManager[_P],
    make: Callable[[FakeApi, Kube, _P, aiohttp.ClientSession], _C],
    directory: Path,
) -> AsyncIterator[_C]:
    """The cluster that ``make`` makes of its parts, these proxies among them, until the block ends."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(running_api())
        kube = await stack.enter_async_context(connection(api, directory))
        running = await stack.enter_async_context(proxies)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield make(api, kube, running, session)


@asynccontextmanager
async def running_cluster(directory: Path) -> AsyncIterator[Cluster]:
    """Everything, until the block ends."""

    def make(api: FakeApi, kube: Kube, proxies: Proxies, session: aiohttp.ClientSession) -> Cluster:
        return Cluster(api, kube, proxies, session, Clock())

    async with running_around(running_proxies(), make, directory) as cluster:
        yield cluster
