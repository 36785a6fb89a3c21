"""Listeners of a process."""

import socket
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web
from tests.proxy.running import needs_ipv6

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


@needs_ipv6
async def test_without_a_host_it_listens_on_every_address_of_both_families() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as free:
        free_port = free.getsockname()[1]
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        port = await listen(stack, web.AppRunner(web.Application(), access_log=None), None, free_port)
        for host in ("127.0.0.1", "[::1]"):
            async with session.get(f"http://{host}:{port}/") as answer:
                assert answer.status == 404
