"""Compress what leaves and inflate what comes, in bounded pieces."""

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, cast

from isal import igzip_lib, isal_zlib

from tinybird_proxy.batch import Payload
from tinybird_proxy.errors import BodyRefused

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore] # Python 3.14
except ImportError:
    from backports import zstd

INFLATED_PIECE_BYTES: Final = 256 * 1024
_INPUT_PIECE_BYTES: Final = 64 * 1024
ENCODINGS: Final = ("gzip", "deflate", "zstd")
_BROKEN_DATA: Final = cast("tuple[type[Exception], ...]", (igzip_lib.error, zstd.ZstdError, zlib.error, EOFError))
# Each member costs a fresh decoder: a body of nothing but empty members must not keep us busy.
_MAX_MEMBERS: Final = 1000
_SHOWN_CHARS: Final = 40
_HEAD_BYTES: Final = 4  # of a member: enough to tell what it is
_ONLY_ZEROS: Final = re.compile(rb"\0*+\Z")
_ALIASES: Final = {"": None, "identity": None, "gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate", "zstd": "zstd"}


def compress(bodies: list[bytes], compression: Literal["gzip", "zstd", "none"]) -> Payload:
    """Join ``bodies`` with line feeds and compress them. For a thread: it takes milliseconds and holds no lock."""
    joined = b"\n".join(bodies)
    if compression == "gzip":
        # Level 1 at 1 GB/s; wbits 31 writes a gzip header with mtime 0, so equal rows give equal bytes.
        return Payload(isal_zlib.compress(joined, 1, 31), "gzip")
    if compression == "zstd":
        return Payload(zstd.compress(joined, 3), "zstd")
    return Payload(joined, None)


def rows_of(payload: Payload, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The lines of rows ``first`` up to, not including, ``end`` for each range. For a thread, as ``compress``."""
    lines = _inflated(payload).split(b"\n")
    return [b"\n".join(lines[first:end]) for first, end in ranges]


def rows_in(payloads: Sequence[Payload]) -> list[bytes]:
    """All lines of each payload. For a thread, as ``compress``."""
    return [_inflated(payload) for payload in payloads]


def halves(payload: Payload) -> tuple[bytes, bytes]:
    """The rows (at least two) of ``payload`` in two parts, cut at the row nearest to the middle in bytes."""
    body = _inflated(payload)
    middle = len(body) // 2
    before, after = body.rfind(b"\n", 0, middle), body.find(b"\n", middle)
    cut = after if before < 0 or (0 <= after < 2 * middle - before) else before
    return body[:cut], body[cut + 1 :]


def _inflated(payload: Payload) -> bytes:
    """What ``compress`` was given."""
    if payload.encoding == "gzip":
        return bytes(isal_zlib.decompress(payload.body, 31))
    if payload.encoding == "zstd":
        return bytes(zstd.decompress(payload.body))
    return payload.body


def content_encoding(header: str) -> str | None:
    """The one encoding that ``Content-Encoding`` names, None for none; ``BodyRefused`` 415 for another."""
    try:
        return _ALIASES[header.strip().lower()]
    except KeyError:
        raise BodyRefused(
            415, f"Content-Encoding {_shown(header)} is not supported; use one of {', '.join(ENCODINGS)}, or none"
        ) from None


def _shown(header: str) -> str:
    """A header's value as a message can hold it: short, and nothing in it that a terminal would obey."""
    text = header.strip()
    return ascii(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")


def inflate(body: bytes, encoding: str, max_bytes: int) -> Iterator[bytes]:
    """Yield the decompressed ``body`` in pieces of at most ``INFLATED_PIECE_BYTES``.

    Raises ``BodyRefused``: 413 beyond ``max_bytes``, 400 where the data is broken or incomplete.
    """
    total, position, members = 0, 0, 1
    try:
        decoder = _decoder(body[:_HEAD_BYTES], encoding)
        while True:
            if decoder.eof:
                position -= len(decoder.unused_data)
                if _ONLY_ZEROS.match(body, position):
                    return  # gzip allows zeros after the end
                members += 1
                if members > _MAX_MEMBERS:
                    raise BodyRefused(400, f"the body has more than {_MAX_MEMBERS} {encoding} members")
                decoder = _decoder(body[position : position + _HEAD_BYTES], encoding)
            data = b""
            if decoder.needs_input:
                if position >= len(body):
                    raise BodyRefused(400, f"the body is not complete {encoding} data: it ends too early")
                data = body[position : position + _INPUT_PIECE_BYTES]
                position += len(data)
            piece = decoder.decompress(data, INFLATED_PIECE_BYTES)
            total += len(piece)
            if total > max_bytes:
                raise BodyRefused(413, f"the body is larger than {max_bytes} bytes after decompression")
            if piece:
                yield piece
    except _BROKEN_DATA as error:
        raise BodyRefused(400, f"the body is not valid {encoding} data, as Content-Encoding says") from error


def _decoder(head: bytes, encoding: str) -> Any:
    """A decompressor with ``decompress(data, max_length)``, ``needs_input``, ``eof`` and ``unused_data``."""
    if encoding == "zstd":
        return zstd.ZstdDecompressor()
    if encoding == "gzip":
        if len(head) == _HEAD_BYTES and head[3] & 0xE0:
            # RFC 1952: flags that nobody has defined must be refused, for what follows may mean something else. isal
            # reads on.
            raise EOFError
        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    # RFC 9110 means zlib by deflate, but some clients send the bare stream: only a zlib header passes this sum.
    is_zlib = len(head) >= 2 and head[0] & 0x0F == 8 and (head[0] << 8 | head[1]) % 31 == 0
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB if is_zlib else igzip_lib.DECOMP_DEFLATE)
