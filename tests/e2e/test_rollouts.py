"""Pods are replaced under load, and no row that was taken is lost."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from tests.e2e.kubectl import Namespace, run, token_secret, until


def _evict(namespace: Namespace, pod: str) -> str:
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    path = f"/api/v1/namespaces/{namespace.name}/pods/{pod}/eviction"
    return namespace.kubectl("create", "--raw", path, "--filename", "-", stdin=json.dumps(eviction))


def _has_successor(namespace: Namespace, pod: str) -> bool:
    pods = namespace.pods()
    return pod not in pods and len(pods) == 2


def test_a_rolling_update_under_load_loses_nothing(namespace: Namespace) -> None:
    spec = {"replicas": 2}
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(**spec))
    namespace.wait_ready()
    before = set(namespace.pods())
    with namespace.load() as said:
        namespace.apply(
            namespace.forwarding_to_tinybird(**spec, pod={"env": [{"name": "LOG_LEVEL", "value": "warning"}]})
        )
        until("two other pods", lambda: len(now := set(namespace.pods())) == 2 and not now & before, timeout_s=60)
        namespace.until_condition("Progressing", "False", "UpToDate")
        until("the old ones are gone", lambda: len(namespace.find("pods", "tinybird-proxy.io/proxy=events")) == 2)
    namespace.all_arrived(said)


def test_every_pod_evicted_one_after_the_other_under_load_loses_nothing(namespace: Namespace) -> None:
    spec = {"replicas": 2}
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(**spec))
    namespace.wait_ready()
    before = namespace.pods()
    with namespace.load() as said:
        for pod in before:
            # The budget answers 429 until the one before it has been replaced.
            until(f"the eviction of {pod}", partial(_evict, namespace, pod), timeout_s=40)
            until("its successor", partial(_has_successor, namespace, pod))
            namespace.kubectl("rollout", "status", "deployment/events", "--timeout=40s")
        until("the old ones are gone", lambda: len(namespace.find("pods", "tinybird-proxy.io/proxy=events")) == 2)
    assert not set(before) & set(namespace.pods())
    namespace.all_arrived(said)


def test_a_changed_template_is_held_back_while_tinybird_is_down_and_nothing_is_lost(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    pods = namespace.pods()
    namespace.faults({"status": 503})
    namespace.post("a", "b", "c")
    namespace.until_condition("BufferHealthy", "False", "NotDelivering", timeout_s=40)
    changed = namespace.forwarding_to_tinybird(pod={"env": [{"name": "LOG_LEVEL", "value": "warning"}]})
    namespace.apply(changed)
    message = namespace.until_condition("Progressing", "False", "RolloutHeld")
    assert "3 rows" in message
    assert namespace.pods() == pods
    namespace.faults()
    namespace.until_arrived("a", "b", "c", timeout_s=60)
    until(
        "the changed template goes out", lambda: namespace.pods() != pods and len(namespace.pods()) == 1, timeout_s=40
    )
    namespace.until_condition("Progressing", "False", "UpToDate")
    assert namespace.rows() == ["a", "b", "c"]


@contextmanager
def _node_for_changed_pods(namespace: Namespace) -> Iterator[tuple[str, Callable[[], None]]]:
    """A label that no node has, and what gives it to all; none has it afterwards."""
    label = f"tinybird-proxy.io/{namespace.name}"
    try:
        yield label, lambda: print(run("kubectl", "label", "nodes", "--all", f"{label}=yes"))
    finally:
        run("kubectl", "label", "nodes", "--all", f"{label}-")


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_outage_half_way_through_a_rollout_stops_it_and_the_old_pods_keep_their_rows(
    namespace: Namespace, replicas: int
) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(replicas=replicas))
    namespace.wait_ready()
    old = set(namespace.pods())
    with _node_for_changed_pods(namespace) as (label, let_them_start):
        namespace.patch("tinybirdproxy", "events", {"spec": {"pod": {"nodeSelector": {label: "yes"}}}})
        until("the first new pod, which has no node", lambda: set(namespace.pods()) - old)
        namespace.faults({"status": 503})
        ids = [f"kept-{number}" for number in range(20)]
        namespace.spread(*ids)
        message = namespace.until_condition("Progressing", "False", "RolloutHeld", timeout_s=60)
        print(message)
        let_them_start()
        until("the new pod is ready", lambda: _ready_but(namespace, old), timeout_s=40)
        assert old < set(namespace.pods()), f"{old} became {namespace.pods()}"
        namespace.faults()
        namespace.until_condition("Progressing", "False", "UpToDate", timeout_s=90)
        assert not old & set(namespace.pods())
    namespace.until_arrived(*ids)


def _ready_but(namespace: Namespace, others: set[str]) -> list[str]:
    """Names of pods that are ready, and none of these."""
    pods = namespace.find("pods", "tinybird-proxy.io/proxy=events")
    ready = [
        pod["metadata"]["name"]
        for pod in pods
        if any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))
    ]
    return sorted(set(ready) - others)
