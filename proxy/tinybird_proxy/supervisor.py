"""The destinations that are known, and the task of each: made, restarted when it dies or stands still, forgotten.

Where there is no place for another one, an idle one is forgotten; its ledger is not.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from tinybird_proxy.batch import DestinationKey
from tinybird_proxy.destination import Destination, Surroundings
from tinybird_proxy.ledger import Ledger
from tinybird_proxy.telemetry.logs import fields, get_logger

# What clients' own tokens that Tinybird has not confirmed may take of MAX_DESTINATIONS: guesses push nobody else out.
UNCONFIRMED_SHARE = 0.5
RESTART_DELAY_S = 1.0
WATCH_INTERVAL_S = 5.0
_log = get_logger("pipeline")


class Supervisor:
    """Owns the destinations and their tasks. Enter ``running`` before the first ``make``.

    ``known`` are those that are there now; ``with_letters`` the ledgers of those that were forgotten while they had
    dead letters.
    """

    def __init__(self, surroundings: Surroundings, max_destinations: int) -> None:
        self.known: dict[DestinationKey, Destination] = {}
        self.with_letters: dict[DestinationKey, Ledger] = {}
        self._s = surroundings
        self._max_destinations = max_destinations
        self._forgotten = Ledger()
        self._tasks: dict[DestinationKey, asyncio.Task[None]] = {}
        self._senders: dict[DestinationKey, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Own every task until the end; what is still here then, rows and dead letters, is counted as lost."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                yield
            finally:
                self._group = None
                for task in self._tasks.values():
                    task.cancel()
                await asyncio.gather(*self._tasks.values(), return_exceptions=True)
                for destination in self.known.values():
                    destination.abandon()
                self._s.letters.lose_all()

    # Which are known.

    def make(self, key: DestinationKey) -> Destination | None:
        """A destination that is not known yet, and its task; None if there is no place for it."""
        assert self._group is not None  # noqa: S101 - nothing is taken before ``running`` and after it
        if not self._has_place(key):
            return None
        ledger = self.with_letters.pop(key) if key in self.with_letters else Ledger()
        destination = self.known[key] = Destination(key, self._s, ledger)
        self._tasks[key] = self._group.create_task(self._supervise(destination))
        return destination

    def _has_place(self, key: DestinationKey) -> bool:
        """Whether one more may be known, if need be because an idle one was forgotten: strangers first."""
        most = self._max_destinations
        strangers = [destination for destination in self.known.values() if destination.unconfirmed]
        if key.token is not None and len(strangers) >= max(1.0, most * UNCONFIRMED_SHARE):
            return self._forget_one(strangers)
        if len(self.known) < most:
            return True
        return self._forget_one(strangers) or self._forget_one(self.known.values())

    def _forget_one(self, candidates: Iterable[Destination]) -> bool:
        """Make room: forget the one of ``candidates`` that was not used for longest, if it is idle or refused.

        What a refused one still holds becomes dead letters, before their hour is over.
        """
        by_use = sorted(candidates, key=lambda destination: destination.used_at)
        oldest = next((destination for destination in by_use if destination.idle), None)
        if oldest is None:
            for destination in by_use:
                destination.give_up_refused()
                if destination.idle:
                    oldest = destination
                    break
        if oldest is None:
            return False
        self.with_letters[oldest.key] = oldest.ledger
        self.forget_ledgers()
        del self.known[oldest.key]
        self._senders.pop(oldest.key, None)
        self._tasks.pop(oldest.key).cancel()
        return True

    def forget_ledgers(self) -> None:
        """Sum up the ledgers of forgotten destinations that no dead letter refers to any more."""
        letters = self._s.letters
        for key in [key for key in self.with_letters if not letters.held_rows(key)]:
            self._forgotten.add(self.with_letters.pop(key))

    def ledger(self) -> Ledger:
        """The ledger of all destinations, the forgotten ones included."""
        total = Ledger()
        total.add(self._forgotten)
        for ledger in self.with_letters.values():
            total.add(ledger)
        for destination in self.known.values():
            total.add(destination.ledger)
        return total

    # Their tasks.

    async def _supervise(self, destination: Destination) -> None:
        """Run a destination for ever: a task that died, or that ``watch`` ended, is restarted and counted."""
        while True:
            sender = self._senders[destination.key] = asyncio.create_task(destination.sender.run())
            try:
                await asyncio.wait([sender])
            finally:
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)
            error = None if sender.cancelled() else sender.exception()
            self._s.meters.sender_restarts += 1
            what = "a sender died and is restarted; its rows are kept"
            _log.error(what, extra=fields(data_source=destination.key.name), exc_info=error)
            destination.recover_in_flight()
            await asyncio.sleep(RESTART_DELAY_S)

    async def watch(self, interval_s: float = WATCH_INTERVAL_S) -> None:
        """End senders that stand still: one whose turn was due at two looks in a row, and that has not taken it."""
        due: dict[DestinationKey, int] = {}
        while True:
            await asyncio.sleep(interval_s)
            now, before, due = self._s.now(), due, {}
            for key, destination in self.known.items():
                if (turns := destination.sender.turns_due(now)) is None:
                    continue
                due[key] = turns
                if before.get(key) == turns and not self._senders[key].done():
                    _log.error("a sender stands still", extra=fields(data_source=key.name))
                    self._senders[key].cancel()
