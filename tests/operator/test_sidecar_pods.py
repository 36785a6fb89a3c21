"""Pods that ask for a sidecar, read and evicted."""

from typing import Any

from tests.operator.app_pods import app_pod
from tests.operator.clusters import Cluster
from tests.operator.test_sidecar_looks import look

EVICT: dict[str, Any] = {"sidecar": {"rollout": "Evict"}}


async def evicting(cluster: Cluster, *names: str) -> None:
    """Pods without a sidecar of a resource that makes them current."""
    cluster.secret()
    await look(cluster, {})
    for name in names:
        cluster.api.put(app_pod(name, ip=None))
    cluster.resource({"mode": "Sidecar", "tinybird": {"tokenSecretRef": {"name": "tinybird"}}, **EVICT})


async def test_one_at_a_time_is_evicted_and_told(cluster: Cluster) -> None:
    await evicting(cluster, "a", "b")
    await cluster.reconcile()
    assert cluster.api.names("Pod") == ["b"]
    assert ("Normal", "Evicted") in [(kind, reason) for kind, reason, _ in cluster.told()]
    [evicted] = [each for each in cluster.api.asked if each.path.endswith("/eviction")]
    assert evicted.body is not None
    assert evicted.body["deleteOptions"] == {"preconditions": {"uid": "uid-a"}}
    await cluster.reconcile()
    assert cluster.api.names("Pod") == ["b"]
    cluster.api.put(app_pod("c", hash=cluster.status()["sidecar"]["hash"], ip=None))
    await cluster.reconcile()
    assert cluster.api.names("Pod") == ["c"]


async def test_a_budget_is_waited_out_and_told(cluster: Cluster) -> None:
    await evicting(cluster, "a")
    cluster.api.fail(429, path="/eviction", message="Cannot evict pod as it would violate the pod's disruption budget.")
    await cluster.reconcile()
    assert cluster.api.names("Pod") == ["a"]
    assert "Deployment app: an eviction waits" in cluster.message("SidecarsCurrent")
    await cluster.reconcile()
    assert cluster.api.names("Pod") == []


async def test_another_pod_of_the_same_name_is_left_alone(cluster: Cluster) -> None:
    await evicting(cluster, "a")
    cluster.api.fail(409, path="/eviction")
    await cluster.reconcile()
    assert cluster.api.names("Pod") == ["a"]


async def test_a_right_that_is_missing_is_told(cluster: Cluster) -> None:
    await evicting(cluster, "a")
    cluster.api.fail(403, path="/eviction", message="pods/eviction is forbidden")
    await cluster.reconcile()
    assert "EvictionRefused" in [reason for _, reason, _ in cluster.told()]


async def test_that_evicting_does_not_help_is_told_and_not_repeated_at_once(cluster: Cluster) -> None:
    await evicting(cluster, "a")
    await cluster.reconcile()
    cluster.api.put(app_pod("b", ip=None))
    cluster.clock.seconds += 10
    await cluster.reconcile()
    assert cluster.api.names("Pod") == ["b"]
    assert "EvictionUseless" in [reason for _, reason, _ in cluster.told()]
    assert "has no sidecar either" in cluster.message("SidecarsCurrent")


async def test_a_role_that_may_not_read_namespaces_finds_the_pods_that_ask_themselves(cluster: Cluster) -> None:
    cluster.secret()
    cluster.api.put(app_pod("asks", ip=None))
    cluster.api.fail(403, path="/namespaces/shop$", times=9)
    assert (await look(cluster, {}))["sidecars"]["missed"] == 1
