"""What the cluster and the pods say, as values. Pure: ``reconcile`` gathers, ``status`` judges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from tinybird_proxy.health import Cause
from tinybird_proxy_operator import last_words
from tinybird_proxy_operator.names import (
    CONTAINER,
    DELETION_COST_ANNOTATION,
    DRAINING_LABEL,
    DRAINING_SINCE_ANNOTATION,
    UPGRADED_ANNOTATION,
    Reason,
    some,
)
from tinybird_proxy_operator.preflight import Decision

_ORDINARY_WAITS = (None, "ContainerCreating", "PodInitializing")
# Above it: a signal that the process could not handle, or a node that was started again.
_KILLED_ABOVE: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that a person has to put right: a reason from the fixed list and a sentence."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyReport:
    """What a proxy's ``/status`` said. ``stuck``: a sentence for each destination that does not deliver its rows.

    ``clients_hash``: of the list of client tokens that it accepts. ``next_token_hash``: of a changed token for
    Tinybird that it tries with its next rows; ``rejected_token_hash``: of one that Tinybird refused. ``draining``:
    routers are to look away; ``refusing``: no row comes in. ``delivered_rows_1m``: None: an earlier proxy, which does
    not count them. ``replies_1m``: attempts that ended in the last minute, and ``throttled_1m`` those of them that
    Tinybird answered with 429. ``throttled_rows``: rows that wait because of that.
    """

    rows: int
    size_bytes: int
    utilisation: float
    oldest_age_s: float | None
    stuck_rows: int
    stuck: Sequence[str]
    token_hash: str | None
    token_accepted: bool
    token_denied: bool
    candidate_rejected: bool
    clients_hash: str | None = None
    draining: bool = False
    refusing: bool = False
    dead_letter_rows: int = 0
    uptime_s: float | None = None
    next_token_hash: str | None = None
    rejected_token_hash: str | None = None
    delivered_rows_1m: int | None = None
    replies_1m: int = 0
    throttled_1m: int = 0
    throttled_rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """A pod of ours. ``report`` None: it did not answer. ``out_of_memory``: its last container was ended for that.

    ``killed_with``: the exit status of the last process, where that was ended by force, for another reason than memory,
    and left no last words. What has left some is counted by ``lost_rows``.
    ``placed``: it is on a node, so it may have read its Secrets.
    ``running``: there is a process in it that could hold rows, as far as its node says.
    ``lost_rows``: what the process that was ended so held at the last look; None if that is not known.
    ``labelled``: it is to go, see ``DRAINING_LABEL``; ``draining_since`` and ``deletion_cost`` are written with that.
    ``excess``: its ReplicaSet has more pods than it is to have, or has not seen how many: one may go at any moment.
    ``newest``: it is of the latest template that pods were made of, so no rollout takes it away; False also where that
    cannot be told.
    """

    name: str
    ip: str | None
    ready: bool
    waiting: str | None
    out_of_memory: bool
    report: ProxyReport | None
    placed: bool = True
    running: bool = True
    killed_with: int | None = None
    lost_rows: int | None = None
    terminating: bool = False
    labelled: bool = False
    draining_since: datetime | None = None
    deletion_cost: int = 0
    excess: bool = False
    created_at: datetime | None = None
    newest: bool = False
    uid: str = ""
    resource_version: str = ""

    @property
    def holds_nothing(self) -> bool:
        """Whether no row goes with the pod, and none will come. No answer is no answer, unless no process is there."""
        if self.report is None:
            return not self.running
        return self.report.draining and self.report.refusing and self.report.rows == 0


# How a sentence ends that names pods whose rows nobody can count.
NOT_KNOWN: Final = "did not answer: what is there is not known."


def not_known(pods: Sequence[PodFacts]) -> str:
    """A sentence about the pods that may hold rows and do not tell; empty if there are none."""
    silent = [pod.name for pod in pods if pod.report is None and (pod.running or pod.ready)]
    return f"{some(silent)} {NOT_KNOWN}" if silent else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The Deployment, as far as it decides how things stand. ``upgraded_to``: the upgrade that let its template out.

    ``draining``: pods that are to go, and so are not available for a good reason. The Deployment does not know that.
    ``paused``: its rollout stands. Then it counts no new pod as available, and ``available`` is those that are ready.
    """

    generation_seen: bool
    replicas: int
    updated: int
    ready: int
    available: int
    failed: str | None
    upgraded_to: str | None = None
    draining: int = 0
    paused: bool = False

    @property
    def rolled_out(self) -> bool:
        """Whether no pod of another template is left, be they available or not."""
        return self.generation_seen and self.replicas == self.updated

    @property
    def settled(self) -> bool:
        """Whether every pod runs the present template and no other is left."""
        return self.rolled_out and self.available >= self.replicas - self.draining


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything that ``status`` needs. ``held``, ``queued``, ``preflight``: why a changed template does not go out.

    ``held``: for the rows that wait; ``queued``: for other resources, in an upgrade.
    ``uses_own_token`` None: the spec cannot be read. ``notes``: sentences about tokens that are no problem.
    ``draining``: status, reason and message of that condition, while the resource is being deleted; ``shrinking``: the
    same while it is scaled down. ``autoscaling`` and ``upstream_throttled``: the same of theirs, if they have one.
    In mode Sidecar: ``sidecar``: what pods get, None: nothing; ``sidecars``: how many of the pods that ask for it have
    it; ``sidecars_current``: that condition. ``pods``: those that have one.
    ``lost``: what ended processes lost so far, as the status says it.
    """

    wanted_replicas: int | None
    workload: Workload | None
    pods: Sequence[PodFacts]
    problems: Sequence[Problem]
    held: str | None
    uses_own_token: bool | None
    token_secret: str | None
    expected_token_hash: str | None
    managed: bool = True
    notes: Sequence[str] = ()
    preflight: Decision | None = None
    queued: str | None = None
    draining: tuple[str, Reason, str] | None = None
    shrinking: tuple[str, Reason, str] | None = None
    autoscaling: tuple[str, Reason, str] | None = None
    upstream_throttled: tuple[str, Reason, str] | None = None
    sidecar: Mapping[str, Any] | None = None
    sidecars: Mapping[str, int] | None = None
    sidecars_current: tuple[str, Reason, str] | None = None
    lost: Mapping[str, Any] | None = None


def accepted_by(observed: Observed) -> dict[str, str | None] | None:
    """The list of client tokens that each pod accepts, by its hash; None: it is not known which pods there are."""
    workload, placed = observed.workload, [pod for pod in observed.pods if pod.placed]
    if observed.wanted_replicas and not (workload is not None and workload.generation_seen and placed):
        return None
    return {pod.name: None if pod.report is None else pod.report.clients_hash for pod in placed}


class _Buffer(msgspec.Struct):
    rows: int
    bytes: int
    utilisation: float
    oldest_age_s: float | None


class _Token(msgspec.Struct):
    hash: str
    accepted_at: str | None
    denied_at: str | None
    rejected: bool = False


class _Clients(msgspec.Struct):
    hash: str | None = None


class _Tokens(msgspec.Struct):
    clients: _Clients | None = None
    tinybird: _Token | None = None
    candidate: _Token | None = None


class _Destination(msgspec.Struct):
    data_source: str
    buffered_rows: int
    sentence: str
    cause: str | None


class DrainState(msgspec.Struct, frozen=True):
    """What a proxy says of its drain, in its ``/status`` and when it is told to begin or to end it."""

    draining: bool = False
    refusing: bool = False
    rows_left: int = 0


class _DeadLetters(msgspec.Struct):
    rows: int


class _UpstreamRequests(msgspec.Struct):
    delivered_rows_1m: int | None = None
    replies_1m: int = 0
    throttled_1m: int = 0


class _Status(msgspec.Struct):
    buffer: _Buffer
    tokens: _Tokens
    destinations: list[_Destination]
    uptime_s: float | None = None
    drain: DrainState = DrainState()
    dead_letters: _DeadLetters = msgspec.field(default_factory=lambda: _DeadLetters(rows=0))
    upstream_requests: _UpstreamRequests = msgspec.field(default_factory=_UpstreamRequests)


def read_report(body: bytes | bytearray) -> ProxyReport:
    """``/status`` of a proxy. Raises ``msgspec.DecodeError`` if it is not that."""
    said = msgspec.json.decode(body, type=_Status)
    buffer, token, candidate = said.buffer, said.tokens.tinybird, said.tokens.candidate
    stuck = [found for found in said.destinations if found.cause is not None and found.buffered_rows]
    # A proxy that drains may promise rows of a first contact yet; only there are they counted too.
    left = said.drain.rows_left if said.drain.draining else 0
    return ProxyReport(
        rows=max(buffer.rows, left),
        size_bytes=buffer.bytes,
        utilisation=buffer.utilisation,
        oldest_age_s=buffer.oldest_age_s,
        stuck_rows=sum(found.buffered_rows for found in stuck),
        stuck=[f"{found.data_source}: {found.sentence}" for found in stuck],
        token_hash=None if token is None else token.hash,
        token_accepted=token is not None and token.accepted_at is not None,
        # Both are UTC as ISO 8601, which sorts.
        token_denied=token is not None and token.denied_at is not None and (token.accepted_at or "") < token.denied_at,
        candidate_rejected=candidate is not None and candidate.rejected,
        clients_hash=None if said.tokens.clients is None else said.tokens.clients.hash,
        draining=said.drain.draining,
        refusing=said.drain.refusing,
        dead_letter_rows=said.dead_letters.rows,
        uptime_s=said.uptime_s,
        next_token_hash=None if candidate is None or candidate.rejected else candidate.hash,
        rejected_token_hash=candidate.hash if candidate is not None and candidate.rejected else None,
        delivered_rows_1m=said.upstream_requests.delivered_rows_1m,
        replies_1m=said.upstream_requests.replies_1m,
        throttled_1m=said.upstream_requests.throttled_1m,
        throttled_rows=sum(found.buffered_rows for found in stuck if found.cause == Cause.THROTTLED),
    )


def read_drain(body: bytes | bytearray) -> DrainState:
    """What a proxy answers when it is told to drain, or no longer to. Raises ``msgspec.DecodeError`` if it is not that.

    What does not say ``draining`` is somebody else's answer.
    """
    if "draining" not in msgspec.json.decode(body, type=dict[str, Any]):
        raise msgspec.ValidationError("no word of draining")
    return msgspec.json.decode(body, type=DrainState)


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
