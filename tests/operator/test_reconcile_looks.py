"""`reconcile`: how much is read, when everything is looked at, and when a look is for the figures alone."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.operator.clusters import IPS, Cluster, report, stuck
from tests.operator.resources import OWN_TOKEN

from tinybird_proxy_operator.handlers import Watches
from tinybird_proxy_operator.names import KIND, ROLL_ANNOTATION, USE_LABEL
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.reconcile import FIGURES_S, SOON_S
from tinybird_proxy_operator.upgrades import SOAK_S

WITH_TOKEN: dict[str, Any] = {"replicas": 2, **OWN_TOKEN}
NEW_IMAGE = "ghcr.io/tinybird-proxy/tinybird-proxy:1.2.4"
SHOP = "/api/v1/namespaces/shop"
APPS = "/apis/apps/v1/namespaces/shop"
FIGURES = [
    "/apis/tinybird-proxy.io/v1alpha1/namespaces/shop/tinybirdproxies/events",
    f"{SHOP}/secrets/tinybird",
    f"{APPS}/deployments/events",
    f"{APPS}/replicasets",
    f"{SHOP}/pods",
]


async def in_order(cluster: Cluster, spec: dict[str, Any] | None = None) -> None:
    """A resource with everything applied, and no event that was not looked at."""
    cluster.secret()
    await cluster.installed(spec or WITH_TOKEN)
    await cluster.reconcile()
    cluster.forget()


async def test_a_look_for_the_figures_reads_the_token_the_deployment_and_the_pods(cluster: Cluster) -> None:
    await in_order(cluster)
    cluster.proxies.says = dict.fromkeys(IPS, report(rows=5))
    cluster.clock.seconds += FIGURES_S
    assert await cluster.look() == FIGURES_S
    assert [asked.path for asked in cluster.api.asked if asked.method == "GET"] == FIGURES
    assert [method for method, _ in cluster.api.writes] == ["PATCH"]
    assert cluster.status()["buffer"]["rows"] == 10


async def test_a_look_at_everything_reads_everything_once(cluster: Cluster) -> None:
    await in_order(cluster)
    await cluster.reconcile()
    read = [asked.path for asked in cluster.api.asked]
    assert len(read) == len(set(read)) == 16
    assert cluster.api.writes == []


async def test_what_an_event_is_about_is_repaired_by_the_next_look(cluster: Cluster) -> None:
    await in_order(cluster)
    cluster.api.remove("Service", "events")
    await cluster.look()
    assert cluster.api.names("Service") == []
    cluster.reconciler.changed(Key("shop", "events"))
    await cluster.look()
    assert cluster.api.names("Service") == ["events"]


async def test_an_event_during_a_look_is_for_the_next_one(cluster: Cluster) -> None:
    await in_order(cluster)

    class Meanwhile:
        """Ingresses are read while somebody deletes the Service, whose read is over."""

        def __getattr__(self, name: str) -> Any:
            return getattr(cluster.kube, name)

        async def list(self, kind: str, *args: Any, **options: Any) -> Any:
            if kind == "Ingress":
                cluster.api.remove("Service", "events")
                cluster.reconciler.changed(Key("shop", "events"))
            return await cluster.kube.list(kind, *args, **options)

    cluster.reconciler.applier.kube = Meanwhile()  # type: ignore[assignment]
    await cluster.reconcile()
    assert cluster.api.names("Service") == []
    cluster.reconciler.applier.kube = cluster.kube
    await cluster.look()
    assert cluster.api.names("Service") == ["events"]


async def test_a_look_that_failed_is_followed_by_one_at_everything(cluster: Cluster) -> None:
    await in_order(cluster)
    cluster.api.remove("Service", "events")
    cluster.api.fail(503, method="POST")
    with pytest.raises(Exception, match="by script"):
        await cluster.reconcile()
    await cluster.look()
    assert cluster.api.names("Service") == ["events"]


async def test_a_deployment_that_is_gone_is_made_again_whether_an_event_came_or_not(cluster: Cluster) -> None:
    await in_order(cluster)
    cluster.api.remove("Deployment", "events")
    await cluster.look()
    assert cluster.api.names("Deployment") == ["events"]


async def test_a_secret_that_is_no_longer_shared_is_noticed_without_an_event(cluster: Cluster) -> None:
    await in_order(cluster)
    secret = cluster.api.get("Secret", "tinybird")
    del secret["metadata"]["labels"][USE_LABEL]
    cluster.api.put(secret)
    await cluster.look()
    assert cluster.condition("Degraded") == ("True", "SecretNotShared")


def changes_spec(cluster: Cluster) -> None:
    cluster.resource({**WITH_TOKEN, "service": {"port": 8080}})


def is_made_anew(cluster: Cluster) -> None:
    body = cluster.api.get(KIND, "events")
    cluster.api.remove(KIND, "events")
    cluster.resource(body["spec"])


def is_annotated(cluster: Cluster) -> None:
    cluster.resource(WITH_TOKEN, annotations={ROLL_ANNOTATION: "now"})


@pytest.mark.parametrize("what", [changes_spec, is_made_anew, is_annotated])
async def test_a_resource_that_changed_is_looked_at_whole_whether_an_event_came_or_not(
    cluster: Cluster, what: Callable[[Cluster], None]
) -> None:
    await in_order(cluster)
    what(cluster)
    cluster.forget()
    await cluster.look()
    assert f"{SHOP}/services" in [asked.path for asked in cluster.api.asked if asked.method == "GET"]


async def test_what_is_held_back_or_refused_is_tried_again_without_an_event(cluster: Cluster) -> None:
    await in_order(cluster)
    cluster.proxies.says = dict.fromkeys(IPS, stuck(7))
    cluster.resource({**WITH_TOKEN, "image": NEW_IMAGE, "preflight": "Disabled"})
    cluster.api.fail(422, method="PATCH", path="/services", times=2)
    assert await cluster.look() == SOON_S
    assert cluster.condition("Progressing") == ("False", "RolloutHeld")
    cluster.proxies.says.clear()
    await cluster.look()
    containers = cluster.api.get("Deployment", "events")["spec"]["template"]["spec"]["containers"]
    assert containers[0]["image"] == NEW_IMAGE


async def test_pods_that_become_available_are_seen_soon_by_looks_for_the_figures(cluster: Cluster) -> None:
    await in_order(cluster)
    cluster.roll_out(pods=2, readyReplicas=2, availableReplicas=1)
    assert await cluster.look() == SOON_S
    assert cluster.condition("Ready") == ("False", "NotReady")
    assert cluster.status()["readyReplicas"] == 2
    cluster.roll_out(pods=2)
    cluster.forget()
    assert await cluster.look() == FIGURES_S
    assert cluster.condition("Ready") == ("True", "Ready")
    assert [asked.path for asked in cluster.api.asked if asked.method == "GET"] == FIGURES


async def test_a_rollout_that_ended_is_noticed_by_a_look_for_the_figures_and_the_next_goes_on(
    cluster: Cluster,
) -> None:
    for name, ip in (("events", 0), ("orders", 1)):
        cluster.resource({"replicas": 1, "preflight": "Disabled"}, name=name)
        await cluster.reconcile(name)
        cluster.roll_out(name, pods=1, first_ip=ip)
    cluster.reconciler = cluster.operator(PROXY_IMAGE=NEW_IMAGE)
    await cluster.reconcile("events")
    await cluster.reconcile("orders")
    cluster.roll_out("events", pods=1)
    await cluster.look("events")
    cluster.clock.seconds += SOAK_S
    await cluster.look("orders")
    containers = cluster.api.get("Deployment", "orders")["spec"]["template"]["spec"]["containers"]
    assert containers[0]["image"] == NEW_IMAGE


async def test_a_deployment_of_an_earlier_operator_gets_its_fields_without_a_new_template(cluster: Cluster) -> None:
    await in_order(cluster)
    deployment = cluster.api.get("Deployment", "events")
    del deployment["spec"]["minReadySeconds"]
    cluster.api.put(deployment)
    cluster.proxies.says = dict.fromkeys(IPS, stuck(7))  # a new template would be held back
    cluster.reconciler = cluster.operator()
    await cluster.reconcile()
    live = cluster.api.get("Deployment", "events")
    assert live["spec"]["minReadySeconds"] == 2
    assert live["spec"]["template"] == deployment["spec"]["template"]
    assert cluster.condition("Progressing")[1] != "RolloutHeld"


async def test_the_operators_own_status_brings_no_look(cluster: Cluster) -> None:
    await in_order(cluster)
    changed: list[Key] = []
    watches = Watches(changed=changed.append, alive=lambda: None, saw_pod=lambda body, deleted: None)
    watches.resource(cluster.api.get(KIND, "events"), False)
    changed.clear()
    for minute in range(6):
        cluster.proxies.says = dict.fromkeys(IPS, report(rows=5 + minute))
        cluster.clock.seconds += FIGURES_S
        await cluster.look()
        watches.resource(cluster.api.get(KIND, "events"), False)
    assert cluster.status()["buffer"]["rows"] == 20
    assert changed == []
    assert len([asked for asked in cluster.api.asked if asked.method == "GET"]) == 6 * len(FIGURES)


async def test_pods_that_were_asked_whether_a_template_may_go_out_are_not_asked_once_more_for_the_figures(
    cluster: Cluster,
) -> None:
    await in_order(cluster)
    cluster.proxies.says = dict.fromkeys(IPS, stuck(7))
    cluster.resource({**WITH_TOKEN, "image": NEW_IMAGE, "preflight": "Disabled"})
    cluster.proxies.asked.clear()
    await cluster.reconcile()
    assert cluster.condition("Progressing") == ("False", "RolloutHeld")
    assert len(cluster.proxies.asked) == 2
