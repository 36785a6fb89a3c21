"""``tinybird-proxy-operator doctor NAMESPACE/NAME``: reads the resource and what belongs to it, and prints. Thin.

It writes nothing, and needs no more than the operator's own rights; inside of the operator's pod it has those, its
settings and the pods' addresses. Elsewhere it says what it could not see.
"""

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import click
import msgspec

from tinybird_proxy.health import duration
from tinybird_proxy_operator import manifests
from tinybird_proxy_operator.children import is_ours
from tinybird_proxy_operator.credentials import generates_client_token, read_headers, read_token
from tinybird_proxy_operator.doctor import (
    Answer,
    Diagnosis,
    Facts,
    Level,
    PodSeen,
    SecretSeen,
    diagnose,
    read_answer,
)
from tinybird_proxy_operator.errors import KubeError, NotFound, SettingsError, SpecError
from tinybird_proxy_operator.kube import Kube, Object, kubernetes_connection
from tinybird_proxy_operator.manifests import Desired
from tinybird_proxy_operator.manifests.secrets import is_retained_for
from tinybird_proxy_operator.names import ADMIN_PORT, INJECT_LABEL, KIND, admin_secret, client_secret
from tinybird_proxy_operator.pods import Pods
from tinybird_proxy_operator.settings import OperatorSettings, from_env
from tinybird_proxy_operator.sidecar_pods import admin_port_of, candidates, namespace_labels
from tinybird_proxy_operator.sidecars.app_pods import AppPod, asking, has_ended
from tinybird_proxy_operator.sidecars.injection import Sidecar, chosen
from tinybird_proxy_operator.spec import HeadersKey, Proxy, parse, without_spec
from tinybird_proxy_operator.workloads import pods_of

PROBLEMS_STATUS: Final = 1
UNREADABLE_STATUS: Final = 2
_PODS_ASKED_AT_ONCE: Final = 20
_EVENTS_PER_POD: Final = 2
TABLE_MAX_PODS: Final = 50
_RESOURCE: Final = re.compile(r"([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)/([a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?)")
_STYLES: Final = {Level.PROBLEM: "bold red", Level.UNKNOWN: "bold yellow", Level.NOTE: "bold green"}
_T = TypeVar("_T")


@click.command()
@click.argument("resource", metavar="NAMESPACE/NAME")
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="For people, or machines."
)
def doctor(resource: str, output: str) -> None:
    """Why a TinybirdProxy is not ready, which token its pods use, and what would be lost if it were deleted now.

    Nothing is changed. Run it in the operator's pod (kubectl exec), where its pods can be reached.

    Exit status: 0 healthy, 1 somebody has to look, 2 it could not be read.
    """
    match = _RESOURCE.fullmatch(resource)
    if match is None:
        raise click.BadParameter(
            f"{resource!r} is not NAMESPACE/NAME, such as shop/events.", param_hint="NAMESPACE/NAME"
        )
    settings, problem = settings_from(os.environ)
    if not settings and not os.environ.get("KUBERNETES_SERVICE_HOST") and not _has_kubeconfig(os.environ):
        _end("There is no cluster to ask: neither is this a pod, nor does KUBECONFIG or ~/.kube/config name a file.")
    try:
        diagnosis = asyncio.run(examine(match[1], match[2], settings=settings, not_known=problem))
    except KubeError as error:
        _end(f"{resource} could not be read: {error}. See that the API server answers, and your rights there.")
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(diagnosis), indent=2).decode())
    else:
        show(diagnosis)
    sys.exit(0 if diagnosis.healthy else PROBLEMS_STATUS)


def settings_from(env: Mapping[str, str]) -> tuple[OperatorSettings | None, list[str]]:
    """The operator's settings, where this is its pod; else what is not known without them."""
    try:
        return from_env(env), []
    except SettingsError:
        return None, [
            "The operator's settings (allowed lists, controllerClass, watchNamespaces): this is not its pod. What it"
            " refuses of the spec is taken from the status."
        ]


async def examine(
    namespace: str, name: str, *, settings: OperatorSettings | None, not_known: Sequence[str] = ()
) -> Diagnosis:
    """Connect, read, judge. Raises ``KubeError`` if the resource itself cannot be read."""
    async with (
        kubernetes_connection(os.environ.get("KUBECONFIG")) as kube,
        aiohttp.ClientSession(trust_env=False) as session,
    ):
        reader = Reader(kube, session, settings, port=ADMIN_PORT, not_known=list(not_known))
        return diagnose(await reader.read(namespace, name))


@dataclass(slots=True)
class Reader:
    """Reads everything; what it may not read is told in ``not_known``, and is no error."""

    kube: Kube
    session: aiohttp.ClientSession
    settings: OperatorSettings | None
    port: int
    not_known: list[str] = field(default_factory=list)

    async def read(self, namespace: str, name: str) -> Facts:
        """Raises ``KubeError`` if not even the resource can be read."""
        body = await self.kube.find(KIND, namespace, name)
        if body is None:
            return await self._missing(namespace, name)
        try:
            proxy = parse(body)
        except SpecError:
            proxy = without_spec(body)
        if proxy.spec.mode == "Sidecar":
            return await self._sidecars(proxy, body)
        live, live_known = await self._try("The Deployment", self.kube.find("Deployment", namespace, name))
        ours = live if live is not None and is_ours(live, proxy) else None
        pods: list[PodSeen] | None = []
        if ours is not None:
            pods, _ = await self._try("The pods", self._pods(proxy, ours))
        elif not live_known:
            pods = None
        secrets, token_hash = await self._secrets(proxy)
        return Facts(
            namespace=namespace,
            name=name,
            body=body,
            settings=self.settings,
            apps=[app for _, app in await self._apps(namespace, name, None) or ()],
            deployment=ours,
            deployment_known=live_known,
            taken=await self._taken(proxy, live),
            pods=pods,
            secrets=secrets,
            expected_token_hash=token_hash,
            not_known=self.not_known,
        )

    async def _sidecars(self, proxy: Proxy, body: Object) -> Facts:
        """Mode Sidecar: the pods are the apps', and there is nothing else."""
        secrets, token_hash = await self._secrets(proxy)
        found = await self._apps(proxy.namespace, proxy.name, (body.get("status") or {}).get("sidecar"))
        pods: list[PodSeen] | None = None
        if found is not None:
            with_one = [
                PodSeen(pod=pod, answer=None, app=app, admin_port=admin_port_of(pod, proxy))
                for pod, app in found
                if app.facts is not None
            ]
            pods = await self._asked(proxy.namespace, with_one)
        astray, _ = await self._try("Pods that ask for others", self._astray(proxy.namespace))
        return Facts(
            namespace=proxy.namespace,
            name=proxy.name,
            body=body,
            settings=self.settings,
            pods=pods,
            apps=None if found is None else [app for _, app in found],
            astray=astray or {},
            secrets=secrets,
            expected_token_hash=token_hash,
            not_known=self.not_known,
        )

    async def _apps(self, namespace: str, name: str, sidecar: Sidecar | None) -> list[tuple[Object, AppPod]] | None:
        """The pods that ask for the sidecar of ``name`` or have it; None: they could not be listed."""

        async def read() -> list[tuple[Object, AppPod]]:
            labels = await namespace_labels(self.kube, namespace)
            pods = await candidates(self.kube, namespace, name, labels)
            apps = asking(pods, name=name, namespace_labels=labels, sidecar=sidecar, reports={})
            by_uid = {pod["metadata"]["uid"]: pod for pod in pods}
            return [(by_uid[app.uid], app) for app in apps]

        found, _ = await self._try("The pods that ask for a sidecar", read())
        return found

    async def _astray(self, namespace: str) -> dict[str, list[str]]:
        """Pods whose own label names a resource that does not exist, by that name."""
        there = {found["metadata"]["name"] for found in await self.kube.list(KIND, namespace)}
        found: dict[str, list[str]] = {}
        for pod in await self.kube.list("Pod", namespace, labels={INJECT_LABEL: None}, cached=True):
            asked = chosen(pod["metadata"].get("labels"), None)
            if asked is not None and asked not in there and not has_ended(pod):
                found.setdefault(asked, []).append(pod["metadata"]["name"])
        return found

    async def _missing(self, namespace: str, name: str) -> Facts:
        try:
            there = await self.kube.list(KIND, namespace)
        except NotFound:
            return Facts(namespace=namespace, name=name, body=None, kind_known=False)
        others = sorted(found["metadata"]["name"] for found in there)
        apps = [app for _, app in await self._apps(namespace, name, None) or ()]
        return Facts(namespace=namespace, name=name, body=None, others=others, apps=apps, not_known=self.not_known)

    async def _try(self, what: str, reading: Awaitable[_T]) -> tuple[_T | None, bool]:
        """What was read, and whether it could be."""
        try:
            return await reading, True
        except KubeError as error:
            self.not_known.append(f"{what}: {error}.")
            return None, False

    async def _secrets(self, proxy: Proxy) -> tuple[list[SecretSeen], str | None]:
        """The Secrets that the spec names, and the hash of the token for Tinybird."""
        refs = {
            "spec.tinybird.tokenSecretRef": proxy.spec.tinybird.token_secret_ref,
            "spec.clients.tokenSecretRef": proxy.spec.clients.token_secret_ref,
            "spec.telemetry.otlpHeadersSecretRef": proxy.spec.telemetry.otlp_headers_secret_ref,
        }
        seen, token_hash = [], None
        for where, ref in refs.items():
            if ref is None:
                continue
            token, _ = await self._try(f"Secret {ref.name}", read_token(self.kube, proxy.namespace, ref))
            if token is None:
                continue
            # Its values stay in here.
            secret, _ = await self._try(f"Secret {ref.name}", self.kube.find("Secret", proxy.namespace, ref.name))
            immutable, optional = secret is not None and secret.get("immutable") is True, isinstance(ref, HeadersKey)
            problem = token.problem
            if optional:
                problem, _ = await self._try(f"Secret {ref.name}", read_headers(self.kube, proxy))
            seen.append(
                SecretSeen(
                    field=where, name=ref.name, key=ref.key, problem=problem, immutable=immutable, optional=optional
                )
            )
            if where == "spec.tinybird.tokenSecretRef":
                token_hash = token.hash
        return seen, token_hash

    async def _taken(self, proxy: Proxy, live: Object | None) -> list[str]:
        """What has a name that a child of ours is to have, and is somebody else's. Without settings: the Deployment."""
        taken = [f"Deployment {proxy.name}"] if live is not None and not is_ours(live, proxy) else []
        settings = self.settings
        if settings is None or proxy.spec.controller_class != settings.controller_class:
            return taken
        try:
            built = manifests.build(Desired(proxy=proxy, replicas=proxy.spec.replicas or 0, settings=settings))
        except SpecError:
            return taken
        wanted = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in built]
        wanted += [("Secret", admin_secret(proxy.name))]
        if generates_client_token(proxy):
            wanted += [("Secret", client_secret(proxy.name))]
        for kind, name in wanted:
            if kind == "Deployment" or (kind == "PodMonitor" and not settings.pod_monitors):
                continue
            found, _ = await self._try(f"{kind} {name}", self.kube.find(kind, proxy.namespace, name))
            if found is not None and not is_ours(found, proxy) and not is_retained_for(found, proxy):
                taken.append(f"{kind} {name}")
        return taken

    async def _pods(self, proxy: Proxy, deployment: Object) -> list[PodSeen]:
        """Our pods, and what each says."""
        pods = [PodSeen(pod=pod, answer=None) for pod in await pods_of(self.kube, proxy, deployment)]
        return await self._asked(proxy.namespace, pods)

    async def _asked(self, namespace: str, pods: Sequence[PodSeen]) -> list[PodSeen]:
        """The same, with what they say, and with the events of those that have not begun."""
        limit = asyncio.Semaphore(_PODS_ASKED_AT_ONCE)

        async def ask(pod: PodSeen) -> PodSeen:
            ip, port = pod.facts.ip, self.port if pod.app is None else pod.admin_port
            if not ip or not pod.runs or pod.pod.get("spec", {}).get("hostNetwork"):
                return pod
            async with limit:
                return replace(pod, answer=await answer_of(self.session, ip, port=port))

        asked = list(await asyncio.gather(*map(ask, pods)))
        # Events are many, and only a pod that has not begun leaves it to them to say why.
        if not any(pod.phase == "Pending" and pod.pod.get("spec", {}).get("nodeName") for pod in asked):
            return asked
        events, _ = await self._try("Events", self.kube.list("Event", namespace))
        return [replace(pod, events=_warnings(pod, events or [])) for pod in asked]


async def answer_of(session: aiohttp.ClientSession, ip: str, *, port: int) -> Answer | None:
    """What the proxy at ``ip`` says; None if it does not answer, or not like a proxy."""
    return await Pods(session, port=port).status(ip, read_answer)


def _warnings(pod: PodSeen, events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The latest warnings about a pod, newest first."""
    about = [
        event
        for event in events
        if event.get("type") == "Warning" and event.get("involvedObject", {}).get("uid") == pod.pod["metadata"]["uid"]
    ]
    about.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "", reverse=True)
    return [f"{event.get('reason', '')}: {event.get('message', '')}" for event in about[:_EVENTS_PER_POD]]


def _has_kubeconfig(env: Mapping[str, str]) -> bool:
    paths = (
        env.get("KUBECONFIG", "").split(os.pathsep) if env.get("KUBECONFIG") else [str(Path.home() / ".kube/config")]
    )
    return any(Path(path).is_file() for path in paths if path)


def _end(sentence: str) -> Any:
    click.echo(sentence, err=True)
    sys.exit(UNREADABLE_STATUS)


def show(diagnosis: Diagnosis) -> None:
    """For people, on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A width of its own where there is no terminal (kubectl exec without -t), where rich would take 80 columns.
    console = Console(highlight=False, emoji=False, markup=False, width=None if sys.stdout.isatty() else 120)

    def line(text: str, style: str = "", indent: int = 0) -> None:
        # Commands and sentences are wrapped by the terminal alone, so that they can be copied.
        console.print(Text(" " * indent + printable(text), style=style), soft_wrap=True)

    verdict, style = ("healthy", "bold green") if diagnosis.healthy else ("somebody has to look", "bold red")
    line(f"TinybirdProxy {diagnosis.resource}: {verdict}", style)
    if diagnosis.ready is not None:
        line(f"Ready={diagnosis.ready}, the operator says: {diagnosis.ready_message}")
    for finding in diagnosis.findings:
        line("")
        line(f"{finding.level.upper()} {finding.reason}", _STYLES[finding.level])
        for text in (finding.what, finding.why, finding.next):
            if text:
                line(text, indent=2)
        for command in finding.commands:
            line(command, "cyan", indent=4)
    if diagnosis.pods:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("POD", no_wrap=True, overflow="fold")
        table.add_column("READY")
        sidecars = any(pod.sidecar is not None for pod in diagnosis.pods)
        if sidecars:
            table.add_column("SIDECAR")
        for heading in ("ROWS", "BYTES", "OLDEST", "NOT DELIVERED", "DEAD LETTERS"):
            table.add_column(heading, justify="right")
        table.add_column("TOKEN")
        shown = diagnosis.pods[:TABLE_MAX_PODS]
        for pod in shown:
            age = None if pod.oldest_age_s is None else duration(pod.oldest_age_s)
            unknown = "?" if pod.running else "-"
            figures = [_figure(each, unknown) for each in (pod.rows, pod.size_bytes)]
            figures += [age or ("-" if pod.answered else unknown)]
            figures += [_figure(each, unknown) for each in (pod.not_delivered_rows, pod.dead_letter_rows)]
            state = [pod.sidecar or "-"] if sidecars else []
            cells = [pod.name, "yes" if pod.ready else "no", *state, *figures, pod.token]
            table.add_row(*(Text(printable(cell)) for cell in cells))
        line("")
        console.print(table)
        if more := len(diagnosis.pods) - len(shown):
            line(f"and {more:,} more: --output=json has them all.")
    if diagnosis.loss is not None:
        line("")
        line("IF IT WERE DELETED NOW", "bold")
        line(diagnosis.loss.sentence, indent=2)
    if diagnosis.lost_so_far is not None:
        line("")
        line("LOST SO FAR", "bold")
        line(diagnosis.lost_so_far, indent=2)
    if diagnosis.not_known:
        line("")
        line("NOT KNOWN", "bold")
        for text in diagnosis.not_known:
            line(text, indent=2)


def printable(text: str) -> str:
    """``text`` without what would steer a terminal: pods and the names of data sources are not to be trusted."""
    return "".join(each if each.isprintable() else " " for each in text)


def _figure(number: int | None, unknown: str) -> str:
    return unknown if number is None else f"{number:,}"
