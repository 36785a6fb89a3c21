"""The API server's client, the real one, before a fake server: what it sends, and what it makes of answers."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.operator.clusters import TRIES, connection

from tinybird_proxy_operator import kube as kube_module
from tinybird_proxy_operator.errors import (
    Conflict,
    Forbidden,
    Invalid,
    KubeError,
    NamespaceTerminating,
    NotFound,
    Unavailable,
)
from tinybird_proxy_operator.kube import Kube, kubernetes_connection
from tinybird_proxy_operator.lease import NotLeader
from tinybird_proxy_operator.names import API_VERSION, FIELD_MANAGER, KIND
from tinybird_proxy_operator.testing.fake_api import FakeApi
from tinybird_proxy_operator.testing.fake_reviews import FakeReviews
from tinybird_proxy_operator.testing.field_owners import fields_of, owned_by


def service(name: str = "events", **metadata: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "shop", **metadata}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"type": "ClusterIP"}}


def resource(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "events", "namespace": "shop"}, "spec": spec}


async def test_a_request_carries_the_token_and_no_body_where_none_belongs(api: FakeApi, kube: Kube) -> None:
    api.put(service())
    await kube.get("Service", "shop", "events")
    assert (api.asked[-1].authorization, api.asked[-1].body) == ("Bearer operator-token", None)


async def test_no_byte_of_a_write_leaves_that_the_fence_stops_and_reads_and_the_lease_pass(
    api: FakeApi, tmp_path: Path
) -> None:
    stopped = False

    def fence() -> None:
        if stopped:
            raise NotLeader("somebody else leads")

    (tmp_path / "kubeconfig").write_text(api.kubeconfig())
    async with kubernetes_connection(str(tmp_path / "kubeconfig"), fence=fence, write_timeout_s=5) as kube:
        made = await kube.create(service())
        assert api.asked[-1].query["timeout"] == "5s"
        stopped, before = True, len(api.asked)
        uid = made["metadata"]["uid"]
        for write in (
            kube.create(service("other")),
            kube.apply(service(), uid=uid),
            kube.set_scale("shop", "events", 1, resource_version="1"),
            kube.delete("Service", "shop", "events", uid=uid),
        ):
            with pytest.raises(NotLeader):
                await write
        assert len(api.asked) == before
        assert await kube.find("Service", "shop", "events")
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {}}
        await kube.put({**lease, "metadata": {"name": "mine", "namespace": "shop"}})
        stopped = False
        await kube.delete("Service", "shop", "events", uid=uid)
        assert await kube.find("Service", "shop", "events") is None


async def test_a_lease_is_made_once_and_replaced_by_whoever_has_seen_it_last(api: FakeApi, kube: Kube) -> None:
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {}}
    made = await kube.put({**lease, "metadata": {"name": "mine", "namespace": "shop"}})
    newer = await kube.put({**made, "spec": {"holderIdentity": "one"}})
    with pytest.raises(Conflict):
        await kube.put({**made, "spec": {"holderIdentity": "other"}})
    assert (await kube.get("Lease", "shop", "mine"))["spec"] == newer["spec"] == {"holderIdentity": "one"}


async def test_without_a_cluster_to_connect_to_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no way to the API server"):
        async with kubernetes_connection(str(tmp_path / "none")):
            pass


async def test_an_object_is_found_or_not(api: FakeApi, kube: Kube) -> None:
    api.put(service())
    assert (await kube.get("Service", "shop", "events"))["spec"] == {"type": "ClusterIP"}
    assert await kube.find("Service", "shop", "other") is None
    with pytest.raises(NotFound, match=r"GET /api/v1/namespaces/shop/services/other: .*not found"):
        await kube.get("Service", "shop", "other")


async def test_a_name_cannot_leave_its_place_in_the_path(api: FakeApi, kube: Kube) -> None:
    assert await kube.find("Service", "shop", "../../kube-system/secrets/x") is None
    assert api.asked[-1].path.startswith("/api/v1/namespaces/shop/services/")


async def test_a_list_is_read_to_its_last_page(api: FakeApi, kube: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_module, "_PAGE_SIZE", 2)
    for number in range(5):
        api.put(service(f"s-{number}", labels={"a": "b"}))
    api.put(service("other"))
    found = await kube.list("Service", "shop", labels={"a": "b"})
    assert [each["metadata"]["name"] for each in found] == [f"s-{number}" for number in range(5)]
    assert len(api.asked) == 3


async def test_a_list_may_be_of_all_namespaces(api: FakeApi, kube: Kube) -> None:
    api.put(service())
    api.put(service(namespace="other"))
    assert len(await kube.list("Service", None)) == 2
    assert len(await kube.list("Service", "other")) == 1


async def test_a_page_that_has_expired_is_a_reason_to_come_again(
    api: FakeApi, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_module, "_PAGE_SIZE", 1)
    for number in range(3):
        api.put(service(f"s-{number}"))
    api.fail(410, path="/services")
    with pytest.raises(Unavailable):
        await kube.list("Service", "shop")
    assert len(await kube.list("Service", "shop")) == 3


async def test_creation_does_not_overwrite(api: FakeApi, kube: Kube) -> None:
    await kube.create(service())
    before = api.get("Service", "events")
    with pytest.raises(Conflict):
        await kube.create({**service(), "spec": {"type": "NodePort"}})
    assert api.get("Service", "events") == before


async def test_an_apply_changes_what_it_names_and_takes_back_what_it_no_longer_names(api: FakeApi, kube: Kube) -> None:
    uid = api.put(service(annotations={"theirs": "1"}))["metadata"]["uid"]
    await kube.apply(service(annotations={"ours": "1", "more": "2"}), uid=uid)
    assert api.get("Service", "events")["metadata"]["annotations"] == {"theirs": "1", "ours": "1", "more": "2"}
    await kube.apply(service(annotations={"ours": "1"}), uid=uid)
    assert api.get("Service", "events")["metadata"]["annotations"] == {"theirs": "1", "ours": "1"}
    asked = api.asked[-1]
    assert (asked.content_type, asked.query) == (
        "application/apply-patch+yaml",
        {"fieldManager": FIELD_MANAGER, "force": "true"},
    )


async def test_an_apply_in_vain_changes_nothing(api: FakeApi, kube: Kube) -> None:
    uid = api.put(service())["metadata"]["uid"]
    await kube.apply(service(), uid=uid)
    before = api.get("Service", "events")
    await kube.apply(service(), uid=uid)
    assert api.get("Service", "events") == before


async def test_an_apply_never_touches_another_object_of_that_name_and_never_makes_one(api: FakeApi, kube: Kube) -> None:
    with pytest.raises(Conflict):
        await kube.apply(service(), uid="gone")
    api.put(service())
    with pytest.raises(Conflict):
        await kube.apply({**service(), "spec": {"type": "NodePort"}}, uid="gone")
    assert api.get("Service", "events")["spec"] == {"type": "ClusterIP"}


async def test_what_a_creation_wrote_a_later_apply_takes_back_only_once_it_counts_as_applied(
    api: FakeApi, kube: Kube
) -> None:
    live = await kube.create(service(annotations={"ours": "1"}))
    await kube.apply(service(), uid=live["metadata"]["uid"])
    assert api.get("Service", "events")["metadata"]["annotations"] == {"ours": "1"}  # what this is there for
    await kube.own_by_apply(api.get("Service", "events"))
    await kube.apply(service(), uid=live["metadata"]["uid"])
    assert "annotations" not in api.get("Service", "events")["metadata"]


async def test_fields_are_taken_over_once_and_not_from_an_object_that_has_changed(api: FakeApi, kube: Kube) -> None:
    live = await kube.create(service())
    changed = api.put({**api.get("Service", "events"), "status": {"loadBalancer": {"x": 1}}})
    with pytest.raises(Conflict):
        await kube.own_by_apply(live)
    owned = await kube.own_by_apply(changed)
    api.asked.clear()
    assert await kube.own_by_apply(owned) == owned
    assert api.asked == []


async def test_a_status_is_written_without_the_rest(api: FakeApi, kube: Kube) -> None:
    uid = api.put(resource(replicas=1))["metadata"]["uid"]
    await kube.apply_status("shop", "events", uid, {"replicas": 1, "token": {"expectedHash": "aa"}})
    await kube.apply_status("shop", "events", uid, {"replicas": 2})
    live = api.get(KIND, "events")
    assert (live["status"], live["spec"], live["metadata"]["generation"]) == ({"replicas": 2}, {"replicas": 1}, 1)
    with pytest.raises(Conflict):
        await kube.apply_status("shop", "events", "another", {"replicas": 3})


async def test_a_scale_that_is_absent_can_be_written_but_not_over_a_change(api: FakeApi, kube: Kube) -> None:
    version = api.put(resource())["metadata"]["resourceVersion"]
    await kube.set_scale("shop", "events", 3, resource_version=version)
    assert api.get(KIND, "events")["spec"] == {"replicas": 3}
    with pytest.raises(Conflict):
        await kube.set_scale("shop", "events", 4, resource_version=version)


async def test_the_number_of_pods_is_set_only_on_the_deployment_that_is_meant(api: FakeApi, kube: Kube) -> None:
    metadata = {"name": "events", "namespace": "shop"}
    live = api.put({"kind": "Deployment", "metadata": metadata, "spec": {"replicas": 1, "paused": True}})
    await kube.set_replicas("shop", "events", 3, uid=live["metadata"]["uid"])
    assert api.get("Deployment", "events")["spec"] == {"replicas": 3, "paused": True}
    await kube.set_fields("shop", "events", {"paused": False}, uid=live["metadata"]["uid"])
    assert api.get("Deployment", "events")["spec"] == {"replicas": 3, "paused": False}
    with pytest.raises(Conflict):
        await kube.set_replicas("shop", "events", 4, uid="another")


async def test_deletion_is_of_the_object_that_is_meant_and_of_nothing_if_it_is_gone(api: FakeApi, kube: Kube) -> None:
    uid = api.put(service())["metadata"]["uid"]
    with pytest.raises(Conflict):
        await kube.delete("Service", "shop", "events", uid="another")
    await kube.delete("Service", "shop", "events", uid=uid)
    assert api.names("Service") == []
    assert api.asked[-1].body == {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
    await kube.delete("Service", "shop", "events", uid=uid)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, Invalid),
        (401, Forbidden),
        (403, Forbidden),
        (404, NotFound),
        (409, Conflict),
        (410, Unavailable),
        (415, Invalid),
        (422, Invalid),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
    ],
)
async def test_a_refusal_becomes_an_error_that_says_what_can_be_done(
    api: FakeApi, kube: Kube, status: int, kind: type[KubeError]
) -> None:
    api.fail(status, message="because", times=TRIES)
    with pytest.raises(KubeError, match="because") as caught:
        await kube.get("Service", "shop", "events")
    assert type(caught.value) is kind


async def test_a_namespace_that_is_being_deleted_is_told_from_a_right_that_lacks(api: FakeApi, kube: Kube) -> None:
    live = api.put(service())
    api.terminating.add("shop")
    with pytest.raises(NamespaceTerminating, match="because it is being terminated"):
        await kube.create(service("other"))
    await kube.apply(service(annotations={"a": "b"}), uid=live["metadata"]["uid"])
    await kube.create(service("other", namespace="elsewhere"))
    api.fail(403, message="namespace shop is being terminated")  # without the cause it is somebody's words
    with pytest.raises(Forbidden) as caught:
        await kube.create(service("other"))
    assert not isinstance(caught.value, NamespaceTerminating)


async def test_what_is_listed_is_as_complete_as_what_is_read(api: FakeApi, kube: Kube) -> None:
    api.put(service())
    assert await kube.list("Service", "shop") == [await kube.get("Service", "shop", "events")]


@pytest.mark.parametrize("after_s", [None, 7])
async def test_an_overloaded_server_says_when_to_come_again(api: FakeApi, kube: Kube, after_s: int | None) -> None:
    api.fail(429, retry_after_s=after_s)
    with pytest.raises(Unavailable) as caught:
        await kube.get("Service", "shop", "events")
    assert caught.value.retry_after_s == after_s
    assert len(api.asked) == 1  # it is the queue that comes again, not the client


@pytest.mark.parametrize(("status", "after_s"), [(429, 0), (500, None), (503, None), (503, 0)])
async def test_a_read_and_an_apply_are_tried_again_shortly_and_no_other_write_is(
    api: FakeApi, kube: Kube, status: int, after_s: int | None
) -> None:
    live = api.put(service())
    for repeatable in (
        lambda: kube.get("Service", "shop", "events"),
        lambda: kube.list("Service", "shop"),
        lambda: kube.apply(service(), uid=live["metadata"]["uid"]),
    ):
        api.fail(status, retry_after_s=after_s, times=TRIES - 1)
        await repeatable()
    for write in (
        lambda: kube.create(service("other")),
        lambda: kube.change(live, {"metadata": {"labels": {"a": "b"}}}),
        lambda: kube.delete("Service", "shop", "events", uid=live["metadata"]["uid"]),
    ):
        before = len(api.asked)
        api.fail(status, retry_after_s=after_s)
        with pytest.raises(Unavailable):
            await write()
        assert len(api.asked) == before + 1


async def test_a_long_wait_that_the_server_asks_for_is_left_to_the_queue(api: FakeApi, kube: Kube) -> None:
    api.fail(503, retry_after_s=3)
    with pytest.raises(Unavailable):
        await kube.get("Service", "shop", "events")
    assert len(api.asked) == 1


async def test_a_broken_connection_is_an_error_of_ours(api: FakeApi, kube: Kube) -> None:
    api.fail(0, times=10)  # aiohttp itself asks a second time if an old connection was closed
    with pytest.raises(Unavailable, match="GET /api/v1/namespaces/shop/services/events"):
        await kube.get("Service", "shop", "events")


async def test_a_server_that_does_not_answer_is_given_up(
    kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube_module, "REQUEST_TIMEOUT_S", 0.05)
    never = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await never.wait()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    quiet = FakeApi(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with connection(quiet, tmp_path) as before:
        with pytest.raises(Unavailable, match="TimeoutError"):
            await before.get("Service", "shop", "events")
    never.set()
    server.close()


@pytest.mark.parametrize(("status", "kind"), [(200, Unavailable), (502, Unavailable), (403, Forbidden)])
async def test_an_answer_that_is_not_the_api_servers_is_an_error(
    tmp_path: Path, status: int, kind: type[KubeError]
) -> None:
    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(page, "127.0.0.1", 0)
    gateway = FakeApi(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with connection(gateway, tmp_path) as before:
        with pytest.raises(kind):
            await before.list("Service", "shop")
    server.close()


async def test_a_webhook_that_cannot_be_called_is_a_refusal_of_this_object_and_no_outage(
    api: FakeApi, kube: Kube
) -> None:
    said = 'Internal error occurred: failed calling webhook "validate.nginx.ingress.kubernetes.io": no endpoints'
    api.fail(500, message=said)
    with pytest.raises(Forbidden, match="failed calling webhook"):
        await kube.get("Ingress", "shop", "events")


async def test_what_an_aggregated_api_has_is_told_by_name_and_one_that_is_not_there_is_not_found(
    api: FakeApi, kube: Kube
) -> None:
    resources = [{"name": "pods/rows"}, {"name": "namespaces/rows"}]
    api.documents["/apis/custom.metrics.k8s.io/v1beta2"] = {"resources": resources}
    assert await kube.served("custom.metrics.k8s.io/v1beta2") == {"pods/rows", "namespaces/rows"}
    with pytest.raises(NotFound):
        await kube.served("custom.metrics.k8s.io/v1beta1")


def api_service(**spec: Any) -> dict[str, Any]:
    body = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.example.com"}}
    return {**body, "spec": spec}


async def test_what_is_applied_where_there_was_nothing_takes_nothing_from_anybody(api: FakeApi, kube: Kube) -> None:
    await kube.apply_where(None, api_service(group="a"))
    assert (api.asked[-1].method, api.asked[-1].query["force"]) == ("PATCH", "false")
    theirs = api_service(group="b")
    theirs = owned_by(theirs, ("somebody", "Update", ""), fields_of(theirs))
    api.put(theirs | {"metadata": {**theirs["metadata"], "namespace": "", "name": "v1.example.com"}})
    with pytest.raises(Conflict):
        await kube.apply_where(None, api_service(group="a"))
    assert api.get("APIService", "v1.example.com", "")["spec"] == {"group": "b"}


async def test_what_is_applied_is_applied_to_what_was_read(api: FakeApi, kube: Kube) -> None:
    await kube.apply_where(None, api_service(group="a"))
    live = await kube.get("APIService", None, "v1.example.com")
    await kube.apply_where(live, api_service(group="b"))
    with pytest.raises(Conflict):
        await kube.apply_where(live, api_service(group="c"))
    await kube.delete("APIService", None, "v1.example.com", uid=live["metadata"]["uid"])
    with pytest.raises(Conflict):
        await kube.apply_where(live, api_service(group="c"))


async def test_a_review_is_answered_and_not_kept(api: FakeApi, kube: Kube) -> None:
    FakeReviews(api).users["t"] = {"username": "ann"}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {}, "spec": {"token": "t"}}
    assert (await kube.create(body))["status"] == {"authenticated": True, "user": {"username": "ann"}}
    assert api.asked[-1].path == "/apis/authentication.k8s.io/v1/tokenreviews"
    assert api.names("TokenReview") == []


async def test_a_path_that_is_no_objects_can_be_read(api: FakeApi, kube: Kube) -> None:
    api.documents["/apis/example.com/v1"] = {"kind": "APIResourceList"}
    assert await kube.read("/apis/example.com/v1") == {"kind": "APIResourceList"}
    with pytest.raises(NotFound):
        await kube.read("/apis/example.com/v2")


async def test_a_pod_is_evicted_only_if_it_is_the_one_that_was_meant(api: FakeApi, kube: Kube) -> None:
    pod = api.put({"kind": "Pod", "metadata": {"name": "app", "namespace": "shop"}})
    with pytest.raises(Conflict):
        await kube.evict("shop", "app", uid="another")
    await kube.evict("shop", "app", uid=pod["metadata"]["uid"])
    assert api.names("Pod") == []
    with pytest.raises(NotFound):
        await kube.evict("shop", "app", uid=pod["metadata"]["uid"])


async def test_an_eviction_that_a_budget_refuses_is_not_sent_again_by_itself(api: FakeApi, kube: Kube) -> None:
    pod = api.put({"kind": "Pod", "metadata": {"name": "app", "namespace": "shop"}})
    api.fail(429, path="/eviction", message="it would violate the pod's disruption budget")
    with pytest.raises(Unavailable, match="disruption budget"):
        await kube.evict("shop", "app", uid=pod["metadata"]["uid"])
    assert len(api.writes) == 1


async def test_pods_are_read_in_small_pages_and_each_is_there_once(api: FakeApi, kube: Kube) -> None:
    for number in range(250):
        api.put({"kind": "Pod", "metadata": {"name": f"app-{number}", "namespace": "shop"}})
    pages = [page async for page in kube.pages("Pod", "shop")]
    assert [len(page) for page in pages] == [100, 100, 50]
    assert len({pod["metadata"]["name"] for page in pages for pod in page}) == 250
    assert pages[0][0]["kind"] == "Pod"
