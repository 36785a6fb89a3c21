"""What each pod held when it was last asked, so that it can be told of a process that is no more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tinybird_proxy_operator.observed import PodFacts

# Two answers are of one process if it began at the same time, within what a request may take.
_SAME_START_S = 5.0


@dataclass(frozen=True, slots=True)
class Held:
    """Rows of the process that answered last, when that began, and rows of the one before it at its last answer."""

    began_at: float
    rows: int
    before: int | None = None


def remember(known: Mapping[str, Held], pods: Sequence[PodFacts], now: float) -> dict[str, Held]:
    """What is known after ``pods`` were asked at ``now``, a clock's seconds; by the uid of the pod.

    Not by its name: a StatefulSet gives it to the next one, which has lost nothing of what was in the one before.
    """
    found = {}
    for pod in pods:
        held, report = known.get(pod.uid), pod.report
        if report is not None and report.uptime_s is not None:
            began_at = now - report.uptime_s
            if held is None:
                found[pod.uid] = Held(began_at, report.rows)
            elif began_at - held.began_at > _SAME_START_S:
                found[pod.uid] = Held(began_at, report.rows, before=held.rows)
            else:
                found[pod.uid] = replace(held, rows=report.rows)
        elif held is not None:
            found[pod.uid] = held
    return found


def with_lost_rows(known: Mapping[str, Held], pods: Sequence[PodFacts]) -> list[PodFacts]:
    """The pods, those that were ended by force with what they held then. ``known``: with their last answers."""
    return [
        replace(pod, lost_rows=_lost(known.get(pod.uid), pod)) if pod.out_of_memory or pod.killed_with else pod
        for pod in pods
    ]


def _lost(held: Held | None, pod: PodFacts) -> int | None:
    if held is None:
        return None
    return held.rows if pod.report is None else held.before
