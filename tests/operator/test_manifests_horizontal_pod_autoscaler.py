"""The HPA: what it scales, by which metrics, how fast, and what throttling changes."""

from typing import Any

import pytest
from tests.operator.hpas import CPU, ROWS
from tests.operator.resources import EVERYTHING, desired

from tinybird_proxy_operator.manifests.horizontal_pod_autoscaler import BEHAVIOR, build
from tinybird_proxy_operator.scaling.autoscaling import Plan

AUTOSCALED: dict[str, Any] = {"autoscaling": {"maxReplicas": 4, "targets": {"cpuPercent": 70}}}


def built(spec: dict[str, Any], plan: Plan | None = None) -> dict[str, Any]:
    manifest = build(desired(spec, plan=plan))
    assert manifest is not None
    assert (manifest["apiVersion"], manifest["kind"]) == ("autoscaling/v2", "HorizontalPodAutoscaler")
    assert manifest["metadata"]["name"] == "events"
    return dict(manifest["spec"])


def test_it_scales_the_resource_and_never_the_deployment() -> None:
    assert built(AUTOSCALED) == {
        "scaleTargetRef": {"apiVersion": "tinybird-proxy.io/v1alpha1", "kind": "TinybirdProxy", "name": "events"},
        "minReplicas": 1,
        "maxReplicas": 4,
        "metrics": [
            {
                "type": "Pods",
                "pods": {
                    "metric": {"name": "tinybird_proxy_cpu_percent"},
                    "target": {"type": "AverageValue", "averageValue": "70"},
                },
            }
        ],
        "behavior": BEHAVIOR,
    }


def test_each_target_is_a_metric_of_its_own_and_those_that_nobody_serves_are_left_out() -> None:
    metrics = [metric["pods"] for metric in built(EVERYTHING)["metrics"]]
    assert [metric["target"]["averageValue"] for metric in metrics] == ["50", "100k", "30", "70"]
    served = built(EVERYTHING, Plan(targets=(ROWS, CPU)))["metrics"]
    assert [metric["pods"]["metric"]["name"] for metric in served] == [ROWS.metric, CPU.metric]


def test_what_the_spec_says_of_the_behavior_goes_before_the_defaults_and_the_rest_stays() -> None:
    behavior = built(EVERYTHING)["behavior"]
    assert behavior["scaleUp"] == BEHAVIOR["scaleUp"]
    expected = {"stabilizationWindowSeconds": 600, "tolerance": "50m"}
    assert behavior["scaleDown"] == {**BEHAVIOR["scaleDown"], **expected}


def test_while_tinybird_throttles_no_pod_is_added_and_pods_may_go() -> None:
    before = built(EVERYTHING)
    throttled = built(EVERYTHING, Plan(targets=(ROWS,), throttled=True))["behavior"]
    assert throttled["scaleUp"] == {**before["behavior"]["scaleUp"], "selectPolicy": "Disabled"}
    assert throttled["scaleDown"] == before["behavior"]["scaleDown"]
    assert built(EVERYTHING) == before
    assert BEHAVIOR["scaleUp"]["selectPolicy"] == "Max"


@pytest.mark.parametrize("provider", ["KEDA", "External"])
def test_there_is_none_where_somebody_else_makes_it(provider: str) -> None:
    autoscaling = {**AUTOSCALED["autoscaling"], "provider": provider}
    assert build(desired({"autoscaling": autoscaling})) is None


def test_there_is_none_without_autoscaling_or_without_a_metric() -> None:
    assert build(desired()) is None
    assert build(desired(AUTOSCALED, plan=Plan())) is None
