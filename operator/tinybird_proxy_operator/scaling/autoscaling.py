"""Which targets an HPA can be given, and which HPAs a resource has. Pure.

A target whose metric nobody serves is left out, for one metric that fails keeps an HPA from scaling down. While none is
served an HPA that exists keeps those that it has: without an answer it does nothing, and goes on when there is one.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from tinybird_proxy_operator.names import FIELD_MANAGER, GROUP, KIND, Reason
from tinybird_proxy_operator.scaling.targets import METRICS_GROUP, TARGETS, Target, adapter_rule, served_as
from tinybird_proxy_operator.spec import Autoscaling, Proxy

_Object = Mapping[str, Any]
_LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
_TURN_ON: Final = "Set its chart's value metricsAPI.enabled to true, or choose another spec.autoscaling.provider."


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the HPA is built from. ``left_out``: targets whose metric nobody serves, ``why`` the sentence about that.

    ``problem``: the reason where none is served. ``throttled``: pods may go, and none is added.
    """

    targets: tuple[Target, ...] = ()
    left_out: tuple[Target, ...] = ()
    problem: Reason | None = None
    why: str = ""
    throttled: bool = False


NONE: Final = Plan()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hpas:
    """The HPAs that write to one resource, or to its Deployment. ``ours``: made by the operator, or for it by KEDA."""

    ours: _Object | None = None
    on_resource: tuple[_Object, ...] = ()
    on_child: tuple[_Object, ...] = ()


def value_of(autoscaling: Autoscaling, target: Target) -> int | None:
    """What the spec wants of a target."""
    value: int | None = msgspec.to_builtins(autoscaling.targets)[target.field]
    return value


def asked(autoscaling: Autoscaling) -> tuple[Target, ...]:
    """The targets of the spec, in the order of the table."""
    return tuple(target for target in TARGETS if value_of(autoscaling, target) is not None)


def from_own_api(
    wanted: Sequence[Target],
    services: Sequence[_Object] | None,
    own: tuple[str, str] | None,
    *,
    namespaced: bool = False,
) -> Plan:
    """By the APIServices of the group. None: the operator may not read them. ``own``: its Service, if it serves any.

    ``namespaced``: it looks after some namespaces only, and then it cannot.
    """
    for service in services or ():
        reference = service["spec"].get("service") or {}
        found = reference.get("namespace", ""), reference.get("name", "")
        if found != own:
            name = service["metadata"]["name"]
            text = f"The APIService {name} belongs to the Service {'/'.join(found)}, and is left untouched: one cluster"
            text += " has one such API. If that is prometheus-adapter, set spec.autoscaling.provider to it."
            return _without(wanted, Reason.METRICS_API_OWNED_BY_OTHER, text)
    if own is None and namespaced:
        text = "This operator looks after some namespaces only, and serves no metrics. Choose another"
        return _without(wanted, Reason.METRICS_UNAVAILABLE, f"{text} spec.autoscaling.provider.")
    if own is None:
        return _without(wanted, Reason.METRICS_UNAVAILABLE, f"The operator serves no metrics. {_TURN_ON}")
    if not services:
        text = f"The operator's metrics API is not registered yet: see the log of the pods behind {'/'.join(own)}."
        return _without(wanted, Reason.METRICS_UNAVAILABLE, text)
    for service in services:
        said: _Object = next(
            (c for c in service.get("status", {}).get("conditions", []) if c["type"] == "Available"), {}
        )
        if said.get("status") != "True":
            text = f"The APIService {service['metadata']['name']} is not available"
            text += f": {said['message']}" if said.get("message") else " yet."
            return _without(wanted, Reason.METRICS_UNAVAILABLE, text)
    return Plan(targets=tuple(wanted))


def from_adapter(wanted: Sequence[Target], served: Collection[str] | None) -> Plan:
    """By what the custom metrics API lists. None: there is none, or it does not answer."""
    if served is None:
        text = f"{METRICS_GROUP} does not answer. Install prometheus-adapter, or see its log; it needs this rule:"
        return _without(wanted, Reason.METRICS_UNAVAILABLE, f"{text} {adapter_rule(wanted)}")
    there = tuple(target for target in wanted if served_as(target) in served)
    missing = tuple(target for target in wanted if target not in there)
    if not missing:
        return Plan(targets=there)
    text = f"{METRICS_GROUP} does not have {', '.join(served_as(target) for target in missing)}."
    text = f"{text} Give prometheus-adapter this rule, and Prometheus the pods to scrape: {adapter_rule(missing)}"
    return Plan(targets=there, left_out=missing, problem=None if there else Reason.METRICS_UNAVAILABLE, why=text)


def unread(wanted: Sequence[Target], why: str) -> Plan:
    """It is not known for the moment."""
    return _without(wanted, Reason.METRICS_UNAVAILABLE, f"The APIServices could not be read: {why}.")


def _without(wanted: Sequence[Target], problem: Reason, why: str) -> Plan:
    return Plan(left_out=tuple(wanted), problem=problem, why=why)


def with_kept(plan: Plan, live: _Object | None) -> Plan:
    """While no metric is served, an HPA that there is keeps those of its own that are still asked for."""
    if plan.targets or live is None:
        return plan
    metrics = {metric.get("pods", {}).get("metric", {}).get("name") for metric in live["spec"].get("metrics", [])}
    kept = tuple(target for target in plan.left_out if target.metric in metrics)
    return replace(plan, targets=kept)


def pinned_by(body: _Object) -> str | None:
    """Who applies the resource with a number of replicas, and so takes back what an autoscaler wrote; None: nobody."""
    metadata = body["metadata"]
    try:
        applied = msgspec.json.decode((metadata.get("annotations") or {}).get(_LAST_APPLIED, "{}"), type=dict[str, Any])
    except msgspec.DecodeError:
        applied = {}
    if "replicas" in (applied.get("spec") or {}):
        return "kubectl apply"
    for entry in metadata.get("managedFields") or []:
        applies = entry.get("operation") == "Apply" and entry.get("manager") != FIELD_MANAGER
        if applies and "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {}):
            return str(entry["manager"])
    return None


def hpas_of(proxy: Proxy, found: Sequence[_Object]) -> Hpas:
    """Those of a namespace's HPAs that concern the resource."""
    ours, on_resource, on_child = None, [], []
    by_keda = proxy.spec.autoscaling is not None and proxy.spec.autoscaling.provider == "KEDA"
    for hpa in found:
        target = hpa["spec"].get("scaleTargetRef") or {}
        if target.get("name") != proxy.name:
            continue
        group = target.get("apiVersion", "").partition("/")[0]
        owner: _Object = next((o for o in hpa["metadata"].get("ownerReferences", []) if o.get("controller")), {})
        if (target.get("kind"), group) == ("Deployment", "apps"):
            on_child.append(hpa)
        elif (target.get("kind"), group) != (KIND, GROUP):
            continue
        elif owner.get("uid") == proxy.uid:
            ours = hpa if not by_keda else ours  # with KEDA it is one that goes
        elif by_keda and (owner.get("kind"), owner.get("name")) == ("ScaledObject", proxy.name):
            ours = hpa
        else:
            on_resource.append(hpa)
    return Hpas(ours=ours, on_resource=tuple(on_resource), on_child=tuple(on_child))
