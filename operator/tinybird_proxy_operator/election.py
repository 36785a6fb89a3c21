"""The operator's leader election: one process holds the Lease and writes; whoever loses it ends at once.

    async with election.leading():      # waits until this process leads, and renews
        ...                             # what writes; before each write ``election.fence()``
                                        # all writes have ended: the Lease is released

Nothing waits for what is under way when the Lease is lost: ``exit_process`` ends the process, as ``os._exit`` does.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Final, Protocol

from tinybird_proxy_operator.errors import Conflict, KubeError
from tinybird_proxy_operator.lease import (
    JITTER,
    NotLeader,
    Object,
    Observation,
    Timing,
    claimed,
    free_at,
    later,
    observe,
    released,
)

_SOON_S: Final = 0.01
_TOO_LATE: Final = "it was not renewed in time, because the API server did not answer or this process stood still"
_log = logging.getLogger(__name__)


class Leases(Protocol):
    """What of the API server the election needs. ``Kube`` has it, and a fake for tests."""

    async def find(self, kind: str, namespace: str, name: str) -> Object | None:
        """One object as it is now, no older; None if there is none. Raises ``KubeError``."""

    async def put(self, manifest: Object) -> Object:
        """Replace the object with ``metadata.resourceVersion`` and ``metadata.uid``; without them make it.

        Raises ``Conflict`` if it is another by now, is gone, or is there already; else ``KubeError``.
        """


class Election:
    """One process's part in it.

    ``identity`` is this process's alone, also after a restart in the same pod. ``now`` is a clock in seconds that goes
    on while the process is frozen and its machine sleeps; ``utc_now`` only tells people. ``jitter(limit)`` answers with
    a random number from 0 to ``limit``. ``exit_process`` must not return, and must not wait.
    """

    def __init__(
        self,
        leases: Leases,
        *,
        namespace: str,
        lease_name: str,
        identity: str,
        timing: Timing,
        now: Callable[[], float],
        utc_now: Callable[[], datetime],
        jitter: Callable[[float], float],
        exit_process: Callable[[], None],
    ) -> None:
        self._leases = leases
        self._namespace = namespace
        self._lease_name = lease_name
        self._identity = identity
        self._timing = timing
        self._now = now
        self._utc_now = utc_now
        self._jitter = jitter
        self._exit_process = exit_process
        self._seen: Observation | None = None
        self._claim: Object | None = None
        self._claimed_at: datetime | None = None
        self._may_write_until: float | None = None  # set while this process leads
        self._told = ""
        self._answered = False

    @property
    def answered(self) -> bool:
        """Whether the last attempt to take the Lease got an answer that was no error: this process could lead."""
        return self._answered

    @property
    def is_leader(self) -> bool:
        """Whether this process leads, as far as it knows; before a write ask ``fence``."""
        return self._may_write_until is not None

    def may_write(self, now: float) -> bool:
        """Whether nobody else can have the Lease at ``now``."""
        return self._may_write_until is not None and now < self._may_write_until

    def fence(self) -> None:
        """Call it right before a write is sent. Raises ``NotLeader``, and ends a process that has lost the Lease."""
        if self.may_write(self._now()):
            return
        if self.is_leader:
            self._end(_TOO_LATE)
        raise NotLeader(f"this process does not hold the lease {self}, so it must not write")

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[None]:
        """Wait until this process leads; renew inside the block. Everything that writes ends with the block."""
        try:
            await self._acquire()
            renewing = asyncio.create_task(self._renew())
            try:
                yield
            finally:
                renewing.cancel()
                await asyncio.wait({renewing})
        finally:
            await self._release()

    async def _acquire(self) -> None:
        timing = self._timing
        while True:
            wait_s = self._period_s()
            try:
                async with asyncio.timeout(timing.attempt_timeout_s):
                    seen = await self._look()
                    free_in_s = free_at(seen, timing, claim=self._claim) - self._now()
                    if free_in_s > 0:
                        self._tell(logging.INFO, f"waiting for the lease {self}, which {_held_by(seen)}")
                        wait_s = min(wait_s, max(_SOON_S, free_in_s))
                    elif await self._put_claim(seen):
                        self._answered = True
                        _log.info("leading: %s holds the lease %s", self._identity, self)
                        return
                self._answered = True
            except Conflict:
                self._answered = True  # somebody else was faster; the next look shows who
            except (KubeError, TimeoutError) as error:
                self._answered = False
                self._tell(logging.WARNING, f"the lease {self} cannot be had, and is tried again: {_said(error)}")
            await asyncio.sleep(wait_s)

    async def _renew(self) -> None:
        try:
            while True:
                await asyncio.sleep(min(self._period_s(), self._left_s()))
                if (left_s := self._left_s()) <= 0:
                    return self._end(_TOO_LATE)
                try:
                    async with asyncio.timeout(min(self._timing.attempt_timeout_s, left_s)):
                        if (taken := await self._renew_once()) is not None:
                            return self._end(f"it {_held_by(taken)}")
                except (KubeError, TimeoutError) as error:
                    self._told_missed(error)
        except Exception:  # noqa: BLE001 - it ends the process
            _log.exception("renewing the lease %s failed, by a fault of the operator's", self)
            self._end("renewing it failed")

    async def _renew_once(self) -> Observation | None:
        """The Lease, if it is not ours any more. It is made anew if it was deleted."""
        try:
            await self._put_claim(self._seen or await self._look())
        except Conflict:
            # It was edited, or the answer to an earlier renewal got lost.
            self._seen = None
            seen = await self._look()
            if seen.lease is not None and seen.holder != self._identity:
                return seen
            await self._put_claim(seen)
        return None

    async def _release(self) -> None:
        """Let the next one begin at once. If that fails it begins when the Lease has run out."""
        self._may_write_until = None
        if self._claim is None:
            return
        try:
            async with asyncio.timeout(self._timing.attempt_timeout_s):
                for _ in range(2):  # a claim whose answer was not waited for may come between
                    seen = await self._look()
                    if seen.lease is None or seen.holder != self._identity:
                        return
                    with suppress(Conflict):
                        await self._leases.put(released(seen.lease, at=self._time()))
                        _log.info("released the lease %s", self)
                        return
        except (KubeError, TimeoutError) as error:
            _log.warning("the lease %s was not released, and runs out by itself: %s", self, _said(error))

    async def _look(self) -> Observation:
        lease = await self._leases.find("Lease", self._namespace, self._lease_name)
        self._seen = observe(self._seen, lease, self._now())
        return self._seen

    async def _put_claim(self, seen: Observation) -> bool:
        """Take or renew the Lease as it was seen. False: the answer came too late to be of use."""
        self._claim = claimed(
            seen,
            namespace=self._namespace,
            name=self._lease_name,
            identity=self._identity,
            timing=self._timing,
            at=self._time(),
        )
        sent_at = self._now()
        lease = await self._leases.put(self._claim)
        now, until = self._now(), sent_at + self._timing.renew_deadline_s
        self._seen = observe(None, lease, now)
        if now >= (until if self._may_write_until is None else self._may_write_until):
            return False
        self._may_write_until, self._told = until, ""
        return True

    def _period_s(self) -> float:
        return self._timing.retry_period_s - self._jitter(self._timing.retry_period_s * JITTER)

    def _left_s(self) -> float:
        return 0.0 if self._may_write_until is None else self._may_write_until - self._now()

    def _told_missed(self, error: Exception) -> None:
        if (left_s := self._left_s()) > 0:
            text = "the lease %s was not renewed; it is tried again for %.1f s, then this process ends: %s"
            _log.warning(text, self, left_s, _said(error))

    def _end(self, why: str) -> None:
        self._may_write_until = None
        _log.critical("this process lost the lease %s and ends now: %s", self, why)
        self._exit_process()

    def _time(self) -> datetime:
        self._claimed_at = later(self._utc_now(), self._claimed_at)
        return self._claimed_at

    def _tell(self, level: int, message: str) -> None:
        if message != self._told:
            self._told = message
            _log.log(level, "%s", message)

    def __str__(self) -> str:
        return f"{self._namespace}/{self._lease_name}"


def _held_by(seen: Observation) -> str:
    if seen.lease is None:
        return "does not exist; it is made when it has been missing for its duration"
    return f"is held by {seen.holder}" if seen.holder else "is held by nobody, but was not released"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
