"""The pipeline: how rows get to their destinations, and what these share.

``offer`` is the one way in, plain and synchronous; ``drain`` sends what is left. ``supervisor`` owns the destinations
and their tasks.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tinybird_proxy.admission import Capacity, Refusal, Standing, has_room, is_over_share, refuse, retry_after_s
from tinybird_proxy.batch import DestinationKey
from tinybird_proxy.dead_letter import DeadLetter, LetterFilter, Replay, batches_of, choose
from tinybird_proxy.destination import Destination, Surroundings
from tinybird_proxy.health import DestinationFacts
from tinybird_proxy.ledger import Ledger
from tinybird_proxy.pacing import State
from tinybird_proxy.rows import Rows
from tinybird_proxy.supervisor import Supervisor
from tinybird_proxy.telemetry.logs import fields, get_logger
from tinybird_proxy.ticket import Buffered, Outcome
from tinybird_proxy.waiting import Waiting

CONTACT_WAIT_S = 1.0
STOPPING = Refusal(503, "draining", "the proxy is stopping; send the same request again", 1)
_DRAIN_REPORT_S = 2.0
# A timer may fire before its time by the clock's resolution: no turns for nothing then.
_SHORTEST_WAIT_S = 0.001
_log = get_logger("pipeline")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineLimits:
    """What all destinations share. ``wait_timeout_s`` counts from a request's head."""

    capacity: Capacity
    max_destinations: int
    max_waiters: int
    wait_timeout_s: float


class Pipeline:
    """Takes rows and tells what becomes of them. Enter ``running`` before the first ``offer``."""

    def __init__(self, surroundings: Surroundings, limits: PipelineLimits) -> None:
        self.surroundings = surroundings
        self.limits = limits
        self.supervisor = Supervisor(surroundings, limits.max_destinations)
        self.waiter_count = 0
        self._buffer = surroundings.buffer
        self._meters = surroundings.meters
        self._taking = False  # from ``running`` until ``drain`` or the end: later nobody would send what is promised
        self._flush_at_once = False
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Pipeline"]:
        """Take rows and own every task until the end; what is still buffered then is counted as lost."""
        async with self.supervisor.running():
            self._taking = True
            try:
                yield self
            finally:
                self._taking = False

    # A request's way in.

    def offer(
        self,
        key: DestinationKey,
        rows: Rows,
        *,
        now: float,
        wait: bool,
        head_at: float,
        traceparent: str | None = None,
        vias: str | None = None,
    ) -> Waiting | Refusal | None:
        """Take ``rows`` (at least one) or refuse them. None: taken and promised, nothing to wait for."""
        if not self._taking:
            return STOPPING
        destination = self.supervisor.known.get(key) or self._make(key)
        if isinstance(destination, Refusal):
            return destination
        if destination.refusing is not None and (refusing := destination.refusal(now)) is not None:
            return Refusal(refusing.status, "refused_by_tinybird", refusing.message)
        size_bytes = len(rows.body) + 1
        unconfirmed = destination.unconfirmed
        occupancy = self._buffer.occupancy
        if unconfirmed or not has_room(rows.row_count, size_bytes, occupancy, self.limits.capacity):
            standing = self._standing(destination)
            refusal = refuse(standing, rows.row_count, size_bytes, occupancy, self.limits.capacity)
            if refusal is not None:
                return self._with_retry_after(refusal, now)
        self._buffer.hold(key, rows, unconfirmed=unconfirmed)
        if destination.wants_contact:  # accepted when it is promised, not yet
            waiting = self._wait(destination, rows.row_count, contact=True, wait_for_delivery=wait, head_at=head_at)
            destination.put_contact(rows, now, waiting.ticket, traceparent, vias)
            return waiting
        self._meters.requests_accepted += 1
        self._meters.bytes_accepted += size_bytes
        if wait and self._may_wait(destination, now, head_at):
            waiting = self._wait(destination, rows.row_count, contact=False, wait_for_delivery=True, head_at=head_at)
            destination.put(rows, now, waiting.ticket, traceparent, vias)
            return waiting
        destination.put(rows, now, None, traceparent, vias)
        return None

    def is_confirmed(self, key: DestinationKey) -> bool:
        """Whether Tinybird has answered this destination with 2xx, so that no request of its has to be waited for."""
        destination = self.supervisor.known.get(key)
        return destination is not None and destination.pacing.confirmed

    async def hear(self, waiting: Waiting) -> Outcome:
        """Wait for what becomes of an offer, as long as it may take."""
        self.waiter_count += 1
        try:
            if waiting.contact:
                outcome = await self._within(waiting, min(self.surroundings.now() + CONTACT_WAIT_S, waiting.deadline))
                if outcome is not None:
                    return outcome
                waiting.destination.keep_contact(waiting.ticket)
                if not waiting.wait_for_delivery:
                    return Buffered()
            return await self._within(waiting, waiting.deadline) or Buffered()
        finally:
            self.waiter_count -= 1
            # A client that leaves takes nothing back.
            waiting.destination.keep_contact(waiting.ticket)
            waiting.ticket.resolve(Buffered())

    async def _within(self, waiting: Waiting, deadline: float) -> Outcome | None:
        done, _ = await asyncio.wait([waiting.future], timeout=max(0.0, deadline - self.surroundings.now()))
        return waiting.future.result() if done else None

    def _wait(
        self, destination: Destination, row_count: int, *, contact: bool, wait_for_delivery: bool, head_at: float
    ) -> Waiting:
        return Waiting(
            destination,
            self._loop,
            row_count,
            contact=contact,
            wait_for_delivery=wait_for_delivery,
            deadline=head_at + self.limits.wait_timeout_s,
        )

    def _may_wait(self, destination: Destination, now: float, head_at: float) -> bool:
        """Whether waiting has a chance: not held, a place free, and an attempt before the time is up."""
        return (
            self.waiter_count < self.limits.max_waiters
            and destination.pacing.state is not State.HELD
            and now + destination.next_attempt_in(now) < head_at + self.limits.wait_timeout_s
        )

    def _standing(self, destination: Destination) -> Standing:
        if destination.unconfirmed:
            return Standing.UNCONFIRMED
        if not destination.delivering:
            return Standing.NOT_DELIVERING
        over = is_over_share(*destination.held(), len(self.supervisor.known), self.limits.capacity)
        return Standing.OVER_SHARE if over else Standing.DELIVERING

    def _with_retry_after(self, refusal: Refusal, now: float) -> Refusal:
        if refusal.status not in (429, 503):
            return refusal
        after_s = retry_after_s(
            self._buffer.occupancy.row_count,
            self.limits.capacity.max_rows,
            self._meters.recent_delivered.per_second(now) if refusal.status == 503 else 0.0,
        )
        return Refusal(refusal.status, refusal.reason, refusal.message, after_s)

    def _make(self, key: DestinationKey) -> Destination | Refusal:
        destination = self.supervisor.make(key)
        if destination is None:
            message = "too many destinations at once (MAX_DESTINATIONS); send the same request again later"
            return self._with_retry_after(Refusal(503, "destinations", message), self.surroundings.now())
        destination.flush_at_once(self._flush_at_once)
        return destination

    # Dead letters.

    async def replay(self, wanted: LetterFilter) -> Replay:
        """Send the rows of the letters that ``wanted`` means again, as far as the buffer has room.

        Letters whose clients were told, and those that would double rows, only if ``wanted`` names their kind or ids.
        """
        outcome = Replay()
        limits = self.surroundings.limits
        for key, of_one in choose(self.surroundings.letters.select(wanted), wanted, outcome).items():
            for batch in batches_of(of_one, max_rows=limits.max_rows, max_bytes=limits.max_bytes):
                await self._replay_batch(key, batch, outcome)
        return outcome

    async def _replay_batch(self, key: DestinationKey, batch: list[DeadLetter], outcome: Replay) -> None:
        bodies = await self.surroundings.codec.rows_in([letter.payload for letter in batch])
        held = self.surroundings.letters.holds
        items = [
            (Rows(body, letter.row_count), letter) for body, letter in zip(bodies, batch, strict=True) if held(letter)
        ]
        row_count = sum(rows.row_count for rows, _ in items)
        size_bytes = sum(len(rows.body) + 1 for rows, _ in items)
        destination = self.supervisor.known.get(key) or (self._make(key) if self._taking else STOPPING)
        if not self._taking or isinstance(destination, Refusal):
            outcome.no_room_rows += row_count
            return
        standing = self._standing(destination)
        if refuse(standing, row_count, size_bytes, self._buffer.occupancy, self.limits.capacity) is not None:
            outcome.no_room_rows += row_count
            return
        for rows, _ in items:
            self._buffer.hold(key, rows, unconfirmed=destination.unconfirmed)
        if items:
            destination.put_replay(items, self.surroundings.now())
            outcome.replayed_letters += len(items)
            outcome.replayed_rows += row_count

    # What happens around it.

    def after_settling(self) -> None:
        """A batch settled: whoever watches the buffer empty should look."""
        self._changed.set()

    def probe_all(self) -> None:
        """A token changed: no hold waits any longer."""
        for destination in self.supervisor.known.values():
            destination.probe_now()

    def flush_at_once(self, at_once: bool) -> None:
        """Nothing more comes for now, so no row waits for company; False: rows come again, as before.

        What Tinybird holds up, it still does: unlike ``drain`` this has no deadline, and so all the time it takes.
        """
        self._flush_at_once = at_once
        for destination in self.supervisor.known.values():
            destination.flush_at_once(at_once)

    # The end.

    async def drain(self, deadline: float, *, stop_now: asyncio.Event, report: Callable[[int], None]) -> None:
        """Send everything; return when nothing is left, at ``deadline``, or when ``stop_now`` is set.

        Nothing more is taken from now on.
        ``report`` hears the rows left at once, after every settled batch, and at least every 2 s.
        """
        self._taking = False
        now = self.surroundings.now()
        for destination in list(self.supervisor.known.values()):
            destination.drain(now, deadline)
        stopping = asyncio.ensure_future(stop_now.wait())
        try:
            while True:
                self._changed.clear()
                left = self.buffered_rows()
                report(left)
                now = self.surroundings.now()
                if not any(not destination.idle for destination in self.supervisor.known.values()):
                    return
                if now >= deadline or stop_now.is_set():
                    return
                changed = asyncio.ensure_future(self._changed.wait())
                try:
                    await asyncio.wait(
                        [changed, stopping],
                        timeout=max(_SHORTEST_WAIT_S, min(_DRAIN_REPORT_S, deadline - now)),
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    changed.cancel()
        finally:
            stopping.cancel()

    # What others want to know.

    def destinations(self) -> list[Destination]:
        """Every destination now known."""
        return list(self.supervisor.known.values())

    def facts(self) -> list[DestinationFacts]:
        """How each destination stands."""
        return [destination.facts() for destination in self.supervisor.known.values()]

    def buffered_rows(self) -> int:
        """Promised rows in the buffer, counted from the batches themselves."""
        return sum(destination.buffered_rows() for destination in self.supervisor.known.values())

    def ledger(self) -> Ledger:
        """The ledger of all destinations, the forgotten ones included."""
        return self.supervisor.ledger()

    def oldest_age_s(self) -> float | None:
        """Age of the oldest row in the buffer."""
        times = [at for destination in self.supervisor.known.values() if (at := destination.oldest_at()) is not None]
        return self.surroundings.now() - min(times) if times else None

    def seconds_to_drain(self) -> float | None:
        """How long the buffered rows take at the present rate; None while nothing is delivered."""
        rows = self.buffered_rows()
        rate = self._meters.recent_delivered.per_second(self.surroundings.now())
        if rows == 0:
            return 0.0
        return rows / rate if rate > 0.01 else None

    def check_ledger(self) -> int:
        """Rows by which anything is off; anything but 0 is a mistake of ours, logged at ERROR.

        Both equations of each destination against what is really there, and the buffer's own count against the batches.
        """
        self.supervisor.forget_ledgers()
        self.surroundings.letters.tell()
        letters, off = self.surroundings.letters, 0
        rows = size_bytes = strange_rows = strange_bytes = 0
        for destination in self.supervisor.known.values():
            here = destination.held()
            rows, size_bytes = rows + here[0], size_bytes + here[1]
            if destination.unconfirmed:
                strange_rows, strange_bytes = strange_rows + here[0], strange_bytes + here[1]
            key, ledger = destination.key, destination.ledger
            off += _complain(key.name, "buffer", ledger.imbalance(destination.buffered_rows()))
            off += _complain(key.name, "dead letters", ledger.letters_imbalance(letters.held_rows(key)))
        for key, ledger in self.supervisor.with_letters.items():
            off += _complain(key.name, "buffer", ledger.imbalance(0))
            off += _complain(key.name, "dead letters", ledger.letters_imbalance(letters.held_rows(key)))
        off += _complain("(all)", "dead letters", self.ledger().letters_imbalance(letters.held_rows()))
        held = self._buffer.occupancy
        off += _complain("(all)", "buffer's count", rows - held.row_count)
        off += _complain("(all)", "buffer's count of unconfirmed rows", strange_rows - held.unconfirmed_row_count)
        if (size_bytes, strange_bytes) != (held.size_bytes, held.unconfirmed_size_bytes):
            _log.error("the buffer's count of bytes is off", extra=fields(bytes=size_bytes - held.size_bytes))
            off += 1
        return off


def _complain(data_source: str, where: str, off: int) -> int:
    if off:
        _log.error(
            "the ledger does not balance: rows are missing (positive) or too many (negative)",
            extra=fields(data_source=data_source, where=where, rows=off),
        )
    return abs(off)
