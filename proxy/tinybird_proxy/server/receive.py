"""Receive a body: bounded in bytes, inflated and checked in pieces with loop turns between."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from tinybird_proxy import codec, rows
from tinybird_proxy.errors import BodyRefused
from tinybird_proxy.rows import Rows

# Bodies up to this size need no reservation, so that a few slow uploads cannot refuse the small clients.
UNRESERVED_BYTES: Final = 64 * 1024


class NoRoomToReceive(BodyRefused):
    """RECEIVE_BYTES are all reserved by other uploads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveLimits:
    """Bytes as sent, bytes after decompression, bytes of all larger bodies at once, and line breaks."""

    max_body_bytes: int
    max_inflated_bytes: int
    receive_bytes: int
    max_lines: int


class Receiver:
    """Knows how much is being received at the moment."""

    def __init__(self, limits: ReceiveLimits) -> None:
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
                body = await self._inflate(body, encoding)
            yield await self._check(body, document=document)
        finally:
            reservation.release()

    async def _read(self, request: web.BaseRequest, reservation: "_Reservation") -> bytes:
        length = request.content_length
        if length is not None:
            if length > self._limits.max_body_bytes:
                raise self._too_large()
            reservation.grow_to(length)
        content = request.content
        if content.is_eof():
            body = content.read_nowait()
            if len(body) > self._limits.max_body_bytes:
                raise self._too_large()
            return body
        found = bytearray()
        while piece := await content.readany():
            if len(found) + len(piece) > self._limits.max_body_bytes:
                raise self._too_large()
            reservation.grow_to(len(found) + len(piece))
            found += piece
        return bytes(found)

    async def _inflate(self, body: bytes, encoding: str) -> bytes:
        pieces = codec.inflate(body, encoding, self._limits.max_inflated_bytes)
        first = next(pieces, b"")
        second = next(pieces, None)
        if second is None:
            return first
        async with self._inflating:  # one large body at a time
            found = bytearray(first)
            lines = first.count(b"\n")
            piece: bytes | None = second
            while piece is not None:
                lines += piece.count(b"\n")
                if lines > self._limits.max_lines:
                    raise self._too_many_lines()
                found += piece
                await asyncio.sleep(0)
                piece = next(pieces, None)
            return bytes(found)

    async def _check(self, body: bytes, *, document: bool) -> Rows:
        if rows.is_small(body):
            return rows.check(body, document=document)
        if body.count(b"\n") > self._limits.max_lines:
            raise self._too_many_lines()
        steps = rows.check_in_pieces(body, document=document)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                checked: Rows = done.value
                return checked
            await asyncio.sleep(0)

    def _too_large(self) -> BodyRefused:
        return BodyRefused(413, f"the body is larger than {self._limits.max_body_bytes} bytes; send it in parts")

    def _too_many_lines(self) -> BodyRefused:
        return BodyRefused(413, f"the body has more than {self._limits.max_lines} lines; send it in parts")

    def _reserve(self, size_bytes: int) -> None:
        if self._reserved + size_bytes > self._limits.receive_bytes:
            raise NoRoomToReceive(503, "too many large uploads at once; send the same request again later")
        self._reserved += size_bytes

    def _release(self, size_bytes: int) -> None:
        self._reserved -= size_bytes


def small_body_at_hand(request: web.BaseRequest) -> bytes | None:
    """The body if it is here already and so short that it cannot be more than one piece; else None."""
    content = request.content
    if not content.is_eof() or content.total_bytes > rows.PIECE_LINES:
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
