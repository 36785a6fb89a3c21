"""What is read of the metrics APIs and the HPAs: once in a while for all resources, and never a failure of its own."""

import asyncio
from typing import Any

import pytest
from tests.operator.clusters import TRIES, Cluster
from tests.operator.hpas import CPU, ROWS, api_service, hpa
from tests.operator.resources import operator_settings, resource
from tests.operator.test_status import observed, pod, said

from tinybird_proxy_operator.autoscalers import HPAS_S, METRICS_API_S, Autoscalers
from tinybird_proxy_operator.names import Reason
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.scaling.autoscaling import NONE, Plan
from tinybird_proxy_operator.spec import Proxy

KEY = Key("shop", "events")
BODY: dict[str, Any] = {"metadata": {"name": "events"}}
V2 = "custom.metrics.k8s.io/v1beta2"
V1 = "custom.metrics.k8s.io/v1beta1"


def listed(*names: str) -> dict[str, Any]:
    return {"kind": "APIResourceList", "resources": [{"name": name} for name in names]}


def proxy(provider: str = "Builtin", **metadata: Any) -> Proxy:
    targets = {"bufferRowsPerPod": 9, "cpuPercent": 70}
    return resource({"autoscaling": {"maxReplicas": 4, "targets": targets, "provider": provider}}, **metadata)


def autoscalers(cluster: Cluster, **env: str) -> Autoscalers:
    return Autoscalers(cluster.kube, operator_settings(**env), cluster.clock.now)


def asked(cluster: Cluster, word: str) -> int:
    return len([request for request in cluster.api.asked if word in request.path])


async def test_a_resource_that_asks_for_nothing_costs_no_call(cluster: Cluster) -> None:
    edge = autoscalers(cluster)
    assert await edge.plan(KEY, resource(), {}) == NONE
    assert await edge.plan(KEY, proxy("External"), {}) == NONE
    assert (await edge.plan(KEY, proxy("KEDA"), {})).targets == (ROWS, CPU)
    assert cluster.api.asked == []


async def test_the_apis_owner_is_read_once_for_all_resources_and_again_after_a_while(cluster: Cluster) -> None:
    cluster.api.put(api_service("v1beta1"))
    cluster.api.put(api_service("v1beta2"))
    edge = autoscalers(cluster)
    plans = await asyncio.gather(*(edge.plan(Key("shop", f"p-{n}"), proxy(name=f"p-{n}"), {}) for n in range(20)))
    assert {plan.targets for plan in plans} == {(ROWS, CPU)}
    assert asked(cluster, "apiservices") == 2
    cluster.api.put(api_service("v1beta1", ("monitoring", "adapter")))
    cluster.clock.seconds += METRICS_API_S
    assert (await edge.plan(KEY, proxy(), {})).problem is Reason.METRICS_API_OWNED_BY_OTHER


async def test_an_operator_that_may_not_read_apiservices_says_how_its_api_is_turned_on(cluster: Cluster) -> None:
    cluster.api.fail(403, path="/apiservices/")
    plan = await autoscalers(cluster, METRICS_API_SERVICE="").plan(KEY, proxy(), {})
    assert "metricsAPI.enabled" in plan.why


async def test_an_adapter_is_asked_for_the_newer_version_and_else_for_the_older(cluster: Cluster) -> None:
    cluster.api.documents[f"/apis/{V1}"] = listed("pods/tinybird_proxy_buffer_rows")
    edge = autoscalers(cluster)
    assert (await edge.plan(KEY, proxy("PrometheusAdapter"), {})).targets == (ROWS,)
    cluster.api.documents[f"/apis/{V2}"] = listed("pods/tinybird_proxy_buffer_rows", "pods/tinybird_proxy_cpu_percent")
    cluster.clock.seconds += METRICS_API_S
    assert (await edge.plan(KEY, proxy("PrometheusAdapter"), {})).targets == (ROWS, CPU)


@pytest.mark.parametrize("status", [503, 403, 500, 0])
async def test_an_adapter_that_is_not_well_is_no_failure_of_the_operators(cluster: Cluster, status: int) -> None:
    cluster.api.fail(status, path="/apis/custom.metrics.k8s.io/", times=2)
    plan = await autoscalers(cluster).plan(KEY, proxy("PrometheusAdapter"), {})
    assert (plan.targets, plan.problem) == ((), Reason.METRICS_UNAVAILABLE)


async def test_metrics_that_an_hpa_of_ours_has_are_kept_and_those_of_a_stranger_are_not(cluster: Cluster) -> None:
    cluster.api.put(hpa(metrics=[ROWS.metric]))
    assert (await autoscalers(cluster).plan(KEY, proxy(), {})).targets == (ROWS,)
    cluster.api.put(hpa(metrics=[ROWS.metric], owner=None))
    assert (await autoscalers(cluster).plan(KEY, proxy(), {})).targets == ()


async def test_the_hpas_of_a_namespace_are_listed_once_for_all_its_resources(cluster: Cluster) -> None:
    cluster.api.put(hpa("hers", owner=None))
    edge, plan = autoscalers(cluster), Plan(targets=(ROWS,))
    for number in range(5):
        found = await edge.judged(proxy(name=f"p-{number}"), BODY, plan, observed())
        assert found.autoscaling == ("Unknown", Reason.UNKNOWN, "There is no HPA yet.")
    foreign = await edge.judged(proxy(), BODY, plan, observed())
    assert foreign.autoscaling is not None
    assert foreign.autoscaling[1] is Reason.FOREIGN_HPA
    assert asked(cluster, "horizontalpodautoscalers") == 1
    cluster.clock.seconds += HPAS_S
    await edge.judged(proxy(), BODY, plan, observed())
    assert asked(cluster, "horizontalpodautoscalers") == 2
    assert (await edge.judged(resource(), BODY, NONE, observed())).autoscaling is None


async def test_an_operator_that_may_not_list_hpas_goes_on(cluster: Cluster) -> None:
    cluster.api.fail(403, path="/horizontalpodautoscalers")
    found = await autoscalers(cluster).judged(proxy(), BODY, Plan(targets=(ROWS,)), observed())
    assert found.autoscaling == ("Unknown", Reason.UNKNOWN, "There is no HPA yet.")


async def test_hpas_that_cannot_be_read_are_told_and_asked_for_once_in_a_while(cluster: Cluster) -> None:
    cluster.api.fail(503, path="/horizontalpodautoscalers", times=100)
    edge = autoscalers(cluster)
    for _ in range(3):
        found = await edge.judged(proxy(), BODY, Plan(targets=(ROWS,)), observed())
        assert found.autoscaling is not None
        assert found.autoscaling[:2] == ("Unknown", Reason.UNKNOWN)
        assert "could not be read" in found.autoscaling[2]
    assert asked(cluster, "horizontalpodautoscalers") == TRIES


async def test_api_services_that_cannot_be_read_are_no_reason_to_stop(cluster: Cluster) -> None:
    cluster.api.fail(503, path="/apiservices", times=100)
    edge = autoscalers(cluster, METRICS_API_SERVICE="metrics-api")
    for _ in range(2):
        plan = await edge.plan(KEY, proxy(), {})
        assert (plan.targets, plan.problem) == ((), Reason.METRICS_UNAVAILABLE)
        assert "could not be read" in plan.why
    assert asked(cluster, "apiservices") == TRIES


async def test_only_a_scale_up_that_there_is_can_be_off(cluster: Cluster) -> None:
    throttled = observed(pods=[pod(report=said(replies_1m=10, throttled_1m=9))])
    for provider, sentence in (("KEDA", "Scale-up is off"), ("External", "More pods would not help")):
        edge = autoscalers(cluster)
        await edge.plan(KEY, proxy(provider), {})
        found = edge.saw(KEY, {}, throttled).upstream_throttled
        assert found is not None
        assert sentence in found[2]


async def test_throttling_is_known_from_the_pods_and_after_a_restart_from_the_status(cluster: Cluster) -> None:
    edge = autoscalers(cluster)
    throttled = [pod(report=said(replies_1m=10, throttled_1m=9))]
    assert not (await edge.plan(KEY, proxy("KEDA"), {})).throttled
    plan = await edge.plan(KEY, proxy("KEDA"), {})
    found = edge.saw(KEY, {}, observed(pods=throttled))
    assert found.upstream_throttled is not None
    assert found.upstream_throttled[:2] == ("True", Reason.THROTTLED)
    assert edge.again_s(KEY, plan) == 0.0  # the HPA is to be told at once
    plan = await edge.plan(KEY, proxy("KEDA"), {})
    assert plan.throttled
    assert edge.again_s(KEY, plan) > 60
    status = {"conditions": [{"type": "UpstreamThrottled", "status": "True"}]}
    assert (await autoscalers(cluster).plan(KEY, proxy("KEDA"), status)).throttled
    edge.forget(KEY)
    assert not (await edge.plan(KEY, proxy("KEDA"), {})).throttled
