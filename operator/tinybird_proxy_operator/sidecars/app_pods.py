"""How each pod that asks for a sidecar stands. Pure: ``sidecar_pods`` reads, and this looks with the webhook's eyes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from tinybird_proxy_operator.live_objects import read_pod
from tinybird_proxy_operator.names import SIDECAR_CONTAINER, SIDECAR_HASH_ANNOTATION
from tinybird_proxy_operator.observed import PodFacts, ProxyReport
from tinybird_proxy_operator.sidecars.injection import (
    DEFAULT_GRACE_S,
    MIRROR_ANNOTATION,
    Pod,
    Sidecar,
    chosen,
    injected_hash,
    injected_name,
    is_mirror,
    refusal,
)

# What replaces a pod that is evicted by another one. What else controls pods may not, or counts it as a failure.
_REPLACED_BY: Final = ("ReplicaSet", "StatefulSet", "DaemonSet", "ReplicationController")
_HASH_LABEL: Final = "pod-template-hash"
_ENDED: Final = ("Succeeded", "Failed")
# What `slim` keeps.
_METADATA: Final = ("name", "namespace", "uid", "labels", "ownerReferences", "creationTimestamp", "deletionTimestamp")
_ANNOTATIONS: Final = (SIDECAR_HASH_ANNOTATION, MIRROR_ANNOTATION)
_SPEC: Final = ("hostNetwork", "os", "nodeSelector", "nodeName", "resources", "terminationGracePeriodSeconds")
_CONTAINERS: Final = ("initContainers", "containers")


class State(StrEnum):
    """What a pod has of the sidecar that it asks for."""

    CURRENT = "Current"
    STALE = "Stale"
    MISSED = "Missed"
    REFUSED = "Refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppPod:
    """A pod that has not ended and asks for the sidecar of one resource, or has it.

    ``why_refused``: for State.REFUSED. ``owner``: what replaces the pod, as ``Deployment NAME``; None: nothing does, or
    nothing that may be relied on. ``ready``: the whole pod. ``facts``: of the proxy in it, if there is one.
    ``asks``: False: it has the sidecar, and would get another one now, or none: its namespace's label has changed.
    """

    name: str
    uid: str
    state: State
    ready: bool
    terminating: bool
    owner: str | None
    grace_period_s: int
    why_refused: str = ""
    facts: PodFacts | None = None
    asks: bool = True
    created_at: str = ""

    @property
    def outdated(self) -> bool:
        """Whether another pod in its place would have the sidecar as it is now."""
        return self.asks and self.state in (State.STALE, State.MISSED)

    @property
    def is_silent(self) -> bool:
        """Whether it has a sidecar that runs and does not answer."""
        return self.facts is not None and self.facts.running and self.facts.report is None


def slim(pod: Pod) -> dict[str, Any]:
    """What this package reads of a pod: a tenth of what the API server tells, and less."""
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    annotations = metadata.get("annotations") or {}
    statuses = [each for each in status.get("initContainerStatuses") or () if each.get("name") == SIDECAR_CONTAINER]
    ready = [{"type": each["type"], "status": each["status"]} for each in status.get("conditions") or ()]
    return {
        "metadata": {
            **{key: metadata[key] for key in _METADATA if key in metadata},
            "annotations": {key: annotations[key] for key in _ANNOTATIONS if key in annotations},
        },
        "spec": {
            **{key: spec[key] for key in _SPEC if key in spec},
            **{kind: [_slim_container(each) for each in spec.get(kind) or ()] for kind in _CONTAINERS},
            "volumes": [{"name": each["name"]} for each in spec.get("volumes") or ()],
        },
        "status": {
            **{key: status[key] for key in ("phase", "podIP") if key in status},
            "conditions": [each for each in ready if each["type"] == "Ready"],
            "initContainerStatuses": statuses,
        },
    }


def has_sidecar(pod: Pod, name: str) -> bool:
    """Whether the sidecar of the resource ``name`` is in the pod."""
    return injected_name(pod) == name


def has_ended(pod: Pod) -> bool:
    """Whether it is over, and is kept as an object only."""
    return (pod.get("status") or {}).get("phase") in _ENDED


def asking(
    pods: Iterable[Pod],
    *,
    name: str,
    namespace_labels: Mapping[str, str],
    sidecar: Sidecar | None,
    reports: Mapping[str, ProxyReport],
) -> list[AppPod]:
    """Those of ``pods`` that ask for the sidecar of ``name`` or have it. ``reports``: by the pods' uid.

    While nothing is rendered (``sidecar`` None) no pod is refused: nobody has looked.
    """
    found = []
    for pod in pods:
        metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
        if has_ended(pod) or is_mirror(pod):
            continue
        why, facts, asks = "", None, chosen(metadata.get("labels"), namespace_labels) == name
        if has_sidecar(pod, name):
            state = State.CURRENT if sidecar is not None and _is_current(pod, sidecar) else State.STALE
            facts = read_pod(pod, reports.get(metadata["uid"]), container=SIDECAR_CONTAINER)
        elif not asks:
            continue
        elif sidecar is not None and (why := refusal(pod, sidecar) or ""):
            state = State.REFUSED
        else:
            state = State.MISSED
        grace_s = spec.get("terminationGracePeriodSeconds")
        found.append(
            AppPod(
                name=metadata["name"],
                uid=metadata["uid"],
                state=state,
                ready=_is_ready(status),
                terminating="deletionTimestamp" in metadata,
                owner=owner(pod),
                grace_period_s=DEFAULT_GRACE_S if grace_s is None else grace_s,
                why_refused=why,
                facts=facts,
                asks=asks,
                created_at=metadata.get("creationTimestamp") or "",
            )
        )
    return found


def owner(pod: Pod) -> str | None:
    """What makes another pod if this one goes; of a Deployment's pod the Deployment, over all of its ReplicaSets."""
    metadata = pod["metadata"]
    controller = next((each for each in metadata.get("ownerReferences") or () if each.get("controller")), None)
    if controller is None or controller["kind"] not in _REPLACED_BY:
        return None
    kind, name = controller["kind"], controller["name"]
    template = (metadata.get("labels") or {}).get(_HASH_LABEL)
    if kind == "ReplicaSet" and template and name.endswith(f"-{template}"):
        return f"Deployment {name.removesuffix(f'-{template}')}"
    return f"{kind} {name}"


def _is_current(pod: Pod, sidecar: Sidecar) -> bool:
    return injected_hash(pod) == str(sidecar["hash"])


def _is_ready(status: Mapping[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ())


def _slim_container(container: Mapping[str, Any]) -> dict[str, Any]:
    return {key: container[key] for key in ("name", "ports", "restartPolicy") if key in container}
