"""`reconcile` with autoscaling: who writes ``replicas`` first, when the HPA is made, changed and taken away."""

from typing import Any

from tests.operator.clusters import IPS, Cluster, report
from tests.operator.hpas import ON_CHILD, WORKING, api_service, hpa, seen

from tinybird_proxy_operator.autoscalers import HPAS_S, METRICS_API_S
from tinybird_proxy_operator.names import KIND
from tinybird_proxy_operator.reconcile import FIGURES_S
from tinybird_proxy_operator.scaling.throttle import CALM_FOR_S
from tinybird_proxy_operator.testing.served import SCALED_OBJECT

HPA = "HorizontalPodAutoscaler"
AUTOSCALING: dict[str, Any] = {"minReplicas": 2, "maxReplicas": 4, "targets": {"bufferRowsPerPod": 5000}}


def serve_metrics(cluster: Cluster, **changes: Any) -> None:
    for version in ("v1beta1", "v1beta2"):
        cluster.api.put(api_service(version, **changes))


async def autoscaled(cluster: Cluster, **autoscaling: Any) -> None:
    """A resource with an HPA, all applied."""
    serve_metrics(cluster)
    await cluster.installed({"autoscaling": {**AUTOSCALING, **autoscaling}})
    await cluster.reconcile()
    cluster.forget()


def behavior(cluster: Cluster) -> Any:
    return cluster.api.get(HPA, "events")["spec"]["behavior"]["scaleUp"]["selectPolicy"]


async def test_a_new_resource_begins_with_the_least_pods(cluster: Cluster) -> None:
    serve_metrics(cluster)
    cluster.resource({"autoscaling": AUTOSCALING})
    await cluster.reconcile()
    assert cluster.api.get(KIND, "events")["spec"]["replicas"] == 2
    assert cluster.api.get("Deployment", "events")["spec"]["replicas"] == 2


async def test_replicas_replaced_by_autoscaling_stay_what_runs(cluster: Cluster) -> None:
    serve_metrics(cluster)
    await cluster.installed({"replicas": 3}, pods=3)
    cluster.resource({"autoscaling": AUTOSCALING, "preflight": "Disabled"})
    await cluster.reconcile()
    assert cluster.api.get(KIND, "events")["spec"]["replicas"] == 3
    assert cluster.api.get("Deployment", "events")["spec"]["replicas"] == 3
    assert cluster.api.get(HPA, "events")["spec"]["scaleTargetRef"]["kind"] == KIND


async def test_what_an_autoscaler_writes_is_carried_out_and_never_written_back(cluster: Cluster) -> None:
    await autoscaled(cluster)
    body = cluster.api.get(KIND, "events")
    cluster.resource({**body["spec"], "replicas": 3})
    await cluster.reconcile()
    assert cluster.api.get("Deployment", "events")["spec"]["replicas"] == 3
    assert not [path for _, path in cluster.api.writes if path.endswith("/scale")]


async def test_the_hpa_is_told_in_numbers(cluster: Cluster) -> None:
    await autoscaled(cluster)
    live = cluster.api.get(HPA, "events")
    metrics = seen(buffer_rows="7k")
    cluster.api.put(
        {
            **live,
            "status": {"conditions": WORKING, "currentReplicas": 2, "desiredReplicas": 3, "currentMetrics": metrics},
        }
    )
    cluster.clock.seconds += HPAS_S
    await cluster.look()
    assert cluster.condition("Autoscaling") == ("True", "Scaling")
    assert cluster.message("Autoscaling") == "2 pods, 3 wanted (2 to 4): bufferRowsPerPod 7,000 of 5,000."


async def test_a_look_for_the_figures_writes_no_hpa_and_lists_those_of_the_namespace_once(cluster: Cluster) -> None:
    await autoscaled(cluster)
    cluster.clock.seconds += FIGURES_S
    await cluster.look()
    assert not [path for method, path in cluster.api.writes if "horizontal" in path]
    assert len([asked for asked in cluster.api.asked if "horizontal" in asked.path]) == 1


async def test_without_a_metrics_api_there_is_no_hpa_and_one_comes_with_it(cluster: Cluster) -> None:
    await cluster.installed({"autoscaling": AUTOSCALING})
    assert cluster.api.names(HPA) == []
    assert cluster.condition("Autoscaling") == ("False", "MetricsUnavailable")
    assert "There is no HPA. The operator's metrics API is not registered yet" in cluster.message("Autoscaling")
    serve_metrics(cluster)
    cluster.clock.seconds += METRICS_API_S
    await cluster.look()
    assert cluster.api.names(HPA) == ["events"]


async def test_an_hpa_stays_while_its_metrics_api_is_away(cluster: Cluster) -> None:
    await autoscaled(cluster)
    before = cluster.api.get(HPA, "events")
    serve_metrics(cluster, available=False)
    cluster.clock.seconds += METRICS_API_S
    await cluster.reconcile()
    assert cluster.api.get(HPA, "events")["spec"] == before["spec"]


async def test_an_api_of_somebody_elses_is_named(cluster: Cluster) -> None:
    serve_metrics(cluster, service=("monitoring", "prometheus-adapter"))
    await cluster.installed({"autoscaling": AUTOSCALING})
    assert cluster.condition("Autoscaling") == ("False", "MetricsAPIOwnedByOther")
    assert "monitoring/prometheus-adapter" in cluster.message("Autoscaling")


async def test_an_hpa_is_repaired_and_goes_with_the_wish_for_it(cluster: Cluster) -> None:
    await autoscaled(cluster)
    live = cluster.api.get(HPA, "events")
    live["spec"]["maxReplicas"] = 40
    cluster.api.put(live)
    await cluster.reconcile()
    assert cluster.api.get(HPA, "events")["spec"]["maxReplicas"] == 4
    cluster.resource({"replicas": 2, "preflight": "Disabled"})
    await cluster.reconcile()
    assert cluster.api.names(HPA) == []
    assert "Autoscaling" not in [each["type"] for each in cluster.status()["conditions"]]


async def test_throttling_turns_scale_up_off_at_once_and_on_again_after_two_calm_minutes(cluster: Cluster) -> None:
    await autoscaled(cluster)
    told = {**report(), "upstream_requests": {"replies_1m": 100, "throttled_1m": 90}}
    cluster.proxies.says = dict.fromkeys(IPS, told)
    cluster.clock.seconds += FIGURES_S
    await cluster.look()
    assert behavior(cluster) == "Disabled"
    assert cluster.condition("UpstreamThrottled") == ("True", "Throttled")
    assert ("Warning", "Throttled") in [(kind, reason) for kind, reason, _ in cluster.told()]
    assert cluster.api.get(KIND, "events")["spec"]["replicas"] == 2
    cluster.reconciler = cluster.operator()  # another one takes over
    cluster.proxies.says.clear()
    await cluster.reconcile()
    assert behavior(cluster) == "Disabled"
    cluster.clock.seconds += CALM_FOR_S
    await cluster.look()
    assert behavior(cluster) == "Max"
    assert cluster.condition("UpstreamThrottled") == ("False", "NotThrottled")


async def test_throttling_is_told_without_autoscaling_too(cluster: Cluster) -> None:
    await cluster.installed()
    told = {**report(), "upstream_requests": {"replies_1m": 100, "throttled_1m": 90}}
    cluster.proxies.says = dict.fromkeys(IPS, told)
    await cluster.look()
    assert cluster.condition("UpstreamThrottled") == ("True", "Throttled")


async def test_an_hpa_on_the_deployment_is_named_and_left_alone(cluster: Cluster) -> None:
    await autoscaled(cluster, provider="External", targets={})
    assert cluster.api.names(HPA) == []
    hers = cluster.api.put(hpa("hers", ON_CHILD, None))
    cluster.clock.seconds += HPAS_S
    await cluster.look()
    assert cluster.condition("Autoscaling") == ("False", "ForeignHPA")
    assert cluster.api.get(HPA, "hers") == hers


async def test_keda_gets_a_scaled_object_and_a_service_and_both_go_with_the_wish_for_them(cluster: Cluster) -> None:
    cluster.api.kinds["ScaledObject"] = SCALED_OBJECT
    cluster.reconciler = cluster.operator(SCALED_OBJECTS="true")
    await cluster.installed({"autoscaling": {**AUTOSCALING, "provider": "KEDA"}})
    await cluster.reconcile()
    assert cluster.api.names("ScaledObject") == ["events"]
    assert sorted(cluster.api.names("Service")) == ["events", "events-metrics"]
    assert cluster.condition("Autoscaling") == ("Unknown", "Unknown")
    cluster.forget()
    await cluster.reconcile()
    assert cluster.api.writes == []
    serve_metrics(cluster)
    cluster.resource({"autoscaling": AUTOSCALING, "replicas": 2})
    await cluster.reconcile()
    assert cluster.api.names("ScaledObject") == []
    assert cluster.api.names("Service") == ["events"]
    assert cluster.api.names(HPA) == ["events"]


async def test_our_hpa_goes_before_keda_is_asked_for_keda_takes_no_workload_that_has_one(cluster: Cluster) -> None:
    cluster.api.kinds["ScaledObject"] = SCALED_OBJECT
    cluster.reconciler = cluster.operator(SCALED_OBJECTS="true")
    await autoscaled(cluster)
    cluster.resource({"autoscaling": {**AUTOSCALING, "provider": "KEDA"}, "replicas": 2})
    cluster.api.fail(422, method="POST", path="/scaledobjects", message="the workload is already managed by the hpa")
    await cluster.reconcile()
    assert cluster.api.names(HPA) == []
    await cluster.reconcile()
    assert cluster.api.names("ScaledObject") == ["events"]


async def test_without_kedas_kind_or_the_right_to_it_a_sentence_says_what_to_do(cluster: Cluster) -> None:
    cluster.resource({"autoscaling": {**AUTOSCALING, "provider": "KEDA"}})
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("True", "ApplyRefused")
    assert "rbac.scaledObjects" in cluster.message("Degraded")
    assert cluster.condition("Autoscaling") == ("False", "NotScaling")
    cluster.reconciler = cluster.operator(SCALED_OBJECTS="true")
    await cluster.reconcile()
    assert "Install KEDA" in cluster.message("Degraded")
    assert cluster.api.names("Deployment") == ["events"]
