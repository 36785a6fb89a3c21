"""Undo a request's Content-Encoding, never producing more than a given number of bytes."""

import sys
import zlib

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdDecompressor, ZstdError

_GZIP_WBITS = 31
_ZLIB_WBITS = 15
_RAW_WBITS = -15


class UnknownEncoding(ValueError):
    """The Content-Encoding is none of gzip, deflate, zstd and identity."""


class CorruptBody(ValueError):
    """The body is not what its Content-Encoding says."""


class InflatedTooLarge(ValueError):
    """The body inflates to more bytes than allowed."""


class _Zlib:
    """A zlib stream behind the interface that the zstd one has."""

    def __init__(self, wbits: int) -> None:
        self._stream = zlib.decompressobj(wbits)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._stream.decompress(data, max_length)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data


def inflate(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """The body without its ``encoding``; streams that follow one another are joined.

    Blocks for as long as it takes: call it in a thread.
    """
    match encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip":
            wbits = _GZIP_WBITS
        case "deflate":
            # RFC 9110 says zlib; some clients send raw deflate. A zlib header is divisible by 31.
            has_header = len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0
            wbits = _ZLIB_WBITS if has_header else _RAW_WBITS
        case "zstd":
            wbits = 0
        case other:
            raise UnknownEncoding(f"Content-Encoding {other[:40]!r}: must be gzip, deflate, zstd or identity")
    pieces: list[bytes] = []
    size_bytes = 0
    while body or not pieces:
        stream = _Zlib(wbits) if wbits else ZstdDecompressor()
        try:
            piece = stream.decompress(body, max_bytes - size_bytes + 1)
        except (zlib.error, ZstdError) as exc:
            raise CorruptBody(f"the body is not valid {encoding}") from exc
        pieces.append(piece)
        size_bytes += len(piece)
        if size_bytes > max_bytes:
            raise InflatedTooLarge(f"the body inflates to more than {max_bytes} bytes")
        if not stream.eof:
            raise CorruptBody(f"the {encoding} body ends too early")
        body = stream.unused_data
    return b"".join(pieces)
