"""Run an emulator: inside a test, or until a signal."""

import asyncio
import logging
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

from tinybird_proxy.emulator.faults import Fault, parse_faults
from tinybird_proxy.emulator.request_log import ReceivedRequest
from tinybird_proxy.emulator.server import create_app, create_runner
from tinybird_proxy.emulator.settings import EmulatorSettings
from tinybird_proxy.emulator.state import STATE, EmulatorState
from tinybird_proxy.emulator.store import Datasource, QuarantinedRow
from tinybird_proxy.emulator.tokens import TokenEntry

_log = logging.getLogger(__name__)


class Emulator:
    """A running emulator, and what it has seen. Made by `running_emulator`."""

    def __init__(self, settings: EmulatorSettings, state: EmulatorState, port: int) -> None:
        self.settings = settings
        self.port = port
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{port}"
        """Without a slash at the end."""
        self._state = state

    @property
    def requests(self) -> deque[ReceivedRequest]:
        """The last 10,000 requests in order of arrival, those to ``/emulator`` left out."""
        return self._state.log.requests

    @property
    def faults(self) -> list[tuple[Fault, int]]:
        """The faults in force, each with the number of requests it was applied to."""
        return self._state.faults.applied()

    def set_faults(self, *faults: Fault | Mapping[str, object]) -> None:
        """Replace all faults; without arguments, clear them. Raises `BadFault`."""
        self._state.set_faults(parse_faults(faults))

    def set_tokens(self, *entries: TokenEntry) -> None:
        """Replace all tokens, also the one that the settings name."""
        self._state.tokens = entries

    async def rows(self, datasource: str) -> list[bytes]:
        """The raw rows in order of arrival, duplicates included, quarantined ones not."""
        return await self._state.store.rows(datasource)

    async def quarantined_rows(self, datasource: str) -> list[QuarantinedRow]:
        """The rows that were set aside, in order of arrival."""
        return await self._state.store.quarantined_rows(datasource)

    async def datasources(self) -> list[Datasource]:
        """All data sources with their counts, the oldest first."""
        return await self._state.store.datasources()

    async def wait_for_requests(self, count: int, *, timeout_s: float = 10.0) -> None:
        """Return once ``count`` requests since the start were answered, or given up. Raises TimeoutError."""
        await self.wait_until(lambda: self._state.log.finished_count >= count, timeout_s=timeout_s)

    async def wait_until(self, is_so: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
        """Return once ``is_so()``; asked each time a request arrives, meets a fault, or is finished.

        Raises TimeoutError.
        """
        async with asyncio.timeout(timeout_s):
            while not is_so():
                await self._state.log.progress.wait()

    async def wait_for_rows(self, datasource: str, count: int, *, timeout_s: float = 10.0) -> list[bytes]:
        """The rows, once a data source holds at least ``count``. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while True:
                progress = self._state.stored
                if await self._state.store.row_count(datasource) >= count:
                    return await self.rows(datasource)
                await progress.wait()


@asynccontextmanager
async def running_emulator(settings: EmulatorSettings) -> AsyncIterator[Emulator]:
    """An emulator that listens until the block ends. Raises OSError if the port is taken."""
    app = create_app(settings)
    runner = create_runner(app)
    try:
        await runner.setup()
        site = web.TCPSite(runner, settings.host, settings.port)
        await site.start()
        port = runner.addresses[0][1]
        yield Emulator(settings, app[STATE], port)
    finally:
        await runner.cleanup()


async def serve(settings: EmulatorSettings, *, on_ready: Callable[[Emulator], None] | None = None) -> None:
    """Run until SIGINT or SIGTERM; ``on_ready`` is called once, when connections are taken."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    try:
        async with running_emulator(settings) as emulator:
            _log.info("the emulator listens on %s", emulator.url)
            if on_ready is not None:
                on_ready(emulator)
            await stopped.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
