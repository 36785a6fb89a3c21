"""What would be lost if the resource were deleted now, and what was lost so far: numbers, and a sentence. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinybird_proxy.health import count
from tinybird_proxy_operator.doctor.facts import Answer, PodSeen
from tinybird_proxy_operator.spec import ProxySpec

# A rate says something of Tinybird only while rows queue: otherwise it is the clients' own.
_QUEUED_FLUSH_INTERVALS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Rows in pods that answered. ``deliverable_rows`` need Tinybird to answer; the others would be lost.

    ``late_rows`` flow, but take longer than the pods have, at the present rate. ``silent_pods`` may hold any number;
    ``known`` False: not even the pods are known.
    """

    shutdown_timeout_seconds: int
    deliverable_rows: int
    late_rows: int
    stuck_rows: int
    dead_letter_rows: int
    silent_pods: Sequence[str]
    known: bool
    sentence: str


def loss_if_deleted(pods: Sequence[PodSeen] | None, spec: ProxySpec) -> Loss:
    """Add up what every pod that may hold rows says. Deletion ends in the pods' own drain on SIGTERM."""
    timeout_s, flush_interval_s = spec.drain.shutdown_timeout_seconds, spec.batch.flush_interval_milliseconds / 1000
    holding = [pod for pod in pods or () if pod.runs]
    answers = [pod.answer for pod in holding if pod.answer is not None]
    late = sum(_late_rows(answer, timeout_s, flush_interval_s) for answer in answers)
    stuck = sum(answer.report.stuck_rows for answer in answers)
    deliverable = sum(_flowing_rows(answer) for answer in answers) - late
    # A proxy that does not say has a version without them.
    letters = sum(answer.dead_letter_rows or 0 for answer in answers)
    silent = [pod.name for pod in holding if pod.answer is None]
    return Loss(
        shutdown_timeout_seconds=timeout_s,
        deliverable_rows=deliverable,
        late_rows=late,
        stuck_rows=stuck,
        dead_letter_rows=letters,
        silent_pods=silent,
        known=pods is not None,
        sentence=" ".join(
            _sentences(
                deliverable, late, stuck, letters, silent, timeout_s, holding=len(holding), known=pods is not None
            )
        ),
    )


def sidecars_if_deleted(pods: Sequence[PodSeen] | None, spec: ProxySpec) -> Loss:
    """In mode Sidecar no pod goes with the resource."""
    holding = [pod for pod in pods or () if pod.runs]
    rows = sum(pod.answer.report.rows for pod in holding if pod.answer is not None)
    said = ["Nothing is lost: the apps' pods stay, and their sidecars go on delivering with the token that they have."]
    if rows:
        said.append(f"{count(rows, 'row')} that they hold now are among that.")
    said.append(
        "New pods get no sidecar (with the chart's injectionFailurePolicy: Fail none that asks is made at all), and"
        " nobody tells what becomes of the old ones."
    )
    return Loss(
        shutdown_timeout_seconds=spec.drain.shutdown_timeout_seconds,
        deliverable_rows=rows,
        late_rows=0,
        stuck_rows=0,
        dead_letter_rows=0,
        silent_pods=[],
        known=pods is not None,
        sentence=" ".join(said),
    )


def lost_so_far(status: Mapping[str, Any]) -> str | None:
    """What the status says that ended processes lost; None: nothing."""
    if not (lost := status.get("lost")):
        return None
    said = f"{count(lost['rows'], 'row')} since the resource was made"
    if in_doubt := lost["inDoubtRows"]:
        said += f", {in_doubt:,} of them may have arrived"
    if letters := lost["deadLetterRows"]:
        said += f"; and {count(letters, 'row')} of dead letters"
    last = [f"{each['pod']} at {each['at']}" for each in lost.get("recent", [])][-1:]
    return f"{said}. {''.join(f'The last: {each}. ' for each in last)}The Event RowsLost says why."


def _flowing_rows(answer: Answer) -> int:
    return max(0, answer.report.rows - answer.report.stuck_rows)


def _late_rows(answer: Answer, timeout_s: float, flush_interval_s: float) -> int:
    report, seconds = answer.report, answer.seconds_to_drain
    if not seconds or (report.oldest_age_s or 0.0) < _QUEUED_FLUSH_INTERVALS * flush_interval_s:
        return 0
    return max(0, _flowing_rows(answer) - int(report.rows / seconds * timeout_s))


def _sentences(
    deliverable: int,
    late: int,
    stuck: int,
    letters: int,
    silent: Sequence[str],
    timeout_s: int,
    *,
    holding: int,
    known: bool,
) -> list[str]:
    if not known:
        return ["Not known: the pods could not be listed."]
    if not holding:
        return ["Nothing: no pod of this resource runs."]
    said = []
    if deliverable:
        said.append(
            f"{count(deliverable, 'row')} would be delivered within {timeout_s} s (spec.drain.shutdownTimeoutSeconds)"
            " if Tinybird answers."
        )
    if late:
        said.append(
            f"{count(late, 'row')} would be lost: at the present rate they take longer than these {timeout_s} s."
        )
    if stuck:
        said.append(f"{count(stuck, 'row')} are not being delivered, and would be lost unless that ends meanwhile.")
    if letters:
        said.append(f"{count(letters, 'row')} in dead letters would be lost: they are in the pods' memory only.")
    if silent:
        who, what = ("1 pod does", "it holds") if len(silent) == 1 else (f"{len(silent)} pods do", "they hold")
        said.append(f"{who} not answer ({', '.join(silent)}): what {what} is not known, and would go unseen.")
    return said or ["Nothing: no row waits, and there are no dead letters."]
