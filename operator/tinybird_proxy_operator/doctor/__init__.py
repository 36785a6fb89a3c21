"""``tinybird-proxy-operator doctor``: from what was read to findings, and to what a deletion would lose.

Pure. ``doctor_command`` reads and prints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinybird_proxy_operator.doctor.facts import Answer, Facts, Finding, Level, PodSeen, SecretSeen, read_answer
from tinybird_proxy_operator.doctor.loss import Loss, loss_if_deleted, lost_so_far, sidecars_if_deleted
from tinybird_proxy_operator.doctor.pods import pod_findings
from tinybird_proxy_operator.doctor.resource import (
    child_findings,
    invalid,
    missing,
    operator_findings,
    secret_findings,
    spec_findings,
    told_findings,
)
from tinybird_proxy_operator.doctor.sidecars import SEEN_IN_APPS, asked_in_vain, sidecar_findings
from tinybird_proxy_operator.doctor.token import expected_hash, in_words, token_findings
from tinybird_proxy_operator.errors import SpecError
from tinybird_proxy_operator.sidecars.app_pods import AppPod, State
from tinybird_proxy_operator.spec import Proxy, parse, without_spec

__all__ = [
    "Answer",
    "Diagnosis",
    "Facts",
    "Finding",
    "Level",
    "PodLine",
    "PodSeen",
    "SecretSeen",
    "diagnose",
    "read_answer",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodLine:
    """A pod in the table. None: it did not say. ``sidecar``: of an app's pod, how it stands with it."""

    name: str
    ready: bool
    running: bool
    answered: bool
    rows: int | None
    size_bytes: int | None
    oldest_age_s: float | None
    not_delivered_rows: int | None
    dead_letter_rows: int | None
    token_hash: str | None
    token: str
    sidecar: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything to tell. ``ready``: the condition's status; None: there is none. ``loss`` None: nothing to delete.

    ``lost_so_far``: a sentence; None: nothing was.
    """

    resource: str
    healthy: bool
    ready: str | None
    ready_message: str
    findings: Sequence[Finding]
    expected_token_hash: str | None
    pods: Sequence[PodLine]
    loss: Loss | None
    lost_so_far: str | None
    not_known: Sequence[str]


def diagnose(facts: Facts) -> Diagnosis:
    """Judge. What has to be put right first comes first; notes come last."""
    findings = _findings(facts)
    order = list(Level)
    findings.sort(key=lambda finding: order.index(finding.level))
    ready = facts.condition("Ready")
    expected = expected_hash(facts)
    proxy = None if facts.body is None else _read(facts.body)[0]
    loss = None
    if proxy is not None:
        judge = sidecars_if_deleted if proxy.spec.mode == "Sidecar" else loss_if_deleted
        loss = judge(facts.pods, proxy.spec)
    return Diagnosis(
        resource=f"{facts.namespace}/{facts.name}",
        healthy=all(finding.level is Level.NOTE for finding in findings),
        ready=ready.get("status"),
        ready_message=ready.get("message", ""),
        findings=findings,
        expected_token_hash=expected,
        pods=[
            # Of what may be thousands, those first that somebody may have to look at.
            *(_line_without_proxy(app) for app in _without_proxy(facts, proxy)),
            *sorted((_line(pod, expected) for pod in facts.pods or () if not pod.ended), key=_is_well),
        ],
        loss=loss,
        lost_so_far=None if facts.body is None else lost_so_far(facts.body.get("status") or {}),
        not_known=facts.not_known,
    )


def _findings(facts: Facts) -> list[Finding]:
    if facts.body is None:
        return list(missing(facts))
    spec = facts.body.get("spec") or {}
    proxy, problems = _read(facts.body)
    invalid_spec = [invalid(facts, sentence) for sentence in problems]
    found = list(
        operator_findings(
            facts,
            controller_class=str(spec.get("controllerClass", "")),
            management_state=str(spec.get("managementState", "Managed")),
        )
    )
    found += invalid_spec or spec_findings(facts, proxy)
    found += secret_findings(facts)
    blocked = any(finding.level is Level.PROBLEM for finding in found)
    found += secret_findings(facts, optional=True)
    if proxy.spec.mode == "Sidecar":
        found += sidecar_findings(facts, proxy, blocked=blocked)
    else:
        found += child_findings(facts, proxy, blocked=blocked)
        found += asked_in_vain(facts)
    if not invalid_spec:
        found += token_findings(facts, proxy.spec.tinybird.token_secret_ref)
    if facts.pods is not None or proxy.spec.mode != "Sidecar":  # else it is said already
        found += pod_findings(facts)
    answered = facts.pods is not None and all(pod.answer is not None for pod in facts.pods if pod.runs)
    told = {finding.reason for finding in found} | (set() if facts.apps is None else SEEN_IN_APPS)
    return [*found, *told_findings(facts, told=told, every_pod_answered=answered)]


def _read(body: Mapping[str, Any]) -> tuple[Proxy, Sequence[str]]:
    """The resource, and what is wrong with its spec."""
    try:
        return parse(body), []
    except SpecError as error:
        return without_spec(body), error.problems


def _is_well(line: PodLine) -> bool:
    return line.answered and line.ready and not line.not_delivered_rows and line.sidecar in (None, State.CURRENT)


def _without_proxy(facts: Facts, proxy: Proxy | None) -> list[AppPod]:
    """Pods for the table that have none, and are to have one."""
    if proxy is not None and proxy.spec.mode != "Sidecar":
        return []
    return [app for app in facts.apps or () if app.facts is None]


def _line_without_proxy(app: AppPod) -> PodLine:
    return PodLine(
        name=app.name,
        ready=app.ready,
        running=False,
        answered=False,
        rows=None,
        size_bytes=None,
        oldest_age_s=None,
        not_delivered_rows=None,
        dead_letter_rows=None,
        token_hash=None,
        token="-",  # noqa: S106 - of a table
        sidecar=app.state,
    )


def _line(pod: PodSeen, expected: str | None) -> PodLine:
    answer = pod.answer
    report = None if answer is None else answer.report
    return PodLine(
        name=pod.name,
        ready=pod.facts.ready,
        running=pod.runs,
        answered=report is not None,
        rows=None if report is None else report.rows,
        size_bytes=None if report is None else report.size_bytes,
        oldest_age_s=None if report is None else report.oldest_age_s,
        not_delivered_rows=None if report is None else report.stuck_rows,
        dead_letter_rows=None if answer is None else answer.dead_letter_rows,
        token_hash=None if report is None else report.token_hash,
        token=in_words(pod, expected),
        sidecar=None if pod.app is None else pod.app.state,
    )
