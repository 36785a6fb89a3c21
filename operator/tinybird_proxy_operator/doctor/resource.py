"""What is to say of the resource itself: the operator, the spec, its Secrets, its children, its rollout. Pure."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import msgspec

from tinybird_proxy_operator import checks
from tinybird_proxy_operator.doctor.facts import Facts, Finding, Level, SecretSeen
from tinybird_proxy_operator.live_objects import read_workload
from tinybird_proxy_operator.names import (
    FIELD_MANAGER,
    GROUP,
    INJECT_LABEL,
    INJECTED_LABEL,
    INSTANCE_LABEL,
    NAME_LABEL,
    ROLL_ANNOTATION,
    USE_LABEL,
    USE_TOKEN,
    ConditionType,
    Reason,
    some,
)
from tinybird_proxy_operator.settings import OperatorSettings
from tinybird_proxy_operator.spec import Proxy, host_of, image_repository

_PROBLEM, _NOTE = Level.PROBLEM, Level.NOTE
# Which status of a condition is the bad one.
_BAD: Final[dict[str, str]] = {
    ConditionType.READY: "False",
    ConditionType.PROGRESSING: "False",
    ConditionType.DEGRADED: "True",
    ConditionType.TOKEN_VALID: "False",
    ConditionType.BUFFER_HEALTHY: "False",
    ConditionType.UPSTREAM_THROTTLED: "True",
    ConditionType.AUTOSCALING: "False",
    ConditionType.SIDECARS_CURRENT: "False",
}
# What the doctor sees for itself, and more recently than the status says it.
_SEEN_HERE: Final = frozenset(
    {
        Reason.UP_TO_DATE,
        Reason.NOT_READY,
        Reason.ROLLOUT_FAILED,
        Reason.INVALID_SPEC,
        Reason.NAME_TAKEN,
        Reason.SECRET_NOT_FOUND,
        Reason.SECRET_KEY_MISSING,
        Reason.SECRET_NOT_SHARED,
    }
)
_SEEN_IN_PODS: Final = frozenset(
    {
        Reason.PODS_FAILING,
        Reason.REJECTED,
        Reason.CANDIDATE_REJECTED,
        Reason.OUT_OF_MEMORY,
        Reason.NOT_DELIVERING,
        Reason.FULL,
        Reason.FILLING,
    }
)


def missing(facts: Facts) -> Iterator[Finding]:
    """There is no such resource."""
    if not facts.kind_known:
        yield Finding(
            level=_PROBLEM,
            reason="KindNotFound",
            what="The cluster does not know TinybirdProxies.",
            why=f"The CRD tinybirdproxies.{GROUP} is not installed, or the API server is still to serve it.",
            next="Install the operator's chart with crds.enabled: true, or have files/crd.yaml of it applied.",
            commands=[f"kubectl get crd tinybirdproxies.{GROUP}"],
        )
        return
    others = ", ".join(facts.others) or "none"
    yield Finding(
        level=_PROBLEM,
        reason="ResourceNotFound",
        what=f"There is no TinybirdProxy {facts.name} in namespace {facts.namespace}.",
        why=f"TinybirdProxies in that namespace: {others}.",
        next="Look for its name and namespace, or create it.",
        commands=["kubectl get tinybirdproxies --all-namespaces"],
    )
    asking = [app for app in facts.apps or () if app.facts is None]
    if asking:
        who, get = ("1 pod asks", "gets") if len(asking) == 1 else (f"{len(asking)} pods ask", "get")
        yield Finding(
            level=_PROBLEM,
            reason="AskedInVain",
            what=f"{who} for the sidecar of a TinybirdProxy of that name, and {get} none.",
            why=f"{some([app.name for app in asking])}: the label {INJECT_LABEL}, theirs or the namespace's, is"
            f" {facts.name}.",
            next="Put the name of one that exists, with mode Sidecar, into the label of what makes them, or create it.",
            commands=[facts.kubectl(f"get pods --selector={INJECT_LABEL}={facts.name}"), _namespace_label(facts)],
        )
    if left := [app.name for app in facts.apps or () if app.facts is not None]:
        yield Finding(
            level=_PROBLEM,
            reason="LeftBehind",
            what=f"{some(left)} {'has' if len(left) == 1 else 'have'} the sidecar of a TinybirdProxy of that name.",
            why="It was deleted: they go on delivering, but nobody counts what they lose, and the next pod gets none.",
            next="Create it again, or take the label off what makes the pods.",
            commands=[facts.kubectl(f"get pods --selector={INJECTED_LABEL}={facts.name}")],
        )


def _namespace_label(facts: Facts) -> str:
    return f"kubectl get namespace {facts.namespace} --show-labels"


def operator_findings(facts: Facts, *, controller_class: str, management_state: str) -> Iterator[Finding]:
    """Whether an operator looks after the resource."""
    metadata = (facts.body or {}).get("metadata", {})
    if "deletionTimestamp" in metadata:
        yield Finding(
            level=_PROBLEM,
            reason="Deleting",
            what=f"It is being deleted since {metadata['deletionTimestamp']}.",
            why=f"Finalizers that are waited for: {', '.join(metadata.get('finalizers') or []) or 'none'}.",
            next="The operator delivers what is left first. To let go at once, with what that loses (below):",
            commands=[facts.kubectl(f"annotate tinybirdproxy {facts.name} {GROUP}/delete=now")],
        )
    settings = facts.settings
    if settings is not None and controller_class != settings.controller_class:
        yield _other_class(facts, controller_class, settings)
    elif settings is not None and settings.watch_namespaces and facts.namespace not in settings.watch_namespaces:
        yield Finding(
            level=_PROBLEM,
            reason="NamespaceNotWatched",
            what=f"This operator does not look after namespace {facts.namespace}.",
            why=f"Its chart's watchNamespaces: {', '.join(settings.watch_namespaces)}.",
            next="Add the namespace there, or ask the operator that looks after it.",
            commands=[_helm(settings, "watchNamespaces", [*settings.watch_namespaces, facts.namespace])],
        )
    elif not facts.status_is_current:
        yield _behind(facts, controller_class)
    if management_state == "Unmanaged":
        yield Finding(
            level=_NOTE,
            reason=Reason.UNMANAGED,
            what="managementState is Unmanaged: the operator changes nothing, and Ready is Unknown.",
            next="To have it looked after again:",
            commands=[
                facts.kubectl(
                    f"patch tinybirdproxy {facts.name} --type=merge"
                    """ --patch='{"spec":{"managementState":"Managed"}}'"""
                )
            ],
        )


def _other_class(facts: Facts, controller_class: str, settings: OperatorSettings) -> Finding:
    asked = f"spec.controllerClass is {controller_class!r}, and this operator's is {settings.controller_class!r}"
    if facts.status_is_current:
        return Finding(
            level=_NOTE,
            reason="OtherControllerClass",
            what="Another operator looks after it; what this one's settings allow says nothing of it.",
            why=f"{asked}.",
        )
    return Finding(
        level=_PROBLEM,
        reason="OtherControllerClass",
        what="This operator does not look after it, and no other one has looked at it as it is now.",
        why=f"{asked}.",
        next="Give it the class of an operator that runs, or run one of its class.",
        commands=[facts.kubectl(f"edit tinybirdproxy {facts.name}"), _operators()],
    )


def _behind(facts: Facts, controller_class: str) -> Finding:
    generation = (facts.body or {}).get("metadata", {}).get("generation", 0)
    seen = facts.status.get("observedGeneration")
    said = "There is no status at all" if seen is None else f"The status speaks of generation {seen} of {generation}"
    other = "" if facts.settings is not None else f", with the controllerClass {controller_class!r}"
    settings = facts.settings
    return Finding(
        level=_PROBLEM,
        reason="OperatorBehind",
        what="The operator has not looked at the resource as it is now.",
        why=f"{said}.",
        next=f"If that lasts longer than some seconds: see that the operator runs{other}, and what its log says.",
        commands=[
            _operators(),
            "kubectl logs --namespace OPERATORS-NAMESPACE --tail=50 --selector=" + f"{NAME_LABEL}={FIELD_MANAGER}"
            if settings is None
            else f"kubectl logs --namespace {settings.operator_namespace} --tail=50 --selector="
            + ",".join(f"{key}={value}" for key, value in settings.operator_pod_labels.items()),
        ],
    )


def invalid(facts: Facts, sentence: str) -> Finding:
    """The spec asks for what cannot be."""
    return Finding(
        level=_PROBLEM,
        reason=Reason.INVALID_SPEC,
        what="The spec cannot be carried out as it is; what runs stays as it was.",
        why=sentence if sentence.endswith(".") else f"{sentence}.",
        next="Change that field.",
        commands=[facts.kubectl(f"edit tinybirdproxy {facts.name}")],
    )


def spec_findings(facts: Facts, proxy: Proxy) -> Iterator[Finding]:
    """What the operator's checks and allowed lists refuse. Without the operator's settings the status has to do."""
    settings = facts.settings
    if settings is None or proxy.spec.controller_class != settings.controller_class:
        return
    asked = {
        Reason.UPSTREAM_NOT_ALLOWED: ("allowedUpstreams", settings.allowed_upstreams, host_of(proxy.spec.tinybird.url)),
        Reason.COLLECTOR_NOT_ALLOWED: (
            "allowedCollectors",
            settings.allowed_collectors,
            host_of(proxy.spec.telemetry.otlp_endpoint or ""),
        ),
        Reason.IMAGE_NOT_ALLOWED: ("allowedImages", settings.allowed_images, image_repository(proxy.spec.image or "")),
    }
    for reason, sentence in checks.problems(proxy, settings):
        if reason not in asked:
            yield invalid(facts, sentence)
            continue
        value, allowed, new = asked[reason]
        yield Finding(
            level=_PROBLEM,
            reason=reason,
            what="The spec names what the operator's chart does not allow; what runs stays as it was.",
            why=f"{sentence}.",
            next=f"Change the spec, or add {new!r} to the chart's value {value}:",
            commands=[facts.kubectl(f"edit tinybirdproxy {facts.name}"), _helm(settings, value, [*allowed, new])],
        )


def secret_findings(facts: Facts, *, optional: bool = False) -> Iterator[Finding]:
    """The Secrets that the spec names: those that everything else waits for, or those that nothing does."""
    for secret in facts.secrets:
        if secret.optional is not optional:
            continue
        where = f"{secret.field} names Secret {secret.name}, key {secret.key}"
        if secret.problem is not None:
            commands = _mend_secret(facts, secret)
            content = "one line, as name=value,name2=value2" if optional else "the token alone"
            file = f" FILE holds {content}." if any("=FILE" in command for command in commands) else ""
            yield Finding(
                level=_PROBLEM,
                reason=secret.problem.reason,
                what=f"A Secret that the resource {'names' if optional else 'needs'} cannot be used: {where}.",
                why=secret.problem.message,
                next=f"Put that right; the operator then goes on by itself, without a restart.{file}",
                commands=commands,
            )
        elif secret.immutable:
            yield Finding(
                level=_NOTE,
                reason="SecretImmutable",
                what=f"Secret {secret.name} is immutable: its token cannot be rotated in place.",
                why=f"{where}.",
                next=f"For another token make a Secret of another name, and name it in {secret.field}.",
                commands=[facts.kubectl(f"edit tinybirdproxy {facts.name}")],
            )


def _mend_secret(facts: Facts, secret: SecretSeen) -> list[str]:
    name, key = shlex.quote(secret.name), shlex.quote(secret.key)
    label = facts.kubectl(f"label secret {name} {USE_LABEL}={USE_TOKEN} --overwrite")
    create = f"create secret generic {name} --from-file={key}=FILE"
    reason = None if secret.problem is None else secret.problem.reason
    if reason is Reason.SECRET_NOT_FOUND:
        return [facts.kubectl(create), label]
    if reason is Reason.SECRET_NOT_SHARED:
        return [label]
    not_good = (Reason.SECRET_KEY_MISSING, Reason.SECRET_MALFORMED)
    if reason in not_good and not secret.immutable:
        return [f"{facts.kubectl(f'{create} --dry-run=client --output=yaml')} | {facts.kubectl('apply --filename=-')}"]
    if reason in not_good:
        return [facts.kubectl(f"delete secret {name}"), facts.kubectl(create), label]
    return [facts.kubectl(f"describe secret {name}")]


def child_findings(facts: Facts, proxy: Proxy, *, blocked: bool) -> Iterator[Finding]:
    """Names that are taken, the Deployment, its rollout. ``blocked``: a problem above keeps it from being made."""
    for taken in facts.taken:
        kind, _, name = taken.partition(" ")
        yield Finding(
            level=_PROBLEM,
            reason=Reason.NAME_TAKEN,
            what=f"{taken} exists and does not belong to this resource: the operator leaves it untouched.",
            why="Its controller's ownerReference is not this TinybirdProxy.",
            next="Delete or rename it if it is not needed, or give the TinybirdProxy another name.",
            commands=[facts.kubectl(f"get {kind.lower()} {name} --output=yaml")],
        )
    if facts.deployment is None:
        if facts.deployment_known and not any(taken.startswith("Deployment ") for taken in facts.taken):
            yield Finding(
                level=_NOTE if blocked or facts.taken else _PROBLEM,
                reason="DeploymentNotFound",
                what=f"There is no Deployment {facts.name}, so no pods.",
                why="What is said above keeps it from being made." if blocked or facts.taken else "",
                next=""
                if blocked or facts.taken
                else "The operator makes it when it looks the next time; if not, see why.",
                commands=[] if blocked or facts.taken else [_operators()],
            )
        return
    leaving = sum(pod.facts.labelled and not pod.facts.terminating for pod in facts.pods or ())
    workload = replace(read_workload(facts.deployment), draining=leaving)
    if workload.failed is not None:
        yield Finding(
            level=_PROBLEM,
            reason=Reason.ROLLOUT_FAILED,
            what=f"The rollout of Deployment {facts.name} does not get on.",
            why=workload.failed,
            next="What is said of the pods is the reason, or else a quota or an admission policy.",
            commands=[facts.kubectl(f"describe deployment {facts.name}")],
        )
    elif not workload.settled:
        yield Finding(
            level=_NOTE,
            reason=Reason.ROLLING_OUT,
            what=f"A rollout is in progress: {workload.updated} of {workload.replicas} pods run the present template.",
            commands=[facts.kubectl(f"rollout status deployment {facts.name}")],
        )
    wanted = proxy.spec.replicas
    if wanted == 0:
        yield Finding(
            level=_NOTE,
            reason="NoReplicas",
            what="spec.replicas is 0: no pod is wanted, and clients find none.",
            commands=[facts.kubectl(f"scale tinybirdproxy {facts.name} --replicas=2")],
        )


def told_findings(facts: Facts, *, told: set[str], every_pod_answered: bool) -> Iterator[Finding]:
    """What only the operator knows: conditions that are not as they should be. ``told``: reasons that were said."""
    if not facts.status_is_current:
        return
    seen = told | _SEEN_HERE | (_SEEN_IN_PODS if every_pod_answered else frozenset())
    for condition in facts.status.get("conditions", []):
        kind, status, reason = condition.get("type"), condition.get("status"), condition.get("reason", "")
        if reason in seen or kind not in _BAD or status != _BAD[kind]:
            continue
        seen = seen | {reason}
        commands = [facts.kubectl(f"describe tinybirdproxy {facts.name}")]
        advice = ""
        if reason == Reason.ROLLOUT_HELD:
            advice = "It goes out by itself when that ends. To let it out now, with what that may lose (below):"
            commands = [facts.kubectl(f"annotate tinybirdproxy {facts.name} {ROLL_ANNOTATION}=now")]
        yield Finding(
            level=_PROBLEM,
            reason=reason,
            what=f"The operator says {kind}={status}, since {condition.get('lastTransitionTime', 'an unknown time')}.",
            why=condition.get("message", ""),
            next=advice,
            commands=commands,
        )


def _operators() -> str:
    return f"kubectl get pods --all-namespaces --selector={NAME_LABEL}={FIELD_MANAGER}"


def _helm(settings: OperatorSettings, value: str, items: list[str]) -> str:
    """How to change a list of the chart's. Nothing tells where the chart is from."""
    given = f"{value}={msgspec.json.encode(items).decode()}"
    return helm_upgrade(settings, f"--set-json {shlex.quote(given)}")


def helm_upgrade(settings: OperatorSettings, change: str) -> str:
    """How to change a value of the chart's, and keep the others."""
    release = settings.operator_pod_labels.get(INSTANCE_LABEL, "RELEASE")
    return f"helm upgrade {release} CHART --namespace {settings.operator_namespace} --reset-then-reuse-values {change}"
