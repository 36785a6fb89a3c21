"""Whose pods there are, by the chain of controllers."""

import copy
from typing import Any

import pytest
from tests.operator.clusters import TRIES
from tests.operator.metrics_apis import owned, proxy_with_pods, running_pod
from tests.operator.test_metrics_api_authentication import Clock

from tinybird_proxy_operator.errors import Unavailable
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.metrics_api.inventory import Inventories, take_inventory
from tinybird_proxy_operator.names import API_VERSION, KIND
from tinybird_proxy_operator.testing.fake_api import FakeApi

PROXY = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "events", "uid": "1", "labels": {"team": "a"}}}


def child(kind: str, name: str, uid: str, owner: dict[str, Any]) -> dict[str, Any]:
    metadata = owned(name, "events", owner)
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {**metadata, "uid": uid}}


DEPLOYMENT = child("Deployment", "events", "2", PROXY)
SET = child("ReplicaSet", "events-1", "3", DEPLOYMENT)


def pod(**changes: Any) -> dict[str, Any]:
    """A pod of the set; ``owner``, and fields of its status and metadata."""
    found = running_pod("events-1-0", "events", changes.pop("owner", SET), "10.0.0.1")
    found["metadata"] |= {"uid": "4", **changes.pop("metadata", {})}
    found["status"] |= changes
    return found


def names(*pods: dict[str, Any], **changes: Any) -> list[tuple[str, str]]:
    lists: dict[str, Any] = {"proxies": [PROXY], "deployments": [DEPLOYMENT], "replica_sets": [SET], **changes}
    return [(found.name, found.proxy) for found in take_inventory(pods=pods, **lists).pods]


def test_a_pod_is_ours_by_its_controllers() -> None:
    assert names(pod()) == [("events-1-0", "events")]
    assert names(pod(), proxies=[]) == []
    assert names(pod(), deployments=[]) == []
    assert names(pod(), replica_sets=[]) == []


def test_a_pod_that_only_looks_like_ours_is_not() -> None:
    stranger = copy.deepcopy(pod())
    del stranger["metadata"]["ownerReferences"]
    loose = copy.deepcopy(pod())
    loose["metadata"]["ownerReferences"][0]["controller"] = False
    foreign_set = child("ReplicaSet", "events-1", "9", {**DEPLOYMENT, "metadata": {"name": "events", "uid": "8"}})
    recreated = {**PROXY, "metadata": {"name": "events", "uid": "other"}}
    assert names(stranger, loose) == []
    assert names(pod(owner=foreign_set), replica_sets=[SET, foreign_set]) == []
    assert names(pod(), proxies=[recreated]) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"phase": "Pending"},
        {"phase": "Succeeded"},
        {"podIP": None},
        {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {"containerStatuses": []},
        {"containerStatuses": [{"name": "proxy", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]},
        {"containerStatuses": [{"name": "other", "state": {"running": {}}}]},
    ],
)
def test_a_pod_that_does_not_run_or_goes_does_not_count(changes: dict[str, Any]) -> None:
    assert names(pod(**changes)) == []


def test_the_labels_of_proxies_are_known() -> None:
    found = take_inventory(proxies=[PROXY], deployments=[], replica_sets=[], pods=[])
    assert found.proxies == {"events": {"team": "a"}}


async def test_a_namespace_is_listed_once_for_a_moment(api: FakeApi, kube: Kube) -> None:
    proxy_with_pods(api, "events", ["10.0.0.1", "10.0.0.2"])
    proxy_with_pods(api, "events", ["10.0.0.3"], namespace="other")
    clock = Clock()
    inventories = Inventories(kube, now=clock)
    for _ in range(3):
        assert [each.ip for each in (await inventories.of("shop")).pods] == ["10.0.0.1", "10.0.0.2"]
    assert len(api.asked) == 4
    assert all("/namespaces/shop/" in asked.path for asked in api.asked)
    api.remove("Pod", "events-1-0")
    clock.now = 2.0
    assert [each.ip for each in (await inventories.of("shop")).pods] == ["10.0.0.2"]
    await inventories.close()


async def test_an_api_server_that_does_not_answer_is_an_error(api: FakeApi, kube: Kube) -> None:
    inventories = Inventories(kube, now=Clock())
    api.fail(503, path="replicasets", times=TRIES)
    with pytest.raises(Unavailable):
        await inventories.of("shop")
    assert (await inventories.of("shop")).pods == ()
