"""The first item of a destination, on its way to Tinybird before anybody promised anything."""

from tinybird_proxy.batch import FrozenBatch
from tinybird_proxy.destination.exits import Exits
from tinybird_proxy.destination.queue import BatchQueue
from tinybird_proxy.ledger import Ledger
from tinybird_proxy.rows import Rows
from tinybird_proxy.telemetry.meters import Meters
from tinybird_proxy.ticket import Buffered, NotTaken, Ticket


class FirstContact:
    """At most one at a time. It ends kept (its rows are promised) or withdrawn (as if it had never come)."""

    def __init__(self, queue: BatchQueue, exits: Exits, ledger: Ledger, meters: Meters) -> None:
        self._queue = queue
        self._exits = exits
        self._ledger = ledger
        self._meters = meters
        self._batches: list[FrozenBatch] = []
        self._ticket: Ticket | None = None

    def begin(self, rows: Rows, now: float, ticket: Ticket, traceparent: str | None, vias: str | None) -> None:
        """Freeze the item at once, apart. Nothing else may be in the queue."""
        self._queue.add_apart(rows, now, ticket, traceparent, vias)
        self._batches, self._ticket = self._queue.frozen(), ticket

    def keep(self, ticket: Ticket) -> None:
        """Promise the item that ``ticket`` stands for, unless that was decided already."""
        if self._ticket is not ticket:
            return
        self._meters.requests_accepted += 1
        for batch in self._batches:
            batch.promised = True
            self._ledger.accepted += batch.row_count
            self._meters.bytes_accepted += batch.size_bytes
        self.end()

    def keep_that_of(self, batch: FrozenBatch) -> Ticket | None:
        """A verdict on ``batch`` that refuses nothing: if it was a first contact, promise it and return its ticket."""
        ticket = self._ticket
        if batch.promised or ticket is None:
            return None
        self.keep(ticket)
        return ticket

    def withdraw(self, status: int, message: str) -> bool:
        """Nobody was promised anything: the item leaves and its client hears why. False if there is none."""
        batches, ticket = self._batches, self._ticket
        if ticket is None:
            return False
        self.end()
        for batch in batches:
            self._exits.let_go(batch, "not_taken")
        ticket.resolve(NotTaken(status, message))
        return True

    def end(self) -> None:
        """There is no first contact any more."""
        self._batches, self._ticket = [], None


def end_contact(ticket: Ticket | None) -> None:
    """Who waited only to hear whether it may write here hears that it may, if it was not told more."""
    if ticket is not None and ticket.contact_only:
        ticket.resolve(Buffered())
