"""What is told of pods that go, of those that do not, and of a wrong one that went. By table."""

from collections.abc import Mapping
from typing import Any

import pytest
from tests.operator.shrink_situations import NOW, OVERDUE, A, B, pod, said, situation, victim

from tinybird_proxy_operator.names import Reason
from tinybird_proxy_operator.observed import PodFacts
from tinybird_proxy_operator.scaling.shrink import Fall, Situation, decide, verdict, wrong, wrong_pods


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
