"""Find the rows that Tinybird refuses, by halving a batch that it answered with 400. Pure, one question at a time.

A 400 means that nothing of the request was ingested, so its rows may be asked for again in parts. Cuts fall between
items as long as a piece spans several, then between rows. Depth-first; both halves are asked before either is cut
further. Where the left half was accepted the right one must be guilty and is cut without asking, but a single row is
always asked.

A row is condemned only once something of its parent was accepted: when ``2·⌈log2 rows⌉`` pieces in a row were refused
and none ever accepted, it is the request that is wrong and not a row. A parent of fewer than ``SMALL_ROWS`` rows is
asked to its last row all the same.
"""

from bisect import bisect_left
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from tinybird_proxy.batch import ItemBounds

BUDGET = 400
SMALL_ROWS = 8


class Piece(NamedTuple):
    """Rows ``first`` up to, not including, ``end`` of the parent, counted from 0."""

    first: int
    end: int

    @property
    def row_count(self) -> int:
        """Rows in the piece."""
        return self.end - self.first


class Ended(Enum):
    """How a bisection ended."""

    DECIDED = "decided"  # every row was accepted or condemned
    NOTHING_ACCEPTED = "nothing_accepted"  # the request is wrong: the parent goes back whole
    SMALL_AND_REFUSED = "small_and_refused"  # each of a handful of rows was refused alone
    OUT_OF_BUDGET = "out_of_budget"  # what is left is undecided
    STOPPED = "stopped"  # from outside; what is left is undecided


class Bisection:
    """The search in one parent, of whose refusal we know. ``asking`` is the piece to ask about, None once it ended.

    ``accepted_rows`` and ``take_condemned`` say what is decided; ``undecided`` is everything that is not.
    """

    def __init__(self, item_row_counts: Sequence[int], *, budget: int | None = BUDGET) -> None:
        """``item_row_counts``: rows of each item, in order. ``budget``: the most pieces to ask, None for no limit."""
        self.bounds = ItemBounds(item_row_counts)
        rows = self.bounds.ends[-1]
        self._budget = budget
        self._refusals_max = 2 * (rows - 1).bit_length()  # 2·⌈log2 rows⌉
        self._small = rows < SMALL_ROWS
        self._refusals = 0
        self._guilty = [Piece(0, rows)]  # to be cut, the next one last
        self._right: Piece | None = None  # the other half of what is being asked, if that is a left one
        self._left_refused: Piece | None = None  # the left half, while the right one is being asked
        self._condemned: list[Piece] = []
        self.requests = 0
        self.accepted_rows = 0
        self.asking: Piece | None = None
        self.ended: Ended | None = None
        self._descend()

    def accepted(self) -> None:
        """Tinybird took the piece."""
        piece, right, left_refused = self._answered()
        self.accepted_rows += piece.row_count
        if left_refused is not None:
            self._guilty.append(left_refused)
        elif right is not None:
            if right.row_count == 1:
                self._ask(right)
                return
            self._guilty.append(right)
        self._descend()

    def refused(self) -> None:
        """Tinybird answered the piece with 400 again."""
        piece, right, left_refused = self._answered()
        self._refusals += 1
        if right is not None:
            self._left_refused = piece
            self._ask(right)
        else:
            self._guilty.append(piece)
            if left_refused is not None:
                self._guilty.append(left_refused)
            self._descend()

    def stop(self) -> None:
        """Ask nothing more; what was being asked is undecided. Nothing may be in flight."""
        if self.ended is None:
            self._end(Ended.STOPPED)

    def take_condemned(self) -> list[Piece]:
        """Single rows that are guilty beyond doubt and were not taken yet; none before something was accepted."""
        if self.accepted_rows == 0 and self.ended is not Ended.SMALL_AND_REFUSED:
            return []
        taken, self._condemned = self._condemned, []
        return taken

    def undecided(self) -> list[Piece]:
        """What is neither accepted nor was taken as condemned, in order."""
        pieces = [*self._guilty, *self._condemned, self.asking, self._right, self._left_refused]
        return sorted(piece for piece in pieces if piece is not None)

    def _answered(self) -> tuple[Piece, Piece | None, Piece | None]:
        piece, right, left_refused = self.asking, self._right, self._left_refused
        assert piece is not None  # noqa: S101 - callers have asked it
        self.asking = self._right = self._left_refused = None
        return piece, right, left_refused

    def _ask(self, piece: Piece) -> None:
        self.asking = piece
        self.requests += 1
        if self._budget is not None and self.requests > self._budget:
            self._end(Ended.OUT_OF_BUDGET)

    def _descend(self) -> None:
        """Cut the next guilty piece and ask its left half; a single row is condemned."""
        if self.accepted_rows == 0 and self._refusals >= self._refusals_max and not self._small:
            self._end(Ended.NOTHING_ACCEPTED)
            return
        while self._guilty:
            piece = self._guilty.pop()
            if piece.row_count > 1:
                middle = self._cut(piece)
                self._right = Piece(middle, piece.end)
                self._ask(Piece(piece.first, middle))
                return
            self._condemned.append(piece)
        self._end(Ended.DECIDED if self.accepted_rows else Ended.SMALL_AND_REFUSED)

    def _end(self, how: Ended) -> None:
        self.ended = how
        if self.asking is not None:
            # It will not be asked, and neither is the half that would follow: both are part of what is left.
            self.requests -= 1
            self._guilty += [piece for piece in (self.asking, self._right, self._left_refused) if piece is not None]
            self._right = self._left_refused = None
        self.asking = None

    def _cut(self, piece: Piece) -> int:
        """The bound between two items that is nearest to the middle, or the middle of a single item."""
        middle = (piece.first + piece.end) // 2
        ends = self.bounds.ends
        above = bisect_left(ends, middle)
        near = [b for b in ends[max(0, above - 1) : above + 1] if piece.first < b < piece.end]
        return min(near, key=lambda bound: abs(bound - middle)) if near else middle
