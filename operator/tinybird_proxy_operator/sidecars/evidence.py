"""Whether something else injects where this operator's release does not: what the pods prove. Pure.

Another release may inject for all, or a policy that another install left. Nobody says so but the pods. One that has a
sidecar and was not there when this operator, which injects nowhere, looked first, was given it by something else. One
that was there then proves nothing: it may be older than the end of injection. And once a pod was missed, those that had
a sidecar by then prove nothing any more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tinybird_proxy_operator.names import ConditionType, Reason
from tinybird_proxy_operator.sidecars.app_pods import AppPod, State

# So long after the operator's first look what its own release injected with may still be there: helm takes away what a
# release no longer has when everything else is upgraded.
SETTLING_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """``witness``: the newest pod that has a sidecar, while something else is known to inject; empty: nothing is.

    ``known``: the uids of pods that prove nothing.
    """

    witness: str = ""
    known: frozenset[str] = frozenset()


def weigh(pods: Sequence[AppPod], before: Evidence | None, *, settled: bool, believed: bool = False) -> Evidence:
    """``before``: of the last look; None: this is the first. ``settled``: SETTLING_S are over.

    ``believed``: the operator before this one had proof, which holds as long as nothing speaks against it.
    """
    present = frozenset(pod.uid for pod in pods)
    injected = [pod for pod in pods if pod.asks and pod.state in (State.CURRENT, State.STALE)]
    newest = max(injected, key=lambda pod: pod.created_at, default=None)
    # Of one second nobody knows which was first.
    if newest is None or any(pod.state is State.MISSED and pod.created_at >= newest.created_at for pod in pods):
        return Evidence(known=present)
    known = before.known & present if before is not None and settled else present
    proved = believed if before is None else before.witness != ""
    if proved or any(pod.uid not in known for pod in injected):
        return Evidence(witness=newest.name, known=known)
    return Evidence(known=known)


def is_believed(status: Mapping[str, Any]) -> bool:
    """Whether the last status says that something else injects."""
    return any(
        found["type"] == ConditionType.READY and found["reason"] == Reason.INJECTED_BY_OTHERS
        for found in status.get("conditions") or ()
    )


def sentence(witness: str) -> str:
    """What is told of it; empty where there is no witness."""
    if not witness:
        return ""
    return (
        f"This operator puts sidecars into no pods itself, something else does ({witness} is the newest pod that has"
        " one); whether it goes on is not in this operator's hands."
    )
