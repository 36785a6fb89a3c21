"""A pipeline for tests, with everything around it plain: the loop's clock, known chance, compression without threads.

    async with Setup(batch_rows=10).pipeline(tinybird).running() as pipeline:
        hits = Client(pipeline, "hits")
        await hits.confirm()
        hits.offer(numbered(range(3)))

Seconds are those of the event loop: run it on one whose clock is simulated.
"""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, ParamSpec, TypeVar

from tinybird_proxy import codec
from tinybird_proxy.admission import Capacity, Occupancy, Refusal
from tinybird_proxy.batch import BatchLimits, DestinationKey, Payload
from tinybird_proxy.buffer import Buffer, MemoryBuffer
from tinybird_proxy.dead_letter import DeadLetters
from tinybird_proxy.destination import Destination, Surroundings
from tinybird_proxy.destination.surroundings import BatchCodec, BatchUpstream
from tinybird_proxy.pacing import PacingLimits
from tinybird_proxy.pipeline import Pipeline, PipelineLimits
from tinybird_proxy.rows import Rows
from tinybird_proxy.telemetry.meters import Meters
from tinybird_proxy.telemetry.tracing import Tracer, no_tracer
from tinybird_proxy.testing.fake_upstream import FakeUpstream
from tinybird_proxy.ticket import Outcome
from tinybird_proxy.tokens import OwnToken
from tinybird_proxy.waiting import Waiting

OWN_TOKEN: Final = "p.own"  # noqa: S105 - made for tests
PATH: Final = "/v0/events"
_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def numbered(numbers: Iterable[int], *, padding: int = 0) -> Rows:
    """A row ``{"n":…}`` for each number, each longer by ``padding`` bytes than it need be."""
    pad = f',"pad":"{"x" * (padding - 9)}"' if padding else ""
    lines = [f'{{"n":{number}{pad}}}'.encode() for number in numbers]
    return Rows(b"\n".join(lines), len(lines))


def numbers_of(rows: Iterable[object]) -> list[int]:
    """The numbers of rows that ``numbered`` made and that were decoded since."""
    return [row["n"] for row in rows if isinstance(row, dict)]


def imbalances(pipeline: Pipeline) -> list[str]:
    """What does not add up in ``pipeline``: ledgers against batches, batches against the buffer's occupancy."""
    found = []
    rows = size_bytes = unconfirmed_rows = unconfirmed_bytes = 0
    for destination in pipeline.destinations():
        if off := destination.ledger.imbalance(destination.buffered_rows()):
            found.append(f"{destination.key!r}: {off} rows are missing in the ledger's terms")
        letters = [letter for letter in pipeline.surroundings.letters.select() if letter.key == destination.key]
        held = sum(letter.row_count for letter in letters if not letter.replaying)
        if off := destination.ledger.letters_imbalance(held):
            found.append(f"{destination.key!r}: {off} rows of dead letters are missing in the ledger's terms")
        here = destination.held()
        rows, size_bytes = rows + here[0], size_bytes + here[1]
        if destination.unconfirmed:
            unconfirmed_rows, unconfirmed_bytes = unconfirmed_rows + here[0], unconfirmed_bytes + here[1]
    everywhere = sum(letter.row_count for letter in pipeline.surroundings.letters.select() if not letter.replaying)
    if off := pipeline.ledger().letters_imbalance(everywhere):
        found.append(f"in all: {off} rows of dead letters are missing in the ledger's terms")
    if off := pipeline.ledger().imbalance(pipeline.buffered_rows()):
        found.append(f"in all: {off} rows are missing in the ledger's terms")
    occupied = Occupancy(rows, size_bytes, unconfirmed_rows, unconfirmed_bytes)
    if pipeline.surroundings.buffer.occupancy != occupied:
        found.append(f"the buffer holds {occupied} but counts {pipeline.surroundings.buffer.occupancy}")
    return found


def delete_letters(pipeline: Pipeline) -> int:
    """Delete every dead letter that is not being replayed, as a person may; return how many rows are gone."""
    letters = pipeline.surroundings.letters
    return sum(letter.row_count for letter in letters.select() if letters.delete(letter))


class WallClock:
    """The wall's clock: begins with 2026 and follows the loop's, until somebody sets it."""

    def __init__(self) -> None:
        self._offset_s = 0.0

    def step(self, seconds: float) -> None:
        """Somebody set the clock forward, or back."""
        self._offset_s += seconds

    def now(self) -> datetime:
        """What it shows."""
        return _EPOCH + timedelta(seconds=asyncio.get_running_loop().time() + self._offset_s)


async def compress(bodies: list[bytes]) -> Payload:
    """As the application does, but on the loop."""
    await asyncio.sleep(0)
    return codec.compress(bodies, "gzip")


async def rows_of(payload: Payload, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The same."""
    await asyncio.sleep(0)
    return codec.rows_of(payload, ranges)


async def rows_in(payloads: Sequence[Payload]) -> list[bytes]:
    """The same."""
    await asyncio.sleep(0)
    return codec.rows_in(payloads)


async def halves(payload: Payload) -> tuple[bytes, bytes]:
    """The same."""
    await asyncio.sleep(0)
    return codec.halves(payload)


def _late(call: Callable[_P, Awaitable[_R]], delay_s: float) -> Callable[_P, Awaitable[_R]]:
    """``call``, so much later."""
    if delay_s == 0:
        return call

    async def late(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        await asyncio.sleep(delay_s)
        return await call(*args, **kwargs)

    return late


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is around a pipeline. Limits are the configuration's defaults; ``jitter`` answers with the longest wait.

    ``codec_delay_s``: how long each piece of work of the codec takes.
    """

    flush_interval_s: float = 1.0
    batch_rows: int = 100_000
    batch_bytes: int = 10_000_000
    buffer_rows: int = 1_000_000
    buffer_bytes: int = 512_000_000
    max_body_bytes: int = 10_000_000
    rate: float = 90.0
    concurrency: int = 16
    upstream_wait: bool = True
    wait_timeout_s: float = 25.0
    max_waiters: int = 2000
    max_destinations: int = 1000
    buffer: Buffer = field(default_factory=MemoryBuffer)
    own_token: OwnToken | None = field(default_factory=lambda: OwnToken(OWN_TOKEN, 0.0))
    compress: Callable[[list[bytes]], Awaitable[Payload]] = compress
    codec_delay_s: float = 0.0
    dead_letter_bytes: int = 64_000_000
    max_age_s: float | None = None
    tracer: Tracer = field(default_factory=no_tracer)
    wall: WallClock = field(default_factory=WallClock)
    jitter: Callable[[float], float] = lambda limit: limit

    def surroundings(self, upstream: BatchUpstream, after_settling: Callable[[], None] = lambda: None) -> Surroundings:
        """For a destination alone. Call it inside the event loop."""
        now = asyncio.get_running_loop().time
        batch_numbers = itertools.count(1)
        return Surroundings(
            limits=BatchLimits(
                max_rows=self.batch_rows, max_bytes=self.batch_bytes, flush_interval_s=self.flush_interval_s
            ),
            pacing=PacingLimits(rate=self.rate, concurrency=self.concurrency),
            upstream_wait=self.upstream_wait,
            wait_timeout_s=self.wait_timeout_s,
            buffer=self.buffer,
            upstream=upstream,
            own_token=self.own_token,
            codec=BatchCodec(
                compress=_late(self.compress, self.codec_delay_s),
                rows_of=_late(rows_of, self.codec_delay_s),
                rows_in=_late(rows_in, self.codec_delay_s),
                halves=_late(halves, self.codec_delay_s),
            ),
            letters=DeadLetters(self.dead_letter_bytes, now=now),
            max_age_s=self.max_age_s,
            tracer=self.tracer,
            meters=Meters(now()),
            now=now,
            utc_now=self.wall.now,
            jitter=self.jitter,
            next_batch_id=lambda: f"batch-{next(batch_numbers)}",
            after_settling=after_settling,
        )

    def pipeline(self, upstream: BatchUpstream) -> Pipeline:
        """A whole pipeline, which is still to be entered. Call it inside the event loop."""
        built: list[Pipeline] = []
        limits = PipelineLimits(
            capacity=Capacity(
                max_rows=self.buffer_rows, max_bytes=self.buffer_bytes, max_body_bytes=self.max_body_bytes
            ),
            max_destinations=self.max_destinations,
            max_waiters=self.max_waiters,
            wait_timeout_s=self.wait_timeout_s,
        )
        built.append(Pipeline(self.surroundings(upstream, lambda: built[0].after_settling()), limits))
        return built[0]


async def confirmed(pipeline: Pipeline, *names: str) -> list["Client"]:
    """A client for each data source, all of them confirmed; the attempts for that are forgotten."""
    found = [Client(pipeline, name) for name in names]
    for client in found:
        await client.confirm()
    tinybird = pipeline.surroundings.upstream
    assert isinstance(tinybird, FakeUpstream)  # noqa: S101 - whoever calls it has made one
    tinybird.forget()
    return found


class Client:
    """Offers rows for one destination, as the public port does."""

    def __init__(self, pipeline: Pipeline, name: str = "hits", *, token: str | None = None) -> None:
        self.key = DestinationKey(PATH, name, (), token)
        self.pipeline = pipeline
        self._now = pipeline.surroundings.now

    @property
    def destination(self) -> Destination:
        """The destination, which must be known by now."""
        return next(found for found in self.pipeline.destinations() if found.key == self.key)

    def offer(
        self,
        rows: Rows,
        *,
        wait: bool = False,
        head_at: float | None = None,
        traceparent: str | None = None,
        vias: str | None = None,
    ) -> Waiting | Refusal | None:
        """Offer ``rows`` and answer at once. ``head_at``: when the request's head came, if that was earlier."""
        now = self._now()
        return self.pipeline.offer(
            self.key,
            rows,
            now=now,
            wait=wait,
            head_at=now if head_at is None else head_at,
            traceparent=traceparent,
            vias=vias,
        )

    async def send(self, rows: Rows, *, wait: bool = False, head_at: float | None = None) -> Outcome | Refusal | None:
        """Offer ``rows`` and hear what becomes of them. None: promised at once."""
        offered = self.offer(rows, wait=wait, head_at=head_at)
        return await self.pipeline.hear(offered) if isinstance(offered, Waiting) else offered

    def post(
        self, rows: Rows, *, wait: bool = False, head_at: float | None = None
    ) -> asyncio.Task[Outcome | Refusal | None]:
        """``send`` in a task; the offer itself is made at once."""
        offered = self.offer(rows, wait=wait, head_at=head_at)

        async def hear() -> Outcome | Refusal | None:
            return await self.pipeline.hear(offered) if isinstance(offered, Waiting) else offered

        return asyncio.create_task(hear())

    async def confirm(self) -> None:
        """Make the first contact, with a row that has no number."""
        await self.send(Rows(json.dumps({"first": True}).encode(), 1))
