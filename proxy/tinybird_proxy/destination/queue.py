"""The batches of one destination: open, waiting, in flight, or being split. Plain code without a clock or a socket.

A batch is always in exactly one of these places; only ``take_out`` and ``end_split`` remove it. Pieces of a batch that
is being split may be in flight too, but their rows are counted with the split.
"""

import bisect
from collections.abc import Callable, Sequence

from tinybird_proxy.batch import BatchLimits, DestinationKey, FrozenBatch, OpenBatch, Replayed, Trigger, freeze
from tinybird_proxy.dead_letter import DeadLetter
from tinybird_proxy.destination.split import Split
from tinybird_proxy.rows import Rows, cut
from tinybird_proxy.ticket import Place, Ticket


class BatchQueue:
    """Gathers items into batches and keeps the batches until they settle. Times are the caller's clock in seconds."""

    def __init__(self, key: DestinationKey, limits: BatchLimits, next_batch_id: Callable[[], str]) -> None:
        self._key = key
        self._limits = limits
        self._next_batch_id = next_batch_id
        self.open: OpenBatch | None = None
        self.waiting: list[FrozenBatch] = []  # oldest first
        self.in_flight: dict[str, FrozenBatch] = {}
        self.splits: list[Split] = []  # the first one is asked about, the others wait for it
        self.flush_at_once = False  # whether the open batch waits for no company
        self._fresh: list[FrozenBatch] = []  # frozen since ``take_fresh`` was last called

    @property
    def empty(self) -> bool:
        """Whether nothing at all is here."""
        return self.open is None and not self.waiting and not self.in_flight and not self.splits

    def add(self, rows: Rows, now: float, ticket: Ticket | None, traceparent: str | None, vias: str | None) -> bool:
        """Add an item; return whether there is something new to wait for: a batch was opened or frozen."""
        limits = self._limits
        if rows.row_count > limits.max_rows or len(rows.body) > limits.max_bytes:
            for part in self._cut(rows):
                self._add_part(part, now, ticket, traceparent, vias)
            return True
        return self._add_part(rows, now, ticket, traceparent, vias)

    def add_apart(self, rows: Rows, now: float, ticket: Ticket, traceparent: str | None, vias: str | None) -> None:
        """Freeze an item at once, in batches of its own that nothing was promised about yet. ``open`` must be None."""
        for part in self._cut(rows):
            self.open = OpenBatch(now)
            _join(self.open, part, now, ticket, traceparent, vias)
            self.freeze_open(Trigger.FIRST_CONTACT, now).promised = False

    def add_replay(self, items: Sequence[tuple[Rows, DeadLetter]], now: float) -> FrozenBatch:
        """Freeze the rows of dead letters in a batch of their own, ahead of what is still open."""
        batch = OpenBatch(now)
        for rows, letter in items:
            batch.replays.append(Replayed(letter, batch.row_count, rows.row_count))
            batch.add(rows, now)
        return self._freeze(batch, Trigger.REPLAY, now)

    def freeze_open(self, trigger: Trigger, now: float) -> FrozenBatch:
        """Fix the open batch, which must be there, and let it wait."""
        assert self.open is not None  # noqa: S101 - callers look first
        opened, self.open = self.open, None
        return self._freeze(opened, trigger, now)

    def _freeze(self, opened: OpenBatch, trigger: Trigger, now: float) -> FrozenBatch:
        batch = freeze(opened, batch_id=self._next_batch_id(), key=self._key, trigger=trigger, now=now)
        self.waiting.append(batch)
        self._fresh.append(batch)
        return batch

    def take_fresh(self) -> list[FrozenBatch]:
        """Batches frozen since the last call, still here or not."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def next_due(self, now: float, trigger: Trigger) -> FrozenBatch | None:
        """The oldest waiting batch, or the open one if it is due, frozen with ``trigger``. It stays waiting."""
        if not self.waiting and self.open is not None and now >= self.due_at():
            self.freeze_open(trigger, now)
        return self.waiting[0] if self.waiting else None

    def due_at(self) -> float:
        """When the open batch, which must be there, has waited for company long enough."""
        assert self.open is not None  # noqa: S101 - callers look first
        return self.open.opened_at + (0.0 if self.flush_at_once else self._limits.flush_interval_s)

    def begin(self, batch: FrozenBatch) -> None:
        """``batch``, waiting, goes in flight; or a piece of one that is being split does."""
        if batch.split is None:
            self.waiting.remove(batch)
        self.in_flight[batch.id] = batch

    def put_back(self, batch: FrozenBatch) -> None:
        """``batch``, in flight, waits again: the oldest first, and before others that were frozen at the same time.

        So the next attempt is made with the same batch, and no second one becomes ambiguous.
        """
        if self.in_flight.pop(batch.id, None) is not None and batch.split is None:
            self._wait(batch)

    def take_out(self, batch: FrozenBatch) -> None:
        """``batch`` leaves: it settled, was given up on, or nothing was taken. A piece's rows leave its split."""
        if self.in_flight.pop(batch.id, None) is None and batch.split is None:
            self.waiting.remove(batch)
        if batch.split is not None:
            batch.split.left(batch.row_count, batch.size_bytes)

    def replace(self, batch: FrozenBatch, parts: Sequence[FrozenBatch]) -> None:
        """``batch``, in flight, is sent in ``parts`` from now on: they wait in its place."""
        del self.in_flight[batch.id]
        for part in reversed(parts):
            self._wait(part)
        self._fresh += parts

    def begin_split(self, split: Split) -> None:
        """The batch of ``split``, in flight, is asked about in pieces from now on."""
        del self.in_flight[split.batch.id]
        at = len(self.splits)
        if not split.batch.replays:  # a search in old letters has no budget: what is fresh goes first
            at = next((place for place, other in enumerate(self.splits) if other.batch.replays), at)
        self.splits.insert(at, split)

    def end_split(self, split: Split, *, whole: bool) -> None:
        """The split is over. ``whole``: nothing of it was accepted, and its batch waits again."""
        self.splits.remove(split)
        if whole:
            self._wait(split.batch)

    def move_back(self, batch: FrozenBatch, now: float) -> None:
        """``batch``, waiting, lets every other one go first that was frozen until now, and the open one too."""
        if self.open is not None:
            self.freeze_open(Trigger.INTERVAL, now)
        self.waiting.remove(batch)
        batch.frozen_at = now
        self.waiting.append(batch)

    def _wait(self, batch: FrozenBatch) -> None:
        bisect.insort_left(self.waiting, batch, key=lambda other: other.frozen_at)

    def frozen(self) -> list[FrozenBatch]:
        """Every frozen batch that is whole: waiting or in flight, and no piece."""
        return [*self.waiting, *(batch for batch in self.in_flight.values() if batch.split is None)]

    def promised_rows(self) -> int:
        """Rows here that a client was told are taken: counted from the batches, not from any ledger."""
        frozen = sum(batch.row_count for batch in self.frozen() if batch.promised)
        splitting = sum(split.rows_left for split in self.splits)
        return frozen + splitting + (self.open.row_count if self.open is not None else 0)

    def held(self) -> tuple[int, int]:
        """Rows and bytes (before compression) that count towards the buffer's occupancy."""
        rows = sum(batch.row_count for batch in self.frozen()) + sum(split.rows_left for split in self.splits)
        size_bytes = sum(batch.size_bytes for batch in self.frozen()) + sum(split.bytes_left for split in self.splits)
        if self.open is not None:
            rows += self.open.row_count
            size_bytes += self.open.size_bytes
        return rows, size_bytes

    def memory_bytes(self) -> int:
        """Bytes that the rows take: those of a compressed batch are its payload's."""
        kept = [*self.frozen(), *(split.batch for split in self.splits)]
        frozen = sum(batch.size_bytes if batch.payload is None else len(batch.payload.body) for batch in kept)
        return frozen + (self.open.size_bytes if self.open is not None else 0)

    def oldest_at(self) -> float | None:
        """When the oldest row here came in."""
        times = [batch.oldest_at for batch in self.frozen()] + [split.batch.oldest_at for split in self.splits]
        if self.open is not None:
            times.append(self.open.opened_at)
        return min(times, default=None)

    def tickets(self) -> list[Ticket]:
        """Everybody who waits for a promised row here that is not in flight."""
        places = [place for batch in self.waiting if batch.promised for place in batch.tickets]
        places += [place for split in self.splits for place in split.batch.tickets]
        places += self.open.tickets if self.open is not None else []
        return [place.ticket for place in places]

    def _add_part(
        self, rows: Rows, now: float, ticket: Ticket | None, traceparent: str | None, vias: str | None
    ) -> bool:
        limits = self._limits
        batch = self.open
        if batch is not None and (trigger := batch.would_exceed(rows, limits)) is not None:
            self.freeze_open(trigger, now)
            batch = None
        news = batch is None
        if batch is None:
            batch = self.open = OpenBatch(now)
        if ticket is None and traceparent is None and vias is None:
            batch.add(rows, now)
        else:
            _join(batch, rows, now, ticket, traceparent, vias)
        if batch.row_count >= limits.max_rows or batch.size_bytes >= limits.max_bytes:
            self.freeze_open(Trigger.ROWS if batch.row_count >= limits.max_rows else Trigger.BYTES, now)
            return True
        return news

    def _cut(self, rows: Rows) -> list[Rows]:
        return list(cut(rows, max_rows=self._limits.max_rows, max_bytes=self._limits.max_bytes))


def _join(
    batch: OpenBatch, rows: Rows, now: float, ticket: Ticket | None, traceparent: str | None, vias: str | None
) -> None:
    if ticket is not None:
        batch.tickets.append(Place(ticket, batch.row_count, rows.row_count))
    batch.add(rows, now)
    if traceparent is not None:
        batch.link(traceparent)
    if vias is not None:
        batch.came_via(vias)
