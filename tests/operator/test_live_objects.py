"""Deployments and pods as the API server gives them, as values."""

from datetime import UTC, datetime
from typing import Any

import pytest

from tinybird_proxy_operator.live_objects import read_pod, read_workload
from tinybird_proxy_operator.names import (
    DELETION_COST_ANNOTATION,
    DRAINING_LABEL,
    DRAINING_SINCE_ANNOTATION,
    UPGRADED_ANNOTATION,
)


def workload(generation: int = 2, **status: Any) -> Any:
    return read_workload({"metadata": {"generation": generation}, "status": {"observedGeneration": 2, **status}})


def test_a_deployment_tells_which_upgrade_let_its_template_out() -> None:
    marked = {"metadata": {"annotations": {UPGRADED_ANNOTATION: "proxy:2"}}}
    assert (read_workload(marked).upgraded_to, workload().upgraded_to) == ("proxy:2", None)


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
