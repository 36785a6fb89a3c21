"""What is to say of the pods that ask for a sidecar: who has none, an old one or too little time, and why. Pure."""

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final

import msgspec

from tinybird_proxy.health import count
from tinybird_proxy_operator.doctor.facts import Facts, Finding, Level
from tinybird_proxy_operator.doctor.resource import helm_upgrade
from tinybird_proxy_operator.names import INJECT_LABEL, INJECT_OFF, ConditionType, Reason, some
from tinybird_proxy_operator.sidecars import evidence, standing
from tinybird_proxy_operator.sidecars.app_pods import AppPod, State
from tinybird_proxy_operator.spec import Proxy

# What the doctor sees in the pods, and more recently than the status says it.
SEEN_IN_APPS: Final = frozenset({Reason.SIDECARS_MISSED, Reason.SIDECARS_REFUSED, Reason.SIDECARS_STALE})
_OWNERS_MAX: Final = 5
_RESTARTABLE: Final = ("Deployment", "StatefulSet", "DaemonSet")
_PROBLEM, _NOTE = Level.PROBLEM, Level.NOTE


def sidecar_findings(facts: Facts, proxy: Proxy, *, blocked: bool) -> Iterator[Finding]:
    """Mode Sidecar. ``blocked``: a problem above keeps a sidecar from being rendered."""
    off = yield from _off(facts)
    rendered = facts.status.get("sidecar")
    if rendered is None:
        yield _none_to_give(facts, proxy, blocked=blocked)
    if facts.apps is None:
        yield Finding(level=Level.UNKNOWN, reason="PodsUnknown", what="The pods could not be listed.")
        return
    apps = [app for app in facts.apps if not app.terminating]
    can_be_given = rendered is not None and not off
    yield from _missed(facts, proxy, _in(apps, State.MISSED), can_be_given=can_be_given)
    yield from _refused(facts, _in(apps, State.REFUSED))
    yield from _stale(facts, proxy, _in(apps, State.STALE), can_be_given=can_be_given)
    yield from _short(facts, proxy, apps, standing.needed_grace_period_s(rendered))
    if left := [app.name for app in apps if not app.asks]:
        yield Finding(
            level=_NOTE,
            reason="NoLongerAsked",
            what=f"{_pods(len(left), 'has', 'have')} the sidecar and would not get it again.",
            why=f"{some(left)}: the label, or the namespace's, is another one by now. It stays until the pod goes.",
        )
    if not apps:
        yield Finding(
            level=_NOTE,
            reason="NobodyAsks",
            what="No pod asks for the sidecar.",
            next="Give the pods' template the label with this resource's name; for a Deployment APP:",
            commands=[_relabel(facts, "deployment APP", facts.name)],
        )
    yield from _astray(facts)


def asked_in_vain(facts: Facts) -> Iterator[Finding]:
    """Pods ask for the sidecar of a resource of another mode."""
    apps = [app for app in facts.apps or () if app.facts is None]
    if apps:
        yield Finding(
            level=_PROBLEM,
            reason="NotASidecar",
            what=f"{_pods(len(apps), 'asks', 'ask')} for a sidecar of this resource, and its mode is Deployment.",
            why=f"{_names(apps)}: they get none, and send wherever their app is told to.",
            next="The mode of a resource cannot be changed: make another with spec.mode: Sidecar, and put its name into"
            " the label; or take the label off.",
            commands=_relabels(facts, apps, "NAME"),
        )


def _off(facts: Facts) -> Generator[Finding, None, bool]:
    """Yields what keeps every pod from it, and returns whether something does."""
    settings = facts.settings
    if settings is None:
        return facts.condition(ConditionType.SIDECARS_CURRENT).get("reason") == Reason.INJECTION_OFF
    off = standing.why_off(settings.injection, facts.namespace, settings.operator_namespace)
    if settings.injection == standing.OFF:
        found = evidence.weigh(facts.apps or (), None, settled=False, believed=evidence.is_believed(facts.status))
        if found.witness:
            text = evidence.sentence(found.witness)
            yield Finding(level=_NOTE, reason=Reason.INJECTED_BY_OTHERS, what=text)
            return False
    if off and settings.injection == standing.OFF:
        yield Finding(
            level=_PROBLEM,
            reason=Reason.INJECTION_OFF,
            what=off,
            next="Policy needs Kubernetes 1.36, Webhook 1.31. Then restart the pods that ask. One of:",
            commands=[helm_upgrade(settings, f"--set injection={way}") for way in ("Policy", "Webhook")],
        )
    elif off:
        yield Finding(
            level=_PROBLEM,
            reason=Reason.INJECTION_OFF,
            what=off,
            next="Put the app and a TinybirdProxy into another namespace, or use mode Deployment.",
        )
    return bool(off)


def _none_to_give(facts: Facts, proxy: Proxy, *, blocked: bool) -> Finding:
    unmanaged = proxy.spec.management_state == "Unmanaged"
    return Finding(
        level=_NOTE if blocked else _PROBLEM,
        reason="NoSidecarToGive",
        what="The status has no sidecar: new pods get none, and those that have one keep it as long as they run.",
        why="What is said above keeps it from being made."
        if blocked
        else ("It was never made, and Unmanaged nothing is." if unmanaged else ""),
        next="Do not restart pods that have one until there is." if any(map(_has_one, facts.apps or ())) else "",
        commands=[facts.kubectl(f"describe tinybirdproxy {facts.name}")],
    )


def _missed(facts: Facts, proxy: Proxy, apps: Sequence[AppPod], *, can_be_given: bool) -> Iterator[Finding]:
    if not apps:
        return
    made_at = (facts.body or {}).get("metadata", {}).get("creationTimestamp") or ""
    older = [app for app in apps if app.created_at and app.created_at < made_at]
    younger = [app for app in apps if app not in older]
    why = [f"{_of(older)}: older than the resource."] if older else []
    if younger:
        why.append(
            f"{_of(younger)}: made after the resource, so the label came later, or there was no sidecar to give, or"
            " injection was away at that moment."
        )
    yield Finding(
        level=_PROBLEM,
        reason=Reason.SIDECARS_MISSED,
        what=f"{_pods(len(apps), 'asks', 'ask')} for the sidecar and {_verb(len(apps), 'does', 'do')} not have it.",
        why=" ".join(why),
        **_mend(facts, proxy, apps, can_be_given=can_be_given),
    )


def _stale(facts: Facts, proxy: Proxy, apps: Sequence[AppPod], *, can_be_given: bool) -> Iterator[Finding]:
    if not apps:
        return
    evicts = proxy.spec.sidecar.rollout == "Evict"
    mend = _mend(facts, proxy, apps, can_be_given=can_be_given)
    stuck = [pod.name for pod in facts.pods or () if pod.answer is not None and pod.answer.report.stuck_rows]
    if stuck:
        mend["next"] = f"Not while rows wait that are not delivered ({some(stuck)}): they would be lost. {mend['next']}"
    said = str(facts.condition(ConditionType.SIDECARS_CURRENT).get("message", ""))
    yield Finding(
        level=_NOTE if evicts or not can_be_given else _PROBLEM,
        reason=Reason.SIDECARS_STALE,
        what=f"{_pods(len(apps), 'has', 'have')} the sidecar as it was before a change.",
        why=f"{_of(apps)}." + (f" The operator says: {said}" if evicts and said else ""),
        **mend,
    )


def _mend(facts: Facts, proxy: Proxy, apps: Sequence[AppPod], *, can_be_given: bool) -> dict[str, Any]:
    """``next`` and ``commands`` of a finding about pods that others take the place of."""
    if not can_be_given:
        return {"next": "Put right first what is said above; then restart them."}
    owners = list(dict.fromkeys(app.owner for app in apps if app.owner is not None))
    left = [app.name for app in apps if app.owner is None]
    for_good = f" {some(left)}: of a Job, or of nothing that replaces it; the next one has it." if left else ""
    if not owners:
        return {"next": for_good.strip(), "commands": [facts.kubectl(f"get pod {left[0]} --show-labels")]}
    commands = [_restart(facts, owner, apps) for owner in owners[:_OWNERS_MAX]]
    if proxy.spec.sidecar.rollout == "Evict":
        text = "They are evicted one after the other (spec.sidecar.rollout is Evict). To have it at once:"
        return {"next": f"{text}{for_good}", "commands": commands}
    commands.append(_set(facts, "rollout", "Evict"))
    return {"next": f"Restart them, or let the operator evict one after the other:{for_good}", "commands": commands}


def _refused(facts: Facts, apps: Sequence[AppPod]) -> Iterator[Finding]:
    by_owner: dict[str, list[AppPod]] = {}
    for app in apps:
        by_owner.setdefault(app.owner or f"Pod {app.name}", []).append(app)
    for owner, theirs in list(by_owner.items())[:_OWNERS_MAX]:
        kind, _, name = owner.partition(" ")
        where = f"{kind.lower()} {name}"
        label = (
            facts.kubectl(f"label pod {name} {INJECT_LABEL}={INJECT_OFF} --overwrite")
            if kind == "Pod"
            else _relabel(facts, where, INJECT_OFF)
        )
        yield Finding(
            level=_PROBLEM,
            reason=Reason.SIDECARS_REFUSED,
            what=f"{owner}: {count(len(theirs), 'pod')} cannot have the sidecar ({_names(theirs)}).",
            why=f"{theirs[0].why_refused}.",
            next="Change that, or say that there is to be none:",
            commands=[facts.kubectl(f"edit {where}"), label],
        )
    if len(by_owner) > _OWNERS_MAX:
        yield Finding(
            level=_PROBLEM,
            reason=Reason.SIDECARS_REFUSED,
            what=f"The same of {len(by_owner) - _OWNERS_MAX} more that make pods.",
            next="The Events say why:",
            commands=[facts.kubectl(f"describe tinybirdproxy {facts.name}")],
        )


def _short(facts: Facts, proxy: Proxy, apps: Sequence[AppPod], needed_s: int | None) -> Iterator[Finding]:
    short = [app for app in apps if app.facts is not None and app.grace_period_s < (needed_s or 0)]
    if not short:
        return
    grace = {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": needed_s}}}}
    owners = list(dict.fromkeys(app.owner for app in short if app.owner is not None))[:_OWNERS_MAX]
    patches = [_patch(facts, f"{owner.partition(' ')[0].lower()} {owner.partition(' ')[2]}", grace) for owner in owners]
    yield Finding(
        level=_PROBLEM,
        reason=Reason.GRACE_PERIOD_TOO_SHORT,
        what=f"{count(len(short), 'pod')} may end before the sidecar has delivered: {_of(short)}.",
        why=f"terminationGracePeriodSeconds is {min(app.grace_period_s for app in short)}, and {needed_s} are needed:"
        f" spec.drain.shutdownTimeoutSeconds ({proxy.spec.drain.shutdown_timeout_seconds}) and 10 s.",
        next="Have it raised in every pod that gets the sidecar from now on, and restart these; or give them more,"
        " which restarts them:",
        commands=[_set(facts, "gracePeriod", "Raise"), *patches],
    )


def _astray(facts: Facts) -> Iterator[Finding]:
    for name, pods in list(facts.astray.items())[:_OWNERS_MAX]:
        yield Finding(
            level=_PROBLEM,
            reason="NoSuchResource",
            what=f"{_pods(len(pods), 'asks', 'ask')} for the sidecar of a TinybirdProxy {name}, which does not exist.",
            why=f"{some(pods)}: {_verb(len(pods), 'it gets', 'they get')} none, and no resource counts"
            f" {_verb(len(pods), 'it', 'them')}.",
            next="If this resource is meant, put its name into the label of what makes the pods; for a Deployment APP:",
            commands=[_relabel(facts, "deployment APP", facts.name)],
        )


def _relabels(facts: Facts, apps: Sequence[AppPod], name: str) -> list[str]:
    owners = [owner.split(" ", 1) for owner in dict.fromkeys(app.owner for app in apps if app.owner is not None)]
    if not owners:
        return [facts.kubectl(f"label pod {apps[0].name} {INJECT_LABEL}={name} --overwrite")]
    return [_relabel(facts, f"{kind.lower()} {its_name}", name) for kind, its_name in owners[:_OWNERS_MAX]]


def _relabel(facts: Facts, what: str, name: str) -> str:
    return _patch(facts, what, {"spec": {"template": {"metadata": {"labels": {INJECT_LABEL: name}}}}})


def _set(facts: Facts, field: str, value: str) -> str:
    return _patch(facts, f"tinybirdproxy {facts.name}", {"spec": {"sidecar": {field: value}}})


def _patch(facts: Facts, what: str, patch: dict[str, Any]) -> str:
    return facts.kubectl(f"patch {what} --type=merge --patch='{msgspec.json.encode(patch).decode()}'")


def _restart(facts: Facts, owner: str, apps: Sequence[AppPod]) -> str:
    kind, _, name = owner.partition(" ")
    if kind in _RESTARTABLE:
        return facts.kubectl(f"rollout restart {kind.lower()} {name}")
    return facts.kubectl(f"delete pod {next(app.name for app in apps if app.owner == owner)}")


def _has_one(app: AppPod) -> bool:
    return app.state in (State.CURRENT, State.STALE)


def _in(apps: Sequence[AppPod], state: State) -> list[AppPod]:
    return [app for app in apps if app.state is state and app.asks]


def _names(apps: Sequence[AppPod]) -> str:
    return some([app.name for app in apps])


def _of(apps: Sequence[AppPod]) -> str:
    """Names of pods, with who makes them."""
    return some([app.name if app.owner is None else f"{app.name} ({app.owner})" for app in apps])


def _pods(number: int, one: str, many: str) -> str:
    return f"{count(number, 'pod')} {_verb(number, one, many)}"


def _verb(number: int, one: str, many: str) -> str:
    return one if number == 1 else many
