"""Deleting a TinybirdProxy and the operator: what is waited for, and that nothing hangs."""

import json
import time
from typing import Any, Final

import pytest
from tests.e2e.kubectl import (
    OPERATOR,
    OPERATOR_NAMESPACE,
    Namespace,
    install_operator,
    operator_pods,
    run,
    token_secret,
    until,
)

FINALIZER: Final = "tinybird-proxy.io/drain"
DOWN: Final = {"status": 503}


def _deployed(namespace: Namespace, **spec: Any) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(**spec))
    namespace.wait_ready()
    until("the finalizer", lambda: FINALIZER in namespace.get("tbp", "events")["metadata"].get("finalizers", []))


def _gone(namespace: Namespace) -> bool:
    return not namespace.find("tbp")


def _reasons(namespace: Namespace) -> set[str]:
    return {event["reason"] for event in namespace.find("events")}


def test_an_idle_proxy_is_deleted_at_once(namespace: Namespace) -> None:
    _deployed(namespace)
    began = time.monotonic()
    namespace.kubectl("delete", "tbp", "events", "--wait", "--timeout=20s")
    print(f"deleted after {time.monotonic() - began:.1f} s")
    until("no Deployment", lambda: not namespace.find("deployments"))


def test_what_was_taken_is_delivered_before_the_workload_goes(namespace: Namespace) -> None:
    _deployed(namespace, replicas=2)
    with namespace.load() as said:
        until("rows in Tinybird", lambda: len(namespace.rows()) > 60)
        namespace.kubectl("delete", "tbp", "events", "--wait=false")
        until("it is gone", lambda: _gone(namespace), timeout_s=40)
    namespace.all_arrived(said)


def test_rows_that_cannot_be_delivered_keep_it_until_they_can(namespace: Namespace) -> None:
    _deployed(namespace, drain={"deadlineSeconds": 3, "shutdownTimeoutSeconds": 15})
    namespace.faults(DOWN)
    namespace.post("kept")
    namespace.kubectl("delete", "tbp", "events", "--wait=false")
    message = namespace.until_condition("Draining", "False", "DrainDeadlineExceeded")
    assert "1 row is left in 1 pods." in message
    assert "tinybird-proxy.io/delete=now" in message
    assert namespace.get("tbp", "events")["status"]["draining"][0]["rows"] == 1
    namespace.faults()
    until("it is gone", lambda: _gone(namespace), timeout_s=40)
    namespace.until_arrived("kept")


@pytest.mark.parametrize("way", ["annotation", "onDeadline"])
def test_rows_are_given_up_when_somebody_says_so_and_an_event_tells_them(namespace: Namespace, way: str) -> None:
    drop = {"onDeadline": "Drop"} if way == "onDeadline" else {}
    _deployed(namespace, drain={"deadlineSeconds": 5, "shutdownTimeoutSeconds": 10, **drop})
    namespace.faults(DOWN)
    namespace.post("lost")
    namespace.kubectl("delete", "tbp", "events", "--wait=false")
    if way == "annotation":
        until("rows in the status", lambda: namespace.get("tbp", "events")["status"]["buffer"]["rows"] == 1)
        namespace.kubectl("annotate", "tbp", "events", "tinybird-proxy.io/delete=now")
    until("it is gone", lambda: _gone(namespace), timeout_s=40)
    until("the Event", lambda: "RowsDropped" in _reasons(namespace))


def test_foreground_deletion_and_that_of_the_namespace_do_not_wait_for_the_operator(namespace: Namespace) -> None:
    _deployed(namespace, drain={"shutdownTimeoutSeconds": 10})
    namespace.faults(DOWN)
    namespace.post("lost")
    namespace.kubectl("delete", "tbp", "events", "--cascade=foreground", "--wait", "--timeout=60s")
    _deployed(namespace, drain={"shutdownTimeoutSeconds": 10})
    namespace.faults()
    run("kubectl", "delete", "namespace", namespace.name, "--wait", "--timeout=80s")


def test_a_foreground_deletion_leaves_the_pods_the_time_to_deliver(namespace: Namespace) -> None:
    _deployed(namespace, batch={"flushIntervalMilliseconds": 60_000})
    namespace.post("first")  # an unknown data source is asked about at once
    namespace.post("in the buffer")
    assert "in the buffer" not in namespace.rows()
    namespace.kubectl("delete", "tbp", "events", "--cascade=foreground", "--wait", "--timeout=60s")
    namespace.until_arrived("in the buffer")


def test_orphaned_pods_go_on_serving(namespace: Namespace) -> None:
    _deployed(namespace)
    token, [pod] = namespace.client_token(), namespace.pods()
    namespace.kubectl("delete", "tbp", "events", "--cascade=orphan", "--wait", "--timeout=20s")
    namespace.post("after", token=token)
    namespace.until_arrived("after")
    assert namespace.pods() == [pod]
    namespace.kubectl("delete", "deployment,service,secret,networkpolicy,pdb,serviceaccount", "--all", "--wait=false")


def test_a_proxy_that_never_started_is_deleted_at_once(namespace: Namespace) -> None:
    namespace.apply(
        namespace.forwarding_to_tinybird(image="ghcr.io/tinybird-proxy/tinybird-proxy:no-such-tag"), token_secret()
    )
    until("a pod that waits", lambda: "PodsFailing" in namespace.condition("Degraded")[1])
    namespace.kubectl("delete", "tbp", "events", "--wait", "--timeout=20s")


def test_unmanaged_it_has_no_finalizer(namespace: Namespace) -> None:
    _deployed(namespace)
    namespace.patch("tbp", "events", {"spec": {"managementState": "Unmanaged"}})
    until("none", lambda: FINALIZER not in namespace.get("tbp", "events")["metadata"].get("finalizers", []))


@pytest.mark.alone
def test_an_uninstall_leaves_what_runs_and_everything_can_be_deleted_and_adopted_again(namespace: Namespace) -> None:
    _deployed(namespace)
    pods, left = namespace.pods(), Namespace(OPERATOR_NAMESPACE)
    run("helm", "uninstall", OPERATOR, "--namespace", OPERATOR_NAMESPACE, "--wait", "--timeout", "120s", timeout_s=150)
    try:
        assert not namespace.get("tbp", "events")["metadata"].get("finalizers")
        assert not operator_pods()
        for kind in ("jobs", "serviceaccounts", "roles", "rolebindings"):
            assert not [each for each in left.find(kind) if "pre-delete" in each["metadata"]["name"]], kind
        roles = json.loads(run("kubectl", "get", "clusterroles,clusterrolebindings", "--output", "json"))["items"]
        assert not [each for each in roles if each["metadata"]["name"] == f"{OPERATOR}-release"]
        namespace.post("meanwhile")
        namespace.until_arrived("meanwhile")
    finally:
        install_operator()
    until("the finalizer", lambda: FINALIZER in namespace.get("tbp", "events")["metadata"].get("finalizers", []))
    namespace.wait_ready()
    assert namespace.pods() == pods
