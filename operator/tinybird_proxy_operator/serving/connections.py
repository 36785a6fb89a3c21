"""Connections that are bounded in number and in time, for who has no token yet can open them too.

Each serves one request, see ``server``. A TLS connection takes a quarter of a megabyte before a byte of it is read.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

HANDSHAKE_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``head_s``: until a whole request has come; ``whole_s``: until its answer has been taken."""

    connections: int = 200
    head_s: float = 10.0
    whole_s: float = 30.0


class _Connection(web.RequestHandler):
    """One client's. It ends at the time limit, whatever it is doing."""

    __slots__ = ("_ending", "_limits")

    def __init__(self, manager: web.Server, limits: Limits) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), access_log=None)  # type: ignore[arg-type]
        self._limits = limits
        self._ending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._manager.connections) > self._limits.connections:  # type: ignore[union-attr]
            self._end()
        else:
            self._ending = asyncio.get_running_loop().call_later(self._limits.head_s, self._end)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._ending is not None:
            self._ending.cancel()
        super().connection_lost(exc)

    def request_has_come(self) -> None:
        """Its answer may take longer."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = asyncio.get_running_loop().call_later(self._limits.whole_s, self._end)

    def _end(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class BoundedServer(web.Server):
    """Makes them."""

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], limits: Limits) -> None:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            connection: Any = request.protocol
            connection.request_has_come()
            return await handler(request)

        super().__init__(handle)
        self._limits = limits

    def __call__(self) -> web.RequestHandler:
        """The protocol of a new connection."""
        return _Connection(self, self._limits)


class BoundedSite(web.BaseSite):
    """Like ``web.TCPSite``, but a handshake has its time too."""

    __slots__ = ("_host", "_port")

    def __init__(self, runner: web.BaseRunner, host: str | None, port: int, *, ssl_context: Any) -> None:
        super().__init__(runner, ssl_context=ssl_context)
        self._host = host
        self._port = port

    @property
    def name(self) -> str:
        """For people."""
        return f"https://{self._host or 'every address'}:{self._port}"

    async def start(self) -> None:
        """Listen."""
        await super().start()
        assert self._runner.server is not None  # noqa: S101 - the runner was set up
        self._server = await asyncio.get_running_loop().create_server(
            self._runner.server,
            self._host,
            self._port,
            ssl=self._ssl_context,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
            backlog=self._backlog,
        )
