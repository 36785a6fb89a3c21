"""aiohttp's low-level server with our manners: limits on clients, errors in JSON, nothing of a request in a log."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import HttpVersion10, StreamReader, web
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestPayloadError, _ErrInfo

from tinybird_proxy.server import answers, heads
from tinybird_proxy.server.responses import Ending, LastResponse, respond, whole
from tinybird_proxy.telemetry.logs import get_logger

# A close with bytes unread resets the connection, and a reset can take away the answer that the client has not read.
LINGER_S: Final = 1.0
# The rest of a body that was refused is read and thrown away for so long, so that the client sees the answer.
UNREAD_S: Final = 5.0
_HEAD_END: Final = b"\r\n\r\n"
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Lane = Callable[[RawRequestMessage, StreamReader], bytes | None]
_log = get_logger("server")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one client's connection may take.

    ``header_timeout_s``: from the first byte of a head to its end. ``send_timeout_s``: for a client to make room for an
    answer. ``max_age_s``: after which a connection ends with its next answer, up to a tenth more or less.
    """

    max_header_bytes: int
    header_timeout_s: float
    send_timeout_s: float
    keepalive_timeout_s: float
    max_age_s: float


class BodyNotHttp(Exception):
    """What came of an unfinished body is not HTTP. Nothing can be parsed behind it."""


class Connection(Ending):
    """One client connection. ``lane`` is asked first about a request that comes while nothing else is under way.

    ``ends_at_s``: loop time after which the connection ends with the next answer. ``draining``: whether each one does.
    ``on_gone`` is called when the connection is lost, if somebody has set it.
    """

    __slots__ = (
        "_body",
        "_chunked",
        "_deaf",
        "_gone",
        "_head_bytes",
        "_head_timer",
        "_is_final",
        "_last_bytes",
        "draining",
        "ends_at_s",
        "lane",
        "limits",
        "on_gone",
    )

    def __init__(
        self,
        server: "HttpServer",
        *,
        lane: Lane | None,
        limits: ConnectionLimits,
        ends_at_s: float,
        draining: Callable[[], bool],
        **kwargs: Any,
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.keepalive_timeout_s,
            max_line_size=limits.max_header_bytes,
            max_field_size=limits.max_header_bytes,
            max_headers=heads.MAX_HEADERS,
            auto_decompress=False,
            lingering_time=UNREAD_S,
            **kwargs,
        )
        self.lane = lane
        self.limits = limits
        self.ends_at_s = ends_at_s
        self.draining = draining
        self._body: StreamReader | None = None  # the one that has begun and not ended
        self._chunked = False
        self._last_bytes = b""
        self._head_bytes = 0  # of a head that has begun and not ended
        self._head_timer: asyncio.TimerHandle | None = None
        self._deaf = False  # nothing that comes is looked at any more
        self._is_final = False  # what has come is answered, and then the connection ends
        self._gone: asyncio.Future[None] | None = None
        self.on_gone: Callable[[], None] | None = None

    @property
    def ends(self) -> bool:
        """Whether the answer to the request under way is this connection's last."""
        return not self._messages and (self._is_final or self._loop.time() >= self.ends_at_s or self.draining())

    @property
    def send_timeout_s(self) -> float:
        """How long the client may take to make room for an answer."""
        return self.limits.send_timeout_s

    @property
    def head_under_way(self) -> bool:
        """Whether a head has begun and not ended."""
        return self._head_timer is not None

    def data_received(self, data: bytes) -> None:
        """Parse, and let the lane answer what it can; everything else wakes the task that serves this connection."""
        if self._deaf or self._close or self._force_close:
            return
        waiter, lane = self._waiter, self.lane
        count = self._request_count
        if lane is None or waiter is None or waiter.done() or self._messages:
            super().data_received(data)
            self._look(data, self._request_count - count)
            return
        self._waiter = None  # hidden, so that the task sleeps on until the lane has looked
        try:
            super().data_received(data)
        finally:
            self._waiter = waiter
        if self._may_answer(data) and self._answer_at_once(lane):
            return
        self._look(data, self._request_count - count)
        if self._messages and not waiter.done():
            waiter.set_result(None)

    def _may_answer(self, data: bytes) -> bool:
        """Whether one request came, all of it in ``data``, and its answer would leave at once."""
        return (
            len(self._messages) == 1
            and self._head_timer is None
            and len(data) <= self.limits.max_header_bytes
            and not self._upgraded
            and not self._buffer_paused
            and not self.writing_paused
            and self.transport is not None
            and not self.transport.is_closing()
        )

    def _answer_at_once(self, lane: Lane) -> bool:
        """Do what aiohttp's task does around a handler; False leaves the request to it, untouched."""
        message, payload = self._messages[0]
        now = self._loop.time()
        if now >= self.ends_at_s or self._is_final or self.draining() or not isinstance(message, RawRequestMessage):
            return False
        if (answered := lane(message, payload)) is None:
            return False
        self._messages.popleft()
        manager, parser, transport = self._manager, self._parser, self.transport
        if manager is not None and parser is not None and transport is not None:
            manager.requests_count += 1
            parser.message_consumed()
            transport.write(answered)
            self._next_keepalive_close_time = now + self._keepalive_timeout
        return True

    def _look(self, data: bytes, new: int) -> None:
        """Keep account of what ``data`` was: of a head, of a body, or of ``new`` messages at the end of the queue."""
        body, was_chunked = self._body, self._chunked
        if body is not None:
            if was_chunked and data:
                self._last_bytes = (self._last_bytes + data)[-4:]
            if not body.is_eof():
                if new:  # the parser's complaint, which nobody would look at before the request is done
                    self._deaf = True
                    body.set_exception(BodyNotHttp())
                return
            self._body = None
            if was_chunked and not new:
                self._forget_trailers()
        elif not new:
            self._look_at_head(data)
        if new:
            if was_chunked and body is not None:
                self._end_behind(len(self._messages) - new)
            else:
                self._look_at_messages(data, new)

    def _look_at_head(self, data: bytes) -> None:
        if self._upgraded or (self._head_timer is None and not data.strip(b"\r\n")):
            return
        self._head_bytes += len(data)
        if self._head_timer is None:
            self._head_timer = self._loop.call_later(self.limits.header_timeout_s, self._head_too_slow)
        if self._head_bytes > self.limits.max_header_bytes:
            self._refuse_head(431, heads.too_large(self.limits.max_header_bytes))

    def _look_at_messages(self, data: bytes, new: int) -> None:
        may_be_large = self._head_bytes + len(data) > self.limits.max_header_bytes
        self._head_ended()
        for position in range(len(self._messages) - new, len(self._messages)):
            message, payload = self._messages[position]
            if not isinstance(message, RawRequestMessage):
                self._deaf = True
                return
            if may_be_large and heads.size_bytes(message) > self.limits.max_header_bytes:
                self._drop_behind(position)
                self._refuse_head(431, heads.too_large(self.limits.max_header_bytes))
                return
            if not message.chunked and "Transfer-Encoding" in message.headers:
                # Empty, for one. aiohttp goes by the length then, and others may not.
                self._drop_behind(position)
                self._refuse_head(400, heads.NOT_HTTP)
                return
            # aiohttp parses what comes behind an upgrade out of our sight; HTTP/1.0 knows nothing of chunks.
            self._is_final |= message.upgrade or (message.chunked and message.version == HttpVersion10)
            if not payload.is_eof():
                self._body, self._chunked = payload, message.chunked
                self._last_bytes = data[-4:]
                return
            if message.chunked:
                if position + 1 < len(self._messages):
                    self._end_behind(position + 1)
                    return
                self._last_bytes = data[-4:]
                self._forget_trailers()

    def _forget_trailers(self) -> None:
        """Part with the parser behind a chunked body: it takes the last trailer for the next request's first header.

        That is only possible where a request has ended for sure and nothing has come of another one.
        """
        full = len(self._messages) >= self._max_msg_queue_size
        if self._last_bytes != _HEAD_END or full or self._is_final:
            self._end_behind(len(self._messages))
        elif self._parser is not None:
            self._parser = HttpRequestParser(
                self,
                self._loop,
                self._read_bufsize,
                max_line_size=self.max_line_size,
                max_field_size=self.max_field_size,
                max_headers=self.max_headers,
                payload_exception=RequestPayloadError,
                auto_decompress=False,
                max_msg_queue_size=self._max_msg_queue_size,
            )

    def _end_behind(self, position: int) -> None:
        """Answer the messages before ``position`` and nothing else."""
        self._drop_behind(position)
        self._deaf = self._is_final = True

    def _drop_behind(self, position: int) -> None:
        while len(self._messages) > position:
            self._messages.pop()

    def _head_ended(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._refuse_head(408, heads.too_slow(self.limits.header_timeout_s))

    def _refuse_head(self, status: int, text: str) -> None:
        """Put the refusal in line behind what is under way, as the parser's complaints are."""
        self._head_ended()
        self._deaf = True
        refused = heads.HeadRefused(text)
        self._messages.append((_ErrInfo(status=status, exc=refused, message=text), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _process_keepalive(self) -> None:
        """End an idle connection. A head that has begun has a limit of its own."""
        if self._head_timer is not None:
            self._next_keepalive_close_time = self._loop.time() + self.limits.header_timeout_s
        super()._process_keepalive()

    async def linger(self) -> None:
        """Read the rest of a body, send no more, and wait a little for the client to end; all that comes is dropped."""
        if self._body is not None and not await _ends(self._body):
            self.force_close()
        transport = self.transport
        if transport is None or transport.is_closing() or not transport.can_write_eof():
            return
        self._deaf = True
        self._gone = self._loop.create_future()
        transport.write_eof()
        await asyncio.wait((self._gone,), timeout=LINGER_S)

    def eof_received(self) -> None:
        """The client ends; nobody need linger."""
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is no more."""
        self._head_ended()
        self.eof_received()
        super().connection_lost(exc)
        if self.on_gone is not None:
            self.on_gone()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Resume if it was paused. aiohttp resumes after every body, which parses nothing once more each time."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP, or what broke inside, with JSON. The exception's text may hold what was sent."""
        left = request.transport is None or request.transport.is_closing()
        if left and (exc is None or isinstance(exc, OSError)):
            raise ConnectionError("the client left")
        if request.writer.output_size > 0:
            raise ConnectionError("an answer had begun; the connection ends")
        if status >= 500:
            _log.error("a request broke inside the proxy; the client was told 500", exc_info=exc)
            text = "an error inside the proxy; nothing of this request was taken"
            return respond(answers.error(status, text, close=True), request)
        status, text = heads.complaint(status, exc, self.limits.max_header_bytes)
        response = whole(answers.error(status, text), LastResponse)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """aiohttp would log the exception's text, in which headers may stand."""
        if isinstance(kwargs.get("exc_info"), BodyNotHttp):
            return  # the client has been told
        _log.warning("a connection broke", exc_info=kwargs.get("exc_info") or True)


async def _ends(body: StreamReader) -> bool:
    """Whether ``body`` ends in time; it is thrown away."""
    try:
        async with asyncio.timeout(UNREAD_S):
            while not body.is_eof():
                await body.readany()
    except TimeoutError:
        return False
    except Exception:  # noqa: BLE001 - what is wrong with it does not matter any more
        return True
    return True


class HttpServer(web.Server):
    """Makes a connection for each client. ``lane``: what may answer before a task is made; None: nothing.

    ``chance`` gives numbers from 0 to 1. ``draining``: whether clients should look for another proxy now. Each answer
    ends its connection then, so that those who keep theirs have moved when requests are refused.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        lane: Lane | None,
        limits: ConnectionLimits,
        chance: Callable[[], float],
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(handler)
        self._lane = lane
        self._limits = limits
        self._chance = chance
        self._draining = draining

    def __call__(self) -> Connection:
        """A new connection's protocol."""
        age_s = self._limits.max_age_s * (0.9 + 0.2 * self._chance())
        ends_at_s = asyncio.get_running_loop().time() + age_s
        return Connection(
            self, lane=self._lane, limits=self._limits, ends_at_s=ends_at_s, draining=self._draining, access_log=None
        )
