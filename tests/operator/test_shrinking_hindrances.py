"""Scaling down through the whole operator: what is in the way, and what went wrong."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.operator.clusters import IPS
from tests.operator.scaled_clusters import A, B, C, Scaled, running_scaled

from tinybird_proxy_operator.errors import Unavailable
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.reconcile import FIGURES_S
from tinybird_proxy_operator.shrinking import DRAINING_S


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Scaled]:
    async with running_scaled(tmp_path) as running:
        yield running


async def test_without_the_admin_token_nobody_goes_and_the_secret_is_named(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    secret = cluster.api.get("Secret", "events-admin")
    cluster.api.put({**secret, "data": {}})
    cluster.scale(2)
    for _ in range(3):
        await cluster.turn()
    assert (cluster.labelled(), cluster.draining(), cluster.replicas) == ([A], [], 3)
    assert "Secret events-admin, with the token" in cluster.message("Draining")


async def test_a_pod_that_refuses_the_token_is_named(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.proxies.token = "another"
    cluster.scale(2)
    await cluster.turn()
    assert "events-1-0 did not begin to drain" in cluster.message("Draining")


async def test_a_pod_that_cannot_be_marked_is_not_told_and_the_reason_is_said(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    cluster.api.fail(403, method="PATCH", path="/pods/", message="pods is forbidden")
    await cluster.look()
    assert cluster.draining() == []
    assert "pods is forbidden" in cluster.message("Draining")
    await cluster.look()
    assert cluster.draining() == [A]


@pytest.mark.parametrize("status", [409, 404])
async def test_a_pod_that_changed_since_it_was_read_is_left_to_the_next_look(cluster: Scaled, status: int) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    cluster.api.fail(status, method="PATCH", path="/pods/")
    await cluster.look()
    assert (cluster.labelled(), cluster.draining()) == ([], [])
    await cluster.look()
    assert (cluster.labelled(), cluster.draining()) == ([A], [A])


@pytest.mark.parametrize("status", [409, 403])
async def test_a_number_that_could_not_be_written_is_written_by_a_later_look(cluster: Scaled, status: int) -> None:
    await cluster.with_pods()
    cluster.scale(2)
    await cluster.turn()
    cluster.api.fail(status, method="PATCH", path="/deployments/", message="not now")
    await cluster.look()
    assert (cluster.replicas, cluster.labelled()) == (3, [A])
    assert cluster.condition("Draining") == ("True", "ScalingDown")
    await cluster.look()
    assert cluster.replicas == 2


async def test_a_wrong_pod_that_went_is_told_with_its_rows_and_the_victim_serves_again(cluster: Scaled) -> None:
    await cluster.with_pods(0, 2, 300)
    cluster.scale(2)
    await cluster.turn()
    await cluster.look()
    assert cluster.replicas == 2
    await cluster.look()
    assert cluster.labelled() == [A]  # its time has not come yet
    cluster.api.remove("Pod", C)
    cluster.controllers()
    await cluster.look()
    assert cluster.reasons() == ["WrongPodRemoved"]
    assert "removed events-1-2 (300 rows) and not events-1-0" in cluster.told()[-1][2]
    assert (cluster.labelled(), cluster.draining()) == ([], [])
    await cluster.look()
    assert cluster.reasons() == ["WrongPodRemoved"]


async def test_dead_letters_and_a_wrong_pod_are_told_if_the_answer_is_lost(cluster: Scaled) -> None:
    await cluster.with_pods(0, 2, 300)
    cluster.proxies.buffers[IPS[0]].dead_letters = 7
    cluster.proxies.buffers[IPS[1]].dead_letters = cluster.proxies.buffers[IPS[2]].dead_letters = 9
    cluster.scale(2)
    await cluster.turn()
    cluster.api.fail(500, method="PATCH", path="/deployments/", done_first=True)
    with pytest.raises(Unavailable):
        await cluster.look()
    assert (cluster.replicas, cluster.reasons()) == (2, ["DeadLettersDropped"])
    cluster.api.remove("Pod", C)
    cluster.controllers()
    await cluster.look()
    assert cluster.reasons() == ["DeadLettersDropped", "WrongPodRemoved"]


async def test_no_victim_serves_again_while_its_replica_set_has_pods_in_excess(cluster: Scaled) -> None:
    await cluster.with_pods()
    cluster.scale(2)
    await cluster.turn()
    await cluster.look()
    deployment = cluster.api.get("Deployment", "events")
    seen = {**deployment["status"], "observedGeneration": deployment["metadata"]["generation"]}
    cluster.api.put({**deployment, "status": seen})
    cluster.replica_set(2)
    await cluster.look()
    assert (cluster.labelled(), cluster.draining()) == ([A], [A])
    cluster.replica_set(3)
    await cluster.look()
    assert (cluster.labelled(), cluster.draining()) == ([], [])


async def test_a_deployment_that_somebody_scaled_up_is_drained_back(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    await cluster.turn()
    cluster.reconciler.changed(Key("shop", "events"))
    cluster.proxies.hold(0, 0, 0)
    await cluster.turn()
    assert cluster.pods() == [B, C]
    assert await cluster.turn() in (DRAINING_S, FIGURES_S)
    deployment = cluster.api.get("Deployment", "events")
    cluster.api.put({**deployment, "spec": {**deployment["spec"], "replicas": 3}})
    cluster.controllers()
    for _ in range(4):
        await cluster.turn()
    assert (cluster.replicas, len(cluster.pods())) == (2, 2)
