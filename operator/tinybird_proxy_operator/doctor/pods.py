"""What is to say of the pods: why they do not start, are not ready, or do not deliver. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tinybird_proxy.health import count, duration
from tinybird_proxy_operator import last_words
from tinybird_proxy_operator.doctor.facts import Answer, Facts, Finding, Level, PodSeen
from tinybird_proxy_operator.names import Reason
from tinybird_proxy_operator.status import FILLING_RATIO

_IMAGE_WAITS: Final = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_STARTS: Final = ("ContainerCreating", "PodInitializing")
_WORDS_MAX_CHARS: Final = 500
_TOLD_MAX: Final = 3
_PROBLEM, _UNKNOWN, _NOTE = Level.PROBLEM, Level.UNKNOWN, Level.NOTE
_DESCRIBE: Final = "describe pod {pod}"
_Seen = tuple[str, str]  # reason, why


@dataclass(frozen=True, slots=True)
class _Trouble:
    """One kind of finding. ``one`` and ``many``: what to say of a pod, and of several."""

    level: Level
    one: str
    many: str
    next: str
    commands: Sequence[str] = ()


# The first has to be put right first.
_TROUBLES: Final[dict[str, _Trouble]] = {
    "Unschedulable": _Trouble(
        _PROBLEM,
        "finds no node to run on",
        "find no node to run on",
        "Make room on the nodes, or change what the pods ask for: spec.pod (resources, nodeSelector, tolerations,"
        " affinity, topologySpreadConstraints).",
        [_DESCRIBE, "get events --field-selector=involvedObject.name={pod}"],
    ),
    "ImagePull": _Trouble(
        _PROBLEM,
        "cannot get the image",
        "cannot get the image",
        "See that the image exists, that the nodes reach its registry, and that spec.imagePullSecrets names a Secret"
        " for it; without spec.image it is the chart's proxy.image.",
        [_DESCRIBE, "get pod {pod} --output=jsonpath='{{.spec.containers[*].image}}'"],
    ),
    "CrashLoop": _Trouble(
        _PROBLEM,
        "ends again and again",
        "end again and again",
        "Its last words say why; what it held in memory is lost with each end.",
        ["logs {pod}{of} --previous --tail=50", _DESCRIBE],
    ),
    Reason.PODS_FAILING: _Trouble(
        _PROBLEM, "cannot start", "cannot start", "Put right what Kubernetes says of it.", [_DESCRIBE]
    ),
    Reason.OUT_OF_MEMORY: _Trouble(
        _PROBLEM,
        "ran out of memory and was ended: what it held is lost",
        "ran out of memory and were ended: what they held is lost",
        "Raise spec.pod.resources.limits.memory, or lower spec.buffer.maxSize: a pod needs its buffer and 384Mi.",
        [_DESCRIBE, "edit tinybirdproxy {name}"],
    ),
    Reason.NOT_READY: _Trouble(
        _PROBLEM,
        "runs and is not ready",
        "run and are not ready",
        "See its log.",
        ["logs {pod}{of} --tail=50", _DESCRIBE],
    ),
    "NoAnswer": _Trouble(
        _UNKNOWN,
        "runs and does not answer the doctor",
        "run and do not answer the doctor",
        "Ask from where the operator runs (kubectl exec into its pod): elsewhere the pods' addresses or a NetworkPolicy"
        " may be in the way. There too: see its log.",
        ["logs {pod}{of} --tail=50", "exec {pod}{of} -- tinybird-proxy dead-letters ls"],
    ),
    Reason.NOT_DELIVERING: _Trouble(
        _PROBLEM,
        "holds rows that are not being delivered",
        "hold rows that are not being delivered",
        "Do what the sentence says. Do not restart the pod: the rows are in its memory.",
        ["port-forward {pod} {port} # then: curl http://127.0.0.1:{port}/status"],
    ),
    Reason.FULL: _Trouble(
        _PROBLEM,
        "has a full buffer: clients get 503 and are asked to come back",
        "have full buffers: clients get 503 and are asked to come back",
        "If rows are delivered, more pods share the load: raise spec.replicas, or spec.buffer with the memory for it.",
        ["scale tinybirdproxy {name} --replicas=N"],
    ),
    Reason.FILLING: _Trouble(
        _PROBLEM,
        "has a buffer that is nearly full",
        "have buffers that are nearly full",
        "If rows are delivered, more pods share the load: raise spec.replicas, or spec.buffer with the memory for it.",
        ["scale tinybirdproxy {name} --replicas=N"],
    ),
    "DeadLetters": _Trouble(
        _PROBLEM,
        "holds dead letters, in memory only",
        "hold dead letters, in memory only",
        "Look at them, then replay or export and drop them; a restart loses them.",
        [
            "exec {pod}{of} -- tinybird-proxy dead-letters ls",
            "exec {pod}{of} -- tinybird-proxy dead-letters export > letters.ndjson",
        ],
    ),
    "Starting": _Trouble(_NOTE, "is being created", "are being created", "Wait a minute, and ask again.", [_DESCRIBE]),
    "Restarted": _Trouble(
        _NOTE,
        "was restarted",
        "were restarted",
        "What was in memory then is gone.",
        ["logs {pod}{of} --previous --tail=50"],
    ),
    "Leaving": _Trouble(_NOTE, "is on its way out", "are on their way out", ""),
    "Ended": _Trouble(_NOTE, "has ended, and is kept as an object", "have ended, and are kept as objects", ""),
}


_MORE_MEMORY: Final = (
    "Raise spec.buffer, with spec.pod.resources if that is set, and restart the pods; or have more pods of the app"
    " share the load."
)
# What is another in an app's pod.
_SIDECAR_TROUBLES: Final[dict[str, _Trouble]] = {
    **_TROUBLES,
    "Unschedulable": replace(
        _TROUBLES["Unschedulable"],
        next="Make room on the nodes, or let the app's pods or their sidecar (spec.pod.resources) ask for less.",
    ),
    "ImagePull": replace(
        _TROUBLES["ImagePull"],
        one="cannot get the sidecar's image, so its app does not start",
        many="cannot get the sidecar's image, so their apps do not start",
        next="See that the image exists, and that the nodes reach its registry without a Secret, or with the pod's own"
        " imagePullSecrets; without spec.image it is the chart's proxy.image.",
        commands=[_DESCRIBE, "get pod {pod} --output=jsonpath='{{.spec.initContainers[*].image}}'"],
    ),
    Reason.OUT_OF_MEMORY: replace(
        _TROUBLES[Reason.OUT_OF_MEMORY],
        one="has a sidecar that ran out of memory and was ended: what it held is lost",
        many="have sidecars that ran out of memory and were ended: what they held is lost",
        next="Raise spec.pod.resources.limits.memory, or lower spec.buffer.maxSize, and restart the pods.",
    ),
    "NoAnswer": replace(
        _TROUBLES["NoAnswer"],
        one="has a sidecar that runs and does not answer the doctor",
        many="have sidecars that run and do not answer the doctor",
        next="Ask from where the operator runs (kubectl exec into its pod). There it is a NetworkPolicy of the app's,"
        " which has to let the operator's pods in on the admin port, or the sidecar: see its log.",
    ),
    Reason.FULL: replace(_TROUBLES[Reason.FULL], next=_MORE_MEMORY, commands=["edit tinybirdproxy {name}"]),
    Reason.FILLING: replace(_TROUBLES[Reason.FILLING], next=_MORE_MEMORY, commands=["edit tinybirdproxy {name}"]),
}


def pod_findings(facts: Facts) -> Iterator[Finding]:
    """One finding for each kind of trouble, however many pods have it."""
    if facts.pods is None:
        yield Finding(level=_UNKNOWN, reason="PodsUnknown", what="The pods could not be listed.")
        return
    seen: dict[str, list[tuple[PodSeen, str]]] = {}
    for pod in facts.pods:
        for reason, why in _looked_at(pod):
            seen.setdefault(reason, []).append((pod, why))
    for reason, trouble in _TROUBLES.items():
        if found := seen.get(reason):
            trouble = _SIDECAR_TROUBLES[reason] if found[0][0].app is not None else trouble
            yield _finding(facts, reason, trouble, found)


def _finding(facts: Facts, reason: str, trouble: _Trouble, found: Sequence[tuple[PodSeen, str]]) -> Finding:
    pod = found[0][0]
    first, of = pod.name, "" if pod.container_name is None else f" --container={pod.container_name}"
    told = [f"{pod.name}: {why}" if len(found) > 1 else why for pod, why in found[:_TOLD_MAX] if why]
    if len(found) > _TOLD_MAX:
        told.append(f"and {len(found) - _TOLD_MAX} more.")
    return Finding(
        level=trouble.level,
        reason=str(reason),
        what=f"{first} {trouble.one}." if len(found) == 1 else f"{len(found)} pods {trouble.many}.",
        why=" ".join(told),
        next=trouble.next,
        commands=[
            facts.kubectl(command.format(pod=first, name=facts.name, of=of, port=pod.admin_port))
            for command in trouble.commands
        ],
    )


def _looked_at(pod: PodSeen) -> Iterator[_Seen]:
    if pod.ended:
        yield "Ended", _end_in_words(pod)
        return
    if pod.facts.out_of_memory:
        yield Reason.OUT_OF_MEMORY, _end_in_words(pod)
    if pod.runs:
        yield from _running(pod)
    elif pod.leaving:
        yield "Leaving", ""
    else:
        yield from _not_running(pod)


def _not_running(pod: PodSeen) -> Iterator[_Seen]:
    conditions = pod.pod.get("status", {}).get("conditions") or []
    unscheduled = next((c for c in conditions if c["type"] == "PodScheduled" and c["status"] == "False"), None)
    waiting = (pod.container.get("state") or {}).get("waiting") or {}
    reason = waiting.get("reason", "")
    said = ": ".join(filter(None, (reason, waiting.get("message"))))
    if unscheduled is not None:
        yield "Unschedulable", unscheduled.get("message", "")
    elif reason in _IMAGE_WAITS:
        yield "ImagePull", said
    elif reason == "CrashLoopBackOff" or (not reason and pod.last_end):
        if not pod.facts.out_of_memory:
            yield "CrashLoop", _end_in_words(pod)
    elif reason and reason not in _STARTS:
        yield Reason.PODS_FAILING, said
    elif pod.events:
        yield Reason.PODS_FAILING, " ".join(pod.events)
    else:
        yield "Starting", ""


def _running(pod: PodSeen) -> Iterator[_Seen]:
    answer = pod.answer
    leaving = pod.leaving or (answer is not None and answer.phase in ("draining", "stopping"))
    if leaving:
        yield "Leaving", (answer and answer.sentence) or ""
    elif not pod.facts.ready:
        yield Reason.NOT_READY, (answer and answer.sentence) or "It does not answer."
    if answer is None:
        yield "NoAnswer", ""
    else:
        yield from _buffer(answer)
    restarts = pod.container.get("restartCount", 0)
    if restarts and not pod.facts.out_of_memory:
        yield "Restarted", f"{count(restarts, 'time')}. {_end_in_words(pod)}".strip()


def _buffer(answer: Answer) -> Iterator[_Seen]:
    report = answer.report
    if report.stuck_rows:
        oldest = "" if report.oldest_age_s is None else f", the oldest row for {duration(report.oldest_age_s)}"
        told = " ".join(report.stuck[:_TOLD_MAX])
        yield Reason.NOT_DELIVERING, f"{count(report.stuck_rows, 'row')} of {report.rows:,} wait{oldest}. {told}"
    if report.utilisation >= 1.0:
        yield Reason.FULL, f"{count(report.rows, 'row')}, {report.size_bytes:,} bytes."
    elif report.utilisation >= FILLING_RATIO:
        yield Reason.FILLING, f"{report.utilisation:.0%}: {count(report.rows, 'row')}, {report.size_bytes:,} bytes."
    if answer.dead_letter_rows:
        yield "DeadLetters", f"{count(answer.dead_letter_rows, 'row')}."


def _end_in_words(pod: PodSeen) -> str:
    """How the container, or else the pod, ended, with the proxy's last words."""
    ended, status = pod.last_end, pod.pod.get("status", {})
    if not ended:
        return ": ".join(filter(None, (status.get("reason"), status.get("message"))))
    how = f"{ended.get('reason') or 'It ended'}, exit status {ended.get('exitCode', 'unknown')}"
    when = f" at {ended['finishedAt']}" if ended.get("finishedAt") else ""
    words = " ".join((ended.get("message") or "").split())
    if len(words) > _WORDS_MAX_CHARS:
        # The proxy's own begin with what was lost; a log that stands in for them ends with the error.
        own = last_words.read(ended["message"]) is not None
        words = f"{words[:_WORDS_MAX_CHARS]}…" if own else f"…{words[-_WORDS_MAX_CHARS:]}"
    return f"{how}{when}." + (f" Its last words: {words}" if words else " It left no last words.")
