"""Takes TCP connections and begins TLS on them, each within the limit on connections from its first moment on.

A loop's own TLS server tells nobody of a connection before its handshake is done: as many as like could stand there.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, cast

from tinybird_proxy.server.doorkeeper import MAX_TOLD, Doorkeeper, Handshake
from tinybird_proxy.telemetry.logs import Sparingly, fields, get_logger

# Taken in one turn of the loop; the rest waits for the next ones. A handshake takes some turns: where there are few
# places, larger pieces of a flood would push it out before it can be done.
ACCEPTS_PER_TURN: Final = 4
# Where the system gives no more files or memory, what comes waits in the listen queue for so long.
ACCEPT_PAUSE_S: Final = 1.0
# Handshakes that are ended at a stop are done within some turns of the loop; no stop waits for longer.
END_S: Final = 1.0
_WARN_INTERVAL_S: Final = 60.0
# Linux hands on what went wrong on the way to a new connection; the next one may be well (accept(2)).
_GONE_ALREADY: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
    }
)
_log = get_logger("server")


class TlsDoor:
    """What a TLS port's ``keeper`` decides is done here, and whoever finishes the handshake is handed to it.

    ``handshake_timeout_s``: from the connection to the handshake's end. ``now`` is the keeper's, in seconds.
    """

    def __init__(
        self, keeper: Doorkeeper, tls: ssl.SSLContext, *, handshake_timeout_s: float, now: Callable[[], float]
    ) -> None:
        self._keeper = keeper
        self._tls = tls
        self._handshake_timeout_s = handshake_timeout_s
        self._now = now
        self._turned_away: dict[Handshake, None] = {}  # it must be done for them to hear so; they have no place
        self._tasks: set[asyncio.Task[None]] = set()
        self._warnings = Sparingly(_WARN_INTERVAL_S)

    @asynccontextmanager
    async def open(self, listening: socket.socket) -> AsyncIterator[None]:
        """Take what comes until the block ends. ``listening`` is closed then, and handshakes under way are ended."""
        listening.setblocking(False)
        async with asyncio.TaskGroup() as group:
            gate = _Gate(listening, lambda sock: self._begin(sock, group), self._tell)
            try:
                gate.open()
                yield
            finally:
                gate.close()
                for handshake in (*self._keeper.handshakes, *self._turned_away):
                    handshake.end()
                if self._tasks:
                    _, late = await asyncio.wait(self._tasks, timeout=END_S)
                    for task in late:
                        task.cancel()

    def _begin(self, sock: socket.socket, group: asyncio.TaskGroup) -> None:
        if self._keeper.has_room():
            handshake = _Handshake(sock, self._keeper.handshakes, self._keeper.let_in, self._now())
        else:
            if len(self._turned_away) >= MAX_TOLD:
                next(iter(self._turned_away)).end()
            turned_away = self._keeper.turn_away()
            handshake = _Handshake(sock, self._turned_away, lambda: turned_away, self._now())
        task = group.create_task(self._shake_hands(handshake, sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _shake_hands(self, handshake: "_Handshake", sock: socket.socket) -> None:
        if handshake.ended:  # in the turn in which it began; what TLS needs is not even made
            sock.close()
            return
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: handshake, sock, ssl=self._tls, ssl_handshake_timeout=self._handshake_timeout_s
            )
        except OSError:
            pass  # not TLS, not with us, too slow, gone
        except Exception:  # noqa: BLE001 - one connection must not end the port
            _log.error("a TLS handshake broke inside the proxy; its connection is ended", exc_info=True)
        finally:
            handshake.leave()

    def _tell(self, error: OSError) -> None:
        if self._warnings.count(self._now()):
            _log.error(
                "new connections cannot be taken and wait: the system refuses; "
                "raise the limit on open files (ulimit -n, LimitNOFILE) or lower MAX_CONNECTIONS",
                extra=fields(problem=error.strerror, pause_s=ACCEPT_PAUSE_S),
            )


class _Handshake(asyncio.Protocol):
    """A connection until its handshake is done, and in ``places`` as long; then it gets its protocol from ``make``."""

    def __init__(
        self,
        sock: socket.socket,
        places: dict[Handshake, None],
        make: Callable[[], asyncio.BaseProtocol],
        began_at_s: float,
    ) -> None:
        self.began_at_s = began_at_s
        self.ended = False
        self._sock = sock
        self._places = places
        self._make = make
        places[self] = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done, and nothing was read behind it: let the connection's own protocol take over."""
        transport = cast("asyncio.Transport", transport)
        if self.ended:  # its last bytes had come before
            transport.abort()
            return
        self.leave()
        protocol = self._make()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)

    def leave(self) -> None:
        """Give the place back, if that has not happened."""
        self._places.pop(self, None)

    def end(self) -> None:
        """Give the place back and end the connection: what reads from it, its task too, ends in the loop's next turns.

        To cancel the task would not do: uvloop does not close a transport that it has only just made.
        """
        self.ended = True
        self.leave()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


class _Gate:
    """Accepts from ``listening`` until it would block, and gives each to ``begin``.

    When the system refuses, that is ``told``, and waited out.
    """

    def __init__(
        self, listening: socket.socket, begin: Callable[[socket.socket], None], told: Callable[[OSError], None]
    ) -> None:
        self._listening = listening
        self._begin = begin
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Accept from now on."""
        self._pause = None
        self._loop.add_reader(self._listening, self._accept)

    def close(self) -> None:
        """Accept no more; who waits in the listen queue is reset."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _address = self._listening.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE_ALREADY:
                    continue
                self._told(error)
                self._loop.remove_reader(self._listening)
                self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self.open)
                return
            self._begin(sock)
