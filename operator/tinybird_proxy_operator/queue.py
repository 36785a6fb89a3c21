"""A work queue: each key once, one worker a key at a time, failures again after a backoff with jitter.

Time and chance are arguments, so a test may run hours in milliseconds.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tinybird_proxy_operator.errors import Unavailable

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 60.0
# Up to so much longer than asked: what began at once, as everything does when a leader starts, does not stay together.
# Never sooner, for a look that comes before its figures may be written would have to come once more.
SPREAD = 0.1


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """A resource."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class WorkQueue:
    """``add`` from anywhere in the loop; ``run`` works until it is cancelled.

    ``jitter(limit)`` answers with a random number from 0 to ``limit``. ``now`` is the loop's clock in seconds.
    """

    def __init__(self, *, now: Callable[[], float], jitter: Callable[[float], float]) -> None:
        self._now = now
        self._jitter = jitter
        self._due: dict[Key, float] = {}  # when each waiting key may be worked on
        self._working: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: Key, after_s: float = 0.0) -> None:
        """Work on ``key`` after so many seconds, or sooner if somebody else asked for that."""
        at = self._now() + after_s
        if at < self._due.get(key, float("inf")):
            self._due[key] = at
            self._changed.set()

    def oldest_age_s(self) -> float:
        """For how long the key that is due for longest has been waiting for a worker."""
        now = self._now()
        waits = [now - at for key, at in self._due.items() if key not in self._working]
        return max(0.0, *waits) if waits else 0.0

    async def run(self, work: Callable[[Key], Awaitable[float | None]], *, workers: int) -> None:
        """Work with so many workers. ``work`` answers when to come again, in seconds; None: when something changes.

        It may be a little later, see ``SPREAD``; 0 is at once.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._worker(work))

    async def _worker(self, work: Callable[[Key], Awaitable[float | None]]) -> None:
        while True:
            key = await self._take()
            try:
                again_s = await work(key)
            except Exception as error:  # noqa: BLE001 - ``work`` has told of it; here it is only tried again
                again_s = self._backoff_s(key)
                if isinstance(error, Unavailable) and error.retry_after_s is not None:
                    again_s += error.retry_after_s
            else:
                self._failures.pop(key, None)
                if again_s is not None:
                    again_s += self._jitter(again_s * SPREAD)
            finally:
                self._working.discard(key)
                self._changed.set()
            if again_s is not None:
                self.add(key, again_s)

    def _backoff_s(self, key: Key) -> float:
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        ceiling = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures, 20))
        return ceiling / 2 + self._jitter(ceiling / 2)

    async def _take(self) -> Key:
        while True:
            self._changed.clear()
            now = self._now()
            ready = [(at, key) for key, at in self._due.items() if key not in self._working]
            at, key = min(ready, default=(float("inf"), None))
            if key is not None and at <= now:
                del self._due[key]
                self._working.add(key)
                return key
            try:
                async with asyncio.timeout(None if key is None else at - now):
                    await self._changed.wait()
            except TimeoutError:
                pass
