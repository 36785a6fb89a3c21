"""The ledger: where every row is that we ever said yes to.

    accepted + recovered + replayed
        = delivered + quarantined + unverified + dead_lettered + dropped{reason} + buffered

``buffered`` is not a counter of the ledger: it is what the buffer really holds, so that the equation can fail if
somebody makes a mistake. Plain integers, rows everywhere.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class DropReason(StrEnum):
    """Why rows were lost. Every one of them is logged at ERROR."""

    SHUTDOWN = "shutdown"
    IN_DOUBT = "in_doubt"  # in flight when the process stopped: may have arrived


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
    dropped: dict[str, int] = field(default_factory=dict)
    ambiguous: int = 0  # no term: rows of batches with an unknown outcome, the upper bound of duplicates

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

    def add(self, other: "Ledger") -> None:
        """Add ``other``'s terms to this one's."""
        self.accepted += other.accepted
        self.recovered += other.recovered
        self.replayed += other.replayed
        self.delivered += other.delivered
        self.quarantined += other.quarantined
        self.unverified += other.unverified
        self.dead_lettered += other.dead_lettered
        self.ambiguous += other.ambiguous
        for reason, row_count in other.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + row_count

    def as_dict(self, buffered: int) -> dict[str, int | dict[str, int]]:
        """Every term by name, ``buffered`` included: the shape of ``/status``."""
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
        }
