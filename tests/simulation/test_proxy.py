"""One proxy: what it takes and delivers, and the four metrics as they are defined."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.simulation.proxy import Proxy, ProxyModel, Taken
from tests.simulation.tinybird import Tinybird, Upstream, Window

FOR_EVER = Window(0, 1e9)


def tinybird(upstream: Upstream | None = None) -> Tinybird:
    return Tinybird(upstream or Upstream(latency_s=(1, 1)), random.Random(1))


def steps(proxy: Proxy, to: Tinybird, seconds: range, rows: int) -> int:
    """Give ``rows`` each second; return what was delivered."""
    delivered = 0
    for second in seconds:
        delivered += proxy.deliver(second, to, random.Random(second))
        proxy.take(second, rows)
    return delivered


def test_a_core_takes_some_17500_single_row_requests_a_second_and_the_rest_is_refused() -> None:
    proxy = Proxy(ProxyModel())
    assert proxy.take(0.0, 20_000) == Taken(17_543, 2_457)
    assert proxy.cpu_percent() == 100


def test_rows_leave_a_flush_interval_after_they_came_and_are_held_until_tinybird_has_answered() -> None:
    proxy, to = Proxy(ProxyModel()), tinybird()
    proxy.deliver(0.0, to, random.Random(1))
    proxy.take(0.0, 100)
    assert [proxy.deliver(second, to, random.Random(1)) for second in (1.0, 2.0, 3.0)] == [0, 100, 0]
    assert proxy.rows == 0


def test_a_full_buffer_refuses_by_rows_or_by_bytes() -> None:
    down = tinybird(Upstream(outages=(FOR_EVER,)))
    by_rows, by_bytes = Proxy(ProxyModel(buffer_rows=10_000)), Proxy(ProxyModel(row_bytes=100_000))
    for proxy in (by_rows, by_bytes):
        steps(proxy, down, range(5), 8_000)
    assert (by_rows.rows, by_rows.buffer_utilization_percent()) == (10_000, 100)
    assert (by_bytes.rows, by_bytes.buffer_utilization_percent()) == (5_120, 100)


def test_utilisation_is_rounded_up() -> None:
    proxy = Proxy(ProxyModel())
    proxy.take(0.0, 1)
    assert proxy.buffer_utilization_percent() == 1


def test_cpu_is_the_mean_of_fifteen_seconds() -> None:
    proxy, to = Proxy(ProxyModel()), tinybird()
    steps(proxy, to, range(100), 0)
    steps(proxy, to, range(100, 105), 17_543)
    assert proxy.cpu_percent() == 34  # 5 of 15 seconds, rounded up
    steps(proxy, to, range(105, 115), 17_543)
    assert proxy.cpu_percent() == 100


@pytest.mark.parametrize(("flush_interval_s", "least_s"), [(1, 10.0), (6, 12.0)])
def test_drain_time_is_nothing_while_the_oldest_row_is_younger_than_ten_seconds_and_two_flush_intervals(
    flush_interval_s: int, least_s: float
) -> None:
    proxy = Proxy(ProxyModel(flush_interval_s=flush_interval_s))
    proxy.take(10.0, 1_000)
    assert [proxy.drain_time_s(10.0 + age_s) for age_s in (0.0, 2.0, least_s - 0.1, least_s)] == [0, 0, 0, 3_600]


def test_drain_time_is_rows_by_the_rate_of_a_minute_and_at_most_an_hour() -> None:
    proxy, to = Proxy(ProxyModel()), tinybird(Upstream(latency_s=(1, 1), outages=(Window(100, 1e9),)))
    steps(proxy, to, range(100), 1_000)
    assert proxy.drain_time_s(99.0) == 0
    steps(proxy, to, range(100, 130), 1_000)
    assert proxy.drain_time_s(130.0) == pytest.approx(60, abs=5)  # 30,000 rows, half a minute of deliveries
    steps(proxy, to, range(130, 200), 1_000)
    assert proxy.drain_time_s(200.0) == 3_600


def test_without_the_ten_seconds_a_lone_row_of_a_quiet_proxy_has_a_drain_time_of_an_hour() -> None:
    proxy, slow = Proxy(ProxyModel(backlog_age_s=0)), tinybird(Upstream(latency_s=(3, 3)))
    proxy.take(0.0, 1)
    seen = []
    for now_s in (1.0, 2.0, 3.0, 4.0):
        proxy.deliver(now_s, slow, random.Random(1))
        seen.append(proxy.drain_time_s(now_s))
    assert seen == [0, 3_600, 3_600, 0]


def test_a_draining_proxy_takes_rows_for_drain_delay_and_then_none_and_goes_on_delivering() -> None:
    proxy, to = Proxy(ProxyModel()), tinybird()
    proxy.drain(0.0)
    proxy.drain(3.0)  # changes nothing
    assert [proxy.take(now_s, 10).accepted for now_s in (0.0, 4.0, 5.0)] == [10, 10, 0]
    steps(proxy, to, range(6, 9), 0)
    assert proxy.rows == 0
    proxy.stop_draining()
    assert proxy.take(9.0, 10).accepted == 10


def test_after_a_429_it_waits_as_long_as_tinybird_said_and_then_asks_with_one_request() -> None:
    throttled = Upstream(latency_s=(1, 1), low_limit=0.0, throttled=(Window(0, 20),), retry_after_s=(4, 4))
    proxy, to = Proxy(ProxyModel(batch_rows=1)), tinybird(throttled)
    to.answer(0.0)  # the one that the bucket holds
    proxy.take(0.0, 100)
    asked = []
    for second in range(1, 12):
        before = to.requests
        proxy.deliver(second, to, random.Random(1))
        asked.append(to.requests - before)
    assert asked == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0]
    assert (proxy.replies_1m, proxy.throttled_1m) == (3, 3)


def test_it_keeps_to_its_share_of_requests() -> None:
    proxy, to = Proxy(ProxyModel(batch_rows=1, upstream_rate=5.0, upstream_concurrency=100)), tinybird()
    steps(proxy, to, range(60), 100)
    assert to.requests <= 60 * 5 + 6


@given(
    st.lists(st.tuples(st.integers(0, 30_000), st.booleans()), max_size=120),
    st.sampled_from([(), (Window(20, 60),)]),
    st.sampled_from([(), (Window(10, 90),)]),
    st.integers(0, 2**32),
)
def test_every_row_that_was_taken_is_held_or_delivered(
    seconds: list[tuple[int, bool]], outages: tuple[Window, ...], throttled: tuple[Window, ...], seed: int
) -> None:
    dice = random.Random(seed)
    to = Tinybird(Upstream(outages=outages, throttled=throttled, low_limit=0.7), dice)
    proxy = Proxy(ProxyModel(buffer_rows=50_000, upstream_rate=3.0))
    held = 0
    for now_s, (rows, draining) in enumerate(seconds):
        if draining:
            proxy.drain(now_s)
        else:
            proxy.stop_draining()
        held -= proxy.deliver(now_s, to, dice)
        taken = proxy.take(now_s, rows)
        held += taken.accepted
        assert taken.accepted + taken.refused == rows
        assert proxy.rows == held
        assert 0 <= held <= 50_000
        assert (proxy.oldest_s is None) == (held == 0)
