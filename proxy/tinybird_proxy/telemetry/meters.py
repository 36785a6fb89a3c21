"""Plain integers that the event loop counts in; ``telemetry.prometheus`` reads them when asked."""

import math
from bisect import bisect_left
from collections import Counter, deque
from typing import Final

LATENCY_BOUNDS_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 300.0, 1800.0, 7200.0)
COUNT_WINDOW_S: Final = 60
CPU_WINDOW_S: Final = 15.0
# Two a second are taken: more than the window needs, and a bound whoever takes them.
_CPU_SAMPLES_MAX: Final = 64


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


class SlidingCount:
    """What came in the last ``COUNT_WINDOW_S`` seconds, to a second: a bucket for each, so its size never changes."""

    def __init__(self, now: float) -> None:
        self._began_at = now
        self._second = math.floor(now)
        self._buckets = [0] * COUNT_WINDOW_S
        self._total = 0

    def add(self, amount: int, now: float) -> None:
        """Count ``amount`` at ``now``."""
        self._forget(now)
        self._buckets[self._second % COUNT_WINDOW_S] += amount
        self._total += amount

    def total(self, now: float) -> int:
        """All that came in the window."""
        self._forget(now)
        return self._total

    def per_second(self, now: float) -> float:
        """The same as a rate: over the window, or since the start while that is shorter (but at least a second)."""
        total = self.total(now)
        window_s = max(now, self._second) - self._second + COUNT_WINDOW_S - 1
        return total / min(window_s, max(1.0, now - self._began_at))

    def _forget(self, now: float) -> None:
        second = math.floor(now)
        for outlived in range(max(self._second, second - COUNT_WINDOW_S) + 1, second + 1):
            index = outlived % COUNT_WINDOW_S
            self._total -= self._buckets[index]
            self._buckets[index] = 0
        self._second = max(self._second, second)


class CpuMeter:
    """The share of one core that the process took lately, from samples of its CPU time."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=_CPU_SAMPLES_MAX)

    def sample(self, at: float, cpu_s: float) -> None:
        """At ``at`` the process had taken ``cpu_s`` seconds of CPU time in all."""
        samples = self._samples
        samples.append((at, cpu_s))
        while len(samples) > 2 and samples[1][0] <= at - CPU_WINDOW_S:
            samples.popleft()

    def percent(self) -> int:
        """Percent of one core over the samples, rounded up: with threads it may be above 100. 0 until there are two."""
        if len(self._samples) < 2:
            return 0
        (began_at, began_cpu_s), (at, cpu_s) = self._samples[0], self._samples[-1]
        if at <= began_at:
            return 0
        # What subtracting floats leaves over is no percent more.
        return max(0, math.ceil(round(100.0 * (cpu_s - began_cpu_s) / (at - began_at), 6)))


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
        # Of the last minute: attempts that ended, those of them answered with 429, and rows that Tinybird took.
        self.recent_replies = SlidingCount(now)
        self.recent_throttled = SlidingCount(now)
        self.recent_delivered = SlidingCount(now)
        self.cpu = CpuMeter()
        self.loop_lag_s = 0.0
        self.loop_lag_max_s = 0.0
