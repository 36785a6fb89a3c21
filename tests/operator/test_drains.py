"""Telling pods to drain and to serve again, on the fake API and proxies that drain."""

import base64
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest
from tests.operator.clusters import IPS
from tests.operator.draining_proxies import Drainable, running_drainable
from tests.operator.resources import UID, resource
from tests.operator.shrink_situations import pod, said

from tinybird_proxy_operator import drains
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.pods import Pods
from tinybird_proxy_operator.testing.fake_api import FakeApi

SERVES = replace(pod("p-1", 7), ip=IPS[0])
DRAINS = replace(SERVES, report=said(rows=7, draining=True, refusing=True))


@pytest.fixture
async def proxies() -> AsyncIterator[Drainable]:
    async with running_drainable() as running:
        yield running


@pytest.fixture
async def pods(proxies: Drainable) -> AsyncIterator[Pods]:
    async with aiohttp.ClientSession() as session:
        yield Pods(session, port=proxies.port)


async def test_a_pod_drains_with_what_it_says_then(proxies: Drainable, pods: Pods) -> None:
    proxies.hold(5)
    assert await drains.begin(pods, SERVES, proxies.token) == replace(
        SERVES, report=said(rows=5, draining=True, refusing=True)
    )
    proxies.buffers[IPS[0]].refusing, proxies.delays = False, True
    report = (await drains.begin(pods, SERVES, proxies.token)).report
    assert report is not None
    assert (report.draining, report.refusing) == (True, False)


async def test_a_pod_serves_again(proxies: Drainable, pods: Pods) -> None:
    proxies.buffers[IPS[0]].draining = True
    assert await drains.cancel(pods, DRAINS, proxies.token) == SERVES
    assert not proxies.buffers[IPS[0]].draining


async def test_a_pod_that_does_not_do_as_it_is_told_is_as_it_was(proxies: Drainable, pods: Pods) -> None:
    assert await drains.begin(pods, SERVES, "wrong") == SERVES
    proxies.buffers[IPS[0]].stopping = True
    assert await drains.cancel(pods, DRAINS, proxies.token) == DRAINS
    proxies.buffers[IPS[0]].answers = False
    assert await drains.begin(pods, SERVES, proxies.token) == SERVES
    for nowhere in (replace(SERVES, ip=None), replace(SERVES, report=None)):
        assert await drains.begin(pods, nowhere, proxies.token) == nowhere
        assert await drains.cancel(pods, nowhere, proxies.token) == nowhere


@pytest.mark.parametrize(
    ("value", "uid", "token"),
    [
        (base64.b64encode(b"secret\n").decode(), UID, "secret"),
        (base64.b64encode(b"secret").decode(), "another", None),
        ("no base64", UID, None),
        ("", UID, None),
    ],
)
async def test_the_admin_token_is_that_of_our_own_secret(
    api: FakeApi, kube: Kube, value: str, uid: str, token: str | None
) -> None:
    assert await drains.admin_token(kube, resource()) is None
    owner = {"apiVersion": "v1", "kind": "TinybirdProxy", "name": "events", "uid": uid, "controller": True}
    metadata = {"name": "events-admin", "namespace": "shop", "ownerReferences": [owner]}
    api.put({"kind": "Secret", "metadata": metadata, "data": {"token": value}})
    assert await drains.admin_token(kube, resource()) == token


def test_what_is_in_the_way_names_the_secret_and_the_pods() -> None:
    assert "Secret events-admin" in drains.no_token(resource())
    assert drains.deaf(resource(), ["a", "b"]).startswith("a, b did not begin to drain with the token of Secret events")
