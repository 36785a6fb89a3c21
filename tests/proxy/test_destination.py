"""One destination in simulated time: what follows from each answer, and what holds it."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from email.utils import format_datetime

import pytest
from blockbuster import blockbuster_ctx
from tests.proxy.simulated import batches, delivering, held, ledger, name_of, new, times

from tinybird_proxy.pacing import State
from tinybird_proxy.testing.fake_tracer import FakeTracer
from tinybird_proxy.testing.fake_upstream import (
    FakeUpstream,
    Script,
    after,
    broken,
    hang,
    reply,
    timed_out,
    unreachable,
)
from tinybird_proxy.testing.pipelines import Setup, imbalances, numbered, numbers_of
from tinybird_proxy.ticket import Buffered
from tinybird_proxy.tokens import OwnToken

pytestmark = pytest.mark.looptime(idle_timeout=1)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


# What follows from each answer.

AMBIGUOUS: list[Script] = [500, 502, 503, 504, 408, timed_out(), broken()]
NOT_AMBIGUOUS: list[Script] = [
    unreachable(),
    429,
    reply(429, Retry_After="1"),
    reply(503, Retry_After="1"),
    reply(503, X_RateLimit_Limit="100"),
    reply(503, {"error": "Tinybird is full"}),
]


@pytest.mark.parametrize("step", AMBIGUOUS, ids=name_of)
async def test_an_unknown_outcome_is_followed_by_the_same_bytes_and_counted_once_per_batch(step: Script) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(step, step, 200)
        client.offer(numbered([1, 2]))
        client.offer(numbered([3]))
        await asyncio.sleep(200)
        assert batches(tinybird) == [[1, 2, 3]] * 3
        assert len({attempt.batch_id for attempt in tinybird.attempts}) == 1
        assert len({attempt.payload.body for attempt in tinybird.attempts}) == 1
        assert (ledger(client).ambiguous, ledger(client).delivered) == (3, 4)
        assert imbalances(client.pipeline) == []


@pytest.mark.parametrize("step", NOT_AMBIGUOUS, ids=repr)
async def test_where_nothing_was_ingested_the_same_bytes_go_again_and_nothing_is_ambiguous(step: Script) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(step, step, 200)
        client.offer(numbered([1, 2, 3]))
        await asyncio.sleep(200)
        assert batches(tinybird) == [[1, 2, 3]] * 3
        assert len({attempt.batch_id for attempt in tinybird.attempts}) == 1
        assert len({attempt.payload.body for attempt in tinybird.attempts}) == 1
        assert (ledger(client).ambiguous, ledger(client).delivered) == (0, 4)


async def test_a_batch_that_may_have_arrived_stays_ambiguous_whatever_comes_later() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(broken(takes=True), unreachable(), 429, 500, 200)
        client.offer(numbered([1, 2]))
        await asyncio.sleep(200)
        assert numbers_of(tinybird.taken()) == [1, 2, 1, 2]
        assert (ledger(client).ambiguous, ledger(client).delivered, ledger(client).accepted) == (2, 3, 3)


async def test_the_backoff_doubles_from_half_a_second_to_thirty_and_has_no_end() -> None:
    limits: list[float] = []

    def longest(limit: float) -> float:
        limits.append(limit)
        return limit

    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(flush_interval_s=0.0, jitter=longest)) as client:
        tinybird.will(then=503)
        client.offer(numbered([1]))
        await asyncio.sleep(3600)
        assert limits[:9] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
        assert times(tinybird)[:8] == pytest.approx([0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5], abs=0.02)
        assert 115 <= len(tinybird.attempts) <= 125
        assert ledger(client).ambiguous == 1


async def test_the_backoff_begins_anew_after_a_success() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(flush_interval_s=0.0)) as client:
        tinybird.will(503, 503, 200, 503, 200)
        client.offer(numbered([1]))
        await asyncio.sleep(10)
        client.offer(numbered([2]))
        await asyncio.sleep(10)
        assert times(tinybird) == pytest.approx([0, 0.5, 1.5, 10, 10.5], abs=0.02)


async def test_a_backoff_may_be_as_short_as_chance_says() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(flush_interval_s=0.0, jitter=lambda limit: 0.25 * limit)) as client:
        tinybird.will(503, 503, 200)
        client.offer(numbered([1]))
        await asyncio.sleep(10)
        assert times(tinybird) == pytest.approx([0, 0.125, 0.375], abs=0.01)


@pytest.mark.parametrize(("asked", "waits_s"), [("7", 7), ("0", 0.5), ("300", 300), ("86400", 300), ("9" * 30, 300)])
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_in_seconds_is_honoured_up_to_five_minutes(status: int, asked: str, waits_s: float) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(flush_interval_s=0.0)) as client:
        tinybird.will(reply(status, Retry_After=asked), 200)
        client.offer(numbered([1]))
        await asyncio.sleep(1000)
        assert times(tinybird) == pytest.approx([0, waits_s], abs=0.02)
        assert ledger(client).ambiguous == 0


@pytest.mark.parametrize(("ahead_s", "waits_s"), [(12, 12), (-60, 0.5), (3600, 300)])
async def test_retry_after_as_a_date_is_honoured_up_to_five_minutes(ahead_s: float, waits_s: float) -> None:
    setup = Setup(flush_interval_s=0.0)
    tinybird = FakeUpstream()
    async with delivering(tinybird, setup) as client:
        when = format_datetime(setup.wall.now() + timedelta(seconds=ahead_s), usegmt=True)
        tinybird.will(reply(429, Retry_After=when), 200)
        client.offer(numbered([1]))
        await asyncio.sleep(1000)
        assert times(tinybird) == pytest.approx([0, waits_s], abs=0.02)


async def test_without_retry_after_a_throttled_destination_backs_off() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(flush_interval_s=0.0)) as client:
        tinybird.will(429, 429, 200)
        client.offer(numbered([1]))
        await asyncio.sleep(0.1)
        assert client.destination.pacing.state is State.THROTTLED
        await asyncio.sleep(10)
        assert times(tinybird) == pytest.approx([0, 0.5, 1.5], abs=0.02)


async def test_a_failing_destination_is_asked_by_one_batch_at_a_time_and_always_the_oldest() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=2)) as client:
        tinybird.will(then=after(3, 503))
        for number in range(20):
            client.offer(numbered([number]))
            await asyncio.sleep(0.1)
        await asyncio.sleep(100)
        first_round = [attempt for attempt in tinybird.attempts if attempt.at < 3]
        assert 1 < len(first_round) <= 16  # in flight together when the first failure came
        later = [attempt for attempt in tinybird.attempts if attempt.at >= 3]
        assert {attempt.batch_id for attempt in later} == {first_round[0].batch_id}
        assert ledger(client).ambiguous == sum(len(attempt.rows) for attempt in first_round)


async def test_only_what_was_tried_becomes_ambiguous_when_an_item_was_cut_in_parts() -> None:
    tinybird = FakeUpstream()
    async with new(tinybird, Setup(batch_rows=2)) as client:
        tinybird.will(504, 504, 504, then=200)
        client.offer(numbered(range(8)))
        await asyncio.sleep(60)
        assert batches(tinybird) == [[0, 1]] * 4 + [[2, 3], [4, 5], [6, 7]]
        assert ledger(client).ambiguous == 2


async def test_several_failures_at_once_are_one_failure_for_the_backoff() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=1)) as client:
        tinybird.will(*[after(1, 503)] * 16, then=200)
        client.offer(numbered(range(16)))
        await asyncio.sleep(10)
        assert len(tinybird.attempts) == 32
        retried = tinybird.attempts[16]
        assert retried.at == pytest.approx(1.5 + tinybird.attempts[0].at, abs=0.02)


# Holds.

HELD_AND_PROBED: list[Script] = [401, 403, 404, 508, reply(307, Location="/"), 402, 418, 451]


@pytest.mark.parametrize("step", HELD_AND_PROBED, ids=repr)
async def test_what_needs_a_person_is_held_shown_and_probed_each_minute_with_the_oldest_batch(step: Script) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(then=step)
        client.offer(numbered([1]))
        await asyncio.sleep(30)
        client.offer(numbered([2]))
        facts = client.destination.facts()
        assert facts.state is State.HELD
        assert facts.reason
        await asyncio.sleep(160)
        assert times(tinybird) == pytest.approx([1, 61, 121, 181], abs=0.02)
        assert batches(tinybird) == [[1]] * 4
        assert (ledger(client).dropped, ledger(client).dead_lettered, ledger(client).ambiguous) == ({}, 0, 0)
        tinybird.will(then=200)
        await asyncio.sleep(60)
        assert numbers_of(tinybird.taken()) == [1, 2]
        assert (ledger(client).delivered, client.destination.pacing.state) == (3, State.DELIVERING)
        assert imbalances(client.pipeline) == []


async def test_a_batch_that_tinybird_took_in_part_is_a_dead_letter_and_not_sent_again_by_itself() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(422)
        client.offer(numbered([1, 2]))
        await asyncio.sleep(3600)
        assert len(tinybird.attempts) == 1
        assert client.destination.facts().state is State.DELIVERING
        assert (ledger(client).dead_lettered, client.destination.buffered_rows()) == (2, 0)
        (letter,) = client.pipeline.surroundings.letters.select()
        assert (letter.reason, letter.status, letter.message) == ("partial", 422, "status 422 by script")
        client.offer(numbered([3]))
        await asyncio.sleep(5)
        assert numbers_of(tinybird.taken()) == [3]
        assert imbalances(client.pipeline) == []


async def test_a_hold_is_probed_at_once_when_a_token_changes() -> None:
    tinybird = FakeUpstream()
    async with held(tinybird) as client:
        await asyncio.sleep(10)
        client.pipeline.probe_all()
        await asyncio.sleep(0.01)
        assert times(tinybird) == pytest.approx([0, 10], abs=0.02)
        assert ledger(client).delivered == 3


async def test_probing_a_hold_in_vain_puts_the_next_probe_a_minute_away() -> None:
    tinybird = FakeUpstream()
    async with held(tinybird) as client:
        tinybird.will(then=403)
        await asyncio.sleep(10)
        client.pipeline.probe_all()
        await asyncio.sleep(65)
        assert times(tinybird) == pytest.approx([0, 10, 70], abs=0.02)


async def test_a_probe_that_fails_in_another_way_backs_off_and_goes_on() -> None:
    tinybird = FakeUpstream()
    async with held(tinybird) as client:
        tinybird.will(503, 503, 200)
        await asyncio.sleep(70)
        assert times(tinybird) == pytest.approx([0, 60, 60.5, 61.5], abs=0.02)
        assert ledger(client).delivered == 3


async def test_what_was_in_flight_when_a_hold_began_may_still_settle_but_does_not_end_it() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=1)) as client:
        tinybird.will(after(1, 403), after(2, 200), then=200)
        client.offer(numbered([1, 2]))
        await asyncio.sleep(3)
        assert client.destination.pacing.state is State.HELD
        assert numbers_of(tinybird.taken()) == [2]
        client.offer(numbered([3]))
        await asyncio.sleep(57)
        assert len(tinybird.attempts) == 2
        await asyncio.sleep(2)
        assert numbers_of(tinybird.taken()) == [2, 1, 3]


async def test_without_a_token_file_rows_are_held_until_it_appears() -> None:
    own = OwnToken(None, 0.0)
    tinybird = FakeUpstream()
    async with new(tinybird, Setup(own_token=own)) as client:
        assert await client.send(numbered([1])) == Buffered()
        await asyncio.sleep(100)
        assert tinybird.attempts == []
        assert client.destination.facts().state is State.HELD
        own.offer("p.late", 0.0)
        client.pipeline.probe_all()
        await asyncio.sleep(0.01)
        assert ledger(client).delivered == 1


async def test_a_changed_token_that_tinybird_refuses_holds_nothing() -> None:
    own = OwnToken("p.old", 0.0)
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(own_token=own)) as client:
        own.offer("p.new", 0.0)
        client.pipeline.probe_all()
        tinybird.will(403, 200, 200)
        client.offer(numbered([1]))
        await asyncio.sleep(5)
        client.offer(numbered([2]))
        await asyncio.sleep(5)
        assert [attempt.token for attempt in tinybird.attempts] == ["p.new", "p.old", "p.old"]
        assert client.destination.pacing.state is State.DELIVERING
        assert ledger(client).delivered == 3


# Spans and facts.


async def test_the_span_of_a_batch_ends_once_with_its_verdict() -> None:
    tracer, tinybird = FakeTracer(), FakeUpstream()
    async with delivering(tinybird, Setup(tracer=tracer)) as client:
        tinybird.will(503, 403, 200, 202, hang())
        for number in range(3):
            client.offer(numbered([number]))
            await asyncio.sleep(65)
    assert [(flush.verdict, flush.ended, len(flush.attempts)) for flush in tracer.flushes] == [
        ("delivered", 1, 1),
        ("delivered", 1, 3),
        ("unverified", 1, 1),
        ("in_doubt", 1, 1),
    ]


async def test_the_span_of_a_refused_contact_ends_too() -> None:
    tracer, tinybird = FakeTracer(), FakeUpstream(then=403)
    async with new(tinybird, Setup(tracer=tracer), token="p.client") as client:
        await client.send(numbered([1]))
    assert [(flush.verdict, flush.ended) for flush in tracer.flushes] == [("not_taken", 1)]


async def test_facts_say_how_it_stands() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, token="p.client") as client:
        tinybird.will(reply(429, Retry_After="100"), then=200)
        client.offer(numbered([1, 2]))
        await asyncio.sleep(11)
        facts = client.destination.facts()
        assert (facts.state, facts.in_flight, facts.places, facts.batches_waiting) == (State.THROTTLED, 0, 1, 1)
        assert (facts.buffered_rows, facts.oldest_age_s) == (2, 11.0)
        assert facts.next_attempt_in_s == pytest.approx(90, abs=0.1)
        assert facts.not_delivering_for_s == pytest.approx(10, abs=0.1)
        assert facts.token_hash is not None
        assert "p.client" not in repr(facts)
        await asyncio.sleep(100)
        facts = client.destination.facts()
        assert (facts.state, facts.reason, facts.buffered_rows, facts.places) == (State.DELIVERING, "", 0, 16)
        assert (facts.oldest_age_s, facts.not_delivering_for_s) == (None, None)
