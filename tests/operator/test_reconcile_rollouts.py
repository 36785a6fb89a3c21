"""`reconcile`: changed templates that go out, and those that are held back."""

from typing import Any

import pytest
from tests.operator.clusters import IPS, Cluster, owned, report, stuck
from tests.operator.resources import IMAGE, OWN_TOKEN

from tinybird_proxy_operator.names import KIND, ROLL_ANNOTATION, selector_labels
from tinybird_proxy_operator.reconcile import SOON_S
from tinybird_proxy_operator.testing.field_owners import Object
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


# An outage in the middle of a rollout.


def spec_of(cluster: Cluster) -> Object:
    spec: Object = cluster.api.get("Deployment", "events")["spec"]
    return spec


def is_paused(cluster: Cluster) -> bool:
    """So that Kubernetes takes no old pod away, not even if every new one is ready."""
    spec = spec_of(cluster)
    stands = 10**8 < int(spec["minReadySeconds"]) < int(spec["progressDeadlineSeconds"])
    assert bool(spec["paused"]) == stands
    return stands


def half_way(cluster: Cluster, *, new: int = 1, old: int = 2, **status: Any) -> None:
    """What the controllers have done of a rollout: the pods of ReplicaSet 1 are old, those of 2 new."""
    deployment = cluster.api.get("Deployment", "events")
    seen = {"observedGeneration": deployment["metadata"]["generation"]}
    counts = {"replicas": old + new, "updatedReplicas": new, "readyReplicas": old + new, "availableReplicas": old}
    deployment = cluster.api.put({**deployment, "status": {**counts, **seen, **status}})
    labels, ips = selector_labels("events"), iter(IPS)
    for name in cluster.api.names("Pod"):
        cluster.api.remove("Pod", name)
    for revision, pods in ((1, old), (2, new)):
        metadata = owned(f"events-{revision}", labels, deployment)
        metadata["annotations"] = {"deployment.kubernetes.io/revision": str(revision)}
        sets = cluster.api.put({"kind": "ReplicaSet", "metadata": metadata, "spec": {}})
        for number in range(pods):
            cluster.pod(f"events-{revision}-{number}", sets, labels=labels, ip=next(ips))


async def in_the_middle(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.resource(CHANGED)
    await cluster.reconcile()
    half_way(cluster)


async def test_a_rollout_is_paused_half_way_while_old_pods_hold_rows_that_are_not_delivered(cluster: Cluster) -> None:
    await in_the_middle(cluster)
    await cluster.reconcile()
    assert not is_paused(cluster)
    cluster.proxies.says[IPS[0]] = stuck(1200)
    assert await cluster.look() == SOON_S
    assert is_paused(cluster)
    assert live_image(cluster) == NEW_IMAGE
    assert cluster.condition("Progressing") == ("False", "RolloutHeld")
    for words in ("paused half-way: 1,200 rows wait in pods of the template before", f"{ROLL_ANNOTATION}=now"):
        assert words in cluster.message("Progressing")
    assert [(kind, reason) for kind, reason, _ in cluster.told()] == [("Warning", "RolloutHeld")]
    assert cluster.condition("Degraded") == ("False", "AsExpected")


async def test_a_paused_rollout_goes_on_by_itself_when_the_rows_are_delivered(cluster: Cluster) -> None:
    await in_the_middle(cluster)
    cluster.proxies.says[IPS[0]] = stuck(7)
    await cluster.reconcile()
    half_way(cluster)
    assert await cluster.look() == SOON_S
    assert is_paused(cluster)
    cluster.proxies.says.clear()
    assert await cluster.look() == SOON_S
    assert not is_paused(cluster)
    assert spec_of(cluster)["minReadySeconds"] == 2
    assert cluster.condition("Progressing") == ("True", "RollingOut")


async def test_a_paused_rollout_is_written_once_whatever_brings_the_look(cluster: Cluster) -> None:
    await in_the_middle(cluster)
    cluster.proxies.says[IPS[0]] = stuck(7)
    await cluster.reconcile()
    half_way(cluster)
    await cluster.reconcile()
    cluster.forget()
    await cluster.reconcile()
    await cluster.look()
    assert cluster.api.writes == []


async def test_while_a_rollout_is_paused_its_new_pods_count_as_soon_as_they_are_ready(cluster: Cluster) -> None:
    await in_the_middle(cluster)
    cluster.proxies.says[IPS[0]] = stuck(7)
    await cluster.reconcile()
    half_way(cluster, old=1, new=1, availableReplicas=1)
    await cluster.reconcile()
    assert cluster.condition("Ready") == ("True", "Ready")


async def test_rows_in_new_pods_and_in_those_that_end_already_pause_nothing(cluster: Cluster) -> None:
    await in_the_middle(cluster)
    cluster.proxies.says = {IPS[0]: stuck(7), IPS[2]: stuck(8)}
    ending = cluster.api.get("Pod", "events-1-0")
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    cluster.api.put(ending)
    await cluster.reconcile()
    assert not is_paused(cluster)


async def test_an_old_pod_that_does_not_tell_pauses_the_rollout(cluster: Cluster) -> None:
    await in_the_middle(cluster)
    cluster.proxies.says[IPS[1]] = {"nonsense": 1}
    await cluster.reconcile()
    assert is_paused(cluster)
    assert "paused half-way: of events-1-1 it is not known" in cluster.message("Progressing")


async def test_the_annotation_lets_a_paused_rollout_go_on_at_once(cluster: Cluster) -> None:
    await in_the_middle(cluster)
    cluster.proxies.says[IPS[0]] = stuck(7)
    await cluster.reconcile()
    cluster.resource(CHANGED, annotations={ROLL_ANNOTATION: "now"})
    half_way(cluster)
    await cluster.reconcile()
    assert not is_paused(cluster)
    half_way(cluster)
    await cluster.reconcile()
    assert not is_paused(cluster)


async def test_a_first_install_is_not_paused_though_rows_wait_in_it(cluster: Cluster) -> None:
    cluster.resource()
    await cluster.reconcile()
    cluster.proxies.says = dict.fromkeys(IPS, stuck(7))
    cluster.roll_out(pods=2, readyReplicas=1, availableReplicas=1)
    await cluster.reconcile()
    assert not is_paused(cluster)


async def test_a_scaling_is_not_taken_for_a_rollout(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.proxies.says = dict.fromkeys(IPS, stuck(7))
    cluster.resource({"replicas": 3})
    await cluster.reconcile()
    await cluster.reconcile()
    cluster.roll_out(pods=3, readyReplicas=2, availableReplicas=2)
    await cluster.reconcile()
    assert not is_paused(cluster)
    assert live_replicas(cluster) == 3


async def test_a_paused_rollout_is_scaled_up_and_never_down(cluster: Cluster) -> None:
    await in_the_middle(cluster)
    cluster.proxies.says[IPS[0]] = stuck(7)
    await cluster.reconcile()
    half_way(cluster)
    for wanted, found in ((1, 2), (3, 3)):
        cluster.resource({**CHANGED, "replicas": wanted})
        await cluster.reconcile()
        assert (is_paused(cluster), live_replicas(cluster)) == (True, found)
    assert not any("draining" in str(pod["metadata"].get("labels")) for pod in cluster.api.all("Pod"))


async def test_a_new_pod_that_does_not_start_is_told_during_the_pause_and_its_repair_waits_too(
    cluster: Cluster,
) -> None:
    await in_the_middle(cluster)
    cluster.proxies.says[IPS[0]] = stuck(7)
    pod = cluster.api.get("Pod", "events-2-0")
    crashing = [{"name": "proxy", "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {}}]
    cluster.api.put({**pod, "status": {"containerStatuses": crashing}})
    cluster.resource({**CHANGED, "image": f"{NEW_IMAGE}-repaired"})
    await cluster.reconcile()
    assert (is_paused(cluster), live_image(cluster)) == (True, NEW_IMAGE)
    assert cluster.condition("Progressing") == ("False", "RolloutHeld")
    assert cluster.condition("Degraded") == ("True", "PodsFailing")
    cluster.proxies.says.clear()
    half_way(cluster)
    await cluster.reconcile()
    assert (is_paused(cluster), live_image(cluster)) == (False, f"{NEW_IMAGE}-repaired")


async def test_a_rollout_is_paused_whatever_else_is_wrong(cluster: Cluster) -> None:
    cluster.secret()
    spec = {**CHANGED, **OWN_TOKEN}
    await cluster.installed({"replicas": 2, **OWN_TOKEN})
    cluster.resource(spec)
    await cluster.reconcile()
    half_way(cluster)
    cluster.api.remove("Secret", "tinybird")
    cluster.proxies.says[IPS[0]] = stuck(7)
    await cluster.reconcile()
    assert is_paused(cluster)
    assert cluster.condition("Ready") == ("False", "SecretNotFound")
    assert cluster.condition("Progressing") == ("False", "RolloutHeld")


async def test_a_pause_that_is_refused_is_told_and_keeps_nothing_else_waiting(cluster: Cluster) -> None:
    await in_the_middle(cluster)
    cluster.proxies.says[IPS[0]] = stuck(7)
    cluster.resource({**CHANGED, "service": {"port": 8080}})
    cluster.api.fail(403, method="PATCH", path="/deployments/events", times=9, message="policy: hands off")
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("True", "ApplyRefused")
    assert "hands off" in cluster.message("Degraded")
    assert cluster.api.get("Service", "events")["spec"]["ports"][0]["port"] == 8080


async def test_what_somebody_else_paused_goes_on(cluster: Cluster) -> None:
    await cluster.installed()
    deployment = cluster.api.get("Deployment", "events")
    cluster.api.put({**deployment, "spec": {**deployment["spec"], "paused": True}})
    await cluster.look()
    assert not is_paused(cluster)


async def test_a_deployment_that_is_not_paused_does_not_say_so_and_is_not_written_for_that(cluster: Cluster) -> None:
    await cluster.installed()
    deployment = cluster.api.get("Deployment", "events")
    del deployment["spec"]["paused"]
    cluster.api.put(deployment)
    cluster.roll_out()
    cluster.forget()
    await cluster.reconcile()
    assert cluster.api.writes == []


# The annotation, which is a single word and no setting.

ROLL_NOW = {ROLL_ANNOTATION: "now", "example.com/team": "data"}


def annotations(cluster: Cluster) -> dict[str, str]:
    found: dict[str, str] = cluster.api.get(KIND, "events")["metadata"].get("annotations") or {}
    return found


async def test_the_annotation_is_taken_off_when_every_pod_has_what_it_let_out(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.proxies.says = dict.fromkeys(IPS, stuck(7))
    cluster.resource(CHANGED, annotations=ROLL_NOW)
    await cluster.reconcile()
    half_way(cluster)
    await cluster.reconcile()
    assert annotations(cluster) == ROLL_NOW
    cluster.roll_out()
    await cluster.look()
    assert annotations(cluster) == {"example.com/team": "data"}
    assert [event for event in cluster.told() if event[0] == "Normal"] == [
        (
            "Normal",
            "RollAnnotationRemoved",
            f"The annotation {ROLL_ANNOTATION}=now has worked and was taken off: every pod has the present template.",
        )
    ]


async def test_what_is_changed_after_that_is_held_as_ever(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.proxies.says = dict.fromkeys(IPS, stuck(7))
    cluster.resource(CHANGED, annotations=ROLL_NOW)
    await cluster.reconcile()
    cluster.roll_out()
    await cluster.reconcile()
    cluster.resource({**CHANGED, "image": IMAGE})
    await cluster.reconcile()
    assert live_image(cluster) == NEW_IMAGE
    assert cluster.condition("Progressing") == ("False", "RolloutHeld")


async def test_where_nothing_is_held_the_annotation_is_taken_off_and_so_each_time_that_it_comes_back(
    cluster: Cluster,
) -> None:
    await cluster.installed()
    for _ in range(2):
        cluster.resource({"replicas": 2}, annotations=ROLL_NOW)
        await cluster.reconcile()
        await cluster.look()
        assert annotations(cluster) == {"example.com/team": "data"}
    assert len(cluster.told()) == 1


@pytest.mark.parametrize("value", ["later", ""])
async def test_another_value_of_the_annotation_is_its_authors(cluster: Cluster, value: str) -> None:
    await cluster.installed()
    cluster.resource({"replicas": 2}, annotations={ROLL_ANNOTATION: value})
    await cluster.reconcile()
    assert annotations(cluster) == {ROLL_ANNOTATION: value}


async def test_while_what_it_is_to_let_out_was_not_applied_the_annotation_stays(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.resource(CHANGED, annotations=ROLL_NOW)
    cluster.api.fail(403, method="PATCH", path="/deployments/events", times=9, message="policy: hands off")
    await cluster.reconcile()
    assert annotations(cluster) == ROLL_NOW


async def test_an_annotation_that_cannot_be_taken_off_is_told_and_breaks_nothing(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.resource({"replicas": 2}, annotations=ROLL_NOW)
    cluster.api.fail(403, method="PATCH", path="/tinybirdproxies/events$", times=9, message="policy: hands off")
    await cluster.reconcile()
    assert annotations(cluster) == ROLL_NOW
    assert cluster.condition("Degraded") == ("True", "ApplyRefused")


async def test_of_a_resource_that_changed_meanwhile_the_annotation_is_taken_off_by_the_next_look(
    cluster: Cluster,
) -> None:
    await cluster.installed()
    cluster.resource({"replicas": 2}, annotations=ROLL_NOW)
    cluster.api.fail(409, method="PATCH", path="/tinybirdproxies/events$")
    await cluster.reconcile()
    assert annotations(cluster) == ROLL_NOW
    assert cluster.told() == []
    await cluster.look()
    assert annotations(cluster) == {"example.com/team": "data"}
