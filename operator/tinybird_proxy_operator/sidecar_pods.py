"""The pods that ask for a sidecar: read them, ask their proxies, and evict those whose turn it is."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from tinybird_proxy_operator.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from tinybird_proxy_operator.events import Events
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.live_objects import read_pod
from tinybird_proxy_operator.manifests.environment import admin_port
from tinybird_proxy_operator.manifests.sidecar import ADMIN_PORT_NAME
from tinybird_proxy_operator.names import INJECT_LABEL, INJECTED_LABEL, SIDECAR_CONTAINER, Reason, some
from tinybird_proxy_operator.observed import ProxyReport
from tinybird_proxy_operator.pods import Pods
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.sidecars import eviction
from tinybird_proxy_operator.sidecars.app_pods import AppPod, asking, has_ended, has_sidecar, slim
from tinybird_proxy_operator.sidecars.injection import Sidecar, chosen
from tinybird_proxy_operator.spec import Proxy

# Where a NetworkPolicy is in the way, each is waited for until the limit.
_ASKED_AT_ONCE: Final = 50
# So long all are asked in one look: whoever is not reached then is silent too, and comes first in the next.
ASKING_S: Final = 60.0
_READ_AT_ONCE: Final = 10  # answers may be large, and the operator's memory is not
_OWNERS_READ_MAX: Final = 10  # in one look
_COUNTED: Final = ("Deployment", "StatefulSet")


@dataclass(slots=True)
class SidecarPods:
    """``now`` is a clock in seconds. What is remembered of evictions is this process's alone."""

    kube: Kube
    pods: Pods
    events: Events
    now: Callable[[], float]
    _turns: dict[Key, dict[str, eviction.Turn]] = field(default_factory=dict)
    _silent: dict[Key, dict[str, float]] = field(default_factory=dict)  # by uid: when it was asked last, in vain
    _tried: dict[Key, dict[str, float]] = field(default_factory=dict)  # by owner: when its turn was last

    def forget(self, key: Key) -> None:
        """The resource is no more, or not ours."""
        self._turns.pop(key, None)
        self._silent.pop(key, None)
        self._tried.pop(key, None)

    async def read(self, proxy: Proxy, sidecar: Sidecar | None) -> list[AppPod]:
        """Every pod of the namespace that asks for it, or has it."""
        labels = await namespace_labels(self.kube, proxy.namespace)
        # Of a thousand pods the operator's memory has no room for all that the API server tells.
        found = await candidates(self.kube, proxy.namespace, proxy.name, labels, keep=slim)
        limit, reports = asyncio.Semaphore(_ASKED_AT_ONCE), dict[str, ProxyReport]()
        reading, silent = asyncio.Semaphore(_READ_AT_ONCE), self._silent.get(Key(proxy.namespace, proxy.name), {})
        asked_at = dict[str, float]()

        async def ask(pod: Object) -> None:
            ip, port = pod.get("status", {}).get("podIP"), admin_port_of(pod, proxy)
            async with limit:
                asked_at[pod["metadata"]["uid"]] = self.now()
                if (report := await self.pods.report(ip, port=port, reading=reading)) is not None:
                    reports[pod["metadata"]["uid"]] = report

        asked = [pod for pod in found if may_answer(pod, proxy.name)]
        # Who answered comes first, for that takes no time; of the others who was not asked for the longest.
        asked.sort(key=lambda pod: silent.get(pod["metadata"]["uid"], float("-inf")))
        with suppress(TimeoutError):
            async with asyncio.timeout(ASKING_S):
                await asyncio.gather(*map(ask, asked))
        uids = {pod["metadata"]["uid"] for pod in asked} - reports.keys()
        silent = {uid: at for uid, at in {**silent, **asked_at}.items() if uid in uids}
        self._silent[Key(proxy.namespace, proxy.name)] = silent
        return asking(found, name=proxy.name, namespace_labels=labels, sidecar=sidecar, reports=reports)

    async def evict(self, key: Key, proxy: Proxy, pods: list[AppPod], hash: str) -> list[str]:
        """Evict whose turn it is. Sentences about what keeps others from being. ``hash``: of the present sidecar."""
        before, now_s, tried = self._turns.get(key, {}), self.now(), self._tried.get(key, {})
        late = eviction.overdue(pods, before, now_s=now_s)
        late = sorted(late, key=lambda owner: tried.get(owner, float("-inf")))[:_OWNERS_READ_MAX]
        labels = await namespace_labels(self.kube, proxy.namespace) if late else {}
        complete = []
        for owner in late:
            found = await self._owner(proxy.namespace, owner)
            if found is None or eviction.wants_more(found):
                continue
            # It was scaled down; or what came does not ask, for the label is on pods and not in the template.
            if eviction.would_ask(found, proxy.name, labels):
                complete.append(owner)
        decision = eviction.decide(pods, before, now_s=now_s, hash=hash, complete=complete, tried=tried)
        turns, told = dict(decision.turns), []
        for owner, (pod, turn) in decision.evict.items():
            found = await self._owner(proxy.namespace, owner)
            # A StatefulSet may make no other pod before one that is not Ready is, so such a one goes anyhow.
            may_lack = pod.ready or owner.startswith("Deployment ")
            if found is not None and may_lack and eviction.wants_more(found, ready=pod.ready):
                told.append(f"{owner}: the next is evicted when it has all the pods that it wants.")
                continue
            try:
                await self.kube.evict(proxy.namespace, pod.name, uid=pod.uid)
            except (NotFound, Conflict):  # it is gone, or another one of that name is there
                continue
            except Unavailable as error:  # a PodDisruptionBudget answers with 429
                told.append(f"{owner}: an eviction waits: {error}")
                continue
            except (Forbidden, Invalid) as error:
                told.append(f"{owner}: {error}")
                await self.events.tell(proxy, Reason.EVICTION_REFUSED, f"{owner}: {error}", warning=True, about=owner)
                continue
            turns[owner] = turn
            text = f"Evicted {pod.name} of {owner}: the pod in its place gets the sidecar as it is now."
            await self.events.tell(proxy, Reason.EVICTED, text, warning=False, about=pod.uid)
        self._turns[key] = turns
        owners, tried = {pod.owner for pod in pods}, {**tried, **dict.fromkeys((*late, *decision.evict), now_s)}
        self._tried[key] = {owner: at for owner, at in tried.items() if owner in owners}
        told += decision.held
        if decision.useless:
            text = (
                f"{some(decision.useless)}: the pod in the place of one that was evicted does not have the present"
                " sidecar either, so it is tried again later. See that injection works: is the webhook running, and is"
                " the label on the pods?"
            )
            told.append(text)
            await self.events.tell(proxy, Reason.EVICTION_USELESS, text, warning=True, about=" ".join(decision.useless))
        return told

    async def _owner(self, namespace: str, owner: str) -> Object | None:
        """What says how many pods it wants; None: it does not, is not there, or may not be read."""
        kind, _, name = owner.partition(" ")
        try:
            return await self.kube.find(kind, namespace, name) if kind in _COUNTED else None
        except Forbidden:
            return None


async def namespace_labels(kube: Kube, namespace: str) -> Mapping[str, str]:
    """None where that may not be read: then nothing is injected for a namespace's label either."""
    try:
        found = await kube.find("Namespace", None, namespace)
    except Forbidden:
        return {}
    labels: Mapping[str, str] = {} if found is None else found["metadata"].get("labels") or {}
    return labels


async def candidates(
    kube: Kube,
    namespace: str,
    name: str,
    labels: Mapping[str, str],
    *,
    keep: Callable[[Object], Object] = lambda pod: pod,
) -> list[Object]:
    """The pods among which those are that ask for the sidecar of ``name`` or have it. ``labels``: the namespace's.

    ``keep``: what is kept of each.
    """
    whole_namespace = chosen(None, labels) == name
    selectors: list[dict[str, str | None]]
    selectors = [{}] if whole_namespace else [{INJECT_LABEL: name}, {INJECTED_LABEL: name}]
    found: dict[str, Object] = {}
    for selector in selectors:
        async for page in kube.pages("Pod", namespace, labels=selector):
            found.update((pod["metadata"]["uid"], keep(pod)) for pod in page)
    return list(found.values())


def may_answer(pod: Object, name: str) -> bool:
    """Whether the sidecar of the resource ``name`` is in the pod, runs, and is at the pod's address.

    A pod that has ended keeps its address in the API when it is long another's; one on its node's network has the
    node's, and no sidecar of ours.
    """
    status = pod.get("status") or {}
    if not has_sidecar(pod, name) or not status.get("podIP") or pod["spec"].get("hostNetwork"):
        return False
    return read_pod(pod, None, container=SIDECAR_CONTAINER).running and not has_ended(pod)


def admin_port_of(pod: Object, proxy: Proxy) -> int:
    """Where the sidecar in this pod is asked: it may be older than the resource's present ports."""
    for container in pod["spec"].get("initContainers") or []:
        if container.get("name") == SIDECAR_CONTAINER:
            for port in container.get("ports") or []:
                if port.get("name") == ADMIN_PORT_NAME:
                    found: int = port["containerPort"]
                    return found
    return admin_port(proxy.spec)
