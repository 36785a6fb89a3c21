"""Scaling down through the whole operator: rows that are still there at the deadline."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.operator.clusters import TRIES
from tests.operator.scaled_clusters import A, B, C, Scaled, running_scaled

from tinybird_proxy_operator.errors import Unavailable
from tinybird_proxy_operator.names import DRAINING_SINCE_ANNOTATION, KIND
from tinybird_proxy_operator.scaling.shrink import RETRY_S
from tinybird_proxy_operator.shrinking import RESTING_S


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Scaled]:
    async with running_scaled(tmp_path) as running:
        yield running


async def with_rows_that_stay(cluster: Scaled, on_deadline: str = "Keep") -> None:
    """Two of three pods hold rows that are not delivered until the deadline is over."""
    await cluster.with_pods(1200, 34, 5000, drain={"deadlineSeconds": 10, "onDeadline": on_deadline})
    cluster.scale(1)
    await cluster.turn(seconds=9.0)
    await cluster.turn()
    assert (cluster.draining(), cluster.replicas) == ([A, B], 3)


async def overdue(cluster: Scaled, on_deadline: str = "Keep") -> None:
    """The same, and the operator has seen it."""
    await with_rows_that_stay(cluster, on_deadline)
    await cluster.look()


async def test_at_the_deadline_the_drain_is_cancelled_the_pods_stay_and_the_status_says_why(cluster: Scaled) -> None:
    await overdue(cluster)
    assert (cluster.labelled(), cluster.draining(), cluster.replicas) == ([], [], 3)
    assert cluster.condition("Draining") == ("False", "DrainDeadlineExceeded")
    for words in ("1,200 rows are left in events-1-0, events-1-1.", "Tinybird does not answer", "tried again at"):
        assert words in cluster.message("Draining")
    assert cluster.reasons() == ["DrainDeadlineExceeded"]
    assert cluster.api.get("Pod", A)["metadata"]["annotations"] == {}
    cluster.kubernetes()
    message = cluster.message("Draining")
    assert await cluster.look() == RESTING_S
    assert cluster.labelled() == []
    assert cluster.message("Draining") == message
    assert cluster.condition("Ready") == ("True", "Ready")
    assert cluster.message("Ready") == "3 pods are ready, 1 are wanted."


async def test_a_drain_that_was_given_up_is_so_even_if_the_status_could_not_be_written(cluster: Scaled) -> None:
    await with_rows_that_stay(cluster)
    cluster.api.fail(503, method="PATCH", path="/status", times=TRIES)
    with pytest.raises(Unavailable):
        await cluster.look()
    assert cluster.condition("Draining") == ("True", "ScalingDown")
    assert await cluster.look() == RESTING_S
    assert cluster.labelled() == []
    assert cluster.condition("Draining") == ("False", "DrainDeadlineExceeded")
    assert "1,200 rows are left in events-1-0, events-1-1." in cluster.message("Draining")


@pytest.mark.parametrize("restarts", [False, True])
async def test_it_is_tried_again_after_five_minutes_whichever_operator_gave_it_up(
    cluster: Scaled, restarts: bool
) -> None:
    await overdue(cluster)
    if restarts:
        cluster.reconciler = cluster.operator()
    cluster.clock.seconds += RETRY_S - 2
    await cluster.turn(seconds=2.0)
    assert cluster.labelled() == []
    await cluster.turn()
    assert cluster.labelled() == [A, B]
    assert cluster.condition("Draining") == ("True", "ScalingDown")


async def test_it_is_tried_again_at_once_when_a_pod_delivers_again(cluster: Scaled) -> None:
    await overdue(cluster)
    await cluster.turn()
    cluster.proxies.hold(0, 34, 5000)
    await cluster.turn()
    assert cluster.labelled() == [A, B]
    cluster.proxies.hold(0, 0, 0)
    await cluster.turn()
    assert cluster.pods() == [C]


async def test_rows_are_dropped_at_the_deadline_where_that_is_asked_and_are_counted(cluster: Scaled) -> None:
    await overdue(cluster, "Drop")
    assert cluster.replicas == 1
    assert cluster.condition("Draining") == ("False", "RowsDropped")
    assert "1,200 rows are left in events-1-0, events-1-1." in cluster.message("Draining")
    assert cluster.reasons() == ["RowsDropped"]
    cluster.kubernetes()
    assert cluster.pods() == [C]
    await cluster.look()
    assert cluster.condition("Draining") == ("False", "RowsDropped")


@pytest.mark.parametrize("status", [500, 0])
async def test_dropped_rows_are_told_if_the_answer_to_the_lower_number_is_lost(cluster: Scaled, status: int) -> None:
    await with_rows_that_stay(cluster, "Drop")
    cluster.api.fail(status, method="PATCH", path="/deployments/", done_first=True)
    with pytest.raises(Unavailable):
        await cluster.look()
    assert cluster.replicas == 1
    assert cluster.reasons() == ["RowsDropped"]
    cluster.kubernetes()
    await cluster.look()
    assert cluster.condition("Draining") == ("False", "RowsDropped")
    assert "1,200 rows are left in events-1-0, events-1-1." in cluster.message("Draining")
    await cluster.turn()
    assert cluster.condition("Draining") == ("False", "RowsDropped")
    assert cluster.reasons() == ["RowsDropped"]


async def test_dropped_rows_are_in_a_later_status_if_this_one_cannot_be_written(cluster: Scaled) -> None:
    await with_rows_that_stay(cluster, "Drop")
    cluster.api.fail(503, method="PATCH", path="/status", times=TRIES)
    with pytest.raises(Unavailable):
        await cluster.look()
    cluster.kubernetes()
    await cluster.look()
    assert cluster.condition("Draining") == ("False", "RowsDropped")


async def test_rows_that_were_not_dropped_after_all_are_in_no_status(cluster: Scaled) -> None:
    await with_rows_that_stay(cluster, "Drop")
    cluster.api.fail(500, method="PATCH", path="/deployments/")
    with pytest.raises(Unavailable):
        await cluster.look()
    cluster.proxies.hold(0, 0, 0)
    for _ in range(3):
        await cluster.turn()
    assert cluster.replicas == 1
    assert "Draining" not in cluster.conditions()


async def test_a_drop_that_meets_a_change_of_the_deployment_is_told_once(cluster: Scaled) -> None:
    await with_rows_that_stay(cluster, "Drop")
    cluster.api.fail(409, method="PATCH", path="/deployments/")
    await cluster.look()
    assert cluster.condition("Draining") == ("True", "ScalingDown")
    await cluster.turn()
    assert cluster.condition("Draining") == ("False", "RowsDropped")
    assert cluster.reasons() == ["RowsDropped"]


async def test_a_deadline_is_counted_on_our_own_clock_whatever_another_operators_clock_wrote(cluster: Scaled) -> None:
    await cluster.with_pods(500, 700, 5000)
    cluster.scale(1, drain={"deadlineSeconds": 10, "onDeadline": "Drop"})
    await cluster.turn()
    for name in (A, B):
        found = cluster.api.get("Pod", name)
        annotations = {**found["metadata"]["annotations"], DRAINING_SINCE_ANNOTATION: "2025-12-31T00:00:00Z"}
        cluster.api.put({**found, "metadata": {**found["metadata"], "annotations": annotations}})
    for _ in range(9):
        await cluster.turn()
    assert cluster.replicas == 3
    await cluster.turn()
    assert cluster.replicas == 1


async def test_another_operator_counts_the_deadline_anew(cluster: Scaled) -> None:
    await cluster.with_pods(500, 700, 5000)
    cluster.scale(1, drain={"deadlineSeconds": 10, "onDeadline": "Drop"})
    await cluster.turn()
    cluster.clock.seconds += 100
    cluster.reconciler = cluster.operator()
    await cluster.turn(seconds=10)
    assert cluster.replicas == 3
    await cluster.turn()
    assert cluster.replicas == 1


async def test_a_resource_that_is_no_longer_there_is_forgotten(cluster: Scaled) -> None:
    await overdue(cluster)
    cluster.api.remove(KIND, "events")
    assert await cluster.reconcile() is None
