"""What is counted besides the ledger: distributions and rates."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.telemetry.meters import LATENCY_BOUNDS_S, Histogram, Meters, RateMeter


@pytest.mark.parametrize(
    ("value", "bucket"),
    [
        pytest.param(0.0, 0, id="nothing"),
        pytest.param(-1.0, 0, id="less than nothing"),
        pytest.param(1.0, 0, id="at a bound belongs to it"),
        pytest.param(1.5, 1, id="between"),
        pytest.param(2.0, 1, id="at the last bound"),
        pytest.param(2.1, 2, id="above the last bound"),
        pytest.param(math.inf, 2, id="without end"),
    ],
)
def test_an_observation_is_counted_in_the_first_bucket_that_holds_it(value: float, bucket: int) -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(value)
    assert histogram.counts == [int(index == bucket) for index in range(3)]


def test_a_histogram_knows_its_sum() -> None:
    histogram = Histogram((1.0,))
    for value in (0.25, 0.5, 4.0):
        histogram.observe(value)
    assert (histogram.total, histogram.counts) == (4.75, [2, 1])


def test_latencies_are_told_apart_from_ten_milliseconds_to_two_hours() -> None:
    assert list(LATENCY_BOUNDS_S) == sorted(set(LATENCY_BOUNDS_S))
    assert (LATENCY_BOUNDS_S[0], LATENCY_BOUNDS_S[-1]) == (0.01, 7200.0)


def test_a_meter_without_events_stands_at_zero() -> None:
    assert RateMeter(30.0, 0.0).per_second(1000.0) == 0.0


def test_a_steady_rate_is_measured_as_it_is() -> None:
    meter = RateMeter(30.0, 0.0)
    for tenth in range(3000):
        meter.add(10, tenth / 10)
    assert meter.per_second(300.0) == pytest.approx(100.0, rel=0.01)


def test_a_rate_fades_when_nothing_happens_any_more() -> None:
    meter = RateMeter(30.0, 0.0)
    meter.add(300, 0.0)
    assert meter.per_second(0.0) == 10.0
    assert meter.per_second(30.0) == pytest.approx(10.0 / math.e)
    assert meter.per_second(600.0) < 0.001


def test_asking_for_a_rate_does_not_change_it() -> None:
    asked, unasked = RateMeter(30.0, 0.0), RateMeter(30.0, 0.0)
    for meter in (asked, unasked):
        meter.add(100, 1.0)
    for second in range(2, 20):
        asked.per_second(float(second))
    assert asked.per_second(20.0) == pytest.approx(unasked.per_second(20.0))


def test_a_clock_that_goes_back_is_a_clock_that_stands_still() -> None:
    meter = RateMeter(30.0, 100.0)
    meter.add(30, 100.0)
    meter.add(30, 50.0)
    assert meter.per_second(20.0) == 2.0


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.floats(0.0, 1e5), st.integers(0, 10**7)), max_size=20), st.floats(0.0, 1e6))
def test_a_rate_is_never_negative_and_never_above_all_that_came(events: list[tuple[float, int]], after: float) -> None:
    meter, now = RateMeter(30.0, 0.0), 0.0
    for step, amount in events:
        now += step
        meter.add(amount, now)
    rate = meter.per_second(now + after)
    assert 0.0 <= rate <= sum(amount for _, amount in events) / 30.0 * (1 + 1e-9)


def test_meters_begin_at_nothing() -> None:
    meters = Meters(5.0)
    numbers = {name: value for name, value in vars(meters).items() if isinstance(value, int | float)}
    assert set(numbers.values()) == {0}
    assert meters.delivered_rate.per_second(5.0) == 0.0
