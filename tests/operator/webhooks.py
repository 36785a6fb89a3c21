"""What tests of the webhook run on: an API server with TinybirdProxies that give sidecars, and all of it running."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import aiohttp
from tests.operator.clusters import connection
from tests.operator.injection_pods import SIDECAR, patched
from tests.operator.metrics_apis import client_context

from tinybird_proxy_operator.names import API_VERSION, KIND
from tinybird_proxy_operator.serving.connections import Limits
from tinybird_proxy_operator.testing.fake_api import FakeApi, running_api
from tinybird_proxy_operator.testing.field_owners import Object
from tinybird_proxy_operator.webhook.command import serve
from tinybird_proxy_operator.webhook.registration import KIND as CONFIGURATION_KIND
from tinybird_proxy_operator.webhook.server import LIMITS, PATH
from tinybird_proxy_operator.webhook.settings import WebhookSettings, from_env

ENV: Final = {
    "POD_NAMESPACE": "tinybird-system",
    "SERVICE_NAME": "webhook",
    "WEBHOOK_CONFIGURATION": "operator-webhook",
    "CERTIFICATE_SECRET": "operator-webhook-certificates",
    "CERTIFICATE_LIFETIME_SECONDS": "3600",
    "CERTIFICATE_OVERLAP_SECONDS": "1",
    "LOG_FORMAT": "console",
}
SERVER_NAME: Final = "webhook.tinybird-system.svc"
CONFIGURATION: Final = ENV["WEBHOOK_CONFIGURATION"]
ENTRIES: Final = ("labelled-pods.tinybird-proxy.io", "labelled-namespaces.tinybird-proxy.io")


def settings(**env: str) -> WebhookSettings:
    """As the chart sets them; ports of its own choice."""
    return replace(from_env({**ENV, **env}), port=0, metrics_port=0)


def configuration() -> Object:
    """As the chart makes it, as far as it matters: without a CA."""
    service = {"namespace": "tinybird-system", "name": "webhook", "path": PATH}
    entries = [{"name": name, "clientConfig": {"service": service}, "sideEffects": "None"} for name in ENTRIES]
    return {"kind": CONFIGURATION_KIND, "metadata": {"name": CONFIGURATION}, "webhooks": entries}


def bundles(api: FakeApi) -> list[str]:
    """What the API server knows the webhook by, for each entry."""
    entries = api.get(CONFIGURATION_KIND, CONFIGURATION, "")["webhooks"]
    return [base64.b64decode(entry["clientConfig"].get("caBundle", "")).decode() for entry in entries]


def resource(name: str = "events", sidecar: Object | None = SIDECAR) -> Object:
    """A TinybirdProxy that gives sidecars; None: not yet."""
    metadata = {"name": name, "namespace": "shop"}
    status = {} if sidecar is None else {"sidecar": sidecar}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": metadata,
        "spec": {"mode": "Sidecar"},
        "status": status,
    }


def namespace(**labels: str) -> Object:
    """The one that pods are made in."""
    return {"kind": "Namespace", "metadata": {"name": "shop", "labels": labels}}


def review(pod: Any, *, uid: str = "705ab4f5", in_namespace: str = "shop", **request: Any) -> Object:
    """What the API server sends."""
    asked = {
        "uid": uid,
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "namespace": in_namespace,
        "operation": "CREATE",
        "userInfo": {"username": "somebody", "groups": ["system:authenticated"]},
        "object": pod,
        "oldObject": None,
        "dryRun": False,
        "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
    }
    return {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": {**asked, **request}}


def made_of(pod: Object, answer: Object) -> Object:
    """The pod as the API server goes on with it."""
    response = answer["response"]
    assert response["allowed"] is True
    if "patch" not in response:
        assert "patchType" not in response
        return pod
    assert response["patchType"] == "JSONPatch"
    return patched(pod, json.loads(base64.b64decode(response["patch"])))


@dataclass(slots=True)
class Running:
    """A webhook that runs, and the API server that it asks."""

    api: FakeApi
    session: aiohttp.ClientSession
    stop: asyncio.Event
    port: int = 0
    metrics_port: int = 0
    server_ca: str | None = None

    async def send(self, body: bytes, *, path: str = PATH, method: str = "POST", **headers: str) -> tuple[int, Any]:
        """Status and JSON of an answer over TLS."""
        context = await asyncio.to_thread(client_context, self.server_ca or bundles(self.api)[0])
        async with self.session.request(
            method,
            f"https://127.0.0.1:{self.port}{path}",
            data=io.BytesIO(body),
            ssl=context,
            server_hostname=SERVER_NAME,
            headers={"Content-Type": "application/json", **headers},
        ) as answer:
            assert answer.headers["Connection"] == "close"
            return answer.status, json.loads(await answer.text())

    async def ask(self, document: Object) -> Object:
        """The answer to a review."""
        status, answer = await self.send(json.dumps(document).encode())
        assert status == 200
        assert (answer["kind"], answer["apiVersion"]) == ("AdmissionReview", "admission.k8s.io/v1")
        assert answer["response"]["uid"] == document["request"]["uid"]
        assert isinstance(answer, dict)
        return answer

    async def probe(self, path: str) -> tuple[int, str]:
        """Status and text of the port for metrics and probes."""
        async with self.session.get(f"http://127.0.0.1:{self.metrics_port}{path}") as answer:
            return answer.status, await answer.text()

    async def until(self, path: str, status: int) -> str:
        """Wait until a probe answers so. Returns its text."""
        async with asyncio.timeout(10):
            while True:
                answered, text = await self.probe(path)
                if answered == status:
                    return text
                await asyncio.sleep(0.01)

    async def until_registered(self) -> None:
        """Wait until the API server knows its CA."""
        async with asyncio.timeout(10):
            while not all(bundles(self.api)):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running(
    directory: Path,
    *,
    unready_s: float = 0.0,
    faults: int = 0,
    env: Mapping[str, str] | None = None,
    limits: Limits = LIMITS,
) -> AsyncIterator[Running]:
    """The whole process but for its signals, before a fake API server that fails so many requests first."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(running_api())
        kube = await stack.enter_async_context(connection(api, directory))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        for found in (configuration(), resource(), resource("waiting", None), namespace()):
            api.put(found)
        if faults:
            api.fail(503, times=faults)
        stop, started = asyncio.Event(), asyncio.Event()
        it = Running(api, session, stop)

        def note(port: int, metrics_port: int) -> None:
            it.port, it.metrics_port = port, metrics_port
            started.set()

        serving = serve(
            kube, settings(**(env or {})), stop, unready_s=unready_s, started=note, host="127.0.0.1", limits=limits
        )
        task = asyncio.create_task(serving)
        try:
            async with asyncio.timeout(10):
                await started.wait()
            yield it
        finally:
            stop.set()
            await task
