"""The condition ``Autoscaling``: what the HPA sees and decided, and what is in its way. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tinybird_proxy_operator.names import KIND, Reason, some
from tinybird_proxy_operator.scaling.autoscaling import Hpas, Plan, value_of
from tinybird_proxy_operator.scaling.targets import Target, read_quantity
from tinybird_proxy_operator.spec import Autoscaling, Proxy

Judged = tuple[str, Reason, str]  # status, reason, message
_Object = Mapping[str, Any]
_HELD_BY_THROTTLE: Final = "Scale-up is off while Tinybird throttles: see UpstreamThrottled."


def judge(
    proxy: Proxy, plan: Plan, hpas: Hpas, *, scaled_object: _Object | None = None, pinned_by: str | None = None
) -> Judged | None:
    """Status, reason and message; None for a resource that asks for no autoscaling.

    ``scaled_object``: the resource's own, where KEDA has made no HPA of it. ``pinned_by``: who else writes replicas.
    """
    autoscaling = proxy.spec.autoscaling
    if autoscaling is None:
        return None
    status, reason, text = _judged(proxy, autoscaling, plan, hpas, scaled_object)
    if pinned_by is not None:
        text += f" What {pinned_by} applies has spec.replicas, and takes back what was scaled: leave it out there."
    return status, reason, text


def _judged(proxy: Proxy, autoscaling: Autoscaling, plan: Plan, hpas: Hpas, scaled_object: _Object | None) -> Judged:
    if hpas.on_child:
        text = f"{_names(hpas.on_child)} scales the Deployment {proxy.name}, and so does the operator: two hands on one"
        return "False", Reason.FOREIGN_HPA, f"{text} wheel. Delete it, or have it scale the {KIND} {proxy.name}."
    if autoscaling.provider == "External":
        return _external(proxy, autoscaling, hpas)
    if hpas.on_resource:
        text = f"{_names(hpas.on_resource)} scales this {KIND} too, and Kubernetes lets neither work. Delete it, or set"
        return "False", Reason.FOREIGN_HPA, f"{text} spec.autoscaling.provider to External to keep it."
    if not plan.targets:
        return "False", plan.problem or Reason.METRICS_UNAVAILABLE, f"There is no HPA. {plan.why}"
    if hpas.ours is None:
        if autoscaling.provider == "KEDA":
            return _without_keda(scaled_object)
        return "Unknown", Reason.UNKNOWN, "There is no HPA yet."
    return _working(autoscaling, plan, hpas.ours)


def _external(proxy: Proxy, autoscaling: Autoscaling, hpas: Hpas) -> Judged:
    found = [*([hpas.ours] if hpas.ours is not None else []), *hpas.on_resource]
    if not found:
        text = f"The provider is External, and no HPA scales this {KIND}. Point one at it, or write spec.replicas."
        return "Unknown", Reason.EXTERNAL, text
    figures = _figures(autoscaling, Plan(), found[0])
    return "True", Reason.EXTERNAL, f"{_names(found)} scales it; the operator does not interfere. {figures}"


def _without_keda(scaled_object: _Object | None) -> Judged:
    if scaled_object is None:
        return "False", Reason.NOT_SCALING, "There is no ScaledObject, so KEDA does nothing: see Degraded."
    conditions = scaled_object.get("status", {}).get("conditions", [])
    ready: _Object = next((condition for condition in conditions if condition.get("type") == "Ready"), {})
    if ready.get("status") == "False":
        why = ready.get("message") or "it does not say why"
        return "False", Reason.NOT_SCALING, f"KEDA has made no HPA of the ScaledObject: {why}."
    return "Unknown", Reason.UNKNOWN, "KEDA has made no HPA of the ScaledObject yet. Is it running?"


def _working(autoscaling: Autoscaling, plan: Plan, hpa: _Object) -> Judged:
    said = {condition["type"]: condition for condition in hpa.get("status", {}).get("conditions", [])}
    able, active, limited = (said.get(kind, {}) for kind in ("AbleToScale", "ScalingActive", "ScalingLimited"))
    if not able and not active:
        return "Unknown", Reason.UNKNOWN, "The HPA has not looked yet."
    if able.get("status") == "False":
        return "False", Reason.NOT_SCALING, f"The HPA cannot scale: {able.get('message', 'it does not say why')}."
    if active.get("status") == "False":
        return _inactive(plan, active)
    figures, reason = _figures(autoscaling, plan, hpa), Reason.SCALING
    if limited.get("status") == "True":
        reason = {"TooManyReplicas": Reason.AT_MAXIMUM, "TooFewReplicas": Reason.AT_MINIMUM}.get(
            limited.get("reason", ""), reason
        )
    if reason is Reason.AT_MAXIMUM:
        figures += " It would take more: raise spec.autoscaling.maxReplicas if Tinybird keeps up."
    if plan.left_out:
        reason, figures = Reason.TARGETS_LEFT_OUT, f"{figures} Left out: {_fields(plan.left_out)}. {plan.why}"
    if plan.throttled:
        reason, figures = Reason.THROTTLED, f"{figures} {_HELD_BY_THROTTLE}"
    return "True", reason, figures


def _inactive(plan: Plan, active: _Object) -> Judged:
    why, text = active.get("reason"), active.get("message", "it does not say why")
    if why == "ScalingDisabled":
        return "False", Reason.SCALED_TO_ZERO, "spec.replicas is 0, which an HPA leaves as it is. Scale to 1 to go on."
    if why == "AmbiguousSelector":
        return "False", Reason.FOREIGN_HPA, f"The HPA does nothing: {text}. Delete the others."
    if why == "InvalidSelector":
        return "False", Reason.NOT_SCALING, f"The HPA does nothing: {text}."
    reason = plan.problem or Reason.METRICS_UNAVAILABLE
    return "False", reason, " ".join(filter(None, (f"The HPA gets no figures and does nothing: {text}.", plan.why)))


def _figures(autoscaling: Autoscaling, plan: Plan, hpa: _Object) -> str:
    """How many pods there are and should be, and why: ``3 pods, 4 wanted (1 to 6): cpuPercent 82 of 70.``"""
    spec, status = hpa["spec"], hpa.get("status", {})
    limits = f"{spec.get('minReplicas', 1)} to {spec.get('maxReplicas', autoscaling.max_replicas)}"
    text = f"{status.get('currentReplicas', 0)} pods, {status.get('desiredReplicas', 0)} wanted ({limits})"
    seen = _seen(status.get("currentMetrics") or [])
    found = []
    for target in plan.targets:
        now = next((value for name, value in seen.items() if name.endswith(target.metric)), None)
        found.append(f"{target.field} {'unknown' if now is None else now} of {value_of(autoscaling, target):,}")
    return f"{text}: {', '.join(found)}." if found else f"{text}."


def _seen(metrics: Sequence[_Object]) -> dict[str, str]:
    """The average of one pod by metric. KEDA's are external metrics whose names end like ours."""
    seen = {}
    for metric in metrics:
        source = metric.get("pods") or metric.get("external") or {}
        value = source.get("current", {}).get("averageValue")
        try:
            # Two digits: else every look would write the status.
            seen[source["metric"]["name"]] = f"{int(float(f'{read_quantity(value):.2g}')):,}"
        except (KeyError, TypeError, ArithmeticError):
            continue
    return seen


def _fields(targets: Sequence[Target]) -> str:
    return ", ".join(target.field for target in targets)


def _names(hpas: Sequence[_Object]) -> str:
    return f"HorizontalPodAutoscaler {some([hpa['metadata']['name'] for hpa in hpas])}"
