"""Which pods go, and when. By table."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from tests.operator.shrink_situations import NOW, OVERDUE, A, B, C, absent, pod, said, situation, victim

from tinybird_proxy_operator.observed import PodFacts
from tinybird_proxy_operator.scaling.shrink import (
    RETRY_S,
    Plan,
    Situation,
    Stage,
    choose,
    decide,
    deliver_again,
    gave_up_at,
    standing_still,
)


def steps(plan: Plan) -> dict[str, tuple[str, ...]]:
    """What is done to pods."""
    every = {"unlabel": plan.unlabel, "label": plan.label, "cancel": plan.cancel, "begin": plan.begin}
    return {what: names for what, names in every.items() if names}


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
