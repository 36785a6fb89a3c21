"""The demo's client: single rows at a steady rate, and now and then one that waits until Tinybird has it."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import aiohttp

from tinybird_proxy.cli.demo.figures import Tally
from tinybird_proxy.cli.demo.page_hits import DATA_SOURCE, page_hit

CONNECTIONS = 16
WAIT_EVERY_S = 2.0
_TIMEOUT_S = 30.0


class Client:
    """Posts to a proxy and counts what it hears. Made by `connected_client`."""

    def __init__(self, session: aiohttp.ClientSession, url: str, rate: float) -> None:
        self.tally = Tally()
        self._session = session
        self._url = f"{url}/v0/events?name={DATA_SOURCE}"
        self._rate = rate
        self._numbers = itertools.count(1)
        self._chance = random.Random()  # noqa: S311 - plausible rows, no secret
        self._stopping = asyncio.Event()
        self._now = asyncio.get_running_loop().time

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping.set()

    async def post_steadily(self) -> None:
        """One row a request, ``rate`` requests a second, until `stop`; then the answers still due."""
        began_at = self._now()
        async with asyncio.TaskGroup() as group:
            for lane in range(CONNECTIONS):
                group.create_task(self._post_in_lane(lane, began_at))

    async def post_and_wait(self) -> None:
        """Every few seconds a request with ``wait=true``, until `stop`; then the answer still due."""
        due_at = self._now() + WAIT_EVERY_S / 2
        while not await self._stopped_before(due_at):
            due_at = self._now() + WAIT_EVERY_S
            answered = await self._post(f"{self._url}&wait=true")
            if answered is not None and answered[0] == 200:
                self.tally.wait_latencies.append(answered[1])

    async def _post_in_lane(self, lane: int, began_at: float) -> None:
        for turn in itertools.count(lane, CONNECTIONS):
            if await self._stopped_before(began_at + turn / self._rate):
                return
            answered = await self._post(self._url)
            if answered is not None:
                self.tally.latencies.append(answered[1])

    async def _stopped_before(self, due_at: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, due_at - self._now())):
                await self._stopping.wait()
        return self._stopping.is_set()

    async def _post(self, url: str) -> tuple[int, float] | None:
        """Post one row; status and seconds until the whole answer was there, None if there was none."""
        number = next(self._numbers)
        row = page_hit(number, datetime.now(UTC), self._chance)
        self.tally.posted += 1
        status: int | None = None
        # Not the event loop's clock: uvloop's counts in milliseconds.
        began_at = time.perf_counter()
        try:
            async with self._session.post(url, data=row) as reply:
                await reply.read()
            status = reply.status
            return status, time.perf_counter() - began_at
        except (aiohttp.ClientError, TimeoutError):
            return None
        finally:
            self.tally.heard(number, status)


@asynccontextmanager
async def connected_client(url: str, token: str, rate: float) -> AsyncIterator[Client]:
    """A client with keep-alive connections of its own."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS + 1),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/x-ndjson"},
        timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
    ) as session:
        yield Client(session, url, rate)
