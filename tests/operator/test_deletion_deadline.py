"""Deletion: rows that are still there at the deadline, on a clock that may be wrong."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from tests.operator.deleting_clusters import DELETED_AT, Deleting, running_deleting

from tinybird_proxy_operator.deletion import OVERDUE_S
from tinybird_proxy_operator.names import KIND


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Deleting]:
    async with running_deleting(tmp_path) as running:
        yield running


async def test_at_the_deadline_keep_stays_says_why_and_goes_by_itself_later(cluster: Deleting) -> None:
    await cluster.installed_and_deleted({"drain": {"deadlineSeconds": 60}}, rows=(5,))
    await cluster.reconcile()
    cluster.clock.seconds += 59
    await cluster.reconcile()
    assert cluster.condition("Draining") == ("True", "Deleting")
    cluster.clock.seconds += 1
    assert await cluster.reconcile() == OVERDUE_S
    assert cluster.condition("Draining") == ("False", "DrainDeadlineExceeded")
    assert "Tinybird does not answer" in cluster.message("Draining")
    assert [reason for _, reason, _ in cluster.told()] == ["DrainDeadlineExceeded"]
    cluster.clock.seconds += 10_000
    await cluster.reconcile()
    assert not cluster.gone()
    cluster.proxies.hold(0)
    await cluster.reconcile()
    assert cluster.gone()


async def test_at_the_deadline_drop_tells_the_rows_and_lets_go(cluster: Deleting) -> None:
    spec = {"drain": {"deadlineSeconds": 60, "onDeadline": "Drop", "shutdownTimeoutSeconds": 15}}
    await cluster.installed_and_deleted(spec, rows=(5,))
    await cluster.reconcile()
    cluster.clock.seconds += 60
    cluster.api.fail(409, method="PATCH", path="tinybirdproxies/events")
    await cluster.reconcile()
    assert cluster.gone()
    ((kind, reason, message),) = cluster.told()
    assert (kind, reason) == ("Warning", "RowsDropped")
    assert message.startswith("Deleted, for spec.drain.deadlineSeconds is over")
    assert "5 rows are left in 1 pods. clicks: Tinybird does not answer" in message
    assert "up to 15 s" in message


@pytest.mark.parametrize("skew", [timedelta(days=400), timedelta(days=-400)])
async def test_a_wrong_clock_neither_drops_rows_early_nor_keeps_them_for_ever(
    cluster: Deleting, skew: timedelta
) -> None:
    await cluster.installed_and_deleted({"drain": {"deadlineSeconds": 60, "onDeadline": "Drop"}}, rows=(5,))
    body = cluster.api.get(KIND, "events")
    at = datetime.fromisoformat(DELETED_AT) + skew
    cluster.api.put({**body, "metadata": {**body["metadata"], "deletionTimestamp": f"{at:%Y-%m-%dT%H:%M:%SZ}"}})
    await cluster.reconcile()
    cluster.clock.seconds += 59
    await cluster.reconcile()
    assert not cluster.gone()
    cluster.clock.seconds += 1
    await cluster.reconcile()
    assert cluster.gone()


async def test_a_restarted_operator_counts_anew_unless_the_deadline_was_over_by_then(cluster: Deleting) -> None:
    await cluster.installed_and_deleted({"drain": {"deadlineSeconds": 60}}, rows=(5,))
    await cluster.reconcile()
    cluster.clock.seconds += 59
    cluster.restart()
    await cluster.reconcile()
    cluster.clock.seconds += 59
    await cluster.reconcile()
    assert cluster.condition("Draining") == ("True", "Deleting")
    cluster.clock.seconds += 1
    await cluster.reconcile()
    cluster.restart()
    await cluster.reconcile()
    assert cluster.condition("Draining") == ("False", "DrainDeadlineExceeded")
    body = cluster.api.get(KIND, "events")
    cluster.api.put({**body, "spec": {**body["spec"], "drain": {"deadlineSeconds": 600}}})
    cluster.restart()
    await cluster.reconcile()
    assert cluster.condition("Draining") == ("True", "Deleting")
