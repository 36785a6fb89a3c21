"""What one destination suffers is not felt by another: delivery times beside every kind of bad neighbour."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from tests.proxy.running import post, running_world, until

from tinybird_proxy.admission import Refusal
from tinybird_proxy.emulator.faults import Fault
from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.testing.fake_upstream import (
    Attempt,
    FakeUpstream,
    Script,
    after,
    hang,
    reply,
    timed_out,
    unreachable,
)
from tinybird_proxy.testing.pipelines import Client, Setup, confirmed, imbalances, numbered, numbers_of

in_simulated_time = pytest.mark.looptime(idle_timeout=1)

GOOD = ("good_1", "good_2", "good_3")
HANGING = tuple(f"hangs_{number}" for number in range(300))
# By data source: what Tinybird says to its rows. Every seventh number is a row that it refuses.
BAD: dict[str, Script] = {
    "held": 403,
    "failing": 500,
    "unreachable": unreachable(),
    "slow": timed_out(60.0),
    "throttled": reply(429, Retry_After="20"),
    "bisected": lambda attempt: 400 if any(number % 7 == 0 for number in numbers_of(attempt.rows)) else 200,
    "too-large": lambda attempt: 413 if len(attempt.rows) > 1 else 200,
    "never-small-enough": 413,
    "all-refused": 400,
    **dict.fromkeys(HANGING, hang()),
}
SECONDS = 90


@asynccontextmanager
async def running(tinybird: FakeUpstream, setup: Setup) -> AsyncIterator[Pipeline]:
    try:
        async with setup.pipeline(tinybird).running() as pipeline:
            yield pipeline
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # a failed assertion reads better alone


def now() -> float:
    return asyncio.get_running_loop().time()


class Flow:
    """Rows of the three good ones at random times, which are the same in every run, and how long each took."""

    def __init__(self, pipeline: Pipeline, tinybird: FakeUpstream) -> None:
        self._clients = [Client(pipeline, name) for name in GOOD]
        self._tinybird = tinybird
        self._offered_at: dict[tuple[str, int], float] = {}
        self.refused = 0

    async def run(self, seconds: float = SECONDS) -> None:
        """One request each at a time, or several at once."""
        chance, ends_at = random.Random(3), now() + seconds
        number = 0
        while now() < ends_at:
            for client in self._clients:
                for _ in range(chance.choice([0, 1, 1, 4])):
                    number += 1
                    if client.offer(numbered([number])) is None:
                        self._offered_at[client.key.name, number] = now()
                    else:
                        self.refused += 1
            await asyncio.sleep(chance.choice([0.01, 0.1, 0.5, 1.3]))
        await asyncio.sleep(3)

    def delays_s(self) -> dict[tuple[str, int], float]:
        """From the promise to Tinybird's answer, of each row. Each has arrived exactly once."""
        found: dict[tuple[str, int], float] = {}
        for name in GOOD:
            for attempt in self._tinybird.of(name):
                for number in numbers_of(attempt.rows):
                    assert attempt.taken
                    assert attempt.ended_at is not None
                    assert (name, number) not in found
                    found[name, number] = attempt.ended_at - self._offered_at[name, number]
        assert found.keys() == self._offered_at.keys()
        return found


def answers(bad: dict[str, Script]) -> Script:
    """Good ones are answered after a moment that their rows decide, bad ones as ``bad`` says."""

    def answer(attempt: Attempt) -> Script:
        if attempt.name in bad:
            return bad[attempt.name]
        return after(0.05 + sum(numbers_of(attempt.rows)) % 10 / 20, 200)

    return answer


async def delays_beside(bad: dict[str, Script], setup: Setup, *, filled_with: str | None = None) -> Flow:
    """A run of the good ones while rows for the bad ones come, as fast; ``filled_with``: who has filled the buffer."""
    tinybird = FakeUpstream()
    async with running(tinybird, setup) as pipeline:
        await confirmed(pipeline, *GOOD)
        neighbours = await confirmed(pipeline, *bad)
        tinybird.will(then=answers(bad))
        if filled_with is not None:
            await fill(Client(pipeline, filled_with), setup.buffer_rows)
        flow = Flow(pipeline, tinybird)
        pressing = asyncio.create_task(press(neighbours))
        await flow.run()
        pressing.cancel()
        assert flow.refused == 0
        assert imbalances(pipeline) == []
        return flow


async def press(neighbours: Sequence[Client]) -> None:
    """Rows for everybody; whether they are taken is their business."""
    number = 0
    while True:
        for client in neighbours:
            number += 1
            client.offer(numbered([number, number + 1, number + 2]))
        await asyncio.sleep(0.7)


async def fill(client: Client, capacity_rows: int) -> None:
    """Offer until the buffer is full and the destination is known not to deliver."""
    client.offer(numbered([0]))
    await asyncio.sleep(2)
    assert not client.destination.delivering
    while not isinstance(client.offer(numbered(range(50))), Refusal):
        pass
    while not isinstance(client.offer(numbered([0])), Refusal):
        pass
    assert client.pipeline.buffered_rows() == capacity_rows


def setup(buffer_rows: int = 200_000) -> Setup:
    return Setup(batch_rows=20, concurrency=4, buffer_rows=buffer_rows)


@in_simulated_time
@pytest.mark.parametrize("who", [*(name for name in BAD if name not in HANGING), "300 hang"])
async def test_delivery_takes_as_long_as_without_bad_neighbours(who: str) -> None:
    bad: dict[str, Script] = dict.fromkeys(HANGING, hang()) if who == "300 hang" else {who: BAD[who]}
    alone = (await delays_beside({}, setup())).delays_s()
    beside = (await delays_beside(bad, setup())).delays_s()
    assert beside == pytest.approx(alone, abs=1e-4)


@in_simulated_time
async def test_all_bad_neighbours_together_delay_nobody() -> None:
    alone = (await delays_beside({}, setup())).delays_s()
    beside = (await delays_beside(BAD, setup())).delays_s()
    assert beside == pytest.approx(alone, abs=1e-4)
    assert len(alone) > 200


# Kinds that are known not to deliver at once. What may still be delivering as far as anybody knows is looked at below.
STUCK = ("held", "failing", "unreachable", "throttled")


@in_simulated_time
@pytest.mark.parametrize("who", STUCK)
async def test_bad_neighbours_that_have_filled_the_buffer_delay_nobody(who: str) -> None:
    """Who delivers has the last tenth, and who does not cannot get at it."""
    alone = (await delays_beside({}, setup(1000))).delays_s()
    flow = await delays_beside({name: BAD[name] for name in STUCK}, setup(1000), filled_with=who)
    assert flow.delays_s() == pytest.approx(alone, abs=1e-4)


def flows(client: Client) -> bool:
    return client.destination.delivering


def offer_until_refused(client: Client) -> None:
    while client.offer(numbered([0])) is None:
        pass


@in_simulated_time
async def test_who_hangs_cannot_take_the_room_that_is_kept_for_those_who_deliver() -> None:
    """Nothing is known of it before its first timeout, and by then it may have sent more than the buffer holds."""
    tinybird = FakeUpstream()
    async with running(tinybird, setup(1000)) as pipeline:
        good, loud = await confirmed(pipeline, "good_1", "loud")
        tinybird.will(then=timed_out(60.0), name="loud")
        offer_until_refused(loud)
        await asyncio.sleep(50)
        assert flows(loud)
        assert good.offer(numbered([1])) is None
        await asyncio.sleep(600)
        assert not flows(loud)
        assert good.offer(numbered([2])) is None
        await asyncio.sleep(2)
        assert numbers_of(tinybird.taken("good_1")) == [1, 2]


@in_simulated_time
async def test_who_sent_more_than_it_could_deliver_and_then_fails_leaves_room_for_others() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, setup(1000)) as pipeline:
        good, loud = await confirmed(pipeline, "good_1", "loud")
        tinybird.will(then=500, name="loud")
        offer_until_refused(loud)
        await asyncio.sleep(5)
        assert not flows(loud)
        assert good.offer(numbered([1])) is None
        await asyncio.sleep(2)
        assert numbers_of(tinybird.taken("good_1")) == [1]


@in_simulated_time
async def test_who_is_alone_may_use_the_last_tenth_whatever_it_holds() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, setup(1000)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        offer_until_refused(hits)
        assert pipeline.buffered_rows() == 1100


# For real: sockets, threads, the emulated Tinybird.


async def test_while_three_hundred_data_sources_hang_three_others_are_delivered_for_real() -> None:
    async with running_world(UPSTREAM_TIMEOUT="60s") as world:
        world.tinybird.set_faults(Fault(row_matches='"stuck"', hang=True))

        def out() -> Counter[str]:
            return Counter({facts.data_source: facts.in_flight for facts in world.proxy.pipeline.facts()})

        firsts = [asyncio.create_task(post(world.port, f"name={name}", b'{"stuck":1}')) for name in HANGING]
        await until(lambda: sum(world.tinybird.faults[0][1:]) == len(HANGING))
        for number in range(10):
            answers = await asyncio.gather(
                *(post(world.port, f"name={name}&wait=true", b'{"n":%d}' % number) for name in GOOD)
            )
            assert [(answer.status, answer["X-Ack"]) for answer in answers] == [(200, "delivered")] * len(GOOD)
        # Nobody waited for a bad one to end: all of them are still out, each with its only request.
        assert {name: out()[name] for name in HANGING} == dict.fromkeys(HANGING, 1)
        assert world.tinybird.faults[0][1] == len(HANGING)
        for name in GOOD:
            assert len(await world.tinybird.rows(name)) == 10
        for answer in await asyncio.gather(*firsts):
            assert (answer.status, answer["X-Ack"]) == (202, "memory")
        world.tinybird.set_faults()
        await until(lambda: world.proxy.pipeline.buffered_rows() == 0)
        ledger = world.proxy.pipeline.ledger()
        assert (ledger.delivered, ledger.ambiguous) == (len(HANGING) + 30, len(HANGING))
