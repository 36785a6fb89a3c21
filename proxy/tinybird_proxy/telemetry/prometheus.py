"""Metrics in Prometheus's text format, made from plain integers when somebody asks.

Names begin with ``tinybird_proxy_`` and carry base units. Labels are bounded: data sources that Tinybird never
confirmed share the label ``(unconfirmed)``, so that guessed names cannot fill a monitoring system.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tinybird_proxy.health import Cause, DestinationFacts, cause
from tinybird_proxy.ledger import DropReason, Ledger, LetterReason
from tinybird_proxy.pacing import State
from tinybird_proxy.telemetry.meters import Histogram, Meters

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
UNCONFIRMED: Final = "(unconfirmed)"
_PREFIX: Final = "tinybird_proxy_"
_TERMS: Final = ("accepted", "recovered", "replayed", "delivered", "quarantined", "unverified", "dead_lettered")
_TERMS_OF_LETTERS: Final = ("recovered", "deleted", "evicted", "lost_at_exit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that a scrape shows, at one moment."""

    version: str
    instance: str
    meters: Meters
    ledger: Ledger
    imbalance: int
    letters_rows: int
    letters_bytes: int
    letters_max_bytes: int
    destinations: Sequence[DestinationFacts]
    buffer_rows: int
    buffer_bytes: int
    capacity_rows: int
    capacity_bytes: int
    utilisation: float
    utilization_percent: int
    oldest_age_s: float | None
    seconds_to_drain: float | None
    drain_time_s: int
    receiving_bytes: int
    waiting_requests: int
    ready: bool
    uptime_s: float


def render(snapshot: Snapshot) -> bytes:
    """The whole page."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(snapshot))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        return _families(self._snapshot)


def _families(s: Snapshot) -> Iterator[Metric]:
    meters = s.meters
    yield InfoMetricFamily(f"{_PREFIX}build", "Version and instance.", {"version": s.version, "instance": s.instance})
    yield _gauge("ready", "1 while the proxy wants traffic.", float(s.ready))
    yield _gauge("uptime_seconds", "Seconds since the start.", s.uptime_s)
    yield _counter("requests_accepted", "Requests whose rows were taken.", meters.requests_accepted)
    yield _counter("accepted_bytes", "Bytes of rows taken, before compression.", meters.bytes_accepted)
    yield _counters("requests_refused", "Requests refused.", "reason", meters.refused)
    yield _counters("waits", "Requests with wait=true or a first contact, by their end.", "end", meters.waits)
    yield _counters(
        "passed_through", "Requests for other paths, by Tinybird's status.", "status", meters.passed_through
    )
    yield from _ledger(s)
    yield _gauge("buffer_rows", "Rows in the buffer.", s.buffer_rows)
    yield _gauge("buffer_bytes", "Bytes of those rows, before compression.", s.buffer_bytes)
    held = sum(facts.held_bytes for facts in s.destinations)
    yield _gauge("buffer_held_bytes", "Memory that those rows take: frozen batches are kept compressed.", held)
    yield _gauge("buffer_capacity_rows", "BUFFER_SIZE.", s.capacity_rows)
    yield _gauge("buffer_capacity_bytes", "BUFFER_BYTES.", s.capacity_bytes)
    yield _gauge("buffer_utilisation_ratio", "The fuller of rows and bytes, as a share of its capacity.", s.utilisation)
    yield _gauge("oldest_row_age_seconds", "Age of the oldest row in the buffer; 0 if empty.", s.oldest_age_s or 0.0)
    drain_s = s.seconds_to_drain if s.seconds_to_drain is not None else float("inf")
    yield _gauge("seconds_to_drain", "Time to empty the buffer at the present rate.", drain_s)
    yield from _for_scalers(s)
    yield _gauge("receiving_bytes", "Bytes of larger bodies being received.", s.receiving_bytes)
    yield _gauge("waiting_requests", "Requests held open for wait=true or a first contact.", s.waiting_requests)
    yield _counters("batches_frozen", "Batches, by what closed them.", "trigger", meters.batches)
    yield _counter("batches_settled", "Batches that Tinybird has answered for.", meters.sent_batches)
    yield _counter("settled_raw_bytes", "Bytes of settled batches, before compression.", meters.sent_raw_bytes)
    yield _counter("settled_wire_bytes", "Bytes of settled batches, as sent once.", meters.sent_wire_bytes)
    yield _counters(
        "upstream_replies", "Attempts, by Tinybird's status or what broke.", "status", meters.upstream_replies
    )
    yield _histogram("upstream_seconds", "Time of one attempt.", meters.upstream_seconds)
    yield _histogram("delivery_seconds", "From taking a batch's oldest row to its settling.", meters.delivery_seconds)
    yield _destination_states(s.destinations)
    yield from _not_delivering(s.destinations)
    yield _counter("internal_errors", "Errors inside the proxy; the rows were kept.", meters.internal_errors)
    yield _counter("sender_restarts", "Senders that died and were restarted.", meters.sender_restarts)
    yield _gauge("event_loop_lag_seconds", "How late the event loop ran its last timer.", meters.loop_lag_s)


def _for_scalers(s: Snapshot) -> Iterator[Metric]:
    """In whole numbers, with ``buffer_rows``: what a HorizontalPodAutoscaler may aim at."""
    text = "The fuller of rows and bytes, in percent of its capacity, rounded up."
    yield _gauge("buffer_utilization_percent", text, s.utilization_percent)
    text = "Time to deliver what is not held at the last minute's rate, at most an hour; 0 until a row waited 10 s."
    yield _gauge("drain_time_seconds", text, s.drain_time_s)
    text = "CPU time of the process over the last 15 s, in percent of one core, rounded up."
    yield _gauge("cpu_percent", text, s.meters.cpu.percent())


def _ledger(s: Snapshot) -> Iterator[Metric]:
    for term in _TERMS:
        yield _counter(f"rows_{term}", f"Rows {term.replace('_', '-')}: a term of the ledger.", getattr(s.ledger, term))
    for term in _TERMS_OF_LETTERS:
        text = f"Rows of dead letters {term.replace('_', ' ')}: a term of the ledger."
        yield _counter(f"letter_rows_{term}", text, getattr(s.ledger, f"letters_{term}"))
    yield _gauge("dead_letter_rows", "Rows in dead letters, without those being replayed.", s.letters_rows)
    yield _gauge("dead_letter_bytes", "Memory of those letters.", s.letters_bytes)
    yield _gauge("dead_letter_capacity_bytes", "DEAD_LETTER_BYTES.", s.letters_max_bytes)
    reasons = {**dict.fromkeys(map(str, LetterReason), 0), **s.meters.dead_letters}
    yield _counters("dead_letters", "Rows given up on, by reason.", "reason", reasons)
    # At 0 from the start: what appears only with its first row shows no increase.
    dropped = {**dict.fromkeys(map(str, DropReason), 0), **s.ledger.dropped}
    yield _counters("rows_dropped", "Rows lost: a term of the ledger.", "reason", dropped)
    text = "Rows with an attempt of unknown outcome: only these may have arrived more than once."
    yield _counter("rows_ambiguous", text, s.ledger.ambiguous)
    yield _gauge(
        "ledger_imbalance_rows", "Rows that the ledger cannot account for; anything but 0 is a bug.", s.imbalance
    )
    by_source: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    oldest: dict[str, float] = {}
    for facts in s.destinations:
        source = facts.data_source if facts.confirmed else UNCONFIRMED
        for term in ("accepted", "delivered", "quarantined", "buffered"):
            value = facts.ledger[term]
            by_source[source][term] += value if isinstance(value, int) else 0
        oldest[source] = max(oldest.get(source, 0.0), facts.oldest_age_s or 0.0)
    for term in ("accepted", "delivered", "quarantined", "buffered"):
        # Gauges: a destination that was forgotten begins again at nothing.
        family = GaugeMetricFamily(
            f"{_PREFIX}datasource_rows_{term}", f"Rows {term}, by data source.", labels=["datasource"]
        )
        for source, terms in sorted(by_source.items()):
            family.add_metric([source], terms[term])
        yield family
    family = GaugeMetricFamily(
        f"{_PREFIX}datasource_oldest_row_age_seconds", "Age of the oldest row, by data source.", labels=["datasource"]
    )
    for source, age_s in sorted(oldest.items()):
        family.add_metric([source], age_s)
    yield family


def _destination_states(destinations: Sequence[DestinationFacts]) -> Metric:
    family = GaugeMetricFamily(f"{_PREFIX}destinations", "Destinations, by what they are doing.", labels=["state"])
    for state in State:
        family.add_metric([state], sum(facts.state is state for facts in destinations))
    return family


def _not_delivering(destinations: Sequence[DestinationFacts]) -> Iterator[Metric]:
    some = GaugeMetricFamily(
        f"{_PREFIX}destinations_not_delivering",
        "Destinations whose rows wait although nothing was delivered for a while, by cause.",
        labels=["cause"],
    )
    rows = GaugeMetricFamily(f"{_PREFIX}rows_not_delivering", "Rows that wait in them, by cause.", labels=["cause"])
    causes = [(cause(facts), facts.buffered_rows) for facts in destinations]
    for why in Cause:
        some.add_metric([why], sum(found is why for found, _ in causes))
        rows.add_metric([why], sum(waiting for found, waiting in causes if found is why))
    yield some
    yield rows


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, documentation, value=value)


def _counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, documentation, value=value)


def _counters(name: str, documentation: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, documentation, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def _histogram(name: str, documentation: str, histogram: Histogram) -> Metric:
    family = HistogramMetricFamily(_PREFIX + name, documentation)
    buckets, running = [], 0
    for bound, number in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        running += number
        buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(running)))
    family.add_metric([], buckets, sum_value=histogram.total)
    return family
