"""Which pods go, and when: by table, and in any history before a Deployment that removes pods as Kubernetes does."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy_operator.names import Reason
from tinybird_proxy_operator.observed import PodFacts, ProxyReport
from tinybird_proxy_operator.scaling.shrink import (
    DELETION_COST,
    RETRY_S,
    Fall,
    Plan,
    Situation,
    Stage,
    choose,
    decide,
    deliver_again,
    gave_up_at,
    standing_still,
    verdict,
    wrong,
    wrong_pods,
)
from tinybird_proxy_operator.spec import Drain

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def said(**changes: Any) -> ProxyReport:
    well: dict[str, Any] = {"rows": 0, "size_bytes": 0, "utilisation": 0.0, "oldest_age_s": None, "stuck_rows": 0}
    token = {"token_hash": None, "token_accepted": False, "token_denied": False, "candidate_rejected": False}
    return ProxyReport(**{**well, "stuck": [], **token, **changes})


def pod(name: str, rows: int | None = 0, **changes: Any) -> PodFacts:
    """A ready pod that serves; ``rows`` None: it does not answer."""
    facts: dict[str, Any] = {"ip": "::1", "ready": True, "waiting": None, "out_of_memory": False}
    return PodFacts(**{"name": name, **facts, "report": None if rows is None else said(rows=rows), **changes})


def victim(name: str, rows: int | None = 0, **changes: Any) -> PodFacts:
    """A pod that drains, as Kubernetes has seen, since ``since_s``."""
    report = None if rows is None else said(rows=rows, draining=True, refusing=True)
    since_s = changes.pop("since_s", 10.0)
    marks = {"labelled": True, "deletion_cost": DELETION_COST, "draining_since": NOW - timedelta(seconds=since_s)}
    return pod(name, **{"ready": False, "report": report, **marks, **changes})


def absent(name: str, **changes: Any) -> PodFacts:
    """A pod in which no process runs."""
    return pod(name, None, ready=False, running=False, **changes)


def situation(*pods: PodFacts, wanted: int, **changes: Any) -> Situation:
    drain = changes.pop("drain", {})
    live = len([each for each in pods if not each.terminating])
    since = {each.name: each.draining_since for each in pods if each.draining_since is not None}
    facts: dict[str, Any] = {"live": live, "generation_seen": True, "rolling": False, "now": NOW}
    facts["labelled_for_s"] = {name: (NOW - at).total_seconds() for name, at in since.items()}
    return Situation(**{"wanted": wanted, "pods": pods, "drain": Drain(**drain), **facts, **changes})


def steps(plan: Plan) -> dict[str, tuple[str, ...]]:
    """What is done to pods."""
    every = {"unlabel": plan.unlabel, "label": plan.label, "cancel": plan.cancel, "begin": plan.begin}
    return {what: names for what, names in every.items() if names}


A, B, C = pod("a", 5), pod("b", 3), pod("c", 9)


# It holds no row that could be delivered, and one that goes with it.
LETTERS = pod("l", report=said(dead_letter_rows=1))


@pytest.mark.parametrize(
    ("pods", "wanted", "names"),
    [
        ([A, B, C], 2, ["b"]),
        ([A, B, C], 1, ["b", "a"]),
        ([A, B, C], 0, ["b", "a", "c"]),
        ([A, pod("b", 5)], 1, ["a"]),
        ([A, B, pod("c", 900, ready=False)], 2, ["c"]),
        ([pod("a", None), B], 1, ["b"]),
        ([A, B, absent("c"), pod("d", 0, ready=False)], 3, ["c"]),
        ([A, B, victim("c", 900)], 2, ["c"]),
        ([A, B, victim("c", 900), victim("d", 7)], 3, ["d"]),
        ([A, B, victim("c", 900), victim("d", None)], 3, ["c"]),
        ([A, victim("b"), absent("c")], 2, ["c"]),
        ([A, victim("b"), pod("c", ready=False)], 2, ["b"]),
        ([A, victim("b", ready=True), pod("c", ready=False)], 2, ["c"]),
        ([LETTERS, A, pod("c", 900)], 1, ["a", "c"]),
        ([pod("old", created_at=NOW - timedelta(days=1)), pod("z", created_at=NOW)], 1, ["z"]),
    ],
)
def test_unready_pods_are_chosen_first_and_then_the_least_buffered_and_a_choice_stays(
    pods: list[PodFacts], wanted: int, names: list[str]
) -> None:
    assert [each.name for each in choose(pods, len(pods) - wanted)] == names


MARKED_ONLY: dict[str, Any] = {"report": said(rows=3)}
NEW: dict[str, Any] = {"labelled": False, "deletion_cost": 0, "draining_since": None}


@pytest.mark.parametrize(
    ("why", "given", "stage", "replicas", "done"),
    [
        ("as many as wanted", situation(A, B, wanted=2), Stage.IDLE, 2, {}),
        ("more are wanted", situation(A, B, wanted=5), Stage.IDLE, 5, {}),
        (
            "a scale-up cancels drains",
            situation(A, victim("b", 3), wanted=4),
            Stage.IDLE,
            4,
            {"unlabel": ("b",), "cancel": ("b",)},
        ),
        (
            "one less is too many",
            situation(A, victim("b", 3), victim("c", 8), wanted=2),
            Stage.DRAINING,
            3,
            {"unlabel": ("c",), "cancel": ("c",)},
        ),
        ("victims are told", situation(A, B, C, wanted=2), Stage.DRAINING, 3, {"label": ("b",), "begin": ("b",)}),
        ("one does not answer", situation(A, pod("b", None), wanted=0), Stage.DRAINING, 2, {"begin": ("a",)}),
        ("its container was restarted", situation(A, victim("b", **MARKED_ONLY), wanted=1), Stage.DRAINING, 2,
         {"begin": ("b",)}),
        ("labelled by hand", situation(A, victim("b", deletion_cost=0), wanted=1), Stage.DRAINING, 2,
         {"label": ("b",)}),
        ("it drains without a label", situation(A, victim("b", **NEW), wanted=2), Stage.IDLE, 2, {"cancel": ("b",)}),
        ("it holds rows", situation(A, victim("b", 1), wanted=1), Stage.DRAINING, 2, {}),
        ("it is empty", situation(A, victim("b"), wanted=1), Stage.SHRINKING, 1, {}),
        ("all are empty", situation(victim("a"), victim("b"), wanted=0), Stage.SHRINKING, 0, {}),
        ("one of two is empty", situation(A, victim("b"), victim("c", 1), wanted=1), Stage.DRAINING, 3, {}),
        ("it takes rows for another moment", situation(A, victim("b", report=said(draining=True)), wanted=1),
         Stage.DRAINING, 2, {}),
        ("it counts as ready", situation(A, victim("b", ready=True), wanted=1), Stage.DRAINING, 2, {}),
        ("it was not confirmed", situation(A, victim("b", **NEW), wanted=1), Stage.DRAINING, 2, {"label": ("b",)}),
        ("it does not answer", situation(A, victim("b", None), wanted=1), Stage.DRAINING, 2, {}),
        ("no process runs there", situation(A, victim("b", None, running=False), wanted=1), Stage.SHRINKING, 1, {}),
        ("another is not ready", situation(A, victim("b"), pod("c", ready=False), wanted=2), Stage.DRAINING, 3, {}),
        ("another does not run and goes first", situation(A, victim("b"), absent("c"), wanted=2), Stage.DRAINING, 3,
         {"unlabel": ("b",), "label": ("c",), "cancel": ("b",)}),
        ("none of them ever ran", situation(absent("a"), victim("b", None, running=False), wanted=1),
         Stage.SHRINKING, 1, {}),
        ("the rest was not made yet", situation(A, absent("b"), wanted=2, live=5), Stage.SHRINKING, 2, {}),
        ("one goes for itself", situation(A, B, victim("c"), pod("d", terminating=True), wanted=2, live=4),
         Stage.SHRINKING, 2, {}),
        ("a rollout goes on", situation(A, victim("b", 1), wanted=1, rolling=True), Stage.IDLE, 2,
         {"unlabel": ("b",), "cancel": ("b",)}),
        ("the last change is not seen", situation(A, victim("b"), wanted=1, generation_seen=False), Stage.DRAINING, 2,
         {}),
        ("nor is it yet", situation(A, B, wanted=1, generation_seen=False), Stage.IDLE, 2, {}),
        ("those that go now", situation(A, victim("b", excess=True), wanted=1, live=1), Stage.IDLE, 1, {}),
        ("those that may go", situation(A, victim("b"), wanted=3, live=1, generation_seen=False), Stage.IDLE, 3, {}),
        ("a victim that survived", situation(A, victim("b"), wanted=2), Stage.IDLE, 2,
         {"unlabel": ("b",), "cancel": ("b",)}),
        ("one that is stopping is left", situation(A, B, victim("c", terminating=True), wanted=2), Stage.IDLE, 2, {}),
    ],
)  # fmt: skip
def test_what_a_look_decides(
    why: str, given: Situation, stage: Stage, replicas: int, done: Mapping[str, tuple[str, ...]]
) -> None:
    plan = decide(given)
    done = {"label": ("a", "b"), **done} if why == "one does not answer" else done
    assert (plan.stage, plan.replicas, steps(plan)) == (stage, replicas, done)


OVERDUE = 300.0


@pytest.mark.parametrize(
    ("on_deadline", "given", "stage", "done"),
    [
        ("Keep", [A, victim("b", 1, since_s=299.0)], Stage.DRAINING, {}),
        ("Keep", [A, victim("b", 1, since_s=OVERDUE)], Stage.GIVING_UP, {"unlabel": ("b",), "cancel": ("b",)}),
        ("Keep", [A, victim("b", None, since_s=OVERDUE)], Stage.GIVING_UP, {"unlabel": ("b",)}),
        ("Keep", [A, victim("b", since_s=OVERDUE)], Stage.SHRINKING, {}),
        ("Drop", [A, victim("b", 1, since_s=299.0)], Stage.DRAINING, {}),
        ("Drop", [A, victim("b", 1, since_s=OVERDUE)], Stage.DROPPING, {}),
        ("Drop", [A, victim("b", None, since_s=OVERDUE, ready=True)], Stage.DROPPING, {}),
        ("Drop", [A, victim("b", since_s=OVERDUE)], Stage.SHRINKING, {}),
        ("Drop", [A, victim("b", 1, since_s=OVERDUE, deletion_cost=0)], Stage.DRAINING, {"label": ("b",)}),
    ],
)
def test_at_the_deadline_the_victims_serve_again_or_their_rows_are_given_up(
    on_deadline: str, given: list[PodFacts], stage: Stage, done: Mapping[str, tuple[str, ...]]
) -> None:
    plan = decide(situation(*given, wanted=1, drain={"on_deadline": on_deadline}))
    assert (plan.stage, steps(plan)) == (stage, done)
    assert plan.replicas == (1 if plan.falls else 2)


@pytest.mark.parametrize(
    ("ago_s", "again", "stage"),
    [
        (0.0, False, Stage.RESTING),
        (RETRY_S - 1, False, Stage.RESTING),
        (RETRY_S, False, Stage.DRAINING),
        (1.0, True, Stage.DRAINING),
        (-60.0, False, Stage.RESTING),
    ],
)
def test_a_drain_that_was_given_up_is_tried_again_after_a_while_or_when_rows_are_delivered(
    ago_s: float, again: bool, stage: Stage
) -> None:
    at = NOW - timedelta(seconds=ago_s)
    plan = decide(situation(A, B, wanted=1, gave_up_at=at, delivers_again=again))
    assert (plan.stage, plan.replicas) == (stage, 2)
    assert bool(plan.label) is (stage is Stage.DRAINING)


def test_when_it_was_given_up_is_read_from_the_last_status() -> None:
    condition = {"type": "Draining", "status": "False", "reason": "DrainDeadlineExceeded"}
    status = {"conditions": [{**condition, "lastTransitionTime": "2026-01-01T12:00:00Z"}]}
    assert gave_up_at(status) == NOW
    assert gave_up_at({}) is None
    assert gave_up_at({"conditions": [{**condition, "status": "True", "reason": "ScalingDown"}]}) is None
    assert gave_up_at({"conditions": [{**condition, "reason": "RowsDropped"}]}) is None


def test_a_pod_stands_still_while_rows_are_stuck_or_none_is_delivered_for_a_minute() -> None:
    pods = [
        pod("stuck", report=said(stuck_rows=1)),
        pod("slow", report=said(oldest_age_s=61.0, delivered_rows_1m=0)),
        pod("old", report=said(oldest_age_s=61.0)),
        pod("new", report=said(oldest_age_s=1.0, delivered_rows_1m=0)),
        pod("flows", report=said(oldest_age_s=61.0, delivered_rows_1m=1)),
        pod("silent", None),
    ]
    assert standing_still(pods) == {"stuck", "slow"}


@pytest.mark.parametrize(
    ("before", "now", "again"),
    [
        ({"a"}, pod("a", report=said(stuck_rows=1)), False),
        ({"a"}, pod("a", report=said()), True),
        ({"a"}, pod("a", None), False),
        (set(), pod("a", report=said()), False),
        ({"a"}, pod("b", report=said()), False),
    ],
)
def test_rows_are_delivered_again_when_a_pod_that_stood_still_says_so(
    before: set[str], now: PodFacts, again: bool
) -> None:
    assert deliver_again(before, [now]) is again


# What is told.


def told(given: Situation, old: Mapping[str, Any] | None = None, hindrance: str | None = None) -> tuple[str, ...]:
    return verdict(given, decide(given), given.pods, old or {}, hindrance=hindrance) or ()


def old(reason: Reason) -> dict[str, Any]:
    at = {"lastTransitionTime": "2026-01-01T12:00:00Z"}
    return {"conditions": [{"type": "Draining", "status": "False", "reason": reason, "message": "As it was.", **at}]}


STUCK = {"stuck_rows": 7, "stuck": ["clicks: Tinybird answers 503."]}
FULL = victim("p-1", report=said(rows=1234, draining=True, refusing=True, **STUCK))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            situation(A, victim("p-1", 1180), victim("p-2", 54), wanted=1),
            "2 of 3 pods drain: 1,200 rows are left in p-1, p-2. They go when no row is left.",
        ),
        (
            situation(A, victim("p-1", 1), wanted=1),
            "1 of 2 pods drains: 1 row is left in p-1. They go when no row is left.",
        ),
        (
            situation(A, FULL, wanted=1),
            "1 of 2 pods drains: 1,200 rows are left in p-1. clicks: Tinybird answers 503."
            " They go when no row is left.",
        ),
        (
            situation(A, victim("p-1", ready=True), wanted=1),
            "1 of 2 pods drains: no row is left in p-1. They go when they have left the Service and refuse new rows.",
        ),
        (
            situation(A, victim("p-1", None), victim("p-2"), wanted=1),
            "2 of 3 pods drain: no row is left in those that answer. p-1 did not answer: what is there is not known."
            " They go when they have left the Service and refuse new rows.",
        ),
        (
            situation(A, victim("p-1"), pod("p-2", ready=False), wanted=2),
            "1 of 3 pods drains: no row is left in p-1. p-2 is not ready, and would go in their place.",
        ),
        (situation(A, victim("p-1"), wanted=1), "No row is left in p-1: they go now."),
        (situation(A, victim("p-1", excess=True), wanted=1, live=1), "p-1 go in a moment, or serve again."),
    ],
)
def test_while_pods_drain_the_condition_says_who_holds_what_and_what_is_waited_for(
    given: Situation, message: str
) -> None:
    assert told(given) == ("True", "ScalingDown", message)


def test_what_is_in_the_way_is_said() -> None:
    found = told(situation(A, victim("p-1", 1), wanted=1), hindrance="The Secret is gone.")
    assert found[2].endswith("1 row is left in p-1. The Secret is gone.")


def test_a_drain_that_is_given_up_says_why_and_when_it_is_tried_again_and_keeps_saying_so() -> None:
    late = situation(A, victim("p-1", report=FULL.report, since_s=OVERDUE), wanted=1)
    status, reason, message = told(late)
    assert (status, reason) == ("False", Reason.DRAIN_DEADLINE_EXCEEDED)
    assert message == (
        "Not scaled down from 2 to 1, for not all could go after 300 s: 1,200 rows are left in p-1. clicks: Tinybird"
        " answers 503. They serve again. It is tried again at 12:05:00 UTC, or as soon as rows are delivered again. To"
        " scale down with what is left: set spec.drain.onDeadline to Drop."
    )
    before = old(Reason.DRAIN_DEADLINE_EXCEEDED)
    kept = ("False", "DrainDeadlineExceeded", "As it was.")
    assert told(situation(A, B, wanted=1, gave_up_at=NOW), before) == kept
    assert told(situation(A, B, wanted=1, rolling=True), before) == kept
    assert told(situation(A, B, wanted=2), before) == ()


def test_rows_that_are_dropped_are_told_until_the_next_drain() -> None:
    drop = {"on_deadline": "Drop"}
    late = situation(A, victim("p-1", report=FULL.report, since_s=OVERDUE), wanted=1, drain=drop)
    status, reason, message = told(late)
    assert (status, reason) == ("False", Reason.ROWS_DROPPED)
    assert message == (
        "Scaled down to 1 after 300 s (spec.drain.onDeadline is Drop): 1,200 rows are left in p-1. clicks: Tinybird"
        " answers 503. They go with their pods, which deliver what they can for another 50 s."
    )
    silent = situation(A, victim("p-1", None, since_s=OVERDUE), wanted=1, drain=drop)
    assert told(silent)[2].startswith(
        "Scaled down to 1 after 300 s (spec.drain.onDeadline is Drop): p-1 did not answer: what is there is not known."
        " They go with their pods"
    )
    before = old(Reason.ROWS_DROPPED)
    assert told(situation(A, wanted=1), before) == ("False", "RowsDropped", "As it was.")
    assert told(situation(A, victim("b", excess=True), wanted=1, live=1), before)[1] == "RowsDropped"
    assert told(situation(A, B, wanted=1), before)[1] == "ScalingDown"


def test_nothing_is_said_where_nothing_drains() -> None:
    assert told(situation(A, B, wanted=2)) == ()
    assert told(situation(A, wanted=1, live=3)) == ()


@pytest.mark.parametrize(
    ("present", "names"),
    [
        ([pod("a"), pod("b")], {}),
        ([pod("a"), victim("c")], {"b": 3}),
        ([pod("a"), victim("d")], {"b": 3}),
        ([pod("a")], {}),
        ([victim("c"), victim("d"), pod("e")], {"a": None, "b": 3}),
    ],
)
def test_a_wrong_pod_is_one_that_went_in_place_of_a_victim(
    present: list[PodFacts], names: dict[str, int | None]
) -> None:
    fall = Fall(frozenset({"c", "d"}), {"a": None, "b": 3, "c": 0, "d": 0})
    assert wrong_pods(fall, present) == names


def test_what_is_told_of_a_wrong_pod_names_it_and_its_rows() -> None:
    fall = Fall(frozenset({"c"}), {"a": None, "b": 1234, "c": 0})
    text = wrong({"a": None, "b": 1234}, fall, [victim("c")])
    assert text.startswith("Kubernetes removed a (what it held is not known), b (1,200 rows) and not c, which")


# Any history.


@dataclass(slots=True)
class Process:
    """A proxy."""

    rows: int = 0
    draining_since: float | None = None
    answers: bool = True


@dataclass(slots=True)
class SimulatedPod:
    """What Kubernetes knows of a pod, and what is in it."""

    name: str
    phase: str = "Pending"
    ready: bool = False
    labelled: bool = False
    since: datetime | None = None
    cost: int = 0
    process: Process | None = None
    is_broken: bool = False
    version: int = 0


@dataclass(slots=True)
class World:
    """A Deployment, its ReplicaSet, pods, and an operator that keeps nothing but what it writes."""

    on_deadline: str = "Keep"
    wanted: int = 3
    replicas: int = 3
    generation: int = 1
    observed: int = 1
    set_replicas: int = 3
    now_s: float = 0.0
    tinybird_answers: bool = True
    pods: dict[str, SimulatedPod] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    stood_still: set[str] = field(default_factory=set)
    may_drop: bool = False
    costs_count: bool = True
    made: int = 0
    lost: list[str] = field(default_factory=list)

    def refuses(self, process: Process) -> bool:
        return process.draining_since is not None and self.now_s - process.draining_since >= 5.0

    # The controllers.

    def deployment_controller(self) -> None:
        self.set_replicas, self.observed = self.replicas, self.generation

    def replica_set_controller(self) -> None:
        while len(self.pods) < self.set_replicas:
            self.made += 1
            self.pods[f"p-{self.made}"] = SimulatedPod(f"p-{self.made}")

        def order(each: SimulatedPod) -> tuple[Any, ...]:
            # Of equal ones the fullest: Kubernetes does not ask. A pod is given its node and its phase at once here.
            cost = each.cost if self.costs_count else 0
            return each.phase != "Pending", each.ready, cost, -(each.process.rows if each.process else 0)

        goes = sorted(self.pods.values(), key=order)[: max(0, len(self.pods) - self.set_replicas)]
        for each in goes:
            del self.pods[each.name]
            if each.process is not None and each.process.rows and not self.may_drop:
                self.lost.append(each.name)
        if self.set_replicas == self.replicas:
            self.may_drop = False

    def kubelet(self) -> None:
        for each in self.pods.values():
            if each.process is None:
                each.process = Process()
            ready = each.process.draining_since is None and not each.is_broken
            each.version += (each.phase, each.ready) != ("Running", ready)
            each.phase, each.ready = "Running", ready

    def falls(self) -> bool:
        """Whether pods are about to go; that takes less time than a container takes to start."""
        return len(self.pods) > min(self.replicas, self.set_replicas)

    # The operator.

    def situation(self) -> Situation:
        pods = [self.facts(each) for each in self.pods.values()]
        at = gave_up_at(self.status)
        if at is None:
            self.stood_still.clear()
        again = deliver_again(self.stood_still, pods)
        if at is not None:
            self.stood_still |= standing_still(pods)
        return Situation(
            wanted=self.wanted,
            live=self.replicas,
            generation_seen=self.observed == self.generation,
            rolling=False,
            pods=pods,
            drain=Drain(deadline_seconds=20, on_deadline="Drop" if self.on_deadline == "Drop" else "Keep"),
            now=self.utc_now(),
            gave_up_at=at,
            delivers_again=again,
            labelled_for_s={
                each.name: (self.utc_now() - each.since).total_seconds()
                for each in self.pods.values()
                if each.since is not None
            },
        )

    def utc_now(self) -> datetime:
        return NOW + timedelta(seconds=self.now_s)

    def facts(self, each: SimulatedPod) -> PodFacts:
        process, report = each.process, None
        if process is not None and process.answers:
            stuck = 0 if self.tinybird_answers else process.rows
            drains = process.draining_since is not None
            report = said(rows=process.rows, draining=drains, refusing=self.refuses(process), stuck_rows=stuck)
        marks: dict[str, Any] = {"labelled": each.labelled, "draining_since": each.since, "deletion_cost": each.cost}
        excess = len(self.pods) > self.set_replicas
        return pod(
            each.name, ready=each.ready, running=each.phase == "Running", report=report, excess=excess, **marks,
            resource_version=str(each.version),
        )  # fmt: skip

    def act(self, given: Situation, plan: Plan, generation: int) -> None:
        """What was decided, on whatever has not changed since it was read."""
        known = {each.name: each.resource_version for each in given.pods}
        for name in (*plan.unlabel, *plan.label):
            each = self.pods.get(name)
            if each is not None and str(each.version) == known[name]:
                each.labelled = name in plan.label
                each.since = (each.since or self.utc_now()) if each.labelled else None
                each.cost, each.version = DELETION_COST if each.labelled else 0, each.version + 1
        for name in (*plan.begin, *plan.cancel):
            each = self.pods.get(name)
            if each is None or each.process is None or not each.process.answers:
                continue
            if each.labelled and name in plan.begin and each.process.draining_since is None:
                each.process.draining_since = self.now_s
            elif not each.labelled and name in plan.cancel:
                each.process.draining_since = None
        if plan.replicas != self.replicas and self.generation == generation:
            self.replicas, self.generation = plan.replicas, self.generation + 1
            self.may_drop |= plan.stage is Stage.DROPPING
        found, before = verdict(given, plan, given.pods, self.status), self.status.get("conditions", [{}])[0]
        self.status = {}
        if found is not None:
            at = before["lastTransitionTime"] if before.get("status") == found[0] else self.utc_now().isoformat()
            condition = {"type": "Draining", "status": found[0], "reason": found[1], "message": found[2]}
            self.status = {"conditions": [{**condition, "lastTransitionTime": at}]}

    def look(self, meanwhile: str = "", number: int = 0) -> None:
        given, generation = self.situation(), self.generation
        plan = decide(given)
        if meanwhile:
            self.step(meanwhile, number)
        self.act(given, plan, generation)

    # What happens.

    def step(self, what: str, number: int) -> None:
        each = list(self.pods.values())[number % len(self.pods)] if self.pods else SimulatedPod("none")
        process = each.process or Process()
        match what:
            case "want":
                self.wanted = number
            case "look":
                self.look()
            case "time":
                self.now_s += number * 3
            case "deployment controller":
                self.deployment_controller()
            case "replica set controller":
                self.replica_set_controller()
            case "kubelet":
                self.kubelet()
            case "rows" if each.ready and not self.refuses(process):
                process.rows += number + 1
            case "load":
                for one in self.pods.values():
                    if one.process is not None and one.ready and not self.refuses(one.process):
                        one.process.rows += 1
            case "delivered" if self.tinybird_answers:
                for one in self.pods.values():
                    if one.process is not None:
                        one.process.rows = 0
            case "outage" | "recovery":
                self.tinybird_answers = what == "recovery"
            case "container restarts" if not self.falls():
                each.process, each.ready, each.version = Process(), False, each.version + 1
            case "breaks" | "heals":
                each.is_broken = what == "breaks"
            case "silence" | "answers":
                process.answers = what == "answers"
            case "evicted":
                self.pods.pop(each.name, None)
            case "operator restarts":
                self.stood_still.clear()

    def turn(self) -> None:
        """A while in which everybody does their part."""
        self.deployment_controller()
        self.replica_set_controller()
        self.kubelet()
        self.step("delivered", 0)
        self.look()
        self.now_s += 7.0


EVERYTHING = (
    "want", "look", "time", "deployment controller", "replica set controller", "kubelet", "rows", "delivered",
    "outage", "recovery", "container restarts", "breaks", "heals", "silence", "answers", "evicted", "operator restarts",
)  # fmt: skip
MEANWHILE = ("", "", "deployment controller", "replica set controller", "kubelet", "rows", "delivered", "breaks",
             "evicted")  # fmt: skip
STEPS = st.lists(
    st.tuples(st.sampled_from([*EVERYTHING, "turn", "turn", "look"]), st.integers(0, 5), st.sampled_from(MEANWHILE)),
    max_size=60,
)


def history(on_deadline: str, happened: list[tuple[str, int, str]]) -> World:
    world = World(on_deadline)
    world.turn()
    for what, number, meanwhile in happened:
        if what == "turn":
            world.turn()
        elif what == "look":
            world.look(meanwhile, number)
        else:
            world.step(what, number)
        assert world.lost == []
    return world


@settings(max_examples=400, deadline=None)
@given(on_deadline=st.sampled_from(["Keep", "Drop"]), happened=STEPS)
def test_no_pod_goes_with_rows_unless_they_are_dropped_and_in_the_end_as_many_serve_as_are_wanted(
    on_deadline: str, happened: list[tuple[str, int, str]]
) -> None:
    world = history(on_deadline, happened)
    world.tinybird_answers = True
    for each in world.pods.values():
        each.is_broken = False
        if each.process is not None:
            each.process.answers = True
    for _ in range(60):
        world.turn()
    assert world.lost == []
    assert len(world.pods) == world.replicas == world.wanted
    assert all(each.ready and not each.labelled and each.cost == 0 for each in world.pods.values())
    assert all(each.process and each.process.draining_since is None for each in world.pods.values())


# Up and down, fast; the order in which controllers come to it is any.
BUSY = st.lists(
    st.sampled_from([("want", 1), ("want", 3), ("time", 2), *[(each, 0) for each in (
        "look", "look", "deployment controller", "replica set controller", "kubelet", "load", "delivered")]]),
    max_size=80,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(happened=BUSY, costs_count=st.booleans(), broken=st.integers(0, 9))
def test_no_pod_goes_with_rows_while_controllers_lag_behind_nor_where_kubernetes_ignores_the_cost(
    happened: list[tuple[str, int]], costs_count: bool, broken: int
) -> None:
    world = World(costs_count=costs_count)
    world.turn()
    world.turn()
    if broken < 3:
        world.step("breaks", broken)
        world.step("load", 0)
        world.kubelet()
    for what, number in happened:
        world.step(what, number)
        assert world.lost == []


FALLS = [("want", 1), ("look", 0), ("kubelet", 0), ("time", 2), ("look", 0)]


@pytest.mark.parametrize(
    "happened",
    [
        [*FALLS, ("deployment controller", 0), ("want", 3), ("look", 0)],
        [*FALLS, ("deployment controller", 0), ("want", 3), ("look", 0), ("deployment controller", 0), ("look", 0)],
        [*FALLS, ("look", 0)],
        [*FALLS, ("deployment controller", 0), ("look", 0)],
    ],
)
def test_a_victim_serves_again_only_when_it_is_certain_that_it_stays(happened: list[tuple[str, int]]) -> None:
    world = World()
    world.turn()
    world.turn()
    for what, number in happened:
        world.step(what, number)
    went = world.set_replicas == 1
    world.step("kubelet", 0)
    world.step("load", 0)
    if went:
        assert [each.process.rows for each in world.pods.values() if each.labelled and each.process] == [0, 0]
    world.step("replica set controller", 0)
    assert world.lost == []


@settings(max_examples=100, deadline=None)
@given(happened=STEPS, wanted=st.integers(0, 2))
def test_while_nothing_is_delivered_full_pods_stay_for_as_long_as_that_takes(
    happened: list[tuple[str, int, str]], wanted: int
) -> None:
    world = history("Keep", happened)
    for each in world.pods.values():
        each.is_broken = False
    world.tinybird_answers, world.wanted = False, 5
    for _ in range(60):
        world.turn()
    for each in world.pods.values():
        assert each.process is not None
        each.process.rows, each.process.answers = 9, True
    full, world.wanted = set(world.pods), wanted
    for _ in range(100):
        world.turn()
        assert set(world.pods) == full


def test_a_drain_goes_on_after_the_operator_was_restarted() -> None:
    world = history("Keep", [("turn", 0, ""), ("want", 1, ""), ("turn", 0, "")])
    drains = [each.name for each in world.pods.values() if each.labelled]
    world.step("operator restarts", 0)
    world.turn()
    assert [each.name for each in world.pods.values() if each.labelled] == drains
    world.turn()
    world.turn()
    assert len(world.pods) == 1
    assert not set(drains) & set(world.pods)
