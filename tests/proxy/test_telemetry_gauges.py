"""What a scaler is told: whole numbers, rounded up, and nothing while rows only wait for company."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.admission import Capacity
from tinybird_proxy.telemetry.gauges import DRAIN_TIME_MAX_S, drain_time_s, utilization_percent

CAPACITY = Capacity(max_rows=100, max_bytes=10_000, max_body_bytes=1000)


@pytest.mark.parametrize(
    ("rows", "size_bytes", "percent"),
    [
        pytest.param(0, 0, 0, id="empty"),
        pytest.param(1, 1, 1, id="a row of a hundred"),
        pytest.param(1, 101, 2, id="rounded up"),
        pytest.param(7, 1, 7, id="exactly seven, which is more as a float"),
        pytest.param(50, 2000, 50, id="the rows are the fuller"),
        pytest.param(2, 5001, 51, id="the bytes are the fuller"),
        pytest.param(100, 10_000, 100, id="full"),
        pytest.param(110, 10_000, 110, id="the headroom counts on top"),
    ],
)
def test_utilization_is_the_fuller_of_rows_and_bytes_rounded_up(rows: int, size_bytes: int, percent: int) -> None:
    assert utilization_percent(rows, size_bytes, CAPACITY) == percent


@pytest.mark.parametrize(
    ("rows", "oldest_age_s", "delivered_per_s", "seconds"),
    [
        pytest.param(0, None, 0.0, 0, id="empty"),
        pytest.param(0, None, 100.0, 0, id="empty, while rows flow"),
        pytest.param(0, 500.0, 0.0, 0, id="no promised row, but a first contact that hangs"),
        pytest.param(10**6, 0.5, 1.0, 0, id="young rows wait for company, however many"),
        pytest.param(1, 9.999, 0.0, 0, id="the one row of a quiet proxy, while Tinybird writes it"),
        pytest.param(10**6, 10.0, 0.0, 3600, id="old rows and no delivery: the cap"),
        pytest.param(1, 19.0, 0.0, 3600, id="one old row and no delivery"),
        pytest.param(1000, 10.0, 100.0, 10, id="rows by rate"),
        pytest.param(1001, 10.0, 100.0, 11, id="rounded up"),
        pytest.param(1, 10.0, 1e6, 1, id="never 0 while old rows are there"),
        pytest.param(359_999, 10.0, 100.0, 3600, id="just the cap"),
        pytest.param(10**6, 10.0, 1.0, 3600, id="above the cap"),
        pytest.param(10**9, 10.0, 5e-324, 3600, id="a rate of next to nothing"),
    ],
)
def test_the_time_to_drain(rows: int, oldest_age_s: float | None, delivered_per_s: float, seconds: int) -> None:
    found = drain_time_s(rows, oldest_age_s, flush_interval_s=2.0, delivered_per_s=delivered_per_s)
    assert (found, type(found)) == (seconds, int)


@pytest.mark.parametrize(
    ("flush_interval_s", "young_s", "old_s"), [(0.01, 9.9, 10.0), (5.0, 9.9, 10.0), (60.0, 119.9, 120.0)]
)
def test_a_backlog_is_older_than_two_flush_intervals_and_ten_seconds(
    flush_interval_s: float, young_s: float, old_s: float
) -> None:
    found = [drain_time_s(9, age, flush_interval_s=flush_interval_s, delivered_per_s=0.0) for age in (young_s, old_s)]
    assert found == [0, DRAIN_TIME_MAX_S]


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 10**9),
    st.none() | st.floats(0.0, 1e6),
    st.floats(0.0, 3600.0),
    st.floats(0.0, 1e9),
)
def test_the_time_to_drain_is_long_enough_and_never_above_an_hour(
    rows: int, oldest_age_s: float | None, flush_interval_s: float, delivered_per_s: float
) -> None:
    found = drain_time_s(rows, oldest_age_s, flush_interval_s=flush_interval_s, delivered_per_s=delivered_per_s)
    assert 0 <= found <= DRAIN_TIME_MAX_S
    if found:
        assert found == DRAIN_TIME_MAX_S or math.isclose(max(rows, found * delivered_per_s), found * delivered_per_s)
