"""The largest request that Tinybird takes, learnt from its 413s. Pure; sizes are bytes as sent, times seconds."""

import math

# Nobody tells us when a plan was upgraded: without a 413 for so long, twice as much is tried.
FORGET_AFTER_S = 600.0
# A stray 413 to a small request must not make every batch leave in tiny parts. A real one halves them all the same.
LEAST_BYTES = 64 * 1024


class Ceiling:
    """Unlimited until the first 413."""

    def __init__(self) -> None:
        self._bytes = math.inf
        self._changed_at = 0.0

    def refused(self, size_bytes: int, now: float) -> None:
        """A request of ``size_bytes`` was answered with 413: half of it may pass."""
        self._bytes = max(LEAST_BYTES, min(self.at(now), size_bytes / 2))
        self._changed_at = now

    def at(self, now: float) -> float:
        """Bytes that a request may have now; infinity as long as nothing else is known."""
        if math.isinf(self._bytes):
            return self._bytes
        doublings = (now - self._changed_at) // FORGET_AFTER_S
        return self._bytes * 2.0 ** min(doublings, 60.0) if doublings > 0 else self._bytes
