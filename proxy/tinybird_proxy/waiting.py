"""A request that waits to hear what became of its rows."""

import asyncio

from tinybird_proxy.destination import Destination
from tinybird_proxy.ticket import Outcome, Ticket


class Waiting:
    """A request that waits for its ticket; ``Pipeline.hear`` ends it."""

    __slots__ = ("contact", "deadline", "destination", "future", "row_count", "ticket", "wait_for_delivery")

    def __init__(
        self,
        destination: Destination,
        loop: asyncio.AbstractEventLoop,
        row_count: int,
        *,
        contact: bool,
        wait_for_delivery: bool,
        deadline: float,
    ) -> None:
        self.row_count = row_count
        self.contact = contact
        self.destination = destination
        self.future: asyncio.Future[Outcome] = loop.create_future()
        self.ticket = Ticket(self._tell, row_count, contact_only=not wait_for_delivery)
        self.wait_for_delivery = wait_for_delivery
        self.deadline = deadline

    def _tell(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)
