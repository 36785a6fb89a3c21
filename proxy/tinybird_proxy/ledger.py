"""The ledger: where every row is that we ever said yes to.

    accepted + recovered + replayed
        = delivered + quarantined + unverified + dead_lettered + dropped{reason} + buffered

and where every row is that became a dead letter:

    dead_lettered + letters_recovered
        = replayed + letters_deleted + letters_evicted + letters_lost_at_exit + letters_held

``buffered`` and ``letters_held`` are not counters of the ledger: they are what is really held, so that an equation can
fail by a mistake. A replay is counted when its rows re-enter the buffer. Plain integers, rows everywhere.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class DropReason(StrEnum):
    """Why rows were lost. Every one of them is logged at ERROR."""

    SHUTDOWN = "shutdown"
    IN_DOUBT = "in_doubt"  # in flight when the process stopped: may have arrived


class LetterReason(StrEnum):
    """Why rows were given up on."""

    REJECTED = "rejected"  # Tinybird refuses this row (400)
    TOO_LARGE = "too_large"  # Tinybird refuses a request with nothing but this row (413)
    UNDECIDED = "undecided"  # among these rows are bad ones, and the search for them ran out of requests
    PARTIAL = "partial"  # Tinybird took a part of these rows (422): sending them again doubles that part
    UNAUTHORIZED = "unauthorized"  # no token was ever accepted for them
    EXPIRED = "expired"  # older than MAX_AGE


@dataclass(slots=True)
class Ledger:
    """The terms of the equation, for one destination or for all together."""

    accepted: int = 0
    recovered: int = 0
    replayed: int = 0
    delivered: int = 0
    quarantined: int = 0
    unverified: int = 0
    dead_lettered: int = 0
    letters_recovered: int = 0
    letters_deleted: int = 0
    letters_evicted: int = 0
    letters_lost_at_exit: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    ambiguous: int = 0  # no term: rows with an attempt of unknown outcome; only these may have arrived more than once

    def drop(self, reason: DropReason, row_count: int) -> None:
        """Count ``row_count`` rows as lost."""
        if row_count:
            self.dropped[reason] = self.dropped.get(reason, 0) + row_count

    @property
    def dropped_total(self) -> int:
        """Rows lost for any reason."""
        return sum(self.dropped.values())

    def expected_buffered(self) -> int:
        """How many rows the buffer must be holding if every row is accounted for."""
        came = self.accepted + self.recovered + self.replayed
        went = self.delivered + self.quarantined + self.unverified + self.dead_lettered + self.dropped_total
        return came - went

    def imbalance(self, buffered: int) -> int:
        """Rows that are missing (positive) or too many (negative); 0 when the equation holds."""
        return self.expected_buffered() - buffered

    def expected_letters(self) -> int:
        """How many rows the dead letters must be holding if every one is accounted for."""
        came = self.dead_lettered + self.letters_recovered
        return came - self.replayed - self.letters_deleted - self.letters_evicted - self.letters_lost_at_exit

    def letters_imbalance(self, held: int) -> int:
        """Rows missing among the dead letters (positive) or too many (negative); 0 when the equation holds."""
        return self.expected_letters() - held

    @property
    def lost_at_exit(self) -> int:
        """Rows that this stop lost: dropped ones, and dead letters that only the memory held."""
        return self.dropped_total + self.letters_lost_at_exit

    def add(self, other: "Ledger") -> None:
        """Add ``other``'s terms to this one's."""
        self.accepted += other.accepted
        self.recovered += other.recovered
        self.replayed += other.replayed
        self.delivered += other.delivered
        self.quarantined += other.quarantined
        self.unverified += other.unverified
        self.dead_lettered += other.dead_lettered
        self.letters_recovered += other.letters_recovered
        self.letters_deleted += other.letters_deleted
        self.letters_evicted += other.letters_evicted
        self.letters_lost_at_exit += other.letters_lost_at_exit
        self.ambiguous += other.ambiguous
        for reason, row_count in other.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + row_count

    def as_dict(self, buffered: int, letters_held: int) -> dict[str, int | dict[str, int]]:
        """Every term by name, ``buffered`` and ``letters_held`` included: the shape of ``/status``."""
        return {
            "accepted": self.accepted,
            "recovered": self.recovered,
            "replayed": self.replayed,
            "delivered": self.delivered,
            "quarantined": self.quarantined,
            "unverified": self.unverified,
            "dead_lettered": self.dead_lettered,
            "dropped": dict(self.dropped),
            "buffered": buffered,
            "ambiguous": self.ambiguous,
            "letters_recovered": self.letters_recovered,
            "letters_deleted": self.letters_deleted,
            "letters_evicted": self.letters_evicted,
            "letters_lost_at_exit": self.letters_lost_at_exit,
            "letters_held": letters_held,
        }
