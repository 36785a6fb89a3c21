"""Whether Tinybird throttles: when it is said, when it is taken back, and what a new operator begins with."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.test_status import pod, said

from tinybird_proxy_operator.names import Reason
from tinybird_proxy_operator.observed import PodFacts
from tinybird_proxy_operator.scaling.throttle import CALM_FOR_S, Throttle, judge, look, remembered

THROTTLED = Throttle(throttled=True)


def pods(*answers: tuple[int, int]) -> list[PodFacts]:
    """One pod for each pair: answers in the last minute, and 429s among them."""
    return [
        pod(f"p-{number}", report=said(replies_1m=replies, throttled_1m=refused))
        for number, (replies, refused) in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("answers", "throttled"),
    [
        ([(0, 0)], False),
        ([(100, 0)], False),
        ([(100, 5)], False),
        ([(100, 6)], True),
        ([(1000, 50)], False),
        ([(2, 2)], False),  # too few to say
        ([(3, 3)], True),  # all that a proxy tries that backs off
        ([(3, 1), (3, 1), (3, 1)], True),  # pods share the limit, and the figures
        ([(200, 0), (10, 9)], False),
    ],
)
def test_more_than_a_twentieth_of_429s_among_the_answers_of_all_pods_is_throttling(
    answers: list[tuple[int, int]], throttled: bool
) -> None:
    assert look(Throttle(), pods(*answers), 0.0).throttled is throttled


@pytest.mark.parametrize(
    ("rows", "held_up", "throttled"), [(100, 0, False), (0, 0, False), (100, 49, False), (100, 50, True), (9, 9, True)]
)
def test_rows_that_wait_because_of_429_tell_before_the_answers_of_the_minute_before_have_passed(
    rows: int, held_up: int, throttled: bool
) -> None:
    told = said(rows=rows, throttled_rows=held_up, replies_1m=60, throttled_1m=1)
    assert look(Throttle(), [pod(report=told)], 0.0).throttled is throttled


@pytest.mark.parametrize("before", [Throttle(), THROTTLED])
def test_rows_that_wait_after_503_are_no_sign_of_it(before: Throttle) -> None:
    told = said(rows=9, throttled_rows=9, replies_1m=60, throttled_1m=0)
    assert look(before, [pod(report=told)], 0.0).throttled is before.throttled
    later = look(look(before, [pod(report=told)], 0.0), [pod(report=told)], CALM_FOR_S)
    assert not later.throttled


def test_it_does_not_end_while_rows_wait_for_as_long_as_tinybird_has_asked_for() -> None:
    waiting = [pod(report=said(rows=9, throttled_rows=9))]
    known = look(THROTTLED, pods((0, 0)), 0.0)
    known = look(known, waiting, 60.0)
    assert look(known, waiting, 300.0).throttled
    known = look(known, pods((0, 0)), 310.0)
    assert not look(known, pods((0, 0)), 310.0 + CALM_FOR_S).throttled


def test_it_ends_after_two_minutes_with_hardly_any_429() -> None:
    known = look(Throttle(), pods((100, 50)), 0.0)
    for second in range(10, 130, 10):
        known = look(known, pods((100, 4)), float(second))
        assert known.throttled
    assert not look(known, pods((100, 4)), 130.0).throttled


@pytest.mark.parametrize("answers", [(100, 5), (100, 50), (20, 1)])
def test_a_429_too_many_makes_the_two_minutes_begin_anew(answers: tuple[int, int]) -> None:
    known = look(THROTTLED, pods((100, 0)), 0.0)
    known = look(known, pods(answers), 100.0)
    assert known.throttled
    known = look(known, pods((100, 0)), 110.0)
    assert look(known, pods((100, 0)), 110.0 + CALM_FOR_S - 1).throttled
    assert not look(known, pods((100, 0)), 110.0 + CALM_FOR_S).throttled


def test_pods_that_send_nothing_are_calm() -> None:
    known = look(THROTTLED, pods((0, 0)), 0.0)
    assert not look(known, pods((0, 0)), CALM_FOR_S).throttled


def test_pods_that_do_not_answer_change_nothing() -> None:
    known = look(THROTTLED, pods((100, 0)), 0.0)
    silent = look(known, [pod(report=None)], 60.0)
    assert (silent.throttled, silent.calm_since, silent.replies) == (True, 0.0, None)
    assert look(Throttle(), [], 0.0).throttled is False


def test_a_new_operator_begins_with_what_the_status_says() -> None:
    condition = {"type": "UpstreamThrottled", "status": "True"}
    assert remembered({"conditions": [{"type": "Ready", "status": "False"}, condition]}) == THROTTLED
    assert remembered({"conditions": [{**condition, "status": "False"}]}) == Throttle()
    assert remembered({}) == Throttle()


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), max_size=60))
def test_it_is_never_lifted_within_two_minutes_of_a_throttled_look(answers: list[tuple[int, int]]) -> None:
    known, last = Throttle(), float("-inf")
    for number, (replies, refused) in enumerate(answers):
        now, refused = number * 10.0, min(refused, replies)
        known = look(known, pods((replies, refused)), now)
        if refused >= 3 and refused > 0.05 * replies:
            last = now
        assert known.throttled or now - last >= CALM_FOR_S


@pytest.mark.parametrize(
    ("throttle", "status", "reason", "words"),
    [
        (Throttle(), "Unknown", Reason.UNKNOWN, "No pod answers."),
        (Throttle(replies=5), "False", Reason.NOT_THROTTLED, "Tinybird does not throttle."),
        (Throttle(replies=500, refused=7), "False", Reason.NOT_THROTTLED, "7 of 500 requests with 429"),
        (Throttle(True, None, 1500, 600), "True", Reason.THROTTLED, "600 of 1,500 requests with 429"),
        (Throttle(True, None, 9, 9), "True", Reason.THROTTLED, "Scale-up is off until that ends"),
        (THROTTLED, "True", Reason.THROTTLED, "shared by all pods. Rows wait"),
    ],
)
def test_the_condition_says_how_many_and_what_to_do(
    throttle: Throttle, status: str, reason: Reason, words: str
) -> None:
    found = judge(throttle, autoscaled=True)
    assert found[:2] == (status, reason)
    assert words in found[2]


def test_without_autoscaling_it_says_that_more_pods_would_not_help() -> None:
    assert "More pods would not help." in judge(THROTTLED, autoscaled=False)[2]
