"""What requests hear that wait for the fate of their rows, and for how long they wait, in simulated time."""

import asyncio
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from tests.proxy.simulated import delivering, held, ledger

from tinybird_proxy.testing.fake_upstream import FakeUpstream, Known, after, broken, counts, hang, quarantining, reply
from tinybird_proxy.testing.pipelines import Setup, imbalances, numbered, numbers_of
from tinybird_proxy.ticket import Buffered, Confirmed, Dropped
from tinybird_proxy.waiting import Waiting

pytestmark = pytest.mark.looptime(idle_timeout=1)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


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
