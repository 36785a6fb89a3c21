"""The buffer in memory: it counts; the bytes themselves live in the batches."""

from typing import Final, Literal

from tinybird_proxy.admission import Occupancy
from tinybird_proxy.batch import DestinationKey, FrozenBatch
from tinybird_proxy.rows import Rows


class MemoryBuffer:
    """Loses what it holds when the process dies; says so in ``X-Ack: memory``."""

    ack: Final[Literal["memory", "disk"]] = "memory"

    def __init__(self) -> None:
        self.occupancy = Occupancy()

    def hold(self, key: DestinationKey, rows: Rows, *, unconfirmed: bool) -> None:
        """Count an item in."""
        held, size_bytes = self.occupancy, len(rows.body) + 1
        held.row_count += rows.row_count
        held.size_bytes += size_bytes
        if unconfirmed:
            held.unconfirmed_row_count += rows.row_count
            held.unconfirmed_size_bytes += size_bytes

    async def commit(self) -> None:
        """Memory is as safe as it gets at once."""

    def freeze(self, batch: FrozenBatch) -> None:
        """Nothing to do: the batch itself holds the bytes."""

    async def record_outcome(self, batch: FrozenBatch) -> None:
        """Nothing would survive the process anyway."""

    def release(self, batch: FrozenBatch, *, unconfirmed: bool) -> None:
        """Count a settled batch out."""
        held = self.occupancy
        held.row_count -= batch.row_count
        held.size_bytes -= batch.size_bytes
        if unconfirmed:
            held.unconfirmed_row_count -= batch.row_count
            held.unconfirmed_size_bytes -= batch.size_bytes

    def confirm(self, row_count: int, size_bytes: int) -> None:
        """Move so much out of the unconfirmed share."""
        self.occupancy.unconfirmed_row_count -= row_count
        self.occupancy.unconfirmed_size_bytes -= size_bytes
