"""What the demo shows: counts that were measured, and the arithmetic on them. Pure."""

import itertools
import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

_BARS = "▁▂▃▄▅▆▇█"
_LATEST = 5000


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` (sorted, at least one) that ``share`` of them do not exceed."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


def sparkline(values: Sequence[float], width: int) -> str:
    """The last ``width`` of ``values`` as bars, the highest of them one full block."""
    shown = values[-width:]
    highest = max(shown, default=0.0)
    if highest <= 0:
        return _BARS[0] * len(shown)
    return "".join(_BARS[min(len(_BARS) - 1, int(value / highest * len(_BARS)))] for value in shown)


@dataclass(slots=True)
class Tally:
    """What the client did and heard. Latencies are seconds from sending a request to the end of its answer."""

    posted: int = 0
    promised: int = 0  # answered with 2xx: the proxy has answered for the row
    refused: Counter[str] = field(default_factory=Counter)  # by status, or "no answer"
    not_promised: set[int] = field(default_factory=set)  # the ids of the refused and unanswered
    latencies: "array[float]" = field(default_factory=lambda: array("f"))
    wait_latencies: list[float] = field(default_factory=list)  # wait=true, answered with 200: Tinybird has the row

    def heard(self, number: int, status: int | None) -> None:
        """Count the answer to the row ``number``; None: there was none."""
        if status is not None and 200 <= status < 300:
            self.promised += 1
            return
        self.refused["no answer" if status is None else str(status)] += 1
        self.not_promised.add(number)

    def latest_percentiles(self) -> tuple[float, float] | None:
        """p50 and p99 of the last 5,000 requests without ``wait``, in seconds."""
        return _p50_p99(self.latencies[-_LATEST:])

    def percentiles(self) -> tuple[float, float] | None:
        """p50 and p99 of all requests without ``wait``, in seconds."""
        return _p50_p99(self.latencies)


def _p50_p99(latencies: "array[float]") -> tuple[float, float] | None:
    if not latencies:
        return None
    ordered = sorted(latencies)
    return percentile(ordered, 0.50), percentile(ordered, 0.99)


# The part of the proxy's /status that the demo shows.


class LedgerStatus(msgspec.Struct, frozen=True):
    """The terms of the proxy's ledger, in rows."""

    accepted: int
    delivered: int
    quarantined: int
    unverified: int
    dead_lettered: int
    dropped: Mapping[str, int]
    buffered: int
    ambiguous: int


class BufferStatus(msgspec.Struct, frozen=True):
    """What is in the proxy's buffer."""

    rows: int
    oldest_age_s: float | None


class UpstreamStatus(msgspec.Struct, frozen=True):
    """The proxy's requests to Tinybird: replies by status, and the bytes of settled batches."""

    replies: Mapping[str, int]
    raw_bytes: int
    wire_bytes: int


class DestinationStatus(msgspec.Struct, frozen=True):
    """One destination in the proxy's own words."""

    data_source: str
    sentence: str


class Status(msgspec.Struct, frozen=True):
    """The proxy at one moment."""

    sentence: str
    phase: str
    ledger: LedgerStatus
    buffer: BufferStatus
    upstream_requests: UpstreamStatus
    destinations: tuple[DestinationStatus, ...]

    @property
    def upstream_request_count(self) -> int:
        """Requests that the proxy made to Tinybird, those that failed included."""
        return sum(self.upstream_requests.replies.values())

    @property
    def compression_ratio(self) -> float | None:
        """How many times smaller the settled batches were on the wire."""
        sent = self.upstream_requests
        return sent.raw_bytes / sent.wire_bytes if sent.wire_bytes else None

    @property
    def words(self) -> tuple[str, ...]:
        """How the proxy explains itself: as a whole, then each destination."""
        return (self.sentence, *(f"{found.data_source}: {found.sentence}" for found in self.destinations))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at the client and the proxy, for the curves."""

    at_s: float
    promised: int
    delivered: int
    buffered: int


class History:
    """The samples of the last minutes, at equal distances."""

    def __init__(self, length: int = 240) -> None:
        self._length = length
        self._samples: list[Sample] = []

    def add(self, sample: Sample) -> None:
        """Keep ``sample``, and forget the oldest."""
        self._samples = [*self._samples[1 - self._length :], sample]

    def buffered(self) -> list[float]:
        """Rows in the buffer."""
        return [sample.buffered for sample in self._samples]

    def promised_per_s(self) -> list[float]:
        """Rows promised a second, between one sample and the next."""
        return _rates([(sample.at_s, sample.promised) for sample in self._samples])

    def delivered_per_s(self) -> list[float]:
        """Rows delivered a second, between one sample and the next."""
        return _rates([(sample.at_s, sample.delivered) for sample in self._samples])


def _rates(counts: Sequence[tuple[float, int]]) -> list[float]:
    return [
        (after - before) / max(1e-9, later - sooner) for (sooner, before), (later, after) in itertools.pairwise(counts)
    ]
