"""Deletion: what is not waited for, and how its rows are told."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.operator.clusters import IPS
from tests.operator.deleting_clusters import DELETED_AT, Deleting, running_deleting

from tinybird_proxy_operator.names import DELETE_ANNOTATION, KIND


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Deleting]:
    async with running_deleting(tmp_path) as running:
        yield running


@pytest.mark.parametrize("more", [("foregroundDeletion",), ("orphan",)])
async def test_what_kubernetes_decides_by_itself_is_not_waited_for_and_no_pod_is_told(
    cluster: Deleting, more: tuple[str, ...]
) -> None:
    await cluster.installed({"replicas": 2})
    cluster.proxies.hold(5, 5)
    cluster.delete(*more)
    assert await cluster.reconcile() is None
    assert cluster.finalizers == [*more]
    assert cluster.proxies.shown == []


async def test_a_namespace_that_goes_takes_the_resource_along(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5,))
    cluster.api.put({"kind": "Namespace", "metadata": {"name": "shop", "deletionTimestamp": DELETED_AT}, "spec": {}})
    await cluster.reconcile()
    assert cluster.gone()
    assert cluster.proxies.shown == []


async def test_without_the_right_to_read_the_namespace_it_drains_as_ever(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5,))
    cluster.api.fail(403, path="/api/v1/namespaces/shop", times=1)
    await cluster.reconcile()
    assert not cluster.gone()
    assert cluster.proxies.shown != []


async def test_the_annotation_lets_it_go_and_the_rows_are_told(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5,))
    await cluster.reconcile()
    body = cluster.api.get(KIND, "events")
    cluster.api.put({**body, "metadata": {**body["metadata"], "annotations": {DELETE_ANNOTATION: "now"}}})
    await cluster.reconcile()
    assert cluster.gone()
    ((kind, reason, message),) = cluster.told()
    assert (kind, reason) == ("Warning", "RowsDropped")
    assert "5 rows are left at the last look" in message


async def test_the_annotation_lets_it_go_with_pods_that_do_not_answer_and_that_is_told(cluster: Deleting) -> None:
    await cluster.installed_and_deleted()
    for ip in IPS[:2]:
        cluster.proxies.buffers[ip].answers = False
    await cluster.reconcile()
    assert "buffer" not in cluster.status()
    body = cluster.api.get(KIND, "events")
    cluster.api.put({**body, "metadata": {**body["metadata"], "annotations": {DELETE_ANNOTATION: "now"}}})
    await cluster.reconcile()
    assert cluster.gone()
    ((kind, reason, message),) = cluster.told()
    assert (kind, reason) == ("Warning", "RowsDropped")
    assert "No pod answered at the last look: what they hold is not known." in message


async def test_unmanaged_resources_and_those_without_a_workload_or_pods_go_at_once(cluster: Deleting) -> None:
    for step in ("unmanaged", "no deployment", "no pods", "foreign"):
        await cluster.installed_and_deleted(rows=(5, 5))
        deployment = cluster.api.get("Deployment", "events")
        if step == "unmanaged":
            body = cluster.api.get(KIND, "events")
            cluster.api.put({**body, "spec": {**body["spec"], "managementState": "Unmanaged"}})
        elif step == "no deployment":
            cluster.api.remove("Deployment", "events")
        elif step == "foreign":
            cluster.api.put({**deployment, "metadata": {**deployment["metadata"], "ownerReferences": []}})
        else:
            cluster.api.remove("ReplicaSet", "events-1")
        await cluster.reconcile()
        assert cluster.gone(), step
        assert cluster.proxies.shown == []
        if step == "foreign":
            cluster.api.remove("Deployment", "events")
