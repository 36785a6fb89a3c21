"""One destination in simulated time: when batches leave, what follows from each answer, and what who waits hears."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from email.utils import format_datetime

import pytest
from blockbuster import blockbuster_ctx

from tinybird_proxy.admission import Refusal
from tinybird_proxy.ledger import Ledger
from tinybird_proxy.pacing import State
from tinybird_proxy.testing.fake_tracer import FakeTracer
from tinybird_proxy.testing.fake_upstream import (
    FakeUpstream,
    Known,
    Script,
    after,
    broken,
    counts,
    hang,
    quarantining,
    reply,
    timed_out,
    unreachable,
)
from tinybird_proxy.testing.pipelines import Client, Setup, imbalances, numbered, numbers_of
from tinybird_proxy.ticket import Buffered, Confirmed, Dropped, NotTaken, Refused
from tinybird_proxy.tokens import OwnToken
from tinybird_proxy.waiting import Waiting

pytestmark = pytest.mark.looptime(idle_timeout=1)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


@asynccontextmanager
async def new(tinybird: FakeUpstream, setup: Setup | None = None, *, token: str | None = None) -> AsyncIterator[Client]:
    """A client of a destination that nobody has used yet."""
    try:
        async with (setup or Setup()).pipeline(tinybird).running() as pipeline:
            yield Client(pipeline, token=token)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # a failed assertion reads better alone


@asynccontextmanager
async def delivering(
    tinybird: FakeUpstream, setup: Setup | None = None, *, token: str | None = None
) -> AsyncIterator[Client]:
    """A client of a destination that Tinybird has answered once; what was sent for that is forgotten."""
    async with new(tinybird, setup, token=token) as client:
        await client.confirm()
        tinybird.forget()
        yield client


@asynccontextmanager
async def held(tinybird: FakeUpstream, setup: Setup | None = None) -> AsyncIterator[Client]:
    """A client of a destination that holds the rows 1 and 2 since 0 s."""
    async with delivering(tinybird, setup or Setup(flush_interval_s=0.0)) as client:
        tinybird.will(403, then=200)
        client.offer(numbered([1, 2]))
        await asyncio.sleep(0.01)
        assert client.destination.pacing.state is State.HELD
        yield client


def times(tinybird: FakeUpstream) -> list[float]:
    """When each attempt was made, to the hundredth of a second."""
    return [round(attempt.at, 2) for attempt in tinybird.attempts]


def batches(tinybird: FakeUpstream) -> list[list[int]]:
    """The numbers in each attempt."""
    return [numbers_of(attempt.rows) for attempt in tinybird.attempts]


def ledger(client: Client) -> Ledger:
    return client.destination.ledger


# Batches.


async def test_all_rows_of_a_flush_interval_leave_in_one_request_in_order() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        client.offer(numbered([1]))
        await asyncio.sleep(0.5)
        client.offer(numbered([2, 3]))
        await asyncio.sleep(0.49)
        client.offer(numbered([4]))
        assert tinybird.attempts == []
        await asyncio.sleep(0.02)
        (attempt,) = tinybird.attempts
        assert attempt.at == pytest.approx(1.0, abs=0.01)
        assert attempt.body == b'{"n":1}\n{"n":2}\n{"n":3}\n{"n":4}'
        assert attempt.payload.encoding == "gzip"
        assert client.pipeline.surroundings.meters.batches["interval"] == 1
        await asyncio.sleep(100)
        assert len(tinybird.attempts) == 1
        assert (ledger(client).delivered, imbalances(client.pipeline)) == (5, [])


async def test_the_interval_is_counted_from_the_first_item_of_each_batch() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        client.offer(numbered([1]))
        await asyncio.sleep(7.3)
        client.offer(numbered([2]))
        await asyncio.sleep(5)
        assert times(tinybird) == [1.0, 8.3]


async def test_a_full_batch_leaves_at_once_and_the_rest_with_the_interval() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=3)) as client:
        client.offer(numbered([1, 2]))
        await asyncio.sleep(0.2)
        client.offer(numbered([3, 4]))
        await asyncio.sleep(5)
        assert batches(tinybird) == [[1, 2], [3, 4]]
        assert times(tinybird) == [0.2, 1.2]


async def test_an_item_larger_than_a_batch_leaves_in_parts_cut_at_rows() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=2)) as client:
        client.offer(numbered([1, 2, 3, 4, 5]))
        await asyncio.sleep(5)
        assert batches(tinybird) == [[1, 2], [3, 4], [5]]


async def test_a_single_row_larger_than_a_batch_leaves_alone() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_bytes=100)) as client:
        client.offer(numbered([1]))
        client.offer(numbered([2], padding=300))
        client.offer(numbered([3]))
        await asyncio.sleep(5)
        assert batches(tinybird) == [[1], [2], [3]]


async def test_parameters_for_tinybird_and_the_token_are_part_of_the_request() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, token="p.client") as client:
        client.offer(numbered([1]))
        await asyncio.sleep(2)
        (attempt,) = tinybird.attempts
        assert (attempt.token, attempt.name, attempt.query["wait"]) == ("p.client", "hits", ["true"])
        assert "p.client" not in attempt.url


async def test_the_rows_of_a_waiting_batch_are_compressed_while_it_waits() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=100, flush_interval_s=0.0)) as client:
        tinybird.will(then=503)
        client.offer(numbered([0]))
        await asyncio.sleep(0.1)
        client.offer(numbered(range(1, 100), padding=100))
        before = client.destination.facts().held_bytes
        client.offer(numbered([100]))
        await asyncio.sleep(0.1)
        facts = client.destination.facts()
        assert facts.held_bytes < before / 10
        assert facts.buffered_bytes >= 10_000


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


def name_of(step: Script) -> str:
    return getattr(step, "answer", None).__class__.__name__ if not isinstance(step, int) else str(step)


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


# During an outage.


async def test_batches_grow_instead_of_multiplying_while_an_outage_lasts() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=100)) as client:
        tinybird.will(then=503)
        for number in range(240):
            client.offer(numbered([number]))
            await asyncio.sleep(0.5)
        meters = client.pipeline.surroundings.meters
        assert meters.batches["interval"] == 1
        assert meters.batches["rows"] == 2
        assert len({attempt.batch_id for attempt in tinybird.attempts}) == 1
        tinybird.forget()
        tinybird.will(then=200)
        await asyncio.sleep(40)
        assert [len(numbers) for numbers in batches(tinybird)] == [3, 100, 100, 37]
        assert numbers_of(tinybird.taken()) == list(range(240))


@pytest.mark.parametrize(
    "step", [503, reply(429, Retry_After="200"), 403, hang()], ids=["fails", "pauses", "held", "full"]
)
async def test_the_interval_freezes_nothing_that_could_not_be_sent(step: Script) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(flush_interval_s=0.1, concurrency=1)) as client:
        tinybird.will(then=step)
        client.offer(numbered([0]))
        for number in range(1, 100):
            await asyncio.sleep(0.5)
            client.offer(numbered([number]))
        assert client.pipeline.surroundings.meters.batches["interval"] == 1
        assert client.destination.facts().buffered_rows == 100


async def test_the_interval_freezes_nothing_while_the_bucket_is_empty() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(flush_interval_s=0.0, rate=0.1)) as client:
        for number in range(30):
            client.offer(numbered([number]))
            await asyncio.sleep(1)
        assert times(tinybird) == [10.0, 20.0]  # the burst is a single request, and the first contact was that
        await asyncio.sleep(20)
        assert numbers_of(tinybird.taken()) == list(range(30))


async def test_after_an_outage_requests_leave_no_faster_than_allowed() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=1, rate=90.0)) as client:
        tinybird.will(then=503)
        client.offer(numbered(range(500)))
        await asyncio.sleep(60)
        tinybird.will(then=200)
        tinybird.forget()
        await asyncio.sleep(60)
        sent = [attempt.at for attempt in tinybird.attempts]
        assert len(sent) == 500
        for index, at in enumerate(sent):
            assert sum(1 for other in sent[index:] if other < at + 1.0) <= 100
        assert sent[-1] - sent[0] == pytest.approx(500 / 90, abs=0.3)


async def test_after_an_outage_requests_in_flight_are_one_and_then_as_many_as_allowed() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=1, rate=1000.0)) as client:
        tinybird.will(then=503)
        client.offer(numbered(range(200)))
        await asyncio.sleep(60)
        tinybird.forget()
        tinybird.will(then=after(2, 200))
        await asyncio.sleep(100)
        first = tinybird.attempts[0]
        assert [attempt for attempt in tinybird.attempts if attempt.at < first.at + 2] == [first]
        assert tinybird.most_in_flight["hits"] == 16
        assert len(tinybird.taken()) == 200


async def test_one_request_is_in_flight_until_the_first_success() -> None:
    tinybird = FakeUpstream(then=after(5, 200))
    async with new(tinybird, Setup(batch_rows=1, rate=1000.0)) as client:
        client.offer(numbered(range(40)))
        await asyncio.sleep(4.9)
        assert tinybird.most_in_flight["hits"] == 1
        await asyncio.sleep(60)
        assert tinybird.most_in_flight["hits"] == 16


# Tinybird's counts.


async def test_rows_that_tinybird_puts_into_quarantine_are_counted_as_such() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(quarantining(2))
        client.offer(numbered(range(5)))
        await asyncio.sleep(2)
        assert (ledger(client).delivered, ledger(client).quarantined) == (1 + 3, 2)


@pytest.mark.parametrize(
    ("answer", "delivered", "unverified"),
    [(202, 0, 5), (counts(3, 1), 3, 1), (counts(9, 9), 5, 0), (counts(0, 0), 0, 5), (reply(200, b"OK"), 0, 5)],
    ids=repr,
)
async def test_what_tinybird_did_not_confirm_is_unverified_and_not_sent_again(
    answer: Script, delivered: int, unverified: int
) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(answer)
        client.offer(numbered(range(5)))
        await asyncio.sleep(100)
        assert len(tinybird.attempts) == 1
        assert (ledger(client).delivered - 1, ledger(client).unverified) == (delivered, unverified)
        assert imbalances(client.pipeline) == []


async def test_an_address_that_never_gave_counts_is_held_and_not_probed_by_itself() -> None:
    tinybird = FakeUpstream(then=reply(200, b"<html>It works!</html>"))
    async with new(tinybird) as client:
        assert await client.send(numbered([1, 2])) == Buffered()
        await asyncio.sleep(3600)
        assert len(tinybird.attempts) == 1
        assert client.destination.pacing.state is State.HELD
        assert ledger(client).ambiguous == 2
        client.pipeline.probe_all()
        await asyncio.sleep(3600)
        assert len(tinybird.attempts) == 2
        tinybird.will(then=200)
        client.pipeline.probe_all()
        await asyncio.sleep(1)
        assert (ledger(client).delivered, client.destination.pacing.state) == (2, State.DELIVERING)


async def test_counts_that_do_not_add_up_are_counts_all_the_same() -> None:
    tinybird = FakeUpstream([counts(1, 0), reply(200, b"OK")])
    async with new(tinybird) as client:
        await client.send(numbered([1, 2]))
        client.offer(numbered([3]))
        await asyncio.sleep(5)
        assert (ledger(client).delivered, ledger(client).unverified) == (1, 2)
        assert client.destination.pacing.state is State.DELIVERING


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


# Who waits.


async def test_who_waits_hears_that_tinybird_has_the_rows() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        began = asyncio.get_running_loop().time()
        assert await client.send(numbered([1, 2]), wait=True) == Confirmed(2, 0)
        assert asyncio.get_running_loop().time() - began == pytest.approx(1.0, abs=0.01)


async def test_who_does_not_wait_is_promised_at_once() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        assert client.offer(numbered([1])) is None


async def test_who_waits_is_confirmed_although_the_first_attempts_failed() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(503, broken(), 200)
        assert await client.send(numbered([1]), wait=True) == Confirmed(1, 0)


async def test_waiting_ends_so_long_after_the_requests_head() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(hang())
        loop = asyncio.get_running_loop()
        await asyncio.sleep(20)
        assert await client.send(numbered([1]), wait=True, head_at=12.0) == Buffered()
        assert loop.time() == pytest.approx(12 + 25, abs=0.01)
        assert client.destination.buffered_rows() == 1


async def test_a_request_whose_time_is_up_does_not_wait() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        await asyncio.sleep(30)
        assert client.offer(numbered([1]), wait=True, head_at=5.0) is None


async def test_more_than_so_many_do_not_wait() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(max_waiters=2)) as client:
        tinybird.will(then=after(5, 200))
        waiting = []
        for number in range(2):
            waiting.append(client.post(numbered([number]), wait=True))
            await asyncio.sleep(0)
        assert client.offer(numbered([2]), wait=True) is None
        assert await asyncio.gather(*waiting) == [Confirmed(1, 0)] * 2
        assert isinstance(client.offer(numbered([3]), wait=True), Waiting)


async def test_nobody_waits_for_a_held_destination() -> None:
    tinybird = FakeUpstream()
    async with held(tinybird) as client:
        assert client.offer(numbered([3]), wait=True) is None


async def test_nobody_waits_for_an_attempt_that_comes_too_late() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(flush_interval_s=0.0)) as client:
        tinybird.will(reply(429, Retry_After="30"))
        client.offer(numbered([1]))
        await asyncio.sleep(1)
        assert client.offer(numbered([2]), wait=True) is None
        await asyncio.sleep(10)
        assert await client.send(numbered([3]), wait=True) == Confirmed(1, 0)


@pytest.mark.parametrize("step", [403, 402, reply(429, Retry_After="60")], ids=["held", "held too", "paused"])
async def test_those_who_wait_are_released_when_nothing_will_come_soon(step: Known) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=2, concurrency=1)) as client:
        tinybird.will(after(3, step))
        waiting = [client.post(numbered([number]), wait=True) for number in range(5)]  # in flight, waiting, open
        assert await asyncio.gather(*waiting) == [Buffered()] * 5
        assert asyncio.get_running_loop().time() == pytest.approx(3, abs=1.1)
        assert client.destination.buffered_rows() > 0


async def test_those_whose_batch_is_in_flight_still_hear_when_another_one_is_held() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=1)) as client:
        tinybird.will(after(1, 403), after(2, 200))
        first, second = client.post(numbered([1]), wait=True), client.post(numbered([2]), wait=True)
        assert await first == Buffered()
        assert await second == Confirmed(1, 0)


async def test_a_short_backoff_releases_nobody() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(*[503] * 4, 200)
        assert await client.send(numbered([1]), wait=True) == Confirmed(1, 0)


async def test_quarantined_rows_of_a_batch_are_attributed_as_far_as_can_be_known() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(quarantining(2))
        one, three = client.post(numbered([1]), wait=True), client.post(numbered([2, 3, 4]), wait=True)
        assert await one == Confirmed(0, 1, batch_rows=4, batch_quarantined=2)
        assert await three == Confirmed(1, 2, batch_rows=4, batch_quarantined=2)


async def test_quarantined_rows_of_a_batch_of_one_item_are_exactly_its_own() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(quarantining(2))
        assert await client.send(numbered([1, 2, 3]), wait=True) == Confirmed(1, 2)


@pytest.mark.parametrize("quarantined", [0, 3])
async def test_when_all_or_none_of_a_batch_is_in_quarantine_everybody_knows_exactly(quarantined: int) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(quarantining(quarantined))
        one, two = client.post(numbered([1]), wait=True), client.post(numbered([2, 3]), wait=True)
        assert await one == Confirmed(1 - min(1, quarantined), min(1, quarantined))
        assert await two == Confirmed(2 - min(2, quarantined), min(2, quarantined))


async def test_an_item_in_several_batches_is_confirmed_with_the_last_of_them() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=2)) as client:
        tinybird.will(after(1, counts(1, 1)), after(5, 200), after(3, 200))
        assert await client.send(numbered([1, 2, 3, 4, 5]), wait=True) == Confirmed(4, 1)
        assert asyncio.get_running_loop().time() == pytest.approx(5, abs=0.1)


async def test_unverified_rows_are_not_confirmed_to_anybody() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(202, counts(0, 0))
        assert await client.send(numbered([1]), wait=True) == Buffered()
        assert await client.send(numbered([1, 2]), wait=True) == Buffered()
        assert (ledger(client).unverified, client.destination.buffered_rows()) == (3, 0)


async def test_a_client_that_leaves_takes_nothing_back() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        waiting = client.post(numbered([1]), wait=True)
        await asyncio.sleep(0.5)
        waiting.cancel()
        await asyncio.sleep(1)
        assert numbers_of(tinybird.taken()) == [1]
        assert (client.pipeline.waiter_count, ledger(client).delivered) == (0, 2)


async def test_who_still_waits_when_the_process_stops_hears_that_the_rows_were_dropped() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(batch_rows=1)) as client:
        tinybird.will(then=hang())
        waiting = [client.post(numbered([number]), wait=True) for number in range(20)]  # 16 in flight, the rest not
        await asyncio.sleep(2)
    assert await asyncio.gather(*waiting) == [Dropped()] * 20
    assert ledger(client).dropped == {"in_doubt": 16, "shutdown": 4}
    assert imbalances(client.pipeline) == []


# First contact.


async def test_the_first_item_leaves_at_once_and_is_promised_when_tinybird_takes_it() -> None:
    tinybird = FakeUpstream(then=after(0.3, 200))
    async with new(tinybird, token="p.client") as client:
        assert await client.send(numbered([1])) == Confirmed(1, 0)
        assert asyncio.get_running_loop().time() == pytest.approx(0.3, abs=0.01)
        assert (ledger(client).accepted, ledger(client).delivered) == (1, 1)
        assert client.pipeline.surroundings.meters.requests_accepted == 1


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_clients_own_token_that_tinybird_refuses_takes_nothing(status: int) -> None:
    tinybird = FakeUpstream(then=after(0.3, reply(status, {"error": "no such thing"})))
    async with new(tinybird, token="p.client") as client:
        assert await client.send(numbered([1, 2])) == NotTaken(status, "no such thing")
        assert asyncio.get_running_loop().time() == pytest.approx(0.3, abs=0.01)
        assert ledger(client) == Ledger()
        assert client.destination.held() == (0, 0)
        assert imbalances(client.pipeline) == []
        meters = client.pipeline.surroundings.meters
        assert (meters.requests_accepted, meters.bytes_accepted) == (0, 0)


async def test_for_a_minute_requests_are_refused_like_the_first_without_asking_tinybird() -> None:
    tinybird = FakeUpstream(then=403)
    async with new(tinybird, token="p.client") as client:
        assert await client.send(numbered([1]), wait=True) == NotTaken(403, "status 403 by script")
        for _ in range(59):
            await asyncio.sleep(1)
            assert client.offer(numbered([2])) == Refusal(403, "refused_by_tinybird", "status 403 by script")
        assert len(tinybird.attempts) == 1
        assert ledger(client) == Ledger()
        await asyncio.sleep(1.1)
        assert await client.send(numbered([3])) == NotTaken(403, "status 403 by script")
        assert len(tinybird.attempts) == 2
        await asyncio.sleep(59)
        assert isinstance(client.offer(numbered([4])), Refusal)
        tinybird.will(then=200)
        await asyncio.sleep(1.1)
        assert await client.send(numbered([5])) == Confirmed(1, 0)
        assert client.offer(numbered([6])) is None
        assert ledger(client).accepted == 2


async def test_a_first_contact_in_several_batches_that_is_refused_takes_nothing_of_any() -> None:
    tinybird = FakeUpstream(then=403)
    async with new(tinybird, Setup(batch_rows=2), token="p.client") as client:
        assert isinstance(await client.send(numbered(range(7))), NotTaken)
        await asyncio.sleep(50)
        assert len(tinybird.attempts) == 1
        assert client.destination.idle
        assert imbalances(client.pipeline) == []


async def test_a_first_contact_in_several_batches_is_promised_with_the_first_verdict() -> None:
    tinybird = FakeUpstream(then=after(0.3, 200))
    async with new(tinybird, Setup(batch_rows=2), token="p.client") as client:
        offered = client.offer(numbered(range(7)))
        assert isinstance(offered, Waiting)
        assert await client.pipeline.hear(offered) in (Buffered(), Confirmed(7, 0))
        assert asyncio.get_running_loop().time() == pytest.approx(0.3, abs=0.01)
        assert ledger(client).accepted == 7
        await asyncio.sleep(10)
        assert ledger(client).delivered == 7


async def test_without_a_verdict_within_a_second_the_first_item_is_promised_and_settles_later() -> None:
    tinybird = FakeUpstream(then=after(4, 200))
    async with new(tinybird, token="p.client") as client:
        assert await client.send(numbered([1])) == Buffered()
        assert asyncio.get_running_loop().time() == pytest.approx(1, abs=0.01)
        assert (ledger(client).accepted, ledger(client).delivered) == (1, 0)
        await asyncio.sleep(4)
        assert (ledger(client).accepted, ledger(client).delivered) == (1, 1)
        assert imbalances(client.pipeline) == []


async def test_a_refusal_that_comes_too_late_holds_what_was_promised_and_refuses_the_next() -> None:
    tinybird = FakeUpstream(then=after(4, 403))
    async with new(tinybird, token="p.client") as client:
        assert await client.send(numbered([1])) == Buffered()
        await asyncio.sleep(3.5)
        assert isinstance(client.offer(numbered([2])), Refusal)
        assert (ledger(client).accepted, client.destination.buffered_rows()) == (1, 1)
        await asyncio.sleep(130)
        assert times(tinybird) == pytest.approx([0, 64, 128], abs=0.05)
        assert isinstance(client.offer(numbered([2])), Refusal)
        tinybird.will(then=200)
        await asyncio.sleep(70)
        assert (ledger(client).accepted, ledger(client).delivered) == (1, 1)
        assert client.offer(numbered([3])) is None
        assert imbalances(client.pipeline) == []


async def test_who_waits_for_delivery_goes_on_waiting_after_the_first_second() -> None:
    tinybird = FakeUpstream(then=after(4, 200))
    async with new(tinybird, token="p.client") as client:
        assert await client.send(numbered([1]), wait=True) == Confirmed(1, 0)
        assert asyncio.get_running_loop().time() == pytest.approx(4, abs=0.01)


async def test_who_waits_for_delivery_is_released_when_the_refusal_comes_too_late() -> None:
    tinybird = FakeUpstream(then=after(4, 403))
    async with new(tinybird, token="p.client") as client:
        assert await client.send(numbered([1]), wait=True) == Buffered()
        assert asyncio.get_running_loop().time() == pytest.approx(4, abs=0.01)
        assert ledger(client).accepted == 1


@pytest.mark.parametrize("step", [unreachable(), 503, 429, broken(), 302, 402], ids=name_of)
async def test_any_other_first_answer_is_a_promise(step: Script) -> None:
    tinybird = FakeUpstream([step], then=after(1, 200))
    async with new(tinybird, token="p.client") as client:
        assert await client.send(numbered([1])) == Buffered()
        assert asyncio.get_running_loop().time() < 0.1
        assert (ledger(client).accepted, client.destination.buffered_rows()) == (1, 1)
        await asyncio.sleep(200)
        client.pipeline.probe_all()
        await asyncio.sleep(5)
        assert (ledger(client).delivered, imbalances(client.pipeline)) == (1, [])


@pytest.mark.parametrize("status", [400, 413])
async def test_a_first_item_that_tinybird_rejects_is_not_taken_and_nothing_is_held(status: int) -> None:
    tinybird = FakeUpstream([after(0.2, reply(status, {"error": "not like this"}))])
    async with new(tinybird, token="p.client") as client:
        assert await client.send(numbered([1])) == NotTaken(status, "not like this")
        assert (ledger(client), client.destination.held()) == (Ledger(), (0, 0))
        assert imbalances(client.pipeline) == []
        assert await client.send(numbered([2])) == Confirmed(1, 0)


async def test_a_first_item_that_tinybird_takes_in_part_is_a_dead_letter_and_its_client_is_told() -> None:
    tinybird = FakeUpstream([after(0.2, 422)])
    async with new(tinybird, token="p.client") as client:
        outcome = await client.send(numbered([1, 2]))
        assert isinstance(outcome, Refused)
        assert (outcome.status, "dead letters" in outcome.message) == (422, True)
        (letter,) = client.pipeline.surroundings.letters.select()
        assert (letter.row_count, letter.client_told) == (2, True)
        assert (ledger(client).accepted, ledger(client).dead_lettered) == (2, 2)
        assert imbalances(client.pipeline) == []


@pytest.mark.parametrize(("status", "reason"), [(400, "rejected"), (413, "too_large")])
async def test_a_rejection_that_comes_too_late_makes_a_dead_letter_of_what_was_promised(
    status: int, reason: str
) -> None:
    tinybird = FakeUpstream([after(2, status)])
    async with new(tinybird, token="p.client") as client:
        assert await client.send(numbered([1])) == Buffered()
        await asyncio.sleep(3)
        assert client.destination.buffered_rows() == 0
        (letter,) = client.pipeline.surroundings.letters.select()
        assert (letter.reason, letter.client_told) == (reason, False)
        assert imbalances(client.pipeline) == []


async def test_requests_that_come_while_the_first_one_is_out_are_promised() -> None:
    tinybird = FakeUpstream(then=after(0.5, 200))
    async with new(tinybird, token="p.client") as client:
        first = client.post(numbered([1]))
        await asyncio.sleep(0.1)
        assert client.offer(numbered([2])) is None
        assert (ledger(client).accepted, client.destination.held()[0]) == (1, 2)
        assert await first == Confirmed(1, 0)
        await asyncio.sleep(3)
        assert batches(tinybird) == [[1], [2]]
        assert imbalances(client.pipeline) == []


async def test_what_was_promised_while_a_refused_contact_was_out_is_kept_and_probed() -> None:
    tinybird = FakeUpstream(then=after(0.5, 403))
    async with new(tinybird, token="p.client") as client:
        first = client.post(numbered([1]))
        await asyncio.sleep(0.1)
        assert client.offer(numbered([2])) is None
        second = client.post(numbered([3]), wait=True)
        assert isinstance(await first, NotTaken)
        assert await second == Buffered()
        assert (ledger(client).accepted, client.destination.held()[0]) == (2, 2)
        assert imbalances(client.pipeline) == []
        tinybird.will(then=200)
        await asyncio.sleep(61)
        assert numbers_of(tinybird.taken()) == [2, 3]
        assert client.offer(numbered([4])) is None


async def test_the_first_rows_that_tinybird_takes_end_a_refusal_although_others_still_wait() -> None:
    tinybird = FakeUpstream(then=after(0.5, 403))
    async with new(tinybird, Setup(batch_rows=1), token="p.client") as client:
        first = client.post(numbered([1]))
        await asyncio.sleep(0.1)
        assert client.offer(numbered([2, 3, 4])) is None
        assert isinstance(await first, NotTaken)
        tinybird.will(after(2, 200), then=after(10, 200))
        await asyncio.sleep(61)
        assert isinstance(client.offer(numbered([5])), Refusal)
        await asyncio.sleep(2)
        assert client.destination.buffered_rows() == 2
        assert client.offer(numbered([5])) is None
        await asyncio.sleep(30)
        assert ledger(client).delivered == 4


async def test_a_client_that_leaves_during_the_first_contact_takes_nothing_back() -> None:
    tinybird = FakeUpstream(then=after(0.5, 200))
    async with new(tinybird, token="p.client") as client:
        first = client.post(numbered([1]))
        await asyncio.sleep(0.1)
        first.cancel()
        await asyncio.sleep(1)
        assert (ledger(client).accepted, ledger(client).delivered) == (1, 1)
        assert imbalances(client.pipeline) == []


async def test_a_client_that_left_before_its_contact_was_refused_has_its_rows_held() -> None:
    tinybird = FakeUpstream(then=after(0.5, 403))
    async with new(tinybird, token="p.client") as client:
        first = client.post(numbered([1]))
        await asyncio.sleep(0.1)
        first.cancel()
        await asyncio.sleep(1)
        assert (ledger(client).accepted, client.destination.buffered_rows()) == (1, 1)
        assert imbalances(client.pipeline) == []


async def test_a_contact_that_nobody_listens_to_is_promised_with_its_verdict() -> None:
    tinybird = FakeUpstream(then=after(4, 200))
    async with new(tinybird, token="p.client") as client:
        assert isinstance(client.offer(numbered([1])), Waiting)  # and its client is gone before it could listen
        await asyncio.sleep(5)
        assert (ledger(client).accepted, ledger(client).delivered) == (1, 1)
        assert imbalances(client.pipeline) == []


async def test_a_first_contact_cut_off_by_the_end_of_the_process_was_never_accepted() -> None:
    tinybird = FakeUpstream(then=hang())
    async with new(tinybird, token="p.client") as client:
        first = client.post(numbered([1]))
        await asyncio.sleep(0.5)
    assert await first == Dropped()
    assert ledger(client) == Ledger()
    assert imbalances(client.pipeline) == []


@pytest.mark.parametrize("status", [401, 403])
async def test_our_own_token_that_is_refused_at_first_is_a_hold_and_the_rows_are_kept(status: int) -> None:
    tinybird = FakeUpstream(then=after(0.2, status))
    async with new(tinybird) as client:
        assert await client.send(numbered([1])) == Buffered()
        assert client.offer(numbered([2])) is None
        assert (client.destination.facts().state, ledger(client).accepted) == (State.HELD, 2)
        tinybird.will(then=200)
        await asyncio.sleep(62)
        assert ledger(client).delivered == 2


async def test_a_data_source_that_never_took_a_row_and_is_unknown_is_refused_with_our_own_token_too() -> None:
    tinybird = FakeUpstream(then=reply(404, {"error": "hist is not a data source"}))
    async with new(tinybird) as client:
        assert await client.send(numbered([1])) == NotTaken(404, "hist is not a data source")
        assert client.offer(numbered([2])) == Refusal(404, "refused_by_tinybird", "hist is not a data source")
        assert ledger(client) == Ledger()
        assert imbalances(client.pipeline) == []
        client.pipeline.probe_all()
        tinybird.will(then=200)
        assert await client.send(numbered([3])) == Confirmed(1, 0)


async def test_a_data_source_that_took_rows_and_is_unknown_now_is_held() -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(404)
        client.offer(numbered([1]))
        await asyncio.sleep(2)
        assert client.destination.facts().state is State.HELD
        assert client.offer(numbered([2])) is None
        assert ledger(client).dropped == {}


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_clients_confirmed_token_that_is_refused_is_held(status: int) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, token="p.client") as client:
        tinybird.will(status)
        client.offer(numbered([1]))
        await asyncio.sleep(2)
        assert client.destination.facts().state is State.HELD
        assert client.offer(numbered([2])) is None
        await asyncio.sleep(70)
        assert ledger(client).delivered == 3


async def test_during_an_outage_first_contacts_refuse_nobody_and_keep_everything() -> None:
    tinybird = FakeUpstream(then=unreachable())
    async with new(tinybird) as client:
        assert await client.send(numbered([0])) == Buffered()
        for number in range(1, 50):
            assert client.offer(numbered([number])) is None
            await asyncio.sleep(1)
        tinybird.forget()
        tinybird.will(then=200)
        await asyncio.sleep(60)
        assert batches(tinybird) == [[0], list(range(1, 50))]


# What is logged.


def warnings(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
    """The beginning of each warning, and the rows it speaks of."""
    return [
        (record.getMessage().split(":")[0].split(";")[0], record.__dict__["fields"]["rows"])
        for record in caplog.records
        if record.name == "tinybird_proxy.destination" and record.levelname == "WARNING"
    ]


async def test_trouble_is_told_when_it_begins_and_when_it_gets_worse_and_not_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "tinybird_proxy")
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.will(503, 503, 503, 403, 403, 200)
        client.offer(numbered([1, 2]))
        await asyncio.sleep(300)
        assert warnings(caplog) == [("a destination is not delivering", 2), ("a destination is held", 2)]
        assert "a destination delivers again" in caplog.messages


async def test_rows_of_a_first_contact_that_are_kept_are_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    for step, words in ((503, "a destination is not delivering"), (402, "a destination is held")):
        caplog.clear()
        async with new(FakeUpstream([step]), token="p.client") as client:
            await client.send(numbered([1, 2]))
        assert warnings(caplog) == [(words, 2)]


async def test_the_log_does_not_claim_to_keep_what_was_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    async with new(FakeUpstream(then=403), token="p.client") as client:
        await client.send(numbered([1, 2]))
    assert warnings(caplog) == [("Tinybird refuses a destination's first rows", 0)]
    assert "p.client" not in caplog.text


@pytest.mark.parametrize(("step", "words"), [(reply(200, b"OK"), "somebody has to act"), (402, "probed each minute")])
async def test_the_log_says_whether_a_hold_is_probed(
    step: Script, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird) as client:
        tinybird.counts_seen = False  # as if this URL had never answered like Tinybird
        tinybird.will(step)
        client.offer(numbered([1]))
        await asyncio.sleep(2)
    assert words in caplog.text


async def test_quarantined_rows_are_told_at_intervals_with_their_number(caplog: pytest.LogCaptureFixture) -> None:
    tinybird = FakeUpstream()
    async with delivering(tinybird, Setup(flush_interval_s=0.0)) as client:
        tinybird.will(then=quarantining(1))
        for number in range(23):
            client.offer(numbered([number, -number]))
            await asyncio.sleep(1)
    assert warnings(caplog) == [("Tinybird put rows into quarantine", rows) for rows in (1, 10, 10)]


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
