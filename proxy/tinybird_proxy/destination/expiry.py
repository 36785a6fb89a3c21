"""When rows are given up on because of their age. Times are the clock's seconds."""

import math

from tinybird_proxy.batch import Trigger
from tinybird_proxy.destination.exits import Exits
from tinybird_proxy.destination.queue import BatchQueue
from tinybird_proxy.destination.split import Split
from tinybird_proxy.ledger import LetterReason

# What was promised before Tinybird refused a token that it had never accepted is kept for so long.
UNAUTHORIZED_AFTER_S = 3600.0


class Expiry:
    """``max_age_s``: a batch whose youngest row is older expires; None: rows are kept for ever."""

    def __init__(self, queue: BatchQueue, exits: Exits, max_age_s: float | None) -> None:
        self._queue = queue
        self._exits = exits
        self._max_age_s = max_age_s
        self._refused_since: float | None = None

    def refused(self, now: float) -> None:
        """Tinybird refuses this destination, which it never accepted."""
        if self._refused_since is None:
            self._refused_since = now

    def accepted(self) -> None:
        """Tinybird took rows."""
        self._refused_since = None

    def hurry(self) -> None:
        """Room is needed: what Tinybird refuses is given up on now."""
        if self._refused_since is not None:
            self._refused_since = -math.inf

    def next_at(self) -> float:
        """When the next rows get too old; infinity if never."""
        if self._max_age_s is None and self._refused_since is None:
            return math.inf
        youngest_times = [batch.youngest_at for batch in self._queue.waiting if batch.promised]
        youngest_times += [split.batch.youngest_at for split in self._idle_splits()]
        if self._queue.open is not None:
            youngest_times.append(self._queue.open.last_at)
        if not youngest_times:
            return math.inf
        unauthorized_at = math.inf if self._refused_since is None else self._refused_since + UNAUTHORIZED_AFTER_S
        return min(unauthorized_at, math.inf if self._max_age_s is None else min(youngest_times) + self._max_age_s)

    def expire(self, now: float, why: str, status: int | None) -> None:
        """Make dead letters of what is too old and not in flight. ``why``, ``status``: what Tinybird said last."""
        if now < self.next_at():
            return
        unauthorized = self._refused_since is not None and now >= self._refused_since + UNAUTHORIZED_AFTER_S
        reason = LetterReason.UNAUTHORIZED if unauthorized else LetterReason.EXPIRED
        if unauthorized or self._max_age_s is None:
            youngest_at_most, message = math.inf, why
        else:
            youngest_at_most, status = now - self._max_age_s, None
            message = f"older than MAX_AGE; {why or 'Tinybird had not answered'}"
        queue = self._queue
        if queue.open is not None and queue.open.last_at <= youngest_at_most:
            queue.freeze_open(Trigger.INTERVAL, now)
        for batch in list(queue.waiting):
            if batch.promised and batch.youngest_at <= youngest_at_most:
                self._exits.give_up(batch, reason, now, status=status, message=message)
        for split in self._idle_splits():
            if split.batch.youngest_at <= youngest_at_most:
                searched = message if why else f"older than MAX_AGE; {split.refusal.reason}"
                split.stop(reason, searched, status)

    def _idle_splits(self) -> list[Split]:
        """Batches being split of which nothing is in flight or at work, and that have not ended."""
        in_flight = self._queue.in_flight
        return [
            split
            for split in self._queue.splits
            if split.bisection.ended is None
            and not split.busy
            and (split.piece is None or split.piece.id not in in_flight)
        ]
