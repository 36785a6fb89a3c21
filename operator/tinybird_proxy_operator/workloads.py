"""The pods of a resource's Deployment, and what each of them says."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from tinybird_proxy_operator.children import controller_uid
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.live_objects import read_pod
from tinybird_proxy_operator.names import selector_labels
from tinybird_proxy_operator.observed import PodFacts
from tinybird_proxy_operator.pods import Pods
from tinybird_proxy_operator.spec import Proxy

_ASKED_AT_ONCE: Final = 10
_REVISION_ANNOTATION: Final = "deployment.kubernetes.io/revision"


async def pods_of(kube: Kube, proxy: Proxy, deployment: Mapping[str, Any]) -> list[Object]:
    """Our pods, by the chain of controllers and not by labels."""
    return (await _sets_and_pods(kube, proxy, deployment))[1]


async def read_pods(kube: Kube, pods: Pods, proxy: Proxy, deployment: Mapping[str, Any]) -> list[PodFacts]:
    """Our pods that have not ended, and what each says."""
    sets, all_pods = await _sets_and_pods(kube, proxy, deployment)
    found = [pod for pod in all_pods if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")]
    in_excess, newest = _in_excess(sets, found), _newest(sets)
    limit = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def ask(pod: Object) -> PodFacts:
        ip = pod.get("status", {}).get("podIP")
        async with limit:
            facts = read_pod(pod, await pods.report(ip) if ip else None)
        uid = controller_uid(pod)
        return replace(facts, excess=uid in in_excess, newest=newest is not None and uid == newest)

    return list(await asyncio.gather(*map(ask, found)))


async def _sets_and_pods(
    kube: Kube, proxy: Proxy, deployment: Mapping[str, Any]
) -> tuple[dict[str, Object], list[Object]]:
    """ReplicaSets by their uid, and then their pods: what a set is to have is known when its pods are counted."""
    labels = selector_labels(proxy.name)
    sets = await kube.list("ReplicaSet", proxy.namespace, labels=labels)
    uid = deployment["metadata"]["uid"]
    ours = {found["metadata"]["uid"]: found for found in sets if controller_uid(found) == uid}
    return ours, [pod for pod in await kube.list("Pod", proxy.namespace, labels=labels) if controller_uid(pod) in ours]


def _newest(sets: Mapping[str, Object]) -> str | None:
    """The uid of the ReplicaSet that a rollout leads to: it gets the highest revision, after a return to it too."""
    revisions = {}
    for uid, each in sets.items():
        said = (each["metadata"].get("annotations") or {}).get(_REVISION_ANNOTATION, "")
        if said.isdecimal():
            revisions[uid] = int(said)
    return max(revisions, key=lambda uid: revisions[uid], default=None)


def _in_excess(sets: Mapping[str, Object], pods: Sequence[Object]) -> set[str]:
    """The ReplicaSets that are about to remove pods, or may be: one that has not seen its spec is not understood."""
    counts = Counter(controller_uid(pod) for pod in pods if "deletionTimestamp" not in pod["metadata"])
    found = set()
    for uid, each in sets.items():
        wanted, seen = each.get("spec", {}).get("replicas"), each.get("status", {}).get("observedGeneration", 0)
        if wanted is not None and (counts[uid] > wanted or seen < each["metadata"].get("generation", 0)):
            found.add(uid)
    return found
