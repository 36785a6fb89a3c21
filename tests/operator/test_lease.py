"""Who may claim a Lease and what a claim looks like."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from tinybird_proxy_operator.lease import Observation, Timing, claimed, free_at, later, observe, released

TIMING = Timing()
AT = datetime(2026, 8, 1, 12, 0, 0, 5, UTC)
ME, OTHER = "operator-a_1", "operator-b_2"


def lease(uid: str = "u", annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    metadata = {"name": "operator", "namespace": "ops", "uid": uid, "resourceVersion": "7"}
    return {"metadata": {**metadata, "annotations": annotations or {}}, "spec": spec}


def held(**spec: Any) -> dict[str, Any]:
    return lease(**{"holderIdentity": OTHER, "leaseDurationSeconds": 15, "renewTime": "x", **spec})


def claim(seen: Observation, at: datetime = AT) -> dict[str, Any]:
    return claimed(seen, namespace="ops", name="operator", identity=ME, timing=TIMING, at=at)


def test_the_defaults_are_client_gos() -> None:
    assert (TIMING.lease_duration_s, TIMING.renew_deadline_s, TIMING.retry_period_s) == (15, 10, 2)
    assert TIMING.problem() is None


@pytest.mark.parametrize(
    ("times", "variable"), [((10, 10, 2), "LEASE_DURATION_SECONDS"), ((15, 3, 2), "LEASE_RENEW_DEADLINE_SECONDS")]
)
def test_times_that_do_not_go_together_are_named(times: tuple[int, int, int], variable: str) -> None:
    duration, deadline, period = times
    problem = Timing(lease_duration_s=duration, renew_deadline_s=deadline, retry_period_s=period).problem()
    assert problem is not None
    assert problem.startswith(variable)


@pytest.mark.parametrize(
    ("before", "after", "since"),
    [
        pytest.param(None, None, 9.0, id="what is seen first is seen since now"),
        pytest.param(held(), held(), 1.0, id="what did not change is seen since it was seen first"),
        pytest.param(held(), held(renewTime="y"), 9.0, id="a renewal is a change"),
        pytest.param(held(), held(annotations={"a": "b"}), 1.0, id="an annotation is none"),
        pytest.param(held(), held(uid="v"), 9.0, id="another Lease of that name is a change"),
        pytest.param(held(), None, 9.0, id="its deletion is a change"),
        pytest.param(None, held(), 9.0, id="its creation is a change"),
    ],
)
def test_since_when_a_lease_is_seen_as_it_is(before: Any, after: Any, since: float) -> None:
    first = None if before is None and after is None else Observation(before, 1.0)
    assert observe(first, after, 9.0) == Observation(after, since)


@pytest.mark.parametrize(
    ("seen", "at"),
    [
        pytest.param(held(), 115.0, id="held: when its duration has passed"),
        pytest.param(held(leaseDurationSeconds=60), 160.0, id="held for longer than ours: when that has passed"),
        pytest.param(held(leaseDurationSeconds=1), 115.0, id="held for less: when ours has passed"),
        pytest.param(held(holderIdentity=ME), 115.0, id="a name like ours that we did not write is anybody's"),
        pytest.param(None, 115.0, id="absent: somebody may have deleted it under a leader"),
        pytest.param(held(holderIdentity=""), 115.0, id="emptied by hand: its leader does not know yet"),
        pytest.param(lease(), 115.0, id="empty"),
        pytest.param(released(held(), at=AT), 100.0, id="released: at once"),
    ],
)
def test_when_a_lease_is_free(seen: Any, at: float) -> None:
    assert free_at(Observation(seen, 100.0), TIMING, claim=None) == at


def test_a_claim_of_ours_that_was_carried_out_without_an_answer_may_be_claimed_again_at_once() -> None:
    ours = claim(Observation(held(), 0.0))
    assert free_at(Observation(ours, 100.0), TIMING, claim=ours) == 100.0
    edited = {**ours, "spec": {**ours["spec"], "renewTime": "z"}}
    assert free_at(Observation(edited, 100.0), TIMING, claim=ours) == 115.0


def test_a_lease_that_is_made() -> None:
    assert claim(Observation(None, 0.0)) == {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "operator", "namespace": "ops"},
        "spec": {
            "holderIdentity": ME,
            "leaseDurationSeconds": 15,
            "acquireTime": "2026-08-01T12:00:00.000005Z",
            "renewTime": "2026-08-01T12:00:00.000005Z",
            "leaseTransitions": 0,
        },
    }


def test_a_lease_that_changes_hands_counts_it_and_keeps_what_is_not_ours() -> None:
    taken = claim(Observation(held(leaseTransitions=4, acquireTime="x", strategy="s"), 0.0))
    assert taken["spec"]["leaseTransitions"] == 5
    assert taken["spec"]["acquireTime"] == taken["spec"]["renewTime"] == "2026-08-01T12:00:00.000005Z"
    assert taken["spec"]["strategy"] == "s"
    assert taken["metadata"] == held()["metadata"]


def test_a_renewal_changes_the_time_of_renewal_only() -> None:
    ours = claim(Observation(None, 0.0))
    renewed = claim(Observation(ours, 0.0), AT + timedelta(seconds=2))
    assert renewed == {**ours, "spec": {**ours["spec"], "renewTime": "2026-08-01T12:00:02.000005Z"}}


def test_a_release_empties_the_holder_and_keeps_the_count() -> None:
    spec = released(held(leaseTransitions=4), at=AT)["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == ("", 1, 4)


def test_times_are_utc() -> None:
    at = AT.astimezone(timezone(timedelta(hours=9)))
    assert claim(Observation(None, 0.0), at)["spec"]["renewTime"] == "2026-08-01T12:00:00.000005Z"


def test_each_renewal_has_a_time_of_its_own_also_if_the_clock_stands_or_goes_back() -> None:
    assert later(AT, None) == AT
    assert later(AT, AT) == AT + timedelta(microseconds=1)
    assert later(AT - timedelta(hours=1), AT) == AT + timedelta(microseconds=1)
    assert later(AT + timedelta(hours=1), AT) == AT + timedelta(hours=1)
