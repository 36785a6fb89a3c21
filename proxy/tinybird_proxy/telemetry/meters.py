"""Plain integers that the event loop counts in; ``telemetry.prometheus`` reads them when asked."""

import math
from bisect import bisect_left
from collections import Counter
from typing import Final

LATENCY_BOUNDS_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 300.0, 1800.0, 7200.0)


class Histogram:
    """Counts of observations at or below each bound, the rest above the last."""

    def __init__(self, bounds: tuple[float, ...] = LATENCY_BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class RateMeter:
    """A rate a second, averaged over roughly ``window_s``, weighing the latest most."""

    def __init__(self, window_s: float, now: float) -> None:
        self._window_s = window_s
        self._sum = 0.0
        self._at = now

    def add(self, amount: int, now: float) -> None:
        """Count ``amount`` at ``now``."""
        self._decay(now)
        self._sum += amount

    def per_second(self, now: float) -> float:
        """The present rate."""
        self._decay(now)
        return self._sum / self._window_s

    def _decay(self, now: float) -> None:
        if now > self._at:
            self._sum *= math.exp((self._at - now) / self._window_s)
            self._at = now


class Meters:
    """Everything that is counted and is not a term of the ledger."""

    def __init__(self, now: float) -> None:
        self.requests_accepted = 0
        self.bytes_accepted = 0
        self.refused: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()  # how requests with wait=true ended: delivered, buffered, dropped
        self.batches: Counter[str] = Counter()  # frozen, by trigger
        self.dead_letters: Counter[str] = Counter()  # rows, by reason
        self.upstream_replies: Counter[str] = Counter()  # by status, or connect_failed, broken, timeout
        self.upstream_seconds = Histogram()
        self.delivery_seconds = Histogram()  # oldest row of a batch: accepted → settled
        self.sent_raw_bytes = 0  # of settled batches, before compression
        self.sent_wire_bytes = 0  # of settled batches, as sent once
        self.sent_batches = 0
        self.internal_errors = 0
        self.sender_restarts = 0
        self.passed_through: Counter[str] = Counter()
        self.delivered_rate = RateMeter(30.0, now)
        self.loop_lag_s = 0.0
        self.loop_lag_max_s = 0.0
