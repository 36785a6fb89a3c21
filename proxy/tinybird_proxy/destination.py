"""One destination at work: carries out what ``batch``, ``pacing`` and ``verdict`` answer.

Items come in through ``put`` (synchronous, on the request's path); ``run`` is the task that freezes, sends and
settles. Nothing that one destination does waits for another. A batch is always in exactly one place: open, waiting, or
in flight; only ``_settle``, ``_refuse`` (a first contact) and ``abandon`` take it out.
"""

import asyncio
import bisect
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from tinybird_proxy.batch import (
    BatchLimits,
    DestinationKey,
    FrozenBatch,
    OpenBatch,
    Payload,
    Trigger,
    freeze,
)
from tinybird_proxy.buffer import Buffer
from tinybird_proxy.errors import ConnectFailed, ResponseTimeout, UpstreamError
from tinybird_proxy.health import DestinationFacts
from tinybird_proxy.ledger import DropReason, Ledger
from tinybird_proxy.pacing import Pacing, PacingLimits, State
from tinybird_proxy.rows import Rows, cut
from tinybird_proxy.telemetry.logs import fields, get_logger
from tinybird_proxy.telemetry.meters import Meters
from tinybird_proxy.telemetry.tracing import Tracer
from tinybird_proxy.ticket import Buffered, Dropped, NotTaken, Ticket
from tinybird_proxy.tokens import OwnToken, Secret, fingerprint
from tinybird_proxy.upstream import Upstream
from tinybird_proxy.verdict import Again, Decision, Denied, Held, Reply, Settled, judge, judge_failure

REFUSAL_S = 60.0
LOG_EVERY_S = 10.0
_log = get_logger("destination")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every destination works with; made once by the composition root."""

    limits: BatchLimits
    pacing: PacingLimits
    upstream_wait: bool
    wait_timeout_s: float
    buffer: Buffer
    upstream: Upstream
    own_token: OwnToken | None
    compress: Callable[[list[bytes]], Awaitable[Payload]]
    tracer: Tracer
    meters: Meters
    now: Callable[[], float]
    utc_now: Callable[[], datetime]
    jitter: Callable[[float], float]
    next_batch_id: Callable[[], str]
    after_settling: Callable[[], None]


@dataclass(slots=True)
class Contact:
    """The first item of a destination, on its way to Tinybird before anybody promised anything."""

    batches: list[FrozenBatch]
    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Refusing:
    """Requests are answered with ``status`` until ``until``: Tinybird said so, and nothing of ours can change it."""

    status: int
    message: str
    until: float


class Destination:
    """Queue, pacing and ledger of one destination."""

    def __init__(self, key: DestinationKey, surroundings: Surroundings) -> None:
        self.key = key
        self.ledger = Ledger()
        self.refusing: Refusing | None = None
        self.used_at = surroundings.now()
        self._s = surroundings
        self.pacing = Pacing(surroundings.pacing, jitter=surroundings.jitter, now=self.used_at)
        self._open: OpenBatch | None = None
        self._waiting: list[FrozenBatch] = []  # oldest first
        self._in_flight: dict[str, FrozenBatch] = {}
        self._contact: Contact | None = None
        self._to_compress: list[FrozenBatch] = []
        self._wake = asyncio.Event()
        self._drain_deadline: float | None = None
        self._trouble_since: float | None = None
        self._quarantined_unlogged = 0
        self._quarantine_logged_at = -math.inf

    # What the request's path asks and does: plain and synchronous.

    @property
    def unconfirmed(self) -> bool:
        """Whether this is a client's own token that Tinybird has not accepted here yet."""
        return self.key.token is not None and not self.pacing.confirmed

    @property
    def wants_contact(self) -> bool:
        """Whether the next item should go out at once, to learn whether token and data source are good."""
        return not self.pacing.confirmed and self.idle and self.pacing.state in (State.NEW, State.HELD)

    @property
    def idle(self) -> bool:
        """Whether nothing is held, so that the destination may be forgotten."""
        return self._open is None and not self._waiting and not self._in_flight

    def refusal(self, now: float) -> Refusing | None:
        """What the next request is refused with, if it is."""
        if self.refusing is not None and (now < self.refusing.until or not self.idle):
            return self.refusing
        return None

    def next_attempt_in(self, now: float) -> float:
        """Seconds until something may be sent, as far as pauses decide."""
        return max(0.0, self.pacing.paused_until - now)

    def put(self, rows: Rows, now: float, *, ticket: Ticket | None, traceparent: str | None, vias: str | None) -> None:
        """Take an accepted item: it is promised from here on."""
        self.ledger.accepted += rows.row_count
        for part in self._parts(rows, ticket):
            batch = self._open
            if batch is not None and (trigger := batch.would_exceed(part, self._s.limits)) is not None:
                self._freeze(trigger, now)
                batch = None
            if batch is None:
                batch = self._open = OpenBatch(now)
                self._wake.set()
            _join(batch, part, now, ticket, traceparent, vias)
            if (full := batch.full(self._s.limits)) is not None:
                self._freeze(full, now)
        self.used_at = now

    def put_contact(self, rows: Rows, now: float, ticket: Ticket, traceparent: str | None, vias: str | None) -> None:
        """Send an item at once that nobody has promised anything about yet. ``keep_contact`` makes it a promise."""
        contact = Contact([], ticket)
        for part in self._parts(rows, ticket):
            batch = self._open = OpenBatch(now)
            _join(batch, part, now, ticket, traceparent, vias)
            contact.batches.append(self._freeze(Trigger.FIRST_CONTACT, now))
            contact.batches[-1].promised = False
        self._contact = contact
        self.refusing = None
        self.pacing.probe_now(now)
        self.used_at = now

    def keep_contact(self, ticket: Ticket) -> None:
        """Promise the first item after all: no verdict came in time, or none that refuses it."""
        if self._contact is not None and self._contact.ticket is ticket:
            contact, self._contact = self._contact, None
            for batch in contact.batches:
                batch.promised = True
                self.ledger.accepted += batch.row_count

    # What the pipeline asks for.

    def wake(self) -> None:
        """Something changed: look again."""
        self._wake.set()

    def probe_now(self) -> None:
        """A token or a wish changed: try at once."""
        self.pacing.probe_now(self._s.now())
        self.refusing = None
        self._wake.set()

    def drain(self, now: float, deadline: float) -> None:
        """Send everything until ``deadline``: freeze what is open, probe a hold once, let no pause outlast it."""
        self._drain_deadline = deadline
        self.pacing.drain(now, deadline)
        if self._open is not None:
            self._freeze(Trigger.DRAIN, now)
        self._wake.set()

    def abandon(self) -> None:
        """The process stops: count what is still here as lost, by reason, and tell who waits."""
        for batch in [*self._waiting, *self._in_flight.values()]:
            in_doubt = batch.ambiguous or batch.id in self._in_flight
            if batch.promised:
                self.ledger.drop(DropReason.IN_DOUBT if in_doubt else DropReason.SHUTDOWN, batch.row_count)
            _tell(batch.tickets, Dropped())
            self._end_span(batch, "in_doubt" if in_doubt else "dropped")
            self._s.buffer.release(batch, unconfirmed=self.unconfirmed)
        if self._open is not None:
            batch = freeze(self._open, batch_id="", key=self.key, trigger=Trigger.DRAIN, now=self._s.now())
            self.ledger.drop(DropReason.SHUTDOWN, batch.row_count)
            _tell(batch.tickets, Dropped())
            self._s.buffer.release(batch, unconfirmed=self.unconfirmed)
        self._open = self._contact = None
        self._waiting.clear()
        self._in_flight.clear()

    def recover_in_flight(self) -> None:
        """After the task died: what was in flight goes back, its outcome unknown."""
        for batch in list(self._in_flight.values()):
            self._mark_ambiguous(batch)
            self._put_back(batch)

    # The task.

    async def run(self) -> None:
        """Freeze what is due, send what may be sent, sleep until something can happen. Runs until cancelled."""
        async with asyncio.TaskGroup() as attempts:
            while True:
                self._wake.clear()
                delay_s = self._turn(attempts)
                try:
                    async with asyncio.timeout(delay_s):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    def _turn(self, attempts: asyncio.TaskGroup) -> float | None:
        """Begin what may begin now; return the seconds until the next turn, None if only an event can bring it."""
        now = self._s.now()
        while self.pacing.ready_at(now, len(self._in_flight)) <= now and (batch := self._next(now)) is not None:
            self.pacing.begin(now)
            self._in_flight[batch.id] = batch
            attempts.create_task(self._attempt(batch, now))
        for batch in self._to_compress:
            if batch.payload is None and batch.id not in self._in_flight:
                attempts.create_task(self._compress(batch))
        self._to_compress.clear()
        ready_at = self.pacing.ready_at(now, len(self._in_flight))
        if self._waiting:
            due_at = ready_at
        elif self._open is not None:
            due_at = max(ready_at, self._open.opened_at + self._s.limits.flush_interval_s)
        else:
            return None
        # A little late rather than a little early: timers may fire before their time by the clock's resolution.
        return None if math.isinf(due_at) else max(0.0, due_at - now) + 0.001

    def _next(self, now: float) -> FrozenBatch | None:
        """The oldest frozen batch, or the open one if it is due: nobody freezes what cannot be sent."""
        if self._waiting:
            return self._waiting.pop(0)
        if self._open is not None and now >= self._open.opened_at + self._s.limits.flush_interval_s:
            trigger = Trigger.INTERVAL if self._drain_deadline is None else Trigger.DRAIN
            self._freeze(trigger, now)
            return self._waiting.pop(0)
        return None

    async def _compress(self, batch: FrozenBatch) -> None:
        """Make the payload before it can be sent: a waiting batch is kept compressed."""
        try:
            payload = await self._s.compress(batch.bodies)
        except Exception:  # noqa: BLE001 - the attempt tries again; nothing may kill the destination's task
            self._s.meters.internal_errors += 1
            _log.warning("a batch could not be compressed; it stays as it is", exc_info=True)
            return
        if batch.payload is None:
            batch.payload, batch.bodies = payload, []

    async def _attempt(self, batch: FrozenBatch, started_at: float) -> None:
        """One request with ``batch``, and what follows from it."""
        try:
            decision = await self._send(batch)
        except UpstreamError as error:
            decision = judge_failure(error)
        except Exception as error:  # noqa: BLE001 - whatever broke, the batch must go back
            self._s.meters.internal_errors += 1
            _log.warning("an attempt broke inside the proxy; the batch is kept", exc_info=True)
            decision = Again(f"an error inside the proxy ({type(error).__name__})", ambiguous=True)
        await self._carry_out(decision, batch, started_at)
        self._wake.set()

    async def _send(self, batch: FrozenBatch) -> Decision:
        secret = self._secret()
        if secret is None:
            return Held("the file of TINYBIRD_TOKEN_FILE is not there yet")
        if batch.payload is None:
            batch.payload = await self._s.compress(batch.bodies)
            batch.bodies = []
        reply = await self._request(batch, secret)
        own = self._s.own_token
        if isinstance(secret, Secret) and own is not None:
            now = self._s.utc_now().timestamp()
            if reply.status in (401, 403):
                own.denied(secret, now)
                if secret is own.candidate and own.current is not None:
                    # The new token may be the wrong one: the old one, at once, with the same batch.
                    self.pacing.begin(self._s.now())
                    candidate, secret = secret, own.current
                    reply = await self._request(batch, secret)
                    if 200 <= reply.status < 300:
                        own.reject_candidate(candidate, now)
                        _log.error(
                            "Tinybird refuses the changed token; the one before it stays in use",
                            extra=fields(rejected=candidate.hash, in_use=secret.hash, data_source=self.key.name),
                        )
            if 200 <= reply.status < 300:
                if secret is own.candidate:
                    _log.info("the changed token is in use", extra=fields(token=secret.hash))
                own.accepted(secret, now)
        return judge(reply, batch.row_count, counts_seen=self._s.upstream.counts_seen, now_utc=self._s.utc_now())

    def _secret(self) -> Secret | str | None:
        if self.key.token is not None:
            return self.key.token
        own = self._s.own_token
        return own.choose(self._s.utc_now().timestamp()) if own is not None else None

    async def _request(self, batch: FrozenBatch, secret: Secret | str) -> Reply:
        """Send ``batch`` once, inside a client span."""
        began_at = self._s.now()
        batch.attempts += 1
        wait = self._s.upstream_wait or any(ticket.open for ticket, _ in batch.tickets)
        url = self._s.upstream.url(self.key, wait=wait)
        if batch.span is None:
            batch.span = self._s.tracer.flush(batch, oldest_age_s=began_at - batch.oldest_at)
        span = batch.span.attempt(url, batch.attempts)
        meters = self._s.meters
        status: int | None = None
        problem: str | None = "cancelled"
        try:
            assert batch.payload is not None  # noqa: S101 - the caller made it
            reply = await self._s.upstream.send(
                url,
                batch.payload,
                token=secret.value if isinstance(secret, Secret) else secret,
                batch_id=batch.id,
                vias=batch.vias,
                traceparent=span.traceparent,
            )
            status, problem = reply.status, None
        except UpstreamError as error:
            problem = _failure_label(error)
            raise
        finally:
            meters.upstream_replies[str(status) if status is not None else (problem or "")] += 1
            meters.upstream_seconds.observe(self._s.now() - began_at)
            span.end(status=status, error_type=problem)
        return reply

    async def _carry_out(self, decision: Decision, batch: FrozenBatch, started_at: float) -> None:
        now = self._s.now()
        match decision:
            case Settled():
                if decision.delivered or decision.quarantined:
                    self._s.upstream.counts_seen = True
                await self._s.buffer.record_outcome(batch)
                self._settle(decision, batch, started_at, now)
            case Again():
                self._note_trouble(decision.reason, now, batch)
                if decision.ambiguous:
                    self._mark_ambiguous(batch)
                if decision.throttled:
                    self.pacing.throttled(now, started_at, decision.retry_after_s, decision.reason)
                else:
                    self.pacing.failed(now, started_at, decision.reason)
                self._put_back(batch)
                if self.next_attempt_in(now) > self._s.wait_timeout_s:
                    self._stop_waiting()
            case Held():
                if decision.ambiguous:
                    self._mark_ambiguous(batch)
                self._hold(decision.reason, batch, now)
            case Denied():
                if not self.pacing.confirmed and (self.key.token is not None or decision.status == 404):
                    self._refuse(decision, batch, now)
                else:
                    self._hold(decision.reason, batch, now)

    def _settle(self, outcome: Settled, batch: FrozenBatch, started_at: float, now: float) -> None:
        """Ledger, tickets, metrics, span, and only then the buffer forgets."""
        was_unconfirmed = self.unconfirmed
        if not batch.promised and self._contact is not None:
            self.keep_contact(self._contact.ticket)
        self.pacing.succeeded(started_at)
        self.refusing = None
        self.ledger.delivered += outcome.delivered
        self.ledger.quarantined += outcome.quarantined
        self.ledger.unverified += outcome.unverified
        for ticket, row_count in batch.tickets:
            if outcome.unverified:
                ticket.resolve(Buffered())
            else:
                ticket.part_settled(row_count, batch.row_count, outcome.quarantined)
        meters = self._s.meters
        meters.delivered_rate.add(batch.row_count, now)
        meters.delivery_seconds.observe(now - batch.oldest_at)
        meters.sent_batches += 1
        meters.sent_raw_bytes += batch.size_bytes
        meters.sent_wire_bytes += len(batch.payload.body) if batch.payload is not None else 0
        self._log_outcome(outcome, batch, now)
        self._end_span(batch, "delivered" if not outcome.unverified else "unverified")
        del self._in_flight[batch.id]
        self._s.buffer.release(batch, unconfirmed=was_unconfirmed)
        if was_unconfirmed:
            rows, size = self._held()
            self._s.buffer.confirm(rows, size)
        self._s.after_settling()

    def _hold(self, reason: str, batch: FrozenBatch, now: float) -> None:
        self._note_trouble(reason, now, batch, held=True)
        self.pacing.hold(now, reason)
        self._put_back(batch)
        self._stop_waiting()

    def _refuse(self, denied: Denied, batch: FrozenBatch, now: float) -> None:
        """Never confirmed, and Tinybird says no: clients hear it; what was promised before is kept and probed."""
        self.refusing = Refusing(denied.status, denied.message or denied.reason, now + REFUSAL_S)
        self._hold(denied.reason, batch, now)
        contact, self._contact = self._contact, None
        if contact is None:
            return
        for mine in contact.batches:
            self._waiting.remove(mine)
            self._end_span(mine, "not_taken")
            self._s.buffer.release(mine, unconfirmed=self.unconfirmed)
        contact.ticket.resolve(NotTaken(denied.status, self.refusing.message))
        self._s.after_settling()

    def _put_back(self, batch: FrozenBatch) -> None:
        """Back to the others, oldest first; what was only a first contact becomes a promise, unless it is refused."""
        self._in_flight.pop(batch.id, None)
        bisect.insort(self._waiting, batch, key=lambda other: other.frozen_at)
        if not batch.promised and self._contact is not None and self.refusing is None:
            ticket = self._contact.ticket
            self.keep_contact(ticket)
            if ticket.contact_only:
                ticket.resolve(Buffered())

    def _stop_waiting(self) -> None:
        """Nobody should wait for what will not come soon: 202, the rows stay."""
        tickets = [pair for batch in self._waiting if batch.promised for pair in batch.tickets]
        _tell(tickets + (self._open.tickets if self._open is not None else []), Buffered())

    def _mark_ambiguous(self, batch: FrozenBatch) -> None:
        if not batch.ambiguous:
            batch.ambiguous = True
            self.ledger.ambiguous += batch.row_count

    def _freeze(self, trigger: Trigger, now: float) -> FrozenBatch:
        assert self._open is not None  # noqa: S101 - callers look first
        batch = freeze(self._open, batch_id=self._s.next_batch_id(), key=self.key, trigger=trigger, now=now)
        self._open = None
        self._waiting.append(batch)
        self._to_compress.append(batch)
        self._s.buffer.freeze(batch)
        self._s.meters.batches[trigger] += 1
        self._wake.set()
        return batch

    def _parts(self, rows: Rows, ticket: Ticket | None) -> list[Rows]:
        limits = self._s.limits
        if rows.row_count <= limits.max_rows and len(rows.body) <= limits.max_bytes:
            return [rows]
        parts = list(cut(rows, max_rows=limits.max_rows, max_bytes=limits.max_bytes))
        if ticket is not None:
            ticket.parts = len(parts)
        return parts

    # What others want to know.

    def buffered_rows(self) -> int:
        """Promised rows that are really here: counted from the batches, not from the ledger."""
        frozen = sum(batch.row_count for batch in self._frozen() if batch.promised)
        return frozen + (self._open.row_count if self._open is not None else 0)

    def oldest_at(self) -> float | None:
        """When the oldest row here came in."""
        times = [batch.oldest_at for batch in self._frozen()]
        if self._open is not None:
            times.append(self._open.opened_at)
        return min(times, default=None)

    def facts(self) -> DestinationFacts:
        """How this destination stands, for ``/status`` and the metrics."""
        now = self._s.now()
        rows = self.buffered_rows()
        oldest_at = self.oldest_at()
        pause = self.pacing.paused_until - now
        return DestinationFacts(
            data_source=self.key.name,
            params=dict(self.key.params),
            token_hash=None if self.key.token is None else fingerprint(self.key.token),
            state=self.pacing.state,
            reason=self.pacing.reason,
            confirmed=self.pacing.confirmed,
            buffered_rows=rows,
            buffered_bytes=self._held()[1],
            held_bytes=sum(_memory_of(batch) for batch in self._frozen())
            + (self._open.size_bytes if self._open is not None else 0),
            oldest_age_s=None if oldest_at is None else now - oldest_at,
            in_flight=len(self._in_flight),
            places=self.pacing.places,
            batches_waiting=len(self._waiting),
            next_attempt_in_s=None if self._in_flight or math.isinf(pause) else max(0.0, pause),
            not_delivering_for_s=None if self._trouble_since is None else now - self._trouble_since,
            refusing=None if self.refusing is None else self.refusing.status,
            ledger=self.ledger.as_dict(rows),
        )

    def _frozen(self) -> list[FrozenBatch]:
        return [*self._waiting, *self._in_flight.values()]

    def _held(self) -> tuple[int, int]:
        """Rows and bytes that count towards the buffer's occupancy."""
        rows = sum(batch.row_count for batch in self._frozen())
        size = sum(batch.size_bytes for batch in self._frozen())
        if self._open is not None:
            rows += self._open.row_count
            size += self._open.size_bytes
        return rows, size

    def _note_trouble(self, reason: str, now: float, batch: FrozenBatch, *, held: bool = False) -> None:
        """Log when trouble begins or changes its kind, not at every attempt."""
        new = self._trouble_since is None or (held and self.pacing.state is not State.HELD)
        if self._trouble_since is None:
            self._trouble_since = now
        batch.last_problem = reason
        if new:
            _log.warning(
                "a destination is held: its rows are kept and probed each minute"
                if held
                else "a destination is not delivering; its rows are kept and tried again",
                extra=fields(data_source=self.key.name, reason=reason, rows=self.buffered_rows(), batch=batch.id),
            )

    def _log_outcome(self, outcome: Settled, batch: FrozenBatch, now: float) -> None:
        if self._trouble_since is not None and self.pacing.state is State.DELIVERING:
            _log.info(
                "a destination delivers again",
                extra=fields(data_source=self.key.name, after_s=round(now - self._trouble_since, 1)),
            )
            self._trouble_since = None
        if outcome.mismatch:
            _log.error(
                "Tinybird's counts do not add up to the rows sent; the difference is counted as unverified",
                extra=fields(
                    data_source=self.key.name, rows=batch.row_count, unverified=outcome.unverified, batch=batch.id
                ),
            )
        self._quarantined_unlogged += outcome.quarantined
        if self._quarantined_unlogged and now - self._quarantine_logged_at >= LOG_EVERY_S:
            _log.warning(
                "Tinybird put rows into quarantine: they do not fit the data source's schema",
                extra=fields(data_source=self.key.name, rows=self._quarantined_unlogged, batch=batch.id),
            )
            self._quarantined_unlogged = 0
            self._quarantine_logged_at = now

    def _end_span(self, batch: FrozenBatch, verdict: str) -> None:
        if batch.span is not None:
            batch.span.end(verdict=verdict, attempts=batch.attempts)


def _join(
    batch: OpenBatch, rows: Rows, now: float, ticket: Ticket | None, traceparent: str | None, vias: str | None
) -> None:
    batch.add(rows, now)
    if ticket is not None:
        batch.tickets.append((ticket, rows.row_count))
    if traceparent is not None:
        batch.link(traceparent)
    if vias is not None:
        batch.came_via(vias)


def _tell(tickets: list[tuple[Ticket, int]], outcome: Buffered | Dropped) -> None:
    for ticket, _ in tickets:
        ticket.resolve(outcome)


def _memory_of(batch: FrozenBatch) -> int:
    return batch.size_bytes if batch.payload is None else len(batch.payload.body)


def _failure_label(error: UpstreamError) -> str:
    if isinstance(error, ConnectFailed):
        return "connect_failed"
    return "timeout" if isinstance(error, ResponseTimeout) else "broken"
