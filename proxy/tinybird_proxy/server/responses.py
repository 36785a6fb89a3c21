"""How an ``Answer`` goes over the wire, and what its connection has to say about that."""

import asyncio
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict

from tinybird_proxy import __version__
from tinybird_proxy.server.answers import Answer

SERVER_HEADER: Final = ("Server", f"tinybird-proxy/{__version__}")


class Ending(RequestHandler):
    """A connection that may want to end."""

    __slots__ = ()

    @property
    def ends(self) -> bool:
        """Whether the answer to the request under way is this connection's last."""
        raise NotImplementedError

    @property
    def send_timeout_s(self) -> float:
        """How long the client may take to make room for an answer."""
        raise NotImplementedError

    async def linger(self) -> None:
        """Read what is left of a body, send no more, and wait a little for the client to end as well."""
        raise NotImplementedError


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
            await _make_room(writer, protocol)
        return writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Everything has been written."""


async def _make_room(writer: AbstractStreamWriter, protocol: RequestHandler) -> None:
    """Wait until the client has read enough; leave it if it does not."""
    transport = protocol.transport
    try:
        async with asyncio.timeout(protocol.send_timeout_s if isinstance(protocol, Ending) else None):
            await writer.drain()
    except TimeoutError:
        if transport is not None:
            transport.abort()
        raise ConnectionResetError("the client does not read its answers") from None


class LastWholeResponse(WholeResponse):
    """An answer that ends the connection although the client may still be sending: it ends gently."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write all of it."""
        self._protocol = request.protocol
        return await super().prepare(request)

    async def write_eof(self, data: bytes = b"") -> None:
        """Wait for the client to see it."""
        if isinstance(self._protocol, Ending):
            await self._protocol.linger()


class LastResponse(web.Response):
    """The same for what is no request, or an old one."""

    async def write_eof(self, data: bytes = b"") -> None:
        """End the answer, and wait for the client to see it."""
        request = self._req
        await super().write_eof(data)
        if request is not None and isinstance(request.protocol, Ending):
            await request.protocol.linger()


def is_last(request: web.BaseRequest) -> bool:
    """Whether the connection ends with the answer to ``request``, for a reason of the connection's own."""
    return isinstance(request.protocol, Ending) and request.protocol.ends


def respond(answer: Answer, request: web.BaseRequest) -> web.StreamResponse:
    """An ``Answer`` as it goes over the wire."""
    keep_alive = request.keep_alive and not answer.close and not is_last(request)
    if request.version == HttpVersion11 and request.method != "HEAD":
        kind = LastWholeResponse if answer.close else WholeResponse
        return kind(wire(answer, keep_alive, int(time())), keep_alive=keep_alive)
    response = whole(answer, LastResponse if answer.close else web.Response)
    if not keep_alive:
        response.force_close()
    return response


def whole(answer: Answer, kind: type[web.Response]) -> web.Response:
    """An ``Answer`` as aiohttp's own kind of response."""
    return kind(status=answer.status, body=answer.body, headers=CIMultiDict((*answer.headers, SERVER_HEADER)))


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
