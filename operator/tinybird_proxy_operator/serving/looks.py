"""Looks at everything, one after the other: what fails is told once, and tried again with the next one."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from tinybird_proxy_operator.errors import Conflict, KubeError

PERIOD_S: Final = 10.0
NOT_READY_PERIOD_S: Final = 2.0
# A replica must have looked several times before an overlap ends.
_PERIODS_IN_OVERLAP: Final = 5


async def look_again(
    look: Callable[[], Awaitable[None]],
    *,
    is_ready: Callable[[], bool],
    overlap_s: float,
    jitter: Callable[[float], float],
) -> None:
    """Call ``look`` until it is cancelled. ``jitter(limit)`` is a random number up to ``limit``."""
    period_s = min(PERIOD_S, overlap_s / _PERIODS_IN_OVERLAP)
    while True:
        await look()
        # While nothing can be answered, what is missing (rights, mostly) may come any moment.
        wait_s = period_s if is_ready() else min(period_s, NOT_READY_PERIOD_S)
        await asyncio.sleep(wait_s * (1.0 - jitter(0.2)))


class Teller:
    """Tries parts of a look, and tells what changes. ``whose``: whose fault it is if the program has a mistake."""

    def __init__(self, log: logging.Logger, whose: str) -> None:
        self._log = log
        self._whose = whose
        self._told: dict[str, str] = {}

    async def attempt(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        """Do it; whatever it raises is told, and not raised."""
        try:
            await work()
        except Conflict:
            pass  # another replica was faster; the next look shows what it did
        except (KubeError, ValueError) as error:
            self.tell(what, logging.WARNING, f"{what}: {error}; it is tried again")
        except Exception:  # noqa: BLE001 - the process goes on with what it has
            self._log.exception("%s: a fault of %s; it is tried again", what, self._whose)
        else:
            self._told.pop(what, None)

    def tell(self, what: str, level: int, message: str) -> None:
        """Log it, unless that is what was said last."""
        if self._told.get(what) != message:
            self._told[what] = message
            self._log.log(level, "%s", message)
