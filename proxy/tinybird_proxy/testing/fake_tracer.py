"""A tracer that keeps what it was told."""

from dataclasses import dataclass, field

from tinybird_proxy.batch import FrozenBatch

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class FakeAttemptSpan:
    """The span of one request. ``ended`` counts how often it was ended: once is right."""

    url: str
    number: int
    traceparent: str | None = TRACEPARENT
    ended: int = 0
    status: int | None = None
    error_type: str | None = None

    def end(self, *, status: int | None, error_type: str | None) -> None:
        """Keep how it ended."""
        self.ended += 1
        self.status, self.error_type = status, error_type


@dataclass
class FakeFlushSpan:
    """The span of one batch. ``verdict`` is None until it ends."""

    batch_id: str
    oldest_age_s: float
    attempts: list[FakeAttemptSpan] = field(default_factory=list)
    ended: int = 0
    verdict: str | None = None

    def attempt(self, url: str, number: int) -> FakeAttemptSpan:
        """Begin a child."""
        span = FakeAttemptSpan(url, number)
        self.attempts.append(span)
        return span

    def end(self, *, verdict: str, attempts: int) -> None:
        """Keep how it ended."""
        self.ended += 1
        self.verdict = verdict


class FakeTracer:
    """Keeps every flush span, oldest first."""

    enabled = True

    def __init__(self) -> None:
        self.flushes: list[FakeFlushSpan] = []

    def flush(self, batch: FrozenBatch, *, oldest_age_s: float) -> FakeFlushSpan:
        """Begin a span."""
        span = FakeFlushSpan(batch.id, oldest_age_s)
        self.flushes.append(span)
        return span

    def close(self) -> None:
        """Nothing to export."""
