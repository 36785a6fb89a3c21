"""A batch that Tinybird answered with 400, on its way through a bisection. Plain code without a clock or a socket."""

from tinybird_proxy.batch import FrozenBatch, piece
from tinybird_proxy.bisect import BUDGET, Bisection, Piece
from tinybird_proxy.ledger import LetterReason
from tinybird_proxy.verdict import Rejected


class Split:
    """What is left of a batch, and the one piece of it that is being asked about.

    ``refusal`` is the latest; ``next_at`` is when the next piece may leave, in seconds of the clock. ``busy``: a task
    is at work on it (cutting a piece, or ending the split). ``ambiguous``: a piece of it may have been taken without an
    answer that said so. ``ended_by``: why the search was stopped from outside.
    """

    def __init__(self, batch: FrozenBatch, refusal: Rejected) -> None:
        self.batch = batch
        self.refusal = refusal
        # Who replays letters wants them decided; everybody else's search ends at its budget.
        self.bisection = Bisection(batch.row_counts, budget=None if batch.replays else BUDGET)
        self.rows_left = batch.row_count
        self.bytes_left = batch.size_bytes
        self.next_at = 0.0
        self.busy = False
        self.ambiguous = False
        self.ambiguous_rows = 0  # counted already, never more than the batch has
        self.ended_by: tuple[LetterReason, str, int | None] | None = None
        self.piece: FrozenBatch | None = None
        self._refused_alone: dict[Piece, tuple[FrozenBatch, Rejected]] = {}

    def cut_off(self, first: int, end: int, body: bytes) -> FrozenBatch:
        """Rows ``first`` up to, not including, ``end`` as a piece; ``body`` holds their lines."""
        batch_id = self.batch.next_piece_id()
        made = piece(self.batch, self.bisection.bounds, batch_id=batch_id, first=first, end=end, body=body)
        made.split = self
        return made

    def left(self, row_count: int, size_bytes: int) -> None:
        """So much of the batch settled or became a dead letter."""
        self.rows_left -= row_count
        self.bytes_left -= size_bytes

    def accepted(self) -> None:
        """Tinybird took the piece."""
        self.piece = None
        self.bisection.accepted()

    def refused(self, refusal: Rejected) -> None:
        """Tinybird refused the piece."""
        refused, asked = self.piece, self.bisection.asking
        assert refused is not None  # noqa: S101 - it was in flight
        assert asked is not None  # noqa: S101 - the same
        self.refusal = refusal
        self.ambiguous |= refused.ambiguous
        if refused.row_count == 1:
            self._refused_alone[asked] = refused, refusal
        self.piece = None
        self.bisection.refused()

    def take_condemned(self) -> list[tuple[FrozenBatch, Rejected]]:
        """Rows that are guilty beyond doubt, each as the piece that it was asked in, and what Tinybird said."""
        return [self._refused_alone.pop(row) for row in self.bisection.take_condemned()]

    def stop(self, reason: LetterReason, message: str, status: int | None) -> None:
        """End the search: what is undecided is given up on for ``reason``. Nothing may be in flight or at work."""
        self.ended_by = reason, message, status
        if self.piece is not None:
            self.ambiguous |= self.piece.ambiguous
            self.piece.end_span("split")
        self.piece = None
        self.bisection.stop()
