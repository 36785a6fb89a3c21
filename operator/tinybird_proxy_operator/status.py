"""The status of a TinybirdProxy, made from what was observed. Pure; ``now`` is a UTC time as RFC 3339."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinybird_proxy_operator.names import (
    ConditionType,
    Reason,
    sidecar_selector,
    some,
    status_selector,
    two_digits,
)
from tinybird_proxy_operator.observed import Observed, PodFacts, ProxyReport, Workload, not_known
from tinybird_proxy_operator.preflight import Step
from tinybird_proxy_operator.spec import Proxy

FILLING_RATIO = 0.8
MESSAGE_MAX_CHARS = 1000
_LAST_LOOK = "at the last look"
_LOST = "what was in the buffer then is lost"
_BY_WHAT = "kubectl describe pod says by what: mostly the liveness probe or the node."
_CHANGE_NOT_SEEN = "Kubernetes has not taken up the last change yet."
_Judged = tuple[str, Reason, str]  # status, reason, message


def make_status(proxy: Proxy, observed: Observed, old: Mapping[str, Any], *, now: str) -> dict[str, Any]:
    """The whole status. Conditions keep the time of their last transition from ``old``."""
    reports = [pod.report for pod in observed.pods if pod.report is not None]
    workload = observed.workload
    is_sidecar = observed.sidecars is not None
    judged = {
        **({} if is_sidecar else {ConditionType.PROGRESSING: _progressing(observed, workload)}),
        ConditionType.DEGRADED: _degraded(observed, workload),
        ConditionType.TOKEN_VALID: _with_notes(_token_valid(observed), observed.notes),
        ConditionType.BUFFER_HEALTHY: _buffer_healthy(observed, old),
    }
    for kind, verdict in (
        (ConditionType.UPSTREAM_THROTTLED, observed.upstream_throttled),
        (ConditionType.AUTOSCALING, observed.autoscaling),
        (ConditionType.DRAINING, observed.draining or observed.shrinking),
        (ConditionType.SIDECARS_CURRENT, observed.sidecars_current),
    ):
        if verdict is not None:
            judged[kind] = verdict
    judged = {ConditionType.READY: _ready(observed, workload, judged), **judged}
    counted = {"replicas": sum(not pod.labelled for pod in observed.pods)}
    status: dict[str, Any] = {
        "observedGeneration": proxy.generation,
        **({} if is_sidecar else counted),
        "readyReplicas": sum(pod.ready for pod in observed.pods),
        "selector": sidecar_selector(proxy.name) if is_sidecar else status_selector(proxy.name),
        "conditions": [
            _condition(kind, verdict, old=old, generation=proxy.generation, now=now) for kind, verdict in judged.items()
        ],
    }
    if reports or not not_known(observed.pods):  # else nobody knows, and nothing is not 0
        status["buffer"] = {
            "rows": two_digits(sum(report.rows for report in reports)),
            "size": str(two_digits(sum(report.size_bytes for report in reports))),
            "oldestRowAgeSeconds": two_digits(max((report.oldest_age_s or 0.0 for report in reports), default=0.0)),
        }
    if is_sidecar:
        status["sidecars"] = dict(observed.sidecars or {})
        if observed.sidecar is not None:
            status["sidecar"] = dict(observed.sidecar)
    if observed.draining is not None:
        since = {found["pod"]: found["since"] for found in old.get("draining", [])}
        status["draining"] = [
            {"pod": pod.name, "rows": two_digits(pod.report.rows), "since": since.get(pod.name, now)}
            for pod in observed.pods
            if pod.report is not None and pod.report.draining
        ]
    elif leaving := [pod for pod in observed.pods if pod.labelled and not pod.terminating]:
        status["draining"] = [_leaving(pod, now) for pod in leaving]
    if observed.uses_own_token and observed.expected_token_hash is not None:
        current = [observed.expected_token_hash in (report.token_hash, report.next_token_hash) for report in reports]
        status["token"] = {
            "expectedHash": observed.expected_token_hash,
            "podsCurrent": sum(current),
            "podsTotal": len(observed.pods),
            "podsUnknown": len(observed.pods) - len(reports),
            **_candidate(reports, observed.expected_token_hash),
        }
    if observed.lost is not None:
        status["lost"] = dict(observed.lost)
    return status


def _candidate(reports: Sequence[ProxyReport], expected: str) -> dict[str, Any]:
    """The changed token that pods try, or that Tinybird refused to one of them; of several the one in the Secret."""
    for state, hashes in (
        ("Rejected", {report.rejected_token_hash for report in reports}),
        ("Trying", {report.next_token_hash for report in reports}),
    ):
        if found := sorted(hashes - {None}, key=lambda each: (each != expected, each)):
            return {"candidate": {"hash": found[0], "state": state}}
    return {}


def _leaving(pod: PodFacts, now: str) -> dict[str, Any]:
    """A pod that is to go; without ``rows`` if it does not tell."""
    rows = {} if pod.report is None else {"rows": two_digits(pod.report.rows)}
    since = now if pod.draining_since is None else f"{pod.draining_since:%Y-%m-%dT%H:%M:%SZ}"
    return {"pod": pod.name, **rows, "since": since}


def differs(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether more than a figure changed: conditions, counts of pods, generation. Sentences are full of figures."""

    def firm(status: Mapping[str, Any]) -> dict[str, Any]:
        conditions = [
            {key: value for key, value in condition.items() if key != "message"}
            for condition in status.get("conditions", [])
        ]
        draining = [found["pod"] for found in status.get("draining", [])]
        return {**status, "buffer": None, "conditions": conditions, "draining": draining}

    return firm(new) != firm(old)


def _ready(observed: Observed, workload: Workload | None, others: Mapping[ConditionType, _Judged]) -> _Judged:
    if observed.draining is not None:
        return "False", Reason.DELETING, "It is being deleted; see Draining."
    if not observed.managed:
        return "Unknown", Reason.UNMANAGED, "managementState is Unmanaged: the operator leaves everything as it is."
    if observed.problems:
        first = observed.problems[0]
        return "False", first.reason, first.message
    token_status, token_reason, token_message = others[ConditionType.TOKEN_VALID]
    if token_status == "False":  # noqa: S105 - a condition's status
        return "False", token_reason, token_message
    if observed.sidecars is not None:
        return _ready_to_be_injected(observed)
    wanted = observed.wanted_replicas or 0
    if workload is None:
        return "False", Reason.NOT_READY, f"0 of {wanted} pods are ready."
    # A pod that was told to go a moment ago may still count as ready.
    leaving = sum(pod.ready and pod.labelled and not pod.terminating for pod in observed.pods)
    ready, available = max(0, workload.ready - leaving), max(0, workload.available - leaving)
    counted = f"{ready} of {wanted} pods are ready."
    if ready < wanted:
        return "False", Reason.NOT_READY, counted + _why_not(observed.pods)
    if ready > wanted:
        counted = f"{ready} pods are ready, {wanted} are wanted."
    if not workload.generation_seen:
        return "False", Reason.NOT_READY, f"{counted} {_CHANGE_NOT_SEEN}"
    # A connection may not reach a pod that became ready this moment: see minReadySeconds of the Deployment.
    if available < wanted:
        return "False", Reason.NOT_READY, f"{counted} {available} of them have been for long enough."
    return "True", Reason.READY, counted


def _ready_to_be_injected(observed: Observed) -> _Judged:
    """Of mode Sidecar, where nothing is wrong."""
    if observed.sidecar is None:
        return "False", Reason.NOT_READY, "There is no sidecar for pods yet."
    if observed.sidecars_current is not None and observed.sidecars_current[1] is Reason.INJECTION_OFF:
        return observed.sidecars_current
    running = sum(pod.ready for pod in observed.pods)
    text = f"Pods that ask for the sidecar get it; {running} {'has' if running == 1 else 'have'} one that takes rows."
    if observed.injected_by_others:  # the next operator reads it there
        return "True", Reason.INJECTED_BY_OTHERS, f"{text} {observed.injected_by_others}"
    return "True", Reason.READY, text


def _why_not(pods: Sequence[PodFacts]) -> str:
    waiting = [f"{pod.name}: {pod.waiting}" for pod in pods if pod.waiting is not None]
    return f" {'; '.join(waiting[:3])}." if waiting else ""


def _progressing(observed: Observed, workload: Workload | None) -> _Judged:
    if observed.draining is not None:
        return "False", Reason.DELETING, "It is being deleted: nothing new is rolled out."
    if observed.held is not None:
        return "False", Reason.ROLLOUT_HELD, observed.held
    if (tried := observed.preflight) is not None:
        ended = tried.step is Step.FAILED
        return ("False", Reason.PREFLIGHT_FAILED, tried.message) if ended else ("True", Reason.PREFLIGHT, tried.message)
    if workload is None:
        return "False", Reason.NOT_READY, "Nothing was rolled out yet."
    if workload.paused and not observed.managed:
        text = (
            "The rollout stands half-way, as it did when managementState was set to Unmanaged; Managed lets it go on."
        )
        return "False", Reason.ROLLOUT_HELD, text
    if workload.failed is not None:
        return "False", Reason.ROLLOUT_FAILED, workload.failed
    more = "" if observed.queued is None else f" {observed.queued}"
    if not workload.generation_seen:
        return "True", Reason.ROLLING_OUT, f"{_CHANGE_NOT_SEEN}{more}"
    if not workload.settled or workload.available < (observed.wanted_replicas or 0):
        text = f"{workload.updated} of {workload.replicas} pods run the Deployment's present template."
        return "True", Reason.ROLLING_OUT, f"{text} {workload.available} are available.{more}"
    if observed.queued is not None:
        return "False", Reason.ROLLOUT_HELD, observed.queued
    return "False", Reason.UP_TO_DATE, "Every pod runs the Deployment's present template."


def _degraded(observed: Observed, workload: Workload | None) -> _Judged:
    if observed.problems:
        return "True", observed.problems[0].reason, " ".join(problem.message for problem in observed.problems)
    waiting = [pod for pod in observed.pods if pod.waiting is not None]
    if waiting:
        return "True", Reason.PODS_FAILING, _why_not(waiting).strip()
    if workload is not None and workload.failed is not None:
        return "True", Reason.ROLLOUT_FAILED, workload.failed
    if observed.otlp_headers is not None:
        return "True", observed.otlp_headers.reason, observed.otlp_headers.message
    if not observed.managed:
        return "Unknown", Reason.UNMANAGED, "managementState is Unmanaged: the operator does not compare."
    if observed.held is not None or observed.queued is not None or observed.preflight is not None:
        return "False", Reason.AS_EXPECTED, "Everything that the resource asks is applied, but what is held back."
    return "False", Reason.AS_EXPECTED, "Everything that the resource asks is applied."


def _with_notes(judged: _Judged, notes: Sequence[str]) -> _Judged:
    status, reason, message = judged
    return status, reason, " ".join([message, *notes])


def _token_valid(observed: Observed) -> _Judged:
    if observed.uses_own_token is None:
        return "Unknown", Reason.UNKNOWN, "The spec cannot be read."
    if not observed.uses_own_token:
        return "True", Reason.CLIENTS_OWN_TOKENS, "Each client's own token is passed on to Tinybird."
    secret = f"the Secret {observed.token_secret}"
    # With a hash the token itself was found: the problem is then with the clients' Secret.
    for problem in observed.problems if observed.expected_token_hash is None else ():
        if problem.reason in (Reason.SECRET_NOT_FOUND, Reason.SECRET_KEY_MISSING, Reason.SECRET_NOT_SHARED):
            return "False", problem.reason, problem.message
    reports = [(pod.name, pod.report) for pod in observed.pods if pod.report is not None]
    rejected = [name for name, report in reports if report.candidate_rejected]
    if rejected:
        text = f"Tinybird refuses the changed token of {secret} ({some(rejected)}); the one before it stays in use."
        return "False", Reason.CANDIDATE_REJECTED, text
    expected = observed.expected_token_hash
    denied = {name: report.token_hash for name, report in reports if report.token_denied}
    if denied and (expected is None or expected in denied.values()):
        pods = [name for name, used in denied.items() if used == (expected or used)]
        text = f"Tinybird refuses the token of {secret} ({some(pods)}): rows are kept. Put the right token there."
        return "False", Reason.REJECTED, text
    if denied:
        text = f"Tinybird refuses the token that is used by {some(list(denied))}: rows are kept."
        return "False", Reason.REJECTED, f"{text} They have not read the one that is in {secret} now."
    accepted = {report.token_hash for _, report in reports if report.token_accepted}
    if accepted and (expected is None or expected in accepted):
        return "True", Reason.ACCEPTED, f"Tinybird accepts the token of {secret}."
    if accepted:
        text = f"Tinybird accepts the token that pods use. The one that is in {secret} now was not used yet."
        return "Unknown", Reason.NOT_USED_YET, text
    if reports:
        return "Unknown", Reason.NOT_USED_YET, "Tinybird has not answered to the token yet."
    return "Unknown", Reason.UNKNOWN, _no_answer(observed.pods)


def _buffer_healthy(observed: Observed, old: Mapping[str, Any]) -> _Judged:
    """What is wrong now counts more than a pod that was once ended by force, which is told as long as the pod lives."""
    status, reason, text = _buffers(observed)
    ends = {why: _with_rows_as_told(said, old) for why, said in ended_by_force(observed.pods).items()}
    killed = " ".join(ends.values())
    if not killed:
        return status, reason, text
    if status == "False":
        return status, reason, f"{text} {killed}"
    unknown = text if status == "Unknown" else not_known(observed.pods)
    return "False", next(iter(ends)), f"{killed} {unknown}" if unknown else killed


def _buffers(observed: Observed) -> _Judged:
    reports = [pod.report for pod in observed.pods if pod.report is not None]
    unknown = not_known(observed.pods)
    if not reports:
        text = "No pod answers: what they hold is not known." if unknown else _no_answer(observed.pods)
        return "Unknown", Reason.UNKNOWN, text
    status, reason, text = _of_those_that_answer(reports)
    return status, reason, f"{text} {unknown}" if unknown else text


def _of_those_that_answer(reports: Sequence[ProxyReport]) -> _Judged:
    stuck_rows = sum(report.stuck_rows for report in reports)
    if stuck_rows:
        why = next(sentence for report in reports for sentence in report.stuck)
        rows = f"{'About ' if stuck_rows > 99 else ''}{two_digits(stuck_rows):,} rows"
        return "False", Reason.NOT_DELIVERING, f"{rows} wait and are not delivered. {why}"
    fullest = max(report.utilisation for report in reports)
    if fullest >= 1.0:
        return "False", Reason.FULL, "A buffer is full: clients get 503 and are asked to come back."
    if fullest >= FILLING_RATIO:
        return "False", Reason.FILLING, f"A buffer is {math.floor(fullest * 100)}% full."
    text = "Rows are delivered." if any(report.rows for report in reports) else "Nothing is buffered."
    return "True", Reason.HEALTHY, text


def _with_rows_as_told(killed: str, old: Mapping[str, Any]) -> str:
    """The same with the rows that the last status told of the same pods: another process of the operator knew them."""
    if not killed or _LAST_LOOK in killed:
        return killed
    told = " ".join(
        str(each.get("message"))
        for each in old.get("conditions", [])
        if each.get("type") == ConditionType.BUFFER_HEALTHY
    )
    lost, more = killed.split(_LOST)
    found = re.search(rf"(?:^|\. ){re.escape(lost + _LOST)}(, [\d,]+ rows {_LAST_LOOK})", told)
    return killed if found is None else f"{lost}{_LOST}{found[1]}{more}"


def ended_by_force(pods: Sequence[PodFacts]) -> dict[Reason, str]:
    """What is told of pods whose process was ended without a word, by the reason; empty if there are none."""
    told = {}
    if starved := [pod for pod in pods if pod.out_of_memory]:
        what = f"{some([pod.name for pod in starved])} ran out of memory"
        told[Reason.OUT_OF_MEMORY] = f"{_what_it_cost(what, starved)} Raise pod.resources.limits.memory."
    if killed := [pod for pod in pods if pod.killed_with is not None and not pod.out_of_memory]:
        statuses = some([str(each) for each in dict.fromkeys(pod.killed_with for pod in killed)])
        were = "was" if len(killed) == 1 else "were"
        what = f"{some([pod.name for pod in killed])} {were} ended by force, status {statuses}, and told nothing"
        told[Reason.KILLED] = f"{_what_it_cost(what, killed)} {_BY_WHAT}"
    return told


def _what_it_cost(what: str, pods: Sequence[PodFacts]) -> str:
    known = [pod.lost_rows for pod in pods if pod.lost_rows is not None]
    held = f", {sum(known):,} rows {_LAST_LOOK}" if known else ""
    return f"{what}: {_LOST}{held}."


def _no_answer(pods: Sequence[PodFacts]) -> str:
    return "No pod answers." if pods else "There are no pods."


def _condition(
    kind: ConditionType, judged: _Judged, *, old: Mapping[str, Any], generation: int, now: str
) -> dict[str, Any]:
    status, reason, message = judged
    before: Mapping[str, Any] = next((found for found in old.get("conditions", []) if found.get("type") == kind), {})
    return {
        "type": str(kind),
        "status": status,
        "reason": str(reason),
        "message": message[:MESSAGE_MAX_CHARS],
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if before.get("status") == status else now,
    }
