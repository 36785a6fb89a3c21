"""Pods that ask for a sidecar, read and evicted."""

import asyncio
import socket
from typing import Any

import pytest
from tests.operator.app_pods import app_pod
from tests.operator.clusters import Cluster
from tests.operator.test_sidecar_looks import look

from tinybird_proxy_operator import sidecar_pods
from tinybird_proxy_operator.names import INJECT_LABEL
from tinybird_proxy_operator.sidecars.eviction import AT_ONCE

EVICT: dict[str, Any] = {"sidecar": {"rollout": "Evict"}}
# Of a Deployment.
ASKS: dict[str, Any] = {"template": {"metadata": {"labels": {INJECT_LABEL: "events"}}}}


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


async def test_budgets_that_let_nobody_go_do_not_keep_other_owners_waiting(cluster: Cluster) -> None:
    """Only so many owners have their turn in one look, and these have theirs first."""
    await evicting(cluster)
    for number in range(AT_ONCE):
        cluster.api.put(app_pod(f"blocked-{number}", owner=("StatefulSet", f"blocked-{number}"), ip=None))
    cluster.api.put(app_pod("free", owner=("StatefulSet", "free"), ip=None))
    cluster.api.fail(429, path="blocked-[0-9]/eviction", times=100, message="Cannot evict pod.")
    for _ in range(2):
        await cluster.reconcile()
        cluster.clock.seconds += 10
    assert cluster.api.names("Pod") == [f"blocked-{number}" for number in range(AT_ONCE)]


async def test_owners_that_get_no_pods_do_not_keep_one_waiting_that_wants_none(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only so many are read in one look, and these come first."""
    monkeypatch.setattr(sidecar_pods, "_OWNERS_READ_MAX", 1)
    await evicting(cluster)
    for owner in (("StatefulSet", "app"), ("ReplicaSet", "web-5d4")):
        for number in (0, 1):
            cluster.api.put(app_pod(f"{owner[1]}-{number}", owner=owner, ip=None))
    await cluster.reconcile()
    metadata, seen = {"name": "web", "namespace": "shop"}, {"replicas": 1, "availableReplicas": 1}
    made = cluster.api.put({"kind": "Deployment", "metadata": metadata, "spec": {"replicas": 1, **ASKS}, "status": {}})
    cluster.api.put({**made, "status": {**seen, "observedGeneration": made["metadata"]["generation"]}})
    for _ in range(2):
        cluster.clock.seconds += 100
        await cluster.reconcile()
    assert cluster.api.names("Pod") == ["app-1"]


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
    assert "does not have the present sidecar either" in cluster.message("SidecarsCurrent")


async def test_a_role_that_may_not_read_namespaces_finds_the_pods_that_ask_themselves(cluster: Cluster) -> None:
    cluster.secret()
    cluster.api.put(app_pod("asks", ip=None))
    cluster.api.fail(403, path="/namespaces/shop$", times=9)
    assert (await look(cluster, {}))["sidecars"]["missed"] == 1


async def test_where_injection_is_off_or_leaves_the_namespace_out_nobody_is_evicted(cluster: Cluster) -> None:
    await evicting(cluster, "a")
    off: list[dict[str, Any]] = [{"SIDECAR_INJECTION": "None"}, {"POD_NAMESPACE": "shop"}]
    for env in off:
        await look(cluster, **env)
        assert cluster.condition("SidecarsCurrent") == ("False", "InjectionOff")
    assert cluster.api.names("Pod") == ["a"]


async def test_nobody_is_evicted_for_a_sidecar_that_is_not_in_the_status_yet(cluster: Cluster) -> None:
    """A pod in its place would get the one before, or none."""
    await evicting(cluster, "a")
    await look(cluster, {**EVICT, "batch": {"maxRows": 5}})
    assert cluster.api.names("Pod") == ["a"]
    await cluster.reconcile()
    assert cluster.api.names("Pod") == []


async def test_a_deployment_whose_pods_cannot_be_made_keeps_the_others(cluster: Cluster) -> None:
    await evicting(cluster, "a", "b")
    metadata = {"name": "app", "namespace": "shop"}
    short = cluster.api.put({"kind": "Deployment", "metadata": metadata, "spec": {"replicas": 2, **ASKS}, "status": {}})
    seen = {"observedGeneration": short["metadata"]["generation"], "replicas": 1}
    cluster.api.put({**short, "status": {**seen, "replicas": 2, "availableReplicas": 2}})
    await cluster.reconcile()
    cluster.api.put({**cluster.api.get("Deployment", "app"), "status": seen})
    for _ in range(5):
        cluster.clock.seconds += 100
        await cluster.reconcile()
    assert cluster.api.names("Pod") == ["b"]
    assert "no pod that asks for the sidecar came in the place of the one that was evicted" in cluster.message(
        "SidecarsCurrent"
    )
    short = cluster.api.put({**cluster.api.get("Deployment", "app"), "spec": {"replicas": 1, **ASKS}})
    cluster.api.put(
        {**short, "status": {**seen, "observedGeneration": short["metadata"]["generation"], "availableReplicas": 1}}
    )
    await cluster.reconcile()
    assert cluster.api.names("Pod") == []


async def test_a_deployment_that_lacks_pods_is_waited_for_also_by_an_operator_that_has_just_started(
    cluster: Cluster,
) -> None:
    await evicting(cluster, "a", "b")
    metadata = {"name": "app", "namespace": "shop"}
    made = cluster.api.put({"kind": "Deployment", "metadata": metadata, "spec": {"replicas": 3}, "status": {}})
    rolling = {"observedGeneration": made["metadata"]["generation"], "replicas": 3, "availableReplicas": 2}
    cluster.api.put({**made, "status": rolling})
    await cluster.reconcile()
    assert cluster.api.names("Pod") == ["a", "b"]
    assert "Deployment app: the next is evicted when it has all the pods" in cluster.message("SidecarsCurrent")
    cluster.api.put(app_pod("a", ready=False, ip=None))  # its going takes nothing away
    await cluster.reconcile()
    assert cluster.api.names("Pod") == ["b"]


async def test_a_deployment_whose_template_does_not_ask_keeps_the_pods_that_were_labelled_one_by_one(
    cluster: Cluster,
) -> None:
    """What comes in the place of one has no sidecar either: it does not ask, and so is not seen here."""
    await evicting(cluster, "a", "b")
    spec = {"replicas": 2, "template": {"metadata": {"labels": {"app": "shop"}}}}
    made = cluster.api.put({"kind": "Deployment", "metadata": {"name": "app", "namespace": "shop"}, "spec": spec})
    seen = {"observedGeneration": made["metadata"]["generation"], "replicas": 2, "availableReplicas": 2}
    cluster.api.put({**made, "status": seen})
    for _ in range(5):
        await cluster.reconcile()
        cluster.clock.seconds += 100
    assert cluster.api.names("Pod") == ["b"]
    assert "The label must be in its template" in cluster.message("SidecarsCurrent")
    labels = {INJECT_LABEL: "events"}  # of the namespace, which the next pod gets it by
    cluster.api.put({"kind": "Namespace", "metadata": {"name": "shop", "labels": labels}})
    await cluster.reconcile()
    assert cluster.api.names("Pod") == []


async def test_a_statefulset_that_lacks_pods_is_waited_for_by_an_operator_that_has_just_started(
    cluster: Cluster,
) -> None:
    """Whoever led before has evicted one, and none can be made."""
    await evicting(cluster)
    metadata, owner = {"name": "db", "namespace": "shop"}, ("StatefulSet", "db")
    for number in (1, 2):
        cluster.api.put(app_pod(f"db-{number}", owner=owner, ip=None))
    made = cluster.api.put({"kind": "StatefulSet", "metadata": metadata, "spec": {"replicas": 3, **ASKS}})
    lacking = {"observedGeneration": made["metadata"]["generation"], "replicas": 2, "availableReplicas": 2}
    made = cluster.api.put({**made, "status": lacking})
    await cluster.reconcile()
    assert cluster.api.names("Pod") == ["db-1", "db-2"]
    assert "StatefulSet db: the next is evicted when it has all the pods" in cluster.message("SidecarsCurrent")
    cluster.api.put(app_pod("db-1", owner=owner, ready=False, ip=None))  # no other is made before this one is Ready
    await cluster.reconcile()
    assert cluster.api.names("Pod") == ["db-2"]


async def test_a_statefulset_that_was_scaled_down_needs_no_successor(cluster: Cluster) -> None:
    await evicting(cluster)
    for number in (0, 1):
        cluster.api.put(app_pod(f"db-{number}", owner=("StatefulSet", "db"), ip=None))
    await cluster.reconcile()
    metadata, seen = {"name": "db", "namespace": "shop"}, {"replicas": 1, "availableReplicas": 1}
    made = cluster.api.put({"kind": "StatefulSet", "metadata": metadata, "spec": {"replicas": 1, **ASKS}})
    cluster.api.put({**made, "status": {**seen, "observedGeneration": made["metadata"]["generation"]}})
    cluster.clock.seconds += 100
    await cluster.reconcile()
    assert cluster.api.names("Pod") == []


async def test_what_is_no_deployment_and_got_no_successor_keeps_the_others(cluster: Cluster) -> None:
    await evicting(cluster)
    for name in ("db-0", "db-1"):
        cluster.api.put(app_pod(name, owner=("StatefulSet", "db"), ip=None))
    for _ in range(5):
        await cluster.reconcile()
        cluster.clock.seconds += 100
    assert cluster.api.names("Pod") == ["db-1"]


async def test_pods_that_have_ended_or_whose_sidecar_does_not_run_are_not_asked(cluster: Cluster) -> None:
    """Their addresses are others' by now, and each would be waited for."""
    cluster.secret()
    hash = (await look(cluster, {}))["sidecar"]["hash"]
    ended = app_pod("done", hash=hash, owner=("Job", "nightly"), ip="127.0.0.1", admin_port=cluster.proxies.port)
    ended["status"]["phase"] = "Succeeded"
    cluster.api.put(ended)
    waiting = {"waiting": {"reason": "PodInitializing"}}
    cluster.api.put(app_pod("new", hash=hash, ip="127.0.0.2", admin_port=cluster.proxies.port, state=waiting))
    await look(cluster)
    assert cluster.proxies.asked == []


async def test_many_that_do_not_answer_neither_hold_a_look_up_nor_hide_those_that_do(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NetworkPolicy drops what is sent to some: each of them would be waited for until the limit."""
    monkeypatch.setattr(sidecar_pods, "ASKING_S", 0.3)
    monkeypatch.setattr(sidecar_pods, "_ASKED_AT_ONCE", 2)
    cluster.secret()
    hash = (await look(cluster, {}))["sidecar"]["hash"]
    with socket.create_server(("127.0.0.9", 0)) as deaf:
        for name in ("a", "b", "c"):
            cluster.api.put(app_pod(name, hash=hash, ip="127.0.0.9", admin_port=deaf.getsockname()[1]))
        cluster.api.put(app_pod("z", hash=hash, ip="127.0.0.1", admin_port=cluster.proxies.port))
        unknown = []
        async with asyncio.timeout(10):
            for _ in range(5):
                cluster.clock.seconds += 10
                await cluster.reconcile()
                unknown.append(cluster.status()["sidecars"]["unknown"])
    assert unknown == [4, 3, 3, 3, 3]
