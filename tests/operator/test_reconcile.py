"""`reconcile`: what it makes, what it leaves alone, and how many pods, on a fake API server."""

from typing import Any

import pytest
from tests.operator.clusters import IPS, Cluster
from tests.operator.resources import IMAGE, OWN_TOKEN

from tinybird_proxy_operator.errors import KubeError
from tinybird_proxy_operator.names import KIND, child_labels, selector_labels
from tinybird_proxy_operator.reconcile import FIGURES_S, SOON_S
from tinybird_proxy_operator.testing.served import POD_MONITOR

CHILDREN = ("ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "Service", "Deployment")
WITH_TOKEN: dict[str, Any] = {"replicas": 2, **OWN_TOKEN}


def live_image(cluster: Cluster, name: str = "events") -> str:
    containers = cluster.api.get("Deployment", name)["spec"]["template"]["spec"]["containers"]
    return str(containers[0]["image"])


def live_replicas(cluster: Cluster) -> int:
    return int(cluster.api.get("Deployment", "events")["spec"]["replicas"])


# What it makes.


async def test_an_install_makes_every_child_and_says_that_pods_are_awaited(cluster: Cluster) -> None:
    cluster.secret()
    cluster.resource({**WITH_TOKEN, "ingress": {"policy": "Managed", "host": "events.example.com"}})
    assert await cluster.reconcile() == SOON_S
    assert {kind: cluster.api.names(kind) for kind in (*CHILDREN, "Ingress")} == {
        kind: ["events"] for kind in (*CHILDREN, "Ingress")
    }
    assert set(cluster.api.names("Secret")) == {"tinybird", "events-client", "events-admin"}
    uid = cluster.api.get(KIND, "events")["metadata"]["uid"]
    for kind in CHILDREN:
        (owner,) = cluster.api.get(kind, "events")["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (uid, True)
    assert cluster.condition("Ready") == ("False", "NotReady")
    assert cluster.condition("Progressing") == ("True", "RollingOut")


async def test_without_a_token_of_its_own_there_is_no_client_secret(cluster: Cluster) -> None:
    cluster.resource()
    await cluster.reconcile()
    assert cluster.api.names("Secret") == ["events-admin"]
    assert cluster.condition("TokenValid") == ("True", "ClientsOwnTokens")


async def test_it_is_ready_once_the_pods_are(cluster: Cluster) -> None:
    await cluster.installed()
    assert cluster.condition("Ready") == ("True", "Ready")
    assert cluster.condition("Progressing") == ("False", "UpToDate")
    assert (cluster.status()["replicas"], cluster.status()["readyReplicas"]) == (2, 2)
    assert cluster.status()["observedGeneration"] == cluster.api.get(KIND, "events")["metadata"]["generation"]


async def test_a_second_reconcile_writes_nothing_not_even_in_vain(cluster: Cluster) -> None:
    cluster.secret()
    await cluster.installed(WITH_TOKEN)
    await cluster.reconcile()
    cluster.forget()
    cluster.clock.seconds += 3600
    assert await cluster.reconcile() == FIGURES_S
    assert cluster.api.writes == []


async def test_an_operator_that_starts_anew_changes_no_child(cluster: Cluster) -> None:
    await cluster.installed()
    before = {kind: cluster.api.get(kind, "events") for kind in CHILDREN}
    cluster.reconciler = cluster.operator()
    await cluster.reconcile()
    assert {kind: cluster.api.get(kind, "events")["metadata"]["generation"] for kind in ("Deployment",)} == {
        "Deployment": before["Deployment"]["metadata"]["generation"]
    }
    assert {kind: cluster.api.get(kind, "events").get("spec") for kind in CHILDREN} == {
        kind: before[kind].get("spec") for kind in CHILDREN
    }


async def test_drift_is_repaired(cluster: Cluster) -> None:
    await cluster.installed()
    service = cluster.api.get("Service", "events")
    service["spec"]["ports"] = [{"name": "other", "port": 1}]
    service["metadata"]["labels"]["tinybird-proxy.io/proxy"] = "other"
    cluster.api.put(service)
    deployment = cluster.api.get("Deployment", "events")
    deployment["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:latest"
    cluster.api.put(deployment)
    await cluster.reconcile()
    mended = cluster.api.get("Service", "events")
    assert [port["name"] for port in mended["spec"]["ports"]] == ["events"]
    assert mended["metadata"]["labels"] == child_labels("events")
    assert live_image(cluster) == IMAGE


async def test_what_somebody_changes_in_a_kind_that_is_not_watched_is_put_right_by_the_next_look_at_everything(
    cluster: Cluster,
) -> None:
    cluster.api.kinds["PodMonitor"] = POD_MONITOR
    await cluster.installed({"replicas": 2, "monitoring": {"podMonitor": "Enabled"}})
    monitor = cluster.api.get("PodMonitor", "events")
    cluster.api.put({**monitor, "spec": {**monitor["spec"], "podMetricsEndpoints": []}})
    await cluster.reconcile()
    assert cluster.api.get("PodMonitor", "events")["spec"] == monitor["spec"]


async def test_what_others_add_to_a_child_stays(cluster: Cluster) -> None:
    await cluster.installed()
    service = cluster.api.get("Service", "events")
    service["metadata"]["annotations"] = {"example.com/by": "a controller"}
    cluster.api.put(service)
    cluster.resource({"replicas": 2, "service": {"port": 8080}})
    await cluster.reconcile()
    live = cluster.api.get("Service", "events")
    assert live["metadata"]["annotations"] == {"example.com/by": "a controller"}
    assert live["spec"]["ports"][0]["port"] == 8080


async def test_what_a_resource_no_longer_asks_for_leaves_a_child_even_if_its_creation_wrote_it(
    cluster: Cluster,
) -> None:
    cluster.resource({"replicas": 2, "service": {"annotations": {"example.com/lb": "internal"}}})
    await cluster.reconcile()
    assert "annotations" in cluster.api.get("Service", "events")["metadata"]
    cluster.resource({"replicas": 2})
    await cluster.reconcile()
    assert not cluster.api.get("Service", "events")["metadata"].get("annotations")


@pytest.mark.parametrize("kind", CHILDREN)
async def test_a_deleted_child_is_made_again(cluster: Cluster, kind: str) -> None:
    await cluster.installed()
    uid = cluster.api.get(kind, "events")["metadata"]["uid"]
    cluster.api.remove(kind, "events")
    await cluster.reconcile()
    assert cluster.api.get(kind, "events")["metadata"]["uid"] != uid


async def test_the_generated_tokens_are_never_invented_again(cluster: Cluster) -> None:
    cluster.secret()
    await cluster.installed(WITH_TOKEN)
    secrets = [cluster.api.get("Secret", name) for name in ("events-client", "events-admin")]
    cluster.resource({**WITH_TOKEN, "replicas": 3})
    cluster.reconciler = cluster.operator()
    await cluster.reconcile()
    assert [cluster.api.get("Secret", name) for name in ("events-client", "events-admin")] == secrets


async def test_a_client_secret_that_somebody_deleted_comes_with_a_new_token_and_is_told(cluster: Cluster) -> None:
    cluster.secret()
    await cluster.installed(WITH_TOKEN)
    before = cluster.api.get("Secret", "events-client")["data"]
    cluster.api.remove("Secret", "events-client")
    await cluster.reconcile()
    assert cluster.api.get("Secret", "events-client")["data"] != before
    assert [(kind, reason) for kind, reason, _ in cluster.told()] == [("Warning", "ClientTokenReplaced")]


async def test_a_client_secret_that_is_made_because_it_is_asked_for_was_not_gone(cluster: Cluster) -> None:
    await cluster.installed()  # with its clients' own tokens
    cluster.secret()
    cluster.resource(WITH_TOKEN)
    await cluster.reconcile()
    assert "events-client" in cluster.api.names("Secret")
    assert cluster.told() == []


async def test_an_operator_without_the_right_to_pod_monitors_never_asks_for_any(cluster: Cluster) -> None:
    cluster.reconciler = cluster.operator(POD_MONITORS="false")
    cluster.resource({"replicas": 1, "monitoring": {"podMonitor": "Enabled"}})
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("True", "ApplyRefused")
    assert "rbac.podMonitors" in cluster.message("Degraded")
    assert cluster.api.names("Deployment") == ["events"]
    cluster.resource({"replicas": 1})
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("False", "AsExpected")
    assert not [asked.path for asked in cluster.api.asked if "podmonitors" in asked.path]


async def test_a_pod_monitor_without_its_kind_is_named_and_the_rest_is_made(cluster: Cluster) -> None:
    cluster.reconciler = cluster.operator(POD_MONITORS="true")
    cluster.resource({"replicas": 1, "monitoring": {"podMonitor": "Enabled"}})
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("True", "ApplyRefused")
    assert "prometheus-operator" in cluster.message("Degraded")
    assert cluster.api.names("Deployment") == ["events"]
    cluster.api.kinds["PodMonitor"] = POD_MONITOR
    await cluster.reconcile()
    assert cluster.api.names("PodMonitor") == ["events"]
    assert cluster.condition("Degraded") == ("False", "AsExpected")
    cluster.resource({"replicas": 1})
    await cluster.reconcile()
    assert cluster.api.names("PodMonitor") == []


# What belongs to others.


@pytest.mark.parametrize(
    ("kind", "name"),
    [("Deployment", "events"), ("Service", "events"), ("Secret", "events-client"), ("Secret", "events-admin")],
)
async def test_a_strangers_object_of_a_childs_name_is_left_untouched_and_named(
    cluster: Cluster, kind: str, name: str
) -> None:
    theirs = cluster.api.put(
        {"kind": kind, "metadata": {"name": name, "namespace": "shop", "labels": child_labels("events")}, "spec": {}}
    )
    cluster.secret()
    cluster.resource(WITH_TOKEN)
    await cluster.reconcile()
    await cluster.reconcile()
    assert cluster.api.get(kind, name) == theirs
    assert cluster.condition("Degraded") == ("True", "NameTaken")
    assert cluster.condition("Ready") == ("False", "NameTaken")
    assert cluster.message("Degraded").startswith(f"{kind} {name} exists and does not belong to this resource")
    cluster.api.remove(kind, name)
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("False", "AsExpected")


async def test_the_child_of_an_earlier_resource_of_that_name_is_a_strangers(cluster: Cluster) -> None:
    await cluster.installed()
    old = cluster.api.get("Deployment", "events")
    resource = cluster.api.get(KIND, "events")
    cluster.api.put({**resource, "metadata": {**resource["metadata"], "uid": "another"}})
    cluster.api.remove(KIND, "events")
    cluster.api.put(old)
    cluster.resource()
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("True", "NameTaken")


async def test_an_unwanted_child_is_pruned_if_it_is_ours(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.resource({"replicas": 2, "service": {"policy": "None"}})
    await cluster.reconcile()
    assert cluster.api.names("Service") == []
    assert cluster.told() == [("Normal", "Pruned", "Deleted: Service events.")]


async def test_an_unwanted_object_that_only_carries_our_labels_stays(cluster: Cluster) -> None:
    cluster.api.put(
        {"kind": "Service", "metadata": {"name": "mine", "namespace": "shop", "labels": child_labels("events")}}
    )
    await cluster.installed()
    assert set(cluster.api.names("Service")) == {"events", "mine"}


async def test_only_pods_of_our_own_replica_sets_count_and_are_asked(cluster: Cluster) -> None:
    await cluster.installed(pods=1)
    stranger = cluster.api.put({"kind": "ReplicaSet", "metadata": {"name": "theirs", "namespace": "shop"}})
    cluster.pod("impostor", stranger, labels=selector_labels("events"), ip=IPS[2])
    cluster.proxies.asked.clear()
    await cluster.reconcile()
    assert set(cluster.proxies.asked) == {IPS[0]}
    assert cluster.status()["replicas"] == 1


# How many.


async def test_absent_replicas_are_seeded_with_one_through_scale(cluster: Cluster) -> None:
    cluster.resource({})
    await cluster.reconcile()
    assert cluster.api.get(KIND, "events")["spec"]["replicas"] == 1
    assert live_replicas(cluster) == 1
    assert [path for _, path in cluster.api.writes if path.endswith("/scale")] == [
        "/apis/tinybird-proxy.io/v1alpha1/namespaces/shop/tinybirdproxies/events/scale"
    ]


@pytest.mark.parametrize("running", [5, 0])
async def test_replicas_that_go_away_are_seeded_with_what_runs(cluster: Cluster, running: int) -> None:
    cluster.resource({"replicas": running})
    await cluster.reconcile()
    cluster.resource({})
    await cluster.reconcile()
    assert (cluster.api.get(KIND, "events")["spec"]["replicas"], live_replicas(cluster)) == (running, running)


async def test_a_strangers_deployment_is_no_seed(cluster: Cluster) -> None:
    metadata = {"name": "events", "namespace": "shop"}
    cluster.api.put({"kind": "Deployment", "metadata": metadata, "spec": {"replicas": 7}})
    cluster.resource({})
    await cluster.reconcile()
    assert cluster.api.get(KIND, "events")["spec"]["replicas"] == 1


async def test_replicas_are_written_for_no_other_reason(cluster: Cluster) -> None:
    await cluster.installed({"replicas": 2})
    cluster.resource({"replicas": 4})
    await cluster.reconcile()
    assert not [path for _, path in cluster.api.writes if path.endswith("/scale")]


async def test_a_seed_that_somebody_overtakes_is_not_written(cluster: Cluster) -> None:
    cluster.resource({})
    cluster.api.fail(409, method="PATCH", path="/scale")
    with pytest.raises(KubeError):
        await cluster.reconcile()
    cluster.resource({"replicas": 3})
    await cluster.reconcile()
    assert live_replicas(cluster) == 3


async def test_a_write_to_scale_by_anyone_is_followed_without_a_new_template(cluster: Cluster) -> None:
    await cluster.installed({"replicas": 2})
    template = cluster.api.get("Deployment", "events")["spec"]["template"]
    version = cluster.api.get(KIND, "events")["metadata"]["resourceVersion"]
    await cluster.kube.set_scale("shop", "events", 5, resource_version=version)
    await cluster.reconcile()
    assert live_replicas(cluster) == 5
    assert cluster.api.get("Deployment", "events")["spec"]["template"] == template
    assert cluster.message("Ready") == "2 of 5 pods are ready."
