"""Connections that are bounded in number and in time, for who has no token yet can open them too.

Each serves one request, see ``server`` of who uses this. A TLS connection takes a quarter of a megabyte before a byte
of it is read, so it counts from the moment it is there, and not from its handshake on.
"""

import asyncio
from asyncio.sslproto import SSLProtocol
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from tinybird_proxy_operator.serving.tls import ServerTLS

# For a client to say goodbye too.
_SHUTDOWN_TIMEOUT_S: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``head_s``: from the handshake until a whole request has come; ``whole_s``: until its answer has been taken."""

    connections: int = 200
    handshake_s: int = 5
    head_s: float = 10.0
    whole_s: float = 30.0


class _Connection(web.RequestHandler):
    """What comes over one client's TLS. It ends at the time limit, whatever it is doing."""

    __slots__ = ("_ending", "_limits")

    def __init__(self, manager: web.Server, limits: Limits) -> None:
        super().__init__(manager, loop=asyncio.get_running_loop(), access_log=None)  # type: ignore[arg-type]
        self._limits = limits
        self._ending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
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
    """Makes them. ``BoundedSite`` is where they come from."""

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], limits: Limits) -> None:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            connection: Any = request.protocol
            connection.request_has_come()
            return await handler(request)

        super().__init__(handle)
        self.limits = limits

    def __call__(self) -> web.RequestHandler:
        """The protocol of a new connection."""
        return _Connection(self, self.limits)


class _Arrival(SSLProtocol):
    """One client's TLS, which has a place from the first moment to the last. Without a free one it is ended at once.

    asyncio makes the same protocol for a server with an SSLContext, and tells nobody before the handshake is over.
    """

    def __init__(self, taken: set["_Arrival"], limits: Limits, inner: asyncio.Protocol, tls: ServerTLS) -> None:
        super().__init__(
            asyncio.get_running_loop(),
            inner,
            tls.context,
            None,  # type: ignore[arg-type] # nobody waits for the handshake
            server_side=True,
            ssl_handshake_timeout=limits.handshake_s,
            ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT_S,
        )
        self._taken = taken
        self._places = limits.connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if len(self._taken) < self._places:
            self._taken.add(self)
            super().connection_made(transport)
        elif isinstance(transport, asyncio.Transport):
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._taken.discard(self)
        super().connection_lost(exc)


class BoundedSite(web.BaseSite):
    """Like ``web.TCPSite`` with TLS, for a runner of a ``BoundedServer``."""

    __slots__ = ("_host", "_port", "_taken", "_tls")

    def __init__(self, runner: web.BaseRunner, host: str | None, port: int, *, tls: ServerTLS) -> None:
        super().__init__(runner)
        self._host = host
        self._port = port
        self._tls = tls
        self._taken: set[_Arrival] = set()

    @property
    def name(self) -> str:
        """For people."""
        return f"https://{self._host or 'every address'}:{self._port}"

    async def start(self) -> None:
        """Listen."""
        await super().start()
        server = self._runner.server
        assert isinstance(server, BoundedServer)  # noqa: S101 - the runner was set up

        def arrival() -> _Arrival:
            return _Arrival(self._taken, server.limits, server(), self._tls)

        self._server = await asyncio.get_running_loop().create_server(
            arrival, self._host, self._port, backlog=self._backlog
        )
