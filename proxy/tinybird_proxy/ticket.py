"""Tickets: how a waiting client hears what became of its rows.

Only requests that wait have one (``wait=true``, or the first contact of a destination); all others leave none.
An item may be split over several batches and those into pieces: it is answered when the last of its rows settles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol


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


@dataclass(frozen=True, slots=True)
class Refused:
    """Tinybird refused every row of the item with ``status``; they are kept as dead letters."""

    status: int
    message: str


Outcome = Confirmed | Buffered | NotTaken | Refused | Dropped


class Mark(Protocol):
    """A dead letter, as far as a ticket knows it."""

    client_told: bool


class Ticket:
    """One waiting request. ``tell`` is called with exactly one ``Outcome``; what comes later is ignored.

    ``contact_only``: the client did not ask to wait for delivery, only whether it may write here at all.
    """

    __slots__ = (
        "_batch_quarantined",
        "_batch_rows",
        "_delivered",
        "_letters",
        "_quarantined",
        "_refusal",
        "_refused",
        "_rows_left",
        "_tell",
        "contact_only",
    )

    def __init__(self, tell: Callable[[Outcome], None], row_count: int, *, contact_only: bool) -> None:
        self._tell: Callable[[Outcome], None] | None = tell
        self.contact_only = contact_only
        self._rows_left = row_count
        self._delivered = 0
        self._quarantined = 0
        self._refused = 0
        self._batch_rows = 0
        self._batch_quarantined = 0
        self._refusal: Refused | None = None
        self._letters: list[Mark] = []

    def rows_settled(self, row_count: int, batch_rows: int, batch_quarantined: int) -> None:
        """A batch with so many of these rows settled, ``batch_quarantined`` of its ``batch_rows`` not delivered."""
        mine = min(row_count, batch_quarantined)
        self._delivered += row_count - mine
        self._quarantined += mine
        if batch_quarantined not in (0, batch_rows) and row_count != batch_rows:
            self._batch_rows += batch_rows  # whose rows they were cannot be said
            self._batch_quarantined += batch_quarantined
        self._count_down(row_count)

    def rows_refused(self, row_count: int, refusal: Refused, letter: Mark | None) -> None:
        """So many of these rows became a dead letter: ``letter``, if it holds no others."""
        self._refused += row_count
        self._refusal = refusal
        if letter is not None:
            self._letters.append(letter)
        self._count_down(row_count)

    def _count_down(self, row_count: int) -> None:
        self._rows_left -= row_count
        if self._rows_left:
            return
        if self._refusal is not None and self._delivered == self._quarantined == 0:
            for letter in self._letters:
                letter.client_told |= self.open
            self.resolve(self._refusal)
        else:
            shared = self._batch_rows or None
            quarantined = self._quarantined + self._refused
            self.resolve(Confirmed(self._delivered, quarantined, shared, self._batch_quarantined))

    def resolve(self, outcome: Outcome) -> None:
        """Tell the client, once."""
        if (tell := self._tell) is not None:
            self._tell = None
            tell(outcome)

    @property
    def open(self) -> bool:
        """Whether the client still waits to hear."""
        return self._tell is not None


class Place(NamedTuple):
    """Where an item that somebody waits for stands in a batch: from row ``first``, counted from 0."""

    ticket: Ticket
    first: int
    row_count: int
