"""When a destination may send, on a clock of numbers: bucket, backoff, pauses, holds and the end of a drain."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.pacing import Pacing, PacingLimits, State

LIMITS = PacingLimits(rate=90.0, concurrency=16)
ALL = 1.0  # jitter: the whole of the backoff


def paced(*, share: float = ALL, limits: PacingLimits = LIMITS, now: float = 0.0) -> Pacing:
    """Pacing whose jitter is always this share of the limit."""
    return Pacing(limits, jitter=lambda limit: limit * share, now=now)


def delivering(*, now: float = 0.0, share: float = ALL, limits: PacingLimits = LIMITS) -> Pacing:
    """Pacing after its first 2xx."""
    pacing = paced(share=share, limits=limits, now=now)
    pacing.begin(now)
    pacing.succeeded(now)
    return pacing


def pause(pacing: Pacing, now: float) -> float:
    return pacing.paused_until - now


# The beginning.


def test_a_new_destination_may_send_one_request_at_once() -> None:
    pacing = paced()
    assert (pacing.state, pacing.delivering, pacing.confirmed, pacing.places) == (State.NEW, True, False, 1)
    assert pacing.ready_at(0.0, 0) <= 0.0
    assert pacing.ready_at(0.0, 1) == math.inf


def test_the_first_2xx_confirms_and_opens_all_places() -> None:
    pacing = delivering()
    assert (pacing.state, pacing.delivering, pacing.confirmed, pacing.places) == (State.DELIVERING, True, True, 16)
    assert pacing.ready_at(0.0, 15) <= 0.0
    assert pacing.ready_at(0.0, 16) == math.inf


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(lambda p: p.failed(1.0, 0.5, "why"), id="a failure"),
        pytest.param(lambda p: p.throttled(1.0, 0.5, 7.0, "why"), id="a request to slow down"),
        pytest.param(lambda p: p.hold(1.0, "why"), id="a hold"),
    ],
)
def test_after_any_trouble_there_is_one_place_until_the_next_2xx(trouble: Callable[[Pacing], None]) -> None:
    pacing = delivering()
    trouble(pacing)
    assert (pacing.places, pacing.delivering, pacing.reason) == (1, False, "why")
    assert pacing.confirmed  # that is not forgotten
    later = pacing.paused_until
    assert pacing.ready_at(later, 0) <= later
    assert pacing.ready_at(later, 1) == math.inf
    pacing.succeeded(later)
    assert (pacing.places, pacing.delivering, pacing.reason) == (16, True, "")
    assert pacing.ready_at(later, 15) <= later


# The bucket.


def test_after_a_quiet_time_a_burst_of_a_tenth_of_the_rate_may_leave() -> None:
    pacing = delivering(now=0.0)
    sent = 0
    while pacing.ready_at(100.0, 0) <= 100.0:
        pacing.begin(100.0)
        sent += 1
    assert sent == 9
    assert pacing.ready_at(100.0, 0) == pytest.approx(100.0 + 1 / 90)


def test_a_slow_rate_lets_one_request_go_at_a_time() -> None:
    pacing = delivering(limits=PacingLimits(rate=0.5, concurrency=16))
    assert pacing.ready_at(0.0, 0) == pytest.approx(2.0)
    assert pacing.ready_at(2.0, 0) <= 2.0


def test_a_clock_that_stands_still_or_goes_back_gives_nothing_away() -> None:
    pacing = delivering(limits=PacingLimits(rate=1.0, concurrency=16))
    assert pacing.ready_at(-50.0, 0) == pytest.approx(-49.0)
    assert pacing.ready_at(0.0, 0) == pytest.approx(1.0)


def test_the_longer_of_pause_and_bucket_decides() -> None:
    pacing = delivering(limits=PacingLimits(rate=0.1, concurrency=1))
    pacing.failed(1.0, 0.5, "")
    assert pause(pacing, 1.0) == 0.5
    assert pacing.ready_at(1.0, 0) == pytest.approx(10.0)
    pacing.throttled(1.0, 0.9, 60.0, "")
    assert pacing.ready_at(1.0, 0) == 61.0


@settings(deadline=None, max_examples=60)
@given(
    st.floats(0.1, 1000.0),
    st.lists(st.floats(0.0, 1.0) | st.just(0.0), min_size=1, max_size=60),
    st.floats(0.01, 5.0),
)
def test_in_no_window_more_requests_leave_than_burst_and_rate_allow(
    rate: float, steps: list[float], window_s: float
) -> None:
    pacing = delivering(limits=PacingLimits(rate=rate, concurrency=10**9))
    now = 0.0
    sent: list[float] = []
    for step in steps:
        now += step
        while pacing.ready_at(now, 0) <= now and len(sent) < 3000:
            pacing.begin(now)
            sent.append(now)
    burst = max(1.0, rate * 0.1)
    first = 0
    for last, at in enumerate(sent):
        while sent[first] <= at - window_s:
            first += 1
        assert last - first + 1 <= burst + rate * window_s + 1e-6


def test_a_sender_that_comes_when_told_reaches_the_whole_rate() -> None:
    pacing = delivering()
    now, sent = 0.0, 0
    while now < 10.0:
        now = max(now, pacing.ready_at(now, 0))
        pacing.begin(now)
        sent += 1
    assert 900 <= sent <= 910


# Backoff.


def test_the_backoff_doubles_from_half_a_second_to_thirty() -> None:
    pacing, now, pauses = delivering(), 1.0, []
    for _ in range(9):
        pacing.failed(now, now, "down")
        pauses.append(pause(pacing, now))
        now = pacing.paused_until + 1.0
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert pacing.state is State.FAILING


def test_a_success_starts_the_backoff_again() -> None:
    pacing = delivering()
    pacing.failed(1.0, 0.5, "")
    pacing.failed(3.0, 2.0, "")
    pacing.succeeded(5.0)
    pacing.failed(7.0, 6.0, "")
    assert pause(pacing, 7.0) == 0.5


def test_a_thousand_failures_in_a_row_are_no_different_from_ten() -> None:
    pacing, now = delivering(), 1.0
    for _ in range(1100):
        now += 100.0
        pacing.failed(now, now, "")
    assert pause(pacing, now) == 30.0


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_jitter_is_full_from_nothing_to_the_whole_backoff(seed: int, failures: int) -> None:
    chance = random.Random(seed)
    asked: list[float] = []

    def jitter(limit: float) -> float:
        asked.append(limit)
        return chance.uniform(0.0, limit)

    pacing, now = Pacing(LIMITS, jitter=jitter, now=0.0), 0.0
    for number in range(failures):
        now += 100.0
        pacing.failed(now, now, "")
        assert asked[-1] == min(30.0, 0.5 * 2**number)
        assert 0.0 <= pause(pacing, now) <= asked[-1]
    assert len(asked) == failures


def test_several_in_flight_that_fail_together_count_once() -> None:
    pacing = delivering()
    for ended_at in (10.0, 10.1, 10.4):
        pacing.failed(ended_at, 5.0, "broke")
    assert pacing.paused_until == 10.5
    pacing.failed(11.0, 10.6, "broke")
    assert pause(pacing, 11.0) == 1.0  # the second failure in a row, not the fourth


def test_an_older_request_that_fails_after_all_is_well_again_counts() -> None:
    pacing = delivering()
    pacing.failed(10.0, 9.0, "first")
    pacing.succeeded(10.6)
    pacing.failed(12.0, 5.0, "late")
    assert (pacing.state, pacing.reason, pause(pacing, 12.0)) == (State.FAILING, "late", 0.5)


def test_a_success_older_than_the_failure_lifts_no_pause() -> None:
    pacing = paced()
    pacing.failed(10.0, 9.0, "down")
    pacing.succeeded(8.0)
    assert (pacing.state, pacing.paused_until, pacing.places, pacing.confirmed) == (State.FAILING, 10.5, 1, True)
    pacing.succeeded(10.5)
    assert pacing.state is State.DELIVERING
    assert pacing.ready_at(10.5, 0) <= 10.5


def test_what_began_in_the_very_moment_of_a_failure_counts_as_in_flight_then() -> None:
    # The event loop's clock stands still for a millisecond, and many requests may leave in one.
    pacing = delivering()
    pacing.failed(10.0, 9.0, "down")
    pacing.failed(10.2, 10.0, "down")
    pacing.succeeded(10.0)
    assert (pacing.state, pacing.paused_until) == (State.FAILING, 10.5)


# Throttling.


@pytest.mark.parametrize(
    ("retry_after_s", "expected_s"),
    [(7.0, 7.0), (0.0, 0.5), (-5.0, 0.5), (300.0, 300.0), (301.0, 300.0), (math.inf, 300.0), (0.25, 0.5)],
)
def test_tinybirds_retry_after_is_kept_up_to_five_minutes(retry_after_s: float, expected_s: float) -> None:
    pacing = delivering()
    pacing.throttled(10.0, 9.0, retry_after_s, "slow down")
    assert (pacing.state, pacing.reason) == (State.THROTTLED, "slow down")
    assert pause(pacing, 10.0) == expected_s


def test_without_retry_after_a_throttled_destination_backs_off() -> None:
    pacing = delivering()
    pacing.throttled(10.0, 9.0, None, "slow down")
    pacing.throttled(20.0, 19.0, None, "slow down")
    assert (pacing.state, pacing.reason) == (State.THROTTLED, "slow down")
    assert pause(pacing, 20.0) == 1.0


@pytest.mark.parametrize("retry_after_s", [None, 1.0])
def test_what_was_in_flight_before_shortens_no_pause_that_tinybird_asked_for(retry_after_s: float | None) -> None:
    pacing = delivering()
    pacing.throttled(10.0, 9.0, 60.0, "slow down")
    pacing.failed(11.0, 9.5, "broke")
    pacing.throttled(12.0, 9.5, retry_after_s, "slow down")
    assert (pacing.state, pacing.paused_until) == (State.THROTTLED, 70.0)


def test_what_was_in_flight_before_may_lengthen_a_pause() -> None:
    pacing = delivering()
    pacing.failed(10.0, 9.0, "broke")
    pacing.throttled(11.0, 9.5, 60.0, "slow down")
    assert (pacing.state, pacing.reason, pacing.paused_until) == (State.THROTTLED, "slow down", 71.0)


def test_the_answer_to_a_probe_replaces_the_pause_before_it() -> None:
    pacing = delivering()
    pacing.throttled(10.0, 9.0, 60.0, "slow down")
    pacing.throttled(70.5, 70.0, 2.0, "slow down")
    assert pacing.paused_until == 72.5


# Holds.


def test_a_hold_is_probed_each_minute() -> None:
    pacing, now = delivering(), 10.0
    for _ in range(3):
        pacing.hold(now, "no such data source")
        assert (pacing.state, pacing.reason) == (State.HELD, "no such data source")
        assert pacing.ready_at(now + 59.9, 0) == now + 60.0
        now += 60.0
        assert pacing.ready_at(now, 0) <= now
    pacing.succeeded(now)
    assert pacing.state is State.DELIVERING


@pytest.mark.parametrize(
    "late",
    [
        pytest.param(lambda p: p.failed(11.0, 9.5, "broke"), id="a failure"),
        pytest.param(lambda p: p.throttled(11.0, 9.5, 1.0, "slow down"), id="a request to slow down"),
        pytest.param(lambda p: p.throttled(11.0, 9.5, None, "slow down"), id="one without a time"),
        pytest.param(lambda p: p.succeeded(9.5), id="a success"),
    ],
)
def test_what_was_in_flight_before_a_hold_does_not_lift_it(late: Callable[[Pacing], None]) -> None:
    pacing = delivering()
    pacing.hold(10.0, "held")
    late(pacing)
    assert (pacing.state, pacing.reason, pacing.paused_until) == (State.HELD, "held", 70.0)


def test_what_was_in_flight_may_bring_a_hold_into_a_pause() -> None:
    pacing = delivering()
    pacing.failed(10.0, 9.0, "broke")
    pacing.hold(11.0, "held")
    assert (pacing.state, pacing.reason, pacing.paused_until) == (State.HELD, "held", 71.0)


def test_a_probe_of_a_hold_that_fails_otherwise_backs_off_and_no_longer_holds() -> None:
    pacing = delivering()
    pacing.hold(10.0, "held")
    pacing.failed(71.0, 70.0, "broke")
    assert (pacing.state, pacing.paused_until) == (State.FAILING, 71.5)


def test_a_hold_without_probes_waits_until_somebody_acts() -> None:
    pacing = delivering()
    pacing.hold(10.0, "partly taken", probe=False)
    assert pacing.ready_at(10.0**9, 0) == math.inf
    pacing.hold(11.0, "another in flight", probe=True)
    assert pacing.ready_at(10.0**9, 0) == math.inf
    pacing.probe_now(100.0)
    assert pacing.ready_at(100.0, 0) <= 100.0
    pacing.hold(101.0, "still not right", probe=True)
    assert pacing.paused_until == 161.0


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda p, now: p.failed(now + 1, now, "broke"), id="a failure"),
        pytest.param(lambda p, now: p.throttled(now + 1, now, None, "slow down"), id="a request to slow down"),
        pytest.param(lambda p, now: p.throttled(now + 1, now, 2.0, "slow down"), id="one with a time"),
    ],
)
def test_an_attempt_that_somebody_asked_for_brings_no_other_one_when_it_fails(
    answer: Callable[[Pacing, float], None],
) -> None:
    pacing = delivering()
    pacing.hold(10.0, "partly taken", probe=False)
    for now in (100.0, 150.0):
        pacing.probe_now(now)
        answer(pacing, now)
        assert (pacing.state, pacing.paused_until) == (State.HELD, math.inf)
    pacing.probe_now(200.0)
    pacing.succeeded(200.0)
    assert pacing.state is State.DELIVERING
    pacing.failed(201.0, 200.5, "broke")  # what was held is settled: this is a failure like any other
    assert (pacing.state, pacing.paused_until) == (State.FAILING, 201.5)


@pytest.mark.parametrize("probe", [True, False])
def test_a_hold_ends_when_rows_were_judged_that_were_sent_after_it_began(probe: bool) -> None:
    pacing = delivering()
    pacing.hold(10.0, "held", probe=probe)
    pacing.probe_now(20.0)
    pacing.answered(21.0, 20.5)
    pacing.release(22.0)
    assert (pacing.state, pacing.reason, pacing.ready_at(22.0, 0) <= 22.0) == (State.NEW, "", True)
    pacing.failed(24.0, 23.0, "broke")
    assert (pacing.state, pacing.paused_until) == (State.FAILING, 24.5)


@pytest.mark.parametrize(("probe", "paused_until"), [(True, 70.0), (False, math.inf)])
def test_a_judgement_on_rows_that_were_sent_before_a_hold_does_not_end_it(probe: bool, paused_until: float) -> None:
    pacing = delivering()
    pacing.hold(10.0, "held", probe=probe)
    pacing.answered(12.0, 9.5)
    pacing.release(13.0)
    assert (pacing.state, pacing.reason, pacing.paused_until) == (State.HELD, "held", paused_until)


def test_a_hold_that_began_after_rows_were_judged_is_not_ended_by_that() -> None:
    pacing = delivering()
    pacing.answered(9.0, 8.0)
    pacing.hold(10.0, "held")
    pacing.release(11.0)
    assert (pacing.state, pacing.paused_until) == (State.HELD, 70.0)


def test_a_change_is_tried_at_once_but_takes_a_token_like_any_request() -> None:
    pacing = delivering(limits=PacingLimits(rate=0.1, concurrency=1))
    pacing.hold(1.0, "held")
    pacing.probe_now(2.0)
    assert pacing.paused_until == 2.0
    assert pacing.ready_at(2.0, 0) == pytest.approx(10.0)


def test_probing_now_never_delays_what_may_leave_already() -> None:
    pacing = delivering()
    pacing.probe_now(5.0)
    assert pacing.paused_until == -math.inf


# Draining: the clock is at 100, the deadline at 125.


def draining(pacing: Pacing) -> Pacing:
    pacing.drain(100.0, 125.0)
    return pacing


def test_a_drain_leaves_what_flows_alone() -> None:
    pacing = draining(delivering())
    assert pacing.ready_at(100.0, 0) <= 100.0
    assert pacing.places == 16


def test_a_hold_is_probed_at_once_when_a_drain_begins() -> None:
    pacing = delivering()
    pacing.hold(99.0, "held")
    assert draining(pacing).ready_at(100.0, 0) <= 100.0


def test_a_hold_without_probes_is_tried_once_when_a_drain_begins_and_not_again() -> None:
    pacing = delivering()
    pacing.hold(99.0, "partly taken", probe=False)
    assert draining(pacing).ready_at(100.0, 0) <= 100.0
    pacing.hold(101.0, "partly taken", probe=False)
    assert pacing.paused_until == math.inf


@pytest.mark.parametrize(
    ("retry_after_s", "paused_until"),
    [
        pytest.param(10.0, 109.0, id="short"),
        pytest.param(21.0, 120.0, id="just so"),
        pytest.param(300.0, 120.0, id="long"),
    ],
)
def test_no_pause_outlasts_the_last_attempt_before_the_deadline(retry_after_s: float, paused_until: float) -> None:
    pacing = delivering()
    pacing.throttled(99.0, 98.0, retry_after_s, "")
    assert draining(pacing).paused_until == paused_until


@pytest.mark.parametrize(
    ("now", "retry_after_s", "paused_until"),
    [
        pytest.param(101.0, 10.0, 111.0, id="a pause that ends in time"),
        pytest.param(101.0, 60.0, 120.0, id="one that would not"),
        pytest.param(120.0, 60.0, math.inf, id="one that begins with the last attempt"),
        pytest.param(120.5, 60.0, math.inf, id="one after it"),
    ],
)
def test_a_pause_that_begins_while_draining_ends_before_the_deadline_or_never(
    now: float, retry_after_s: float, paused_until: float
) -> None:
    pacing = draining(delivering())
    pacing.throttled(now, now - 0.5, retry_after_s, "")
    assert pacing.paused_until == paused_until


def test_backoffs_are_short_while_draining() -> None:
    pacing, now, pauses = draining(delivering()), 100.0, []
    for _ in range(5):
        pacing.failed(now, now, "")
        pauses.append(pause(pacing, now))
        now = pacing.paused_until + 0.1
    assert pauses == [0.5, 1.0, 2.0, 2.0, 2.0]


def test_when_the_deadline_is_nearer_than_an_attempt_takes_what_is_paused_is_tried_at_once() -> None:
    pacing = delivering()
    pacing.throttled(99.0, 98.0, 60.0, "")
    pacing.drain(100.0, 102.0)
    assert pacing.paused_until == 100.0


def test_after_a_drain_that_was_called_off_the_pauses_are_the_ordinary_ones_again() -> None:
    pacing = draining(delivering())
    pacing.throttled(121.0, 120.5, 10.0, "")
    assert pacing.paused_until == math.inf
    pacing.stop_draining()
    assert pacing.paused_until == 131.0
    pacing.throttled(132.0, 131.0, 200.0, "")
    assert pacing.paused_until == 332.0


# All of it.


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["failed", "throttled", "throttled without a time", "hold", "succeeded", "probe", "drain"]),
            st.floats(0.0, 100.0),
            st.floats(0.0, 400.0),
        ),
        max_size=25,
    ),
    st.floats(0.0, 1.0),
)
def test_whatever_happens_a_destination_is_tried_again_within_five_minutes(
    events: list[tuple[str, float, float]], share: float
) -> None:
    pacing, now = delivering(share=share), 0.0
    drained = False
    for event, step, number in events:
        now += step
        started_at = now - min(number, 60.0)
        if event == "failed":
            pacing.failed(now, started_at, "")
        elif event == "throttled":
            pacing.throttled(now, started_at, number, "")
        elif event == "throttled without a time":
            pacing.throttled(now, started_at, None, "")
        elif event == "hold":
            pacing.hold(now, "")
        elif event == "succeeded":
            pacing.succeeded(started_at)
        elif event == "probe":
            pacing.probe_now(now)
        elif not drained:
            drained = True
            pacing.drain(now, now + number)
        if not drained:
            assert pacing.ready_at(now, 0) <= now + 300.0
        assert pacing.delivering == (pacing.state in (State.NEW, State.DELIVERING))
        assert not (pacing.delivering and pacing.paused_until > now)
        assert pacing.places == (16 if pacing.state is State.DELIVERING else 1)


def test_a_failure_shortly_before_the_deadline_of_a_drain_still_backs_off_and_tries_again() -> None:
    pacing = Pacing(LIMITS, jitter=lambda limit: limit, now=0.0)
    pacing.succeeded(0.0)
    pacing.drain(0.0, 25.0)
    pacing.failed(21.0, 20.9, "reset")
    assert pacing.paused_until == 21.5
    pacing.failed(24.9, 24.8, "reset")
    assert pacing.paused_until == math.inf


def test_a_drain_does_not_wait_for_a_backoff_to_end() -> None:
    pacing = Pacing(LIMITS, jitter=lambda limit: limit, now=0.0)
    for second in range(10):
        pacing.failed(float(second), second - 0.1, "down")
    assert pacing.paused_until > 30.0
    pacing.drain(10.0, 35.0)
    assert pacing.paused_until == 10.0
