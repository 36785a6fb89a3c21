"""What is told of the pods that ask for a sidecar."""

from typing import Any

import pytest
from tests.operator.app_pods import HASH, SIDECAR, app_pod

from tinybird_proxy_operator.names import INJECT_LABEL, Reason
from tinybird_proxy_operator.sidecars.app_pods import AppPod, asking
from tinybird_proxy_operator.sidecars.standing import Standing, needed_grace_period_s, refusals, stand, why_off


def pods(*given: dict[str, Any]) -> list[AppPod]:
    return asking(given, name="events", namespace_labels={}, sidecar=SIDECAR, reports={})


def standing(*given: dict[str, Any], **options: Any) -> Standing:
    return stand(pods(*given), **{"off": "", "evicts": False, "needed_grace_period_s": 30, "told": [], **options})


CURRENT, STALE = app_pod("a", hash=HASH, state={}), app_pod("b", hash="0", state={})
MISSED, REFUSED = app_pod("c"), app_pod("d", spec={"hostNetwork": True})
NIGHTLY = app_pod("e", owner=("Job", "nightly"))


def test_each_pod_is_counted_and_who_goes_is_not() -> None:
    going = app_pod("f", deletionTimestamp="2026-01-01T00:00:00Z")
    silent = app_pod("g", hash=HASH)
    assert standing(CURRENT, STALE, MISSED, REFUSED, going, silent).counts == {
        "injected": 3,
        "stale": 1,
        "missed": 1,
        "refused": 1,
        "unknown": 1,
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ("True", Reason.SIDECARS_CURRENT)),
        ([CURRENT], ("True", Reason.SIDECARS_CURRENT)),
        ([CURRENT, STALE], ("False", Reason.SIDECARS_STALE)),
        ([STALE, REFUSED], ("False", Reason.SIDECARS_REFUSED)),
        ([STALE, REFUSED, MISSED], ("False", Reason.SIDECARS_MISSED)),
    ],
    ids=lambda given: str(len(given)),
)
def test_the_condition_names_the_worst(given: list[dict[str, Any]], expected: tuple[str, Reason]) -> None:
    assert standing(*given).current[:2] == expected


def test_where_nobody_asks_it_says_how_to() -> None:
    assert INJECT_LABEL in standing().current[2]


def test_off_is_told_whatever_else_there_is() -> None:
    status, reason, message = standing(CURRENT, off=why_off("None", "shop", "tinybird-system")).current
    assert (status, reason) == ("False", Reason.INJECTION_OFF)
    assert "chart's value injection" in message


@pytest.mark.parametrize("namespace", ["kube-system", "tinybird-system"])
def test_a_namespace_that_injection_leaves_out_is_told_and_nobody_is_to_restart_its_pods(namespace: str) -> None:
    status, reason, message = standing(MISSED, off=why_off("Policy", namespace, "tinybird-system")).current
    assert (status, reason) == ("False", Reason.INJECTION_OFF)
    assert f"No pod of namespace {namespace} gets a sidecar" in message
    assert "estart" not in message
    assert why_off("Policy", "shop", "tinybird-system") == ""


def test_while_there_is_none_to_give_nobody_is_to_restart_what_has_one() -> None:
    message = standing(STALE, MISSED, rendered=False).current[2]
    assert "Do not restart them now: there is no sidecar to give" in message
    assert "Restart Deployment" not in message


def test_a_pod_that_asks_no_more_is_not_stale_but_said_to_have_it_still() -> None:
    other = app_pod("o", asks=None, hash="0", state={})
    found = standing(CURRENT, other)
    assert found.counts["stale"] == 0
    assert found.current[:2] == ("True", Reason.SIDECARS_CURRENT)
    assert found.current[2] == ("1 pod has the sidecar as it is now. o has it until the end, and asked for it once.")


@pytest.mark.parametrize(
    ("rendered", "expected"), [(SIDECAR, 30), ({**SIDECAR, "gracePeriod": "Raise"}, None), (None, None)]
)
def test_a_grace_period_that_is_raised_is_nobodys_to_raise(rendered: Any, expected: int | None) -> None:
    assert needed_grace_period_s(rendered) == expected


def test_the_advice_is_to_restart_or_to_let_it_evict() -> None:
    message = standing(STALE, MISSED).current[2]
    assert "Restart Deployment app, or set spec.sidecar.rollout to Evict." in message
    assert "evicted one after the other" in standing(STALE, evicts=True).current[2]


def test_what_nothing_replaces_is_left_alone_and_said_so() -> None:
    message = standing(NIGHTLY, evicts=True).current[2]
    assert "e: of a Job" in message
    assert "evicted one after the other" not in message


def test_a_grace_period_that_is_too_short_is_told_even_if_all_are_current() -> None:
    short = app_pod("s", hash=HASH, state={}, spec={"terminationGracePeriodSeconds": 10})
    status, _, message = standing(short).current
    assert status == "True"
    assert "s: terminationGracePeriodSeconds is less than 30" in message
    assert "terminationGracePeriodSeconds" not in standing(short, needed_grace_period_s=None).current[2]


def test_a_refusal_says_why_once_for_each_owner() -> None:
    other = app_pod("x", owner=None, spec={"hostNetwork": True})
    found = refusals(pods(REFUSED, app_pod("d2", spec={"hostNetwork": True}), other))
    assert list(found) == ["Deployment app", "Pod x"]
    assert found["Deployment app"].startswith("d gets no sidecar: spec.hostNetwork")


def test_what_hinders_evictions_is_told() -> None:
    assert "Deployment app: waits" in standing(STALE, evicts=True, told=["Deployment app: waits."]).current[2]
