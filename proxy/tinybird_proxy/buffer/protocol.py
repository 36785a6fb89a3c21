"""What every buffer can do. A durable one fills the two awaited steps; in memory they end at once."""

from typing import Literal, Protocol

from tinybird_proxy.admission import Occupancy
from tinybird_proxy.batch import DestinationKey, FrozenBatch
from tinybird_proxy.rows import Rows


class Buffer(Protocol):
    """Holds items from admission until their batch settles.

    Order of calls for an item: ``hold`` → ``commit`` → the client is answered → ``freeze`` → attempts →
    ``record_outcome`` → ledger, tickets, metrics, span → ``release``; or ``hold`` → ``freeze`` → ``release`` for a
    first contact that Tinybird refused. Only ``release`` forgets.
    """

    occupancy: Occupancy

    @property
    def ack(self) -> Literal["memory", "disk"]:
        """What holds an item once ``commit`` returned: the value of ``X-Ack``."""
        ...

    def hold(self, key: DestinationKey, rows: Rows, *, unconfirmed: bool) -> None:
        """Take an item in; it counts towards ``occupancy`` from here on."""
        ...

    async def commit(self) -> None:
        """Return when everything held so far is as safe as ``ack`` promises."""
        ...

    def freeze(self, batch: FrozenBatch) -> None:
        """The composition of ``batch`` is fixed."""
        ...

    async def record_outcome(self, batch: FrozenBatch) -> None:
        """Return when the outcome of ``batch`` will survive what ``ack`` promises to survive."""
        ...

    def release(self, batch: FrozenBatch, *, unconfirmed: bool) -> None:
        """Forget ``batch``: it is settled. ``unconfirmed`` as its destination stands now."""
        ...

    def confirm(self, row_count: int, size_bytes: int) -> None:
        """A destination that holds so much is no longer unconfirmed."""
        ...
