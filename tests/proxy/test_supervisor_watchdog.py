"""Senders that die or stand still are noticed, ended and begun anew, in simulated time; no others ever are."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
from blockbuster import blockbuster_ctx
from tests.proxy.simulated import FragileBuffer

from tinybird_proxy.pacing import State
from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.supervisor import RESTART_DELAY_S, WATCH_INTERVAL_S
from tinybird_proxy.testing.fake_upstream import FakeUpstream, Script, after, reply, unreachable
from tinybird_proxy.testing.pipelines import Client, Setup, confirmed, imbalances, numbered, numbers_of

pytestmark = pytest.mark.looptime(idle_timeout=1)

# A look that finds a turn due, one that finds it still due, and the new sender's beginning.
NOTICED_S = 2 * WATCH_INTERVAL_S + RESTART_DELAY_S


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


@asynccontextmanager
async def watched(tinybird: FakeUpstream, setup: Setup | None = None) -> AsyncIterator[Pipeline]:
    """A pipeline with its watchdog; in the end nothing is missing anywhere."""
    try:
        async with (setup or Setup()).pipeline(tinybird).running() as pipeline:
            watching = asyncio.create_task(pipeline.supervisor.watch())
            yield pipeline
            assert not watching.done()
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            assert imbalances(pipeline) == []
            assert pipeline.check_ledger() == 0
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # a failed assertion reads better alone


def restarts(pipeline: Pipeline) -> int:
    return pipeline.surroundings.meters.sender_restarts


def lose_wake_ups(client: Client) -> None:
    """From now on the sender waits for an event that nobody sets."""
    client.destination.sender._wake = asyncio.Event()


def errors(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """What was logged at ERROR, and of which data source."""
    return [
        (record.getMessage(), record.__dict__["fields"]["data_source"])
        for record in caplog.records
        if record.levelno >= logging.ERROR
    ]


STANDS_STILL = ("a sender stands still", "hits")
RESTARTED = ("a sender died and is restarted; its rows are kept", "hits")


# Standing still.


async def test_a_sender_that_missed_its_wake_up_is_ended_and_its_rows_are_delivered_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tinybird = FakeUpstream()
    async with watched(tinybird) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        await asyncio.sleep(2)
        lose_wake_ups(hits)
        for number in range(3):
            assert hits.offer(numbered([number])) is None
        await asyncio.sleep(WATCH_INTERVAL_S)
        assert tinybird.attempts == []
        await asyncio.sleep(NOTICED_S)
        assert numbers_of(tinybird.taken()) == [0, 1, 2]
        assert restarts(pipeline) == 1
        assert hits.destination.ledger.ambiguous == 0
        assert errors(caplog) == [STANDS_STILL, RESTARTED]
        assert hits.offer(numbered([3])) is None
        await asyncio.sleep(2)
        assert numbers_of(tinybird.taken()) == [0, 1, 2, 3]
        await asyncio.sleep(600)
        assert restarts(pipeline) == 1


async def test_a_timer_that_never_fires_is_noticed_as_well(caplog: pytest.LogCaptureFixture) -> None:
    tinybird = FakeUpstream()
    async with watched(tinybird) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        await asyncio.sleep(2)
        lose_wake_ups(hits)
        hits.destination.sender._wake.clear()
        hits.destination.sender._next_at = pipeline.surroundings.now() + 100  # as if it slept until then
        await asyncio.sleep(100)
        assert restarts(pipeline) == 0
        await asyncio.sleep(NOTICED_S)
        assert restarts(pipeline) == 1
        assert errors(caplog) == [STANDS_STILL, RESTARTED]


async def test_what_was_in_flight_when_a_sender_is_ended_goes_again_and_is_ambiguous() -> None:
    tinybird = FakeUpstream()
    async with watched(tinybird, Setup(batch_rows=1)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        await asyncio.sleep(2)
        tinybird.will(after(1000, 200), then=200)
        assert hits.offer(numbered([0])) is None
        await asyncio.sleep(2)
        lose_wake_ups(hits)
        assert hits.offer(numbered([1])) is None
        await asyncio.sleep(NOTICED_S + WATCH_INTERVAL_S)
        # The fake had taken the first row before it was asked to answer, as Tinybird may have.
        assert sorted(numbers_of(tinybird.taken())) == [0, 0, 1]
        ledger = hits.destination.ledger
        assert (ledger.delivered, ledger.ambiguous) == (3, 1)
        assert restarts(pipeline) == 1


async def test_one_that_stands_still_does_not_disturb_its_neighbours() -> None:
    tinybird = FakeUpstream()
    async with watched(tinybird) as pipeline:
        hits, clicks = await confirmed(pipeline, "hits", "clicks")
        await asyncio.sleep(2)
        lose_wake_ups(hits)
        assert hits.offer(numbered([0])) is None
        for number in range(30):
            assert clicks.offer(numbered([number])) is None
            await asyncio.sleep(1)
        await asyncio.sleep(2)
        assert numbers_of(tinybird.taken("clicks")) == list(range(30))
        assert numbers_of(tinybird.taken("hits")) == [0]
        assert restarts(pipeline) == 1
        assert clicks.destination.ledger.ambiguous == 0


async def test_a_sender_that_stands_still_again_and_again_is_ended_each_time() -> None:
    tinybird = FakeUpstream()
    async with watched(tinybird) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        await asyncio.sleep(2)
        for number in range(4):
            lose_wake_ups(hits)
            assert hits.offer(numbered([number])) is None
            await asyncio.sleep(NOTICED_S + WATCH_INTERVAL_S)
            assert restarts(pipeline) == number + 1
        assert numbers_of(tinybird.taken()) == [0, 1, 2, 3]


# Dying.


async def test_a_sender_that_died_is_restarted_and_counted_and_its_rows_are_delivered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tinybird, buffer = FakeUpstream(), FragileBuffer()
    async with watched(tinybird, Setup(buffer=buffer, batch_rows=1)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        await asyncio.sleep(2)
        for number in range(3):
            buffer.freezing = 1
            assert hits.offer(numbered([number])) is None
            await asyncio.sleep(30)
            assert restarts(pipeline) == number + 1
        assert sorted(numbers_of(tinybird.taken())) == [0, 1, 2]
        assert hits.destination.ledger.delivered == 4
        assert errors(caplog) == [RESTARTED] * 3


async def test_while_a_dead_sender_waits_to_be_restarted_it_is_not_ended_once_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tinybird, buffer = FakeUpstream(), FragileBuffer()
    async with watched(tinybird, Setup(buffer=buffer)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        await asyncio.sleep(2)
        buffer.recording = 40  # dies with each answer, for longer than several looks of the watchdog
        assert hits.offer(numbered([0])) is None
        await asyncio.sleep(60)
        assert numbers_of(tinybird.taken()) == [0] * 41
        assert errors(caplog) == [RESTARTED] * 40
        assert hits.destination.ledger.ambiguous == 1
        assert hits.destination.buffered_rows() == 0


# Never without reason.


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        pytest.param(200, State.DELIVERING, id="delivering"),
        pytest.param(after(7, 200), State.DELIVERING, id="delivering slowly"),
        pytest.param(after(90, 200), State.DELIVERING, id="delivering very slowly"),
        pytest.param(403, State.HELD, id="held"),
        pytest.param(reply(200, b"no counts"), State.DELIVERING, id="unverified"),
        pytest.param(reply(429, retry_after="300"), State.THROTTLED, id="paused"),
        pytest.param(503, State.FAILING, id="failing"),
        pytest.param(unreachable(), State.FAILING, id="unreachable"),
        pytest.param(400, State.HELD, id="looking for bad rows"),
    ],
)
@pytest.mark.parametrize("every_s", [0.1, 7.0, 60.0])
async def test_a_sender_that_does_what_it_can_is_never_ended(answer: Script, state: State, every_s: float) -> None:
    tinybird = FakeUpstream()
    async with watched(tinybird, Setup(batch_rows=20, buffer_rows=500, rate=5.0, concurrency=3)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(then=answer)
        ends_at = pipeline.surroundings.now() + 600
        number = 0
        while pipeline.surroundings.now() < ends_at:
            hits.offer(numbered(range(number, number + 12)))
            number += 12
            await asyncio.sleep(every_s)
        assert hits.destination.pacing.state is state
        assert restarts(pipeline) == 0
        assert pipeline.surroundings.meters.internal_errors == 0


async def test_idle_senders_are_never_ended_and_neither_are_those_of_forgotten_destinations() -> None:
    tinybird = FakeUpstream()
    async with watched(tinybird, Setup(max_destinations=3)) as pipeline:
        for number in range(9):
            await confirmed(pipeline, f"ds{number}")
            await asyncio.sleep(WATCH_INTERVAL_S * 0.7)
        await asyncio.sleep(3600)
        assert restarts(pipeline) == 0


async def test_a_look_at_the_very_moment_of_a_turn_ends_nothing() -> None:
    """Turns that are due exactly when the watchdog looks, again and again."""
    tinybird = FakeUpstream()
    async with watched(tinybird, Setup(flush_interval_s=WATCH_INTERVAL_S)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        await asyncio.sleep(WATCH_INTERVAL_S - pipeline.surroundings.now() % WATCH_INTERVAL_S)
        for number in range(50):
            hits.offer(numbered([number]))
            await asyncio.sleep(WATCH_INTERVAL_S)
        await asyncio.sleep(2 * WATCH_INTERVAL_S)
        assert numbers_of(tinybird.taken()) == list(range(50))
        assert restarts(pipeline) == 0
