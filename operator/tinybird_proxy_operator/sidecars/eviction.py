"""Which pods are evicted so that others with the present sidecar take their place. Pure; ``now_s`` is a clock.

For each owner (a Deployment, say) at most one at a time, and the next only when as many pods as before are Ready. If
what came in the place of an evicted pod does not have the sidecar as it is now either, evicting does not help: then it
is tried again later and later. If nothing came, perhaps nothing can (a quota, an admission that refuses), and the next
eviction would take away what is left: then none is until a pod comes, or the owner wants no more than it has. Nothing
is evicted while rows are not delivered: who goes would lose them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tinybird_proxy_operator.names import some
from tinybird_proxy_operator.sidecars.app_pods import AppPod, State
from tinybird_proxy_operator.sidecars.injection import chosen

AT_ONCE: Final = 10  # owners, in one look
# So long a pod's successor may take to be there.
SUCCESSOR_S: Final = 60.0
HELPS_NOT_S: Final = 30.0
HELPS_NOT_MAX_S: Final = 600.0
# So long an owner without pods is remembered: the only one of a StatefulSet is away for as long as it takes to end.
GONE_S: Final = 3600.0
_TOLD_MAX: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The last eviction for one owner. ``known``: the uids of its pods then. ``failures``: in a row, without use.

    ``hash``: of the sidecar that the successor was to get.
    """

    at_s: float
    known: frozenset[str]
    hash: str = ""
    failures: int = 0
    failed_at_s: float | None = None

    @property
    def pause_s(self) -> float:
        """How long after a failure it is not tried again."""
        return min(HELPS_NOT_S * 2.0 ** (self.failures - 1), HELPS_NOT_MAX_S) if self.failures else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """``evict``: who, and by its owner what to remember once it is done. ``turns``: what to remember in any case.

    ``useless``: owners whose new pods do not have the present sidecar either. ``held``: sentences on why nothing is
    evicted, or not of an owner.
    """

    evict: Mapping[str, tuple[AppPod, Turn]] = field(default_factory=dict)
    turns: Mapping[str, Turn] = field(default_factory=dict)
    useless: Sequence[str] = ()
    held: Sequence[str] = ()


def decide(
    pods: Sequence[AppPod],
    turns: Mapping[str, Turn],
    *,
    now_s: float,
    hash: str = "",
    complete: Collection[str] = (),
    tried: Mapping[str, float] | None = None,
) -> Decision:
    """``turns``: as they were remembered, by owner. ``hash``: of the present sidecar.

    ``complete``: those of ``overdue`` that want no more pods than they have, and whose pods ask.
    ``tried``: when an owner's turn was last; whose was longest ago comes first, so that those with a budget that lets
    nobody go do not keep others waiting.
    """
    last = tried or {}
    owners = dict(sorted(_by_owner(pods).items(), key=lambda each: last.get(each[0], float("-inf"))))
    kept = {name: _judged(turn, owners.get(name, ()), now_s, hash) for name, turn in turns.items()}
    kept = {name: turn for name, turn in kept.items() if name in owners or now_s - turn.at_s < GONE_S}
    useless = [name for name, turn in kept.items() if turn.failures and name in owners]
    if held := _why_not(pods):
        return Decision(turns=kept, useless=useless, held=[held])
    chosen: dict[str, tuple[AppPod, Turn]] = {}
    waits: list[str] = []
    for name, theirs in owners.items():
        turn = kept.get(name)
        candidate, why = _next(name, theirs, turn, now_s, complete=name in complete)
        if why:
            waits.append(why)
        if candidate is not None and len(chosen) < AT_ONCE:
            known = frozenset(each.uid for each in theirs)
            failures = 0 if turn is None else turn.failures
            chosen[name] = candidate, Turn(at_s=now_s, known=known, hash=hash, failures=failures)
    if len(waits) > _TOLD_MAX:
        waits = [*waits[:_TOLD_MAX], f"{len(waits) - _TOLD_MAX} more wait in the same way."]
    return Decision(evict=chosen, turns=kept, useless=useless, held=waits)


def overdue(pods: Sequence[AppPod], turns: Mapping[str, Turn], *, now_s: float) -> list[str]:
    """Owners of pods that are to be evicted, and in the place of whose last evicted pod none came in time."""
    owners = _by_owner(pods)
    return [
        name
        for name, turn in turns.items()
        if any(pod.outdated for pod in owners.get(name, ()))
        and not _came(owners[name], turn)
        and now_s - turn.at_s >= SUCCESSOR_S
    ]


def wants_more(owner: Mapping[str, Any], *, ready: bool = False) -> bool:
    """Whether the Deployment or StatefulSet has fewer pods than it wants; ``ready``: or fewer that are available.

    It does not matter why: its author rolls it out, or its pods cannot be made.
    """
    spec, status = owner.get("spec") or {}, owner.get("status") or {}
    if status.get("observedGeneration", 0) < owner["metadata"].get("generation", 0):
        return True
    return bool(status.get("availableReplicas" if ready else "replicas", 0) < spec.get("replicas", 1))


def would_ask(owner: Mapping[str, Any], name: str, namespace_labels: Mapping[str, str]) -> bool:
    """Whether the pods that it makes ask for the sidecar of ``name``, as far as its template says."""
    template = (owner.get("spec") or {}).get("template") or {}
    return chosen((template.get("metadata") or {}).get("labels"), namespace_labels) == name


def _by_owner(pods: Sequence[AppPod]) -> dict[str, list[AppPod]]:
    owners: dict[str, list[AppPod]] = {}
    for pod in pods:
        if pod.owner is not None:
            owners.setdefault(pod.owner, []).append(pod)
    return owners


def _came(pods: Sequence[AppPod], turn: Turn) -> list[AppPod]:
    return [pod for pod in pods if pod.uid not in turn.known]


def _why_not(pods: Sequence[AppPod]) -> str:
    stuck = [pod.name for pod in pods if pod.facts is not None and pod.facts.report and pod.facts.report.stuck_rows]
    if not stuck or not any(pod.outdated and pod.owner is not None for pod in pods):
        return ""
    return f"Nothing is evicted while rows wait that are not delivered ({some(stuck)}); see BufferHealthy."


def _judged(turn: Turn, pods: Sequence[AppPod], now_s: float, hash: str) -> Turn:
    """The same, with what the pods that came since tell of its use."""
    new = _came(pods, turn)
    if any(pod.state is State.CURRENT for pod in new):
        return replace(turn, failures=0, failed_at_s=None)
    # One that is stale although nothing has changed since got an older one: so would the next.
    bad = (State.MISSED, State.REFUSED, *((State.STALE,) if turn.hash == hash else ()))
    if turn.failed_at_s is None and any(pod.state in bad for pod in new):
        return replace(turn, failures=turn.failures + 1, failed_at_s=now_s)
    return turn


def _next(
    owner: str, pods: Sequence[AppPod], turn: Turn | None, now_s: float, *, complete: bool
) -> tuple[AppPod | None, str]:
    """Whose turn it is, or what is waited for: first who is not Ready, for that takes nothing away from anybody."""
    candidates = sorted((pod for pod in pods if pod.outdated), key=lambda pod: (pod.ready, pod.name))
    if not candidates:
        return None, ""
    if going := [pod.name for pod in pods if pod.terminating]:
        return None, f"{owner}: the next is evicted when {some(going)} has gone."
    if turn is not None:
        if turn.failed_at_s is not None and now_s - turn.failed_at_s < turn.pause_s:
            return None, ""
        if not _came(pods, turn) and not complete:
            return None, _nothing_came(owner, now_s - turn.at_s)
    first = candidates[0]
    unready = [pod.name for pod in pods if not pod.ready]
    if first.ready and unready:
        return None, f"{owner}: the next is evicted when {some(unready)} {'is' if len(unready) == 1 else 'are'} Ready."
    return first, ""


def _nothing_came(owner: str, for_s: float) -> str:
    if for_s < SUCCESSOR_S:
        return f"{owner}: the next is evicted when another pod is in the place of the last."
    return (
        f"{owner}: no pod that asks for the sidecar came in the place of the one that was evicted, so no other is. The"
        " label must be in its template, or on the namespace; its Events say why no pod can be made (a quota, an"
        " admission that refuses it?); if it was scaled down, restart it."
    )
