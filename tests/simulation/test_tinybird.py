"""Tinybird: its limit, its latency, its outages."""

import random

from tests.simulation.tinybird import OK, TOO_MANY_REQUESTS, UNAVAILABLE, Tinybird, Upstream, Window


def statuses(tinybird: Tinybird, now_s: float, count: int) -> list[int]:
    return [tinybird.answer(now_s).status for _ in range(count)]


def test_a_hundred_requests_a_second_pass_and_the_next_is_told_to_wait() -> None:
    tinybird = Tinybird(Upstream(retry_after_s=(2, 2)), random.Random(1))
    assert statuses(tinybird, 10.0, 100) == [OK] * 100
    refused = tinybird.answer(10.0)
    assert (refused.status, refused.at_s, refused.retry_after_s) == (TOO_MANY_REQUESTS, 10.0, 2)
    assert statuses(tinybird, 11.0, 101) == [OK] * 100 + [TOO_MANY_REQUESTS]
    assert (tinybird.requests, tinybird.refused) == (202, 2)


def test_within_a_window_the_limit_is_the_low_one() -> None:
    tinybird = Tinybird(Upstream(low_limit=2.5, throttled=(Window(10, 20),)), random.Random(1))
    assert [statuses(tinybird, at_s, 9).count(OK) for at_s in (9.0, 10.0, 11.0, 12.0, 20.0)] == [9, 2, 2, 2, 9]


def test_an_outage_is_answered_with_503() -> None:
    tinybird = Tinybird(Upstream(outages=(Window(5, 8),), latency_s=(2, 2)), random.Random(1))
    assert [tinybird.answer(at_s).status for at_s in (4.0, 5.0, 7.0, 8.0)] == [OK, UNAVAILABLE, UNAVAILABLE, OK]
    assert tinybird.answer(8.0).at_s == 10.0
