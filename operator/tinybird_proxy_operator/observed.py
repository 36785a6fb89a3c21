"""What the cluster and the pods say, as values. Pure: ``reconcile`` gathers, ``status`` judges.

``live_objects`` reads what is the API server's, and ``proxy_answers`` what is the proxies' own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tinybird_proxy_operator.names import Reason, some
from tinybird_proxy_operator.preflight import Decision


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
    it; ``sidecars_current``: that condition. ``pods``: those that have one. ``injected_by_others``: a sentence, where
    something else than this operator injects.
    ``lost``: what ended processes lost so far, as the status says it.
    ``otlp_headers``: what is wrong with the Secret for the collector, which keeps nothing else waiting.
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
    injected_by_others: str = ""
    lost: Mapping[str, Any] | None = None
    otlp_headers: Problem | None = None


def accepted_by(observed: Observed) -> dict[str, str | None] | None:
    """The list of client tokens that each pod accepts, by its hash; None: it is not known which pods there are."""
    workload, placed = observed.workload, [pod for pod in observed.pods if pod.placed]
    if observed.wanted_replicas and not (workload is not None and workload.generation_seen and placed):
        return None
    return {pod.name: None if pod.report is None else pod.report.clients_hash for pod in placed}
