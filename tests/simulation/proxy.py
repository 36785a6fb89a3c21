"""One proxy in steps of a second: what it takes, holds, delivers and measures. Pure.

Rows are fluid within a second: a second's rows are one cohort that has arrived at its beginning. The flush interval is
one step. Whatever is accepted is either held or delivered.
"""

import math
import random
from collections import deque
from dataclasses import dataclass
from typing import Final

from tests.simulation.tinybird import OK, TOO_MANY_REQUESTS, Answer, Tinybird

from tinybird_proxy.telemetry.gauges import BACKLOG_LEAST_AGE_S

RATE_WINDOW_S: Final = 60
CPU_WINDOW_S: Final = 15
DRAIN_TIME_MOST_S: Final = 3600
# The proxy's own pacing (tinybird_proxy.pacing): full jitter on a limit that doubles.
_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_MOST_S: Final = 30.0
_BURST_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyModel:
    """Options of a proxy and what its work costs. Defaults are the proxy's own, costs those of ``make bench``."""

    buffer_rows: int = 1_000_000
    buffer_bytes: int = 512_000_000
    batch_rows: int = 100_000
    batch_bytes: int = 10_000_000
    flush_interval_s: int = 1
    upstream_rate: float = 90.0
    upstream_concurrency: int = 16
    drain_delay_s: int = 5
    backlog_age_s: float = BACKLOG_LEAST_AGE_S
    row_bytes: int = 500
    rows_per_request: int = 1
    cpu_s_per_request: float = 55e-6
    cpu_s_per_row: float = 2e-6  # counting, joining and compressing half a kilobyte

    @property
    def cpu_s_per_row_in_all(self) -> float:
        return self.cpu_s_per_row + self.cpu_s_per_request / self.rows_per_request


@dataclass(slots=True)
class _Batch:
    rows: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of the rows that clients sent in one step."""

    accepted: int
    refused: int


class Proxy:
    """The process of one pod, from its first answer on."""

    def __init__(self, model: ProxyModel) -> None:
        self._model = model
        self._waiting: deque[_Batch] = deque()  # cohorts of a second
        self._again: deque[_Batch] = deque()  # batches that failed: they stay as they are
        self._in_flight: list[tuple[float, _Batch, float]] = []  # answered at, sent at
        self._most_rows = min(model.buffer_rows, model.buffer_bytes // model.row_bytes)
        self._batch_rows = min(model.batch_rows, model.batch_bytes // model.row_bytes)
        self._tokens = 1.0
        self._places = 1
        self._failures = 0
        self._failed_at_s = -math.inf
        self._paused_until_s = -math.inf
        self._delivered: deque[int] = deque(maxlen=RATE_WINDOW_S)
        self._replies: deque[int] = deque(maxlen=RATE_WINDOW_S)
        self._throttled: deque[int] = deque(maxlen=RATE_WINDOW_S)
        self._cpu_s: deque[float] = deque(maxlen=CPU_WINDOW_S)
        self.delivered_1m = self.replies_1m = self.throttled_1m = 0
        self.rows = 0
        self.draining_since_s: float | None = None
        self.failing: int | None = None  # the status of a failure since which no request has gone well

    def drain(self, now_s: float) -> None:
        """``POST /drain``; a second one changes nothing."""
        if self.draining_since_s is None:
            self.draining_since_s = now_s

    def stop_draining(self) -> None:
        """``DELETE /drain``."""
        self.draining_since_s = None

    def refuses(self, now_s: float) -> bool:
        """Whether it drains and clients were given time to notice."""
        return self.draining_since_s is not None and now_s >= self.draining_since_s + self._model.drain_delay_s

    def take(self, now_s: float, rows: int) -> Taken:
        """Clients send ``rows`` within this step: what the CPU cannot do or the buffer cannot hold is refused."""
        model = self._model
        able = min(rows, int(1.0 / model.cpu_s_per_row_in_all))
        if self.refuses(now_s):
            able = 0
        accepted = min(able, self._most_rows - self.rows)
        # A request that is refused costs what a request costs: its rows are not worked on.
        cpu_s = accepted * model.cpu_s_per_row + min(rows, able) / model.rows_per_request * model.cpu_s_per_request
        self._cpu_s.append(min(1.0, cpu_s))
        if accepted:
            self.rows += accepted
            self._waiting.append(_Batch(accepted, now_s))
        return Taken(accepted, rows - accepted)

    def deliver(self, now_s: float, tinybird: Tinybird, rng: random.Random) -> int:
        """One step of delivering, before rows are taken in it; return how many rows Tinybird has acknowledged.

        A refusal comes back at once, rows that are written take as long as Tinybird takes to write them.
        """
        delivered, replies = self._settle(now_s)
        throttled = 0
        most = max(1.0, self._model.upstream_rate * _BURST_SHARE) + self._model.upstream_rate
        self._tokens = min(most, self._tokens + self._model.upstream_rate)
        while now_s >= self._paused_until_s and len(self._in_flight) < self._places and self._tokens >= 1.0:
            batch = self._again.popleft() if self._again else self._next_batch()
            if batch is None:
                break
            self._tokens -= 1.0
            answer = tinybird.answer(now_s)
            if answer.status == OK:
                self._in_flight.append((answer.at_s, batch, now_s))
                continue
            replies += 1
            throttled += answer.status == TOO_MANY_REQUESTS
            self._again.appendleft(batch)
            self._fail(now_s, answer, rng)
        self.replies_1m += _pushed(self._replies, replies)
        self.throttled_1m += _pushed(self._throttled, throttled)
        return delivered

    def _next_batch(self) -> _Batch | None:
        if not self._waiting:
            return None
        oldest_s, rows = self._waiting[0].oldest_s, 0
        while self._waiting and rows < self._batch_rows:
            cohort = self._waiting[0]
            part = min(cohort.rows, self._batch_rows - rows)
            rows += part
            cohort.rows -= part
            if not cohort.rows:
                self._waiting.popleft()
        return _Batch(rows, oldest_s)

    def _settle(self, now_s: float) -> tuple[int, int]:
        """Rows that Tinybird has written since, and in how many requests."""
        done = [(batch, sent_s) for at_s, batch, sent_s in self._in_flight if at_s <= now_s]
        self._in_flight = [each for each in self._in_flight if each[0] > now_s]
        delivered = sum(batch.rows for batch, _ in done)
        if any(sent_s > self._failed_at_s for _, sent_s in done):  # an older one says nothing about the failure
            self._places, self._failures, self.failing = self._model.upstream_concurrency, 0, None
        self.rows -= delivered
        self.delivered_1m += _pushed(self._delivered, delivered)
        return delivered, len(done)

    def _fail(self, now_s: float, answer: Answer, rng: random.Random) -> None:
        self._places, self._failed_at_s, self.failing = 1, now_s, answer.status
        if answer.status == TOO_MANY_REQUESTS:
            self._paused_until_s = now_s + answer.retry_after_s
            return
        most_s = min(_BACKOFF_MOST_S, _BACKOFF_FIRST_S * 2.0 ** min(self._failures, 30))
        self._failures += 1
        # A step at least: within one nothing changes.
        self._paused_until_s = now_s + max(1.0, rng.uniform(0.0, most_s))

    @property
    def oldest_s(self) -> float | None:
        """When the oldest row arrived; None if the buffer is empty."""
        ages = [batch.oldest_s for _, batch, _ in self._in_flight] + [batch.oldest_s for batch in self._again]
        if self._waiting:
            ages.append(self._waiting[0].oldest_s)
        return min(ages, default=None)

    def buffer_utilization_percent(self) -> int:
        """⌈100 · max(rows ÷ BUFFER_SIZE, bytes ÷ BUFFER_BYTES)⌉."""
        used_bytes = self.rows * self._model.row_bytes
        return math.ceil(100 * max(self.rows / self._model.buffer_rows, used_bytes / self._model.buffer_bytes))

    def drain_time_s(self, now_s: float) -> int:
        """0 while the oldest row is young, else rows ÷ rows delivered a second over 60 s."""
        oldest_s = self.oldest_s
        if oldest_s is None or now_s - oldest_s < max(2 * self._model.flush_interval_s, self._model.backlog_age_s):
            return 0
        if not self.delivered_1m:
            return DRAIN_TIME_MOST_S
        return min(DRAIN_TIME_MOST_S, math.ceil(self.rows * RATE_WINDOW_S / self.delivered_1m))

    def cpu_percent(self) -> int:
        """Of one core, over the last 15 s or as long as the process runs."""
        return math.ceil(100 * sum(self._cpu_s) / max(1, len(self._cpu_s)))


def _pushed(window: deque[int], value: int) -> int:
    """Push ``value``, and return by how much the window's sum has changed."""
    gone = window[0] if len(window) == window.maxlen else 0
    window.append(value)
    return value - gone
