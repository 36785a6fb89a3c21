"""A pipeline in simulated time, clients of its destinations, and what Tinybird saw."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tinybird_proxy.batch import FrozenBatch
from tinybird_proxy.buffer import MemoryBuffer
from tinybird_proxy.dead_letter import Replay
from tinybird_proxy.ledger import Ledger
from tinybird_proxy.pacing import State
from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.testing.fake_upstream import FakeUpstream, Script
from tinybird_proxy.testing.pipelines import Client, Setup, numbered, numbers_of


@asynccontextmanager
async def running(tinybird: FakeUpstream, setup: Setup | None = None) -> AsyncIterator[Pipeline]:
    """A pipeline with everything around it."""
    try:
        async with (setup or Setup()).pipeline(tinybird).running() as pipeline:
            yield pipeline
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # a failed assertion reads better alone


@asynccontextmanager
async def new(tinybird: FakeUpstream, setup: Setup | None = None, *, token: str | None = None) -> AsyncIterator[Client]:
    """A client of a destination that nobody has used yet."""
    try:
        async with (setup or Setup()).pipeline(tinybird).running() as pipeline:
            yield Client(pipeline, token=token)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # a failed assertion reads better alone


@asynccontextmanager
async def delivering(
    tinybird: FakeUpstream, setup: Setup | None = None, *, token: str | None = None
) -> AsyncIterator[Client]:
    """A client of a destination that Tinybird has answered once; what was sent for that is forgotten."""
    async with new(tinybird, setup, token=token) as client:
        await client.confirm()
        tinybird.forget()
        yield client


@asynccontextmanager
async def held(tinybird: FakeUpstream, setup: Setup | None = None) -> AsyncIterator[Client]:
    """A client of a destination that holds the rows 1 and 2 since 0 s."""
    async with delivering(tinybird, setup or Setup(flush_interval_s=0.0)) as client:
        tinybird.will(403, then=200)
        client.offer(numbered([1, 2]))
        await asyncio.sleep(0.01)
        assert client.destination.pacing.state is State.HELD
        yield client


def now() -> float:
    """Simulated seconds."""
    return asyncio.get_running_loop().time()


def times(tinybird: FakeUpstream) -> list[float]:
    """When each attempt was made, to the hundredth of a second."""
    return [round(attempt.at, 2) for attempt in tinybird.attempts]


def batches(tinybird: FakeUpstream) -> list[list[int]]:
    """The numbers in each attempt."""
    return [numbers_of(attempt.rows) for attempt in tinybird.attempts]


def ledger(client: Client) -> Ledger:
    return client.destination.ledger


def name_of(step: Script) -> str:
    return getattr(step, "answer", None).__class__.__name__ if not isinstance(step, int) else str(step)


class FragileBuffer(MemoryBuffer):
    """Raises so many times, when a batch is frozen or its outcome is to be recorded."""

    def __init__(self, *, freezing: int = 0, recording: int = 0) -> None:
        super().__init__()
        self.freezing = freezing
        self.recording = recording

    def freeze(self, batch: FrozenBatch) -> None:
        if self.freezing:
            self.freezing -= 1
            raise OSError(5, "by script")
        super().freeze(batch)

    async def record_outcome(self, batch: FrozenBatch) -> None:
        if self.recording:
            self.recording -= 1
            raise OSError(28, "by script")
        await super().record_outcome(batch)


class Reports:
    """What a drain reports: rows left, and when."""

    def __init__(self) -> None:
        self.replaying: list[asyncio.Task[Replay]] = []
        self.doubling: list[int] = []  # rows of letters that somebody wanted to be sent twice
        self.states: set[State] = set()
        self.heard: list[tuple[float, int]] = []

    def __call__(self, rows_left: int) -> None:
        self.heard.append((round(now(), 1), rows_left))
