"""Tinybird as the proxies see it: a limit of requests a second for a data source, a latency, and outages. Pure."""

import math
import random
from dataclasses import dataclass
from typing import Final

# Per data source; see the limits page that shared documents cite as SEND.
REQUESTS_PER_S: Final = 100.0
TOO_MANY_REQUESTS: Final = 429
UNAVAILABLE: Final = 503
OK: Final = 202


@dataclass(frozen=True, slots=True)
class Window:
    """From ``start_s`` to before ``end_s``."""

    start_s: float
    end_s: float

    def holds(self, now_s: float) -> bool:
        return self.start_s <= now_s < self.end_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """How Tinybird is: ``low_limit`` is its limit within ``throttled``."""

    latency_s: tuple[int, int] = (1, 2)  # from when a request leaves to its answer, with wait=true
    limit: float = REQUESTS_PER_S
    low_limit: float = REQUESTS_PER_S
    throttled: tuple[Window, ...] = ()
    outages: tuple[Window, ...] = ()
    retry_after_s: tuple[int, int] = (1, 2)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with, and when."""

    status: int
    at_s: float
    retry_after_s: float = 0.0


class Tinybird:
    """One data source: a bucket that fills with the limit and holds a second's worth."""

    def __init__(self, upstream: Upstream, rng: random.Random) -> None:
        self._upstream = upstream
        self._rng = rng
        self._tokens = upstream.limit
        self._filled_at_s = -math.inf
        self.requests = self.refused = 0  # and those answered with 429

    def answer(self, now_s: float) -> Answer:
        """Decide about a request that arrives now."""
        upstream = self._upstream
        self.requests += 1
        if any(window.holds(now_s) for window in upstream.outages):
            return Answer(UNAVAILABLE, now_s)
        low = any(window.holds(now_s) for window in upstream.throttled)
        limit = upstream.low_limit if low else upstream.limit
        self._tokens = min(max(1.0, limit), self._tokens + limit * (now_s - self._filled_at_s))
        self._filled_at_s = now_s
        if self._tokens < 1.0:
            self.refused += 1
            return Answer(TOO_MANY_REQUESTS, now_s, self._rng.randint(*upstream.retry_after_s))
        self._tokens -= 1.0
        return Answer(OK, now_s + self._rng.randint(*upstream.latency_s))
