"""The condition Autoscaling, by table: every reason, and numbers as people read them."""

from typing import Any

import pytest
from tests.operator.hpas import (
    CPU,
    DRAIN_TIME,
    KEDAS,
    ON_CHILD,
    ROWS,
    UTILIZATION,
    WORKING,
    condition,
    hpa,
    limited,
    seen,
)
from tests.operator.resources import resource
from tests.operator.test_scaling_autoscaling import autoscaled

from tinybird_proxy_operator.names import Reason
from tinybird_proxy_operator.scaling.autoscaling import Hpas, Plan
from tinybird_proxy_operator.scaling.verdict import judge

ALL = {"bufferUtilizationPercent": 50, "bufferRowsPerPod": 200_000}
PLAN = Plan(targets=(UTILIZATION, ROWS))
BUSY = {
    "currentReplicas": 3,
    "desiredReplicas": 4,
    "currentMetrics": seen(buffer_utilization_percent="62", buffer_rows="123456"),
}
NONE = Plan(left_out=(UTILIZATION,), problem=Reason.METRICS_UNAVAILABLE, why="Nobody serves it.")


def said(hpas: Hpas, plan: Plan = PLAN, **autoscaling: Any) -> tuple[str, str, str]:
    found = judge(autoscaled(**{"targets": ALL, **autoscaling}), plan, hpas)
    assert found is not None
    return found


def working(*conditions: dict[str, str], **status: Any) -> Hpas:
    return Hpas(ours=hpa(conditions=list(conditions) or WORKING, **{**BUSY, **status}))


def test_a_resource_without_autoscaling_has_no_such_condition() -> None:
    assert judge(resource(), PLAN, working()) is None


def test_it_tells_pods_limits_and_each_target_with_what_is_seen() -> None:
    assert said(working()) == (
        "True",
        Reason.SCALING,
        "3 pods, 4 wanted (1 to 4): bufferUtilizationPercent 62 of 50, bufferRowsPerPod 120,000 of 200,000.",
    )


def test_a_metric_that_the_hpa_has_not_read_is_unknown() -> None:
    assert "bufferRowsPerPod unknown of 200,000." in said(working(currentMetrics=seen(buffer_rows="much")))[2]
    assert "bufferRowsPerPod unknown of 200,000." in said(working(currentMetrics=None))[2]


def test_thousandths_are_left_away() -> None:
    assert (
        "bufferUtilizationPercent 1 of 50" in said(working(currentMetrics=seen(buffer_utilization_percent="1500m")))[2]
    )


@pytest.mark.parametrize(
    ("why", "reason", "words"),
    [
        ("TooManyReplicas", Reason.AT_MAXIMUM, "raise spec.autoscaling.maxReplicas"),
        ("TooFewReplicas", Reason.AT_MINIMUM, "4 wanted"),
        ("ScaleUpLimit", Reason.SCALING, "4 wanted"),
    ],
)
def test_an_hpa_at_its_limits_says_so(why: str, reason: Reason, words: str) -> None:
    status, found, message = said(working(*limited(why)))
    assert (status, found) == ("True", reason)
    assert words in message


def test_a_target_that_is_left_out_is_named_with_what_to_do() -> None:
    plan = Plan(targets=(ROWS,), left_out=(UTILIZATION, DRAIN_TIME), why="Give it this rule.")
    status, reason, message = said(working(*limited("TooManyReplicas")), plan)
    assert (status, reason) == ("True", Reason.TARGETS_LEFT_OUT)
    assert message.endswith("Left out: bufferUtilizationPercent, drainTimeSeconds. Give it this rule.")
    assert "bufferUtilizationPercent 62" not in message


def test_throttling_comes_before_everything_but_what_is_broken() -> None:
    plan = Plan(targets=(ROWS,), left_out=(UTILIZATION,), why="Why.", throttled=True)
    status, reason, message = said(working(), plan)
    assert (status, reason) == ("True", Reason.THROTTLED)
    assert message.endswith("Scale-up is off while Tinybird throttles: see UpstreamThrottled.")


@pytest.mark.parametrize(
    ("conditions", "plan", "reason", "words"),
    [
        (
            [condition("AbleToScale", "False", "FailedGetScale", "no scale")],
            PLAN,
            Reason.NOT_SCALING,
            "The HPA cannot scale: no scale.",
        ),
        (
            [WORKING[0], condition("ScalingActive", "False", "FailedGetPodsMetric", "no metrics returned")],
            PLAN,
            Reason.METRICS_UNAVAILABLE,
            "The HPA gets no figures and does nothing: no metrics returned.",
        ),
        (
            [WORKING[0], condition("ScalingActive", "False", "FailedGetPodsMetric", "no metrics returned")],
            Plan(targets=(ROWS,), problem=Reason.METRICS_API_OWNED_BY_OTHER, why="It is another's."),
            Reason.METRICS_API_OWNED_BY_OTHER,
            "no metrics returned. It is another's.",
        ),
        (
            [WORKING[0], condition("ScalingActive", "False", "ScalingDisabled", "zero")],
            PLAN,
            Reason.SCALED_TO_ZERO,
            "spec.replicas is 0",
        ),
        (
            [WORKING[0], condition("ScalingActive", "False", "AmbiguousSelector", "controlled by a, b")],
            PLAN,
            Reason.FOREIGN_HPA,
            "controlled by a, b. Delete the others.",
        ),
        (
            [WORKING[0], condition("ScalingActive", "False", "InvalidSelector", "no selector")],
            PLAN,
            Reason.NOT_SCALING,
            "no selector",
        ),
    ],
)
def test_an_hpa_that_does_nothing_says_why(
    conditions: list[dict[str, str]], plan: Plan, reason: Reason, words: str
) -> None:
    status, found, message = said(working(*conditions), plan)
    assert (status, found) == ("False", reason)
    assert words in message


def test_without_any_metric_there_is_no_hpa_and_it_says_what_to_do() -> None:
    assert said(Hpas(), NONE) == ("False", Reason.METRICS_UNAVAILABLE, "There is no HPA. Nobody serves it.")


def test_an_hpa_that_was_just_made_is_unknown() -> None:
    assert said(Hpas()) == ("Unknown", Reason.UNKNOWN, "There is no HPA yet.")
    assert said(Hpas(ours=hpa()))[:2] == ("Unknown", Reason.UNKNOWN)


def test_an_hpa_on_the_deployment_is_foreign_whoever_is_the_provider() -> None:
    hpas = Hpas(ours=hpa(conditions=WORKING), on_child=(hpa("hers", ON_CHILD, None),))
    for provider in ("Builtin", "PrometheusAdapter", "KEDA", "External"):
        status, reason, message = said(hpas, provider=provider)
        assert (status, reason) == ("False", Reason.FOREIGN_HPA)
        assert message.startswith("HorizontalPodAutoscaler hers scales the Deployment events")


def test_a_second_hpa_on_the_resource_is_foreign_unless_the_provider_is_external() -> None:
    hers = hpa("hers", owner=None, conditions=WORKING, currentReplicas=2, desiredReplicas=3)
    status, reason, message = said(Hpas(ours=hpa(conditions=WORKING), on_resource=(hers,)))
    assert (status, reason) == ("False", Reason.FOREIGN_HPA)
    assert "hers scales this TinybirdProxy too" in message
    status, reason, message = said(Hpas(on_resource=(hers,)), Plan(), provider="External")
    assert (status, reason) == ("True", Reason.EXTERNAL)
    assert message.endswith("the operator does not interfere. 2 pods, 3 wanted (1 to 4).")
    assert said(Hpas(), Plan(), provider="External")[:2] == ("Unknown", Reason.EXTERNAL)


def test_kedas_external_metrics_are_known_by_the_end_of_their_names() -> None:
    metric = {"metric": {"name": "s1-metric-api-tinybird_proxy_cpu_percent"}, "current": {"averageValue": "81"}}
    kedas = hpa(
        "keda-hpa-events",
        owner=KEDAS,
        conditions=WORKING,
        currentMetrics=[{"type": "External", "external": metric}, {"type": ""}],
    )
    plan, targets = Plan(targets=(CPU,)), {"cpuPercent": 70}
    assert "cpuPercent 81 of 70." in said(Hpas(ours=kedas), plan, provider="KEDA", targets=targets)[2]


@pytest.mark.parametrize(
    ("scaled_object", "status", "words"),
    [
        (None, "False", "There is no ScaledObject"),
        ({}, "Unknown", "Is it running?"),
        ({"status": {"conditions": [condition("Ready", "False", message="no such kind")]}}, "False", "no such kind."),
        ({"status": {"conditions": [condition("Ready", "True")]}}, "Unknown", "has made no HPA"),
    ],
)
def test_where_keda_has_made_no_hpa_its_own_words_are_told(
    scaled_object: dict[str, Any] | None, status: str, words: str
) -> None:
    found = judge(autoscaled(provider="KEDA"), Plan(targets=(CPU,)), Hpas(), scaled_object=scaled_object)
    assert found is not None
    assert found[0] == status
    assert words in found[2]


def test_somebody_who_writes_replicas_back_is_named_beside_everything_else() -> None:
    found = judge(autoscaled(targets=ALL), PLAN, working(), pinned_by="argocd-controller")
    assert found is not None
    assert found[:2] == ("True", Reason.SCALING)
    assert found[2].endswith(
        "of 200,000. What argocd-controller applies has spec.replicas, and takes back what was scaled:"
        " leave it out there."
    )
