"""Receive a body: bounded in bytes, inflated and checked in pieces with loop turns between."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiohttp import HttpVersion11, web

from tinybird_proxy import codec, rows
from tinybird_proxy.errors import BodyRefused
from tinybird_proxy.rows import Rows
from tinybird_proxy.server.heads import NOT_HTTP
from tinybird_proxy.server.http import BodyNotHttp

# Bodies up to this size need no reservation, so that a few slow uploads cannot refuse the small clients.
UNRESERVED_BYTES: Final = 64 * 1024
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_ARRAY: Final = re.compile(rb"[ \t\r\n]*+\[")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveLimits:
    """Bytes as sent, bytes after decompression, bytes of all larger bodies at once, and line breaks.

    ``body_timeout_s``: a body that has not ended after so long is given up, because what it has reserved keeps others
    out.
    """

    max_body_bytes: int
    max_inflated_bytes: int
    receive_bytes: int
    max_lines: int
    body_timeout_s: float


class Receiver:
    """Knows how much is being received at the moment."""

    def __init__(self, limits: ReceiveLimits) -> None:
        self.small_max_bytes = min(rows.PIECE_LINES, limits.max_body_bytes)
        self._limits = limits
        self._reserved = 0
        self._inflating = asyncio.Lock()

    @property
    def reserved_bytes(self) -> int:
        """Bytes of larger bodies being received now."""
        return self._reserved

    @asynccontextmanager
    async def rows(self, request: web.BaseRequest, encoding: str | None, *, document: bool) -> AsyncIterator[Rows]:
        """Read, inflate and check the body of ``request``; raise ``BodyRefused`` for the client.

        Its bytes stay reserved until the block ends.
        """
        reservation = _Reservation(self)
        try:
            body = await self._read(request, reservation)
            if encoding is not None and body:
                checked = await self._inflate_and_check(body, encoding, reservation, document=document)
            else:
                checked = await self._check(body, document=document)
            yield checked
        finally:
            reservation.release()

    async def _read(self, request: web.BaseRequest, reservation: "_Reservation") -> bytes:
        length = request.content_length
        if length is not None:
            if length > self._limits.max_body_bytes:
                raise self._too_large()
            reservation.grow_to(length)
        await answer_expect(request)
        content = request.content
        if content.is_eof():
            body = content.read_nowait()
            if len(body) > self._limits.max_body_bytes:
                raise self._too_large()
            return body
        found = bytearray()
        timeout_s = self._limits.body_timeout_s
        too_slow = f"the body did not end within {timeout_s:g} s (BODY_TIMEOUT); send it again, in parts if it is large"
        give_up_at = asyncio.get_running_loop().time() + timeout_s
        while piece := await next_piece(request, give_up_at=give_up_at, too_slow=too_slow):
            if len(found) + len(piece) > self._limits.max_body_bytes:
                raise self._too_large()
            reservation.grow_to(len(found) + len(piece))
            found += piece
        return bytes(found)

    async def _inflate_and_check(
        self, body: bytes, encoding: str, reservation: "_Reservation", *, document: bool
    ) -> Rows:
        pieces = codec.inflate(body, encoding, self._limits.max_inflated_bytes)
        first = next(pieces, b"")
        if next(pieces, None) is None:
            return await self._check(first, document=document)
        del pieces, first  # many may wait here, and until it is its turn each takes no more than was sent
        reservation.grow_to(min(UNRESERVED_BYTES + 1, self._limits.receive_bytes))
        async with self._inflating:  # one large body at a time, until it is known to be good
            found = bytearray()
            lines = 0
            for piece in codec.inflate(body, encoding, self._limits.max_inflated_bytes):
                lines += piece.count(b"\n")
                if lines > self._limits.max_lines:
                    raise self._too_many("lines")
                found += piece
                await asyncio.sleep(0)
            inflated = bytes(found)
            del found
            return await self._check(inflated, document=document)

    async def _check(self, body: bytes, *, document: bool) -> Rows:
        if rows.is_small(body):
            return rows.check(body, document=document)
        if body.count(b"\n") > self._limits.max_lines:
            raise self._too_many("lines")
        # A document is taken apart in one go, which takes time and memory for each of its objects.
        if (document or _ARRAY.match(body)) and body.count(b"{") > self._limits.max_lines:
            raise self._too_many("objects")
        steps = rows.check_in_pieces(body, document=document)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                checked: Rows = done.value
                return checked
            await asyncio.sleep(0)

    def _too_large(self) -> BodyRefused:
        return BodyRefused(
            413, f"the body is larger than {self._limits.max_body_bytes} bytes (MAX_BODY_BYTES); send it in parts"
        )

    def _too_many(self, what: str) -> BodyRefused:
        return BodyRefused(413, f"the body has more than {self._limits.max_lines} {what}; send it in parts")

    def _reserve(self, size_bytes: int) -> None:
        if self._reserved + size_bytes > self._limits.receive_bytes:
            raise BodyRefused(
                503, "too many large uploads at once; send the same request again later", reason="receive_full"
            )
        self._reserved += size_bytes

    def _release(self, size_bytes: int) -> None:
        self._reserved -= size_bytes


async def answer_expect(request: web.BaseRequest) -> None:
    """Tell a client to go on that asked before it sends its body, as curl does with a larger one."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(_CONTINUE)
        request.writer.output_size = 0


async def next_piece(request: web.BaseRequest, *, give_up_at: float, too_slow: str) -> bytes:
    """What has come of the body; empty at its end. ``give_up_at`` is a loop time.

    Raises ``BodyRefused``: 400 if it is not HTTP, 408 with the words ``too_slow`` if nothing more comes until then.
    """
    try:
        async with asyncio.timeout_at(give_up_at) as patience:
            return await request.content.readany()
    except BodyNotHttp:
        raise BodyRefused(400, NOT_HTTP) from None
    except RuntimeError:  # aiohttp's word for a client that left before anybody waited for its body
        if request.protocol.connected:
            raise
        raise ConnectionResetError("the client left") from None
    except TimeoutError:
        if not patience.expired():
            raise  # the connection's own
        raise BodyRefused(408, too_slow) from None


def small_body_at_hand(request: web.BaseRequest, max_bytes: int) -> bytes | None:
    """The body if it is here already and so short that it cannot be more than one piece; else None.

    ``max_bytes`` is the receiver's ``small_max_bytes``.
    """
    content = request.content
    if not content.is_eof() or content.total_bytes > max_bytes:
        return None
    return content.read_nowait()


class _Reservation:
    """One body's share of ``receive_bytes``: all of it as soon as it is not small."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._size_bytes = 0

    def grow_to(self, size_bytes: int) -> None:
        if size_bytes > UNRESERVED_BYTES and size_bytes > self._size_bytes:
            self._receiver._reserve(size_bytes - self._size_bytes)
            self._size_bytes = size_bytes

    def release(self) -> None:
        self._receiver._release(self._size_bytes)
        self._size_bytes = 0
