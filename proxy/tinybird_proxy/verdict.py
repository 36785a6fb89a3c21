"""Verdicts: from Tinybird's reply to what happens with the batch. One pure function.

Contract and reasons: Tinybird's Events API (https://www.tinybird.co/docs/api-reference/events-api). What is not
documented there is marked so.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tinybird_proxy.errors import ResponseTimeout, UpstreamError

MESSAGE_MAX_CHARS = 500
ORIGIN_MAX_CHARS = 100


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: ``headers`` with lower-case names, ``body`` cut at 64 KiB."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Settled:
    """Tinybird has the rows, as far as it said. The three counts add up to the batch's rows.

    ``mismatch``: the counts did not add up and the difference is in ``unverified``.
    """

    delivered: int
    quarantined: int
    unverified: int
    mismatch: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """The same batch again: after ``retry_after_s``, or a backoff if that is None.

    ``ambiguous``: Tinybird may have taken the rows. ``throttled``: it asked for a pause, and nothing was ingested.
    """

    reason: str
    ambiguous: bool
    throttled: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """Wait for a person, keep the batch and probe with it. ``probe`` False: each attempt might double rows."""

    reason: str
    ambiguous: bool = False
    probe: bool = True


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A refusal with Tinybird's ``message``, which may be empty, and our ``reason``, which holds it."""

    status: int
    message: str
    reason: str

    @property
    def said(self) -> str:
        """For whoever asked: Tinybird's own words, or ours if it had none."""
        return self.message or self.reason


@dataclass(frozen=True, slots=True)
class Rejected(_Refusal):
    """400 or 413: nothing was ingested, and these rows will never go in like this: ask for them in parts.

    ``too_large``: it is the size that is refused (413), so halves may go in; else (400) a row or the request is bad.
    """

    @property
    def too_large(self) -> bool:
        """Whether the size is what Tinybird refuses."""
        return self.status == 413


@dataclass(frozen=True, slots=True)
class Partial(_Refusal):
    """422: Tinybird took a part of the rows and did not say which, so they are never sent again by themselves."""


@dataclass(frozen=True, slots=True)
class Denied(_Refusal):
    """401, 403 or 404: held as well, but a destination that was never confirmed passes it on to its clients."""


Decision = Settled | Again | Held | Rejected | Partial | Denied

_WHY_REJECTED = {
    400: "Tinybird says the request is not valid",
    413: "Tinybird says the request is too large",
}
_PARTIAL = "Tinybird says it took only a part of the rows"
_AWAY = "TINYBIRD_URL answers with a redirect, which the proxy does not follow"
_LOOP = "the request came back to this proxy: TINYBIRD_URL leads to itself"
_WHY_DENIED = {
    401: "Tinybird does not accept the token",
    403: "Tinybird does not accept the token for this data source",
    404: "Tinybird does not know this data source, or the token belongs to another region",
}


def judge(reply: Reply, row_count: int, *, counts_seen: bool, now_utc: datetime) -> Decision:
    """Decide about a batch of ``row_count`` rows.

    ``counts_seen``: this URL has given readable counts before. ``now_utc`` is for dates in ``Retry-After``.
    """
    status = reply.status
    if status == 202:
        return Settled(0, 0, row_count)
    if 200 <= status < 300:
        return _judge_success(reply, row_count, counts_seen)
    if status in _WHY_DENIED:
        return Denied(status, message_of(reply), _sentence(_WHY_DENIED[status], reply))
    if status == 429 or (status == 503 and _in_tinybirds_voice(reply)):
        reason = _sentence(
            "Tinybird asks us to slow down" if status == 429 else "Tinybird is unavailable for now", reply
        )
        return Again(reason, ambiguous=False, throttled=True, retry_after_s=retry_after_s(reply.headers, now_utc))
    if status in _WHY_REJECTED:
        return Rejected(status, message_of(reply), _sentence(_WHY_REJECTED[status], reply))
    if status == 422:
        return Partial(status, message_of(reply), _sentence(_PARTIAL, reply))
    if status == 508:
        return Held(_sentence(_LOOP, reply))
    if status == 408 or 500 <= status < 600:
        return Again(_sentence("Tinybird answered with an error", reply), ambiguous=True)
    if 300 <= status < 400:
        elsewhere = _origin(reply.headers.get("location", ""))
        return Held(_sentence(f"{_AWAY}: to {elsewhere}" if elsewhere else _AWAY, reply))
    return Held(_sentence("Tinybird gave an answer that the proxy does not know", reply))


def judge_failure(error: UpstreamError) -> Again:
    """Decide about an attempt that got no reply."""
    named = " (UPSTREAM_TIMEOUT)" if isinstance(error, ResponseTimeout) else ""
    return Again(f"{error}{named}", ambiguous=error.ambiguous)


def retry_after_s(headers: Mapping[str, str], now_utc: datetime) -> float | None:
    """Seconds that ``Retry-After`` asks for, as seconds or as a date; None where it is absent or unreadable.

    Without it, ``X-RateLimit-Reset`` (seconds until the window ends) says as much.
    """
    text = headers.get("retry-after", "").strip()
    if not text:
        reset = headers.get("x-ratelimit-reset", "").strip()
        return float(reset) if reset.isascii() and reset.isdigit() and len(reset) < 7 else None
    if text.isascii() and text.isdigit():
        return float(text) if len(text) < 10 else math.inf
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    return max(0.0, ((when if when.tzinfo else when.replace(tzinfo=UTC)) - now_utc).total_seconds())


def message_of(reply: Reply) -> str:
    """What Tinybird said, from JSON or plain text, in one bounded line."""
    body = _json_object(reply.body)
    said = body.get("error") if body else None
    text = said if isinstance(said, str) else reply.body.decode("utf-8", "replace")
    text = " ".join(text.split())[:MESSAGE_MAX_CHARS]
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def is_json_object(reply: Reply) -> bool:
    """Whether the body is what Tinybird answers with, whatever it says."""
    return _json_object(reply.body) is not None


def _judge_success(reply: Reply, row_count: int, counts_seen: bool) -> Decision:
    counts = _counts(reply.body)
    if counts is None:
        if counts_seen:
            return Settled(0, 0, row_count)
        reason = _sentence("TINYBIRD_URL does not answer like Tinybird: no readable counts", reply)
        return Held(reason, ambiguous=True, probe=False)
    delivered, quarantined = counts
    if delivered + quarantined == row_count:
        return Settled(delivered, quarantined, 0)
    # More than we sent cannot be ours; what is missing from the sum is not known to be written.
    delivered = min(delivered, row_count)
    quarantined = min(quarantined, row_count - delivered)
    return Settled(delivered, quarantined, row_count - delivered - quarantined, mismatch=True)


def _counts(body: bytes) -> tuple[int, int] | None:
    found = _json_object(body)
    if found is None:
        return None
    successful, quarantined = found.get("successful_rows"), found.get("quarantined_rows")
    if type(successful) is int and type(quarantined) is int and successful >= 0 and quarantined >= 0:
        return successful, quarantined
    return None


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _in_tinybirds_voice(reply: Reply) -> bool:
    """Whether Tinybird itself speaks, not a load balancer in front of it."""
    if "retry-after" in reply.headers or any(name.startswith("x-ratelimit-") for name in reply.headers):
        return True
    body = _json_object(reply.body)
    return body is not None and "error" in body


def _origin(location: str) -> str:
    """Scheme and host of where a redirect leads; empty if it does not say. Its path may hold anything."""
    try:
        parts = urlsplit(location)
        origin = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return ""
    plain = origin.isascii() and origin.isprintable() and " " not in origin and len(origin) <= ORIGIN_MAX_CHARS
    return origin if parts.scheme in ("http", "https") and parts.hostname and plain else ""


def _sentence(what: str, reply: Reply) -> str:
    said = message_of(reply)
    return f"{what} ({reply.status}{': ' + said if said else ''})"
