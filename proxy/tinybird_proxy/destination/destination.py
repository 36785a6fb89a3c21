"""One destination: what it holds, how it stands with Tinybird, and what each verdict changes about that.

When something is sent stands in ``sender``, what follows a refusal for good in ``splitting``, how rows leave in
``exits``.

Items come in through ``put`` (synchronous, on the request's path). Nothing that one destination does waits for another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tinybird_proxy.batch import DestinationKey, FrozenBatch, Trigger
from tinybird_proxy.dead_letter import DeadLetter
from tinybird_proxy.destination.chronicle import Chronicle
from tinybird_proxy.destination.contact import FirstContact, end_contact
from tinybird_proxy.destination.exits import Exits
from tinybird_proxy.destination.expiry import Expiry
from tinybird_proxy.destination.facts import make_facts
from tinybird_proxy.destination.queue import BatchQueue
from tinybird_proxy.destination.sender import Sender
from tinybird_proxy.destination.splitting import Splitting
from tinybird_proxy.destination.surroundings import Surroundings
from tinybird_proxy.health import DestinationFacts
from tinybird_proxy.ledger import Ledger, LetterReason
from tinybird_proxy.pacing import Pacing, State
from tinybird_proxy.rows import Rows
from tinybird_proxy.telemetry.logs import get_logger
from tinybird_proxy.ticket import Buffered, Ticket
from tinybird_proxy.verdict import Again, Decision, Denied, Held, Partial, Rejected, Settled

REFUSAL_S = 60.0
_log = get_logger("destination")


@dataclass(frozen=True, slots=True)
class Refusing:
    """Requests are answered with ``status`` until ``until``: Tinybird said so, and nothing of ours can change it."""

    status: int
    message: str
    until: float


class Destination:
    """Queue, pacing and ledger of one destination. ``sender`` is its task, which somebody has to run."""

    def __init__(self, key: DestinationKey, surroundings: Surroundings, ledger: Ledger) -> None:
        """``ledger`` is empty, or goes on from where this destination was forgotten with dead letters."""
        now = surroundings.now()
        self.key = key
        self.ledger = ledger
        self.pacing = Pacing(surroundings.pacing, jitter=surroundings.jitter, now=now)
        self.refusing: Refusing | None = None
        self.used_at = now
        self.lost_because = ""  # what stood in the way when the process ended
        self._s = surroundings
        self._queue = BatchQueue(key, surroundings.limits, surroundings.next_batch_id)
        self._chronicle = Chronicle(key.name, surroundings.strangers_log)
        self._exits = Exits(
            key, surroundings, self._queue, ledger, self._chronicle, is_unconfirmed=lambda: self.unconfirmed
        )
        self._expiry = Expiry(self._queue, self._exits, surroundings.max_age_s)
        self._splitting = Splitting(
            self._queue, self._exits, surroundings, hold=self._hold_split, release=self._release, wake=self._wake_up
        )
        self._contact = FirstContact(self._queue, self._exits, ledger, surroundings.meters)
        self._status: int | None = None  # of the last answer that was no success
        self._settled_at: float | None = None
        self.sender = Sender(
            key,
            surroundings,
            queue=self._queue,
            pacing=self.pacing,
            expiry=self._expiry,
            splitting=self._splitting,
            expire=self._expire,
            halve=self._halve,
            carry_out=self._carry_out,
        )

    # What the request's path asks and does: plain and synchronous.

    @property
    def unconfirmed(self) -> bool:
        """Whether this is a client's own token that Tinybird has not accepted here yet."""
        return self.key.token is not None and not self.pacing.confirmed

    @property
    def idle(self) -> bool:
        """Whether nothing is held, so that the destination may be forgotten."""
        return self._queue.empty

    @property
    def delivering(self) -> bool:
        """Whether rows flow as far as we know. Refused batches that queue up to be searched are no flow."""
        return self.pacing.delivering and len(self._queue.splits) < 2

    @property
    def wants_contact(self) -> bool:
        """Whether the next item should go out at once, to learn whether token and data source are good."""
        return not self.pacing.confirmed and self.pacing.state in (State.NEW, State.HELD) and self.idle

    def refusal(self, now: float) -> Refusing | None:
        """What the next request is refused with, if it is."""
        if self.refusing is not None and (now < self.refusing.until or not self.idle):
            return self.refusing
        return None

    def next_attempt_in(self, now: float) -> float:
        """Seconds until something may be sent, as far as pauses decide."""
        return max(0.0, self.pacing.paused_until - now)

    def put(self, rows: Rows, now: float, ticket: Ticket | None, traceparent: str | None, vias: str | None) -> None:
        """Take an accepted item: it is promised from here on."""
        self.ledger.accepted += rows.row_count
        self.used_at = now
        if self._queue.add(rows, now, ticket, traceparent, vias):
            self.sender.wake()

    def put_contact(self, rows: Rows, now: float, ticket: Ticket, traceparent: str | None, vias: str | None) -> None:
        """Send an item at once that nobody has promised anything about yet. ``keep_contact`` makes it a promise."""
        self._expiry.accepted()  # nothing is held here: an old refusal must not age what comes now
        self._contact.begin(rows, now, ticket, traceparent, vias)
        self.used_at = now
        self.pacing.probe_now(now)
        self.sender.wake()

    def keep_contact(self, ticket: Ticket) -> None:
        """Promise the first item after all: no verdict came in time, or none that refuses it."""
        self._contact.keep(ticket)

    def put_replay(self, items: Sequence[tuple[Rows, DeadLetter]], now: float) -> None:
        """Take the rows of dead letters back, in a batch of their own."""
        if self.idle:
            self._expiry.accepted()  # an old refusal must not age what nobody has asked about since
        for _, letter in items:
            self._s.letters.begin_replay(letter)
        self._queue.add_replay(items, now)
        self.used_at = now
        self.sender.wake()

    # What the pipeline asks for.

    def probe_now(self) -> None:
        """A token changed, or a person asks: a hold waits no longer. Pauses of Tinybird's go on, and so do backoffs."""
        if self.pacing.state is State.HELD:
            self.pacing.probe_now(self._s.now())
        self.refusing = None
        self.sender.wake()

    def give_up_refused(self) -> None:
        """Room is needed: what Tinybird never accepted and refuses becomes dead letters before its hour is over."""
        if self.refusing is not None and not self._queue.in_flight and not self._queue.splits:
            self._expiry.hurry()
            self._expire(self._s.now())

    def flush_at_once(self, at_once: bool) -> None:
        """Whether what is open leaves as soon as it may, without waiting for company."""
        self._queue.flush_at_once = at_once
        self.sender.wake()

    def drain(self, now: float, deadline: float) -> None:
        """Send everything until ``deadline``: freeze what is open, probe a hold once, let no pause outlast it."""
        self.sender.draining = True
        self.pacing.drain(now, deadline)
        self._splitting.drain()
        if self._queue.open is not None:
            self._queue.freeze_open(Trigger.DRAIN, now)
        self.sender.wake()

    def abandon(self) -> None:
        """The process stops: count what is still here as lost, by reason, and tell who waits."""
        now = self._s.now()
        active = self._splitting.active
        self.lost_because = self.pacing.reason or (active.refusal.reason if active is not None else "")
        if self._queue.open is not None:
            self._queue.freeze_open(Trigger.DRAIN, now)
        for split in list(self._queue.splits):
            self._exits.drop_split(split)
        for batch in self._queue.frozen():
            self._exits.drop(batch)
        self._contact.end()

    def recover_in_flight(self) -> None:
        """After the task died: what was in flight goes back, its outcome unknown."""
        for batch in list(self._queue.in_flight.values()):
            if self._exits.is_out(batch):
                self._exits.mark_ambiguous(batch)
            self._put_back(batch)
        self._splitting.interrupted()

    # What the sender asks for.

    def _expire(self, now: float) -> None:
        """Give up on what is too old."""
        self._expiry.expire(now, self.pacing.reason, self.refusing.status if self.refusing is not None else None)

    async def _carry_out(self, decision: Decision, status: int | None, batch: FrozenBatch, started_at: float) -> None:
        """Do what follows from an attempt with ``batch``. ``status``: of a reply that was no success."""
        await self._follow(decision, batch, started_at)
        if isinstance(decision, Again | Held | Denied) and self.pacing.reason == decision.reason:
            self._status = status  # of the answer that says why, not of a late one from before it

    async def _follow(self, decision: Decision, batch: FrozenBatch, started_at: float) -> None:
        now = self._s.now()
        match decision:
            case Settled():
                await self._s.buffer.record_outcome(batch)
                self._settle(decision, batch, started_at, now)
            case Again():
                if decision.ambiguous:
                    self._exits.mark_ambiguous(batch)
                if decision.throttled:
                    self.pacing.throttled(now, started_at, decision.retry_after_s, decision.reason)
                else:
                    self.pacing.failed(now, started_at, decision.reason)
                self._put_back(batch)
                self._chronicle.trouble(decision.reason, now, self.buffered_rows(), held=False)
                if self.next_attempt_in(now) > self._s.wait_timeout_s:
                    self._stop_waiting()
            case Held():
                if decision.ambiguous:
                    self._exits.mark_ambiguous(batch)
                self._hold(decision.reason, batch, now, probe=decision.probe)
            case Rejected():
                self.pacing.answered(now, started_at)
                if self.pacing.state is State.NEW:
                    self._status = None
                await self._reject(decision, batch, started_at, now)
            case Partial():
                contact = self._contact.keep_that_of(batch)
                self._exits.give_up(batch, LetterReason.PARTIAL, now, status=decision.status, message=decision.said)
                self._went_in(batch, contact, started_at, now)
            case Denied():
                if not self.pacing.confirmed and (self.key.token is not None or decision.status == 404):
                    self._refuse(decision, batch, now)
                else:
                    self._hold(decision.reason, batch, now)

    async def _halve(self, batch: FrozenBatch, started_at: float) -> None:
        """Send ``batch``, which is too large, in two parts. Nothing was ingested: a failure here doubles nothing."""
        try:
            await self._splitting.halve(batch)
        except Exception as error:  # noqa: BLE001 - nothing may kill the destination's task; the batch must go back
            self._s.meters.internal_errors += 1
            _log.warning("a batch could not be halved; it is kept", exc_info=True)
            self.pacing.failed(self._s.now(), started_at, f"an error inside the proxy ({type(error).__name__})")
            self._put_back(batch)

    async def _reject(self, rejected: Rejected, batch: FrozenBatch, started_at: float, now: float) -> None:
        """Nothing of it was ingested, and unchanged it never will be."""
        if not batch.promised and self._contact.withdraw(rejected.status, rejected.said):
            return
        if rejected.too_large:
            self._splitting.learn_size(batch, now)
        if batch.split is not None:
            self._splitting.refused(batch, rejected, now)
        elif not rejected.too_large:
            self._splitting.begin(batch, rejected)
        elif batch.row_count > 1:
            await self._halve(batch, started_at)
        else:
            if self._splitting.is_no_row_too_large(batch):
                self._hold(f"{rejected.reason}, however small it is", batch, now)
                self._status = rejected.status
                self._queue.move_back(batch, now)  # the next probe is made with other rows: is it only these?
                return
            self._release()
            self._exits.give_up(batch, LetterReason.TOO_LARGE, now, status=rejected.status, message=rejected.said)

    def _settle(self, outcome: Settled, batch: FrozenBatch, started_at: float, now: float) -> None:
        """Tinybird has the rows: the destination flows, and is confirmed."""
        if outcome.mismatch or not outcome.unverified:
            self._s.upstream.counts_seen = True
        contact = self._contact.keep_that_of(batch)
        self._exits.settle(batch, outcome, now)
        self._settled_at = now
        self._went_in(batch, contact, started_at, now)

    def _went_in(self, batch: FrozenBatch, contact: Ticket | None, started_at: float, now: float) -> None:
        """Tinybird took rows, so token and data source are good. ``batch`` has left already."""
        end_contact(contact)
        self._splitting.settled(batch, now)
        was_unconfirmed = self.unconfirmed
        self.pacing.succeeded(started_at)
        self.refusing = None
        self._expiry.accepted()
        if was_unconfirmed:
            self._s.buffer.confirm(*self._queue.held())
        if self.pacing.state is State.DELIVERING:
            self._status = None
            self._chronicle.flows_again(now)

    def _hold_split(self, reason: str, status: int) -> None:
        """No part of a refused batch goes in either: somebody has to look."""
        now = self._s.now()
        self.pacing.hold(now, reason)
        self._status = status
        self._chronicle.trouble(reason, now, self.buffered_rows(), held=True)
        self._stop_waiting()

    def _release(self) -> None:
        self.pacing.release(self._s.now())
        if self.pacing.state is State.NEW:
            self._status = None

    def _wake_up(self) -> None:
        self.sender.wake()

    def _hold(self, reason: str, batch: FrozenBatch, now: float, *, probe: bool = True, refused: bool = False) -> None:
        self.pacing.hold(now, reason, probe=probe)
        self._put_back(batch, refused=refused)
        probed = not math.isinf(self.next_attempt_in(now))
        self._chronicle.trouble(reason, now, self.buffered_rows(), held=True, probed=probed)
        self._stop_waiting()

    def _refuse(self, denied: Denied, batch: FrozenBatch, now: float) -> None:
        """Never confirmed, and Tinybird says no: clients hear it; what was promised before is kept and probed."""
        self.refusing = Refusing(denied.status, denied.said, now + REFUSAL_S)
        self._expiry.refused(now)
        self._hold(denied.reason, batch, now, refused=True)
        self._contact.withdraw(denied.status, self.refusing.message)

    def _put_back(self, batch: FrozenBatch, *, refused: bool = False) -> None:
        """Back to the others; what was only a first contact becomes a promise, unless it is being refused."""
        self._queue.put_back(batch)
        if not refused:
            end_contact(self._contact.keep_that_of(batch))

    def _stop_waiting(self) -> None:
        """Nobody should wait for what will not come soon: 202, the rows stay."""
        for ticket in self._queue.tickets():
            ticket.resolve(Buffered())

    # What others want to know.

    def buffered_rows(self) -> int:
        """Promised rows that are really here: counted from the batches, not from the ledger."""
        return self._queue.promised_rows()

    def held(self) -> tuple[int, int]:
        """Rows and bytes, promised or not, that this destination has in the buffer."""
        return self._queue.held()

    def oldest_at(self) -> float | None:
        """When the oldest row here came in."""
        return self._queue.oldest_at()

    def facts(self) -> DestinationFacts:
        """How this destination stands, for ``/status`` and the metrics."""
        now = self._s.now()
        refusing = self.refusal(now)
        return make_facts(
            self.key,
            self._s,
            queue=self._queue,
            pacing=self.pacing,
            ledger=self.ledger,
            splitting=self._splitting,
            trouble_since=self._chronicle.trouble_since,
            settled_at=self._settled_at,
            status=self._status,
            refusing=None if refusing is None else refusing.status,
            now=now,
        )
