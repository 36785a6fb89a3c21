"""How pods go when there are to be fewer of them: they deliver first, and only then does the number fall. Pure.

The label on a pod is the decision that it is to go, and all that is remembered of it: each look decides anew.

    as many wanted as there are, or more            nobody drains, and the Deployment gets the number at once
    the Deployment's last change is not seen        whoever drains goes on; nobody is added, and nobody goes
    a rollout goes on                               nobody drains: unready new pods would stop it
    given up less than RETRY_S ago                  nobody drains
    each victim is empty, unready and marked, and
      each other one is ready, as many as wanted    the number falls: Kubernetes can take none but the victims
    the deadline is over                            Keep: nobody drains any longer; Drop: the number falls
    else                                            so many drain as are too many

Kubernetes removes pods that wait for a node first, then those that have not started, those that are not ready, those
of the least deletion cost. So a pod that is empty because it does not run is the first victim.

No pod is sent back to service that may be about to go: its ReplicaSet has pods in excess, or the Deployment's
controller may not have told it yet that they may stay. It would take rows along.
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from tinybird_proxy_operator.names import ConditionType, Reason, some, two_digits
from tinybird_proxy_operator.observed import PodFacts, not_known
from tinybird_proxy_operator.spec import Drain

# Ready pods have 0. Among pods that are not ready, this one goes first.
DELETION_COST: Final = -1000
RETRY_S: Final = 300.0
# A row that waits for so long while none of its pod is delivered: it stands still, whatever the cause.
_STANDSTILL_S: Final = 60.0
Verdict = tuple[str, Reason, str]  # status, reason, message of the condition ``Draining``


class Stage(StrEnum):
    """What a look does."""

    IDLE = "nobody is to go, or not now"
    DRAINING = "victims deliver what they hold"
    SHRINKING = "the number of pods falls, and the empty ones go"
    DROPPING = "the number of pods falls, and what the victims hold goes with them"
    GIVING_UP = "the deadline is over: the victims serve again"
    RESTING = "it was given up a while ago"


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What decides. ``live``: ``spec.replicas`` of the Deployment; ``pods``: read after it, with their ReplicaSets.

    ``rolling``: pods of another template are left. ``gave_up_at``: when a drain was given up, if that was the last
    that was heard of it. ``delivers_again``: a pod has begun to deliver since then. ``labelled_for_s``: for how long
    each victim is seen to be one, by its name, on a clock that only goes forward.
    """

    wanted: int
    live: int
    generation_seen: bool
    rolling: bool
    pods: Sequence[PodFacts]
    drain: Drain
    now: datetime
    gave_up_at: datetime | None = None
    delivers_again: bool = False
    labelled_for_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def active(self) -> list[PodFacts]:
        """Pods that stay if nobody takes them away."""
        return [pod for pod in self.pods if not pod.terminating]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do, by the names of pods, in this order: ``unlabel``, ``label``, ``cancel`` and ``begin``; ``replicas``.

    ``begin`` and ``cancel``: who is told to drain and who no longer to, if the label is as it should be by then.
    ``replicas``: of the Deployment. ``may_go``: who may be gone after it has fallen.
    """

    stage: Stage
    replicas: int
    victims: tuple[str, ...]
    unlabel: tuple[str, ...]
    label: tuple[str, ...]
    cancel: tuple[str, ...]
    begin: tuple[str, ...]
    may_go: frozenset[str]

    @property
    def falls(self) -> bool:
        """Whether the number of pods falls now."""
        return self.stage in (Stage.SHRINKING, Stage.DROPPING)


def decide(situation: Situation) -> Plan:
    """What to do now."""
    s, active = situation, situation.active
    stage, victims = _stage(s, active)
    chosen = {pod.name for pod in victims}
    unlabel = [pod.name for pod in active if pod.labelled and pod.name not in chosen and _may_return(s, pod)]
    drains = chosen | ({pod.name for pod in active if pod.labelled} - set(unlabel))
    begin, cancel = [], []
    for pod in active:
        if pod.report is None or pod.report.draining == (pod.name in drains):
            continue
        if pod.name in drains:
            begin.append(pod.name)
        elif _may_return(s, pod):
            cancel.append(pod.name)
    falls = stage in (Stage.SHRINKING, Stage.DROPPING)
    return Plan(
        stage=stage,
        replicas=s.wanted if falls or s.wanted >= s.live else s.live,
        victims=tuple(pod.name for pod in victims),
        unlabel=tuple(unlabel),
        label=tuple(pod.name for pod in victims if not _is_marked(pod)),
        cancel=tuple(cancel),
        begin=tuple(begin),
        may_go=frozenset(chosen | {pod.name for pod in active if _has_no_process(pod)}) if falls else frozenset(),
    )


def _stage(s: Situation, active: Sequence[PodFacts]) -> tuple[Stage, list[PodFacts]]:
    """And the victims."""
    labelled = [pod for pod in active if pod.labelled]
    if s.wanted >= s.live:
        return Stage.IDLE, []
    if not s.generation_seen:
        return Stage.DRAINING if labelled else Stage.IDLE, labelled
    if s.rolling:
        return Stage.IDLE, []
    if len(active) <= s.wanted:  # pods that were not made yet are not made, and no other goes
        return Stage.SHRINKING, []
    if s.gave_up_at is not None and not s.delivers_again and s.now - s.gave_up_at < timedelta(seconds=RETRY_S):
        return Stage.RESTING, []
    victims = choose(active, min(s.live, len(active)) - s.wanted)
    chosen = {pod.name for pod in victims}
    others = [pod for pod in active if pod.name not in chosen]
    go = len(others) == s.wanted and all(map(_is_marked, victims))
    if go and all(map(_may_leave, victims)) and all(pod.ready or _has_no_process(pod) for pod in others):
        return Stage.SHRINKING, victims
    if is_overdue(s, victims):
        if s.drain.on_deadline == "Keep":
            return Stage.GIVING_UP, []
        if go:
            return Stage.DROPPING, victims
    return Stage.DRAINING, victims


def choose(active: Sequence[PodFacts], count: int) -> list[PodFacts]:
    """The ``count`` pods that are to go. Whoever is labelled stays chosen, but for pods that are less of a loss."""
    return sorted(active, key=_rank)[: max(0, count)]


def _rank(pod: PodFacts) -> tuple[int, int, float, float, str]:
    """Who goes first: by what is lost, then by what it holds. Kubernetes too takes unready pods first, at any cost."""
    kind = 0 if _has_no_process(pod) else 1 if not pod.ready else 2
    rows = pod.report.rows if pod.report is not None else math.inf if pod.running else 0
    # Rows are delivered before the pod goes; dead letters go with it.
    letters = pod.report.dead_letter_rows if pod.report is not None else 0
    # Clients have their connections to the older ones; Kubernetes too takes the newest.
    age = 0.0 if pod.created_at is None else -pod.created_at.timestamp()
    return 2 * kind + (not pod.labelled), letters, rows, age, pod.name


def _has_no_process(pod: PodFacts) -> bool:
    """Whether nothing runs in the pod that could hold a row."""
    return not pod.ready and not pod.running and pod.report is None


def _is_marked(pod: PodFacts) -> bool:
    """Whether the API server has all that a victim carries."""
    return pod.labelled and pod.draining_since is not None and pod.deletion_cost == DELETION_COST


def _may_leave(pod: PodFacts) -> bool:
    return pod.holds_nothing and not pod.ready


def _may_return(s: Situation, pod: PodFacts) -> bool:
    return s.generation_seen and not pod.excess


def is_overdue(s: Situation, victims: Sequence[PodFacts]) -> bool:
    """Whether one of them drains for longer than it may.

    ``draining_since`` does not decide: another operator's clock may have written it, and rows would be dropped early.
    """
    waits_s = [s.labelled_for_s.get(pod.name, 0.0) for pod in victims if pod.labelled]
    return max(waits_s, default=0.0) >= s.drain.deadline_seconds


# What is remembered.


def _old_condition(status: Mapping[str, Any]) -> Mapping[str, Any]:
    found = (each for each in status.get("conditions", []) if each.get("type") == ConditionType.DRAINING)
    return next(found, {})


def says(status: Mapping[str, Any], said: Verdict) -> bool:
    """Whether the resource's last status has this condition."""
    old = _old_condition(status)
    return (old.get("status"), old.get("reason"), old.get("message")) == said


def gave_up_at(status: Mapping[str, Any]) -> datetime | None:
    """When a drain was given up, as the resource's last status says."""
    old = _old_condition(status)
    if old.get("status") != "False" or old.get("reason") != Reason.DRAIN_DEADLINE_EXCEEDED:
        return None
    return datetime.fromisoformat(old["lastTransitionTime"])


def standing_still(pods: Sequence[PodFacts]) -> set[str]:
    """Names of pods that hold rows and deliver none, or not those of some data source."""
    found = set()
    for pod in pods:
        if (report := pod.report) is not None:
            waits = (report.oldest_age_s or 0.0) >= _STANDSTILL_S
            if report.stuck_rows or (waits and report.delivered_rows_1m == 0):
                found.add(pod.name)
    return found


def deliver_again(stood_still: Set[str], pods: Sequence[PodFacts]) -> bool:
    """Whether a pod that stood still since a drain was given up does so no longer."""
    answer = {pod.name for pod in pods if pod.report is not None}
    return bool((stood_still & answer) - standing_still(pods))


@dataclass(frozen=True, slots=True)
class Fall:
    """The number of pods has fallen. ``rows``: what each pod held then, None: it did not tell."""

    may_go: frozenset[str]
    rows: Mapping[str, int | None]


def wrong_pods(fall: Fall, active: Sequence[PodFacts]) -> dict[str, int | None]:
    """Who has gone in place of a victim, and with how many rows; once as many have gone as were too many.

    One that went for another reason took no victim's place, so as long as victims are left.
    """
    present = {pod.name for pod in active}
    if not fall.may_go & present:
        return {}
    return {name: rows for name, rows in fall.rows.items() if name not in present | fall.may_go}


# What is told.


def verdict(
    s: Situation, plan: Plan, pods: Sequence[PodFacts], old: Mapping[str, Any], *, hindrance: str | None = None
) -> Verdict | None:
    """The condition ``Draining``; None: there is none. ``pods``: after the plan's steps; ``old``: the last status.

    ``hindrance``: why pods could not be told to drain.
    """
    victims = [pod for pod in pods if pod.name in plan.victims]
    if plan.stage is Stage.DRAINING:
        drain = f"{len(victims)} of {len(s.active)} pods {'drains' if len(victims) == 1 else 'drain'}"
        return "True", Reason.SCALING_DOWN, f"{drain}: {_what_is_left(victims)}{_what_is_awaited(s, pods, hindrance)}"
    if plan.stage is Stage.SHRINKING and victims:
        return "True", Reason.SCALING_DOWN, f"No row is left in {_names(victims)}: they go now."
    if plan.stage is Stage.DROPPING:
        return "False", Reason.ROWS_DROPPED, dropped(s, victims, hindrance)
    if plan.stage is Stage.GIVING_UP:
        return "False", Reason.DRAIN_DEADLINE_EXCEEDED, _given_up(s, hindrance)
    before = _old_condition(old)
    # Rows that were dropped are told until something else is, and a drain that was given up as long as it is asked for.
    for reason in (Reason.ROWS_DROPPED, *([Reason.DRAIN_DEADLINE_EXCEEDED] if plan.replicas > s.wanted else [])):
        if before.get("reason") == reason:
            return "False", reason, str(before["message"])
    if going := [pod for pod in pods if pod.labelled and not pod.terminating]:
        return "True", Reason.SCALING_DOWN, f"{_names(going)} go in a moment, or serve again."
    if plan.stage is Stage.IDLE and s.generation_seen and s.rolling and s.wanted < s.live:
        return "False", Reason.ROLLING_OUT, f"Not scaled down from {s.live} to {s.wanted} yet: a rollout goes first."
    return None


def dropped(s: Situation, victims: Sequence[PodFacts], hindrance: str | None = None) -> str:
    """What is told when rows are given up."""
    more = "" if hindrance is None else f" {hindrance}"
    return (
        f"Scaled down to {s.wanted} after {s.drain.deadline_seconds} s (spec.drain.onDeadline is Drop):"
        f" {_what_is_left(victims)}{_why(victims)}{more} They go with their pods, which deliver what they can for"
        f" another {s.drain.shutdown_timeout_seconds} s."
    )


def wrong(names: Mapping[str, int | None], fall: Fall, active: Sequence[PodFacts]) -> str:
    """What is told of pods that went in place of victims."""
    held = [f"{name} ({'what it held is not known' if rows is None else _rows(rows)})" for name, rows in names.items()]
    stayed = sorted(fall.may_go & {pod.name for pod in active})
    return (
        f"Kubernetes removed {some(sorted(held))} and not {some(stayed)}, which had been emptied: probably it was not"
        " ready at that moment. It delivers what it can while it stops; its log says what is lost."
        f" {some(stayed)} serves again."
    )


def _given_up(s: Situation, hindrance: str | None) -> str:
    pods = [pod for pod in s.active if pod.labelled]
    more = "" if hindrance is None else f" {hindrance}"
    again = s.now + timedelta(seconds=RETRY_S)
    return (
        f"Not scaled down from {s.live} to {s.wanted}, for not all could go after {s.drain.deadline_seconds} s:"
        f" {_what_is_left(pods)}{_why(pods)}{_unready_others(s, pods)}{more} They serve again. It is tried again at"
        f" {again:%H:%M:%S} UTC, or as soon as rows are delivered again. To scale down with what is left: set"
        " spec.drain.onDeadline to Drop."
    )


def _what_is_left(victims: Sequence[PodFacts]) -> str:
    """Rows, and pods that do not answer, in sentences."""
    holders = [pod for pod in victims if pod.report is not None and pod.report.rows]
    unknown = not_known(victims)
    rows = sum(pod.report.rows for pod in holders if pod.report is not None)
    if rows:
        text = f"{_rows(rows)} {'is' if rows == 1 else 'are'} left in {_names(holders)}."
    elif unknown and all(pod.report is None for pod in victims):
        return unknown
    else:
        text = "no row is left in those that answer." if unknown else f"no row is left in {_names(victims)}."
    return f"{text} {unknown}" if unknown else text


def _what_is_awaited(s: Situation, pods: Sequence[PodFacts], hindrance: str | None) -> str:
    victims = [pod for pod in pods if pod.labelled and not pod.terminating]
    if hindrance is not None:
        return f"{_why(victims)} {hindrance}"
    if any(pod.report is not None and pod.report.rows for pod in victims):
        return f"{_why(victims)} They go when no row is left."
    return _unready_others(s, victims) or " They go when they have left the Service and refuse new rows."


def _unready_others(s: Situation, victims: Sequence[PodFacts]) -> str:
    names = {pod.name for pod in victims}
    unready = [pod for pod in s.active if not pod.ready and pod.name not in names]
    if not unready:
        return ""
    return f" {_names(unready)} {'is' if len(unready) == 1 else 'are'} not ready, and would go in their place."


def _why(pods: Sequence[PodFacts]) -> str:
    sentences = [sentence for pod in pods if pod.report is not None for sentence in pod.report.stuck]
    return f" {sentences[0]}" if sentences else ""


def _names(pods: Sequence[PodFacts]) -> str:
    return some([pod.name for pod in pods])


def _rows(rows: int) -> str:
    return "1 row" if rows == 1 else f"{two_digits(rows):,} rows"
