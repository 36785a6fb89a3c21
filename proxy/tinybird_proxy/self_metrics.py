"""The proxy's own counters as rows for a data source (TINYBIRD_METRICS_DATASOURCE), made from two readings. Pure.

The first five columns are those of Unkey's tinybird-proxy, with the same meaning: ``nodeId``; ``requests``, ``rows``
and ``flushes`` since the row before; ``time`` in milliseconds since 1970 (UTC). Every other name has its unit in it.

- Every column of ``Totals`` says what happened since the row before of the same ``instance`` (at its first row: since
  the process began). So they may be summed over rows, nodes and restarts, and none is ever negative. A row that could
  not be written is made good by the next one: that says what happened since the last one written (``interval_s``).
- Every column of ``Gauges`` says how things stood at ``time``.
- ``starts`` is 1 in a process's first row and ``stops`` in its last one, so that their sums count starts and stops.
  A row with ``stops`` 1 and ``buffered_rows`` above 0: so many rows were not delivered yet when it stopped.

The ledger's equation holds between two rows of an instance: ``rows + recovered_rows + replayed_rows`` is
``delivered_rows + quarantined_rows + unverified_rows + dead_lettered_rows + dropped_rows`` and what ``buffered_rows``
grew by.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import msgspec

from tinybird_proxy.rows import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What was counted since the process began; nothing here ever gets less."""

    requests: int  # whose rows were taken
    rows: int  # taken
    flushes: int  # batches that Tinybird has answered for
    recovered_rows: int
    replayed_rows: int
    delivered_rows: int
    quarantined_rows: int
    unverified_rows: int
    dead_lettered_rows: int
    dropped_rows: int
    ambiguous_rows: int  # at most so many were doubled
    refused_requests: int
    upstream_requests: int  # attempts, whatever became of them
    failed_upstream_requests: int  # attempts without a 2xx
    accepted_bytes: int  # of rows taken, before compression
    settled_raw_bytes: int  # of flushes, before compression
    settled_wire_bytes: int  # of flushes, as sent once
    sender_restarts: int
    internal_errors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """How things stand at one moment."""

    buffered_rows: int
    buffered_bytes: int  # before compression
    buffer_utilisation_ratio: float  # the fuller of rows and bytes; 1 is full
    oldest_row_age_s: float  # 0 if the buffer is empty
    destinations: int
    undelivered_destinations: int  # failing, throttled or held
    ledger_imbalance_rows: int  # anything but 0 is a bug
    event_loop_lag_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Everything that a row is made from. ``time_ms`` is the wall's clock, ``uptime_s`` one that nobody sets."""

    node: str
    instance: str
    version: str
    time_ms: int
    uptime_s: float
    totals: Totals
    gauges: Gauges


_FIRST: Final = ("requests", "rows", "flushes")


def make_row(before: Reading | None, now: Reading, *, stops: bool = False) -> Rows:
    """The row for what happened from ``before`` (None: the process's start) to ``now``, as one line of JSON."""
    return Rows(msgspec.json.encode(columns(before, now, stops=stops)), 1)


def columns(before: Reading | None, now: Reading, *, stops: bool = False) -> dict[str, str | int | float]:
    """The columns of that row, in their order."""
    if before is not None and before.instance != now.instance:
        before = None  # another process: it began at nothing
    grown = _grown(before, now)
    return {
        "nodeId": now.node,
        **{name: grown[name] for name in _FIRST},
        "time": now.time_ms,
        "instance": now.instance,
        "version": now.version,
        "uptime_s": round(now.uptime_s, 3),
        "interval_s": round(max(0.0, now.uptime_s - (before.uptime_s if before is not None else 0.0)), 3),
        "starts": int(before is None),
        "stops": int(stops),
        **{name: grown[name] for name in grown if name not in _FIRST},
        **_rounded(asdict(now.gauges)),
    }


def datasource_schema() -> str:
    """A ``.datasource`` file that takes the rows; one that arrives twice is merged away."""
    names = columns(None, _NOTHING)
    types = {str: "String", int: "Int64", float: "Float64"}
    lines = [f"    `{name}` {types[type(value)]} `json:$.{name}`" for name, value in names.items()]
    return "SCHEMA >\n" + ",\n".join(lines) + '\n\nENGINE "ReplacingMergeTree"\nENGINE_SORTING_KEY "time, instance"\n'


def _grown(before: Reading | None, now: Reading) -> dict[str, int]:
    totals: dict[str, int] = asdict(now.totals)
    if before is None:
        return totals
    return {name: max(0, total - getattr(before.totals, name)) for name, total in totals.items()}


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


_NOTHING: Final = Reading(
    node="",
    instance="",
    version="",
    time_ms=0,
    uptime_s=0.0,
    totals=Totals(**{field.name: 0 for field in fields(Totals)}),
    gauges=Gauges(
        buffered_rows=0,
        buffered_bytes=0,
        buffer_utilisation_ratio=0.0,
        oldest_row_age_s=0.0,
        destinations=0,
        undelivered_destinations=0,
        ledger_imbalance_rows=0,
        event_loop_lag_s=0.0,
    ),
)
