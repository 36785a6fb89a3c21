"""What is counted besides the ledger: distributions, the last minute, and CPU."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.telemetry.meters import (
    COUNT_WINDOW_S,
    CPU_WINDOW_S,
    LATENCY_BOUNDS_S,
    CpuMeter,
    Histogram,
    Meters,
    SlidingCount,
)


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


# What came in the last minute.


def test_where_nothing_came_nothing_is_counted() -> None:
    count = SlidingCount(0.0)
    assert (count.total(1000.0), count.per_second(1000.0)) == (0, 0.0)


def test_a_steady_rate_is_measured_as_it_is_from_the_first_second_on() -> None:
    count = SlidingCount(0.25)
    for tenth in range(3000):
        now = 0.25 + tenth / 10
        count.add(10, now)
        if tenth >= 10:
            assert count.per_second(now) == pytest.approx(100.0, rel=0.11)
        if tenth >= 600:
            assert count.per_second(now) == pytest.approx(100.0, rel=0.02)
    assert count.total(300.24) == pytest.approx(6000, abs=100)


def test_less_than_a_second_after_the_start_is_counted_as_a_second() -> None:
    count = SlidingCount(5.0)
    count.add(30, 5.001)
    assert count.per_second(5.001) == 30.0


@pytest.mark.parametrize(("after_s", "total"), [(0.0, 7), (59.0, 7), (59.5, 0), (61.0, 0), (1e9, 0)])
def test_what_came_a_minute_ago_is_forgotten(after_s: float, total: int) -> None:
    count = SlidingCount(0.0)
    count.add(7, 100.5)
    assert count.total(100.5 + after_s) == total


def test_asking_for_a_count_does_not_change_it() -> None:
    asked, unasked = SlidingCount(0.0), SlidingCount(0.0)
    for count in (asked, unasked):
        count.add(100, 1.0)
    for second in range(2, 20):
        asked.per_second(float(second))
    assert asked.per_second(20.0) == unasked.per_second(20.0) > 0


def test_a_clock_that_goes_back_is_a_clock_that_stands_still() -> None:
    count = SlidingCount(100.0)
    count.add(30, 100.0)
    count.add(30, 50.0)
    assert (count.total(20.0), count.per_second(20.0)) == (60, 60.0)


@settings(deadline=None, max_examples=100)
@given(
    st.floats(0.0, 1e5),
    st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(0, 10**7)), max_size=30),
    st.floats(0.0, 200.0),
)
def test_a_count_is_what_came_in_the_last_sixty_seconds_of_the_clock(
    began_at: float, events: list[tuple[float, int]], after_s: float
) -> None:
    count, now, came = SlidingCount(began_at), began_at, []
    for step_s, amount in events:
        now += step_s
        count.add(amount, now)
        came.append((now, amount))
    now += after_s
    total = count.total(now)
    assert total == sum(amount for at, amount in came if math.floor(at) > math.floor(now) - COUNT_WINDOW_S)
    assert total / COUNT_WINDOW_S <= count.per_second(now) * (1 + 1e-9)
    assert count.per_second(now) <= total


# CPU.


@pytest.mark.parametrize(
    ("samples", "percent"),
    [
        pytest.param([], 0, id="no sample yet"),
        pytest.param([(7.0, 3.0)], 0, id="one sample says nothing"),
        pytest.param([(0.0, 3.0), (10.0, 3.0)], 0, id="idle"),
        pytest.param([(0.0, 3.0), (10.0, 8.0)], 50, id="half a core"),
        pytest.param([(0.0, 3.0), (10.0, 3.01)], 1, id="a little is rounded up"),
        pytest.param([(0.0, 1.0), (1.0, 1.1)], 10, id="what floats leave over is not"),
        pytest.param([(0.0, 0.0), (10.0, 17.0)], 170, id="threads on a second core"),
        pytest.param([(0.0, 0.0), (5.0, 5.0), (10.0, 5.0), (20.0, 5.0)], 0, id="what is long ago does not count"),
        pytest.param([(0.0, 0.0), (100.0, 50.0)], 50, id="two samples are kept however far apart they are"),
        pytest.param([(5.0, 0.0), (5.0, 1.0)], 0, id="no time between them"),
        pytest.param([(5.0, 2.0), (6.0, 1.0)], 0, id="a clock that went back"),
    ],
)
def test_cpu_is_a_share_of_one_core_over_the_last_samples(samples: list[tuple[float, float]], percent: int) -> None:
    meter = CpuMeter()
    for at, cpu_s in samples:
        meter.sample(at, cpu_s)
    assert meter.percent() == percent


def test_a_burst_of_cpu_is_forgotten_after_the_window() -> None:
    meter, cpu_s, shown = CpuMeter(), 0.0, {}
    for tick in range(200):
        at = tick / 2
        meter.sample(at, cpu_s)
        shown[at] = meter.percent()
        cpu_s += 0.5 if 20 <= at < 30 else 0.05
    assert (shown[20.0], shown[30.0], shown[30.0 + CPU_WINDOW_S], shown[99.0]) == (10, 70, 10, 10)


def test_meters_begin_at_nothing() -> None:
    meters = Meters(5.0)
    numbers = {name: value for name, value in vars(meters).items() if isinstance(value, int | float)}
    assert set(numbers.values()) == {0}
    counts = (meters.recent_replies, meters.recent_throttled, meters.recent_delivered)
    assert [count.total(5.0) for count in counts] == [0, 0, 0]
    assert meters.cpu.percent() == 0
