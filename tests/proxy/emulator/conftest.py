"""Emulators on loopback, one client, and an event loop on which nothing may block."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from blockbuster import blockbuster_ctx

from tinybird_proxy.emulator import Emulator, EmulatorSettings, running_emulator


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx():
        yield


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[Emulator]]]:
    """Start emulators that answer at once, with the token ``T``; keywords are settings."""
    async with AsyncExitStack() as stack:

        async def start_one(**settings: Any) -> Emulator:
            defaults = {"token": "T", "port": 0, "wait_delay_s": 0.0, "requests_per_s": 0}
            return await stack.enter_async_context(running_emulator(EmulatorSettings(**{**defaults, **settings})))

        yield start_one


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client that sends the token ``T`` unless told otherwise."""
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer T"}) as client:
        yield client
