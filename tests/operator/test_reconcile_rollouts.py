"""`reconcile`: changed templates that go out, and those that are held back."""

import pytest
from tests.operator.clusters import IPS, Cluster, report, stuck
from tests.operator.resources import IMAGE

from tinybird_proxy_operator.names import KIND, ROLL_ANNOTATION
from tinybird_proxy_operator.reconcile import SOON_S
from tinybird_proxy_operator.upgrades import SOAK_S

NEW_IMAGE = "ghcr.io/tinybird-proxy/tinybird-proxy:1.2.4"
CHANGED = {"replicas": 2, "image": NEW_IMAGE, "preflight": "Disabled"}


def live_image(cluster: Cluster, name: str = "events") -> str:
    containers = cluster.api.get("Deployment", name)["spec"]["template"]["spec"]["containers"]
    return str(containers[0]["image"])


def live_replicas(cluster: Cluster) -> int:
    return int(cluster.api.get("Deployment", "events")["spec"]["replicas"])


async def test_a_changed_template_is_held_back_while_rows_wait_undelivered(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.proxies.says = {IPS[0]: stuck(1200), IPS[1]: report()}
    cluster.resource(CHANGED)
    assert await cluster.reconcile() == SOON_S
    assert live_image(cluster) == IMAGE
    assert cluster.condition("Progressing") == ("False", "RolloutHeld")
    assert "1,200 rows wait" in cluster.message("Progressing")
    assert ROLL_ANNOTATION in cluster.message("Progressing")


async def test_while_a_template_is_held_back_replicas_are_followed_and_the_rest_is_applied(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.proxies.says = dict.fromkeys(IPS, stuck(7))
    cluster.resource({**CHANGED, "replicas": 3, "service": {"port": 8080}})
    await cluster.reconcile()
    assert (live_image(cluster), live_replicas(cluster)) == (IMAGE, 3)
    assert cluster.api.get("Service", "events")["spec"]["ports"][0]["port"] == 8080


async def test_a_held_template_goes_out_when_the_rows_are_delivered(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.proxies.says = dict.fromkeys(IPS, stuck(7))
    cluster.resource(CHANGED)
    await cluster.reconcile()
    cluster.proxies.says.clear()
    await cluster.reconcile()
    assert live_image(cluster) == NEW_IMAGE
    assert cluster.condition("Progressing") == ("True", "RollingOut")


async def test_the_annotation_lets_a_held_template_go_out(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.proxies.says = dict.fromkeys(IPS, stuck(7))
    cluster.resource(CHANGED, annotations={ROLL_ANNOTATION: "now"})
    await cluster.reconcile()
    assert live_image(cluster) == NEW_IMAGE


async def test_the_annotation_lets_no_pod_be_taken_away_with_its_rows(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.proxies.says = dict.fromkeys(IPS, stuck(7))
    cluster.resource({"replicas": 1}, annotations={ROLL_ANNOTATION: "now"})
    await cluster.reconcile()
    assert live_replicas(cluster) == 2


async def test_a_ready_pod_that_does_not_tell_holds_a_changed_template(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.proxies.says = {IPS[0]: {"nonsense": 1}, IPS[1]: report()}
    cluster.resource({**CHANGED, "replicas": 1})
    await cluster.reconcile()
    assert (live_image(cluster), live_replicas(cluster)) == (IMAGE, 2)
    assert cluster.condition("Progressing") == ("False", "RolloutHeld")
    for word in ("events-1-0 it is not known", f"{ROLL_ANNOTATION}=now"):
        assert word in cluster.message("Progressing")
    assert "events-1-1" not in cluster.message("Progressing")
    cluster.proxies.says.clear()
    await cluster.reconcile()
    assert live_image(cluster) == NEW_IMAGE


async def test_a_pod_that_is_not_ready_holds_nothing_for_it_may_be_what_the_change_repairs(cluster: Cluster) -> None:
    await cluster.installed()
    pod = cluster.api.get("Pod", "events-1-0")
    cluster.api.put({**pod, "status": {**pod["status"], "conditions": []}})
    cluster.proxies.says = {IPS[0]: {"nonsense": 1}, IPS[1]: report()}
    cluster.resource(CHANGED)
    await cluster.reconcile()
    assert live_image(cluster) == NEW_IMAGE


async def test_a_changed_default_image_rolls_so_many_resources_at_a_time(cluster: Cluster) -> None:
    for name, ip in (("events", 0), ("orders", 1)):
        cluster.resource({"replicas": 1, "preflight": "Disabled"}, name=name)
        await cluster.reconcile(name)
        cluster.roll_out(name, pods=1, first_ip=ip)
    cluster.reconciler = cluster.operator(PROXY_IMAGE=NEW_IMAGE)
    await cluster.reconcile("events")
    await cluster.reconcile("orders")
    assert (live_image(cluster, "events"), live_image(cluster, "orders")) == (NEW_IMAGE, IMAGE)
    assert cluster.condition("Progressing", "orders") == ("False", "RolloutHeld")
    assert "shop/events" in cluster.message("Progressing", "orders")
    cluster.roll_out("events", pods=1)
    await cluster.reconcile("events")
    cluster.clock.seconds += SOAK_S
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == NEW_IMAGE


@pytest.mark.parametrize("how", ["deleted", "unmanaged", "another's"])
async def test_nobody_waits_for_a_resource_that_is_no_longer_ours(cluster: Cluster, how: str) -> None:
    for name, ip in (("events", 0), ("orders", 1)):
        cluster.resource({"replicas": 1, "preflight": "Disabled"}, name=name)
        await cluster.reconcile(name)
        cluster.roll_out(name, pods=1, first_ip=ip)
    cluster.reconciler = cluster.operator(PROXY_IMAGE=NEW_IMAGE)
    await cluster.reconcile("events")
    if how == "deleted":
        cluster.api.remove(KIND, "events")
    elif how == "unmanaged":
        cluster.resource({"replicas": 1, "managementState": "Unmanaged"})
    else:
        cluster.resource({"replicas": 1, "controllerClass": "blue"})
    await cluster.reconcile("events")
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == NEW_IMAGE


async def test_a_rollout_that_an_earlier_operator_began_counts(cluster: Cluster) -> None:
    for name, ip in (("events", 0), ("orders", 1)):
        cluster.resource({"replicas": 1, "preflight": "Disabled"}, name=name)
        await cluster.reconcile(name)
        cluster.roll_out(name, pods=1, first_ip=ip)
    cluster.reconciler = cluster.operator(PROXY_IMAGE=NEW_IMAGE)
    await cluster.reconcile("events")
    cluster.roll_out("events", pods=1, replicas=2)  # the old pod is still there
    cluster.reconciler = cluster.operator(PROXY_IMAGE=NEW_IMAGE)
    await cluster.reconcile("events")
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == IMAGE


async def test_what_an_author_changes_waits_for_nobody(cluster: Cluster) -> None:
    for name, ip in (("events", 0), ("orders", 1)):
        cluster.resource({"replicas": 1, "preflight": "Disabled"}, name=name)
        await cluster.reconcile(name)
        cluster.roll_out(name, pods=1, first_ip=ip)
    for name in ("events", "orders"):
        cluster.resource(CHANGED, name=name)
        await cluster.reconcile(name)
    assert (live_image(cluster, "events"), live_image(cluster, "orders")) == (NEW_IMAGE, NEW_IMAGE)
