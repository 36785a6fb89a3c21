"""The pipeline through an hour without Tinybird, in simulated time: what it takes, what it asks, what comes after."""

import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from blockbuster import blockbuster_ctx

from tinybird_proxy.admission import Occupancy, Refusal
from tinybird_proxy.pacing import State
from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.server import answers
from tinybird_proxy.testing.fake_upstream import (
    Attempt,
    FakeUpstream,
    Known,
    Script,
    Step,
    after,
    hang,
    reply,
    timed_out,
    unreachable,
)
from tinybird_proxy.testing.pipelines import Client, Setup, confirmed, imbalances, numbered, numbers_of
from tinybird_proxy.waiting import Waiting

pytestmark = pytest.mark.looptime(idle_timeout=1)

OUTAGE_S = 3600.0
ITEM_ROWS = 50
CAPACITY_ROWS = 2500
ITEMS = 100 * CAPACITY_ROWS // ITEM_ROWS
ITEMS_A_TIME = 10
BATCH_ROWS = 50
RATE = 20.0
CONCURRENCY = 4


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


@asynccontextmanager
async def running(tinybird: FakeUpstream, setup: Setup) -> AsyncIterator[Pipeline]:
    try:
        async with setup.pipeline(tinybird).running() as pipeline:
            yield pipeline
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # a failed assertion reads better alone


def now() -> float:
    return asyncio.get_running_loop().time()


def setup(*, buffer_rows: int = CAPACITY_ROWS, batch_rows: int = BATCH_ROWS, buffer_bytes: int = 512_000_000) -> Setup:
    """Limits small enough for an hour's input of a hundred times the capacity, and real chance in the backoff."""
    chance = random.Random(7)
    return Setup(
        buffer_rows=buffer_rows,
        buffer_bytes=buffer_bytes,
        batch_rows=batch_rows,
        rate=RATE,
        concurrency=CONCURRENCY,
        jitter=lambda limit: chance.uniform(0.0, limit),
    )


class Input:
    """What clients offer, what the proxy says to it, and how full the buffer ever was."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.promised: set[int] = set()
        self.refused: set[int] = set()
        self.refusals: Counter[Refusal] = Counter()
        self.peak = Occupancy()
        self._numbers = itertools.count()

    def offer(self, client: Client, row_count: int = ITEM_ROWS, *, padding: int = 0) -> Refusal | None:
        """One request without ``wait``, of a destination that is confirmed."""
        numbers = list(itertools.islice(self._numbers, row_count))
        offered = client.offer(numbered(numbers, padding=padding))
        assert not isinstance(offered, Waiting)
        if offered is None:
            self.promised.update(numbers)
        else:
            self.refused.update(numbers)
            self.refusals[offered] += 1
        occupancy = self.pipeline.surroundings.buffer.occupancy
        self.peak.row_count = max(self.peak.row_count, occupancy.row_count)
        self.peak.size_bytes = max(self.peak.size_bytes, occupancy.size_bytes)
        return offered

    async def through_the_outage(self, clients: Sequence[Client], seconds: float = OUTAGE_S) -> None:
        """A hundred times the capacity, spread over so much time and over ``clients``."""
        turns = itertools.cycle(clients)
        for _ in range(ITEMS // ITEMS_A_TIME):
            for client in itertools.islice(turns, ITEMS_A_TIME):
                self.offer(client)
            await asyncio.sleep(seconds * ITEMS_A_TIME / ITEMS)

    def check_refusals(self, statuses: set[int]) -> None:
        """Every refusal says when to come back, in whole seconds, and has the headers that its status needs."""
        assert {refusal.status for refusal in self.refusals} == statuses
        for refusal in self.refusals:
            headers = dict(answers.refused(refusal).headers)
            assert headers["Retry-After"].isascii()
            assert headers["Retry-After"].isdigit()
            assert 1 <= int(headers["Retry-After"]) <= 60
            if refusal.status == 429:
                assert headers["X-RateLimit-Limit"].isdigit()
                assert headers["X-RateLimit-Remaining"] == "0"
                assert headers["X-RateLimit-Reset"] == headers["Retry-After"]
            else:
                assert not [name for name in headers if name.startswith("X-RateLimit")]

    def check_arrivals(self, tinybird: FakeUpstream) -> None:
        """What was promised is there, once unless its outcome was unknown; what was refused never arrives."""
        arrived = Counter(numbers_of(row for row in tinybird.taken() if "n" in row))
        ledger = self.pipeline.ledger()
        assert set(arrived) == self.promised
        assert not set(arrived) & self.refused
        # Which row came more than once, and how often, nobody can know; only those that are counted as ambiguous can.
        assert sum(times > 1 for times in arrived.values()) <= ledger.ambiguous
        assert (ledger.dropped_total, ledger.dead_lettered) == (0, 0)
        assert self.pipeline.buffered_rows() == 0
        assert self.pipeline.surroundings.buffer.occupancy == Occupancy()
        assert imbalances(self.pipeline) == []
        assert self.pipeline.check_ledger() == 0


def most_in_a_second(times: Iterable[float]) -> int:
    """The most attempts that began within one second, wherever it begins."""
    ordered, most, first = sorted(times), 0, 0
    for last, at in enumerate(ordered):
        while at - ordered[first] >= 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def while_down(down: Script, ends_at: float) -> Script:
    """``down`` until ``ends_at``, and then answers that take a tenth of a second, as Tinybird's do."""

    def answer(attempt: Attempt) -> Script:
        return down if attempt.at < ends_at else after(0.1, 200)

    return answer


@dataclass(frozen=True)
class Outage:
    """How Tinybird is down; at most so many attempts an hour are made; whether their outcome is unknown."""

    answer: Known
    most_attempts: int
    ambiguous: bool
    statuses: frozenset[int] = frozenset({429})


# Full jitter up to 30 s: 240 attempts an hour and the first few; with real chance some more or less.
OUTAGES = {
    "unreachable": Outage(unreachable(), 290, ambiguous=False),
    "500": Outage(500, 290, ambiguous=True),
    "502 although it took the rows": Outage(Step(502, takes=True), 290, ambiguous=True),
    "503 without a word": Outage(503, 290, ambiguous=True),
    "503 with Retry-After": Outage(reply(503, Retry_After="120"), 31, ambiguous=False),
    "429 with Retry-After": Outage(reply(429, Retry_After="30"), 121, ambiguous=False),
    # Until the first minute is over nobody knows that Tinybird is down.
    "timeouts": Outage(timed_out(60.0), 60, ambiguous=True, statuses=frozenset({429, 503})),
}


@pytest.mark.parametrize("kind", OUTAGES)
async def test_an_hour_without_tinybird_costs_nothing_that_was_promised(kind: str) -> None:
    outage = OUTAGES[kind]
    tinybird = FakeUpstream()
    async with running(tinybird, setup()) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        given = Input(pipeline)
        ends_at = now() + OUTAGE_S
        tinybird.will(then=while_down(outage.answer, ends_at))
        await given.through_the_outage([hits])
        # All of the capacity is used and no more; the rest was refused.
        assert CAPACITY_ROWS <= given.peak.row_count <= CAPACITY_ROWS * 1.1
        assert len(given.promised) + len(given.refused) == 100 * CAPACITY_ROWS
        assert len(given.promised) <= CAPACITY_ROWS * 1.1
        given.check_refusals(set(outage.statuses))
        assert imbalances(pipeline) == []
        # Tinybird was asked seldom, one batch at a time and always the same one: no second one became ambiguous.
        during = [attempt for attempt in tinybird.attempts if attempt.at < ends_at]
        assert 10 <= len(during) <= outage.most_attempts
        assert tinybird.most_in_flight["hits"] == 1 or kind == "timeouts"
        assert len({attempt.batch_id for attempt in during}) <= (CONCURRENCY if kind == "timeouts" else 1)
        tinybird.most_in_flight.clear()
        # No attempt is more than a pause away.
        await asyncio.sleep(121 + 60)
        recovery = [attempt for attempt in tinybird.attempts if attempt.at >= ends_at]
        assert most_in_a_second(attempt.at for attempt in recovery) <= RATE * 1.1
        assert tinybird.most_in_flight["hits"] <= CONCURRENCY
        # One row is a probe; all others leave in full batches, but for the first and the last.
        assert len(recovery) <= math.ceil(len(given.promised) / BATCH_ROWS) + 3
        assert (pipeline.ledger().ambiguous > 0) is outage.ambiguous
        assert pipeline.ledger().ambiguous <= BATCH_ROWS * (CONCURRENCY if kind == "timeouts" else 1)
        given.check_arrivals(tinybird)
        assert hits.destination.pacing.state is State.DELIVERING


async def test_the_first_request_after_an_outage_is_alone_and_then_as_many_leave_as_may() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, setup()) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        given = Input(pipeline)
        ends_at = now() + OUTAGE_S
        tinybird.will(then=lambda attempt: unreachable() if attempt.at < ends_at else after(0.5, 200))
        while now() < ends_at:
            given.offer(hits)
            await asyncio.sleep(30)
        await asyncio.sleep(60)
        first, *rest = [attempt for attempt in tinybird.attempts if attempt.at >= ends_at]
        assert first.ended_at is not None
        assert min(attempt.at for attempt in rest) >= first.ended_at
        assert tinybird.most_in_flight["hits"] == CONCURRENCY
        given.check_arrivals(tinybird)


async def test_bytes_are_bounded_through_an_outage_as_rows_are() -> None:
    item = numbered(range(10), padding=1000)
    item_bytes = len(item.body) + 1
    capacity_bytes = 100 * item_bytes
    tinybird = FakeUpstream()
    limits = Setup(
        buffer_bytes=capacity_bytes, batch_bytes=5 * item_bytes, max_body_bytes=item_bytes, rate=RATE, concurrency=4
    )
    async with running(tinybird, limits) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        given = Input(pipeline)
        ends_at = now() + OUTAGE_S
        tinybird.will(then=while_down(500, ends_at))
        for _ in range(1050):
            for _ in range(10):
                given.offer(hits, 10, padding=1000)
            await asyncio.sleep(OUTAGE_S / 1050)
        assert (len(given.promised) + len(given.refused)) * 1000 >= 100 * capacity_bytes
        assert capacity_bytes * 0.97 <= given.peak.size_bytes <= capacity_bytes * 1.1
        given.check_refusals({429})
        memory_bytes = sum(facts.held_bytes for facts in pipeline.facts())
        assert memory_bytes < capacity_bytes  # what waits is compressed
        await asyncio.sleep(60)
        recovery = [attempt for attempt in tinybird.attempts if attempt.at >= ends_at]
        assert len(recovery) <= math.ceil(given.peak.size_bytes / limits.batch_bytes) * 1.3 + 3
        assert most_in_a_second(attempt.at for attempt in recovery) <= RATE * 1.1
        given.check_arrivals(tinybird)


async def test_batches_grow_to_the_size_that_the_limits_allow() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, setup(batch_rows=CAPACITY_ROWS // 4)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        given = Input(pipeline)
        ends_at = now() + OUTAGE_S
        tinybird.will(then=while_down(unreachable(), ends_at))
        await given.through_the_outage([hits])
        await asyncio.sleep(60)
        recovery = [attempt for attempt in tinybird.attempts if attempt.at >= ends_at]
        assert len(given.promised) == CAPACITY_ROWS
        assert len(recovery) <= 4 + 3
        assert max(len(attempt.rows) for attempt in recovery) > CAPACITY_ROWS // 5
        given.check_arrivals(tinybird)


async def test_an_outage_longer_than_any_is_survived_by_a_buffer_that_was_full_from_its_start() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, setup()) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        given = Input(pipeline)
        ends_at = now() + 7 * 86400
        tinybird.will(then=while_down(reply(503, Retry_After="300"), ends_at))
        for _ in range(100):
            given.offer(hits)
        await asyncio.sleep(7 * 86400)
        assert len(tinybird.attempts) <= 7 * 86400 / 300 + 2
        await asyncio.sleep(400)
        given.check_arrivals(tinybird)


# Clients.


@dataclass
class Patient:
    """A client that keeps its one request and comes back when it was told to."""

    tries_after: int = 0
    taken_at: float = math.inf


async def come_back(given: Input, client: Client, patient: Patient, ends_at: float) -> None:
    while (refusal := given.offer(client, 10)) is not None:
        assert refusal.retry_after_s is not None
        await asyncio.sleep(refusal.retry_after_s)
        patient.tries_after += now() >= ends_at
    patient.taken_at = now()


@pytest.mark.parametrize("down", [unreachable(), 500, reply(503, Retry_After="5")], ids=["unreachable", "500", "503"])
async def test_clients_that_come_back_when_they_were_told_to_find_room_after_the_outage(down: Known) -> None:
    """A tenth of the capacity waits outside: after the recovery everybody is in with one or two tries."""
    tinybird = FakeUpstream()
    async with running(tinybird, setup(buffer_rows=1000)) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        given = Input(pipeline)
        ends_at = now() + OUTAGE_S
        tinybird.will(then=while_down(down, ends_at))
        given.offer(hits, 1)
        await asyncio.sleep(2)
        given.offer(hits, 990)
        patients = [Patient() for _ in range(10)]
        async with asyncio.TaskGroup() as group:
            for patient in patients:
                group.create_task(come_back(given, hits, patient, ends_at))
                await asyncio.sleep(0.37)
        resumed_at = min(attempt.at for attempt in tinybird.attempts if attempt.answer is not None and attempt.taken)
        assert max(patient.taken_at for patient in patients) <= resumed_at + 10 + 5
        assert max(patient.tries_after for patient in patients) <= 6  # a backoff of 30 s is three times 10 s
        await asyncio.sleep(5)
        # The same rows were refused before, in other requests: only numbers that were promised arrive.
        given.check_arrivals(tinybird)


# Several destinations.


async def test_one_of_several_destinations_may_use_all_of_the_capacity_and_nobody_loses_a_row() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, setup()) as pipeline:
        loud, *quiet = await confirmed(pipeline, "loud", "quiet-1", "quiet-2", "quiet-3")
        given = Input(pipeline)
        ends_at = now() + OUTAGE_S
        tinybird.will(then=while_down(unreachable(), ends_at))
        await given.through_the_outage([loud], OUTAGE_S / 2)
        assert given.peak.row_count == loud.destination.buffered_rows() == CAPACITY_ROWS
        for client in quiet:
            refusal = given.offer(client, 1)
            # Nothing is known yet of those who have sent nothing since: they have the headroom.
            assert refusal is None
        await asyncio.sleep(120)
        for client in quiet:
            refusal = given.offer(client, 1)
            assert refusal is not None
            assert (refusal.status, refusal.reason) == (429, "share")
        await asyncio.sleep(ends_at - now())
        during = Counter(attempt.name for attempt in tinybird.attempts)
        assert max(during.values()) <= 290
        await asyncio.sleep(60)
        for name in during:
            recovery = [attempt for attempt in tinybird.of(name) if attempt.at >= ends_at]
            assert most_in_a_second(attempt.at for attempt in recovery) <= RATE * 1.1
        assert len(tinybird.attempts) - during.total() <= CAPACITY_ROWS / BATCH_ROWS + 4 * 3
        given.check_arrivals(tinybird)


async def test_several_destinations_share_what_there_is_through_an_outage() -> None:
    tinybird = FakeUpstream()
    async with running(tinybird, setup()) as pipeline:
        everybody = await confirmed(pipeline, *(f"ds{number}" for number in range(6)))
        given = Input(pipeline)
        ends_at = now() + OUTAGE_S
        tinybird.will(then=while_down(500, ends_at))
        await given.through_the_outage(everybody)
        assert CAPACITY_ROWS <= given.peak.row_count <= CAPACITY_ROWS * 1.1
        assert len(tinybird.attempts) <= 6 * 290
        assert len({attempt.batch_id for attempt in tinybird.attempts}) == 6
        assert pipeline.ledger().ambiguous <= 6 * BATCH_ROWS
        await asyncio.sleep(60)
        recovery = [attempt for attempt in tinybird.attempts if attempt.at >= ends_at]
        assert len(recovery) <= CAPACITY_ROWS * 1.1 / BATCH_ROWS + 6 * 3
        given.check_arrivals(tinybird)


async def test_what_hangs_for_ever_is_kept_and_asked_for_nothing_more() -> None:
    """Without a timeout of our own, as a connection that is up and silent: places are bounded, and so is the buffer."""
    tinybird = FakeUpstream()
    async with running(tinybird, setup()) as pipeline:
        (hits,) = await confirmed(pipeline, "hits")
        given = Input(pipeline)
        tinybird.will(then=hang())
        for _ in range(1000):
            given.offer(hits)
            await asyncio.sleep(1)
        assert len(tinybird.attempts) == tinybird.most_in_flight["hits"] == CONCURRENCY
        assert given.peak.row_count == CAPACITY_ROWS * 1.1
        given.check_refusals({503})
        assert imbalances(pipeline) == []
