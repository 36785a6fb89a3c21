"""Worlds and drivers, each made when it is first asked for and kept to the end of the module."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from tests.proxy.conformance.cases import WORLDS
from tests.proxy.conformance.drivers import Client, Driver, running_driver
from tests.proxy.conformance.worlds import Way, World, running_world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[Callable[[str], Awaitable[World]]]:
    """The world of a name in ``WORLDS``."""
    worlds: dict[str, World] = {}
    async with AsyncExitStack() as stack:

        async def get(name: str) -> World:
            if name not in worlds:
                worlds[name] = await stack.enter_async_context(running_world(WORLDS[name]))
            return worlds[name]

        yield get


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def driver() -> AsyncIterator[Callable[[Client, Way], Awaitable[Driver]]]:
    """A driver of a client, one for each way, so that both can be gone at once."""
    drivers: dict[tuple[Client, str], Driver] = {}
    async with AsyncExitStack() as stack:

        async def get(client: Client, way: Way) -> Driver:
            if client.missing is not None:
                pytest.skip(client.missing)
            if (client, way.name) not in drivers:
                drivers[client, way.name] = await stack.enter_async_context(running_driver(client))
            return drivers[client, way.name]

        yield get
