"""Upgrades through the whole operator: who rolls, who waits and why, when it stops, and what a new leader knows."""

from typing import Any

import pytest
from tests.operator.clusters import IPS, TRIES, Cluster, stuck
from tests.operator.resources import IMAGE, OWN_TOKEN
from tests.operator.test_preflight_jobs import job_ends
from tests.operator.test_reconcile_rollouts import live_image

from tinybird_proxy_operator.names import KIND, ROLL_ANNOTATION, UPGRADED_ANNOTATION
from tinybird_proxy_operator.queue import Key
from tinybird_proxy_operator.reconcile import FIGURES_S
from tinybird_proxy_operator.upgrades import SOAK_S

NEW_IMAGE = "ghcr.io/tinybird-proxy/tinybird-proxy:1.2.4"
NEWER_IMAGE = "ghcr.io/tinybird-proxy/tinybird-proxy:1.2.5"
UNCHECKED: dict[str, Any] = {"replicas": 1, "preflight": "Disabled"}
CHECKED: dict[str, Any] = {"replicas": 1}
CRASHING = [{"name": "proxy", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {}}]


async def two(cluster: Cluster, spec: dict[str, Any] | None = None, orders: dict[str, Any] | None = None) -> None:
    """`events` and `orders`, which run."""
    for name, ip, its in (("events", 0, spec), ("orders", 1, orders or spec)):
        cluster.resource(its or UNCHECKED, name=name)
        await cluster.reconcile(name)
        cluster.roll_out(name, pods=1, first_ip=ip)
        await cluster.reconcile(name)


async def upgraded(cluster: Cluster, spec: dict[str, Any] | None = None, orders: dict[str, Any] | None = None) -> None:
    """And an operator with another default image, which `events` has got."""
    await two(cluster, spec, orders)
    cluster.reconciler = cluster.operator(PROXY_IMAGE=NEW_IMAGE)
    await cluster.reconcile("events")


def crashes(cluster: Cluster) -> None:
    """The pod of `events` goes down again."""
    pod = cluster.api.get("Pod", "events-1-0")
    cluster.api.put({**pod, "status": {**pod["status"], "containerStatuses": CRASHING}})
    cluster.roll_out("events", pods=0, replicas=1, updatedReplicas=1)


def variables(cluster: Cluster, name: str) -> dict[str, str]:
    [container] = cluster.api.get("Deployment", name)["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value") for entry in container["env"]}


async def test_an_upgrade_stops_when_pods_crash_after_they_were_available_and_the_sentence_says_why(
    cluster: Cluster,
) -> None:
    await upgraded(cluster)
    cluster.roll_out("events", pods=1)
    await cluster.reconcile("events")
    crashes(cluster)
    await cluster.reconcile("events")
    assert cluster.condition("Degraded", "events") == ("True", "PodsFailing")
    cluster.clock.seconds += 10 * SOAK_S
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == IMAGE
    assert cluster.condition("Progressing", "orders") == ("False", "RolloutHeld")
    for word in ("has stopped, because shop/events got it and is degraded", f"{ROLL_ANNOTATION}=now"):
        assert word in cluster.message("Progressing", "orders")
    pod = cluster.api.get("Pod", "events-1-0")
    cluster.api.put({**pod, "status": {**pod["status"], "containerStatuses": []}})
    cluster.roll_out("events", pods=1)
    await cluster.reconcile("events")
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == IMAGE
    cluster.clock.seconds += SOAK_S
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == NEW_IMAGE


async def test_the_annotation_lets_an_upgrade_out_that_has_stopped(cluster: Cluster) -> None:
    await upgraded(cluster)
    cluster.roll_out("events", pods=1)
    crashes(cluster)
    await cluster.reconcile("events")
    cluster.resource(UNCHECKED, name="orders", annotations={ROLL_ANNOTATION: "now"})
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == NEW_IMAGE


async def test_a_resource_that_fails_by_itself_stops_nobodys_upgrade(cluster: Cluster) -> None:
    await two(cluster)
    crashes(cluster)
    await cluster.reconcile("events")
    cluster.reconciler = cluster.operator(PROXY_IMAGE=NEW_IMAGE)
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == NEW_IMAGE
    cluster.resource(UNCHECKED, name="new")
    await cluster.reconcile("new")  # which never comes up
    cluster.roll_out("orders", pods=1, first_ip=1)
    await cluster.reconcile("orders")
    cluster.clock.seconds += SOAK_S
    await cluster.reconcile("events")
    assert live_image(cluster, "events") == NEW_IMAGE


async def test_what_an_upgrade_broke_the_next_one_may_repair(cluster: Cluster) -> None:
    await upgraded(cluster)
    cluster.roll_out("events", pods=1)
    crashes(cluster)
    cluster.reconciler = cluster.operator(PROXY_IMAGE=NEWER_IMAGE)
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == NEWER_IMAGE
    cluster.roll_out("orders", pods=1, first_ip=1)
    await cluster.reconcile("orders")
    cluster.clock.seconds += SOAK_S
    await cluster.reconcile("events")
    assert live_image(cluster, "events") == NEWER_IMAGE


@pytest.mark.parametrize("pods", [{"replicas": 2}, {"readyReplicas": 0, "availableReplicas": 0}])
async def test_a_new_leader_keeps_to_what_may_roll_at_a_time_whichever_resource_it_looks_at_first(
    cluster: Cluster, pods: dict[str, int]
) -> None:
    await upgraded(cluster)
    cluster.roll_out("events", pods=1, **pods)
    cluster.reconciler = cluster.operator(PROXY_IMAGE=NEW_IMAGE)
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == IMAGE
    assert "shop/events" in cluster.message("Progressing", "orders")
    await cluster.reconcile("events")
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == IMAGE
    cluster.roll_out("events", pods=1)
    await cluster.reconcile("events")
    cluster.clock.seconds += SOAK_S
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == NEW_IMAGE


@pytest.mark.parametrize("how", ["another's", "unmanaged", "deleted", "orphaned"])
async def test_a_new_leader_waits_for_nothing_that_is_not_its_own(cluster: Cluster, how: str) -> None:
    await upgraded(cluster)
    cluster.roll_out("events", pods=1, replicas=2)
    if how == "another's":
        cluster.resource({**UNCHECKED, "controllerClass": "blue"})
    elif how == "unmanaged":
        cluster.resource({**UNCHECKED, "managementState": "Unmanaged"})
    elif how == "deleted":
        cluster.resource(UNCHECKED, deletionTimestamp="2026-01-01T00:00:00Z")
    else:
        deployment = cluster.api.get("Deployment", "events")
        deployment["metadata"]["ownerReferences"] = []
        cluster.api.put(deployment)
    cluster.reconciler = cluster.operator(PROXY_IMAGE=NEW_IMAGE)
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == NEW_IMAGE


async def test_a_new_leader_reads_what_was_begun_once_and_where_it_may_not_read_there_is_nothing_to_roll(
    cluster: Cluster,
) -> None:
    await two(cluster)
    cluster.reconciler = cluster.operator(PROXY_IMAGE=NEW_IMAGE, WATCH_NAMESPACES="gone,shop")
    cluster.api.fail(403, method="GET", path="/namespaces/gone/")
    cluster.forget()
    for name in ("events", "orders", "orders"):
        await cluster.reconcile(name)
    assert (live_image(cluster, "events"), live_image(cluster, "orders")) == (NEW_IMAGE, IMAGE)
    read = [asked.path for asked in cluster.api.asked if asked.path.endswith("/tinybirdproxies")]
    assert len(read) == 2


@pytest.mark.parametrize("how", ["secret", "spec"])
async def test_nobody_waits_for_a_resource_with_a_problem_whose_pods_have_settled(cluster: Cluster, how: str) -> None:
    cluster.secret()
    cluster.secret("other")
    spec = {**UNCHECKED, **OWN_TOKEN}
    await upgraded(cluster, spec, {**UNCHECKED, "tinybird": {"tokenSecretRef": {"name": "other"}}})
    assert live_image(cluster) == NEW_IMAGE
    if how == "secret":
        cluster.api.remove("Secret", "tinybird")
    else:
        cluster.resource({**spec, "batch": {"maxSize": "nonsense"}})
    cluster.roll_out("events", pods=1)
    await cluster.reconcile("events")
    assert cluster.condition("Degraded", "events")[0] == "True"
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == IMAGE
    cluster.clock.seconds += SOAK_S
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == NEW_IMAGE


async def test_nobody_waits_for_a_resource_whose_template_is_held_back_after_its_check_began(cluster: Cluster) -> None:
    await upgraded(cluster, CHECKED)
    assert cluster.condition("Progressing", "events") == ("True", "Preflight")
    cluster.proxies.says[IPS[0]] = stuck(7)
    await cluster.reconcile("events")
    assert cluster.condition("Progressing", "events") == ("False", "RolloutHeld")
    await cluster.reconcile("orders")
    assert cluster.condition("Progressing", "orders") == ("True", "Preflight")


async def test_nobody_waits_for_a_resource_whose_deployment_was_refused(cluster: Cluster) -> None:
    await two(cluster)
    cluster.reconciler = cluster.operator(PROXY_IMAGE=NEW_IMAGE)
    cluster.api.fail(403, method="PATCH", path="/deployments/events", times=9, message="policy: image not signed")
    await cluster.reconcile("events")
    assert cluster.condition("Degraded", "events") == ("True", "ApplyRefused")
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == NEW_IMAGE


async def test_a_failed_check_stays_told_while_others_have_the_turn_and_after_its_time_too(cluster: Cluster) -> None:
    await upgraded(cluster, CHECKED)
    job_ends(cluster, None, "no such tag")
    seen = set()
    for after_s in (2, 2, 2, 600, 600):
        cluster.clock.seconds += after_s
        await cluster.reconcile("orders" if after_s == 600 else "events")
        await cluster.reconcile("events")
        seen.add(cluster.condition("Progressing", "events"))
        await cluster.reconcile("orders")
    assert seen == {("False", "PreflightFailed")}
    assert "no such tag" in cluster.message("Progressing", "events")
    assert cluster.condition("Progressing", "orders") == ("True", "Preflight")


async def test_what_an_author_changes_goes_out_with_the_live_image_while_an_upgrade_waits(cluster: Cluster) -> None:
    await upgraded(cluster)
    cluster.roll_out("events", pods=1, replicas=2, updatedReplicas=1)  # it never comes up
    await cluster.reconcile("events")
    cluster.resource({**UNCHECKED, "batch": {"maxRows": 7}}, name="orders")
    await cluster.reconcile("orders")
    assert (variables(cluster, "orders")["BATCH_SIZE"], live_image(cluster, "orders")) == ("7", IMAGE)
    assert cluster.condition("Progressing", "orders") == ("True", "RollingOut")
    cluster.roll_out("orders", pods=1, first_ip=1)
    await cluster.reconcile("orders")
    assert cluster.condition("Progressing", "orders") == ("False", "RolloutHeld")
    assert "waits for shop/events" in cluster.message("Progressing", "orders")
    assert UPGRADED_ANNOTATION not in cluster.api.get("Deployment", "orders")["metadata"]["annotations"]
    cluster.roll_out("events", pods=1)
    await cluster.reconcile("events")
    cluster.clock.seconds += SOAK_S
    await cluster.reconcile("orders")
    assert (variables(cluster, "orders")["BATCH_SIZE"], live_image(cluster, "orders")) == ("7", NEW_IMAGE)


async def test_a_scaling_lets_no_upgrade_out_and_is_followed_while_it_waits(cluster: Cluster) -> None:
    await two(cluster)
    cluster.reconciler = cluster.operator(PROXY_IMAGE_PULL_POLICY="Always")
    await cluster.reconcile("events")
    await cluster.reconcile("orders")
    cluster.resource({**UNCHECKED, "replicas": 3}, name="orders")
    await cluster.reconcile("orders")
    live = cluster.api.get("Deployment", "orders")["spec"]
    assert (live["replicas"], live["template"]["spec"]["containers"][0]["imagePullPolicy"]) == (3, "IfNotPresent")


@pytest.mark.parametrize("own_image", [True, False])
async def test_whatever_else_the_operator_changes_goes_out_one_by_one_too(cluster: Cluster, own_image: bool) -> None:
    await two(cluster, {**UNCHECKED, "image": IMAGE} if own_image else UNCHECKED)
    cluster.reconciler = cluster.operator(PROXY_IMAGE_PULL_POLICY="Always")
    policies = []
    for name in ("events", "orders"):
        await cluster.reconcile(name)
        [container] = cluster.api.get("Deployment", name)["spec"]["template"]["spec"]["containers"]
        policies.append(container["imagePullPolicy"])
    assert policies == ["Always", "IfNotPresent"]
    assert "waits for shop/events" in cluster.message("Progressing", "orders")


async def test_an_authors_change_of_a_resource_that_rolls_leaves_it_its_turn_and_later_ones_take_none(
    cluster: Cluster,
) -> None:
    await upgraded(cluster)
    cluster.roll_out("events", pods=1, replicas=2)
    cluster.resource({**UNCHECKED, "batch": {"maxRows": 7}})
    await cluster.reconcile("events")
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == IMAGE
    cluster.roll_out("events", pods=1)
    await cluster.reconcile("events")
    cluster.clock.seconds += SOAK_S
    cluster.resource({**UNCHECKED, "batch": {"maxRows": 8}})
    await cluster.reconcile("events")
    await cluster.reconcile("orders")
    assert (variables(cluster, "events")["BATCH_SIZE"], live_image(cluster, "orders")) == ("8", NEW_IMAGE)


async def test_a_resource_that_waits_its_turn_is_looked_at_for_its_figures_alone_until_it_comes(
    cluster: Cluster,
) -> None:
    cluster.secret()
    await upgraded(cluster, {**CHECKED, **OWN_TOKEN})
    assert await cluster.reconcile("orders") == FIGURES_S
    assert cluster.condition("Progressing", "orders") == ("False", "RolloutHeld")
    cluster.forget()
    assert await cluster.look("orders") == FIGURES_S
    assert len(cluster.api.asked) == 5
    assert cluster.condition("Progressing", "orders") == ("False", "RolloutHeld")
    cluster.api.remove(KIND, "events")
    await cluster.look("events")
    await cluster.look("orders")
    assert cluster.condition("Progressing", "orders") == ("True", "Preflight")


async def test_that_it_waits_its_turn_is_told_as_what_it_is_no_warning(cluster: Cluster) -> None:
    await upgraded(cluster)
    await cluster.reconcile("orders")
    assert [(kind, reason) for kind, reason, _ in cluster.told()] == [("Normal", "RolloutHeld")]


async def test_a_look_that_fails_keeps_the_turn(cluster: Cluster) -> None:
    await two(cluster)
    cluster.reconciler = cluster.operator(PROXY_IMAGE=NEW_IMAGE)
    cluster.api.fail(503, method="PATCH", path="/deployments/events", done_first=True, times=TRIES)
    with pytest.raises(Exception, match="by script"):
        await cluster.reconciler.reconcile(Key("shop", "events"))
    await cluster.reconcile("orders")
    assert (live_image(cluster, "events"), live_image(cluster, "orders")) == (NEW_IMAGE, IMAGE)
