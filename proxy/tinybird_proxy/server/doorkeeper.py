"""Decides at the door: how many connections a port has, and which one ends where there is no room for a new one."""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from time import time
from typing import Final, Protocol, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from tinybird_proxy.server import answers
from tinybird_proxy.server.http import Connection
from tinybird_proxy.server.responses import wire
from tinybird_proxy.telemetry.logs import Sparingly, fields, get_logger

# Those that are turned away have this long to read why, and no more than so many at once are told.
TOLD_S: Final = 1.0
MAX_TOLD: Final = 64
# A connection that ends, but whose client does not read what is left of its answer, is cut after so long.
END_S: Final = 10.0
# A TLS handshake takes a few round trips. One that has taken so long is ended rather than a connection that is idle.
SLOW_HANDSHAKE_S: Final = 2.0
# Looking at all connections costs less than a microsecond for each: at most a tenth of the loop's time goes into it.
_LOOK_S_PER_CONNECTION: Final = 5e-6
_WARN_INTERVAL_S: Final = 60.0
_log = get_logger("server")


class Handshake(Protocol):
    """A connection on which TLS is being begun; ``began_at_s`` is the loop's time."""

    began_at_s: float

    def end(self) -> None:
        """End it, and take it out of the handshakes under way."""


class Doorkeeper:
    """A protocol factory in front of ``server``'s own, which bounds the number of its connections.

    ``option`` is what the limit is called, for people; ``now`` is the loop's time in seconds. Those of ``handshakes``,
    which begin and end elsewhere, count as connections; they stand in the order in which they began.
    """

    def __init__(self, server: web.Server, *, max_connections: int, option: str, now: Callable[[], float]) -> None:
        self.ended_idle = 0
        self.ended_handshakes = 0
        self.turned_away = 0
        self.handshakes: dict[Handshake, None] = {}
        self._server = server
        self._max_connections = max_connections
        self._now = now
        self._option = option
        self._full = answers.error(
            503,
            f"the proxy has as many connections as it may ({option}); try again later",
            ("Retry-After", "1"),
            close=True,
        )
        self._idle: deque[tuple[float, RequestHandler]] = deque()
        self._look_again_at_s = float("-inf")
        self._warnings = Sparingly(_WARN_INTERVAL_S)
        self._told: set[_TurnedAway] = set()

    def __call__(self) -> asyncio.BaseProtocol:
        """The protocol for a new connection."""
        return self._server() if self.has_room() else self.turn_away()

    def let_in(self) -> asyncio.BaseProtocol:
        """The protocol for a connection that has its place already: it held it during its handshake."""
        return self._server()

    def turn_away(self) -> asyncio.BaseProtocol:
        """The protocol for a new connection for which there is no room."""
        self.turned_away += 1
        self._warn()
        return _TurnedAway(self._told, wire(self._full, False, int(time())))

    def has_room(self) -> bool:
        """Whether there is room for one more now, if need be because another one was ended.

        A handshake that is slow ends first, and so does the oldest one where they are more than half of all: clients
        that never finish theirs keep nobody out, and push no more than half of the others out.
        """
        handshakes = len(self.handshakes)
        if len(self._server._connections) + handshakes < self._max_connections:
            return True
        oldest = next(iter(self.handshakes), None)
        if oldest is not None and (
            handshakes * 2 > self._max_connections or oldest.began_at_s + SLOW_HANDSHAKE_S <= self._now()
        ):
            return self._end_handshake(oldest)
        found = self._longest_idle()
        if found is None:
            return oldest is not None and self._end_handshake(oldest)
        self.ended_idle += 1
        self._warn()
        transport = self._server._connections.get(found)
        found.force_close()
        if transport is not None:
            transport.abort()  # whatever its client has not read by now
        return True

    def _end_handshake(self, handshake: Handshake) -> bool:
        self.ended_handshakes += 1
        self._warn()
        handshake.end()
        return True

    def _longest_idle(self) -> RequestHandler | None:
        """The connection on which nothing has happened for longest, and nothing is under way; None if there is none."""
        while True:
            while self._idle:
                since, connection = self._idle.popleft()
                if self._idle_since(connection) == since:
                    return connection
            # Those that are idle now and were not when we looked have been so for less long: so the list is right until
            # it is used up.
            now = self._now()
            if now < self._look_again_at_s:
                return None
            connections = self._server.connections
            wanted = max(1, len(connections) // 16)
            found = ((self._idle_since(connection), number) for number, connection in enumerate(connections))
            idle = heapq.nsmallest(wanted, ((since, number) for since, number in found if since is not None))
            if len(idle) < wanted:  # there are no more
                self._look_again_at_s = now + len(connections) * _LOOK_S_PER_CONNECTION
            if not idle:
                return None
            self._idle.extend((since, connections[number]) for since, number in idle)

    def _idle_since(self, connection: RequestHandler) -> float | None:
        """Loop time since which nothing has been under way on ``connection``, or None."""
        transport = self._server._connections.get(connection)
        if transport is None:
            return None
        since = connection._next_keepalive_close_time - connection._keepalive_timeout
        if transport.is_closing():
            return since if since + END_S < self._now() else None
        waiter = connection._waiter
        if waiter is None or waiter.done() or connection._messages:
            return None
        if isinstance(connection, Connection) and connection.head_under_way:
            return None
        return since

    def _warn(self) -> None:
        if self._warnings.count(self._now()):
            _log.warning(
                "no room for more connections: idle ones and slow TLS handshakes are ended, "
                "and where there are none new ones are refused",
                extra=fields(
                    option=self._option,
                    max_connections=self._max_connections,
                    ended_idle=self.ended_idle,
                    ended_handshakes=self.ended_handshakes,
                    turned_away=self.turned_away,
                ),
            )


class _TurnedAway(asyncio.Protocol):
    """A connection for which there is no room: it is told so, whatever it asks."""

    def __init__(self, told: set["_TurnedAway"], answer: bytes) -> None:
        self._told = told
        self._answer = answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answer at once, and wait a little for the client to end: a reset could take the answer away."""
        transport = cast("asyncio.Transport", transport)
        if len(self._told) >= MAX_TOLD:
            transport.abort()
            return
        self._told.add(self)
        transport.write(self._answer)
        if transport.can_write_eof():
            transport.write_eof()
        asyncio.get_running_loop().call_later(TOLD_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._told.discard(self)
