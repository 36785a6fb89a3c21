"""The destinations that are known and their tasks, in simulated time: how many there may be, and a sender that dies."""

import asyncio
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from tests.proxy.simulated import FragileBuffer, running

from tinybird_proxy.admission import Refusal
from tinybird_proxy.batch import FrozenBatch, Payload
from tinybird_proxy.buffer import MemoryBuffer
from tinybird_proxy.testing.fake_upstream import FakeUpstream, after, hang
from tinybird_proxy.testing.pipelines import Client, Setup, compress, confirmed, imbalances, numbered, numbers_of
from tinybird_proxy.ticket import Buffered, Confirmed

pytestmark = pytest.mark.looptime(idle_timeout=1)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


# Many destinations.


async def test_an_idle_destination_makes_room_for_a_new_one_and_its_ledger_is_kept() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(max_destinations=3)) as pipeline:
        for number in range(10):
            await Client(pipeline, f"ds{number}").send(numbered(range(number + 1)))
            await asyncio.sleep(1)
        assert [destination.key.name for destination in pipeline.destinations()] == ["ds7", "ds8", "ds9"]
        assert (pipeline.ledger().accepted, pipeline.ledger().delivered) == (55, 55)
        assert imbalances(pipeline) == []


async def test_the_idle_destination_that_was_not_used_for_longest_is_forgotten() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(max_destinations=3)) as pipeline:
        first, _, _ = await confirmed(pipeline, "first", "second", "third")
        await asyncio.sleep(1)
        first.offer(numbered([1]))
        await asyncio.sleep(2)
        await Client(pipeline, "fourth").confirm()
        assert [destination.key.name for destination in pipeline.destinations()] == ["first", "third", "fourth"]


async def test_a_destination_that_holds_rows_is_never_forgotten_and_new_ones_get_503() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(max_destinations=2)) as pipeline:
        one, two = await confirmed(pipeline, "one", "two")
        tinybird.will(then=hang())
        one.offer(numbered([1]))
        two.offer(numbered([2]))
        refusal = Client(pipeline, "three").offer(numbered([3]))
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.reason) == (503, "destinations")
        assert refusal.retry_after_s is not None
        assert 1 <= refusal.retry_after_s <= 60
        assert one.offer(numbered([4])) is None
        assert pipeline.buffered_rows() == 3


async def test_a_first_contact_that_is_out_keeps_its_destination() -> None:
    tinybird = FakeUpstream(then=after(0.5, 200))
    async with running(tinybird, Setup(max_destinations=1)) as pipeline:
        first = Client(pipeline, "first", token="p.client").post(numbered([1]))
        await asyncio.sleep(0.1)
        assert isinstance(Client(pipeline, "second").offer(numbered([2])), Refusal)
        assert await first == Confirmed(1, 0)


async def test_a_forgotten_destination_that_comes_back_begins_anew() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(max_destinations=1)) as pipeline:
        await confirmed(pipeline, "first", "second")
        first = Client(pipeline, "first")
        assert await first.send(numbered([1])) == Confirmed(1, 0)
        assert first.destination.ledger.accepted == 1
        assert pipeline.ledger().accepted == 3


# A sender that dies.


async def test_a_sender_that_dies_before_it_sends_is_restarted_and_its_rows_are_delivered() -> None:
    tinybird, buffer = FakeUpstream(), FragileBuffer()
    async with running(tinybird, Setup(buffer=buffer)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        for number in range(3):
            buffer.freezing = 1
            waiting = hits.post(numbered([number]), wait=True)
            await asyncio.sleep(1.1)
            hits.offer(numbered([-number]))
            assert await waiting == Confirmed(1, 0)
        await asyncio.sleep(5)
        assert numbers_of(tinybird.taken()) == [0, 0, 1, -1, 2, -2]
        assert pipeline.surroundings.meters.sender_restarts == 3
        assert imbalances(pipeline) == []


async def test_a_sender_that_dies_while_requests_are_out_keeps_their_rows_as_ambiguous() -> None:
    tinybird, buffer = FakeUpstream(), FragileBuffer()
    async with running(tinybird, Setup(buffer=buffer, batch_rows=1)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(after(1, 200), after(2, 200), after(2, 200), then=200)
        buffer.recording = 1
        hits.offer(numbered([1, 2, 3]))
        await asyncio.sleep(10)
        assert pipeline.surroundings.meters.sender_restarts == 1
        assert sorted(set(numbers_of(tinybird.taken()))) == [1, 2, 3]
        assert (hits.destination.ledger.delivered, hits.destination.ledger.ambiguous) == (4, 3)
        assert imbalances(pipeline) == []


class UnwillingBuffer(MemoryBuffer):
    """Is never done recording, and fails when it is to stop."""

    async def record_outcome(self, batch: FrozenBatch) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise OSError(5, "by script") from None


async def test_a_sender_that_dies_of_being_cancelled_lets_the_pipeline_end() -> None:
    async with asyncio.timeout(60):
        async with running(FakeUpstream(), Setup(buffer=UnwillingBuffer())) as pipeline:
            assert await Client(pipeline).send(numbered([1])) == Buffered()
    assert pipeline.ledger().dropped == {"in_doubt": 1}
    assert imbalances(pipeline) == []


async def test_a_sender_that_dies_does_not_disturb_the_others() -> None:
    tinybird, buffer = FakeUpstream(), FragileBuffer()
    async with running(tinybird, Setup(buffer=buffer)) as pipeline:
        good, bad = await confirmed(pipeline, "good", "bad")
        buffer.freezing = 1
        bad.offer(numbered([1]))
        await asyncio.sleep(0.1)
        good.offer(numbered([2]))
        await asyncio.sleep(1.2)
        assert numbers_of(tinybird.taken()) == [2]
        await asyncio.sleep(1)
        assert numbers_of(tinybird.taken()) == [2, 1]


async def test_rows_that_cannot_be_compressed_are_kept_and_tried_again() -> None:
    failures = [MemoryError(), MemoryError()]

    async def reluctant(bodies: list[bytes]) -> Payload:
        if failures:
            raise failures.pop()
        return await compress(bodies)

    tinybird = FakeUpstream()
    async with running(tinybird, Setup(compress=reluctant)) as pipeline:
        hits = Client(pipeline)
        assert await hits.send(numbered([1])) == Buffered()
        await asyncio.sleep(5)
        assert numbers_of(tinybird.taken()) == [1]
        assert pipeline.surroundings.meters.internal_errors == 2
