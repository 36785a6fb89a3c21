"""The ownership rule, on a fake API server with the real client."""

from typing import Any

import pytest
from tests.operator.clusters import owned
from tests.operator.resources import UID, desired, resource

from tinybird_proxy_operator import children, manifests
from tinybird_proxy_operator.children import NameTaken, applied_template, contains, is_ours, labelled, prune, put
from tinybird_proxy_operator.errors import Invalid
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.manifests import deployment, service
from tinybird_proxy_operator.names import FIELD_MANAGER, child_labels
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
    found = [each for kind in KINDS for each in await labelled(kube, PROXY, kind)]
    assert await prune(kube, PROXY, [SERVICE], found) == ["Service old"]
    assert set(api.names("Service")) == {"events", "labelled", "another-owners", "going"}


async def test_a_kind_that_the_cluster_does_not_have_is_not_looked_for_in_vain(api: FakeApi, kube: Kube) -> None:
    assert "PodMonitor" not in api.kinds
    assert await labelled(kube, PROXY, "PodMonitor") == []


async def test_pruning_leaves_a_strangers_object_that_took_the_name_meanwhile(api: FakeApi, kube: Kube) -> None:
    await put(kube, PROXY, SERVICE, {})
    found = await labelled(kube, PROXY, "Service")
    api.remove("Service", "events")
    theirs = api.put({"kind": "Service", "metadata": {"name": "events", "namespace": "shop"}})
    assert await prune(kube, PROXY, [], found) == []
    assert api.get("Service", "events") == theirs


async def test_a_child_that_was_read_already_is_not_read_again(api: FakeApi, kube: Kube) -> None:
    await put(kube, PROXY, SERVICE, {})
    (live,) = await labelled(kube, PROXY, "Service")
    assert live == api.get("Service", "events")
    api.asked.clear()
    applied: dict[str, str] = {}
    live = await put(kube, PROXY, SERVICE, applied, live=live)
    assert [asked.method for asked in api.asked] == ["PATCH"]
    assert await put(kube, PROXY, SERVICE, applied, live=live) == live
    assert len(api.asked) == 1


def ports(api: FakeApi) -> list[tuple[str, int]]:
    return [(port["name"], port["port"]) for port in api.get("Service", "events")["spec"]["ports"]]


def move_port(api: FakeApi, port: int) -> None:
    """Change the Service's port as `kubectl edit` does: the entry is another one then, and its editor's."""
    live = api.get("Service", "events")
    (entry,) = live["spec"]["ports"]
    editor = {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": {"f:spec": {"f:ports": {}}}}
    metadata = {**live["metadata"], "managedFields": [*live["metadata"]["managedFields"], editor]}
    api.put({**live, "metadata": metadata, "spec": {**live["spec"], "ports": [{**entry, "port": port}]}})


async def test_a_port_that_somebody_changed_is_changed_back_though_it_cannot_be_applied(
    api: FakeApi, kube: Kube
) -> None:
    applied: dict[str, str] = {}
    await put(kube, PROXY, SERVICE, applied)
    move_port(api, 8080)
    with pytest.raises(Invalid, match='Duplicate value: "events"'):
        await kube.apply(SERVICE, uid=api.get("Service", "events")["metadata"]["uid"])
    api.asked.clear()
    live = await put(kube, PROXY, SERVICE, applied)
    assert ports(api) == [("events", 80)]
    assert live == api.get("Service", "events")
    assert [asked.content_type for asked in api.asked if asked.method == "PATCH"] == [
        "application/apply-patch+yaml",
        "application/merge-patch+json",
    ]


async def test_a_child_that_was_overwritten_is_applied_once_more_and_then_left(api: FakeApi, kube: Kube) -> None:
    applied: dict[str, str] = {}
    await put(kube, PROXY, SERVICE, applied)
    move_port(api, 8080)
    await put(kube, PROXY, SERVICE, applied)
    assert not applied["Service events"]
    await put(kube, PROXY, SERVICE, applied)
    (entry,) = api.get("Service", "events")["metadata"]["managedFields"]
    assert (entry["manager"], entry["operation"]) == (FIELD_MANAGER, "Apply")
    api.asked.clear()
    await put(kube, PROXY, SERVICE, applied)
    assert api.writes == []


async def test_what_can_be_neither_applied_nor_overwritten_is_refused_in_the_api_servers_words(
    api: FakeApi, kube: Kube
) -> None:
    applied: dict[str, str] = {}
    await put(kube, PROXY, SERVICE, applied)
    before = api.get("Service", "events")
    api.fail(422, method="PATCH", times=2, message="spec.ports: no")
    with pytest.raises(Invalid, match=r"spec\.ports: no"):
        await put(kube, PROXY, {**SERVICE, "spec": {**SERVICE["spec"], "type": "NodePort"}}, applied)
    assert api.get("Service", "events") == before
    assert "Service" not in applied


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
        ({}, {"paused": False}, True),
        ({}, {"paused": True}, False),
        ({"a": [{"x": 1, "y": 2}]}, {"a": [{"x": 1}]}, True),
        ({"a": [{"x": 1}, {"x": 2}]}, {"a": [{"x": 1}]}, False),
        ({"a": [1]}, {"a": [2]}, False),
        ({"a": {"b": 1}}, {"a": 1}, False),
    ],
)
def test_what_the_server_adds_is_no_drift(live: Any, wanted: Any, so: bool) -> None:
    assert contains(live, wanted) is so
