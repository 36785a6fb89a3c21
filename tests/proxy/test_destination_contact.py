"""The first item of a destination, in simulated time: promised when Tinybird takes it, and not taken if it does not."""

import asyncio
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from tests.proxy.simulated import batches, delivering, ledger, name_of, new, times

from tinybird_proxy.admission import Refusal
from tinybird_proxy.ledger import Ledger
from tinybird_proxy.pacing import State
from tinybird_proxy.testing.fake_upstream import FakeUpstream, Script, after, broken, hang, reply, unreachable
from tinybird_proxy.testing.pipelines import Setup, imbalances, numbered, numbers_of
from tinybird_proxy.ticket import Buffered, Confirmed, Dropped, NotTaken, Refused
from tinybird_proxy.waiting import Waiting

pytestmark = pytest.mark.looptime(idle_timeout=1)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


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
