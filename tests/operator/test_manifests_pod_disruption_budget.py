"""How many pods may be evicted at a time."""

from tests.operator.resources import EVERYTHING, desired
from tests.operator.test_manifests_service import SELECTOR

from tinybird_proxy_operator.manifests.pod_disruption_budget import build


def test_one_pod_at_a_time_and_one_that_is_not_ready_at_any_time() -> None:
    manifest = build(desired())
    assert manifest is not None
    assert (manifest["apiVersion"], manifest["kind"]) == ("policy/v1", "PodDisruptionBudget")
    assert manifest["spec"] == {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": SELECTOR},
    }


def test_a_percentage_is_passed_on() -> None:
    manifest = build(desired(EVERYTHING))
    assert manifest is not None
    assert manifest["spec"]["maxUnavailable"] == "50%"


def test_policy_none_means_no_budget() -> None:
    assert build(desired({"podDisruptionBudget": {"policy": "None"}})) is None
