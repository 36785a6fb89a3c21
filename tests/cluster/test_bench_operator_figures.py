"""The arithmetic of the operator's benchmark; no cluster is needed."""

import json
from datetime import UTC, datetime
from typing import Any

from tests.e2e.bench_operator_figures import (
    Phase,
    Request,
    Usage,
    kinds_table,
    latencies,
    per_kind,
    percentile,
    requests,
    within,
)

USER = "system:serviceaccount:tinybird-system:operator"
WORKLOADS = "/apis/apps/v1/namespaces/bench-1/deployments"


def _line(uri: str, verb: str = "get", *, id: str = "1", user: str = USER, second: int = 1, **asked: str) -> str:
    entry: dict[str, Any] = {
        "auditID": id,
        "verb": verb,
        "requestURI": uri,
        "user": {"username": user, "extra": {"authentication.kubernetes.io/pod-name": ["operator-1"]}},
        "objectRef": {"resource": "deployments", "namespace": "bench-1", **asked},
        "responseStatus": {"code": 200},
        "requestReceivedTimestamp": f"2026-01-01T00:00:{second:02}.000000Z",
    }
    return json.dumps(entry)


def _at(second: int) -> datetime:
    return datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)


def _usage(second: int, holder: str = "operator-1_a", cpu_s: float = 0, reconciles: float = 0) -> Usage:
    return Usage(_at(second), holder, cpu_s, 80, 90, reconciles, reconciles / 10)


def _request(verb: str, resource: str, *, namespace: str = "bench-1", about: str = "", status: int = 200) -> Request:
    return Request(_at(1), "operator-1", verb, resource, namespace, about, status)


def test_a_request_is_for_the_resource_that_its_address_or_its_label_selector_names() -> None:
    child, listed = f"{WORKLOADS}/empty-0012-client", f"{WORKLOADS}?labelSelector=a%2Fproxy%3Dfilled-0003%2Cb"
    found = requests([_line(child, id="1"), _line(listed, "list", id="2"), _line(WORKLOADS, id="3")], USER)
    assert [each.about for each in found] == ["empty-0012", "filled-0003", ""]


def test_a_created_object_is_known_by_its_name_for_its_address_has_none() -> None:
    [found] = requests([_line(WORKLOADS, "create", name="empty-0001")], USER)
    assert found.about == "empty-0001"


def test_a_watch_that_is_told_of_twice_counts_once_and_others_do_not() -> None:
    lines = [
        _line(WORKLOADS, "watch"),
        _line(WORKLOADS, "watch"),
        _line(WORKLOADS, id="2", user=f"{USER}-2"),
        f"{USER} {{",
    ]
    assert len(requests(lines, USER)) == 1


def test_a_phase_has_the_requests_from_its_beginning_until_before_its_end() -> None:
    asked = requests([_line(WORKLOADS, id=str(second), second=second) for second in range(5)], USER)
    assert [each.received_at.second for each in within(asked, _at(1), _at(3))] == [1, 2]


def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed() -> None:
    values = [float(value) for value in range(200, 0, -1)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (100, 198, 200)
    assert percentile([7.0], 50) == 7


def test_without_a_measurement_there_are_no_latencies() -> None:
    assert latencies([]) == {"count": 0}


def test_a_phase_tells_its_rates_and_what_was_written_and_refused_here() -> None:
    asked = [
        _request("get", "deployments", status=404),
        _request("patch", "tinybirdproxies/status", about="empty-0000"),
        _request("create", "services", status=409),
        _request("update", "leases", namespace="tinybird-system"),
    ]
    figures = Phase("idle", _usage(0, cpu_s=1, reconciles=5), _usage(2, cpu_s=2, reconciles=15), asked).figures(
        "bench-1"
    )
    assert (figures["requests_per_s"], figures["elsewhere_per_s"]) == (1.5, 0.5)
    assert (figures["writes"], figures["status_writes"], figures["refused"]) == (2, 1, 1)
    assert (figures["cpu_s"], figures["cpu_percent"], figures["reconciles"]) == (1, 50, 10)
    assert figures["reconcile_ms"] == 100


def test_counters_of_two_leaders_are_not_subtracted() -> None:
    phase = Phase("idle", _usage(0), _usage(1, holder="operator-2_b"), [])
    assert not phase.is_good
    assert "cpu_s" not in phase.figures("bench-1")


def test_requests_are_shared_among_the_resources_they_were_for() -> None:
    asked = [_request("get", "deployments", about=f"empty-000{number}") for number in range(4)]
    asked += [_request("get", "secrets"), _request("update", "leases", namespace="tinybird-system")]
    counts = per_kind(asked, "bench-1")
    _, *lines = kinds_table(counts, 30, {"empty": 4, "filled": 1})
    assert [line.split() for line in lines] == [
        ["get", "deployments", "empty", "4", "0.13", "2.00"],
        ["get", "secrets", "namespace", "1", "0.03", "-"],
        ["update", "leases", "elsewhere", "1", "0.03", "-"],
    ]
