"""What the cluster and the pods say, as values."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from tests.operator.clusters import TOKEN_HASH, report, stuck

from tinybird_proxy_operator.names import (
    DELETION_COST_ANNOTATION,
    DRAINING_LABEL,
    DRAINING_SINCE_ANNOTATION,
    UPGRADED_ANNOTATION,
)
from tinybird_proxy_operator.observed import DrainState, read_drain, read_pod, read_report, read_workload

EARLY, LATE = "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:01+00:00"


def read(body: Any) -> Any:
    return read_report(json.dumps(body).encode())


def test_a_report_has_the_buffer_and_the_token() -> None:
    found = read(report(rows=7, bytes=70, utilisation=0.5, oldest_age_s=1.5))
    assert (found.rows, found.size_bytes, found.utilisation, found.oldest_age_s) == (7, 70, 0.5, 1.5)
    assert (found.token_hash, found.stuck, found.stuck_rows) == (TOKEN_HASH, [], 0)


def test_rows_are_stuck_where_a_destination_says_why() -> None:
    body = stuck(5)
    flowing = {"data_source": "orders", "buffered_rows": 9, "sentence": "fine", "cause": None}
    empty = {"data_source": "visits", "buffered_rows": 0, "sentence": "down", "cause": "failing"}
    body["destinations"] += [flowing, empty]
    found = read(body)
    assert found.stuck_rows == 5
    assert found.stuck == ["clicks: Tinybird does not answer, the oldest row waits for 5 s."]


def test_rows_that_wait_because_tinybird_throttles_are_counted_apart() -> None:
    body = stuck(5)
    body["destinations"].append({"data_source": "a", "buffered_rows": 7, "sentence": "slow", "cause": "throttled"})
    assert (read(body).throttled_rows, read(body).stuck_rows) == (7, 12)


def test_answers_of_the_last_minute_are_none_where_a_proxy_does_not_count_them() -> None:
    assert (read(report()).replies_1m, read(report()).throttled_1m) == (0, 0)
    found = read({**report(), "upstream_requests": {"replies": {"200": 9}, "replies_1m": 40, "throttled_1m": 30}})
    assert (found.replies_1m, found.throttled_1m) == (40, 30)


@pytest.mark.parametrize(
    ("accepted_at", "denied_at", "accepted", "denied"),
    [
        (None, None, False, False),
        (EARLY, None, True, False),
        (None, EARLY, False, True),
        (EARLY, LATE, True, True),
        (LATE, EARLY, True, False),
    ],
)
def test_a_token_is_denied_if_that_came_after_its_last_acceptance(
    accepted_at: str | None, denied_at: str | None, accepted: bool, denied: bool
) -> None:
    found = read(report(accepted_at=accepted_at, denied_at=denied_at))
    assert (found.token_accepted, found.token_denied) == (accepted, denied)


def test_a_proxy_with_its_clients_tokens_has_none_of_its_own() -> None:
    found = read({**report(), "tokens": {"mode": "clients"}})
    assert (found.token_hash, found.token_accepted, found.token_denied) == (None, False, False)


@pytest.mark.parametrize("rejected", [True, False])
def test_a_candidate_is_rejected_or_not(rejected: bool) -> None:
    candidate = {"hash": "12345678", "since": None, "accepted_at": None, "denied_at": None, "rejected": rejected}
    found = read(report(candidate=candidate))
    assert found.candidate_rejected is rejected
    hashes = (None, "12345678") if rejected else ("12345678", None)
    assert (found.next_token_hash, found.rejected_token_hash) == hashes


@pytest.mark.parametrize("body", [None, [], {}, {**report(), "buffer": None}, {**report(), "destinations": {}}])
def test_what_is_no_report_is_an_error(body: Any) -> None:
    with pytest.raises(msgspec.DecodeError):
        read(body)


def workload(generation: int = 2, **status: Any) -> Any:
    return read_workload({"metadata": {"generation": generation}, "status": {"observedGeneration": 2, **status}})


def test_a_deployment_tells_which_upgrade_let_its_template_out() -> None:
    marked = {"metadata": {"annotations": {UPGRADED_ANNOTATION: "proxy:2"}}}
    assert (read_workload(marked).upgraded_to, workload().upgraded_to) == ("proxy:2", None)


def test_a_deployment_is_settled_when_all_its_pods_are_new_and_available() -> None:
    counts = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
    assert workload(**counts).settled
    assert not workload(3, **counts).settled
    assert not workload(**{**counts, "replicas": 3}).settled
    assert not workload(**{**counts, "availableReplicas": 1}).settled
    assert workload().settled  # no pods were asked for


def test_a_paused_deployment_counts_no_new_pod_as_available_so_those_that_are_ready_are() -> None:
    status = {"replicas": 3, "updatedReplicas": 1, "readyReplicas": 3, "availableReplicas": 2}
    for paused, available in ((True, 3), (False, 2)):
        found = read_workload({"metadata": {}, "spec": {"paused": paused}, "status": status})
        assert (found.paused, found.available) == (paused, available)


def test_a_deployment_without_a_status_was_not_seen_yet() -> None:
    found = read_workload({"metadata": {"generation": 1}})
    assert (found.generation_seen, found.ready, found.failed) == (False, 0, None)


@pytest.mark.parametrize(
    ("condition", "failed"),
    [
        ({"type": "ReplicaFailure", "status": "True", "message": "quota"}, "quota"),
        ({"type": "ReplicaFailure", "status": "False", "message": "quota"}, None),
        ({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "late"}, "late"),
        ({"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable", "message": "fine"}, None),
    ],
)
def test_a_deployment_says_why_it_failed(condition: dict[str, str], failed: str | None) -> None:
    assert workload(conditions=[condition]).failed == failed


def pod(*containers: dict[str, Any], ready: str = "True") -> Any:
    status = {"conditions": [{"type": "Ready", "status": ready}], "containerStatuses": list(containers)}
    return read_pod({"metadata": {"name": "p"}, "status": {**status, "podIP": "10.0.0.1"}}, None)


def test_a_pod_without_a_status_is_not_ready_and_has_no_address() -> None:
    found = read_pod({"metadata": {"name": "p"}}, None)
    assert (found.name, found.ip, found.ready, found.waiting, found.out_of_memory) == ("p", None, False, None, False)


@pytest.mark.parametrize(
    ("waiting", "said"),
    [
        ({"reason": "ImagePullBackOff", "message": "no such image"}, "ImagePullBackOff: no such image"),
        ({"reason": "CrashLoopBackOff"}, "CrashLoopBackOff"),
        ({"reason": "ContainerCreating"}, None),
        ({"reason": "PodInitializing"}, None),
        ({}, None),
    ],
)
def test_a_pod_says_what_it_waits_for_unless_that_is_ordinary(waiting: dict[str, str], said: str | None) -> None:
    assert pod({"state": {"waiting": waiting}}, ready="False").waiting == said


@pytest.mark.parametrize(
    ("container", "killed"),
    [
        ({"lastState": {"terminated": {"reason": "OOMKilled"}}, "state": {"running": {}}}, True),
        ({"state": {"terminated": {"reason": "OOMKilled"}}}, True),
        ({"lastState": {"terminated": {"reason": "Error"}}, "state": {"running": {}}}, False),
        ({}, False),
    ],
)
def test_a_pod_that_ran_out_of_memory_is_known(container: dict[str, Any], killed: bool) -> None:
    assert pod(container).out_of_memory is killed
    assert pod(container).ready


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ({"reason": "Error", "exitCode": 137, "message": '{"level": "info", "message": "ready"}'}, 137),
        ({"reason": "Error", "exitCode": 139}, 139),
        ({"reason": "Unknown", "exitCode": 255}, 255),  # its node was started again
        # It had SIGTERM, and what it could not deliver is counted.
        ({"reason": "Error", "exitCode": 137, "message": "3 rows were not delivered when this was written"}, None),
        ({"reason": "OOMKilled", "exitCode": 137}, None),
        ({"reason": "StartError", "exitCode": 128}, None),
        ({"reason": "Error", "exitCode": 2, "message": "The configuration has problems"}, None),
        ({"reason": "Completed", "exitCode": 0}, None),
    ],
)
def test_a_process_that_was_ended_without_last_words_is_known(end: dict[str, Any], status: int | None) -> None:
    again = {"name": "proxy", "lastState": {"terminated": end}, "state": {"running": {}}}
    assert pod(again).killed_with == status
    assert pod({"name": "proxy", "state": {"terminated": end}}).killed_with == status
    assert pod({**again, "name": "istio-proxy"}).killed_with is None


def test_a_proxy_says_whether_it_drains_refuses_and_delivers() -> None:
    plain = read(report())
    assert (plain.draining, plain.refusing, plain.delivered_rows_1m) == (False, False, None)
    drain = {"draining": True, "refusing": True, "rows_left": 3, "seconds_to_drain": 1.5}
    found = read({**report(), "drain": drain, "upstream_requests": {"replies": {"200": 1}, "delivered_rows_1m": 9}})
    assert (found.draining, found.refusing, found.delivered_rows_1m) == (True, True, 9)


@pytest.mark.parametrize(("draining", "rows"), [(True, 7), (False, 2)])
def test_a_proxy_that_drains_holds_the_rows_of_a_first_contact_too(draining: bool, rows: int) -> None:
    drain = {"draining": draining, "refusing": draining, "rows_left": 7}
    assert read({**report(rows=2), "drain": drain}).rows == rows
    assert read({**report(rows=9), "drain": drain}).rows == 9


def test_an_answer_about_a_drain_has_a_word_of_it() -> None:
    answer = b'{"draining": true, "refusing": false, "rows_left": 3, "seconds_to_drain": null}'
    assert read_drain(answer) == DrainState(draining=True, refusing=False, rows_left=3)
    for other in (b"{}", b"[]", b"no JSON", b'{"draining": "yes"}'):
        with pytest.raises(msgspec.DecodeError):
            read_drain(other)


@pytest.mark.parametrize(
    ("since", "cost", "found"),
    [
        ("2026-01-01T00:00:00Z", "-1000", (datetime(2026, 1, 1, tzinfo=UTC), -1000)),
        ("2026-01-01T00:00:00", "7", (datetime(2026, 1, 1, tzinfo=UTC), 7)),
        ("yesterday", "cheap", (None, 0)),
        (None, None, (None, 0)),
    ],
)
def test_a_pod_that_is_to_go_carries_it(since: str | None, cost: str | None, found: tuple[Any, int]) -> None:
    annotations = {DRAINING_SINCE_ANNOTATION: since, DELETION_COST_ANNOTATION: cost}
    annotations = {name: value for name, value in annotations.items() if value is not None}
    metadata = {"name": "p", "uid": "u", "resourceVersion": "9", "annotations": annotations}
    marked = read_pod({"metadata": {**metadata, "labels": {DRAINING_LABEL: "true"}}}, None)
    assert (marked.labelled, marked.draining_since, marked.deletion_cost) == (True, *found)
    assert (marked.uid, marked.resource_version, marked.terminating) == ("u", "9", False)
    assert read_pod({"metadata": {**metadata, "deletionTimestamp": "now"}}, None).terminating
    assert not read_pod({"metadata": metadata}, None).labelled


def test_a_workload_is_settled_when_none_is_unavailable_but_those_that_are_to_go() -> None:
    found = workload(conditions=[], replicas=3, updatedReplicas=3, availableReplicas=2)
    assert found.rolled_out
    assert not found.settled
    assert replace(found, draining=1).settled
    assert replace(found, draining=2).settled
    assert not replace(found, draining=1, updated=2).settled
