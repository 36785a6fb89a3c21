"""The Secret that replicas share: who writes it, and what becomes of it when others do."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from tests.operator.test_metrics_api_authentication import Clock

from tinybird_proxy_operator.errors import Unavailable
from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.serving.renewal import Lifetimes, from_data
from tinybird_proxy_operator.serving.secret import CertificateSecret
from tinybird_proxy_operator.testing.fake_api import FakeApi

HERE, NAME = "tinybird-system", "certificates"
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def replica(kube: Kube, clock: Clock) -> CertificateSecret:
    return CertificateSecret(
        kube,
        namespace=HERE,
        name=NAME,
        server_names=["service.tinybird-system.svc"],
        lifetimes=Lifetimes(serving_s=90, overlap_s=10),
        now=clock,
        utc_now=lambda: EPOCH + timedelta(seconds=clock.now),
    )


def owner(api: FakeApi) -> dict[str, str]:
    made = api.put({"kind": "ClusterRole", "metadata": {"name": "owner"}})
    return {"apiVersion": made["apiVersion"], "kind": made["kind"], "name": "owner", "uid": made["metadata"]["uid"]}


async def test_what_is_issued_is_what_the_secret_says(api: FakeApi, kube: Kube, clock: Clock) -> None:
    its_owner = owner(api)
    issued = await replica(kube, clock).issued(its_owner, None)
    secret = api.get("Secret", NAME, HERE)
    assert from_data(secret["data"]) == issued
    assert secret["metadata"]["ownerReferences"] == [its_owner]


async def test_all_replicas_that_begin_at_once_have_the_same(api: FakeApi, kube: Kube, clock: Clock) -> None:
    its_owner, replicas = owner(api), [replica(kube, clock) for _ in range(3)]
    # Who comes second twice has a conflict, and has another look.
    await asyncio.gather(*(each.issued(its_owner, None) for each in replicas), return_exceptions=True)
    stored = from_data(api.get("Secret", NAME, HERE)["data"])
    assert [await each.issued(its_owner, None) for each in replicas] == [stored] * 3


@pytest.mark.parametrize(("silent_s", "is_stale"), [(10.0, False), (10.5, True)])
async def test_what_could_not_be_read_for_an_overlap_is_stale(
    api: FakeApi, kube: Kube, clock: Clock, silent_s: float, is_stale: bool
) -> None:
    its_owner, one = owner(api), replica(kube, clock)
    await one.issued(its_owner, None)
    api.fail(503, times=1000)
    clock.now = silent_s
    with pytest.raises(Unavailable):
        await one.issued(its_owner, None)
    assert one.is_stale == is_stale


async def test_what_is_read_again_is_not_stale(api: FakeApi, kube: Kube, clock: Clock) -> None:
    its_owner, one = owner(api), replica(kube, clock)
    clock.now = 11.0
    assert one.is_stale
    await one.issued(its_owner, None)
    assert not one.is_stale
