"""Tinybird's request rate: so many requests a second for each data source.

A window opens with its first request and lasts one second, so that "seconds until the window resets" means
something. Does no I/O and never reads a clock: callers pass ``now``, in seconds.
"""

import math
from dataclasses import dataclass

WINDOW_S = 1.0
_MAX_WINDOWS = 10_000


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the limiter says about one request."""

    allowed: bool
    limit: int
    remaining: int
    """Requests left in this window; at least 1 when the request is allowed, because one client sleeps on
    ``X-RateLimit-Remaining: 0`` even after a success."""
    reset_s: int
    """Whole seconds until the window resets, at least 1."""

    def headers(self) -> dict[str, str]:
        """The rate headers, all integers; a refused request is also told when to come back."""
        headers = {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(self.reset_s),
        }
        if not self.allowed:
            headers["Retry-After"] = str(self.reset_s)
        return headers


class RequestLimiter:
    """Count requests per data source; ``requests_per_s`` 0 means no limit and no rate headers."""

    def __init__(self, requests_per_s: int) -> None:
        self._requests_per_s = requests_per_s
        self._windows: dict[str, tuple[float, int]] = {}

    def take(self, datasource: str, now: float) -> Allowance | None:
        """Count one request. Refused requests do not count; None when there is no limit."""
        if self._requests_per_s == 0:
            return None
        opened_at, taken = self._windows.get(datasource, (now, 0))
        if now - opened_at >= WINDOW_S:
            opened_at, taken = now, 0
        reset_s = max(1, math.ceil(opened_at + WINDOW_S - now))
        if taken >= self._requests_per_s:
            return Allowance(False, self._requests_per_s, 0, reset_s)
        if datasource not in self._windows and len(self._windows) >= _MAX_WINDOWS:
            self._forget_closed(now)
        self._windows[datasource] = (opened_at, taken + 1)
        return Allowance(True, self._requests_per_s, max(1, self._requests_per_s - taken - 1), reset_s)

    def _forget_closed(self, now: float) -> None:
        self._windows = {
            datasource: window for datasource, window in self._windows.items() if now - window[0] < WINDOW_S
        }
