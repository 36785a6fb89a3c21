"""The end of a pipeline in simulated time, and a buffer that is emptied without an end."""

import asyncio
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from tests.proxy.simulated import Reports, now, running

from tinybird_proxy.admission import Occupancy
from tinybird_proxy.ledger import Ledger
from tinybird_proxy.pipeline import STOPPING, Pipeline
from tinybird_proxy.testing.fake_upstream import (
    FakeUpstream,
    Script,
    after,
    broken,
    connecting,
    hang,
    reply,
    unreachable,
)
from tinybird_proxy.testing.pipelines import Client, Setup, confirmed, imbalances, numbered, numbers_of
from tinybird_proxy.ticket import Confirmed, Dropped, NotTaken

pytestmark = pytest.mark.looptime(idle_timeout=1)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


# The end.


async def drain(pipeline: Pipeline, seconds: float = 25.0, stop_now: asyncio.Event | None = None) -> Reports:
    reports = Reports()
    await pipeline.drain(now() + seconds, stop_now=stop_now or asyncio.Event(), report=reports)
    return reports


async def test_a_drain_sends_everything_at_once() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(flush_interval_s=60.0, batch_rows=5)) as pipeline:
        some = await confirmed(pipeline, "a", "b", "c")
        for client in some:
            client.offer(numbered(range(8)))
        began = now()
        reports = await drain(pipeline)
        assert now() - began < 0.1
        assert len(tinybird.taken()) == 24
        assert reports.heard[0][1] == 24
        assert reports.heard[-1][1] == 0
        assert pipeline.surroundings.meters.batches["drain"] == 3
    assert pipeline.ledger().dropped == {}
    assert imbalances(pipeline) == []


async def test_a_drain_of_nothing_ends_at_once_and_reports_it() -> None:
    async with running(FakeUpstream()) as pipeline:
        assert (await drain(pipeline)).heard == [(0.0, 0)]


async def test_a_drain_reports_at_once_after_each_settle_and_every_two_seconds() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(batch_rows=1)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(after(3, 200), after(3.5, 200), after(9, 200))
        hits.offer(numbered([1, 2, 3]))
        reports = await drain(pipeline)
        assert reports.heard == [(0.0, 3), (2.0, 3), (3.0, 2), (3.5, 1), (5.5, 1), (7.5, 1), (9.0, 0)]


@pytest.mark.parametrize("step", [503, reply(429, Retry_After="300"), unreachable()], ids=repr)
async def test_no_pause_outlasts_the_deadline_of_a_drain(step: Script) -> None:
    tinybird = FakeUpstream()
    async with running(tinybird) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(*[step] * 8, then=200)
        hits.offer(numbered([1]))
        await asyncio.sleep(120)
        tinybird.will(then=200)
        began = now()
        await drain(pipeline)
        assert now() - began <= 20.1
        assert hits.destination.ledger.delivered == 2


async def test_an_outage_that_ends_before_the_deadline_costs_nothing() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(then=lambda attempt: 503 if attempt.at < 60 + 19.5 else 200)
        hits.offer(numbered(range(10)))
        await asyncio.sleep(60)
        await drain(pipeline)
    assert (pipeline.ledger().delivered, pipeline.ledger().dropped) == (11, {})


@pytest.mark.parametrize("step", [403, 508, 402], ids=repr)
async def test_a_hold_is_probed_at_once_by_a_drain(step: Script) -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(flush_interval_s=0.0)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(step, then=200)
        hits.offer(numbered([1]))
        await asyncio.sleep(10)
        hits.offer(numbered([2]))
        began = now()
        await drain(pipeline)
        assert now() - began < 0.1
        assert numbers_of(tinybird.taken()) == [1, 2]


async def test_a_hold_that_stays_is_dropped_at_the_deadline_and_hardly_probed() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(flush_interval_s=0.0)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(then=403)
        hits.offer(numbered([1, 2]))
        await asyncio.sleep(10)
        tinybird.forget()
        began = now()
        await drain(pipeline)
        assert now() - began == pytest.approx(25, abs=0.01)
        assert len(tinybird.attempts) <= 2  # at once, and once more before the deadline
    assert pipeline.ledger().dropped == {"shutdown": 2}
    assert imbalances(pipeline) == []


async def test_what_a_drain_leaves_is_dropped_with_its_reason_and_those_who_wait_hear_it() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(batch_rows=2, concurrency=2)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(then=hang())
        waiting = [hits.post(numbered([number]), wait=True) for number in range(5)]
        await asyncio.sleep(2)
        began = now()
        reports = await drain(pipeline, 10)
        assert now() - began == pytest.approx(10, abs=0.01)
        assert reports.heard[-1][1] == 5
    assert await asyncio.gather(*waiting) == [Dropped()] * 5
    assert pipeline.ledger().dropped == {"in_doubt": 4, "shutdown": 1}
    assert pipeline.surroundings.buffer.occupancy == Occupancy()
    assert imbalances(pipeline) == []


async def test_an_attempt_that_has_no_connection_yet_leaves_nothing_in_doubt() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(batch_rows=2, concurrency=2)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(hang(), then=connecting())
        for number in range(5):
            hits.offer(numbered([number]))
        await drain(pipeline, 10)
    assert pipeline.ledger().dropped == {"in_doubt": 2, "shutdown": 3}
    assert pipeline.ledger().ambiguous == 0
    assert imbalances(pipeline) == []


async def test_a_batch_that_may_have_arrived_is_in_doubt_although_it_is_not_in_flight() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(broken(takes=True), then=unreachable())
        hits.offer(numbered([1]))
        await asyncio.sleep(2)
        hits.offer(numbered([2, 3]))
        await drain(pipeline, 10)
    assert pipeline.ledger().dropped == {"in_doubt": 1, "shutdown": 2}


async def test_a_second_signal_ends_a_drain_at_once() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(then=hang())
        hits.offer(numbered([1]))
        stop_now = asyncio.Event()
        asyncio.get_running_loop().call_later(3.3, stop_now.set)
        began = now()
        await drain(pipeline, 25, stop_now)
        assert now() - began == pytest.approx(3.3, abs=0.01)
    assert pipeline.ledger().dropped == {"in_doubt": 1}


async def test_a_first_contact_that_is_out_when_the_drain_begins_gets_its_answer() -> None:
    tinybird = FakeUpstream(then=after(0.5, 200))
    async with running(tinybird) as pipeline:
        first = Client(pipeline, token="p.client").post(numbered([1]))
        await asyncio.sleep(0.1)
        await drain(pipeline)
        assert await first == Confirmed(1, 0)


async def test_a_first_contact_that_is_refused_lets_a_drain_end() -> None:
    tinybird = FakeUpstream(then=after(0.5, 403))
    async with running(tinybird) as pipeline:
        first = Client(pipeline, token="p.client").post(numbered([1]))
        await asyncio.sleep(0.1)
        await drain(pipeline)
        assert now() == pytest.approx(0.5, abs=0.01)
        assert isinstance(await first, NotTaken)
    assert pipeline.ledger() == Ledger()


async def test_nothing_is_promised_once_a_drain_has_begun_or_the_pipeline_has_ended() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        both = (hits, Client(pipeline, "new"))
        tinybird.will(after(5, 200))
        hits.offer(numbered([1]))
        draining = asyncio.create_task(drain(pipeline))
        await asyncio.sleep(1)
        assert [client.offer(numbered([2]), wait=True) for client in both] == [STOPPING, STOPPING]
        await draining
    assert [client.offer(numbered([3])) for client in both] == [STOPPING, STOPPING]
    assert (STOPPING.status, STOPPING.retry_after_s) == (503, 1)
    assert (pipeline.ledger().accepted, pipeline.ledger().delivered, imbalances(pipeline)) == (2, 2, [])


# Emptied on request, without an end.


async def test_what_is_open_leaves_at_once_when_nothing_more_is_to_come_and_waits_for_company_again_later() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(flush_interval_s=3600.0)) as pipeline:
        one, two, three = await confirmed(pipeline, "one", "two", "three")
        for client in (one, two, three):
            client.offer(numbered(range(10)))
        await asyncio.sleep(60)
        assert pipeline.buffered_rows() == 30
        pipeline.flush_at_once(True)
        await asyncio.sleep(0.01)
        assert (pipeline.buffered_rows(), len(tinybird.attempts)) == (0, 3)
        assert pipeline.surroundings.meters.batches["drain"] == 3
        # A destination that becomes known meanwhile is no exception.
        four = Client(pipeline, "four")
        await four.confirm()
        four.offer(numbered([1]))
        await asyncio.sleep(0.01)
        assert pipeline.buffered_rows() == 0
        pipeline.flush_at_once(False)
        for client in (one, four):
            client.offer(numbered([11]))
        await asyncio.sleep(3599)
        assert pipeline.buffered_rows() == 2
        await asyncio.sleep(1.1)
        assert (pipeline.buffered_rows(), imbalances(pipeline)) == (0, [])


async def test_a_buffer_is_emptied_as_fast_as_tinybird_takes_it() -> None:
    """Sixty batches, each answered after a second, sixteen at a time: four rounds, and none waits for the interval."""
    tinybird = FakeUpstream()
    setup = Setup(flush_interval_s=3600.0, batch_rows=10, rate=1000.0, concurrency=16)
    async with running(tinybird, setup) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(then=after(1, 200))
        for number in range(60):
            hits.offer(numbered(range(9)) if number == 59 else numbered(range(10)))
        pipeline.flush_at_once(True)
        left = [pipeline.buffered_rows()]
        for _ in range(4):
            await asyncio.sleep(1.02)
            left.append(pipeline.buffered_rows())
        assert left == [599, 439, 279, 119, 0]


async def test_what_tinybird_does_not_take_stays_through_an_emptying_and_leaves_when_it_does() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(flush_interval_s=3600.0)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(then=503)
        hits.offer(numbered([1, 2]))
        pipeline.flush_at_once(True)
        await asyncio.sleep(600)
        assert pipeline.buffered_rows() == 2
        assert pipeline.ledger().dropped == {}
        tinybird.will(then=200)
        await asyncio.sleep(31)
        assert (pipeline.buffered_rows(), pipeline.ledger().delivered) == (0, 3)
