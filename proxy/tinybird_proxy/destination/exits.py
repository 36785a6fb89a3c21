"""The ways out of a destination: settled, dead letter, dropped. Each is counted, told, and only then forgotten."""

from collections.abc import Callable
from dataclasses import replace

from tinybird_proxy.batch import DestinationKey, FrozenBatch, Payload
from tinybird_proxy.dead_letter import DeadLetter
from tinybird_proxy.destination.chronicle import Chronicle
from tinybird_proxy.destination.queue import BatchQueue
from tinybird_proxy.destination.split import Split
from tinybird_proxy.destination.surroundings import Surroundings
from tinybird_proxy.ledger import DropReason, Ledger, LetterReason
from tinybird_proxy.ticket import Buffered, Dropped, Refused
from tinybird_proxy.verdict import Rejected, Settled


class Exits:
    """Ledger, tickets, metrics, span, and then the buffer forgets. ``is_unconfirmed`` says how the rows are counted."""

    def __init__(
        self,
        key: DestinationKey,
        surroundings: Surroundings,
        queue: BatchQueue,
        ledger: Ledger,
        chronicle: Chronicle,
        is_unconfirmed: Callable[[], bool],
    ) -> None:
        self._key = key
        self._s = surroundings
        self._queue = queue
        self._ledger = ledger
        self._chronicle = chronicle
        self._is_unconfirmed = is_unconfirmed

    def settle(self, batch: FrozenBatch, outcome: Settled, now: float) -> None:
        """Tinybird has the rows."""
        self._ledger.delivered += outcome.delivered
        self._ledger.quarantined += outcome.quarantined
        self._ledger.unverified += outcome.unverified
        for ticket, _, row_count in batch.tickets:
            if outcome.unverified:
                ticket.resolve(Buffered())
            else:
                ticket.rows_settled(row_count, batch.row_count, outcome.quarantined)
        meters = self._s.meters
        meters.recent_delivered.add(batch.row_count, now)
        meters.delivery_seconds.observe(now - batch.oldest_at)
        meters.sent_batches += 1
        meters.sent_raw_bytes += batch.size_bytes
        meters.sent_wire_bytes += len(batch.payload.body) if batch.payload is not None else 0
        self._end_replays(batch)
        self.let_go(batch, "unverified" if outcome.unverified else "delivered")
        self._chronicle.settled(outcome, batch, now)

    def give_up(
        self, batch: FrozenBatch, reason: LetterReason, now: float, *, status: int | None, message: str
    ) -> None:
        """All rows of ``batch``, a whole one or a piece, become one dead letter."""
        now_utc_s = self._s.utc_now().timestamp()
        before = [place.letter for place in batch.replays]
        if any(letter.doubles for letter in before):
            reason = LetterReason.PARTIAL  # whatever else is wrong with it now, sending it again doubles rows
        letter = DeadLetter(
            id=batch.id,
            key=self._key,
            ledger=self._ledger,
            payload=batch.payload or Payload(b"\n".join(batch.bodies), None),
            row_count=batch.row_count,
            raw_bytes=batch.size_bytes,
            reason=reason,
            status=status,
            message=message,
            batch_id=batch.id if batch.split is None else batch.split.batch.id,
            first_at=min((letter.first_at for letter in before), default=now_utc_s - now + batch.oldest_at),
            last_at=self._s.letters.given_up_at(now_utc_s),
            ambiguous=batch.ambiguous
            or (batch.split is not None and batch.split.ambiguous)
            or any(letter.ambiguous for letter in before),
            client_told=any(letter.client_told for letter in before),
            replays=max((letter.replays for letter in before), default=0),
        )
        self._s.meters.dead_letters[reason] += batch.row_count
        self._end_replays(batch)
        self.let_go(batch, reason)
        self._s.letters.add(letter)
        kept = self._s.letters.holds(letter)
        what = "are kept as dead letters" if kept else "are lost: DEAD_LETTER_BYTES has no room for them"
        told = Refused(status or 503, f"{message}; the rows {what}")
        for ticket, _, row_count in batch.tickets:
            ticket.rows_refused(row_count, told, letter if row_count == batch.row_count else None)
        self._chronicle.gave_up(letter, now, kept=kept)

    def give_back(self, batch: FrozenBatch, refusal: Rejected) -> None:
        """A replay was refused whole: its letters are held again as they were."""
        if any(place.row_count != place.letter.row_count for place in batch.replays):
            # Halved after a 413: other rows of the letter went another way, so these become a letter of their own.
            undecided = LetterReason.UNDECIDED
            self.give_up(batch, undecided, self._s.now(), status=refusal.status, message=refusal.said)
            return
        for place in batch.replays:
            place.letter.status, place.letter.message = refusal.status, refusal.said
            place.letter.ambiguous |= batch.ambiguous
            place.letter.last_at = self._s.letters.given_up_at(self._s.utc_now().timestamp())
        self.let_go(batch, "refused")
        for place in batch.replays:
            self._s.letters.replay_refused(place.letter)

    def drop(self, batch: FrozenBatch) -> None:
        """The process stops before ``batch`` is settled."""
        in_doubt = batch.ambiguous or self.is_out(batch)
        if batch.promised:
            self._ledger.drop(DropReason.IN_DOUBT if in_doubt else DropReason.SHUTDOWN, batch.row_count)
        for place in batch.tickets:
            place.ticket.resolve(Dropped())
        self.let_go(batch, "in_doubt" if in_doubt else "dropped")

    def is_out(self, batch: FrozenBatch) -> bool:
        """Whether Tinybird may have ``batch`` by the attempt that is being made; one that only connects has no byte."""
        return batch.exposed and batch.id in self._queue.in_flight

    def drop_split(self, split: Split) -> None:
        """The process stops while ``split`` is not decided."""
        if split.piece is not None:
            self.drop(split.piece)
        rest = replace(split.batch, row_count=split.rows_left, size_bytes=split.bytes_left, replays=[])
        rest.ambiguous |= split.ambiguous
        self._queue.end_split(split, whole=True)
        self._queue.waiting[self._queue.waiting.index(split.batch)] = rest
        self.drop(rest)

    def mark_ambiguous(self, batch: FrozenBatch, *, counted_rows: int = 0) -> None:
        """Tinybird may have taken ``batch`` although no reply said so. ``counted_rows``: of them, as pieces before."""
        if batch.ambiguous:
            return
        batch.ambiguous = True
        row_count = batch.row_count - counted_rows
        if batch.split is not None:
            row_count = min(row_count, batch.split.batch.row_count - batch.split.ambiguous_rows)
            batch.split.ambiguous_rows += row_count
        self._ledger.ambiguous += row_count

    def let_go(self, batch: FrozenBatch, verdict: str) -> None:
        """The end of ``batch``: its span, then the buffer forgets it."""
        batch.end_span(verdict)
        self._queue.take_out(batch)
        self._s.buffer.release(batch, unconfirmed=self._is_unconfirmed())
        self._s.after_settling()

    def _end_replays(self, batch: FrozenBatch) -> None:
        for place in batch.replays:
            self._s.letters.replay_ended(place.letter, place.row_count)
