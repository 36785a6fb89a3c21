"""Scaling down through the whole operator: pods of a resource that it lets go, or may not touch."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.operator.clusters import IPS
from tests.operator.scaled_clusters import A, B, Scaled, running_scaled

from tinybird_proxy_operator.names import KIND


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Scaled]:
    async with running_scaled(tmp_path) as running:
        yield running


async def test_pods_of_an_unmanaged_resource_are_not_touched(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(1, managementState="Unmanaged")
    cluster.proxies.buffers[IPS[0]].draining = True
    await cluster.reconcile()
    assert cluster.labelled() == []
    assert cluster.proxies.told == []
    assert cluster.replicas == 3


@pytest.mark.parametrize("how", ["Unmanaged", "controllerClass", "orphaned"])
async def test_who_drains_serves_again_before_the_operator_lets_the_resource_go(cluster: Scaled, how: str) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(1)
    await cluster.turn()
    assert cluster.draining() == [A, B]
    body = cluster.api.get(KIND, "events")
    match how:
        case "Unmanaged":
            body["spec"]["managementState"] = "Unmanaged"
        case "controllerClass":
            body["spec"]["controllerClass"] = "blue"
        case _:
            body["metadata"]["deletionTimestamp"] = "2026-01-01T00:16:40Z"
            body["metadata"]["finalizers"] += ["orphan"]
    cluster.api.put(body)
    cluster.api.fail(409, method="PATCH", path="/pods/")
    await cluster.look()
    assert (cluster.labelled(), cluster.draining(), cluster.replicas) == ([], [], 3)
    assert not cluster.api.get("Pod", A)["metadata"]["annotations"]
    if how != "orphaned":
        assert not cluster.api.get(KIND, "events")["metadata"].get("finalizers")


async def test_pods_that_cannot_be_told_to_serve_again_keep_no_resource(
    cluster: Scaled, caplog: pytest.LogCaptureFixture
) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    await cluster.turn()
    cluster.proxies.buffers[IPS[0]].stopping = True
    cluster.scale(2, managementState="Unmanaged")
    await cluster.look()
    assert cluster.labelled() == []
    assert not cluster.api.get(KIND, "events")["metadata"].get("finalizers")
    assert "is let go while events-1-0 drain" in caplog.text


async def test_a_resource_that_is_unmanaged_already_is_left_alone(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(3, managementState="Unmanaged")
    await cluster.look()
    cluster.proxies.buffers[IPS[1]].draining = True
    await cluster.turn()
    assert cluster.draining() == [B]
