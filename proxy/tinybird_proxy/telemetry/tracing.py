"""One span a flush and one child span an attempt: the interface, and what is used when tracing is off.

The exporter behind it is ``telemetry.otlp``, imported only when a collector is configured.
"""

from typing import Protocol

from tinybird_proxy.batch import FrozenBatch


class AttemptSpan(Protocol):
    """One request to Tinybird. ``traceparent`` travels along with it."""

    traceparent: str | None

    def end(self, *, status: int | None, error_type: str | None) -> None:
        """The reply's status, or the name of what went wrong instead."""
        ...


class FlushSpan(Protocol):
    """The sending of one batch, from its first attempt until it settles."""

    def attempt(self, url: str, number: int) -> AttemptSpan:
        """Begin the child span of attempt ``number``, counted from 1."""
        ...

    def end(self, *, verdict: str, attempts: int) -> None:
        """The batch settled, or was given up: ``verdict`` in one word."""
        ...


class Tracer(Protocol):
    """Makes flush spans. ``enabled`` says whether a request's ``traceparent`` is worth keeping."""

    enabled: bool

    def flush(self, batch: FrozenBatch, *, oldest_age_s: float) -> FlushSpan:
        """Begin the span of ``batch``."""
        ...

    def close(self) -> None:
        """Export what is left, for at most a few seconds; blocks, so call it in a thread."""
        ...


class _Nothing:
    """Every span at once, when nobody looks."""

    traceparent: str | None = None
    enabled = False

    def attempt(self, url: str, number: int) -> "_Nothing":
        return self

    def end(
        self, *, verdict: str = "", attempts: int = 0, status: int | None = None, error_type: str | None = None
    ) -> None:
        return None

    def flush(self, batch: FrozenBatch, *, oldest_age_s: float) -> "_Nothing":
        return self

    def close(self) -> None:
        return None


def no_tracer() -> Tracer:
    """A tracer that traces nothing."""
    return _Nothing()
