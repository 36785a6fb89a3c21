"""What tests of the metrics API run on: certificates as a cluster has them, proxies that answer, and all of it running.

Certificates of clients are made here, and not by what is tested.
"""

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.operator.clusters import connection
from yarl import URL

from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.metrics_api.command import serve
from tinybird_proxy_operator.metrics_api.settings import MetricsApiSettings, from_env
from tinybird_proxy_operator.names import API_VERSION, KIND, child_labels
from tinybird_proxy_operator.scaling.targets import METRICS
from tinybird_proxy_operator.serving.connections import Limits
from tinybird_proxy_operator.testing.fake_api import FakeApi, running_api
from tinybird_proxy_operator.testing.fake_reviews import FakeReviews
from tinybird_proxy_operator.testing.field_owners import Object

ENV: Final = {
    "POD_NAMESPACE": "tinybird-system",
    "SERVICE_NAME": "metrics",
    "CLUSTER_ROLE": "operator-metrics-api",
    "CERTIFICATE_SECRET": "operator-metrics-api-certificates",
    "CERTIFICATE_LIFETIME_SECONDS": "3600",
    "CERTIFICATE_OVERLAP_SECONDS": "1",
    "LOG_FORMAT": "console",
}
SERVER_NAME: Final = "metrics.tinybird-system.svc"
GROUP: Final = "/apis/custom.metrics.k8s.io"
ROWS: Final = "tinybird_proxy_buffer_rows"


class ClientCA:
    """A CA for certificates of clients."""

    def __init__(self, name: str = "front-proxy-ca") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        built = self._builder(self._name, self._key).add_extension(x509.BasicConstraints(True, None), critical=True)
        # Go adds these, and CAs that follow each other often have the same name.
        known_by = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        built = built.add_extension(known_by, critical=False)
        self.certificate: str = built.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    def client(self, directory: Path, common_name: str, *, usage: x509.ObjectIdentifier | None = None) -> Path:
        """A file with a client's key and certificate, as kubeadm makes it: a common name, and no other."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        usages = [usage or ExtendedKeyUsageOID.CLIENT_AUTH]
        built = self._builder(subject, key).add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        built = built.add_extension(signed_by, critical=False)
        pem = built.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        path = directory / f"{x509.random_serial_number()}.pem"
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + pem)
        return path

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(hours=1))
        )


def client_context(server_ca: str, certificate: Path | None = None) -> ssl.SSLContext:
    """A client that believes ``server_ca`` alone."""
    context = ssl.create_default_context(cadata=server_ca)
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


def configuration(client_ca: str, **data: str) -> Object:
    """The API server's, as it publishes it."""
    known = {
        "client-ca-file": "for people",
        "requestheader-client-ca-file": client_ca,
        "requestheader-allowed-names": json.dumps(["front-proxy-client"]),
        "requestheader-username-headers": json.dumps(["X-Remote-User"]),
        "requestheader-uid-headers": json.dumps(["X-Remote-Uid"]),
        "requestheader-group-headers": json.dumps(["X-Remote-Group"]),
        "requestheader-extra-headers-prefix": json.dumps(["X-Remote-Extra-"]),
    }
    metadata = {"name": "extension-apiserver-authentication", "namespace": "kube-system"}
    return {"kind": "ConfigMap", "metadata": metadata, "data": {**known, **data}}


def exposition(values: Mapping[str, float]) -> str:
    """A proxy's ``/metrics``, as far as it matters."""
    lines = ["# HELP tinybird_proxy_buffer_rows Rows in the buffer.", "# TYPE tinybird_proxy_buffer_rows gauge"]
    lines += [f"{metric} {value}" for metric, value in values.items()]
    return "\n".join([*lines, 'tinybird_proxy_datasource_rows_accepted_total{datasource="x"} 3.0', ""])


@dataclass(slots=True)
class Proxies:
    """Proxies on addresses of loopback: what each says; None: it hangs."""

    port: int = 0
    said: dict[str, str | None] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)

    def say(self, ip: str, **values: float) -> None:
        """Metrics of the proxy at ``ip``, 0 where nothing is said."""
        self.said[ip] = exposition(
            {metric: values.get(metric.removeprefix("tinybird_proxy_"), 0) for metric in METRICS}
        )

    async def handle(self, request: web.Request) -> web.Response:
        """``/metrics``."""
        transport = request.transport
        ip = str(transport.get_extra_info("sockname")[0]) if transport is not None else ""
        self.asked.append(ip)
        self.headers.append(request.headers)
        text = self.said.get(ip, "")
        if text is None:
            await asyncio.sleep(30)
        return web.Response(text=text)


@asynccontextmanager
async def running_proxies() -> AsyncIterator[Proxies]:
    """On every address of loopback, at one port."""
    proxies, app = Proxies(), web.Application()
    app.router.add_get("/metrics", proxies.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "0.0.0.0", 0).start()  # noqa: S104 - of a test
        proxies.port = runner.addresses[0][1]
        yield proxies
    finally:
        await runner.cleanup()


def proxy_with_pods(api: FakeApi, name: str, ips: list[str], *, namespace: str = "shop") -> None:
    """A TinybirdProxy, its Deployment, and running pods ``<name>-1-<number>``."""
    metadata = {"name": name, "namespace": namespace}
    owner = api.put({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {}})
    for kind, child in (("Deployment", name), ("ReplicaSet", f"{name}-1")):
        owner = api.put({"kind": kind, "metadata": owned(child, name, owner, namespace), "spec": {}})
    for number, ip in enumerate(ips):
        api.put(running_pod(f"{name}-1-{number}", name, owner, ip, namespace=namespace))


def owned(name: str, proxy: str, owner: Object, namespace: str = "shop") -> Object:
    """Metadata of what ``owner`` controls."""
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "controller": True}
    reference |= {key: owner["metadata"][key] for key in ("name", "uid")}
    return {"name": name, "namespace": namespace, "labels": child_labels(proxy), "ownerReferences": [reference]}


def running_pod(name: str, proxy: str, owner: Object, ip: str, *, namespace: str = "shop", **labels: str) -> Object:
    """A pod of ``owner``."""
    metadata = owned(name, proxy, owner, namespace)
    metadata["labels"] |= {key.replace("__", "/").replace("_", "-"): value for key, value in labels.items()}
    containers = [{"name": "proxy", "state": {"running": {}}}]
    status = {"phase": "Running", "podIP": ip, "containerStatuses": containers}
    return {"kind": "Pod", "metadata": metadata, "spec": {}, "status": status}


@dataclass(slots=True)
class Running:
    """A metrics API that runs, and everything around it."""

    api: FakeApi
    reviews: FakeReviews
    proxies: Proxies
    front_proxy: ClientCA
    session: aiohttp.ClientSession
    directory: Path
    stop: asyncio.Event
    port: int = 0
    metrics_port: int = 0

    def server_ca(self) -> str:
        """What the API server knows of us."""
        found = self.api.get("APIService", "v1beta2.custom.metrics.k8s.io", "")
        return base64.b64decode(found["spec"]["caBundle"]).decode()

    def aggregator(self) -> Path:
        """The API server's own certificate."""
        return self.front_proxy.client(self.directory, "front-proxy-client")

    async def ask(
        self,
        path: str,
        *,
        certificate: Path | None = None,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
    ) -> tuple[int, Any]:
        """Status and JSON of an answer over TLS."""
        context = await asyncio.to_thread(client_context, self.server_ca(), certificate)
        async with self.session.request(
            method,
            URL(f"https://127.0.0.1:{self.port}{path}", encoded=True),
            ssl=context,
            server_hostname=SERVER_NAME,
            headers=headers,
        ) as answer:
            assert answer.content_type == "application/json"
            assert answer.headers["Connection"] == "close"
            return answer.status, json.loads(await answer.text() or "null")

    async def as_user(self, name: str, path: str, **groups: str) -> tuple[int, Any]:
        """The same, as the API server asks for somebody."""
        return await self.ask(path, certificate=self.aggregator(), headers={"X-Remote-User": name, **groups})

    async def probe(self, path: str) -> tuple[int, str]:
        """Status and text of the port for metrics and probes."""
        async with self.session.get(f"http://127.0.0.1:{self.metrics_port}{path}") as answer:
            return answer.status, await answer.text()

    async def until_registered(self) -> None:
        """Wait until it has told the API server."""
        async with asyncio.timeout(10):
            while len(self.api.names("APIService")) < 2:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)


def settings(**env: str) -> MetricsApiSettings:
    """As the chart sets them; ports of its own choice."""
    return replace(from_env({**ENV, **env}), port=0, metrics_port=0)


def turned_on(api: FakeApi, front_proxy: ClientCA) -> None:
    """What a cluster and the chart bring along."""
    api.put(configuration(front_proxy.certificate))
    api.put({"kind": "ClusterRole", "metadata": {"name": "operator-metrics-api"}})
    for version in ("v1beta1", "v1beta2"):
        group_version = {"groupVersion": f"custom.metrics.k8s.io/{version}"}
        api.documents[f"{GROUP}/{version}"] = {"kind": "APIResourceList", **group_version}


@asynccontextmanager
async def running(
    directory: Path,
    *,
    unready_s: float = 0.0,
    faults: int = 0,
    env: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[Running]:
    """The whole process but for its signals, before a fake API server that fails so many requests first."""
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(running_api())
        kube: Kube = await stack.enter_async_context(connection(api, directory))
        proxies = await stack.enter_async_context(running_proxies())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        front_proxy = ClientCA()
        turned_on(api, front_proxy)
        if faults:
            api.fail(503, times=faults)
        stop, started = asyncio.Event(), asyncio.Event()
        it = Running(api, FakeReviews(api), proxies, front_proxy, session, directory, stop)

        def note(port: int, metrics_port: int) -> None:
            it.port, it.metrics_port = port, metrics_port
            started.set()

        serving = serve(
            kube,
            settings(**(env or {})),
            stop,
            unready_s=unready_s,
            started=note,
            host="127.0.0.1",
            admin_port=proxies.port,
            limits=limits or Limits(),
        )
        task = asyncio.create_task(serving)
        try:
            async with asyncio.timeout(10):
                await started.wait()
            yield it
        finally:
            stop.set()
            await task
