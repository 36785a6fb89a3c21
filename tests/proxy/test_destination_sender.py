"""When batches leave a destination, in simulated time: full, after their interval, and during an outage."""

import asyncio
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from tests.proxy.simulated import batches, delivering, ledger, new, times

from tinybird_proxy.testing.fake_upstream import FakeUpstream, Script, after, hang, reply
from tinybird_proxy.testing.pipelines import Setup, imbalances, numbered, numbers_of

pytestmark = pytest.mark.looptime(idle_timeout=1)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


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
