"""What follows when Tinybird refuses a batch for good: halves after 413, a bisection after 400.

A batch that is being split is asked about one piece at a time, and other batches go on meanwhile. Its pieces are new
frozen batches, which are sent like any other; only what their refusal means is decided here.
"""

from collections.abc import Callable, Coroutine

from tinybird_proxy.batch import FrozenBatch, ItemBounds, piece
from tinybird_proxy.bisect import Ended
from tinybird_proxy.ceiling import LEAST_BYTES, Ceiling
from tinybird_proxy.destination.exits import Exits
from tinybird_proxy.destination.queue import BatchQueue
from tinybird_proxy.destination.split import Split
from tinybird_proxy.destination.surroundings import Surroundings
from tinybird_proxy.health import SplitFacts
from tinybird_proxy.ledger import LetterReason
from tinybird_proxy.telemetry.logs import get_logger
from tinybird_proxy.verdict import Rejected

# Other batches go on meanwhile: the search must not use up what Tinybird lets us ask.
PIECES_PER_S = 10.0
# So many small batches in a row refused to the last row: it is the request that is wrong, not all of these rows.
SMALL_REFUSED_MAX = 3
_RETRY_S = 1.0
_log = get_logger("destination")


class Splitting:
    """The refused batches of one destination.

    ``hold(reason)`` makes it wait for a person, ``release`` ends that, ``wake`` begins a turn.
    """

    def __init__(
        self,
        queue: BatchQueue,
        exits: Exits,
        surroundings: Surroundings,
        *,
        hold: Callable[[str, int], None],
        release: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._exits = exits
        self._s = surroundings
        self._hold = hold
        self._release = release
        self._wake = wake
        self._ceiling = Ceiling()
        self._small_refused = 0
        self._tiny_too_large = 0
        self._pause_s = max(1.0 / PIECES_PER_S, 2.0 / surroundings.pacing.rate)  # half of the pace at most

    @property
    def active(self) -> Split | None:
        """The batch that is being asked about."""
        return self._queue.splits[0] if self._queue.splits else None

    def ceiling_bytes(self, now: float) -> float:
        """The largest request, as sent, that Tinybird is known to take; infinity if it never refused one."""
        return self._ceiling.at(now)

    def facts(self) -> SplitFacts | None:
        """How the search stands; None if there is none."""
        split = self.active
        if split is None:
            return None
        return SplitFacts(
            reason=split.refusal.reason,
            rows=split.batch.row_count,
            rows_left=split.rows_left,
            requests=split.bisection.requests,
            waiting=len(self._queue.splits) - 1,
        )

    def next_piece(self, now: float) -> FrozenBatch | None:
        """The piece that may be sent now."""
        split, due_at = self.active, self.next_piece_at()
        return split.piece if split is not None and due_at is not None and due_at <= now else None

    def next_piece_at(self) -> float | None:
        """When a piece that waits may be sent; None if none waits."""
        split = self.active
        if split is None or split.piece is None or split.piece.id in self._queue.in_flight:
            return None
        return split.next_at

    def job(self, now: float) -> Coroutine[None, None, None] | None:
        """Work on the active batch that has to be begun in a task now."""
        split, due_at = self.active, self.next_job_at()
        if split is None or due_at is None or now < due_at:
            return None
        split.busy = True
        return self._work(split)

    def next_job_at(self) -> float | None:
        """When there is such work; None if none is known of."""
        split = self.active
        return None if split is None or split.busy or split.piece is not None else split.next_at

    def drain(self) -> None:
        """Nothing new comes, and what is not delivered by the end is lost: no pauses between pieces."""
        self._pause_s = 0.0
        for split in self._queue.splits:
            split.next_at = 0.0

    def interrupted(self) -> None:
        """The tasks died: what they were at is begun anew."""
        for split in self._queue.splits:
            split.busy = False

    # What a reply means.

    def begin(self, batch: FrozenBatch, refusal: Rejected) -> None:
        """Look for the rows of ``batch``, in flight, that Tinybird refused with 400."""
        self._queue.begin_split(Split(batch, refusal))
        batch.end_span("split")

    def refused(self, batch: FrozenBatch, refusal: Rejected, now: float) -> None:
        """Tinybird refused a piece."""
        split: Split = batch.split
        self._queue.in_flight.pop(batch.id)
        batch.end_span("split")
        split.refused(refusal)
        self._answered(split, now)

    def settled(self, batch: FrozenBatch, now: float) -> None:
        """Tinybird has the rows of ``batch``, which may be a piece and has left already."""
        self._small_refused = self._tiny_too_large = 0
        if batch.split is not None:
            batch.split.accepted()
            self._answered(batch.split, now)

    def is_too_large(self, batch: FrozenBatch, now: float) -> bool:
        """Whether ``batch`` is known to be refused with 413 before it is sent."""
        return (
            batch.row_count > 1
            and batch.promised
            and batch.split is None
            and batch.payload is not None
            and len(batch.payload.body) > self._ceiling.at(now)
        )

    def learn_size(self, batch: FrozenBatch, now: float) -> None:
        """``batch`` was refused with 413."""
        if batch.payload is not None:
            self._ceiling.refused(len(batch.payload.body), now)

    def is_no_row_too_large(self, batch: FrozenBatch) -> bool:
        """Whether 413 to ``batch``, a single row, says nothing of the row: so many small ones were refused."""
        if batch.replays or batch.size_bytes > LEAST_BYTES:
            return False
        self._tiny_too_large += 1
        return self._tiny_too_large >= SMALL_REFUSED_MAX

    async def halve(self, batch: FrozenBatch) -> None:
        """Send ``batch``, in flight and of at least two rows, in two parts instead."""
        assert batch.payload is not None  # noqa: S101 - it was to be sent
        bounds, first, parts = ItemBounds(batch.row_counts), 0, []
        for body in await self._s.codec.halves(batch.payload):
            end = first + body.count(b"\n") + 1
            parts.append(piece(batch, bounds, batch_id=batch.next_piece_id(), first=first, end=end, body=body))
            first = end
        batch.end_span("split")
        self._queue.replace(batch, parts)

    # The work on one batch.

    def _answered(self, split: Split, now: float) -> None:
        split.next_at = now + self._pause_s
        if split.bisection.ended is not Ended.SMALL_AND_REFUSED:
            self._give_up_condemned(split, now)

    def _give_up_condemned(self, split: Split, now: float) -> None:
        for row, refusal in split.take_condemned():
            self._give_up(row, refusal, now)

    async def _work(self, split: Split) -> None:
        try:
            if split.bisection.ended is None:
                await self._cut(split)
            else:
                await self._finish(split, split.bisection.ended)
        except Exception:  # noqa: BLE001 - nothing may kill the destination's task; the split stays as it is
            self._s.meters.internal_errors += 1
            split.next_at = self._s.now() + _RETRY_S
            _log.warning("a refused batch could not be cut; it is tried again", exc_info=True)
        finally:
            split.busy = False
        self._wake()

    async def _cut(self, split: Split) -> None:
        """Make the piece that is to be asked about next."""
        asking, payload = split.bisection.asking, split.batch.payload
        assert asking is not None  # noqa: S101 - it has not ended
        assert payload is not None  # noqa: S101 - it was sent
        (body,) = await self._s.codec.rows_of(payload, [asking])
        split.piece = split.cut_off(asking.first, asking.end, body)

    async def _finish(self, split: Split, how: Ended) -> None:
        if how is Ended.NOTHING_ACCEPTED:
            self._put_back_whole(split, "no part of its rows is taken either")
        elif how is Ended.SMALL_AND_REFUSED:
            self._finish_small(split)
        else:
            await self._give_up_undecided(split)
            self._queue.end_split(split, whole=False)
            if how is not Ended.STOPPED:
                self._release()  # Tinybird has judged these rows, so whatever was held before is put right

    def _finish_small(self, split: Split) -> None:
        """Each of a handful of rows was refused alone."""
        if split.batch.replays or self._small_refused + 1 >= SMALL_REFUSED_MAX:
            self._put_back_whole(split, "so was every row of the batches before")
            return
        self._small_refused += 1
        self._release()
        if split.batch.row_count > 1:
            self._give_up_condemned(split, self._s.now())
            self._queue.end_split(split, whole=False)
            return
        self._queue.end_split(split, whole=True)
        self._give_up(split.batch, split.refusal, self._s.now())

    def _put_back_whole(self, split: Split, why: str) -> None:
        """Nothing of it was accepted. A replay goes back to the letters, anything else is held for a person."""
        if split.ambiguous:
            self._exits.mark_ambiguous(split.batch, counted_rows=split.ambiguous_rows)
        self._queue.end_split(split, whole=True)
        if split.batch.replays:
            self._exits.give_back(split.batch, split.refusal)
        else:
            # The next probe is made with another batch, if there is one: are they all refused, or only these rows?
            self._queue.move_back(split.batch, self._s.now())
            self._hold(f"{split.refusal.reason}; {why}", split.refusal.status)

    async def _give_up_undecided(self, split: Split) -> None:
        """What the search left over becomes dead letters, in as few pieces as it is known in."""
        batch, undecided = split.batch, split.bisection.undecided()
        assert batch.payload is not None  # noqa: S101 - it was sent
        bodies = await self._s.codec.rows_of(batch.payload, undecided)
        payloads = [await self._s.codec.compress([body]) for body in bodies]
        refusal = split.refusal
        reason, message, status = split.ended_by or (LetterReason.UNDECIDED, refusal.said, refusal.status)
        for (first, end), body, payload in zip(undecided, bodies, payloads, strict=True):
            left = split.cut_off(first, end, body)
            left.payload = payload
            self._exits.give_up(left, reason, self._s.now(), status=status, message=message)

    def _give_up(self, batch: FrozenBatch, refusal: Rejected, now: float) -> None:
        reason = LetterReason.TOO_LARGE if refusal.too_large else LetterReason.REJECTED
        self._exits.give_up(batch, reason, now, status=refusal.status, message=refusal.said)
