"""Who asks: only the API server's word counts, and only with its certificate."""

from typing import Any

import pytest
from tests.operator.metrics_apis import configuration

from tinybird_proxy_operator.errors import NotFound
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.metrics_api.api import Refused
from tinybird_proxy_operator.metrics_api.authentication import (
    Authenticator,
    Peer,
    RequestHeaders,
    User,
    bearer_token,
    peer_of,
    read_configuration,
    read_review,
    user_by_headers,
)
from tinybird_proxy_operator.testing.fake_api import FakeApi
from tinybird_proxy_operator.testing.fake_reviews import FakeReviews

KNOWN = RequestHeaders(
    client_ca="a CA",
    allowed_names=("front-proxy-client",),
    username=("X-Remote-User",),
    uid=("X-Remote-Uid",),
    group=("X-Remote-Group",),
    extra_prefixes=("X-Remote-Extra-",),
)
AGGREGATOR = Peer("front-proxy-client")
ANN = User("ann", ("team", "system:authenticated"))


def test_the_configuration_is_read_as_the_api_server_writes_it() -> None:
    assert read_configuration(configuration("a CA")) == KNOWN
    assert read_configuration({"data": {"client-ca-file": "x"}}) == RequestHeaders()
    assert read_configuration({}) == RequestHeaders()
    with pytest.raises(ValueError, match="requestheader-allowed-names is not a list in JSON"):
        read_configuration(configuration("a CA", **{"requestheader-allowed-names": "front-proxy-client"}))


@pytest.mark.parametrize(
    ("known", "peer", "name"),
    [
        (KNOWN, AGGREGATOR, "ann"),
        (KNOWN, None, None),
        (KNOWN, Peer("somebody-else"), None),
        (KNOWN, Peer(None), None),
        (RequestHeaders(client_ca="a CA", username=("X-Remote-User",)), Peer("any"), "ann"),
        (RequestHeaders(client_ca="a CA", username=("X-Remote-User",)), None, None),
        (RequestHeaders(username=("X-Remote-User",)), Peer("any"), None),
        (RequestHeaders(client_ca="a CA", username=("X-Other", "x-remote-user")), Peer("any"), "ann"),
        (RequestHeaders(client_ca="a CA", username=("X-Other",)), Peer("any"), None),
    ],
)
def test_headers_count_with_a_verified_certificate_of_an_allowed_name(
    known: RequestHeaders, peer: Peer | None, name: str | None
) -> None:
    user = user_by_headers(known, peer, [("X-Remote-User", "ann"), ("X-Remote-Group", "team")])
    assert (None if user is None else user.name) == name


def test_everything_that_the_api_server_says_of_somebody_is_taken() -> None:
    headers = [
        ("X-Remote-User", "ann"),
        ("X-REMOTE-GROUP", "team"),
        ("X-Remote-Group", ""),
        ("x-remote-group", "system:authenticated"),
        ("X-Remote-Uid", "7"),
        ("X-Remote-Extra-Example.com%2Fscopes", "a"),
        ("x-remote-extra-example.com%2fscopes", "b"),
        ("X-Other", "z"),
    ]
    assert user_by_headers(KNOWN, AGGREGATOR, headers) == User(
        "ann", ("team", "system:authenticated"), "7", (("example.com/scopes", ("a", "b")),)
    )


@pytest.mark.parametrize(
    ("headers", "groups"),
    [
        ([("X-Remote-User", "ann")], ("system:authenticated",)),
        ([("X-Remote-User", "system:anonymous")], ()),
        ([("X-Remote-User", "x"), ("X-Remote-Group", "system:unauthenticated")], ("system:unauthenticated",)),
    ],
)
def test_whoever_is_known_is_authenticated_and_anonymous_is_nobody(
    headers: list[tuple[str, str]], groups: tuple[str, ...]
) -> None:
    user = user_by_headers(KNOWN, AGGREGATOR, headers)
    assert user is not None
    assert user.groups == groups


@pytest.mark.parametrize(
    ("certificate", "resumed", "peer"),
    [
        (None, False, None),
        ({}, False, None),
        ({"subject": ((("commonName", "a"),),)}, False, Peer("a")),
        ({"subject": ((("commonName", "a"),),)}, True, None),
        ({"subject": ((("organizationName", "o"),), (("commonName", "a"),))}, False, Peer("a")),
        ({"subject": ((("commonName", "a"),), (("commonName", "b"),))}, False, Peer(None)),
        ({"subject": ()}, False, Peer(None)),
    ],
)
def test_a_certificate_has_one_common_name(
    certificate: dict[str, Any] | None, resumed: bool, peer: Peer | None
) -> None:
    assert peer_of(certificate, resumed=resumed) == peer


@pytest.mark.parametrize(
    ("value", "token"),
    [("Bearer t", "t"), ("bearer  t ", "t"), ("Basic t", None), ("Bearer", None), ("Bearer ", None), ("t", None)],
)
def test_a_bearer_token_is_found(value: str, token: str | None) -> None:
    assert bearer_token([("Accept", "x"), ("authorization", value)]) == token


@pytest.mark.parametrize(
    ("status", "user"),
    [
        ({"authenticated": True, "user": {"username": "ann", "groups": ["team"]}}, ANN),
        (
            {"authenticated": True, "user": {"username": "a", "uid": "7", "extra": {"k": ["v"]}}},
            User("a", ("system:authenticated",), "7", (("k", ("v",)),)),
        ),
        ({"authenticated": False, "user": {"username": "ann"}}, None),
        ({"user": {"username": "ann"}}, None),
        ({"authenticated": True, "user": {}}, None),
        ({"authenticated": True}, None),
        ({}, None),
    ],
)
def test_a_review_says_whose_token_it_is(status: dict[str, Any], user: User | None) -> None:
    assert read_review({"status": status}) == user


class Clock:
    """Seconds, as a test sets them."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def configured(api: FakeApi, kube: Kube, clock: Clock) -> Authenticator:
    api.put(configuration("a CA"))
    authenticator = Authenticator(kube, now=clock)
    await authenticator.read()
    return authenticator


async def test_nobody_is_known_before_the_configuration_is(api: FakeApi, kube: Kube) -> None:
    authenticator = Authenticator(kube, now=Clock())
    with pytest.raises(NotFound):
        await authenticator.read()
    with pytest.raises(Refused, match="was not read yet") as refused:
        await authenticator.identify(AGGREGATOR, [("X-Remote-User", "ann")])
    assert refused.value.code == 503


async def test_a_token_is_reviewed_once_in_ten_seconds(api: FakeApi, kube: Kube) -> None:
    clock, reviews = Clock(), FakeReviews(api)
    reviews.users["t"] = {"username": "ann", "groups": ["team"]}
    authenticator = await configured(api, kube, clock)
    headers = [("Authorization", "Bearer t"), ("X-Remote-User", "root"), ("X-Remote-Group", "system:masters")]
    assert [await authenticator.identify(None, headers) for _ in range(3)] == [ANN] * 3
    assert reviews.asked == [{"token": "t"}]
    clock.now = 10.0
    del reviews.users["t"]
    with pytest.raises(Refused, match="Unauthorized"):
        await authenticator.identify(None, headers)
    await authenticator.close()


async def test_nobody_is_refused_without_asking(api: FakeApi, kube: Kube) -> None:
    reviews = FakeReviews(api)
    authenticator = await configured(api, kube, Clock())
    for headers in ([], [("X-Remote-User", "root")], [("Authorization", "Basic x")]):
        with pytest.raises(Refused, match="Unauthorized") as refused:
            await authenticator.identify(None, headers)
        assert refused.value.code == 401
    assert reviews.asked == []


async def test_an_api_server_that_does_not_say_is_no_permission_and_is_asked_again(api: FakeApi, kube: Kube) -> None:
    FakeReviews(api).users["t"] = {"username": "ann"}
    authenticator = await configured(api, kube, Clock())
    api.fail(500, path="tokenreviews")
    with pytest.raises(Refused, match="did not say whose token") as refused:
        await authenticator.identify(None, [("Authorization", "Bearer t")])
    assert refused.value.code == 503
    assert (await authenticator.identify(None, [("Authorization", "Bearer t")])).name == "ann"
