"""Worlds to send into: an emulated Tinybird, and beside it another one with the proxy in front."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from tinybird_proxy.emulator import Emulator, EmulatorSettings, TokenEntry, running_emulator

TOKEN: Final = "tinybird-admin"
CLIENT_TOKEN: Final = "client"
NARROW_TOKEN: Final = "narrow"
_START_TIMEOUT_S: Final = 20.0
_STOP_TIMEOUT_S: Final = 30.0
_EMPTY_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a world is made: settings of both emulators, environment of the proxy."""

    tinybird: Mapping[str, Any] = field(default_factory=dict)
    proxy: Mapping[str, str] = field(default_factory=dict)
    """Whether the proxy must end with status 0."""


class Proxy:
    """A running proxy. Made by `running_proxy`."""

    def __init__(self, port: int, admin_port: int, session: aiohttp.ClientSession) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._admin_url = f"http://127.0.0.1:{admin_port}"
        self._session = session

    async def begin_drain(self) -> None:
        """From now on it refuses rows."""
        await self._drain("POST")

    async def cancel_drain(self) -> None:
        """From now on it takes rows again."""
        await self._drain("DELETE")

    async def emptied(self) -> None:
        """Return once nothing is buffered. Raises TimeoutError."""
        async with asyncio.timeout(_EMPTY_TIMEOUT_S):
            while (await self.status())["buffer"]["rows"] > 0:  # noqa: ASYNC110 - another process can only be asked
                await asyncio.sleep(0.02)

    async def status(self) -> dict[str, Any]:
        """What ``/status`` says."""
        async with self._session.get(f"{self._admin_url}/status") as reply:
            found: dict[str, Any] = await reply.json()
            return found

    async def _drain(self, method: str) -> None:
        headers = {"X-Tinybird-Proxy": "1"}
        async with self._session.request(method, f"{self._admin_url}/drain", headers=headers) as reply:
            reply.raise_for_status()


@dataclass(frozen=True, slots=True)
class Way:
    """One way to Tinybird: ``url`` is what a client is given, ``tinybird`` is where its rows arrive."""

    name: str
    url: str
    tinybird: Emulator
    proxy: Proxy | None


class World:
    """Both ways, under the same conditions."""

    def __init__(self, direct: Way, proxied: Way) -> None:
        self.direct = direct
        self.proxied = proxied
        self._arrived: dict[tuple[str, str], list[bytes]] = {}

    @property
    def ways(self) -> tuple[Way, Way]:
        """The direct one first."""
        return (self.direct, self.proxied)

    def note(self, way: Way, datasource: str, rows: list[bytes]) -> None:
        """Remember what has arrived: nothing may follow, not even when the proxy stops."""
        self._arrived[way.name, datasource] = rows

    async def nothing_followed(self) -> None:
        """Raise AssertionError if more rows came than were noted: sent twice, or though they were refused."""
        for way in self.ways:
            for (name, datasource), rows in self._arrived.items():
                if name == way.name:
                    assert await way.tinybird.rows(datasource) == rows, f"{name}, {datasource}: rows came later"


@asynccontextmanager
async def running_proxy(env: Mapping[str, str]) -> AsyncIterator[Proxy]:
    """The proxy as a process of its own, until the block ends; then it must say that nothing was lost."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tinybird_proxy", "run"),
        env={
            **{"PATH": os.environ["PATH"], "HOST": "127.0.0.1", "PORT": "0", "ADMIN_PORT": "0"},
            **{"LOG_FORMAT": "json", "FLUSH_INTERVAL": "20ms"},
            **env,
        },
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    lines: list[bytes] = []
    ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def read(stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            lines.append(line)
            if b'"message":"ready"' in line:
                ready.set_result(json.loads(line))
        if not ready.done():
            ready.set_exception(AssertionError(f"the proxy did not start: {lines}"))

    reading = asyncio.create_task(read(process.stderr))
    try:
        started = await asyncio.wait_for(ready, _START_TIMEOUT_S)
        async with aiohttp.ClientSession() as session:
            yield Proxy(started["port"], started["admin_port"], session)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(asyncio.gather(process.wait(), reading), _STOP_TIMEOUT_S)
    assert process.returncode == 0, lines


@asynccontextmanager
async def running_world(setting: Setting) -> AsyncIterator[World]:
    """Both ways, until the block ends."""
    settings = EmulatorSettings(
        token=TOKEN,
        tokens=(TokenEntry(CLIENT_TOKEN), TokenEntry(NARROW_TOKEN, ("DATASOURCES:APPEND:elsewhere",))),
        **{"port": 0, "wait_delay_s": 0.05, **setting.tinybird},
    )
    async with AsyncExitStack() as stack:
        direct, behind = [await stack.enter_async_context(running_emulator(settings)) for _ in range(2)]
        env = {"TINYBIRD_URL": behind.url, **setting.proxy}
        async with running_proxy(env) as proxy:
            world = World(Way("direct", direct.url, direct, None), Way("proxied", proxy.url, behind, proxy))
            yield world
        await world.nothing_followed()
