"""What is told of the pods that ask for a sidecar: counts, and the condition SidecarsCurrent. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tinybird_proxy_operator.names import INJECT_LABEL, Reason, some
from tinybird_proxy_operator.sidecars.app_pods import AppPod, State
from tinybird_proxy_operator.sidecars.injection import NEVER_IN, RAISE

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
        "stale": sum(pod.state is State.STALE and pod.asks for pod in staying),
        "missed": states.count(State.MISSED),
        "refused": states.count(State.REFUSED),
        "unknown": sum(pod.is_silent for pod in staying),
    }


def why_off(injection: str, namespace: str, operator_namespace: str) -> str:
    """Why no pod of the namespace gets one, whatever it asks; empty: they do. ``injection``: the chart's value."""
    if injection == OFF:
        return f"This operator puts sidecars into no pods: {_TURN_ON}."
    if namespace in (*NEVER_IN, operator_namespace):
        return f"No pod of namespace {namespace} gets a sidecar: the cluster's own and the operator's are left out."
    return ""


def needed_grace_period_s(rendered: Mapping[str, Any] | None) -> int | None:
    """What a pod needs. None: there is nothing to give, or who gets it is given that as well."""
    if rendered is None or rendered.get("gracePeriod") == RAISE:
        return None
    return rendered.get("gracePeriodSeconds")


def stand(
    pods: Sequence[AppPod],
    *,
    off: str,
    evicts: bool,
    needed_grace_period_s: int | None,
    told: Sequence[str] = (),
    rendered: bool = True,
) -> Standing:
    """``off``: see ``why_off``. ``evicts``: spec.sidecar.rollout is Evict. ``told``: what came of evicting,
    and who else injects.

    ``needed_grace_period_s`` None: nobody is to be told that a pod has less. ``rendered``: there is one to give.
    """
    found = counts(pods)
    staying = [pod for pod in pods if not pod.terminating]
    by_state = {state: [pod for pod in staying if pod.state is state and pod.asks] for state in State}
    sentences = []
    reason: Reason | None = None
    if off:
        reason = Reason.INJECTION_OFF
        sentences.append(off)
    for state, its_reason, sentence in (
        (State.MISSED, Reason.SIDECARS_MISSED, _missed),
        (State.REFUSED, Reason.SIDECARS_REFUSED, _refused),
        (State.STALE, Reason.SIDECARS_STALE, _stale),
    ):
        if theirs := by_state[state]:
            reason = reason or its_reason
            sentences.append(sentence(theirs))
    outdated = [pod for pod in staying if pod.outdated]
    if outdated and not off:
        sentences.append(_advice(outdated, evicts) if rendered else _NONE_TO_GIVE)
    sentences += told
    if left := [pod.name for pod in staying if not pod.asks]:
        sentences.append(f"{some(left)} {'has' if len(left) == 1 else 'have'} it until the end, and asked for it once.")
    if silent := [pod.name for pod in staying if pod.is_silent]:
        sentences.append(f"{some(silent)}: the sidecar runs and does not answer.")
    short = [pod.name for pod in staying if pod.facts is not None and pod.grace_period_s < (needed_grace_period_s or 0)]
    if short:
        sentences.append(f"{some(short)}: {grace_period_sentence(needed_grace_period_s or 0)}")
    if reason is not None:
        return Standing(counts=found, current=("False", reason, " ".join(sentences)))
    current = len(by_state[State.CURRENT])
    text = f"{_pods(current)} the sidecar as it is now." if current else _nobody()
    return Standing(counts=found, current=("True", Reason.SIDECARS_CURRENT, " ".join([text, *sentences])))


def grace_period_sentence(needed_s: int) -> str:
    """Of a pod that has less."""
    return (
        f"terminationGracePeriodSeconds is less than {needed_s}, which the sidecar may need to deliver what it has left"
        " when the app has ended; give the pod more, or set spec.sidecar.gracePeriod to Raise."
    )


_NONE_TO_GIVE: Final = (
    "Do not restart them now: there is no sidecar to give, see Ready. Those that have one keep it as long as they run."
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
