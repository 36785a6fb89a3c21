"""Deletion: who puts the finalizer on a resource, and who takes it off."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.operator.deleting_clusters import OURS, THEIRS, Deleting, running_deleting

from tinybird_proxy_operator.names import KIND, finalizer
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.testing.field_owners import Object


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Deleting]:
    async with running_deleting(tmp_path) as running:
        yield running


async def test_the_finalizer_is_put_beside_others_once_there_is_a_deployment(cluster: Deleting) -> None:
    cluster.resource({"replicas": 1}, finalizers=[THEIRS])
    await cluster.reconcile()
    assert cluster.finalizers == [THEIRS, OURS]
    cluster.forget()
    await cluster.reconcile()
    assert cluster.api.writes == []


async def test_nothing_keeps_a_resource_that_the_operator_could_not_carry_out(cluster: Deleting) -> None:
    cluster.resource({"replicas": 1, "image": "evil/proxy:1"})
    await cluster.reconcile()
    assert cluster.finalizers == []


async def test_a_resource_that_changed_since_it_was_read_keeps_what_others_have_put_on_it(cluster: Deleting) -> None:
    cluster.resource({"replicas": 1})
    cluster.api.fail(409, method="PATCH", path="tinybirdproxies/events")
    assert await cluster.reconciler.reconcile(Key("shop", "events")) == 0.0
    cluster.resource({"replicas": 1}, finalizers=[THEIRS])
    await cluster.reconcile()
    assert cluster.finalizers == [THEIRS, OURS]


@pytest.mark.parametrize("spec", [{"managementState": "Unmanaged"}, {"controllerClass": "blue"}])
async def test_an_operator_that_no_longer_looks_after_a_resource_takes_its_finalizer_along(
    cluster: Deleting, spec: Object
) -> None:
    await cluster.installed({"replicas": 1})
    blue = finalizer("blue")
    cluster.resource({"replicas": 1, **spec}, finalizers=[THEIRS, OURS, blue])
    await cluster.reconcile()
    assert cluster.finalizers == [THEIRS, blue]


async def test_each_class_of_operators_has_a_finalizer_of_its_own(cluster: Deleting) -> None:
    await cluster.installed_and_deleted(rows=(5,))
    cluster.reconciler = cluster.operator(CONTROLLER_CLASS="blue")
    await cluster.reconcile()
    assert cluster.finalizers == [OURS]
    assert finalizer("blue") == "blue.tinybird-proxy.io/drain"


async def test_only_our_finalizer_is_removed(cluster: Deleting) -> None:
    await cluster.installed_and_deleted()
    cluster.api.put(
        {**(body := cluster.api.get(KIND, "events")), "metadata": {**body["metadata"], "finalizers": [OURS, THEIRS]}}
    )
    await cluster.reconcile()
    assert cluster.finalizers == [THEIRS]
    cluster.forget()
    assert await cluster.reconcile() is None
    assert cluster.api.writes == []
