"""Secrets: those that a resource names, and those that are made for it."""

import base64
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Final

import pytest
from tests.operator.clusters import TRIES
from tests.operator.resources import OWN_TOKEN, UID, desired, resource

from tinybird_proxy.config import token_hash
from tinybird_proxy_operator.children import NameTaken
from tinybird_proxy_operator.credentials import (
    ensure_generated,
    find_client_secret,
    headers_stay_out,
    mounts,
    read_headers,
    read_token,
    rotate_client_token,
)
from tinybird_proxy_operator.errors import Unavailable
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.manifests import deployment
from tinybird_proxy_operator.manifests.secrets import RETAINED_FOR_ANNOTATION
from tinybird_proxy_operator.names import GROUP, USE_LABEL, Reason, child_labels
from tinybird_proxy_operator.observed import Problem
from tinybird_proxy_operator.rotation import ROTATE_ANNOTATION, Step
from tinybird_proxy_operator.spec import SecretKey
from tinybird_proxy_operator.testing.fake_api import FakeApi

REF = SecretKey(name="tinybird")
EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
RETAIN: Final[dict[str, Any]] = {**OWN_TOKEN, "clients": {"secretDeletionPolicy": "Retain"}}


def secret(value: str | None = "p.token", *, name: str = "tinybird", use: str | None = "token") -> dict[str, Any]:
    data = {} if value is None else {"data": {"token": base64.b64encode(value.encode()).decode()}}
    labels = {} if use is None else {"labels": {USE_LABEL: use}}
    return {"kind": "Secret", "metadata": {"name": name, "namespace": "shop", **labels}, **data}


@pytest.mark.parametrize("value", ["p.token", " p.token\n"])
async def test_a_token_is_known_by_the_hash_that_the_proxies_report(api: FakeApi, kube: Kube, value: str) -> None:
    api.put(secret(value))
    found = await read_token(kube, "shop", REF)
    assert (found.hash, found.problem) == (token_hash("p.token"), None)
    assert "p.token" not in repr(found)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (None, "SecretNotFound"),
        (secret(use=None), "SecretNotShared"),
        (secret(use="other"), "SecretNotShared"),
        (secret(None), "SecretKeyMissing"),
        (secret(""), "SecretKeyMissing"),
        (secret(" \n"), "SecretKeyMissing"),
    ],
)
async def test_a_secret_that_cannot_be_used_has_a_reason_and_no_hash(
    api: FakeApi, kube: Kube, given: dict[str, Any] | None, reason: str
) -> None:
    if given is not None:
        api.put(given)
    found = await read_token(kube, "shop", REF)
    assert found.hash is None
    assert found.problem is not None
    assert found.problem.reason == reason
    assert "Secret tinybird" in found.problem.message


async def test_of_a_secret_that_is_not_shared_not_even_the_keys_are_told(api: FakeApi, kube: Kube) -> None:
    given = secret(use=None)
    api.put({**given, "data": {"password-of-root": "eA=="}})
    found = await read_token(kube, "shop", REF)
    assert found.problem is not None
    assert "password-of-root" not in found.problem.message


async def test_a_secret_of_another_namespace_is_not_seen(api: FakeApi, kube: Kube) -> None:
    api.put(secret())
    found = await read_token(kube, "other", REF)
    assert found.problem is not None
    assert found.problem.reason == "SecretNotFound"


async def test_a_secret_that_cannot_be_read_now_is_not_called_missing(api: FakeApi, kube: Kube) -> None:
    api.put(secret())
    api.fail(503, times=TRIES)
    with pytest.raises(Unavailable):
        await read_token(kube, "shop", REF)


async def test_secrets_are_made_where_absent_each_with_a_token_of_its_own(api: FakeApi, kube: Kube) -> None:
    numbers = count()
    made = await ensure_generated(kube, desired(OWN_TOKEN), lambda: f"t-{next(numbers)}", client=True)
    assert made == ["events-admin", "events-client"]
    tokens = [base64.b64decode(api.get("Secret", name)["data"]["token"]).decode() for name in made]
    assert tokens == ["t-0", "t-1"]
    before = [api.get("Secret", name) for name in made]
    assert await ensure_generated(kube, desired(OWN_TOKEN), lambda: f"t-{next(numbers)}", client=True) == []
    assert [api.get("Secret", name) for name in made] == before


async def test_the_client_secret_is_made_only_if_it_is_used(api: FakeApi, kube: Kube) -> None:
    assert await ensure_generated(kube, desired(), lambda: "t", client=False) == ["events-admin"]
    assert api.names("Secret") == ["events-admin"]


@pytest.mark.parametrize("name", ["events-admin", "events-client"])
@pytest.mark.parametrize("seen", [True, False])
async def test_a_strangers_secret_of_that_name_is_not_used(api: FakeApi, kube: Kube, name: str, seen: bool) -> None:
    theirs = api.put(secret(name=name))
    if not seen:  # it came between look and creation
        api.fail(404, method="GET", path=name)
    with pytest.raises(NameTaken, match=f"Secret {name}"):
        await ensure_generated(kube, desired(OWN_TOKEN), lambda: "t", client=True)
    assert api.get("Secret", name) == theirs


async def test_of_an_immutable_secret_it_is_said_that_its_token_cannot_change(api: FakeApi, kube: Kube) -> None:
    api.put({**secret(), "immutable": True})
    found = await read_token(kube, "shop", REF)
    assert (found.hash, found.problem) == (token_hash("p.token"), None)
    assert found.note == (
        "The Secret tinybird is immutable: its token cannot be changed. To rotate it, make another Secret and name that"
        " one in the resource."
    )
    api.put(secret())
    assert (await read_token(kube, "shop", REF)).note is None


# The generated client Secret, later on.


async def installed(kube: Kube, spec: dict[str, Any] = OWN_TOKEN, **metadata: Any) -> None:
    await ensure_generated(kube, desired(spec, **metadata), lambda: "t1", client=True)


async def rotated(
    kube: Kube,
    spec: dict[str, Any] = OWN_TOKEN,
    *,
    asked: str | None = None,
    pods: dict[str, str | None] | None = None,
    at_s: float = 0.0,
    **metadata: Any,
) -> Step:
    """One look at the Secret, as a resource with this annotation has it."""
    annotations = {} if asked is None else {ROTATE_ANNOTATION: asked}
    wanted = desired(spec, annotations=annotations, **metadata)
    live = await find_client_secret(kube, wanted.proxy)
    assert live is not None
    now = EPOCH + timedelta(seconds=at_s)
    return await rotate_client_token(kube, wanted, live, pods=pods or {}, now=now, fresh_token="t2")


def data(api: FakeApi) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in api.get("Secret", "events-client")["data"].items()}


def annotations(api: FakeApi) -> dict[str, str]:
    found = api.get("Secret", "events-client")["metadata"].get("annotations") or {}
    return {key.removeprefix(f"{GROUP}/"): value for key, value in found.items()}


async def test_a_secret_with_which_nothing_is_to_be_done_is_not_written(api: FakeApi, kube: Kube) -> None:
    await installed(kube)
    api.asked.clear()
    assert await rotated(kube) == Step()
    assert api.writes == []


async def test_a_rotation_goes_through_the_secret_step_by_step(api: FakeApi, kube: Kube) -> None:
    await installed(kube)
    before = token_hash(data(api)["accepted"])
    await rotated(kube, asked="June", pods={"p": before})
    both = "t1 name=events-client\nt2 name=events-client\n"
    assert data(api) == {"token": "t1", "accepted": both, "next": "t2"}
    assert annotations(api) == {"rotating-for": "June", "rotating-since": "2026-01-01T00:00:00Z"}
    assert (await rotated(kube, asked="June", pods={"p": before})).content is None
    taken = await rotated(kube, asked="June", pods={"p": token_hash(both)})
    assert taken.told is not None
    assert data(api) == {
        "token": "t2",
        "accepted": "t1 name=events-client # replaced 2026-01-01T00:00:00Z\nt2 name=events-client\n",
    }
    assert annotations(api) == {"rotated-for": "June", "overlap-ends-at": "2026-01-02T00:00:00Z"}
    await rotated(kube, asked="June", at_s=86_400)
    assert data(api) == {"token": "t2", "accepted": "t2 name=events-client\n"}
    assert annotations(api) == {"rotated-for": "June"}


async def test_the_overlap_is_the_resources(api: FakeApi, kube: Kube) -> None:
    await installed(kube)
    spec = {**OWN_TOKEN, "clients": {"overlapSeconds": 60}}
    for _ in range(2):
        await rotated(kube, spec, asked="June")
    assert annotations(api)["overlap-ends-at"] == "2026-01-01T00:01:00Z"


async def test_of_two_writers_the_second_one_loses_and_looks_again(api: FakeApi, kube: Kube) -> None:
    await installed(kube)
    wanted = desired(OWN_TOKEN, annotations={ROTATE_ANNOTATION: "June"})
    live = await find_client_secret(kube, wanted.proxy)
    assert live is not None
    first = await rotate_client_token(kube, wanted, live, pods={}, now=EPOCH, fresh_token="t2")
    second = await rotate_client_token(kube, wanted, live, pods={}, now=EPOCH, fresh_token="t3")
    assert (first.content is None, second.content, second.told, second.again_s) == (False, None, None, 0.0)
    assert data(api)["next"] == "t2"


async def test_a_secret_that_is_deleted_meanwhile_stays_so_and_another_of_that_name_is_not_written(
    api: FakeApi, kube: Kube
) -> None:
    await installed(kube)
    wanted = desired(OWN_TOKEN, annotations={ROTATE_ANNOTATION: "June"})
    live = await find_client_secret(kube, wanted.proxy)
    assert live is not None
    api.remove("Secret", "events-client")
    assert (await rotate_client_token(kube, wanted, live, pods={}, now=EPOCH, fresh_token="t2")).again_s == 0.0
    assert "events-client" not in api.names("Secret")
    theirs = api.put(secret(name="events-client"))
    assert (await rotate_client_token(kube, wanted, live, pods={}, now=EPOCH, fresh_token="t2")).again_s == 0.0
    assert api.get("Secret", "events-client") == theirs


async def test_a_write_that_fails_is_tried_anew_and_one_whose_answer_is_lost_is_not_done_twice(
    api: FakeApi, kube: Kube
) -> None:
    await installed(kube)
    for done_first in (False, True):
        api.fail(503, method="PATCH", done_first=done_first)
        with pytest.raises(Unavailable):
            await rotated(kube, asked="June")
        assert ("next" in data(api)) is done_first
    await rotated(kube, asked="June")
    assert (data(api)["token"], "next" in data(api)) == ("t2", False)


@pytest.mark.parametrize(
    "spoiled",
    [
        None,
        {},
        {"token": "", "accepted": "", "next": ""},
        {"token": "/w==", "accepted": "/w==", "next": "/w=="},
        {"accepted": base64.b64encode(b"a b c\n").decode()},
    ],
)
async def test_a_secret_whose_content_was_spoiled_gets_a_token_again(
    api: FakeApi, kube: Kube, spoiled: dict[str, str] | None
) -> None:
    await installed(kube)
    live = api.get("Secret", "events-client")
    api.put({**live, "data": spoiled})
    for _ in range(4):
        await rotated(kube)
    assert data(api)["token"] == "t2"
    assert "t2 name=events-client" in data(api)["accepted"].splitlines()


async def test_an_immutable_client_secret_is_not_written(api: FakeApi, kube: Kube) -> None:
    await installed(kube)
    before = api.put({**api.get("Secret", "events-client"), "immutable": True})
    taken = await rotated(kube, asked="June")
    assert taken.sentence is not None
    assert "is immutable" in taken.sentence
    assert api.get("Secret", "events-client") == before


def owners(api: FakeApi) -> list[str]:
    return [owner["uid"] for owner in api.get("Secret", "events-client")["metadata"].get("ownerReferences") or []]


async def test_whether_the_secret_goes_with_its_resource_can_be_changed_both_ways(api: FakeApi, kube: Kube) -> None:
    await installed(kube)
    for _ in range(2):
        await rotated(kube, RETAIN)
        assert (owners(api), annotations(api)) == ([], {"retained-for": "shop/events"})
        await rotated(kube)
        assert (owners(api), annotations(api)) == ([UID], {})
    assert data(api)["token"] == "t1"
    api.asked.clear()
    await rotated(kube)
    assert api.writes == []


async def test_a_retained_secret_is_used_by_a_new_resource_of_the_same_name(api: FakeApi, kube: Kube) -> None:
    await installed(kube, RETAIN)
    api.remove("Secret", "events-admin")  # that one went with the resource
    assert await ensure_generated(kube, desired(OWN_TOKEN, uid="new"), lambda: "t9", client=True) == ["events-admin"]
    await rotated(kube, uid="new")
    assert (owners(api), annotations(api), data(api)["token"]) == (["new"], {}, "t1")


async def test_a_retained_secret_goes_on_with_its_rotation_and_its_overlap(api: FakeApi, kube: Kube) -> None:
    await installed(kube, RETAIN)
    await rotated(kube, RETAIN, asked="June")
    for _ in range(2):
        await rotated(kube, RETAIN, asked="June", uid="new")
    assert data(api)["token"] == "t2"
    assert annotations(api) == {
        "retained-for": "shop/events",
        "rotated-for": "June",
        "overlap-ends-at": "2026-01-02T00:00:00Z",
    }


async def test_owners_that_others_added_stay_and_labels_that_were_lost_come_back(api: FakeApi, kube: Kube) -> None:
    await installed(kube)
    live = api.get("Secret", "events-client")
    other = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"}
    metadata = {**live["metadata"], "labels": {"team": "web"}}
    metadata["ownerReferences"] = [*metadata["ownerReferences"], other]
    api.put({**live, "metadata": metadata})
    await rotated(kube, RETAIN)
    assert owners(api) == ["x"]
    assert api.get("Secret", "events-client")["metadata"]["labels"] == {"team": "web", **child_labels("events")}
    await rotated(kube)
    assert owners(api) == ["x", UID]


async def test_a_strangers_client_secret_is_not_found(api: FakeApi, kube: Kube) -> None:
    assert await find_client_secret(kube, desired(OWN_TOKEN).proxy) is None
    api.put(secret(name="events-client"))
    assert await find_client_secret(kube, desired(OWN_TOKEN).proxy) is None
    await ensure_generated(kube, desired(OWN_TOKEN, name="other"), lambda: "t", client=True)
    assert await find_client_secret(kube, desired(OWN_TOKEN, name="other", uid="new").proxy) is None
    theirs = secret(name="events-client")
    theirs["metadata"]["annotations"] = {RETAINED_FOR_ANNOTATION: "shop/other"}
    api.put(theirs)
    with pytest.raises(NameTaken):
        await ensure_generated(kube, desired(RETAIN), lambda: "t", client=True)


def test_a_deployment_mounts_a_secret_or_does_not() -> None:
    built = deployment.build(desired(OWN_TOKEN))
    assert mounts(built, "events-client")
    assert not mounts(built, "other")
    assert not mounts({"spec": {}}, "events-client")


# The collector's headers.

TRACED: Final = {"telemetry": {"otlpEndpoint": "http://c:4318", "otlpHeadersSecretRef": {"name": "collector"}}}


def headers_secret(value: str, *, key: str = "headers", use: str | None = "token") -> dict[str, Any]:
    found = secret(value, name="collector", use=use)
    return {**found, "data": {key: found["data"]["token"]}}


async def test_good_headers_are_no_problem_and_none_are_none(api: FakeApi, kube: Kube) -> None:
    api.put(headers_secret("x-api-key=key,authorization=Basic%20eA==\n"))
    assert await read_headers(kube, resource(TRACED)) is None
    assert await read_headers(kube, resource({})) is None


@pytest.mark.parametrize(
    ("given", "reason", "says"),
    [
        (None, "SecretNotFound", "Secret collector does not exist in namespace shop. Create it, with the key headers."),
        (headers_secret("a=b", use=None), "SecretNotShared", "kubectl label secret collector"),
        (headers_secret("a=b", key="other"), "SecretKeyMissing", "no value under the key headers; its keys: other."),
        (headers_secret(" \n"), "SecretKeyMissing", "no value under the key headers"),
        (headers_secret("s3cret"), "SecretMalformed", "key headers, cannot be used: header 1 is not key=value"),
    ],
)
async def test_what_is_wrong_with_headers_has_a_reason_and_keeps_no_row_waiting(
    api: FakeApi, kube: Kube, given: dict[str, Any] | None, reason: str, says: str
) -> None:
    if given is not None:
        api.put(given)
    problem = await read_headers(kube, resource(TRACED))
    assert problem is not None
    assert problem.reason == reason
    assert says in problem.message
    assert problem.message.endswith(" It is for the headers of spans alone: no row waits for it.")
    assert "s3cret" not in problem.message


@pytest.mark.parametrize(
    ("reason", "out_of_new_pods", "out_where_they_have_it"),
    [
        (None, False, False),
        (Reason.SECRET_NOT_SHARED, True, True),
        (Reason.SECRET_NOT_FOUND, True, False),
        (Reason.SECRET_KEY_MISSING, False, False),
        (Reason.SECRET_MALFORMED, False, False),
    ],
)
def test_a_secret_that_is_not_known_to_be_shared_comes_into_no_pod_that_has_it_not(
    reason: Reason | None, out_of_new_pods: bool, out_where_they_have_it: bool
) -> None:
    problem = None if reason is None else Problem(reason=reason, message="")
    ref = resource(TRACED).spec.telemetry.otlp_headers_secret_ref
    with_it, without_it = (deployment.build(desired(spec)) for spec in (TRACED, {}))
    assert [headers_stay_out(problem, ref, live) for live in (None, without_it, with_it)] == [
        *(out_of_new_pods, out_of_new_pods, out_where_they_have_it)
    ]
