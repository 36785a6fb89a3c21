"""A row of the proxy's own counters: what happened since the row before, how things stand, and which columns say so."""

import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinybird_proxy.emulator.schemas import FloatText, IntegerText, Schema
from tinybird_proxy.rows import check
from tinybird_proxy.self_metrics import Gauges, Reading, Totals, columns, datasource_schema, make_row

NAMES = [field.name for field in fields(Totals)]
NO_TOTALS = Totals(**dict.fromkeys(NAMES, 0))
GAUGES = Gauges(
    buffered_rows=0,
    buffered_bytes=0,
    buffer_utilisation_ratio=0.0,
    oldest_row_age_s=0.0,
    destinations=0,
    undelivered_destinations=0,
    ledger_imbalance_rows=0,
    event_loop_lag_s=0.0,
)
START = Reading(
    node="node-7",
    instance="node-7-0123abcd",
    version="1.2.3",
    time_ms=1_767_225_600_000,
    uptime_s=0.0,
    totals=NO_TOTALS,
    gauges=GAUGES,
)


def reading(after_s: float = 60.0, *, gauges: Gauges = GAUGES, **totals: int) -> Reading:
    """A reading ``after_s`` seconds after the process's start."""
    return replace(
        START,
        time_ms=START.time_ms + int(after_s * 1000),
        uptime_s=after_s,
        totals=replace(NO_TOTALS, **totals),
        gauges=gauges,
    )


def decoded(before: Reading | None, now: Reading, *, stops: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(make_row(before, now, stops=stops).body)
    return found


def test_the_first_five_columns_are_those_of_the_original() -> None:
    row = decoded(reading(60, requests=5, rows=50, flushes=1), reading(120, requests=8, rows=90, flushes=3))
    assert list(row.items())[:5] == [
        ("nodeId", "node-7"),
        ("requests", 3),
        ("rows", 40),
        ("flushes", 2),
        ("time", 1_767_225_600_000 + 120_000),
    ]


def test_the_other_columns_have_flat_names_with_units() -> None:
    names = list(columns(None, START))[5:]
    assert names[:6] == ["instance", "version", "uptime_s", "interval_s", "starts", "stops"]
    assert names[6:] == [*NAMES[3:], *(field.name for field in fields(Gauges))]
    units = ("_rows", "_bytes", "_s", "_ratio", "_requests", "_restarts", "_errors", "destinations")
    assert [name for name in names[6:] if not name.endswith(units)] == []
    assert len(set(columns(None, START))) == 5 + len(names)


def test_a_processs_first_row_says_what_happened_since_it_began() -> None:
    row = decoded(None, reading(61.5, requests=2, rows=7, delivered_rows=7, settled_wire_bytes=123))
    assert (row["starts"], row["stops"], row["interval_s"], row["uptime_s"]) == (1, 0, 61.5, 61.5)
    assert (row["requests"], row["rows"], row["delivered_rows"], row["settled_wire_bytes"]) == (2, 7, 7, 123)


def test_a_row_after_one_that_could_not_be_written_covers_its_time_too() -> None:
    row = decoded(reading(60, rows=10), reading(180.25, rows=45))
    assert (row["starts"], row["interval_s"], row["rows"]) == (0, 120.25, 35)


def test_only_the_last_row_stops() -> None:
    assert decoded(START, reading(), stops=True)["stops"] == 1


def test_gauges_are_as_they_stand_now() -> None:
    stand = replace(GAUGES, buffered_rows=3, oldest_row_age_s=1.23456, ledger_imbalance_rows=-2)
    row = decoded(reading(60, gauges=replace(stand, buffered_rows=9)), reading(120, gauges=stand))
    assert (row["buffered_rows"], row["oldest_row_age_s"], row["ledger_imbalance_rows"]) == (3, 1.2346, -2)


def test_another_process_began_at_nothing() -> None:
    before = reading(6000, requests=1000, rows=1000)
    row = decoded(before, replace(reading(60, requests=4, rows=5), instance="node-7-4567cdef"))
    assert (row["starts"], row["requests"], row["rows"], row["interval_s"]) == (1, 4, 5, 60.0)


def test_a_clock_that_was_set_back_changes_no_interval() -> None:
    now = replace(reading(120), time_ms=START.time_ms - 3_600_000)
    assert decoded(reading(60), now)["interval_s"] == 60.0


totals = st.builds(Totals, **dict.fromkeys(NAMES, st.integers(0, 10**15)))
processes = st.lists(st.tuples(st.lists(totals, min_size=1, max_size=5), st.booleans()), min_size=1, max_size=3)


@settings(deadline=None, max_examples=200)
@given(totals, totals)
def test_nothing_is_ever_negative(before: Totals, now: Totals) -> None:
    row = columns(replace(reading(60), totals=before), replace(reading(120), totals=now))
    assert all(row[name] == max(0, getattr(now, name) - getattr(before, name)) for name in NAMES)


@settings(deadline=None, max_examples=200)
@given(processes)
def test_sums_over_the_rows_of_several_processes_are_what_they_counted(
    found: list[tuple[list[Totals], bool]],
) -> None:
    before: Reading | None = None
    rows: list[dict[str, Any]] = []
    counted = dict.fromkeys(NAMES, 0)
    for number, (steps, stops) in enumerate(found):
        grown = dict.fromkeys(NAMES, 0)
        for turn, step in enumerate(steps, 1):
            grown = {name: grown[name] + value for name, value in asdict(step).items()}
            now = replace(reading(60.0 * turn), instance=f"node-{number}", totals=Totals(**grown))
            rows.append(decoded(before, now, stops=stops and turn == len(steps)))
            before = now
        counted = {name: counted[name] + grown[name] for name in NAMES}
    assert {name: sum(row[name] for row in rows) for name in NAMES} == counted
    assert sum(row["starts"] for row in rows) == len(found)
    assert sum(row["stops"] for row in rows) == sum(stops for _, stops in found)


@settings(deadline=None, max_examples=100)
@given(totals, st.text(), st.floats(0, 1e9), st.booleans())
def test_a_row_is_one_that_the_proxy_itself_would_take(now: Totals, name: str, age_s: float, stops: bool) -> None:
    gauges = replace(GAUGES, oldest_row_age_s=age_s)
    row = make_row(None, replace(START, node=name, totals=now, gauges=gauges), stops=stops)
    assert check(row.body) == row
    assert row.row_count == 1


def _columns_of(schema: str) -> dict[str, str]:
    """Names and types of a ``.datasource`` file; the JSON path must be the name."""
    head, _, engine = schema.partition("\n\n")
    assert engine.startswith("ENGINE ")
    first, *lines = head.split("\n")
    assert first == "SCHEMA >"
    found = {}
    for line in lines:
        name, kind, path = line.strip().rstrip(",").split(" ")
        assert path.strip("`") == f"json:$.{name.strip('`')}"
        found[name.strip("`")] = kind
    return found


@settings(deadline=None, max_examples=100)
@given(totals, st.floats(0, 1e9))
def test_the_schema_takes_every_row(now: Totals, age_s: float) -> None:
    found = _columns_of(datasource_schema())
    assert list(found) == list(columns(None, START))
    row = make_row(None, replace(START, totals=now, gauges=replace(GAUGES, oldest_row_age_s=age_s)))
    assert Schema(found).judge(json.loads(row.body, parse_int=IntegerText, parse_float=FloatText)) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [("nodeId", "String"), ("time", "Int64"), ("rows", "Int64"), ("uptime_s", "Float64"), ("starts", "Int64")],
)
def test_columns_have_the_types_of_clickhouse(name: str, kind: str) -> None:
    assert _columns_of(datasource_schema())[name] == kind
