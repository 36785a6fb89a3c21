"""Listeners of a process."""

from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web

from tinybird_proxy_operator.serving.listening import listen


async def test_it_listens_until_the_stack_ends() -> None:
    app = web.Application()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        async with AsyncExitStack() as inner:
            port = await listen(inner, web.AppRunner(app, access_log=None), "127.0.0.1", 0)
            async with session.get(f"http://127.0.0.1:{port}/") as answer:
                assert answer.status == 404
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"http://127.0.0.1:{port}/")
