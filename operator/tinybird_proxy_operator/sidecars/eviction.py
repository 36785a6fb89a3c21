"""Which pods are evicted so that others with the present sidecar take their place. Pure; ``now_s`` is a clock.

For each owner (a Deployment, say) at most one at a time, and the next only when as many pods as before are Ready. If
what came in the place of an evicted pod has no sidecar either, evicting does not help: then it is tried again later
and later. Nothing is evicted while rows are not delivered: who goes would lose them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from tinybird_proxy_operator.names import some
from tinybird_proxy_operator.sidecars.app_pods import AppPod, State

AT_ONCE: Final = 10  # owners, in one look
# So long a pod's successor may take to be there, before it counts as scaled away.
SUCCESSOR_S: Final = 60.0
HELPS_NOT_S: Final = 30.0
HELPS_NOT_MAX_S: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The last eviction for one owner. ``known``: the uids of its pods then. ``failures``: in a row, without use."""

    at_s: float
    known: frozenset[str]
    failures: int = 0
    failed_at_s: float | None = None

    @property
    def pause_s(self) -> float:
        """How long after a failure it is not tried again."""
        return min(HELPS_NOT_S * 2.0 ** (self.failures - 1), HELPS_NOT_MAX_S) if self.failures else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """``evict``: who, and by its owner what to remember once it is done. ``turns``: what to remember in any case.

    ``useless``: owners whose new pods have no sidecar either. ``held``: why nothing is evicted; empty: nothing holds.
    """

    evict: Mapping[str, tuple[AppPod, Turn]] = field(default_factory=dict)
    turns: Mapping[str, Turn] = field(default_factory=dict)
    useless: Sequence[str] = ()
    held: str = ""


def decide(pods: Sequence[AppPod], turns: Mapping[str, Turn], *, now_s: float) -> Decision:
    """``turns``: as they were remembered, by owner."""
    owners: dict[str, list[AppPod]] = {}
    for pod in pods:
        if pod.owner is not None:
            owners.setdefault(pod.owner, []).append(pod)
    kept = {name: _judged(turn, owners[name], now_s) for name, turn in turns.items() if name in owners}
    useless = [name for name, turn in kept.items() if turn.failures]
    if held := _why_not(pods):
        return Decision(turns=kept, useless=useless, held=held)
    chosen: dict[str, tuple[AppPod, Turn]] = {}
    for name, theirs in owners.items():
        turn = kept.get(name)
        candidate = _next(theirs, turn, now_s)
        if candidate is not None and len(chosen) < AT_ONCE:
            known = frozenset(each.uid for each in theirs)
            failures = 0 if turn is None else turn.failures
            chosen[name] = candidate, Turn(at_s=now_s, known=known, failures=failures)
    return Decision(evict=chosen, turns=kept, useless=useless)


def _why_not(pods: Sequence[AppPod]) -> str:
    stuck = [pod.name for pod in pods if pod.facts is not None and pod.facts.report and pod.facts.report.stuck_rows]
    if not stuck or not any(pod.outdated and pod.owner is not None for pod in pods):
        return ""
    return f"Nothing is evicted while rows wait that are not delivered ({some(stuck)}); see BufferHealthy."


def _judged(turn: Turn, pods: Sequence[AppPod], now_s: float) -> Turn:
    """The same, with what the pods that came since tell of its use."""
    new = [pod for pod in pods if pod.uid not in turn.known]
    if any(pod.state is State.CURRENT for pod in new):
        return replace(turn, failures=0, failed_at_s=None)
    if turn.failed_at_s is None and any(pod.state in (State.MISSED, State.REFUSED) for pod in new):
        return replace(turn, failures=turn.failures + 1, failed_at_s=now_s)
    return turn


def _next(pods: Sequence[AppPod], turn: Turn | None, now_s: float) -> AppPod | None:
    """Whose turn it is: first who is not Ready, for that takes nothing away from anybody."""
    candidates = sorted((pod for pod in pods if pod.outdated), key=lambda pod: (pod.ready, pod.name))
    if not candidates or any(pod.terminating for pod in pods):
        return None
    if turn is not None:
        if turn.failed_at_s is not None and now_s - turn.failed_at_s < turn.pause_s:
            return None
        came = any(pod.uid not in turn.known for pod in pods)
        if not came and turn.failed_at_s is None and now_s - turn.at_s < SUCCESSOR_S:
            return None
    first = candidates[0]
    return first if not first.ready or all(pod.ready for pod in pods) else None
