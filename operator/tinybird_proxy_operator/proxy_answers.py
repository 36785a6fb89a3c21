"""What a proxy answers on its admin port, as far as the operator reads it. Pure: ``pods`` asks."""

from typing import Any

import msgspec

from tinybird_proxy.health import Cause
from tinybird_proxy_operator.observed import ProxyReport


class _Buffer(msgspec.Struct):
    rows: int
    bytes: int
    utilisation: float
    oldest_age_s: float | None


class _Token(msgspec.Struct):
    hash: str
    accepted_at: str | None
    denied_at: str | None
    rejected: bool = False


class _Clients(msgspec.Struct):
    hash: str | None = None


class _Tokens(msgspec.Struct):
    clients: _Clients | None = None
    tinybird: _Token | None = None
    candidate: _Token | None = None


class _Destination(msgspec.Struct):
    data_source: str
    buffered_rows: int
    sentence: str
    cause: str | None


class DrainState(msgspec.Struct, frozen=True):
    """What a proxy says of its drain, in its ``/status`` and when it is told to begin or to end it."""

    draining: bool = False
    refusing: bool = False
    rows_left: int = 0


class _DeadLetters(msgspec.Struct):
    rows: int


class _UpstreamRequests(msgspec.Struct):
    delivered_rows_1m: int | None = None
    replies_1m: int = 0
    throttled_1m: int = 0


class _Status(msgspec.Struct):
    buffer: _Buffer
    tokens: _Tokens
    destinations: list[_Destination]
    uptime_s: float | None = None
    drain: DrainState = DrainState()
    dead_letters: _DeadLetters = msgspec.field(default_factory=lambda: _DeadLetters(rows=0))
    upstream_requests: _UpstreamRequests = msgspec.field(default_factory=_UpstreamRequests)


def read_report(body: bytes | bytearray) -> ProxyReport:
    """``/status`` of a proxy. Raises ``msgspec.DecodeError`` if it is not that."""
    said = msgspec.json.decode(body, type=_Status)
    buffer, token, candidate = said.buffer, said.tokens.tinybird, said.tokens.candidate
    stuck = [found for found in said.destinations if found.cause is not None and found.buffered_rows]
    # A proxy that drains may promise rows of a first contact yet; only there are they counted too.
    left = said.drain.rows_left if said.drain.draining else 0
    return ProxyReport(
        rows=max(buffer.rows, left),
        size_bytes=buffer.bytes,
        utilisation=buffer.utilisation,
        oldest_age_s=buffer.oldest_age_s,
        stuck_rows=sum(found.buffered_rows for found in stuck),
        stuck=[f"{found.data_source}: {found.sentence}" for found in stuck],
        token_hash=None if token is None else token.hash,
        token_accepted=token is not None and token.accepted_at is not None,
        # Both are UTC as ISO 8601, which sorts.
        token_denied=token is not None and token.denied_at is not None and (token.accepted_at or "") < token.denied_at,
        candidate_rejected=candidate is not None and candidate.rejected,
        clients_hash=None if said.tokens.clients is None else said.tokens.clients.hash,
        draining=said.drain.draining,
        refusing=said.drain.refusing,
        dead_letter_rows=said.dead_letters.rows,
        uptime_s=said.uptime_s,
        next_token_hash=None if candidate is None or candidate.rejected else candidate.hash,
        rejected_token_hash=candidate.hash if candidate is not None and candidate.rejected else None,
        delivered_rows_1m=said.upstream_requests.delivered_rows_1m,
        replies_1m=said.upstream_requests.replies_1m,
        throttled_1m=said.upstream_requests.throttled_1m,
        throttled_rows=sum(found.buffered_rows for found in stuck if found.cause == Cause.THROTTLED),
    )


def read_drain(body: bytes | bytearray) -> DrainState:
    """What a proxy answers when it is told to drain, or no longer to. Raises ``msgspec.DecodeError`` if it is not that.

    What does not say ``draining`` is somebody else's answer.
    """
    if "draining" not in msgspec.json.decode(body, type=dict[str, Any]):
        raise msgspec.ValidationError("no word of draining")
    return msgspec.json.decode(body, type=DrainState)
