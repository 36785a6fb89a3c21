"""Which targets an HPA can be given, by table, and whose HPAs are whose."""

from typing import Any

import pytest
from tests.operator.hpas import (
    CPU,
    DRAIN_TIME,
    KEDAS,
    ON_CHILD,
    ON_RESOURCE,
    ROWS,
    UTILIZATION,
    api_service,
    hpa,
)
from tests.operator.resources import resource

from tinybird_proxy_operator.names import Reason
from tinybird_proxy_operator.scaling.autoscaling import (
    Hpas,
    Plan,
    asked,
    from_adapter,
    from_own_api,
    hpas_of,
    pinned_by,
    value_of,
    with_kept,
)
from tinybird_proxy_operator.spec import Autoscaling, Proxy

OWN = ("tinybird-system", "operator-metrics-api")
WANTED = (UTILIZATION, ROWS)
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def autoscaled(**autoscaling: Any) -> Proxy:
    return resource({"autoscaling": {"maxReplicas": 4, "targets": {"cpuPercent": 70}, **autoscaling}})


def test_targets_are_those_that_the_spec_names_in_the_order_of_the_table() -> None:
    autoscaling: Autoscaling | None = autoscaled(targets={"cpuPercent": 70, "bufferRowsPerPod": 9}).spec.autoscaling
    assert autoscaling is not None
    assert asked(autoscaling) == (ROWS, CPU)
    assert [value_of(autoscaling, target) for target in (ROWS, CPU, DRAIN_TIME)] == [9, 70, None]


def test_an_api_of_the_operators_own_that_is_available_serves_every_target() -> None:
    services = [api_service("v1beta2"), api_service("v1beta1")]
    assert from_own_api(WANTED, services, OWN) == Plan(targets=WANTED)


@pytest.mark.parametrize(
    ("services", "own", "reason", "words"),
    [
        ([], None, Reason.METRICS_UNAVAILABLE, "metricsAPI.enabled to true"),
        (None, None, Reason.METRICS_UNAVAILABLE, "metricsAPI.enabled to true"),
        ([], OWN, Reason.METRICS_UNAVAILABLE, "is not registered yet: see the log of the pods behind tinybird-system/"),
        (None, OWN, Reason.METRICS_UNAVAILABLE, "is not registered yet"),
        (
            [api_service(service=("monitoring", "prometheus-adapter"))],
            OWN,
            Reason.METRICS_API_OWNED_BY_OTHER,
            "The APIService v1beta1.custom.metrics.k8s.io belongs to the Service monitoring/prometheus-adapter",
        ),
        (
            [api_service(service=("monitoring", "prometheus-adapter"))],
            None,
            Reason.METRICS_API_OWNED_BY_OTHER,
            "set spec.autoscaling.provider to it",
        ),
        (
            [api_service("v1beta2"), api_service("v1beta1", ("a", "b"))],
            OWN,
            Reason.METRICS_API_OWNED_BY_OTHER,
            "belongs to the Service a/b",
        ),
        (
            [api_service("v1beta2"), api_service("v1beta1", available=False)],
            OWN,
            Reason.METRICS_UNAVAILABLE,
            "v1beta1.custom.metrics.k8s.io is not available: endpoints for service are not there",
        ),
        ([{**api_service(), "status": {}}], OWN, Reason.METRICS_UNAVAILABLE, "is not available yet."),
    ],
)
def test_an_api_that_is_not_there_or_somebody_elses_serves_none_and_says_what_to_do(
    services: list[dict[str, Any]] | None, own: tuple[str, str] | None, reason: Reason, words: str
) -> None:
    found = from_own_api(WANTED, services, own)
    assert (found.targets, found.left_out, found.problem) == ((), WANTED, reason)
    assert words in found.why


def test_a_metric_that_the_adapter_does_not_have_is_left_out_with_the_rule_that_it_needs() -> None:
    served = {"pods/tinybird_proxy_buffer_rows", "namespaces/tinybird_proxy_buffer_utilization_percent"}
    found = from_adapter(WANTED, served)
    assert (found.targets, found.left_out, found.problem) == ((ROWS,), (UTILIZATION,), None)
    assert "does not have pods/tinybird_proxy_buffer_utilization_percent." in found.why
    assert """seriesQuery: '{__name__=~"tinybird_proxy_buffer_utilization_percent",namespace""" in found.why


def test_an_adapter_that_has_them_all_serves_them_all() -> None:
    served = frozenset({"pods/tinybird_proxy_buffer_rows", "pods/tinybird_proxy_buffer_utilization_percent"})
    assert from_adapter(WANTED, served) == Plan(targets=WANTED)


@pytest.mark.parametrize(("served", "words"), [(None, "does not answer"), (frozenset[str](), "does not have")])
def test_without_an_adapter_there_is_no_target(served: frozenset[str] | None, words: str) -> None:
    found = from_adapter(WANTED, served)
    assert (found.targets, found.left_out, found.problem) == ((), WANTED, Reason.METRICS_UNAVAILABLE)
    assert words in found.why
    assert "seriesQuery" in found.why


def test_an_hpa_keeps_its_metrics_while_none_is_served_and_loses_those_that_nobody_asks_for() -> None:
    live = hpa(metrics=[ROWS.metric, CPU.metric])
    none = from_own_api(WANTED, [], OWN)
    assert with_kept(none, live).targets == (ROWS,)
    assert with_kept(none, live).problem is Reason.METRICS_UNAVAILABLE
    assert with_kept(none, None).targets == ()
    some = Plan(targets=(UTILIZATION,), left_out=(ROWS,))
    assert with_kept(some, live) == some


def test_an_hpa_is_ours_by_its_owner_and_foreign_by_what_it_scales() -> None:
    ours = hpa()
    theirs = hpa("by-hand", owner=None)
    child = hpa("on-the-child", ON_CHILD, None)
    others = [
        hpa("other", {**ON_RESOURCE, "name": "orders"}),
        hpa("other-group", {**ON_CHILD, "apiVersion": "example.com/v1"}, None),
        hpa("other-kind", {**ON_CHILD, "kind": "StatefulSet"}, None),
    ]
    assert hpas_of(autoscaled(), [*others, child, theirs, ours]) == Hpas(
        ours=ours, on_resource=(theirs,), on_child=(child,)
    )


def test_with_keda_the_hpa_that_counts_is_that_of_the_scaled_object() -> None:
    kedas = hpa("keda-hpa-events", owner=KEDAS)
    assert hpas_of(autoscaled(provider="KEDA"), [hpa(), kedas]) == Hpas(ours=kedas)
    assert hpas_of(autoscaled(), [kedas]).on_resource == (kedas,)
    other = hpa("keda-hpa-mine", owner={**KEDAS, "name": "mine"})
    assert hpas_of(autoscaled(provider="KEDA"), [other]).on_resource == (other,)


def owning(manager: str, operation: str, *fields: str) -> dict[str, Any]:
    return {"manager": manager, "operation": operation, "fieldsV1": {"f:spec": {f"f:{field}": {} for field in fields}}}


@pytest.mark.parametrize(
    ("metadata", "who"),
    [
        ({}, None),
        ({"managedFields": [owning("argocd-controller", "Apply", "replicas", "autoscaling")]}, "argocd-controller"),
        ({"managedFields": [owning("argocd-controller", "Apply", "autoscaling")]}, None),
        ({"managedFields": [owning("kube-controller-manager", "Update", "replicas")]}, None),
        ({"managedFields": [owning("tinybird-proxy-operator", "Apply", "replicas")]}, None),
        ({"managedFields": [{"manager": "x", "operation": "Apply", "fieldsV1": {"f:metadata": {}}}]}, None),
        ({"annotations": {LAST_APPLIED: '{"spec": {"replicas": 3}}'}}, "kubectl apply"),
        ({"annotations": {LAST_APPLIED: '{"spec": {"autoscaling": {}}}'}}, None),
        ({"annotations": {LAST_APPLIED: "no json"}}, None),
    ],
)
def test_whoever_applies_a_number_of_replicas_is_named(metadata: dict[str, Any], who: str | None) -> None:
    assert pinned_by({"metadata": metadata}) == who
