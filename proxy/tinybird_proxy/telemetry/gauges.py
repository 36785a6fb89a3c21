"""What a scaler is told about a proxy, in whole numbers. Plain functions."""

import math
from typing import Final

from tinybird_proxy.admission import Capacity

DRAIN_TIME_MAX_S: Final = 3600
# With nothing delivered in the minute before, one row that Tinybird is writing reads as an hour. In a simulation that
# ran quiet proxies to maxReplicas.
BACKLOG_LEAST_AGE_S: Final = 10.0


def utilization_percent(rows: int, size_bytes: int, capacity: Capacity) -> int:
    """How full the buffer is, by the fuller of rows and bytes, in percent rounded up."""
    # In integers: as a float 7 of 100 are a little more than 7 percent.
    return max(-(-100 * rows // capacity.max_rows), -(-100 * size_bytes // capacity.max_bytes))


def drain_time_s(rows: int, oldest_age_s: float | None, *, flush_interval_s: float, delivered_per_s: float) -> int:
    """Seconds that ``rows`` take at the present rate, rounded up, at most an hour.

    0 while the oldest row is younger than two flush intervals or 10 s: then rows wait for company or are being
    written, and none piles up.
    """
    if rows <= 0 or oldest_age_s is None or oldest_age_s < max(2 * flush_interval_s, BACKLOG_LEAST_AGE_S):
        return 0
    if delivered_per_s <= 0:
        return DRAIN_TIME_MAX_S
    return math.ceil(min(DRAIN_TIME_MAX_S, rows / delivered_per_s))
