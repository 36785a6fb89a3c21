"""The ownership rule, on a fake API server with the real client."""

from typing import Any

import pytest
from tests.operator.clusters import owned
from tests.operator.resources import UID, desired, resource

from tinybird_proxy_operator import children, manifests
from tinybird_proxy_operator.children import NameTaken, applied_template, contains, is_ours, prune, put
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.manifests import deployment, service
from tinybird_proxy_operator.names import child_labels
from tinybird_proxy_operator.testing.fake_api import FakeApi

PROXY = resource()
SERVICE: dict[str, Any] = service.build(desired()) or {}
KINDS = [kind for _, kind in manifests.KINDS]


async def test_a_child_is_made_and_counts_as_applied(api: FakeApi, kube: Kube) -> None:
    applied: dict[str, str] = {}
    await put(kube, PROXY, SERVICE, applied)
    (entry,) = api.get("Service", "events")["metadata"]["managedFields"]
    assert entry["operation"] == "Apply"
    api.asked.clear()
    await put(kube, PROXY, SERVICE, applied)
    assert api.writes == []


async def test_a_child_is_applied_once_by_an_operator_that_does_not_know_it(api: FakeApi, kube: Kube) -> None:
    await put(kube, PROXY, SERVICE, {})
    api.asked.clear()
    applied: dict[str, str] = {}
    await put(kube, PROXY, SERVICE, applied)
    await put(kube, PROXY, SERVICE, applied)
    assert [method for method, _ in api.writes] == ["PATCH"]


async def test_a_child_that_its_controller_wrote_to_meanwhile_is_mended_next_time(api: FakeApi, kube: Kube) -> None:
    applied: dict[str, str] = {}
    api.fail(409, method="PATCH")
    await put(kube, PROXY, SERVICE, applied)
    assert [entry["operation"] for entry in api.get("Service", "events")["metadata"]["managedFields"]] == ["Update"]
    await put(kube, PROXY, SERVICE, applied)
    assert [entry["operation"] for entry in api.get("Service", "events")["metadata"]["managedFields"]] == ["Apply"]
    api.asked.clear()
    await put(kube, PROXY, SERVICE, applied)
    assert api.writes == []


async def test_a_child_made_by_somebody_between_look_and_creation_is_looked_at_again(api: FakeApi, kube: Kube) -> None:
    theirs = api.put({"kind": "Service", "metadata": {"name": "events", "namespace": "shop"}})
    api.fail(404, method="GET")
    with pytest.raises(NameTaken, match="Service events exists and does not belong to this resource"):
        await put(kube, PROXY, SERVICE, {})
    assert api.get("Service", "events") == theirs


@pytest.mark.parametrize(
    ("owners", "ours"),
    [
        ([], False),
        ([{"uid": UID, "controller": True}], True),
        ([{"uid": UID}], False),
        ([{"uid": UID, "controller": False}, {"uid": "x", "controller": True}], False),
        ([{"uid": "x"}, {"uid": UID, "controller": True}], True),
    ],
)
def test_ours_is_what_our_resource_controls(owners: list[dict[str, Any]], ours: bool) -> None:
    assert is_ours({"metadata": {"ownerReferences": owners}}, PROXY) is ours


async def test_pruning_deletes_what_is_ours_and_unwanted_and_nothing_else(api: FakeApi, kube: Kube) -> None:
    await put(kube, PROXY, SERVICE, {})
    other = api.put({"kind": "TinybirdProxy", "metadata": {"name": "events", "namespace": "shop"}, "spec": {}})
    labels = child_labels("events")
    api.put({"kind": "Service", "metadata": {"name": "labelled", "namespace": "shop", "labels": labels}})
    api.put({"kind": "Service", "metadata": owned("another-owners", labels, other)})
    api.put({"kind": "Service", "metadata": {**SERVICE["metadata"], "name": "old"}})
    api.put(
        {
            "kind": "Service",
            "metadata": {**SERVICE["metadata"], "name": "going", "deletionTimestamp": "2026-01-01T00:00:00Z"},
        }
    )
    assert await prune(kube, PROXY, [SERVICE], KINDS) == ["Service old"]
    assert set(api.names("Service")) == {"events", "labelled", "another-owners", "going"}


async def test_a_kind_that_the_cluster_does_not_have_is_not_looked_for_in_vain(api: FakeApi, kube: Kube) -> None:
    assert "PodMonitor" not in api.kinds
    assert await prune(kube, PROXY, [], ["PodMonitor"]) == []


def test_a_deployment_says_which_template_was_applied() -> None:
    built = deployment.build(desired())
    marked = children.with_template_hash(built)
    assert applied_template(marked) == children.template_hash(built)
    assert applied_template(built) is None
    assert children.template_hash(deployment.build(desired(replicas=9))) == children.template_hash(built)
    assert children.template_hash(deployment.build(desired({"batch": {"maxRows": 7}}))) != children.template_hash(built)
    assert marked["spec"] == built["spec"]


@pytest.mark.parametrize(
    ("live", "wanted", "so"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"b": 1}, False),
        ({}, {"a": {}, "b": [], "c": "", "d": None}, True),
        ({}, {"a": False}, False),
        ({"a": [{"x": 1, "y": 2}]}, {"a": [{"x": 1}]}, True),
        ({"a": [{"x": 1}, {"x": 2}]}, {"a": [{"x": 1}]}, False),
        ({"a": [1]}, {"a": [2]}, False),
        ({"a": {"b": 1}}, {"a": 1}, False),
    ],
)
def test_what_the_server_adds_is_no_drift(live: Any, wanted: Any, so: bool) -> None:
    assert contains(live, wanted) is so
