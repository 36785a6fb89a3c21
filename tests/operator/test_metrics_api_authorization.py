"""What somebody may: read off the path as the API server does, and decided by it."""

import pytest
from tests.operator.test_metrics_api_authentication import Clock

from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.metrics_api.api import Refused, parts_of
from tinybird_proxy_operator.metrics_api.authentication import User
from tinybird_proxy_operator.metrics_api.authorization import Attributes, Authorizer, attributes
from tinybird_proxy_operator.testing.fake_api import FakeApi
from tinybird_proxy_operator.testing.fake_reviews import FakeReviews

G, V = "custom.metrics.k8s.io", "v1beta2"
ROWS = "tinybird_proxy_buffer_rows"
ANN = User("ann", ("team",), "7", (("scopes", ("a",)),))
PODS = Attributes(verb="get", group=G, version=V, namespace="shop", resource="pods", name="*", subresource=ROWS)


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("GET", "/apis", Attributes(verb="get", path="/apis")),
        ("GET", f"/apis/{G}/{V}", Attributes(verb="get", path=f"/apis/{G}/{V}")),
        ("GET", "/openapi/v3/apis/x/y", Attributes(verb="get", path="/openapi/v3/apis/x/y")),
        ("GET", "/", Attributes(verb="get", path="/")),
        ("GET", f"/apis/{G}/{V}/namespaces/shop/pods/%2A/{ROWS}", PODS),
        ("HEAD", f"/apis/{G}/{V}/namespaces/shop/pods/*/{ROWS}", PODS),
        (
            "GET",
            f"/apis/{G}/{V}/namespaces/shop/pods",
            Attributes(verb="list", group=G, version=V, namespace="shop", resource="pods"),
        ),
        (
            "DELETE",
            f"/apis/{G}/{V}/pods/p",
            Attributes(verb="delete", group=G, version=V, resource="pods", name="p"),
        ),
        (
            "POST",
            f"/apis/{G}/{V}/namespaces/shop",
            Attributes(verb="create", group=G, version=V, namespace="shop", resource="namespaces", name="shop"),
        ),
    ],
)
def test_a_path_is_read_as_the_api_server_reads_it(method: str, path: str, wanted: Attributes) -> None:
    assert attributes(method, parts_of(path)) == wanted


async def test_the_api_server_is_asked_once_in_ten_seconds_for_each_user_and_thing(api: FakeApi, kube: Kube) -> None:
    clock, reviews = Clock(), FakeReviews(api)
    reviews.allowed.append({"user": "ann", "resource": "pods", "subresource": ROWS, "namespace": "shop"})
    authorizer = Authorizer(kube, now=clock)
    for _ in range(3):
        await authorizer.check(ANN, PODS)
    [spec] = reviews.asked
    assert spec == {
        "user": "ann",
        "uid": "7",
        "groups": ["team"],
        "extra": {"scopes": ["a"]},
        "resourceAttributes": {
            "verb": "get",
            "group": G,
            "version": V,
            "namespace": "shop",
            "resource": "pods",
            "subresource": ROWS,
            "name": "*",
        },
    }
    clock.now = 10.0
    reviews.allowed.clear()
    with pytest.raises(Refused) as refused:
        await authorizer.check(ANN, PODS)
    assert refused.value.code == 403
    assert str(refused.value) == (
        f'User "ann" cannot get resource "pods/{ROWS}" in API group "{G}" in the namespace "shop": no rule says so'
    )
    await authorizer.close()


async def test_a_denial_is_remembered_too_and_only_for_whom_it_was(api: FakeApi, kube: Kube) -> None:
    reviews = FakeReviews(api)
    reviews.allowed.append({"user": "bob", "path": "/apis"})
    authorizer, path = Authorizer(kube, now=Clock()), Attributes(verb="get", path="/apis")
    for _ in range(2):
        with pytest.raises(Refused, match='cannot get path "/apis"'):
            await authorizer.check(User("ann"), path)
    await authorizer.check(User("bob"), path)
    assert [spec["user"] for spec in reviews.asked] == ["ann", "bob"]
    assert reviews.asked[0]["nonResourceAttributes"] == {"path": "/apis", "verb": "get"}


async def test_masters_pass_without_asking(api: FakeApi, kube: Kube) -> None:
    reviews = FakeReviews(api)
    await Authorizer(kube, now=Clock()).check(User("root", ("system:masters",)), PODS)
    assert reviews.asked == []


async def test_no_answer_is_no_permission(api: FakeApi, kube: Kube) -> None:
    FakeReviews(api).allowed.append({"user": "ann"})
    authorizer = Authorizer(kube, now=Clock())
    api.fail(503, path="subjectaccessreviews")
    with pytest.raises(Refused, match="did not say whether ann may get") as refused:
        await authorizer.check(ANN, PODS)
    assert refused.value.code == 503
    await authorizer.check(ANN, PODS)
