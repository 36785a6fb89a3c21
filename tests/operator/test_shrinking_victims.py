"""Scaling down through the whole operator: who drains, who goes and when, and who serves again."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from tests.operator.clusters import EPOCH, IPS
from tests.operator.scaled_clusters import RUNNING, A, B, C, Scaled, running_scaled

from tinybird_proxy_operator.names import DELETION_COST_ANNOTATION, DRAINING_SINCE_ANNOTATION, selector_labels
from tinybird_proxy_operator.shrinking import DRAINING_S

NEW_IMAGE = "ghcr.io/tinybird-proxy/tinybird-proxy:1.2.4"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Scaled]:
    async with running_scaled(tmp_path) as running:
        yield running


async def test_the_emptiest_pod_is_marked_told_to_drain_and_let_go_when_it_is_empty(cluster: Scaled) -> None:
    await cluster.with_pods(5, 3, 9)
    cluster.scale(2)
    assert await cluster.turn() == DRAINING_S
    assert (cluster.labelled(), cluster.draining(), cluster.replicas) == ([B], [B], 3)
    metadata = cluster.api.get("Pod", B)["metadata"]
    since = f"{EPOCH + timedelta(seconds=1000):%Y-%m-%dT%H:%M:%SZ}"
    assert metadata["annotations"] == {DRAINING_SINCE_ANNOTATION: since, DELETION_COST_ANNOTATION: "-1000"}
    assert cluster.condition("Draining") == ("True", "ScalingDown")
    assert cluster.message("Draining").startswith("1 of 3 pods drains: 3 rows are left in events-1-1.")
    await cluster.turn()
    assert cluster.status()["draining"] == [{"pod": B, "rows": 3, "since": since}]
    assert (cluster.status()["replicas"], cluster.status()["readyReplicas"]) == (2, 2)
    assert cluster.condition("Ready") == ("True", "Ready")
    assert cluster.condition("Progressing") == ("False", "UpToDate")
    cluster.proxies.hold(5, 0, 9)
    assert await cluster.turn() == DRAINING_S
    assert cluster.replicas == 2
    assert cluster.pods() == [A, C]
    await cluster.turn()
    assert "Draining" not in cluster.conditions()
    assert "draining" not in cluster.status()
    assert cluster.reasons() == []


async def test_dead_letters_that_go_with_an_emptied_pod_are_told(cluster: Scaled) -> None:
    await cluster.with_pods(0, 0, 0)
    for buffer in cluster.proxies.buffers.values():
        buffer.dead_letters = 7
    cluster.scale(2)
    await cluster.turn()
    await cluster.turn()
    assert len(cluster.pods()) == 2
    [(kind, reason, message)] = cluster.told()
    assert (kind, reason) == ("Warning", "DeadLettersDropped")
    assert message.startswith("7 rows are in dead letters")


async def test_a_pod_that_still_takes_rows_is_not_let_go(cluster: Scaled) -> None:
    await cluster.with_pods()
    cluster.proxies.delays = True
    cluster.scale(2)
    for _ in range(4):
        await cluster.turn()
    assert cluster.replicas == 3
    cluster.proxies.refuse()
    await cluster.turn()
    assert cluster.replicas == 2


async def test_a_pod_that_kubernetes_counts_as_ready_is_not_let_go(cluster: Scaled) -> None:
    await cluster.with_pods()
    cluster.scale(2)
    for _ in range(3):
        await cluster.look()
    assert cluster.replicas == 3
    cluster.kubernetes()
    await cluster.look()
    assert cluster.replicas == 2


async def test_a_pod_that_may_promise_the_rows_of_a_first_contact_yet_is_not_let_go(cluster: Scaled) -> None:
    await cluster.with_pods()
    cluster.proxies.buffers[IPS[0]].not_promised = 4
    cluster.scale(2)
    for _ in range(4):
        await cluster.turn()
    assert (cluster.draining(), cluster.replicas) == ([A], 3)
    cluster.proxies.buffers[IPS[0]].not_promised = 0
    await cluster.turn()
    assert cluster.pods() == [B, C]


async def test_all_pods_drain_before_there_are_none(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(0)
    await cluster.turn()
    assert cluster.draining() == [A, B, C]
    cluster.proxies.hold(0, 0, 1)
    await cluster.turn()
    assert cluster.replicas == 3
    cluster.proxies.hold(0, 0, 0)
    await cluster.turn()
    assert (cluster.replicas, cluster.pods()) == (0, [])


async def test_nothing_is_read_twice_in_a_look_while_pods_drain(cluster: Scaled) -> None:
    await cluster.with_pods(1, 1, 1)
    cluster.scale(2)
    await cluster.turn()
    await cluster.reconcile()
    cluster.forget()
    cluster.proxies.asked.clear()
    await cluster.look()
    read = [asked.path for asked in cluster.api.asked if asked.method == "GET"]
    assert len(read) == len(set(read)) == 4  # the resource, its Deployment, ReplicaSets and pods
    assert sorted(cluster.proxies.asked) == sorted(IPS)


async def test_a_scale_up_cancels_the_drains_before_there_are_more_pods(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(1)
    await cluster.turn()
    assert cluster.draining() == [A, B]
    cluster.forget()
    cluster.scale(4)
    await cluster.look()
    assert (cluster.labelled(), cluster.draining(), cluster.replicas) == ([], [], 4)
    metadata = cluster.api.get("Pod", A)["metadata"]
    assert not metadata["annotations"]
    patched = [path.rsplit("/", 2)[1] for method, path in cluster.api.writes if method == "PATCH"]
    assert patched.index("deployments") > max(n for n, plural in enumerate(patched) if plural == "pods")


async def test_when_fewer_are_too_many_the_fullest_serves_again(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(1)
    await cluster.turn()
    cluster.scale(2)
    await cluster.turn()
    assert (cluster.labelled(), cluster.draining()) == ([A], [A])


async def test_a_victim_whose_container_was_restarted_is_told_once_more(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    await cluster.turn()
    buffer = cluster.proxies.buffers[IPS[0]]
    buffer.draining = buffer.refusing = False
    await cluster.turn()
    assert buffer.draining
    assert buffer.orders == 2


async def test_another_operator_goes_on_where_the_one_before_was_ended(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    await cluster.turn()
    cluster.reconciler = cluster.operator()
    await cluster.turn()
    assert cluster.labelled() == [A]
    cluster.proxies.hold(0, 2, 3)
    await cluster.turn()
    assert cluster.pods() == [B, C]


async def test_a_pod_that_somebody_told_to_drain_serves_again(cluster: Scaled) -> None:
    await cluster.with_pods()
    cluster.proxies.buffers[IPS[1]].draining = True
    await cluster.turn()
    assert cluster.proxies.told == [("DELETE", IPS[1])]
    assert cluster.draining() == []


async def test_a_process_that_stops_is_no_error(cluster: Scaled) -> None:
    await cluster.with_pods()
    buffer = cluster.proxies.buffers[IPS[1]]
    buffer.draining = buffer.stopping = True
    assert await cluster.turn() == DRAINING_S
    assert buffer.draining
    assert cluster.reasons() == []


async def test_pods_that_are_terminating_are_left_alone(cluster: Scaled) -> None:
    await cluster.with_pods()
    pod = cluster.api.get("Pod", B)
    cluster.api.put({**pod, "metadata": {**pod["metadata"], "deletionTimestamp": "2026-01-01T00:16:40Z"}})
    cluster.proxies.buffers[IPS[1]].draining = True
    await cluster.look()
    assert cluster.proxies.told == []


async def test_an_unready_pod_goes_in_place_of_a_ready_one(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 300)
    cluster.set_ready(C, False)
    cluster.scale(2)
    await cluster.look()
    assert cluster.draining() == [C]
    assert cluster.replicas == 3


async def test_beside_an_unready_pod_nothing_goes(cluster: Scaled) -> None:
    await cluster.with_pods(0, 2, 300)
    cluster.scale(2)
    await cluster.turn()
    cluster.set_ready(C, False)
    await cluster.look()
    assert (cluster.labelled(), cluster.replicas) == ([A], 3)
    assert "events-1-2 is not ready, and would go in their place" in cluster.message("Draining")
    cluster.kubernetes()
    await cluster.turn()
    assert cluster.pods() == [B, C]


async def test_during_a_rollout_nobody_drains(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    await cluster.turn()
    deployment = cluster.api.get("Deployment", "events")
    cluster.api.put({**deployment, "status": {**deployment["status"], "updatedReplicas": 1}})
    await cluster.look()
    assert (cluster.labelled(), cluster.draining(), cluster.replicas) == ([], [], 3)


async def test_a_template_that_is_held_back_keeps_no_pod_from_going(cluster: Scaled) -> None:
    await cluster.with_pods(0, 2, 3)
    cluster.scale(2, image=NEW_IMAGE, preflight="Disabled")
    await cluster.turn()
    assert cluster.condition("Progressing") == ("False", "RolloutHeld")
    await cluster.turn()
    assert cluster.pods() == [B, C]
    await cluster.turn()
    assert cluster.condition("Progressing") == ("False", "RolloutHeld")


async def test_a_changed_template_does_not_go_out_with_fewer_pods(cluster: Scaled) -> None:
    await cluster.with_pods()
    cluster.scale(2)
    await cluster.turn()
    cluster.scale(2, image=NEW_IMAGE, preflight="Disabled")
    await cluster.look()
    deployment = cluster.api.get("Deployment", "events")
    assert deployment["spec"]["replicas"] == 2
    assert NEW_IMAGE not in str(deployment)
    cluster.kubernetes()
    await cluster.look()
    assert NEW_IMAGE in str(cluster.api.get("Deployment", "events"))


async def test_nobody_drains_for_a_resource_that_cannot_be_carried_out(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2, 3)
    cluster.scale(2)
    await cluster.turn()
    cluster.scale(1, image="evil/proxy:1")
    await cluster.turn()
    assert (cluster.labelled(), cluster.draining(), cluster.replicas) == ([], [], 3)


async def test_a_pod_that_only_carries_our_labels_is_not_counted_or_told(cluster: Scaled) -> None:
    await cluster.with_pods(1, 2)
    stranger = cluster.api.put({"kind": "ReplicaSet", "metadata": {"name": "theirs", "namespace": "shop"}, "spec": {}})
    cluster.api.remove("Pod", C)
    deployment = cluster.api.get("Deployment", "events")
    cluster.api.put({**deployment, "spec": {**deployment["spec"], "replicas": 2}})
    cluster.controllers()
    cluster.pod("theirs-1", stranger, labels=selector_labels("events"), ip=IPS[2], **RUNNING)
    cluster.scale(1)
    await cluster.look()
    assert IPS[2] not in [ip for ip, _ in cluster.proxies.shown]
    assert cluster.labelled() == [A]
