"""The pods of a resource's Deployment, and what each of them says."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from tinybird_proxy_operator.children import controller_uid
from tinybird_proxy_operator.kube import Kube, Object
from tinybird_proxy_operator.names import selector_labels
from tinybird_proxy_operator.observed import PodFacts, read_pod
from tinybird_proxy_operator.pods import Pods
from tinybird_proxy_operator.spec import Proxy

_ASKED_AT_ONCE: Final = 10


async def pods_of(kube: Kube, proxy: Proxy, deployment: Mapping[str, Any]) -> list[Object]:
    """Our pods, by the chain of controllers and not by labels."""
    labels = selector_labels(proxy.name)
    sets = await kube.list("ReplicaSet", proxy.namespace, labels=labels)
    uid = deployment["metadata"]["uid"]
    ours = {found["metadata"]["uid"] for found in sets if controller_uid(found) == uid}
    return [pod for pod in await kube.list("Pod", proxy.namespace, labels=labels) if controller_uid(pod) in ours]


async def read_pods(kube: Kube, pods: Pods, proxy: Proxy, deployment: Mapping[str, Any]) -> list[PodFacts]:
    """Our pods that have not ended, and what each says."""
    found = [
        pod
        for pod in await pods_of(kube, proxy, deployment)
        if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
    ]
    limit = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def ask(pod: Object) -> PodFacts:
        ip = pod.get("status", {}).get("podIP")
        async with limit:
            return read_pod(pod, await pods.report(ip) if ip else None)

    return list(await asyncio.gather(*map(ask, found)))
