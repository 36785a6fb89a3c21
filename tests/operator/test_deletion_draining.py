"""Deletion: pods are told to drain and waited for until they are empty."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.operator.clusters import IPS
from tests.operator.deleting_clusters import DELETED_AT, RUNNING, Deleting, running_deleting

from tinybird_proxy_operator.deletion import DRAINING_S
from tinybird_proxy_operator.names import KIND, selector_labels
from tinybird_proxy_operator.testing.field_owners import Object

WAITING = {"containerStatuses": [{"name": "proxy", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Deleting]:
    async with running_deleting(tmp_path) as running:
        yield running


async def test_idle_pods_are_told_to_drain_and_the_resource_goes_in_the_same_look(cluster: Deleting) -> None:
    await cluster.installed_and_deleted()
    cluster.forget()
    assert await cluster.reconcile() is None
    assert cluster.gone()
    assert [cluster.proxies.buffers[ip].orders for ip in IPS] == [1, 1, 0]
    assert cluster.told() == []
    assert [method for method, _ in cluster.api.writes] == ["PATCH"]  # the finalizer, and nothing else


async def test_a_resource_with_rows_stays_until_they_are_delivered_and_says_so(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(1234, 0))
    assert await cluster.reconcile() == DRAINING_S
    assert cluster.condition("Draining") == ("True", "Deleting")
    assert "1,200 rows are left in 1 pods." in cluster.message("Draining")
    assert cluster.condition("Ready") == ("False", "Deleting")
    pods = [("events-1-0", 1200), ("events-1-1", 0)]
    assert cluster.status()["draining"] == [{"pod": name, "rows": rows, "since": DELETED_AT} for name, rows in pods]
    cluster.clock.seconds += 5
    cluster.proxies.hold(34)
    assert await cluster.reconcile() == DRAINING_S
    assert [buffer.orders for buffer in cluster.proxies.buffers.values()] == [1, 1, 0]
    assert not cluster.gone()
    cluster.proxies.hold(0)
    assert await cluster.reconcile() is None
    assert cluster.gone()
    assert cluster.told() == []


async def test_figures_alone_are_no_reason_to_write_the_status(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(500,))
    await cluster.reconcile()
    cluster.forget()
    cluster.proxies.hold(400)
    await cluster.reconcile()
    assert cluster.api.writes == []


async def test_nothing_is_applied_scaled_or_made_anew_meanwhile(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5,))
    body = cluster.api.get(KIND, "events")
    cluster.api.put({**body, "spec": {**body["spec"], "replicas": 3, "batch": {"maxRows": 7}}})
    cluster.api.remove("Service", "events")
    cluster.forget()
    await cluster.reconcile()
    assert cluster.written == []
    assert "Service" not in {each["kind"] for each in cluster.api.all("Service")}


async def test_a_pod_that_does_not_answer_is_waited_for_and_named(cluster: Deleting) -> None:
    await cluster.installed_and_deleted()
    cluster.proxies.buffers[IPS[1]].answers = False
    await cluster.reconcile()
    assert "events-1-1 did not answer: what is there is not known." in cluster.message("Draining")
    assert not cluster.gone()
    cluster.proxies.buffers[IPS[1]].answers = True
    await cluster.reconcile()
    assert cluster.gone()


async def test_a_pod_whose_container_never_ran_holds_nothing(cluster: Deleting) -> None:
    await cluster.installed_and_deleted()
    pod = cluster.api.get("Pod", "events-1-1")
    cluster.api.put({**pod, "status": {**pod["status"], **WAITING}})
    cluster.proxies.buffers[IPS[1]].answers = False
    await cluster.reconcile()
    assert cluster.gone()


async def test_a_pod_that_comes_later_or_forgets_is_told_as_well(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5, 0))
    await cluster.reconcile()
    cluster.proxies.buffers[IPS[1]].draining = False
    sets = cluster.api.get("ReplicaSet", "events-1")
    cluster.pod("events-1-2", sets, labels=selector_labels("events"), ip=IPS[2], **RUNNING)
    await cluster.reconcile()
    assert [cluster.proxies.buffers[ip].orders for ip in IPS] == [1, 2, 1]


async def test_a_pod_that_only_carries_our_labels_is_neither_told_nor_waited_for(cluster: Deleting) -> None:
    await cluster.installed_and_deleted()
    stranger = cluster.api.put({"kind": "ReplicaSet", "metadata": {"name": "theirs", "namespace": "shop"}, "spec": {}})
    cluster.pod("theirs-1", stranger, labels=selector_labels("events"), ip=IPS[2], **RUNNING)
    cluster.proxies.buffers[IPS[2]].rows = 9
    await cluster.reconcile()
    assert cluster.gone()
    assert IPS[2] not in [ip for ip, _ in cluster.proxies.shown]


async def test_a_resource_that_cannot_be_read_drains_with_the_defaults(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5,))
    body = cluster.api.get(KIND, "events")
    cluster.api.put({**body, "spec": {"replicas": "many"}})
    assert await cluster.reconcile() == DRAINING_S
    assert cluster.condition("Draining") == ("True", "Deleting")
    cluster.proxies.hold(0)
    await cluster.reconcile()
    assert cluster.gone()


async def test_dead_letters_are_told_and_not_waited_for(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5,))
    cluster.proxies.buffers[IPS[1]].dead_letters = 3
    await cluster.reconcile()
    assert "3 rows are in dead letters" in cluster.message("Draining")
    cluster.proxies.hold(0)
    await cluster.reconcile()
    assert cluster.gone()
    assert [(kind, reason) for kind, reason, _ in cluster.told()] == [("Warning", "DeadLettersDropped")]


@pytest.mark.parametrize("data", [None, {}, {"token": "***"}, {"token": base64.b64encode(b"\xff").decode()}])
async def test_without_the_admin_token_it_waits_and_names_the_secret(cluster: Deleting, data: Object | None) -> None:
    await cluster.installed_and_deleted()
    secret = cluster.api.get("Secret", "events-admin")
    if data is None:
        cluster.api.remove("Secret", "events-admin")
    else:
        cluster.api.put({**secret, "data": data})
    await cluster.reconcile()
    assert "Secret events-admin, with the token that tells pods to drain, is gone" in cluster.message("Draining")
    assert cluster.proxies.shown == []
    cluster.api.put({**secret, "metadata": {**secret["metadata"], "ownerReferences": []}})
    await cluster.reconcile()
    assert cluster.proxies.shown == []
    cluster.api.put(secret)
    await cluster.reconcile()
    assert cluster.gone()


async def test_a_pod_that_refuses_the_order_is_named(cluster: Deleting) -> None:
    await cluster.installed_and_deleted()
    cluster.proxies.token = "another"
    await cluster.reconcile()
    text = "events-1-0, events-1-1 did not begin to drain with the token of Secret events-admin."
    assert text in cluster.message("Draining")
    assert "another" not in str(cluster.status())
    assert "token-1" not in str(cluster.status())
