"""Listeners of a process, each until the stack ends."""

from contextlib import AsyncExitStack

from aiohttp import web

from tinybird_proxy_operator.serving.connections import BoundedSite
from tinybird_proxy_operator.serving.tls import ServerTLS


async def listen(
    stack: AsyncExitStack, runner: web.BaseRunner, host: str | None, port: int, *, tls: ServerTLS | None = None
) -> int:
    """Listen on ``host``, None: every address. Returns the port, for ``port`` may be 0."""
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, host, port) if tls is None else BoundedSite(runner, host, port, tls=tls)
    await site.start()
    found: int = runner.addresses[0][1]
    return found
