"""aiohttp's low-level server with our manners: errors are JSON, and nothing of a request is ever logged."""

import asyncio
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time
from typing import Any

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict

from tinybird_proxy import __version__
from tinybird_proxy.server import answers
from tinybird_proxy.server.answers import Answer
from tinybird_proxy.telemetry.logs import get_logger

NOT_HTTP = "the request is not valid HTTP"
SERVER_HEADER = ("Server", f"tinybird-proxy/{__version__}")
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Lane = Callable[[RawRequestMessage, StreamReader], bytes | None]
_log = get_logger("server")


class WholeResponse(web.StreamResponse):
    """An answer that leaves as one piece of bytes, head and body together.

    aiohttp's ``Response`` makes a header dictionary, fills in defaults and serialises it for each answer: a sixth of a
    small request's time. All of our answers are known whole, so they are written as they are. Only for HTTP/1.1.
    """

    def __init__(self, wire: bytes, *, keep_alive: bool) -> None:
        # Not super().__init__(): there is no header dictionary, and nobody may change this answer any more.
        self._wire = wire
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write all of it."""
        writer, protocol = request.writer, request.protocol
        transport = protocol.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client left before its answer")
        transport.write(self._wire)
        writer.output_size += len(self._wire)
        if protocol.writing_paused:  # a client that does not read its answers is asked nothing more for now
            await writer.drain()
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Everything has been written."""


def respond(answer: Answer, request: web.BaseRequest) -> web.StreamResponse:
    """An ``Answer`` as it goes over the wire."""
    keep_alive = request.keep_alive and not answer.close
    if request.version == HttpVersion11 and request.method != "HEAD":
        return WholeResponse(wire(answer, keep_alive, int(time())), keep_alive=keep_alive)
    response = web.Response(
        status=answer.status, body=answer.body, headers=CIMultiDict((*answer.headers, SERVER_HEADER))
    )
    if not keep_alive:
        response.force_close()
    return response


@lru_cache(maxsize=256)
def wire(answer: Answer, keep_alive: bool, utc_s: int) -> bytes:
    """The whole answer as bytes; the usual ones are the same object again and again within a second."""
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in (*answer.headers, SERVER_HEADER)]
    if answer.status != 204:
        lines.append(f"Content-Length: {len(answer.body)}")
    lines.append(f"Date: {formatdate(utc_s, usegmt=True)}")
    if not keep_alive:
        lines.append("Connection: close")
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header of ours holds a line break")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace") + answer.body


class Connection(RequestHandler):
    """One client connection. ``lane`` is asked first about a request that comes while nothing else is under way."""

    __slots__ = ("lane",)

    lane: Lane | None

    def data_received(self, data: bytes) -> None:
        """Parse, and let the lane answer what it can; everything else wakes the task that serves this connection."""
        waiter, lane = self._waiter, self.lane
        if lane is None or waiter is None or waiter.done() or self._messages:
            super().data_received(data)
            return
        self._waiter = None  # hidden, so that the task sleeps on until the lane has looked
        try:
            super().data_received(data)
        finally:
            self._waiter = waiter
        if self._messages and not (self._may_answer() and self._answer_at_once(lane)) and not waiter.done():
            waiter.set_result(None)

    def _may_answer(self) -> bool:
        """Whether one request came, and its answer would leave at once."""
        return (
            len(self._messages) == 1
            and not self._upgraded
            and not self._buffer_paused
            and not self.writing_paused
            and self.transport is not None
            and not self.transport.is_closing()
        )

    def _answer_at_once(self, lane: Lane) -> bool:
        """Do what aiohttp's task does around a handler; False leaves the request to it, untouched."""
        message, payload = self._messages[0]
        if not isinstance(message, RawRequestMessage) or (answered := lane(message, payload)) is None:
            return False
        self._messages.popleft()
        manager, parser, transport = self._manager, self._parser, self.transport
        if manager is not None and parser is not None and transport is not None:
            manager.requests_count += 1
            parser.message_consumed()
            transport.write(answered)
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        return True

    @property
    def broken(self) -> bool:
        """Whether what came of an unfinished body is not HTTP.

        Nothing can be parsed behind such a body, so what waits there is the parser's complaint, which nobody would look
        at before the request is done: and it would wait for its body for ever.
        """
        return bool(self._messages)

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
        else:
            text = NOT_HTTP
        return respond(answers.error(status, text, close=True), request)

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """aiohttp would log the exception's text, in which headers may stand."""
        _log.warning("a connection broke", exc_info=kwargs.get("exc_info") or True)


class HttpServer(web.Server):
    """Makes a connection for each client. ``lane``: what may answer before a task is made; None: nothing."""

    def __init__(self, handler: Handler, *, lane: Lane | None, **kwargs: Any) -> None:
        super().__init__(handler, **kwargs)
        self._lane = lane

    def __call__(self) -> RequestHandler:
        connection = Connection(self, loop=asyncio.get_running_loop(), **self._kwargs)
        connection.lane = self._lane
        return connection
