"""Answers that are good for a moment: asked for once, however many want them at the same time."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class Recent(Generic[_K, _V]):
    """Keeps at most ``capacity`` answers, each for ``keep_s`` seconds of ``now``. What fails is not kept.

    Its questions are tasks of its own, so that one who no longer waits ends nobody else's: ``close`` ends them.
    ``at_once``: so many are asked at the same time, and the others wait.
    """

    def __init__(
        self,
        ask: Callable[[_K], Awaitable[_V]],
        *,
        keep_s: float,
        capacity: int,
        at_once: int,
        now: Callable[[], float],
    ) -> None:
        self._ask = ask
        self._keep_s = keep_s
        self._capacity = capacity
        self._now = now
        self._limit = asyncio.Semaphore(at_once)
        self._kept: dict[_K, tuple[float, _V]] = {}
        self._asking: dict[_K, asyncio.Task[_V]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    async def get(self, key: _K) -> _V:
        """The answer to ``key``, at most ``keep_s`` old. Raises what asking raised."""
        kept = self._kept.get(key)
        if kept is not None and self._now() - kept[0] < self._keep_s:
            return kept[1]
        if (asking := self._asking.get(key)) is None:
            asking = self._asking[key] = asyncio.create_task(self._asked(key))
            asking.add_done_callback(lambda task: self._ended(key, task))
        return await asyncio.shield(asking)

    async def close(self) -> None:
        """Ask no more. Whoever still waits is cancelled."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _asked(self, key: _K) -> _V:
        async with self._limit:
            asked_at = self._now()
            answer = await self._ask(key)
        self._kept.pop(key, None)
        self._kept[key] = (asked_at, answer)
        # Oldest first.
        for old in list(self._kept):
            if len(self._kept) <= self._capacity and self._now() - self._kept[old][0] < self._keep_s:
                break
            del self._kept[old]
        return answer

    def _ended(self, key: _K, task: asyncio.Task[_V]) -> None:
        del self._asking[key]
        if not task.cancelled():
            task.exception()  # whoever waited has it; perhaps nobody did
