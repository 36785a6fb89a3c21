"""The operator's leader goes, in every way in which one can: another leads, and two never write at once."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import Event, Thread
from typing import Any

import pytest
from tests.e2e.audit import AuditLog, Write
from tests.e2e.kubectl import (
    OPERATOR,
    OPERATOR_CHART,
    OPERATOR_NAMESPACE,
    OPERATOR_VALUES,
    Namespace,
    install_operator,
    operator_pods,
    run,
    token_secret,
    until,
)
from tests.e2e.processes import container, process

from tinybird_proxy_operator.__main__ import LEASE_LOST_STATUS

pytestmark = pytest.mark.alone

SYSTEM = Namespace(OPERATOR_NAMESPACE)


@pytest.fixture(autouse=True)
def _two_pods() -> Iterator[None]:
    """Before, and again afterwards, for the tests that follow."""
    _wait_for_two_pods()
    yield
    _wait_for_two_pods()


@pytest.fixture
def proxy(namespace: Namespace) -> Namespace:
    """With a TinybirdProxy that is Ready."""
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    namespace.until_condition("Progressing", "False", "UpToDate")
    return namespace


@pytest.fixture
def proxy_without_pods(namespace: Namespace) -> Namespace:
    """Where pods are not what it is about."""
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(replicas=0))
    namespace.wait_ready()
    return namespace


@pytest.mark.control_plane
def test_a_killed_leader_is_followed_by_the_other_and_comes_back_as_a_candidate(proxy: Namespace) -> None:
    pods, killed = proxy.pods(), _leader()
    with process(SYSTEM.get("pod", _pod(killed))) as send:
        send(signal.SIGKILL)
    began = time.monotonic()
    _set_port(proxy, 8080)
    until("another leader", lambda: _holder() not in ("", killed))
    print(f"another leads after {time.monotonic() - began:.1f} s")
    assert _pod(_holder()) == _other_pod(killed)
    _until_port(proxy, 8080)
    assert _until_it_is_back_as_a_candidate(killed, leader=_holder()) == 128 + signal.SIGKILL
    proxy.until_condition("Ready", "True", "Ready")
    assert proxy.pods() == pods


@pytest.mark.control_plane
def test_a_frozen_leader_writes_nothing_once_another_has_and_ends_when_it_wakes(proxy: Namespace) -> None:
    pods, frozen, log = proxy.pods(), _leader(), AuditLog()
    other = _other_pod(frozen)

    def work(pod: str) -> list[Write]:
        return [write for write in _writes(log, pod) if write.resource != "leases"]

    # There is always something to write, so that one of them is frozen with its hands full, and wakes like that.
    with _port_changes(proxy) as ports:
        until("the leader at work", lambda: len(work(_pod(frozen))) > 4)
        with process(SYSTEM.get("pod", _pod(frozen))) as send:
            send(signal.SIGSTOP)
            try:
                until("work of the other", lambda: work(other))
            finally:
                send(signal.SIGCONT)
        status = _until_it_is_back_as_a_candidate(frozen, leader=_holder())
    assert status == LEASE_LOST_STATUS
    assert _pod(_holder()) == other
    _until_port(proxy, ports[-1])
    proxy.until_condition("Ready", "True", "Ready")
    assert proxy.pods() == pods
    first = work(other)[0]
    late = [str(write) for write in _writes(log, _pod(frozen)) if write.answered_at > first.received_at]
    last = max(write.answered_at for write in _writes(log, _pod(frozen)))
    print(f"the old leader's last write: {last:%H:%M:%S.%f}; the new one's first: {first}; late: {late}")
    assert len(late) <= 1, late
    refused = [write for write in _writes(log, other) if write.status >= 400]
    print("what the new leader was refused:", *map(str, refused), sep="\n")


def test_a_deleted_leader_hands_the_lease_over(proxy_without_pods: Namespace) -> None:
    deleted = _leader()
    with SYSTEM.watched("lease", OPERATOR, ".spec.holderIdentity") as versions:
        began = time.monotonic()
        SYSTEM.kubectl("delete", "pod", _pod(deleted), "--wait=false")
        leader = until("another leader", lambda: "" if (holder := _holder()) == deleted else holder, every_s=0.1)
        print(f"another leads after {time.monotonic() - began:.1f} s")
    assert _pod(leader) != _pod(deleted)
    # Nobody waited until it ran out: it was released, and then taken.
    [after, *_] = [holder for [holder] in versions if holder != deleted]
    assert after == ""
    _set_port(proxy_without_pods, 8080)
    _until_port(proxy_without_pods, 8080)


def test_an_upgrade_to_an_image_that_cannot_be_had_leaves_the_leader_at_work(proxy_without_pods: Namespace) -> None:
    leader, before = _leader(), _names(operator_pods())
    where = ("--namespace", OPERATOR_NAMESPACE, "--timeout", "60s")
    try:
        run("helm", "upgrade", OPERATOR, OPERATOR_CHART, *where, *OPERATOR_VALUES, "--set", "image.tag=no-such")
        until("a pod without an image", lambda: any("Image" in _waiting(pod) for pod in operator_pods()))
        assert before < _names(operator_pods())
        _set_port(proxy_without_pods, 8080)
        _until_port(proxy_without_pods, 8080)
        assert _holder() == leader
    finally:
        install_operator()
    until("the pods of before, and no other", lambda: _names(operator_pods()) == before)
    assert _holder() == leader
    _set_port(proxy_without_pods, 8081)
    _until_port(proxy_without_pods, 8081)


# What a test does to the resource.


def _set_port(namespace: Namespace, port: int) -> None:
    namespace.patch("tinybirdproxy", "events", {"spec": {"service": {"port": port}}})


def _until_port(namespace: Namespace, port: int) -> None:
    until(f"port {port}", lambda: namespace.get("service", "events")["spec"]["ports"][0]["port"] == port)


@contextmanager
def _port_changes(namespace: Namespace) -> Iterator[list[int]]:
    """One change after the other meanwhile; the ports that were asked for."""
    asked: list[int] = []
    ended, failures = Event(), list[Exception]()

    def change() -> None:
        try:
            for port in count(8001):
                if ended.is_set():
                    return
                _set_port(namespace, port)
                asked.append(port)
        except Exception as error:  # noqa: BLE001 - it is raised below
            failures.append(error)

    thread = Thread(target=change)
    thread.start()
    try:
        yield asked
    finally:
        ended.set()
        thread.join()
    assert not failures, failures


# The operator's Lease, pods and processes.


def _holder() -> str:
    """Who holds the Lease now: a pod's name and what tells a restarted container from the one before."""
    return str(SYSTEM.get("lease", OPERATOR)["spec"].get("holderIdentity") or "")


def _leader() -> str:
    """Who leads, once that is somebody who runs."""

    def held() -> str:
        return holder if _pod(holder := _holder()) in _names(operator_pods()) else ""

    return until("a leader", held)


def _pod(holder: str) -> str:
    return holder.rpartition("_")[0]


def _other_pod(holder: str) -> str:
    [other] = _names(operator_pods()) - {_pod(holder)}
    return other


def _names(pods: list[dict[str, Any]]) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


def _waiting(pod: dict[str, Any]) -> str:
    """Why its container does not run yet."""
    states = [each["state"] for each in pod["status"].get("containerStatuses", [])]
    return " ".join(state.get("waiting", {}).get("reason", "") for state in states)


def _wait_for_two_pods() -> None:
    SYSTEM.kubectl("rollout", "status", f"deployment/{OPERATOR}", "--timeout=80s")
    until("two pods", lambda: len(operator_pods()) == 2 and all(container(pod)["ready"] for pod in operator_pods()))


def _writes(log: AuditLog, pod: str) -> list[Write]:
    return [write for write in log.writes(f"{OPERATOR_NAMESPACE}:{OPERATOR}") if write.pod == pod]


def _until_it_is_back_as_a_candidate(holder: str, *, leader: str) -> int:
    """The exit status with which the container of ``holder`` ended before."""
    waits = f"waiting for the lease {OPERATOR_NAMESPACE}/{OPERATOR}, which is held by {leader}"

    def is_back() -> bool:
        lines = SYSTEM.kubectl("logs", _pod(holder)).splitlines()
        messages = [json.loads(line)["message"] for line in lines if line.startswith("{")]
        return bool(_last_state(holder)) and waits in messages

    until(f"{_pod(holder)} is back as a candidate", is_back, timeout_s=60)
    return int(_last_state(holder)["terminated"]["exitCode"])


def _last_state(holder: str) -> dict[str, Any]:
    found: dict[str, Any] = container(SYSTEM.get("pod", _pod(holder))).get("lastState", {})
    return found
