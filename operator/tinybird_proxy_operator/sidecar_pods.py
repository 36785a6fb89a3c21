"""The pods that ask for a sidecar: read them, ask their proxies, and evict those whose turn it is."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tinybird_proxy_operator.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from tinybird_proxy_operator.events import Events
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.manifests.environment import admin_port
from tinybird_proxy_operator.names import INJECT_LABEL, INJECTED_LABEL, SIDECAR_CONTAINER, Reason, some
from tinybird_proxy_operator.observed import ProxyReport
from tinybird_proxy_operator.pods import Pods
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.sidecars import eviction
from tinybird_proxy_operator.sidecars.app_pods import AppPod, asking, has_sidecar
from tinybird_proxy_operator.sidecars.injection import Sidecar, chosen
from tinybird_proxy_operator.spec import Proxy

_ASKED_AT_ONCE: Final = 10


@dataclass(slots=True)
class SidecarPods:
    """``now`` is a clock in seconds. What is remembered of evictions is this process's alone."""

    kube: Kube
    pods: Pods
    events: Events
    now: Callable[[], float]
    _turns: dict[Key, dict[str, eviction.Turn]] = field(default_factory=dict)

    def forget(self, key: Key) -> None:
        """The resource is no more, or not ours."""
        self._turns.pop(key, None)

    async def read(self, proxy: Proxy, sidecar: Sidecar | None) -> list[AppPod]:
        """Every pod of the namespace that asks for it, or has it."""
        labels = await self._namespace_labels(proxy.namespace)
        found = await self._candidates(proxy, labels)
        limit, reports = asyncio.Semaphore(_ASKED_AT_ONCE), dict[str, ProxyReport]()

        async def ask(pod: Object) -> None:
            ip, port = pod.get("status", {}).get("podIP"), _admin_port(pod, proxy)
            async with limit:
                if (report := await self.pods.report(ip, port=port)) is not None:
                    reports[pod["metadata"]["uid"]] = report

        # A pod on its node's network has the node's address, and no sidecar of ours.
        await asyncio.gather(*(ask(pod) for pod in found if has_sidecar(pod, proxy.name) and _has_address(pod)))
        return asking(found, name=proxy.name, namespace_labels=labels, sidecar=sidecar, reports=reports)

    async def evict(self, key: Key, proxy: Proxy, pods: list[AppPod]) -> list[str]:
        """Evict whose turn it is. Sentences about what keeps others from being."""
        decision = eviction.decide(pods, self._turns.get(key, {}), now_s=self.now())
        turns, told = dict(decision.turns), []
        for owner, (pod, turn) in decision.evict.items():
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
        if decision.held:
            told.append(decision.held)
        if decision.useless:
            text = (
                f"{some(decision.useless)}: the pod in the place of one that was evicted has no sidecar either, so it"
                " is tried again later. See that injection works: is the webhook running, and is the label on the pods?"
            )
            told.append(text)
            await self.events.tell(proxy, Reason.EVICTION_USELESS, text, warning=True, about=" ".join(decision.useless))
        return told

    async def _namespace_labels(self, namespace: str) -> Mapping[str, str]:
        """None where that may not be read: then nothing is injected for a namespace's label either."""
        try:
            found = await self.kube.find("Namespace", None, namespace)
        except Forbidden:
            return {}
        labels: Mapping[str, str] = {} if found is None else found["metadata"].get("labels") or {}
        return labels

    async def _candidates(self, proxy: Proxy, namespace_labels: Mapping[str, str]) -> list[Object]:
        if chosen(None, namespace_labels) == proxy.name:
            return await self.kube.list("Pod", proxy.namespace, cached=True)
        found: dict[str, Object] = {}
        for label in (INJECT_LABEL, INJECTED_LABEL):
            for pod in await self.kube.list("Pod", proxy.namespace, labels={label: proxy.name}, cached=True):
                found[pod["metadata"]["uid"]] = pod
        return list(found.values())


def _has_address(pod: Object) -> bool:
    return bool(pod.get("status", {}).get("podIP")) and not pod["spec"].get("hostNetwork")


def _admin_port(pod: Object, proxy: Proxy) -> int:
    """Where the sidecar in this pod is asked: it may be older than the resource's present ports."""
    for container in pod["spec"].get("initContainers") or []:
        if container.get("name") == SIDECAR_CONTAINER:
            for port in container.get("ports") or []:
                if port.get("name") == "tbp-admin":
                    found: int = port["containerPort"]
                    return found
    return admin_port(proxy.spec)
