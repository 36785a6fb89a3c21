"""Secrets: those that a resource names, and those that are made for it."""

import base64
from itertools import count
from typing import Any

import pytest
from tests.operator.resources import OWN_TOKEN, desired

from tinybird_proxy.config import token_hash
from tinybird_proxy_operator.children import NameTaken
from tinybird_proxy_operator.credentials import ensure_generated, read_token
from tinybird_proxy_operator.errors import Unavailable
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.names import USE_LABEL
from tinybird_proxy_operator.spec import SecretKey
from tinybird_proxy_operator.testing.fake_api import FakeApi

REF = SecretKey(name="tinybird")


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
    api.fail(503)
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
