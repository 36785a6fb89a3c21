"""What is told of the pods that ask for a sidecar: counts, and the condition SidecarsCurrent. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tinybird_proxy_operator.names import INJECT_LABEL, Reason, some
from tinybird_proxy_operator.sidecars.app_pods import AppPod, State

OFF: Final = "None"
_TURN_ON: Final = "whoever runs the operator turns it on with the chart's value injection (Webhook or Policy)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """``status.sidecars``, and status, reason and message of the condition."""

    counts: Mapping[str, int]
    current: tuple[str, Reason, str]


def counts(pods: Sequence[AppPod]) -> dict[str, int]:
    """``status.sidecars``. What goes is not counted: something else comes in its place, or nothing."""
    staying = [pod for pod in pods if not pod.terminating]
    states = [pod.state for pod in staying]
    return {
        "injected": states.count(State.CURRENT) + states.count(State.STALE),
        "stale": states.count(State.STALE),
        "missed": states.count(State.MISSED),
        "refused": states.count(State.REFUSED),
        "unknown": sum(pod.is_silent for pod in staying),
    }


def stand(
    pods: Sequence[AppPod],
    *,
    injection: str,
    evicts: bool,
    needed_grace_period_s: int | None,
    told: Sequence[str] = (),
) -> Standing:
    """``injection``: the chart's value. ``evicts``: spec.sidecar.rollout is Evict. ``told``: what came of evicting.

    ``needed_grace_period_s`` None: nobody is to be told that a pod has less.
    """
    found = counts(pods)
    staying = [pod for pod in pods if not pod.terminating]
    by_state = {state: [pod for pod in staying if pod.state is state] for state in State}
    sentences = []
    reason: Reason | None = None
    if injection == OFF:
        reason = Reason.INJECTION_OFF
        sentences.append(f"No pod gets a sidecar, for injection is off: {_TURN_ON}.")
    for state, its_reason, sentence in (
        (State.MISSED, Reason.SIDECARS_MISSED, _missed),
        (State.REFUSED, Reason.SIDECARS_REFUSED, _refused),
        (State.STALE, Reason.SIDECARS_STALE, _stale),
    ):
        if theirs := by_state[state]:
            reason = reason or its_reason
            sentences.append(sentence(theirs))
    outdated = [pod for pod in staying if pod.outdated]
    if outdated and injection != OFF:
        sentences.append(_advice(outdated, evicts))
    sentences += told
    if silent := [pod.name for pod in staying if pod.is_silent]:
        sentences.append(f"{some(silent)}: the sidecar runs and does not answer.")
    short = [pod.name for pod in staying if pod.facts is not None and pod.grace_period_s < (needed_grace_period_s or 0)]
    if short:
        sentences.append(f"{some(short)}: {grace_period_sentence(needed_grace_period_s or 0)}")
    if reason is not None:
        return Standing(counts=found, current=("False", reason, " ".join(sentences)))
    text = f"{_pods(found['injected'])} the sidecar as it is now." if found["injected"] else _nobody()
    return Standing(counts=found, current=("True", Reason.SIDECARS_CURRENT, " ".join([text, *sentences])))


def grace_period_sentence(needed_s: int) -> str:
    """Of a pod that has less."""
    return (
        f"terminationGracePeriodSeconds is less than {needed_s}, which the sidecar may need to deliver what it has left"
        " when the app has ended; give the pod more, or set spec.sidecar.gracePeriod to Raise."
    )


def _pods(count: int) -> str:
    return "1 pod has" if count == 1 else f"{count} pods have"


def _nobody() -> str:
    return f"No pod asks for it: label pods, or their namespace, with {INJECT_LABEL} and this resource's name."


def _missed(pods: Sequence[AppPod]) -> str:
    who = f"{len(pods)} of the pods that ask for the sidecar" if len(pods) > 1 else "1 pod that asks for the sidecar"
    return (
        f"{who} {'does' if len(pods) == 1 else 'do'} not have it ({some([pod.name for pod in pods])}): older than the"
        " resource, the label or the installation, or made while injection was away."
    )


def _refused(pods: Sequence[AppPod]) -> str:
    reasons = dict.fromkeys(pod.why_refused for pod in pods)
    first = next(pod.name for pod in pods)
    more = "" if len(reasons) == 1 else f" ({len(reasons) - 1} other reasons for other pods, see the Events)"
    return f"{len(pods)} cannot have it, {first} for instance: {next(iter(reasons))}{more}."


def _stale(pods: Sequence[AppPod]) -> str:
    return f"{_pods(len(pods))} the sidecar as it was before ({some([pod.name for pod in pods])})."


def _advice(outdated: Sequence[AppPod], evicts: bool) -> str:
    owners = dict.fromkeys(pod.owner for pod in outdated if pod.owner is not None)
    left = [pod.name for pod in outdated if pod.owner is None]
    for_good = (
        f" {some(left)}: of a Job, or of nothing that would replace it; it is left alone until it ends." if left else ""
    )
    if not owners:
        return for_good.strip()
    if evicts:
        return f"They are evicted one after the other (spec.sidecar.rollout is Evict).{for_good}"
    return f"Restart {some(list(owners))}, or set spec.sidecar.rollout to Evict.{for_good}"


def refusals(pods: Sequence[AppPod]) -> dict[str, str]:
    """A sentence for each owner, or pod without one, that is refused; for Events."""
    found: dict[str, str] = {}
    for pod in pods:
        if pod.state is State.REFUSED:
            found.setdefault(pod.owner or f"Pod {pod.name}", f"{pod.name} gets no sidecar: {pod.why_refused}.")
    return found
