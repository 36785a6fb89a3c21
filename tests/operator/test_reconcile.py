"""`reconcile`: from the whole state of the cluster to what the resource asks, on a fake API server."""

import base64
from typing import Any

import pytest
from tests.operator.clusters import EPOCH, IPS, TOKEN_HASH, Cluster, owned, report, stuck
from tests.operator.resources import IMAGE, OWN_TOKEN, operator_settings

from tinybird_proxy.config import token_hash
from tinybird_proxy_operator.errors import KubeError
from tinybird_proxy_operator.names import KIND, ROLL_ANNOTATION, child_labels, selector_labels
from tinybird_proxy_operator.reconcile import FIGURES_S, SOON_S
from tinybird_proxy_operator.testing.fake_api import POD_MONITOR

CHILDREN = ("ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "Service", "Deployment")
WITH_TOKEN: dict[str, Any] = {"replicas": 2, **OWN_TOKEN}
NEW_IMAGE = "ghcr.io/tinybird-proxy/tinybird-proxy:1.2.4"
CHANGED = {"replicas": 2, "image": NEW_IMAGE}


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


async def test_a_pod_monitor_without_its_kind_is_named_and_the_rest_is_made(cluster: Cluster) -> None:
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
    assert cluster.told() == [("Normal", "UpToDate", "Deleted: Service events.")]


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


# What is wrong with it.


@pytest.mark.parametrize(
    ("spec", "reason", "named"),
    [
        ({"buffer": {"maxSize": "a lot"}}, "InvalidSpec", "spec.buffer.maxSize"),
        ({"batch": {"maxRows": "many"}}, "InvalidSpec", "maxRows"),
        ({"tinybird": {"url": "https://evil.example"}}, "UpstreamNotAllowed", "evil.example"),
        ({"telemetry": {"otlpEndpoint": "http://evil.example:4318"}}, "CollectorNotAllowed", "evil.example"),
        ({"image": "evil/proxy:1"}, "ImageNotAllowed", "evil/proxy:1"),
    ],
)
async def test_a_spec_that_must_not_be_carried_out_changes_nothing_and_is_explained(
    cluster: Cluster, spec: dict[str, Any], reason: str, named: str
) -> None:
    await cluster.installed()
    before = {kind: cluster.api.get(kind, "events") for kind in CHILDREN}
    cluster.resource({"replicas": 2, **spec})
    await cluster.reconcile()
    assert {kind: cluster.api.get(kind, "events") for kind in CHILDREN} == before
    assert cluster.condition("Degraded") == ("True", reason)
    assert cluster.condition("Ready") == ("False", reason)
    assert named in cluster.message("Degraded")
    cluster.resource()
    await cluster.reconcile()
    assert cluster.condition("Ready") == ("True", "Ready")


async def test_of_a_spec_that_cannot_be_read_nothing_is_claimed(cluster: Cluster) -> None:
    cluster.resource({"replicas": 2, "batch": 7})
    await cluster.reconcile()
    assert cluster.condition("TokenValid") == ("Unknown", "Unknown")
    assert [cluster.api.names(kind) for kind in CHILDREN] == [[]] * len(CHILDREN)


async def test_what_the_api_server_refuses_is_told_in_its_words(cluster: Cluster) -> None:
    cluster.resource()
    cluster.api.fail(422, method="POST", path="/deployments", message="spec.template: too long")
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("True", "ApplyRefused")
    assert "spec.template: too long" in cluster.message("Degraded")
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("False", "AsExpected")


@pytest.mark.parametrize(
    ("secret", "reason", "advice"),
    [
        (None, "SecretNotFound", "Secret tinybird does not exist in namespace shop. Create it, with the key token."),
        ({"shared": False}, "SecretNotShared", "kubectl label secret tinybird tinybird-proxy.io/use=token"),
        ({"key": "other"}, "SecretKeyMissing", "Secret tinybird has no value under the key token; its keys: other."),
        ({"value": ""}, "SecretKeyMissing", "no value under the key token"),
        ({"value": "//8="}, "SecretKeyMissing", "no value under the key token"),
    ],
)
async def test_a_secret_that_cannot_be_used_is_named_and_works_when_it_is_put_right(
    cluster: Cluster, secret: dict[str, Any] | None, reason: str, advice: str
) -> None:
    if secret is not None:
        cluster.secret(**secret)
    cluster.resource(WITH_TOKEN)
    await cluster.reconcile()
    assert cluster.api.names("Deployment") == []
    assert [cluster.condition(kind) for kind in ("Ready", "Degraded", "TokenValid")] == [
        ("False", reason),
        ("True", reason),
        ("False", reason),
    ]
    assert advice in cluster.message("TokenValid")
    cluster.secret()
    await cluster.reconcile()
    assert cluster.api.names("Deployment") == ["events"]
    assert cluster.condition("TokenValid") == ("Unknown", "Unknown")


async def test_children_run_on_while_the_secret_is_missing(cluster: Cluster) -> None:
    cluster.secret()
    await cluster.installed(WITH_TOKEN)
    before = {kind: cluster.api.get(kind, "events") for kind in CHILDREN}
    cluster.api.remove("Secret", "tinybird")
    await cluster.reconcile()
    assert {kind: cluster.api.get(kind, "events") for kind in CHILDREN} == before
    assert cluster.condition("Degraded") == ("True", "SecretNotFound")


async def test_a_missing_secret_of_the_clients_does_not_speak_against_the_token(cluster: Cluster) -> None:
    cluster.secret()
    await cluster.installed(WITH_TOKEN)
    cluster.resource({**WITH_TOKEN, "clients": {"tokenSecretRef": {"name": "apps"}}})
    cluster.proxies.says = dict.fromkeys(IPS, report(accepted_at="2026-01-01T00:00:00+00:00"))
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("True", "SecretNotFound")
    assert "Secret apps" in cluster.message("Degraded")
    assert cluster.condition("TokenValid") == ("True", "Accepted")


async def test_pods_are_counted_by_the_token_that_they_use(cluster: Cluster) -> None:
    cluster.secret(value=base64.b64encode(b"p.right\n").decode())
    right = token_hash("p.right")
    cluster.proxies.says = {IPS[0]: report(hash=right), IPS[1]: report(hash=TOKEN_HASH)}
    await cluster.installed(WITH_TOKEN, pods=3)
    cluster.proxies.says[IPS[2]] = {"not": "a proxy"}
    await cluster.reconcile()
    assert cluster.status()["token"] == {"expectedHash": right, "podsCurrent": 1, "podsTotal": 3, "podsUnknown": 1}


# Whose it is.


async def test_unmanaged_writes_nothing_but_the_status(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.resource({"managementState": "Unmanaged", "service": {"policy": "None"}})
    cluster.api.remove("PodDisruptionBudget", "events")
    cluster.forget()
    await cluster.reconcile()
    assert [path.rpartition("/")[2] for _, path in cluster.api.writes] == ["status"]
    assert cluster.condition("Ready") == ("Unknown", "Unmanaged")
    assert "replicas" not in cluster.api.get(KIND, "events")["spec"]


@pytest.mark.parametrize("spec", [{"replicas": 1}, {}, {"batch": 7}])
async def test_a_resource_of_another_operator_is_nobodys_business(cluster: Cluster, spec: dict[str, Any]) -> None:
    cluster.resource({**spec, "controllerClass": "blue"})
    assert await cluster.reconcile() is None
    assert cluster.api.writes == []
    cluster.reconciler = cluster.operator(CONTROLLER_CLASS="blue")
    await cluster.reconcile()
    assert cluster.api.writes != []


@pytest.mark.parametrize("spec", [{"replicas": 1}, {}, {"batch": 7}])
async def test_a_resource_that_is_being_deleted_is_left_alone(cluster: Cluster, spec: dict[str, Any]) -> None:
    cluster.resource(spec, deletionTimestamp="2026-01-01T00:00:00Z", finalizers=["foregroundDeletion"])
    assert await cluster.reconcile() is None
    assert cluster.api.writes == []


async def test_a_resource_that_is_gone_is_done_with(cluster: Cluster) -> None:
    assert await cluster.reconcile() is None


async def test_a_resource_deleted_during_its_reconcile_is_no_error(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.resource({"replicas": 3})
    cluster.api.fail(404, method="PATCH", path="/status")
    await cluster.reconcile()


# Rollouts that are held back.


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


async def test_a_changed_default_image_rolls_so_many_resources_at_a_time(cluster: Cluster) -> None:
    for name, ip in (("events", 0), ("orders", 1)):
        cluster.resource({"replicas": 1}, name=name)
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
    await cluster.reconcile("orders")
    assert live_image(cluster, "orders") == NEW_IMAGE


@pytest.mark.parametrize("how", ["deleted", "unmanaged", "another's"])
async def test_nobody_waits_for_a_resource_that_is_no_longer_ours(cluster: Cluster, how: str) -> None:
    for name, ip in (("events", 0), ("orders", 1)):
        cluster.resource({"replicas": 1}, name=name)
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
        cluster.resource({"replicas": 1}, name=name)
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
        cluster.resource({"replicas": 1}, name=name)
        await cluster.reconcile(name)
        cluster.roll_out(name, pods=1, first_ip=ip)
    for name in ("events", "orders"):
        cluster.resource(CHANGED, name=name)
        await cluster.reconcile(name)
    assert (live_image(cluster, "events"), live_image(cluster, "orders")) == (NEW_IMAGE, NEW_IMAGE)


# Status and Events.


async def test_figures_are_written_at_most_every_ten_seconds(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.proxies.says = {IPS[0]: report(rows=12_345, bytes=987_654, oldest_age_s=3.4)}
    cluster.clock.seconds += FIGURES_S - 1
    cluster.forget()
    await cluster.reconcile()
    assert cluster.api.writes == []
    cluster.clock.seconds += 1
    await cluster.reconcile()
    assert cluster.status()["buffer"] == {"rows": 12_000, "size": "990000", "oldestRowAgeSeconds": 3}
    assert len(cluster.api.writes) == 1


async def test_a_sentence_with_other_figures_is_no_reason_to_write_sooner(cluster: Cluster) -> None:
    cluster.proxies.says = dict.fromkeys(IPS, stuck(100))
    await cluster.installed()
    assert cluster.condition("BufferHealthy") == ("False", "NotDelivering")
    cluster.forget()
    cluster.proxies.says = dict.fromkeys(IPS, stuck(101))
    await cluster.reconcile()
    assert cluster.api.writes == []


async def test_a_changed_condition_is_written_at_once_and_only_its_time_is_new(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.clock.seconds += 1
    cluster.proxies.says = dict.fromkeys(IPS, report(utilisation=1.0))
    await cluster.reconcile()
    times = {each["type"]: each["lastTransitionTime"] for each in cluster.status()["conditions"]}
    assert cluster.condition("BufferHealthy") == ("False", "Full")
    assert times.pop("BufferHealthy") == "2026-01-01T00:16:41Z" == f"{cluster.clock.utc_now():%Y-%m-%dT%H:%M:%SZ}"
    assert set(times.values()) == {f"{EPOCH.replace(minute=16, second=40):%Y-%m-%dT%H:%M:%SZ}"}


async def test_an_event_is_told_once_in_a_while_and_one_for_each_problem(cluster: Cluster) -> None:
    cluster.resource({"replicas": 1, "buffer": {"maxSize": "a lot"}, "image": "evil/proxy:1"})
    await cluster.reconcile()
    first = cluster.told()
    assert {reason for _, reason, _ in first} == {"InvalidSpec", "ImageNotAllowed"}
    assert {kind for kind, _, _ in first} == {"Warning"}
    await cluster.reconcile()
    assert cluster.told() == first
    cluster.clock.seconds += 601
    await cluster.reconcile()
    assert len(cluster.told()) == 2 * len(first)


async def test_a_held_rollout_is_told_once_whatever_the_figures(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.resource(CHANGED)
    for rows in (7, 8, 9):
        cluster.proxies.says = dict.fromkeys(IPS, stuck(rows))
        await cluster.reconcile()
    assert [reason for _, reason, _ in cluster.told()] == ["RolloutHeld"]


async def test_a_refused_token_is_told_with_the_name_of_its_secret(cluster: Cluster) -> None:
    cluster.secret()
    cluster.proxies.says = dict.fromkeys(IPS, report(denied_at="2026-01-01T00:00:00+00:00"))
    await cluster.installed(WITH_TOKEN)
    await cluster.reconcile()
    ((kind, reason, message),) = cluster.told()
    assert (kind, reason) == ("Warning", "Rejected")
    assert "the Secret tinybird" in message
    assert cluster.condition("Ready") == ("False", "Rejected")


async def test_no_token_is_in_a_status_or_an_event(cluster: Cluster) -> None:
    cluster.secret(value=base64.b64encode(b"p.secret").decode())
    await cluster.installed(WITH_TOKEN)
    said = f"{cluster.status()}{cluster.api.all('Event')}"
    assert "p.secret" not in said
    assert "token-" not in said


# The API server fails.


@pytest.mark.parametrize("status", [0, 409, 410, 429, 500, 503])
@pytest.mark.parametrize("done_first", [False, True])
async def test_whatever_request_fails_the_next_reconcile_mends_it(
    cluster: Cluster, status: int, done_first: bool
) -> None:
    cluster.secret()
    cluster.resource(OWN_TOKEN)
    await cluster.reconcile()
    requests = [(asked.method, asked.path) for asked in cluster.api.asked]
    wanted = {(kind, name) for kind in (*CHILDREN, "Secret") for name in cluster.api.names(kind)}
    for method, path in sorted(set(requests)):
        for kind in (*CHILDREN, "Secret", KIND):
            for name in cluster.api.names(kind):
                cluster.api.remove(kind, name)
        cluster.secret()
        cluster.reconciler = cluster.operator()
        cluster.resource(OWN_TOKEN)
        cluster.api.heal()
        cluster.api.fail(status, method=method, path=path, done_first=done_first)
        for _ in range(6):
            try:
                await cluster.reconcile()
            except KubeError:
                continue
        made = {(kind, name) for kind in (*CHILDREN, "Secret") for name in cluster.api.names(kind)}
        assert made == wanted, (method, path)
        assert cluster.condition("Degraded") == ("False", "AsExpected"), (method, path)
        cluster.forget()
        await cluster.reconcile()
        assert cluster.api.writes == [], (method, path)


async def test_while_the_api_server_refuses_everything_nothing_is_concluded(cluster: Cluster) -> None:
    await cluster.installed()
    before = cluster.status()
    cluster.api.fail(503, times=1000)
    with pytest.raises(KubeError):
        await cluster.reconcile()
    cluster.api.heal()
    assert cluster.status() == before
    assert operator_settings().proxy_image == live_image(cluster)


async def test_a_child_replaced_by_a_stranger_between_read_and_write_is_not_written_to(cluster: Cluster) -> None:
    await cluster.installed()
    live = cluster.api.get("Deployment", "events")
    cluster.api.remove("Deployment", "events")
    metadata = owned("events", {}, cluster.api.get(KIND, "events"))
    theirs = cluster.api.put({"kind": "Deployment", "metadata": {**metadata, "uid": "new"}, "spec": {}})
    with pytest.raises(KubeError):
        await cluster.kube.apply(
            {**live, "metadata": {key: live["metadata"][key] for key in ("name", "namespace", "labels")}},
            uid=live["metadata"]["uid"],
        )
    assert cluster.api.get("Deployment", "events") == theirs
