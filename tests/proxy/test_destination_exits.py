"""How rows leave a destination when Tinybird has answered, in simulated time: by its counts, as far as it gives any."""

import asyncio
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from tests.proxy.simulated import delivering, ledger, new

from tinybird_proxy.pacing import State
from tinybird_proxy.testing.fake_upstream import FakeUpstream, Script, counts, quarantining, reply
from tinybird_proxy.testing.pipelines import imbalances, numbered
from tinybird_proxy.ticket import Buffered

pytestmark = pytest.mark.looptime(idle_timeout=1)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


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
