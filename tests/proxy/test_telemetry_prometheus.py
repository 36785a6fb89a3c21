"""The metrics page, read back with Prometheus's own parser: names, values, bounded labels."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tinybird_proxy.health import Cause, DestinationFacts
from tinybird_proxy.ledger import DropReason, Ledger, LetterReason
from tinybird_proxy.pacing import State
from tinybird_proxy.telemetry.meters import LATENCY_BOUNDS_S, Meters
from tinybird_proxy.telemetry.prometheus import CONTENT_TYPE, UNCONFIRMED, Snapshot, render

PREFIX = "tinybird_proxy_"
LEDGER = Ledger(accepted=100, recovered=1, replayed=2, delivered=60, quarantined=5, unverified=4, dead_lettered=3)


def facts(
    data_source: str,
    *,
    rows: int = 0,
    confirmed: bool = True,
    state: State = State.DELIVERING,
    age_s: float | None = None,
    status: int | None = None,
    refusing: int | None = None,
) -> DestinationFacts:
    return DestinationFacts(
        data_source=data_source,
        params={},
        token_hash=None,
        state=state,
        reason="",
        status=status,
        confirmed=confirmed,
        buffered_rows=rows,
        buffered_bytes=rows * 10,
        held_bytes=rows * 3,
        oldest_age_s=age_s,
        in_flight=0,
        places=16,
        batches_waiting=0,
        next_attempt_in_s=None,
        not_delivering_for_s=None,
        delivered_ago_s=None,
        stuck_after_s=10.0,
        refusing=refusing,
        splitting=None,
        ceiling_bytes=None,
        letters_rows=0,
        ledger=Ledger(accepted=rows + 7, delivered=5, quarantined=2).as_dict(rows, 0),
    )


EMPTY = Snapshot(
    version="1.2.3",
    instance="node-1",
    meters=Meters(0.0),
    ledger=Ledger(),
    imbalance=0,
    letters_rows=0,
    letters_bytes=0,
    letters_max_bytes=64_000_000,
    destinations=(),
    buffer_rows=0,
    buffer_bytes=0,
    capacity_rows=1000,
    capacity_bytes=512_000_000,
    utilisation=0.0,
    utilization_percent=0,
    oldest_age_s=None,
    seconds_to_drain=0.0,
    drain_time_s=0,
    receiving_bytes=0,
    waiting_requests=0,
    ready=True,
    uptime_s=1.5,
)


def families(snapshot: Snapshot) -> dict[str, Metric]:
    page = render(snapshot)
    assert page.endswith(b"\n")
    found = list(text_string_to_metric_families(page.decode()))
    assert len({family.name for family in found}) == len(found)
    return {family.name.removeprefix(PREFIX): family for family in found}


def values(snapshot: Snapshot, name: str, label: str = "") -> Mapping[str, float]:
    """The values of a family, by their label."""
    return {sample.labels.get(label, ""): sample.value for sample in families(snapshot)[name].samples}


def value(snapshot: Snapshot, name: str) -> float:
    (only,) = families(snapshot)[name].samples
    assert not only.labels
    return only.value


def test_every_name_begins_with_ours_and_every_family_is_explained() -> None:
    found = list(text_string_to_metric_families(render(EMPTY).decode()))
    assert len(found) > 30
    for family in found:
        assert re.fullmatch(PREFIX + r"[a-z_]+", family.name)
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram", "info", "unknown")


def test_the_page_says_that_it_is_prometheus_text() -> None:
    assert CONTENT_TYPE.startswith("text/plain; version=")


def test_the_build_is_named() -> None:
    (sample,) = families(EMPTY)["build_info"].samples
    assert (sample.labels, sample.value) == ({"version": "1.2.3", "instance": "node-1"}, 1.0)


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        ({"ready": True}, "ready", 1.0),
        ({"ready": False}, "ready", 0.0),
        ({"uptime_s": 12.5}, "uptime_seconds", 12.5),
        ({"buffer_rows": 7}, "buffer_rows", 7.0),
        ({"buffer_bytes": 70}, "buffer_bytes", 70.0),
        ({"capacity_rows": 9}, "buffer_capacity_rows", 9.0),
        ({"capacity_bytes": 90}, "buffer_capacity_bytes", 90.0),
        ({"utilisation": 0.25}, "buffer_utilisation_ratio", 0.25),
        ({"oldest_age_s": 3.5}, "oldest_row_age_seconds", 3.5),
        ({"oldest_age_s": None}, "oldest_row_age_seconds", 0.0),
        ({"seconds_to_drain": 8.0}, "seconds_to_drain", 8.0),
        ({"seconds_to_drain": None}, "seconds_to_drain", math.inf),
        ({"utilization_percent": 26}, "buffer_utilization_percent", 26.0),
        ({"drain_time_s": 0}, "drain_time_seconds", 0.0),
        ({"drain_time_s": 3600}, "drain_time_seconds", 3600.0),
        ({"receiving_bytes": 11}, "receiving_bytes", 11.0),
        ({"waiting_requests": 3}, "waiting_requests", 3.0),
        ({"imbalance": -4}, "ledger_imbalance_rows", -4.0),
        ({"letters_rows": 5}, "dead_letter_rows", 5.0),
        ({"letters_bytes": 5000}, "dead_letter_bytes", 5000.0),
        ({"letters_max_bytes": 9000}, "dead_letter_capacity_bytes", 9000.0),
        ({"destinations": (facts("a", rows=2), facts("b", rows=3))}, "buffer_held_bytes", 15.0),
    ],
    ids=lambda part: part if isinstance(part, str) else None,
)
def test_what_is_known_at_the_moment_is_shown(change: Mapping[str, object], name: str, expected: float) -> None:
    assert value(replace(EMPTY, **change), name) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("meter", "name"),
    [
        ("requests_accepted", "requests_accepted"),
        ("bytes_accepted", "accepted_bytes"),
        ("sent_batches", "batches_settled"),
        ("sent_raw_bytes", "settled_raw_bytes"),
        ("sent_wire_bytes", "settled_wire_bytes"),
        ("internal_errors", "internal_errors"),
        ("sender_restarts", "sender_restarts"),
        ("loop_lag_s", "event_loop_lag_seconds"),
    ],
)
def test_what_was_counted_is_shown(meter: str, name: str) -> None:
    meters = Meters(0.0)
    setattr(meters, meter, 42)
    assert value(replace(EMPTY, meters=meters), name) == 42.0


def test_the_cpu_is_shown_in_whole_percent_of_a_core() -> None:
    meters = Meters(0.0)
    page = replace(EMPTY, meters=meters)
    assert value(page, "cpu_percent") == 0.0
    meters.cpu.sample(0.0, 1.0)
    assert value(page, "cpu_percent") == 0.0
    meters.cpu.sample(10.0, 5.241)
    assert value(page, "cpu_percent") == 43.0


def test_what_a_scaler_may_aim_at_is_a_gauge_by_the_name_that_the_operator_knows() -> None:
    page = families(EMPTY)
    for name in ("buffer_utilization_percent", "buffer_rows", "drain_time_seconds", "cpu_percent"):
        assert (page[name].type, [sample.labels for sample in page[name].samples]) == ("gauge", [{}])


@pytest.mark.parametrize(
    ("meter", "name", "label"),
    [
        ("refused", "requests_refused", "reason"),
        ("waits", "waits", "end"),
        ("batches", "batches_frozen", "trigger"),
        ("upstream_replies", "upstream_replies", "status"),
        ("passed_through", "passed_through", "status"),
    ],
)
def test_what_was_counted_by_kind_is_shown_by_kind(meter: str, name: str, label: str) -> None:
    meters = Meters(0.0)
    getattr(meters, meter).update({"one": 1, "two": 2})
    assert values(replace(EMPTY, meters=meters), name, label) == {"one": 1.0, "two": 2.0}


# The ledger.


def test_every_term_of_the_ledger_is_a_counter_and_the_equation_holds_on_the_page() -> None:
    ledger = replace(LEDGER, dropped={}, ambiguous=9)
    ledger.drop(DropReason.IN_DOUBT, 6)
    page = replace(EMPTY, ledger=ledger, buffer_rows=ledger.expected_buffered())

    def term(name: str) -> float:
        return value(page, f"rows_{name}")

    came = term("accepted") + term("recovered") + term("replayed")
    went = term("delivered") + term("quarantined") + term("unverified") + term("dead_lettered")
    dropped = values(page, "rows_dropped", "reason")
    assert (came, went, dropped) == (103.0, 72.0, {"shutdown": 0.0, "in_doubt": 6.0})
    assert came == went + sum(dropped.values()) + value(page, "buffer_rows")
    assert term("ambiguous") == 9.0


def test_the_equation_of_the_dead_letters_holds_on_the_page_too() -> None:
    ledger = replace(
        LEDGER,
        dead_lettered=30,
        letters_recovered=4,
        letters_deleted=3,
        letters_evicted=2,
        letters_lost_at_exit=1,
    )
    page = replace(EMPTY, ledger=ledger, letters_rows=ledger.expected_letters())

    def term(name: str) -> float:
        return value(page, f"letter_rows_{name}")

    went = term("deleted") + term("evicted") + term("lost_at_exit")
    assert (term("recovered"), went, value(page, "rows_replayed")) == (4.0, 6.0, 2.0)
    came = value(page, "rows_dead_lettered") + term("recovered")
    assert came == value(page, "rows_replayed") + went + value(page, "dead_letter_rows")


def test_losses_are_counted_from_zero_so_that_the_first_one_is_an_increase() -> None:
    assert values(EMPTY, "rows_dropped", "reason") == {str(reason): 0.0 for reason in DropReason}
    assert values(EMPTY, "dead_letters", "reason") == {str(reason): 0.0 for reason in LetterReason}


def test_rows_given_up_on_are_counted_by_reason() -> None:
    meters = Meters(0.0)
    meters.dead_letters[LetterReason.REJECTED] += 3
    counted = values(replace(EMPTY, meters=meters), "dead_letters", "reason")
    assert counted == {**{str(reason): 0.0 for reason in LetterReason}, "rejected": 3.0}


# Data sources.


def test_a_data_source_is_the_sum_of_its_destinations() -> None:
    page = replace(
        EMPTY, destinations=(facts("a", rows=1, age_s=5.0), facts("a", rows=2, age_s=9.0), facts("b", rows=4))
    )
    assert values(page, "datasource_rows_accepted", "datasource") == {"a": 17.0, "b": 11.0}
    assert values(page, "datasource_rows_delivered", "datasource") == {"a": 10.0, "b": 5.0}
    assert values(page, "datasource_rows_quarantined", "datasource") == {"a": 4.0, "b": 2.0}
    assert values(page, "datasource_rows_buffered", "datasource") == {"a": 3.0, "b": 4.0}
    assert values(page, "datasource_oldest_row_age_seconds", "datasource") == {"a": 9.0, "b": 0.0}


def test_guessed_names_share_one_label() -> None:
    guessed = tuple(facts(f"guess-{number}", rows=1, confirmed=False) for number in range(500))
    page = replace(EMPTY, destinations=(*guessed, facts("clicks", rows=2)))
    assert values(page, "datasource_rows_buffered", "datasource") == {UNCONFIRMED: 500.0, "clicks": 2.0}
    assert b"guess-" not in render(page)


def test_destinations_are_counted_by_state_the_empty_ones_too() -> None:
    page = replace(EMPTY, destinations=(facts("a"), facts("b", state=State.HELD), facts("c", state=State.HELD)))
    counted = values(page, "destinations", "state")
    assert counted == {"new": 0.0, "delivering": 1.0, "failing": 0.0, "throttled": 0.0, "held": 2.0}


def test_destinations_that_do_not_deliver_are_counted_by_cause_with_their_rows_and_the_other_causes_too() -> None:
    page = replace(
        EMPTY,
        destinations=(
            facts("a", rows=1000),
            facts("b", rows=2, state=State.HELD, status=403),
            facts("c", rows=3, state=State.HELD, status=508),
            facts("d", rows=0, state=State.HELD, status=404, refusing=404, confirmed=False),
            facts("e", rows=5, state=State.FAILING),
            facts("f", rows=7, state=State.FAILING, status=500),
            facts("g", rows=11, state=State.THROTTLED, status=429),
            facts("h", rows=13, age_s=10.0),
        ),
    )
    none = dict.fromkeys(map(str, Cause), 0.0)
    assert values(page, "destinations_not_delivering", "cause") == {
        **none,
        **{"held": 2.0, "refused": 1.0, "unreachable": 1.0, "failing": 1.0, "throttled": 1.0, "stalled": 1.0},
    }
    assert values(page, "rows_not_delivering", "cause") == {
        **none,
        **{"held": 5.0, "unreachable": 5.0, "failing": 7.0, "throttled": 11.0, "stalled": 13.0},
    }
    assert values(EMPTY, "destinations_not_delivering", "cause") == none
    assert values(EMPTY, "rows_not_delivering", "cause") == none


@pytest.mark.parametrize(
    "name", ['a"b', "a\\b", "a\\nb", "a b", "{}", "日本", 'a"} 1\ninjected{x="', "a\u2028b"], ids=ascii
)
def test_any_name_stands_in_a_label_as_it_is(name: str) -> None:
    page = replace(EMPTY, destinations=(facts(name, rows=3),))
    assert values(page, "datasource_rows_buffered", "datasource") == {name: 3.0}
    assert "injected" not in families(page)


# Histograms.


@pytest.mark.parametrize(
    ("meter", "name"), [("upstream_seconds", "upstream_seconds"), ("delivery_seconds", "delivery_seconds")]
)
def test_a_histogram_is_cumulative_and_complete(meter: str, name: str) -> None:
    meters = Meters(0.0)
    for observed in (0.005, 0.01, 0.3, 59.0, 100_000.0):
        getattr(meters, meter).observe(observed)
    samples = families(replace(EMPTY, meters=meters))[name].samples
    buckets = {float(s.labels["le"]): s.value for s in samples if s.name.endswith("_bucket")}
    assert list(buckets) == [*LATENCY_BOUNDS_S, math.inf]
    assert list(buckets.values()) == sorted(buckets.values())
    assert (buckets[0.01], buckets[0.25], buckets[0.5], buckets[60.0], buckets[math.inf]) == (2, 2, 3, 4, 5)
    totals = {s.name.removeprefix(PREFIX + name): s.value for s in samples if "le" not in s.labels}
    assert totals == {"_count": 5.0, "_sum": pytest.approx(100_059.315)}


# All of it.


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.builds(
            facts,
            st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=5),
            rows=st.integers(0, 9),
            confirmed=st.booleans(),
            state=st.sampled_from(State),
            age_s=st.none() | st.floats(0, 1e6),
        ),
        max_size=6,
    ),
    st.dictionaries(st.sampled_from(("http_400", "buffer_full", "draining")), st.integers(0, 9)),
)
def test_whatever_is_going_on_the_page_can_be_read(
    destinations: list[DestinationFacts], refused: dict[str, int]
) -> None:
    meters = Meters(0.0)
    meters.refused.update(refused)
    page = replace(EMPTY, destinations=destinations, meters=meters)
    found = families(page)
    confirmed = {f.data_source for f in destinations if f.confirmed}
    unconfirmed = {UNCONFIRMED} if any(not f.confirmed for f in destinations) else set()
    shown = {s.labels["datasource"] for family in found.values() for s in family.samples if "datasource" in s.labels}
    assert shown == confirmed | unconfirmed
    buffered = values(page, "datasource_rows_buffered", "datasource") if destinations else {}
    assert sum(buffered.values()) == sum(f.buffered_rows for f in destinations)
    assert sum(values(page, "destinations", "state").values()) == len(destinations)
    for family in found.values():
        keys = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in family.samples]
        assert len(set(keys)) == len(keys)
