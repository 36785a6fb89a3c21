"""What every destination works with."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from tinybird_proxy.batch import BatchLimits, DestinationKey, Payload
from tinybird_proxy.buffer import Buffer
from tinybird_proxy.dead_letter import DeadLetters
from tinybird_proxy.pacing import PacingLimits
from tinybird_proxy.telemetry.logs import Sparingly
from tinybird_proxy.telemetry.meters import Meters
from tinybird_proxy.telemetry.tracing import Tracer
from tinybird_proxy.tokens import OwnToken
from tinybird_proxy.verdict import Reply

STRANGERS_LOG_INTERVAL_S = 10.0


class BatchUpstream(Protocol):
    """All that a destination knows of Tinybird; ``upstream.Upstream`` is the real one.

    ``counts_seen``: this URL gave readable counts once, so it answers like Tinybird. ``instance`` is our own name,
    which travels with each batch.
    """

    counts_seen: bool
    instance: str

    def url(self, key: DestinationKey, *, wait: bool) -> str:
        """Where a batch of ``key`` goes. Never holds a token."""
        ...

    async def send(
        self,
        url: str,
        payload: Payload,
        *,
        token: str,
        batch_id: str,
        vias: tuple[str, ...] = (),
        traceparent: str | None = None,
        begins: Callable[[], None] | None = None,
    ) -> Reply:
        """Make one attempt. Raises an ``UpstreamError`` if no reply came.

        ``begins`` is called before the first byte of the payload is written: from then on Tinybird may take it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCodec:
    """``codec.compress``, ``rows_of``, ``rows_in`` and ``halves``, each somewhere where it keeps nobody waiting."""

    compress: Callable[[list[bytes]], Awaitable[Payload]]
    rows_of: Callable[[Payload, Sequence[tuple[int, int]]], Awaitable[list[bytes]]]
    rows_in: Callable[[Sequence[Payload]], Awaitable[list[bytes]]]
    halves: Callable[[Payload], Awaitable[tuple[bytes, bytes]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Made once by the composition root and shared by all destinations.

    ``now`` is the event loop's clock in seconds, ``utc_now`` the wall's. ``jitter(limit)`` answers with a random number
    from 0 to ``limit``. ``codec`` works in a thread. ``max_age_s``: a batch whose youngest row is older is given up on;
    None: never. ``after_settling`` is called when a batch has left the buffer. ``strangers_log``: of tokens and
    names that Tinybird never accepted, which anybody may try many of.
    """

    limits: BatchLimits
    pacing: PacingLimits
    upstream_wait: bool
    wait_timeout_s: float
    buffer: Buffer
    upstream: BatchUpstream
    own_token: OwnToken | None
    codec: BatchCodec
    letters: DeadLetters
    max_age_s: float | None
    tracer: Tracer
    meters: Meters
    now: Callable[[], float]
    utc_now: Callable[[], datetime]
    jitter: Callable[[float], float]
    next_batch_id: Callable[[], str]
    after_settling: Callable[[], None]
    strangers_log: Sparingly = field(default_factory=lambda: Sparingly(STRANGERS_LOG_INTERVAL_S))
