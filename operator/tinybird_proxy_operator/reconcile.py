"""Reconcile one TinybirdProxy from the whole state: read, decide, apply, prune, observe, tell. Same result twice.

Nothing here depends on which event came. What decides is pure (``checks``, ``manifests``, ``status``); what is read and
written goes through ``kube`` and ``pods``.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from tinybird_proxy_operator import checks, manifests
from tinybird_proxy_operator.children import (
    NameTaken,
    applied_template,
    controller_uid,
    image_of,
    is_ours,
    prune,
    put,
    template_hash,
    with_template_hash,
)
from tinybird_proxy_operator.credentials import Token, ensure_generated, read_token
from tinybird_proxy_operator.errors import Conflict, Forbidden, Invalid, NotFound, SpecError
from tinybird_proxy_operator.events import Events
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.manifests import Desired
from tinybird_proxy_operator.names import KIND, ROLL_ANNOTATION, Reason, client_secret, selector_labels
from tinybird_proxy_operator.observed import Observed, PodFacts, Problem, read_pod, read_workload
from tinybird_proxy_operator.pods import Pods
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.settings import OperatorSettings
from tinybird_proxy_operator.spec import Proxy, parse
from tinybird_proxy_operator.status import differs, make_status

# How soon to look again: while something is on its way, and for the figures of the pods.
SOON_S = 2.0
FIGURES_S = 10.0
_PODS_ASKED_AT_ONCE = 10
_POD_MONITORS_OFF = (
    "spec.monitoring.podMonitor: the operator has no right to make PodMonitors. Set it to Disabled, or ask whoever runs"
    " the operator to set its chart's rbac.podMonitors to true."
)
_NO_POD_MONITORS = (
    "spec.monitoring.podMonitor: the cluster has no PodMonitors. Install prometheus-operator, or set it to Disabled."
)


@dataclass(slots=True)
class Reconciler:
    """``make_token`` makes a secret token; ``utc_now`` is the wall's clock, ``now`` one that only goes forward."""

    kube: Kube
    pods: Pods
    events: Events
    settings: OperatorSettings
    make_token: Callable[[], str]
    utc_now: Callable[[], datetime]
    now: Callable[[], float]
    _figures_at: dict[Key, float] = field(default_factory=dict)
    _applied: dict[Key, dict[str, str]] = field(default_factory=dict)
    _rolling: set[Key] = field(default_factory=set)

    async def reconcile(self, key: Key) -> float | None:
        """Make the cluster what the resource asks. Answers when to look again; raises ``KubeError`` to try again."""
        body = await self.kube.find(KIND, key.namespace, key.name)
        spec = None if body is None else body.get("spec") or {}
        controller_class = spec.get("controllerClass", "") if isinstance(spec, Mapping) else ""
        if (
            body is None
            or "deletionTimestamp" in body["metadata"]
            or controller_class != self.settings.controller_class
        ):
            self._forget(key)
            return None
        try:
            proxy = parse(body)
        except SpecError as error:
            proxy = parse({**body, "spec": {}})  # good for telling, not for carrying out
            problems = [Problem(reason=Reason.INVALID_SPEC, message=text) for text in error.problems]
            observed = replace(await self._observe(proxy, problems), uses_own_token=None)
            return await self._report(key, proxy, body, observed)
        if proxy.spec.management_state == "Unmanaged":
            self._rolling.discard(key)
            self._applied.pop(key, None)
            return await self._report(key, proxy, body, await self._observe(proxy, [], managed=False))
        if proxy.spec.replicas is None:
            await self._seed_replicas(proxy)
            return 0.0
        return await self._carry_out(key, proxy, body)

    def _forget(self, key: Key) -> None:
        """The resource is no more, or no longer ours: nobody waits for it."""
        self._figures_at.pop(key, None)
        self._applied.pop(key, None)
        self._rolling.discard(key)

    async def _carry_out(self, key: Key, proxy: Proxy, body: Object) -> float | None:
        problems = [Problem(reason=reason, message=text) for reason, text in checks.problems(proxy, self.settings)]
        token = await self._token(proxy)
        if token.problem is not None:
            problems.append(token.problem)
        held = None
        if not problems:
            try:
                held = await self._apply(key, proxy)
            except NameTaken as taken:
                problems.append(Problem(reason=Reason.NAME_TAKEN, message=str(taken)))
            except (Invalid, Forbidden) as refused:
                problems.append(Problem(reason=Reason.APPLY_REFUSED, message=str(refused)))
            except SpecError as error:
                problems += [Problem(reason=Reason.INVALID_SPEC, message=text) for text in error.problems]
        observed = await self._observe(proxy, problems, token=token, held=held)
        return await self._report(key, proxy, body, observed)

    async def _seed_replicas(self, proxy: Proxy) -> None:
        """Write ``spec.replicas`` where it is absent: what runs, else 1. Without it ``/scale`` answers 500."""
        live = await self.kube.find("Deployment", proxy.namespace, proxy.name)
        replicas = live["spec"].get("replicas", 1) if live is not None and is_ours(live, proxy) else 1
        await self.kube.set_scale(proxy.namespace, proxy.name, replicas, resource_version=proxy.resource_version)

    async def _token(self, proxy: Proxy) -> Token:
        ref = proxy.spec.tinybird.token_secret_ref
        if ref is None:
            return Token(None, None)
        token = await read_token(self.kube, proxy.namespace, ref)
        clients = proxy.spec.clients.token_secret_ref
        if token.problem is None and clients is not None:
            other = await read_token(self.kube, proxy.namespace, clients)
            return Token(token.hash, other.problem)
        return token

    async def _apply(self, key: Key, proxy: Proxy) -> str | None:
        """Create, apply and prune. Returns why a changed template is held back, if it is."""
        spec = proxy.spec
        desired = Desired(proxy=proxy, replicas=spec.replicas or 0, settings=self.settings)
        generates_client = spec.tinybird.token_secret_ref is not None and spec.clients.token_secret_ref is None
        live = await self.kube.find("Deployment", proxy.namespace, proxy.name)
        made = await ensure_generated(self.kube, desired, self.make_token, client=generates_client)
        if client_secret(proxy.name) in made and live is not None:
            text = f"Secret {client_secret(proxy.name)} was gone; there is a new one: apps need its token."
            await self.events.tell(proxy, Reason.CLIENT_TOKEN_REPLACED, text, warning=True)
        wanted, applied = manifests.build(desired), self._applied.setdefault(key, {})
        held = None
        for manifest in wanted:
            if manifest["kind"] != "Deployment":
                await self._put(proxy, manifest, applied)
                continue
            held = await self._hold_back(key, proxy, live, manifest)
            if held is None:
                await self._put(proxy, with_template_hash(manifest), applied)
            elif live is not None and live["spec"].get("replicas") != desired.replicas:
                await self.kube.set_replicas(proxy.namespace, proxy.name, desired.replicas, uid=live["metadata"]["uid"])
        kinds = [kind for _, kind in manifests.KINDS if kind != "PodMonitor" or self.settings.pod_monitors]
        gone = await prune(self.kube, proxy, wanted, kinds)
        for what in gone:
            await self.events.tell(proxy, Reason.UP_TO_DATE, f"Deleted: {what}.", warning=False, about=what)
        return held

    async def _put(self, proxy: Proxy, manifest: Object, applied: dict[str, str]) -> None:
        if manifest["kind"] == "PodMonitor" and not self.settings.pod_monitors:
            raise Invalid(_POD_MONITORS_OFF)
        try:
            await put(self.kube, proxy, manifest, applied)
        except NotFound as error:
            if manifest["kind"] != "PodMonitor":
                raise
            raise Invalid(_NO_POD_MONITORS) from error

    async def _hold_back(self, key: Key, proxy: Proxy, live: Object | None, manifest: Object) -> str | None:
        """Why a changed template must not go out now; None if it may."""
        if live is None or not is_ours(live, proxy):
            return None
        changed = applied_template(live) not in (None, template_hash(manifest))
        default_image = proxy.spec.image is None
        if not changed:
            workload = read_workload(live)
            if workload.settled:
                self._rolling.discard(key)
            elif default_image and workload.updated < workload.replicas:
                self._rolling.add(key)  # since before this process
            return None
        if proxy.annotations.get(ROLL_ANNOTATION) == "now":
            return None
        found = await self._pods(proxy, live)
        stuck = sum(pod.report.stuck_rows for pod in found if pod.report is not None)
        if stuck:
            return (
                f"The changed template is held back: {stuck:,} rows wait and are not delivered, and a new pod would not"
                f" have them. It goes out when they are delivered, or with the annotation {ROLL_ANNOTATION}=now."
            )
        # What its author changed goes out: one resource's trouble is no reason for the others to wait.
        if not default_image or image_of(live) == image_of(manifest):
            return None
        if key not in self._rolling and len(self._rolling) >= self.settings.upgrade_max_concurrent:
            others = ", ".join(map(str, sorted(self._rolling)))
            return f"The changed template waits for {others}: so many roll at a time (upgrade.maxConcurrent)."
        self._rolling.add(key)
        return None

    # Looking.

    async def _observe(
        self,
        proxy: Proxy,
        problems: Sequence[Problem],
        *,
        token: Token | None = None,
        held: str | None = None,
        managed: bool = True,
    ) -> Observed:
        live = await self.kube.find("Deployment", proxy.namespace, proxy.name)
        ours = live if live is not None and is_ours(live, proxy) else None
        ref = proxy.spec.tinybird.token_secret_ref
        return Observed(
            wanted_replicas=proxy.spec.replicas,
            workload=None if ours is None else read_workload(ours),
            pods=[] if ours is None else await self._pods(proxy, ours),
            problems=problems,
            held=held,
            uses_own_token=ref is not None,
            token_secret=None if ref is None else ref.name,
            expected_token_hash=None if token is None else token.hash,
            managed=managed,
        )

    async def _pods(self, proxy: Proxy, deployment: Mapping[str, Any]) -> list[PodFacts]:
        """Our pods, by the chain of controllers and not by labels, and what each says."""
        labels = selector_labels(proxy.name)
        sets = await self.kube.list("ReplicaSet", proxy.namespace, labels=labels)
        uid = deployment["metadata"]["uid"]
        ours = {found["metadata"]["uid"] for found in sets if controller_uid(found) == uid}
        pods = [
            pod
            for pod in await self.kube.list("Pod", proxy.namespace, labels=labels)
            if controller_uid(pod) in ours and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
        ]
        limit = asyncio.Semaphore(_PODS_ASKED_AT_ONCE)

        async def ask(pod: Object) -> PodFacts:
            ip = pod.get("status", {}).get("podIP")
            async with limit:
                return read_pod(pod, await self.pods.report(ip) if ip else None)

        return list(await asyncio.gather(*map(ask, pods)))

    # Telling.

    async def _report(self, key: Key, proxy: Proxy, body: Object, observed: Observed) -> float:
        old = body.get("status") or {}
        at = self.utc_now().strftime("%Y-%m-%dT%H:%M:%SZ")
        status = make_status(proxy, observed, old, now=at)
        now = self.now()
        figures_due = now - self._figures_at.get(key, float("-inf")) >= FIGURES_S
        if differs(status, old) or (figures_due and status != old):
            try:
                await self.kube.apply_status(proxy.namespace, proxy.name, proxy.uid, status)
            except (Conflict, NotFound):
                return 0.0  # deleted meanwhile, and perhaps made again
            self._figures_at[key] = now
        for problem in observed.problems:
            await self.events.tell(proxy, problem.reason, problem.message, warning=True, about=problem.message)
        if observed.held is not None:
            await self.events.tell(proxy, Reason.ROLLOUT_HELD, observed.held, warning=True)
        for condition in status["conditions"]:
            if condition["type"] == "TokenValid" and condition["status"] == "False" and not observed.problems:
                await self.events.tell(proxy, Reason(condition["reason"]), condition["message"], warning=True)
        workload = observed.workload
        moving = workload is not None and (not workload.settled or workload.ready < (observed.wanted_replicas or 0))
        return SOON_S if moving or observed.held is not None else FIGURES_S
