"""The task of one destination: it freezes what is due, sends what may be sent, and sleeps until something can happen.

It decides when a batch is sent; what Tinybird's answer changes about the destination is not its business.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable

from tinybird_proxy.batch import DestinationKey, FrozenBatch, Trigger
from tinybird_proxy.destination.attempts import Attempts, NoToken
from tinybird_proxy.destination.expiry import Expiry
from tinybird_proxy.destination.queue import BatchQueue
from tinybird_proxy.destination.splitting import Splitting
from tinybird_proxy.destination.surroundings import Surroundings
from tinybird_proxy.errors import UpstreamError
from tinybird_proxy.pacing import Pacing, State
from tinybird_proxy.telemetry.logs import get_logger
from tinybird_proxy.verdict import Again, Decision, Held, judge, judge_failure

# A timer may fire before its time by the clock's resolution: better a little late than a turn too many.
_TIMER_SLACK_S = 0.001
_log = get_logger("destination")


class Sender:
    """Takes a turn whenever something may have to be done. Times are the clock's seconds.

    ``expire(now)`` gives up on what is too old, ``halve(batch, started_at)`` sends in two parts what is too large, and
    ``carry_out(decision, status, batch, started_at)`` hears how an attempt ended; ``status`` is None for a success, and
    where there was no reply. While ``draining`` is set, whole batches go before pieces: they hold more rows.
    """

    def __init__(
        self,
        key: DestinationKey,
        surroundings: Surroundings,
        *,
        queue: BatchQueue,
        pacing: Pacing,
        expiry: Expiry,
        splitting: Splitting,
        expire: Callable[[float], None],
        halve: Callable[[FrozenBatch, float], Awaitable[None]],
        carry_out: Callable[[Decision, int | None, FrozenBatch, float], Awaitable[None]],
    ) -> None:
        self.draining = False
        self._s = surroundings
        self._queue = queue
        self._pacing = pacing
        self._expiry = expiry
        self._splitting = splitting
        self._expire = expire
        self._halve = halve
        self._carry_out = carry_out
        self._attempts = Attempts(key, surroundings)
        self._wake = asyncio.Event()
        self._turns = 0
        self._next_at = math.inf

    def wake(self) -> None:
        """Something may have to be done now."""
        self._wake.set()

    def turns_due(self, now: float) -> int | None:
        """How many turns the task has taken, if the next one is due; None if it has nothing to do."""
        return self._turns if self._wake.is_set() or now >= self._next_at else None

    async def run(self) -> None:
        """Freeze what is due, send what may be sent, sleep until something can happen. Runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                delay_s = self._turn(group)
                self._turns += 1
                self._next_at = math.inf if delay_s is None else self._s.now() + delay_s
                try:
                    async with asyncio.timeout(delay_s):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    def _turn(self, group: asyncio.TaskGroup) -> float | None:
        """Begin what may begin now; return the seconds until the next turn, None if only an event can bring it."""
        now, queue = self._s.now(), self._queue
        self._expire(now)
        trigger = Trigger.DRAIN if self.draining or queue.flush_at_once else Trigger.INTERVAL
        while self._pacing.ready_at(now, len(queue.in_flight)) <= now:
            batch = self._next_batch(now, trigger)
            if batch is None:
                break
            self._pacing.begin(now)
            queue.begin(batch)
            group.create_task(self._attempt(batch, now))
        for batch in queue.take_fresh():
            self._s.buffer.freeze(batch)
            self._s.meters.batches[batch.trigger] += 1
            if batch.id not in queue.in_flight:
                group.create_task(self._compress(batch))
        if (job := self._splitting.job(now)) is not None:
            group.create_task(job)
        due_at = self._next_turn_at(now)
        return None if math.isinf(due_at) else max(0.0, due_at - now) + _TIMER_SLACK_S

    def _next_batch(self, now: float, trigger: Trigger) -> FrozenBatch | None:
        """A piece of what is being searched, or the next whole batch; in a drain whole ones first: they hold more."""
        piece = self._splitting.next_piece(now)
        if self._only_pieces or (piece is not None and not self.draining):
            return piece
        return self._queue.next_due(now, trigger) or piece

    @property
    def _only_pieces(self) -> bool:
        """While a hold is probed with a batch that has to be split, nothing else is sent."""
        return self._pacing.state is State.HELD and self._splitting.active is not None

    def _next_turn_at(self, now: float) -> float:
        """When something can happen by itself; infinity if only an event can bring it."""
        queue = self._queue
        ready_at = self._pacing.ready_at(now, len(queue.in_flight))
        times = [self._expiry.next_at()]
        if (piece_at := self._splitting.next_piece_at()) is not None:
            times.append(max(ready_at, piece_at))
        if (job_at := self._splitting.next_job_at()) is not None:
            times.append(job_at)
        if not self._only_pieces:
            if queue.waiting:
                times.append(ready_at)
            elif queue.open is not None:
                times.append(max(ready_at, queue.due_at()))
        return min(times)

    async def _compress(self, batch: FrozenBatch) -> None:
        """Make the payload before it can be sent: a waiting batch is kept compressed."""
        try:
            await self._attempts.compress(batch)
        except Exception:  # noqa: BLE001 - the attempt tries again; nothing may kill the destination's task
            self._s.meters.internal_errors += 1
            _log.warning("a batch could not be compressed; it stays as it is", exc_info=True)

    async def _attempt(self, batch: FrozenBatch, started_at: float) -> None:
        """One request with ``batch``, and what follows from it."""
        decision: Decision
        status: int | None = None
        try:
            await self._attempts.compress(batch)
            if self._splitting.is_too_large(batch, started_at):
                await self._halve(batch, started_at)
                self._wake.set()
                return
            reply = await self._attempts.send(batch)
            status = reply.status if reply.status >= 300 else None
            upstream = self._s.upstream
            decision = judge(reply, batch.row_count, counts_seen=upstream.counts_seen, now_utc=self._s.utc_now())
        except UpstreamError as error:
            decision = judge_failure(error)
        except NoToken:
            decision = Held("the file of TINYBIRD_TOKEN_FILE is not there yet")
        except Exception as error:  # noqa: BLE001 - whatever broke, the batch must go back
            self._s.meters.internal_errors += 1
            _log.warning("an attempt broke inside the proxy; the batch is kept", exc_info=True)
            decision = Again(f"an error inside the proxy ({type(error).__name__})", ambiguous=True)
        await self._carry_out(decision, status, batch, started_at)
        self._wake.set()
