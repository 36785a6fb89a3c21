"""Tickets: how a waiting client hears what became of its rows.

Only requests that wait have one (``wait=true``, or the first contact of a destination); all others leave none.
An item that was split over several batches is answered when the last of them settles.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Confirmed:
    """Tinybird answered for all of the item's rows. ``batch_rows`` is None when the counts are exact."""

    delivered: int
    quarantined: int
    batch_rows: int | None = None
    batch_quarantined: int = 0


@dataclass(frozen=True, slots=True)
class Buffered:
    """There is nothing to wait for any longer: the rows stay in the buffer."""


@dataclass(frozen=True, slots=True)
class NotTaken:
    """Tinybird refused the first contact: nothing was taken, the client hears ``status`` and ``message``."""

    status: int
    message: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """The process stopped before the rows were delivered."""


Outcome = Confirmed | Buffered | NotTaken | Dropped


class Ticket:
    """One waiting request. ``tell`` is called with exactly one ``Outcome``; what comes later is ignored.

    ``contact_only``: the client did not ask to wait for delivery, only whether it may write here at all.
    """

    __slots__ = ("_batch_quarantined", "_batch_rows", "_delivered", "_quarantined", "_tell", "contact_only", "parts")

    def __init__(self, tell: Callable[[Outcome], None], *, contact_only: bool) -> None:
        self._tell: Callable[[Outcome], None] | None = tell
        self.contact_only = contact_only
        self.parts = 1
        self._delivered = 0
        self._quarantined = 0
        self._batch_rows = 0
        self._batch_quarantined = 0

    def part_settled(self, rows: int, batch_rows: int, batch_quarantined: int) -> None:
        """A batch with ``rows`` of this item settled, ``batch_quarantined`` of its ``batch_rows`` not delivered."""
        mine = min(rows, batch_quarantined)
        self._delivered += rows - mine
        self._quarantined += mine
        if batch_quarantined not in (0, batch_rows) and rows != batch_rows:
            self._batch_rows += batch_rows  # whose rows they were cannot be said
            self._batch_quarantined += batch_quarantined
        self.parts -= 1
        if self.parts == 0:
            shared = self._batch_rows or None
            self.resolve(Confirmed(self._delivered, self._quarantined, shared, self._batch_quarantined))

    def resolve(self, outcome: Outcome) -> None:
        """Tell the client, once."""
        if (tell := self._tell) is not None:
            self._tell = None
            tell(outcome)

    @property
    def open(self) -> bool:
        """Whether the client still waits to hear."""
        return self._tell is not None
