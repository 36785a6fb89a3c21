"""The pipeline in simulated time: room, neighbours, and figures over all destinations."""

import asyncio
import random
from collections.abc import Iterator

import pytest
from blockbuster import blockbuster_ctx
from tests.proxy.simulated import now, running

from tinybird_proxy.admission import RETRY_AFTER_NOT_DELIVERING_S, Occupancy, Refusal
from tinybird_proxy.testing.fake_upstream import FakeUpstream, Known, after, broken, hang, reply, unreachable
from tinybird_proxy.testing.pipelines import Client, Setup, confirmed, imbalances, numbered, numbers_of
from tinybird_proxy.ticket import Confirmed
from tinybird_proxy.waiting import Waiting

pytestmark = pytest.mark.looptime(idle_timeout=1)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


# Room.


async def test_a_full_buffer_refuses_with_503_and_says_when_to_come_back() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(buffer_rows=100)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        assert hits.offer(numbered(range(100))) is None
        assert hits.offer(numbered(range(10))) is None  # the headroom of who delivers
        refusal = hits.offer(numbered([1]))
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.reason) == (503, "buffer_full")
        assert refusal.retry_after_s is not None
        assert 1 <= refusal.retry_after_s <= 60
        assert hits.destination.ledger.accepted == 1 + 110
        await asyncio.sleep(2)
        assert hits.offer(numbered([1])) is None
        await asyncio.sleep(2)
        assert pipeline.surroundings.buffer.occupancy == Occupancy()
        assert imbalances(pipeline) == []


async def test_bytes_fill_the_buffer_as_rows_do() -> None:
    item = numbered([1], padding=80)
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(buffer_bytes=10 * (len(item.body) + 1))) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        answers = [hits.offer(item) for _ in range(12)]
        assert answers[:11] == [None] * 11
        assert isinstance(answers[11], Refusal)
        assert answers[11].status == 503


async def test_who_does_not_deliver_may_use_what_is_free_and_then_gets_429() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(buffer_rows=100)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(then=403)
        for number in range(100):
            assert hits.offer(numbered([number])) is None
            await asyncio.sleep(0.1)
        refusal = hits.offer(numbered([100]), wait=True)
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.reason) == (429, "share")
        assert refusal.retry_after_s == RETRY_AFTER_NOT_DELIVERING_S
        assert pipeline.buffered_rows() == 100
        assert imbalances(pipeline) == []


async def test_one_that_does_not_deliver_cannot_shut_out_one_that_does() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(buffer_rows=100)) as pipeline:
        good, bad = await confirmed(pipeline, "good", "bad")
        tinybird.will(then=403, name="bad")
        bad.offer(numbered([0]))
        await asyncio.sleep(2)
        bad.offer(numbered(range(1, 100)))
        assert isinstance(bad.offer(numbered([100])), Refusal)
        for number in range(50):
            assert good.offer(numbered([number, -number])) is None
            await asyncio.sleep(1)
        await asyncio.sleep(1)
        assert good.destination.ledger.delivered == 101


async def test_a_request_that_could_never_fit_is_refused_with_413() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(buffer_rows=10, buffer_bytes=10_000)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        for rows in (numbered(range(11)), numbered([1], padding=20_000)):
            refusal = hits.offer(rows)
            assert isinstance(refusal, Refusal)
            assert (refusal.status, refusal.reason, refusal.retry_after_s) == (413, "too_large", None)


async def test_what_is_refused_leaves_no_trace_in_the_ledger() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(buffer_rows=10)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        hits.offer(numbered(range(11)))
        hits.offer(numbered(range(10)))
        hits.offer(numbered(range(10)))
        meters = pipeline.surroundings.meters
        assert (pipeline.ledger().accepted, meters.requests_accepted) == (11, 2)
        assert imbalances(pipeline) == []


async def test_the_time_to_come_back_follows_from_the_rate_of_delivery() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(buffer_rows=1000, batch_rows=100)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        tinybird.will(then=after(8, 200))
        for _ in range(60):
            hits.offer(numbered(range(100)))
            await asyncio.sleep(1)
        tinybird.will(then=hang())
        refusal = [hits.offer(numbered(range(100))) for _ in range(12)][-1]
        assert isinstance(refusal, Refusal)
        assert refusal.retry_after_s is not None
        assert 1 <= refusal.retry_after_s <= 5


async def test_all_unconfirmed_tokens_together_may_use_a_twentieth() -> None:
    tinybird = FakeUpstream(then=hang())
    async with running(tinybird, Setup(buffer_rows=1000)) as pipeline:
        taken = 0
        for number in range(20):
            offered = Client(pipeline, token=f"p.{number}").offer(numbered(range(10)))
            if isinstance(offered, Refusal):
                assert (offered.status, offered.reason) == (429, "unconfirmed_share")
            else:
                taken += 1
        assert taken == 5
        own = Client(pipeline)
        assert not isinstance(own.offer(numbered(range(500))), Refusal)
        assert imbalances(pipeline) == []


async def test_an_unconfirmed_token_may_always_send_one_body_of_the_largest_size() -> None:
    tinybird = FakeUpstream(then=hang())
    async with running(tinybird, Setup(buffer_bytes=12_000, max_body_bytes=10_000)) as pipeline:
        client = Client(pipeline, token="p.client")
        assert not isinstance(client.offer(numbered([1], padding=9_000)), Refusal)
        assert isinstance(client.offer(numbered([2], padding=9_000)), Refusal)


async def test_what_a_confirmed_token_holds_no_longer_counts_as_unconfirmed() -> None:
    tinybird = FakeUpstream([after(0.5, 200)], then=hang())
    async with running(tinybird, Setup(buffer_rows=1000)) as pipeline:
        client, other = Client(pipeline, token="p.client"), Client(pipeline, token="p.other")
        first = client.post(numbered(range(25)))
        assert client.offer(numbered(range(25))) is None
        assert isinstance(other.offer(numbered([1])), Refusal)
        assert await first == Confirmed(25, 0)
        occupancy = pipeline.surroundings.buffer.occupancy
        assert (occupancy.row_count, occupancy.unconfirmed_row_count) == (25, 0)
        assert isinstance(other.offer(numbered([1])), Waiting)
        assert client.offer(numbered(range(900))) is None
        assert imbalances(pipeline) == []


# Neighbours.

BAD: list[Known] = [hang(), 503, 500, reply(429, Retry_After="20"), 403, 400, unreachable(), broken(), after(50, 200)]


async def delivery_times(bad: Known | None, *, count: int = 1) -> list[float]:
    """When rows of a good destination reach Tinybird, beside ``count`` bad neighbours."""
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(batch_rows=5)) as pipeline:
        (good,) = await confirmed(pipeline, "good")
        neighbours = []
        if bad is not None:
            neighbours = await confirmed(pipeline, *(f"bad-{number}" for number in range(count)))
            tinybird.will(then=lambda attempt: 200 if attempt.name == "good" else bad)
        chance = random.Random(1)
        for number in range(100):
            for neighbour in neighbours:
                neighbour.offer(numbered([number]))
            good.offer(numbered([number]))
            await asyncio.sleep(chance.random())
        await asyncio.sleep(5)
        assert numbers_of(tinybird.taken("good")) == list(range(100))
        return [attempt.at for attempt in tinybird.of("good")]


@pytest.mark.parametrize("bad", BAD, ids=repr)
async def test_a_slow_or_failing_destination_does_not_delay_another(bad: Known) -> None:
    began = now()
    alone = await delivery_times(None)
    between = now()
    beside = await delivery_times(bad)
    assert [at - began for at in alone] == pytest.approx([at - between for at in beside], abs=1e-4)


async def test_three_hundred_hanging_destinations_delay_nobody() -> None:
    began = now()
    alone = await delivery_times(None)
    between = now()
    beside = await delivery_times(hang(), count=300)
    assert [at - began for at in alone] == pytest.approx([at - between for at in beside], abs=1e-4)


async def test_items_of_different_destinations_are_never_merged() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird) as pipeline:
        mine, theirs = Client(pipeline, "hits", token="p.one"), Client(pipeline, "hits", token="p.two")
        await mine.confirm()
        await theirs.confirm()
        tinybird.forget()
        mine.offer(numbered([1]))
        theirs.offer(numbered([2]))
        await asyncio.sleep(2)
        assert {(attempt.token, *numbers_of(attempt.rows)) for attempt in tinybird.attempts} == {
            ("p.one", 1),
            ("p.two", 2),
        }


# What others want to know.


async def test_figures_over_all_destinations() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird) as pipeline:
        assert (pipeline.buffered_rows(), pipeline.oldest_age_s(), pipeline.seconds_to_drain()) == (0, None, 0.0)
        one, two = await confirmed(pipeline, "one", "two")
        tinybird.will(then=hang())
        one.offer(numbered([1]))
        await asyncio.sleep(40)
        two.offer(numbered([1, 2]))
        assert (pipeline.buffered_rows(), pipeline.oldest_age_s()) == (3, 40.0)
        await asyncio.sleep(3600)
        assert pipeline.seconds_to_drain() is None
        assert [facts.data_source for facts in pipeline.facts()] == ["one", "two"]
        assert pipeline.check_ledger() == 0


async def test_an_imbalance_is_found_and_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async with running(FakeUpstream()) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        hits.destination.ledger.accepted += 2
        assert pipeline.check_ledger() == 2
        hits.destination.ledger.accepted -= 5
        assert pipeline.check_ledger() == 3
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


async def test_time_to_drain_follows_from_the_rate_of_delivery() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, Setup(flush_interval_s=0.0)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        for _ in range(100):
            hits.offer(numbered(range(100)))
            await asyncio.sleep(1)
        tinybird.will(then=hang())
        hits.offer(numbered(range(500)))
        assert pipeline.seconds_to_drain() == pytest.approx(5, abs=0.5)
