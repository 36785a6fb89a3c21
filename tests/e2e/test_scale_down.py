"""Less pods: a pod goes only when it holds no row, whoever is stopped, frozen or started anew meanwhile."""

import signal
import time
from typing import Any, Final

import pytest
from tests.e2e.kubectl import OPERATOR_NAMESPACE, Namespace, operator_pods, token_secret, until
from tests.e2e.processes import container, process

DOWN: Final = {"status": 503}
DRAINING: Final = "tinybird-proxy.io/draining"
# Five pods beside those of other tests, on a machine with two processors.
SMALL: Final = {"resources": {"requests": {"cpu": "20m", "memory": "64Mi"}}}


def _deployed(namespace: Namespace, replicas: int, **drain: Any) -> list[str]:
    drain = {"shutdownTimeoutSeconds": 15, **drain}
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(replicas=replicas, drain=drain, pod=SMALL))
    namespace.wait_ready()
    return namespace.pods()


def _scale(namespace: Namespace, replicas: int) -> None:
    namespace.kubectl("scale", "tinybirdproxy/events", f"--replicas={replicas}")


def _replicas(namespace: Namespace) -> int:
    """Of the Deployment."""
    return int(namespace.get("deployment", "events")["spec"]["replicas"])


def _victims(namespace: Namespace) -> list[str]:
    return sorted(
        pod["metadata"]["name"] for pod in namespace.find("pods", f"tinybird-proxy.io/proxy=events,{DRAINING}")
    )


def _fill(namespace: Namespace, rows: int) -> list[str]:
    """Rows that stay in the pods, some in each."""
    namespace.faults(DOWN)
    ids = [f"kept-{number}" for number in range(rows)]
    namespace.spread(*ids)
    held = namespace.pods_rows()
    assert all(held.values()), held
    return ids


def _until_drained_to(namespace: Namespace, replicas: int) -> None:
    until(f"{replicas} pods", lambda: _replicas(namespace) == replicas == len(namespace.pods()), timeout_s=60)
    namespace.until_condition("Ready", "True", "Ready")
    until("no pod drains", lambda: not _victims(namespace))


@pytest.mark.timeout(240)
def test_pods_that_cannot_deliver_stay_until_they_can_and_nothing_is_lost(namespace: Namespace) -> None:
    pods = _deployed(namespace, 5, deadlineSeconds=10)
    ids = _fill(namespace, 60)
    down_since = time.monotonic()
    _scale(namespace, 1)
    until("four victims", lambda: len(_victims(namespace)) == 4)
    status = namespace.get("tbp", "events")["status"]
    assert status["selector"].endswith(f",!{DRAINING}")
    message = namespace.until_condition("Draining", "False", "DrainDeadlineExceeded", timeout_s=40)
    print(message)
    assert "10 s" in message
    until("nobody drains", lambda: not _victims(namespace))
    namespace.until_condition("Ready", "True", "Ready", timeout_s=40)
    until("40 s are over", lambda: time.monotonic() - down_since > 40, timeout_s=60)
    assert namespace.pods() == pods
    assert _replicas(namespace) == 5
    namespace.faults()
    _until_drained_to(namespace, 1)
    namespace.until_arrived(*ids)
    assert len(namespace.rows()) == len(set(namespace.rows()))
    assert not namespace.events("WrongPodRemoved")


def test_rows_are_given_up_at_the_deadline_where_the_resource_says_so_and_an_event_counts_them(
    namespace: Namespace,
) -> None:
    _deployed(namespace, 2, deadlineSeconds=4, onDeadline="Drop", shutdownTimeoutSeconds=10)
    _fill(namespace, 20)
    _scale(namespace, 1)
    until("one pod", lambda: _replicas(namespace) == 1, timeout_s=40)
    [message] = until("the Event", lambda: namespace.events("RowsDropped"))
    print(message)
    assert not namespace.events("WrongPodRemoved")


def test_a_number_that_rises_again_cancels_the_drains(namespace: Namespace) -> None:
    pods = _deployed(namespace, 3)
    ids = _fill(namespace, 30)
    _scale(namespace, 1)
    until("two victims", lambda: len(_victims(namespace)) == 2)
    namespace.until_condition("Draining", "True", "ScalingDown")
    until("they are unready", lambda: namespace.get("deployment", "events")["status"].get("readyReplicas") == 1)
    _scale(namespace, 3)
    until("nobody drains", lambda: not _victims(namespace))
    namespace.wait_ready()
    assert namespace.pods() == pods
    assert namespace.restarts() == 0
    namespace.faults()
    namespace.until_arrived(*ids)


def test_a_victim_that_is_started_anew_drains_again_and_then_goes(namespace: Namespace) -> None:
    _deployed(namespace, 2, deadlineSeconds=120)
    namespace.faults({"delay_s": 9})
    ids = [f"slow-{number}" for number in range(20)]
    namespace.spread(*ids)
    _scale(namespace, 1)
    [victim] = until("a victim", lambda: _victims(namespace))
    # The process delivers what it has before it ends, and another begins in its place.
    namespace.kubectl("exec", victim, "--", "python", "-c", "import os; os.kill(1, 15)")
    until("another process", lambda: namespace.restarts() or _replicas(namespace) == 1, timeout_s=40)
    namespace.faults()
    _until_drained_to(namespace, 1)
    assert victim not in namespace.pods()
    namespace.until_arrived(*ids)


@pytest.mark.control_plane
def test_beside_a_pod_that_does_not_answer_no_full_one_goes(namespace: Namespace) -> None:
    pods = _deployed(namespace, 3, deadlineSeconds=120)
    ids = _fill(namespace, 30)
    with process(namespace.get("pod", pods[0])) as send:
        send(signal.SIGSTOP)
        try:
            until("it is unready", lambda: not container(namespace.get("pod", pods[0]))["ready"])
            _scale(namespace, 2)
            until("it is the victim", lambda: _victims(namespace) == [pods[0]])
            message = namespace.until_condition("Draining", "True", "ScalingDown")
            until("it is told", lambda: pods[0] in namespace.condition("Draining")[2])
            print(message)
            assert (_replicas(namespace), namespace.pods()) == (3, pods)
        finally:
            send(signal.SIGCONT)
    namespace.faults()
    _until_drained_to(namespace, 2)
    assert namespace.pods() == pods[1:]
    namespace.until_arrived(*ids)


@pytest.mark.alone
@pytest.mark.control_plane
def test_a_drain_goes_on_under_another_leader(namespace: Namespace) -> None:
    _deployed(namespace, 3, deadlineSeconds=120)
    ids = _fill(namespace, 30)
    _scale(namespace, 1)
    victims = until("two victims", lambda: found if len(found := _victims(namespace)) == 2 else [])
    system = Namespace(OPERATOR_NAMESPACE)
    leader = str(system.get("lease", "tinybird-proxy-operator")["spec"]["holderIdentity"])
    with process(system.get("pod", leader.rpartition("_")[0])) as send:
        send(signal.SIGKILL)
    namespace.faults()
    _until_drained_to(namespace, 1)
    assert not set(victims) & set(namespace.pods())
    namespace.until_arrived(*ids)
    until("two operators", lambda: len([pod for pod in operator_pods() if container(pod)["ready"]]) == 2, timeout_s=60)
