"""Which pods go, in any history before a Deployment that removes pods as Kubernetes does."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.operator.shrink_situations import NOW, pod, said

from tinybird_proxy_operator.observed import PodFacts
from tinybird_proxy_operator.scaling.shrink import (
    DELETION_COST,
    Plan,
    Situation,
    Stage,
    decide,
    deliver_again,
    gave_up_at,
    standing_still,
    verdict,
)
from tinybird_proxy_operator.spec import Drain


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
