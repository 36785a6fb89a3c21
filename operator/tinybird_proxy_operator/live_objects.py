"""Deployments and pods as the API server gives them, read as facts. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from tinybird_proxy_operator import last_words
from tinybird_proxy_operator.names import (
    CONTAINER,
    DELETION_COST_ANNOTATION,
    DRAINING_LABEL,
    DRAINING_SINCE_ANNOTATION,
    UPGRADED_ANNOTATION,
)
from tinybird_proxy_operator.observed import PodFacts, ProxyReport, Workload

_ORDINARY_WAITS = (None, "ContainerCreating", "PodInitializing")
# Above it: a signal that the process could not handle, or a node that was started again.
_KILLED_ABOVE: Final = 128


def read_workload(deployment: Mapping[str, Any]) -> Workload:
    """A Deployment as the API server gives it."""
    status = deployment.get("status", {})
    conditions = {condition["type"]: condition for condition in status.get("conditions", [])}
    progressing, failure = conditions.get("Progressing", {}), conditions.get("ReplicaFailure", {})
    failed = None
    if failure.get("status") == "True":
        failed = failure.get("message")
    elif progressing.get("reason") == "ProgressDeadlineExceeded":
        failed = progressing.get("message")
    paused = bool(deployment.get("spec", {}).get("paused"))
    return Workload(
        generation_seen=status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0),
        replicas=status.get("replicas", 0),
        updated=status.get("updatedReplicas", 0),
        ready=status.get("readyReplicas", 0),
        available=status.get("readyReplicas" if paused else "availableReplicas", 0),
        failed=failed,
        upgraded_to=(deployment["metadata"].get("annotations") or {}).get(UPGRADED_ANNOTATION),
        paused=paused,
    )


def read_pod(pod: Mapping[str, Any], report: ProxyReport | None, *, container: str = CONTAINER) -> PodFacts:
    """A Pod as the API server gives it, and what the proxy in it said.

    ``container``: the proxy's. Of an app's pod nothing else counts: it is ready if the sidecar is.
    """
    status = pod.get("status", {})
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))
    waiting, out_of_memory, running, killed_with = None, False, False, None
    statuses = status.get("containerStatuses", [])
    if container != CONTAINER:
        statuses = [each for each in status.get("initContainerStatuses", []) if each.get("name") == container]
        ready = any(each.get("ready") for each in statuses)
    for found in statuses:
        state, last = found.get("state", {}), found.get("lastState", {})
        running |= found.get("name") == container and "running" in state
        if "waiting" in state and state["waiting"].get("reason") not in _ORDINARY_WAITS:
            waiting = ": ".join(filter(None, (state["waiting"]["reason"], state["waiting"].get("message"))))
        out_of_memory |= "OOMKilled" in (
            state.get("terminated", {}).get("reason"),
            last.get("terminated", {}).get("reason"),
        )
        if found.get("name") == container:
            killed_with = _killed_with(state) or _killed_with(last)
    metadata = pod["metadata"]
    annotations = metadata.get("annotations") or {}
    return PodFacts(
        name=metadata["name"],
        ip=status.get("podIP"),
        ready=ready,
        waiting=waiting,
        out_of_memory=out_of_memory,
        report=report,
        killed_with=killed_with,
        placed=bool(pod.get("spec", {}).get("nodeName") or status.get("podIP")),
        running=running,
        terminating="deletionTimestamp" in metadata,
        labelled=DRAINING_LABEL in (metadata.get("labels") or {}),
        draining_since=_read_time(annotations.get(DRAINING_SINCE_ANNOTATION)),
        deletion_cost=_read_integer(annotations.get(DELETION_COST_ANNOTATION)),
        created_at=_read_time(metadata.get("creationTimestamp")),
        uid=metadata.get("uid", ""),
        resource_version=metadata.get("resourceVersion", ""),
    )


def _killed_with(state: Mapping[str, Any]) -> int | None:
    end = state.get("terminated") or {}
    status: int = end.get("exitCode") or 0
    if status <= _KILLED_ABOVE or end.get("reason") == "OOMKilled":
        return None
    return status if last_words.read(end.get("message") or "") is None else None


def _read_time(text: str | None) -> datetime | None:
    """A time as RFC 3339 in UTC; None: that is none."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _read_integer(text: str | None) -> int:
    """0, as to Kubernetes, for what is none."""
    try:
        return int(text or "0")
    except ValueError:
        return 0
