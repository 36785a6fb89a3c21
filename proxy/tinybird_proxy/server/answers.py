"""What clients are told: status, headers and body of every answer of ours. Pure.

The rules that all known clients can live with: every 2xx is JSON with both counts, 200 only for ``wait=true``; every
error is JSON with a Content-Type; every 429 has integer ``Retry-After`` and all three rate headers, every 503
``Retry-After``. Rate headers stand all together or not at all: on every 429, and on 202 once there was a 429.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import msgspec

from tinybird_proxy.admission import Refusal

JSON: Final = ("Content-Type", "application/json")
CORS: Final = (
    ("Access-Control-Allow-Origin", "*"),
    (
        "Access-Control-Expose-Headers",
        "X-Ack, Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset",
    ),
)
# Some clients read all three rate headers wherever one stands; this is Tinybird's documented limit a second.
_RATE_LIMIT: Final = "100"
# tinybird-python-sdk remembers a 429's ``Remaining: 0`` and sleeps 2 s before every call until a reply takes it back.
ROOM_AGAIN: Final = (
    ("X-RateLimit-Limit", _RATE_LIMIT),
    ("X-RateLimit-Remaining", _RATE_LIMIT),
    ("X-RateLimit-Reset", "1"),
)
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One complete answer. ``close``: the connection ends with it. Compared by identity, so that it is a cheap key."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    close: bool = False


@lru_cache(maxsize=1024)
def taken(row_count: int, ack: str, *, rate_headers: bool = False) -> Answer:
    """202: the rows are in the buffer. ``rate_headers``: say that there is room again, see ``ROOM_AGAIN``."""
    headers = (JSON, *CORS, ("X-Ack", ack), *(ROOM_AGAIN if rate_headers else ()))
    return Answer(202, headers, b'{"successful_rows":%d,"quarantined_rows":0}' % row_count)


def delivered(successful: int, quarantined: int, *, batch: tuple[int, int] | None) -> Answer:
    """200: Tinybird has confirmed. ``batch`` (its rows, its quarantined rows) where the counts are not exact."""
    body: dict[str, object] = {"successful_rows": successful, "quarantined_rows": quarantined}
    if batch is not None:
        body |= {"exact": False, "batch": {"rows": batch[0], "quarantined_rows": batch[1]}}
    return Answer(200, (JSON, *CORS, ("X-Ack", "delivered")), _encode(body))


def error(status: int, message: str, *headers: tuple[str, str], close: bool = False) -> Answer:
    """An error that a client can read."""
    return Answer(status, (JSON, *CORS, *headers), _encode({"error": message}), close)


def refused(refusal: Refusal, *, close: bool = False) -> Answer:
    """What admission said, with the headers that its status needs."""
    if refusal.retry_after_s is None:
        return error(refusal.status, refusal.message, close=close)
    after = str(refusal.retry_after_s)
    headers = [("Retry-After", after)]
    if refusal.status == 429:
        headers += [("X-RateLimit-Limit", _RATE_LIMIT), ("X-RateLimit-Remaining", "0"), ("X-RateLimit-Reset", after)]
    return error(refusal.status, refusal.message, *headers, close=close)


def preflight(requested_headers: str | None) -> Answer:
    """204 for a browser's OPTIONS: it may post from anywhere, with whatever headers it named."""
    allowed = requested_headers or "Authorization, Content-Type, Content-Encoding"
    return Answer(
        204,
        (
            ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Methods", "POST, OPTIONS"),
            ("Access-Control-Allow-Headers", allowed),
            ("Access-Control-Max-Age", "86400"),
            ("Allow", "POST, OPTIONS"),
        ),
        b"",
    )
