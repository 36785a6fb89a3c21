"""The head of a request that is not taken, for it is too large, too slow or no HTTP: what its client is told."""

from typing import Final

from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.http_parser import RawRequestMessage

NOT_HTTP: Final = "the request is not valid HTTP"
MAX_HEADERS: Final = 128
_TOO_MANY_HEADERS: Final = "Too many headers received"


class HeadRefused(Exception):
    """A head that is too large or too slow; the text is for the client."""


def size_bytes(message: RawRequestMessage) -> int:
    """Bytes of a head as it came, without spaces around values."""
    fields = sum(len(name) + len(value) + len(": \r\n") for name, value in message.raw_headers)
    return len(message.method) + len(message.path) + len("  HTTP/1.1\r\n\r\n") + fields


def too_large(max_header_bytes: int) -> str:
    """What is said with 431."""
    return (
        "the head of the request (its first line and its headers) is larger than "
        f"{max_header_bytes} bytes (MAX_HEADER_BYTES)"
    )


def too_slow(header_timeout_s: float) -> str:
    """What is said with 408."""
    return f"the head of the request did not end within {header_timeout_s:g} s (HEADER_TIMEOUT); send it again"


def complaint(status: int, exc: BaseException | None, max_header_bytes: int) -> tuple[int, str]:
    """Status and text for what ``exc`` says of a head. The parser's own words may hold what was sent: never those."""
    if isinstance(exc, HeadRefused):
        return status, str(exc)
    if isinstance(exc, LineTooLong):
        return 431, too_large(max_header_bytes)
    if isinstance(exc, BadHttpMessage) and exc.message == _TOO_MANY_HEADERS:
        return 431, f"the request has more than {MAX_HEADERS} headers"
    return status, NOT_HTTP
