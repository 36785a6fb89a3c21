"""`tinybird_proxy.cli.demo.outcome`: when it may be said that every row arrived exactly once."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tinybird_proxy.cli.demo.figures import LedgerStatus, Tally
from tinybird_proxy.cli.demo.outcome import Arrived, Outcome

LEDGER = LedgerStatus(
    accepted=1000,
    delivered=1000,
    quarantined=0,
    unverified=0,
    dead_lettered=0,
    dropped={},
    buffered=0,
    ambiguous=0,
)
ARRIVED = Arrived(row_count=1000, distinct_count=1000, promised_count=1000, request_count=4)
GOOD = Outcome(tally=Tally(posted=1000, promised=1000), ledger=LEDGER, left_at_stop=12, proxy_status=0, arrived=ARRIVED)


def test_when_three_accounts_agree_every_row_arrived_exactly_once() -> None:
    assert GOOD.exactly_once
    assert GOOD.sentence() == (
        "Every one of the 1,000 accepted rows arrived exactly once:"
        " 1,000 requests became 4, and 996 requests to Tinybird were saved."
    )


@pytest.mark.parametrize(
    ("what_happened", "differs", "says"),
    [
        ("a row is missing", {"arrived": replace(ARRIVED, promised_count=999)}, "1 of the 1,000 accepted rows did NOT"),
        (
            "a refused row arrived in place of an accepted one",
            {"arrived": replace(ARRIVED, row_count=1000, distinct_count=1000, promised_count=999)},
            "1 of the 1,000 accepted rows did NOT",
        ),
        ("rows came twice", {"arrived": replace(ARRIVED, row_count=1500)}, "500 rows arrived MORE THAN ONCE."),
        ("the emulator died", {"arrived": None}, "The emulator could not be asked what arrived"),
        ("the proxy died", {"ledger": None, "proxy_status": -9}, "the proxy ended without its ledger"),
        ("the proxy lost count", {"proxy_status": 3}, "the proxy ended with status 3"),
        (
            "the ledger still holds rows",
            {"ledger": msgspec.structs.replace(LEDGER, delivered=999, buffered=1)},
            "the proxy's ledger says something else",
        ),
        ("nothing was accepted", {"tally": Tally(posted=5)}, "No row was accepted"),
    ],
)
def test_what_speaks_against_it_is_said(what_happened: str, differs: dict[str, Any], says: str) -> None:
    outcome = replace(GOOD, **differs)
    assert not outcome.exactly_once, what_happened
    assert says in outcome.sentence(), what_happened


def test_a_row_that_was_not_answered_but_arrived_is_no_contradiction() -> None:
    tally = Tally(posted=1001, promised=1000)
    tally.heard(1001, None)
    ledger = msgspec.structs.replace(LEDGER, accepted=1001, delivered=1001)
    arrived = replace(ARRIVED, row_count=1001, distinct_count=1001)
    assert replace(GOOD, tally=tally, ledger=ledger, arrived=arrived).exactly_once


def test_the_table_names_refusals_and_where_rows_are() -> None:
    tally = Tally()
    for number, status in enumerate((202, 200, 503, 503, None)):
        tally.heard(number, status)
    tally.latencies.extend([0.001, 0.002])
    tally.wait_latencies.append(2.0)
    ledger = msgspec.structs.replace(LEDGER, quarantined=3, dropped={"shutdown": 2})
    table = {f"{who}: {what}": count for who, what, count in replace(GOOD, tally=tally, ledger=ledger).table()}
    assert table["client: refused or not answered"] == "3 (503: 2, no answer: 1)"
    assert table["client: answered within, p50 and p99"] == "1.0 ms, 2.0 ms"
    assert table["proxy: quarantined"] == "3"
    assert table["proxy: lost"] == "2"
    assert "proxy: unverified" not in table
