"""The largest request that Tinybird takes: what its 413s say about the next one, and when that is forgotten."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.ceiling import FORGET_AFTER_S, LEAST_BYTES, Ceiling


def test_nothing_limits_a_request_before_the_first_413() -> None:
    assert Ceiling().at(0.0) == Ceiling().at(1e9) == math.inf


def test_after_a_413_half_as_much_may_be_sent() -> None:
    ceiling = Ceiling()
    ceiling.refused(1_000_000, 5.0)
    assert ceiling.at(5.0) == 500_000.0


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        pytest.param([1_000_000, 400_000], 200_000.0, id="a smaller one is refused: half of that"),
        pytest.param([1_000_000, 1_000_000], 500_000.0, id="the same again changes nothing"),
        pytest.param([1_000_000, 9_000_000], 500_000.0, id="a larger one, a single row, teaches nothing new"),
        pytest.param([1], LEAST_BYTES, id="never less than what every Tinybird takes"),
        pytest.param([0], LEAST_BYTES, id="whatever was refused"),
    ],
)
def test_several_413s_leave_the_least(sizes: list[int], expected: float) -> None:
    ceiling = Ceiling()
    for size in sizes:
        ceiling.refused(size, 0.0)
    assert ceiling.at(0.0) == expected


@pytest.mark.parametrize(
    ("after_s", "times"),
    [
        (0.0, 1),
        (FORGET_AFTER_S - 0.01, 1),
        (FORGET_AFTER_S, 2),
        (2 * FORGET_AFTER_S - 0.01, 2),
        (2 * FORGET_AFTER_S, 4),
        (5 * FORGET_AFTER_S, 32),
        (-1.0, 1),
    ],
)
def test_it_doubles_for_each_ten_minutes_without_a_413(after_s: float, times: int) -> None:
    ceiling = Ceiling()
    ceiling.refused(1_000_000, 100.0)
    assert FORGET_AFTER_S == 600.0
    assert ceiling.at(100.0 + after_s) == 500_000.0 * times


def test_a_413_begins_the_ten_minutes_anew_from_where_it_stands() -> None:
    ceiling = Ceiling()
    ceiling.refused(1_000_000, 0.0)
    ceiling.refused(1_000_000, FORGET_AFTER_S)  # 1,000,000 may be sent by then; that was refused
    assert ceiling.at(2 * FORGET_AFTER_S - 1.0) == 500_000.0
    ceiling.refused(10_000_000, 2 * FORGET_AFTER_S)
    assert ceiling.at(2 * FORGET_AFTER_S) == 1_000_000.0
    assert ceiling.at(3 * FORGET_AFTER_S) == 2_000_000.0


def test_a_year_later_it_is_as_good_as_forgotten_and_still_a_number() -> None:
    ceiling = Ceiling()
    ceiling.refused(10_000_000, 0.0)
    assert 1e20 < ceiling.at(365 * 86_400.0) < math.inf
    assert ceiling.at(1e18) == ceiling.at(365 * 86_400.0)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 10**8), st.floats(0, 5000)), min_size=1, max_size=12))
def test_what_was_just_refused_is_never_allowed_and_time_only_raises_it(refusals: list[tuple[int, float]]) -> None:
    ceiling, now = Ceiling(), 0.0
    for size, later_s in refusals:
        now += later_s
        before = ceiling.at(now)
        ceiling.refused(size, now)
        allowed = ceiling.at(now)
        assert LEAST_BYTES <= allowed <= max(LEAST_BYTES, size / 2)
        assert allowed <= before
        assert ceiling.at(now) <= ceiling.at(now + 1.0) <= ceiling.at(now + 601.0)
