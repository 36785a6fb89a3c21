"""Rotation of the generated client token through the whole operator: what apps read, what is told, what is asked."""

import base64
from typing import Any

import pytest
from tests.operator.clusters import IPS, Cluster, report
from tests.operator.resources import OWN_TOKEN

from tinybird_proxy.config import token_hash
from tinybird_proxy_operator.errors import KubeError
from tinybird_proxy_operator.names import KIND
from tinybird_proxy_operator.reconcile import FIGURES_S
from tinybird_proxy_operator.rotation import PODS_AGAIN_S, ROTATE_ANNOTATION

SPEC: dict[str, Any] = {"replicas": 2, **OWN_TOKEN}


def data(cluster: Cluster) -> dict[str, str]:
    found = cluster.api.get("Secret", "events-client")["data"]
    return {key: base64.b64decode(value).decode() for key, value in found.items()}


def read_by(cluster: Cluster, *ips: str) -> None:
    """The pods at these addresses read the Secret."""
    for ip in ips:
        cluster.proxies.says[ip] = report(clients_hash=token_hash(data(cluster)["accepted"]))


async def installed(cluster: Cluster, spec: dict[str, Any] = SPEC) -> str:
    """A running resource; the token that its apps hold."""
    cluster.secret()
    await cluster.installed(spec)
    read_by(cluster, *IPS)
    return data(cluster)["token"]


def ask(cluster: Cluster, text: str | None, spec: dict[str, Any] = SPEC) -> None:
    cluster.resource(spec, annotations={} if text is None else {ROTATE_ANNOTATION: text})


def rotations(cluster: Cluster) -> list[tuple[str, str]]:
    return [(kind, message) for kind, reason, message in cluster.told() if reason == "ClientTokenRotated"]


async def test_a_rotation_waits_for_every_pod_and_then_tells_apps(cluster: Cluster) -> None:
    old = await installed(cluster)
    ask(cluster, "June")
    assert await cluster.reconcile() == PODS_AGAIN_S
    assert (data(cluster)["token"], len(data(cluster)["accepted"].splitlines())) == (old, 2)
    read_by(cluster, IPS[0])
    cluster.clock.seconds += FIGURES_S
    assert await cluster.look() == PODS_AGAIN_S
    assert data(cluster)["token"] == old
    assert "1 of 2 pods accept it" in cluster.message("TokenValid")
    assert "Not yet: events-1-1." in cluster.message("TokenValid")
    read_by(cluster, IPS[1])
    cluster.clock.seconds += FIGURES_S
    assert await cluster.look() == FIGURES_S
    new = data(cluster)["token"]
    assert new != old
    assert set(data(cluster)) == {"token", "accepted"}
    [(kind, message)] = rotations(cluster)
    assert kind == "Normal"
    assert "is accepted until 2026-01-02T00:17:00Z" in message
    assert "is accepted until 2026-01-02T00:17:00Z" in cluster.message("TokenValid")
    assert not [token for token in (old, new) if token in str(cluster.told()) + str(cluster.status())]


async def test_the_end_of_the_overlap_is_seen_without_an_event_and_until_then_the_secret_is_not_read(
    cluster: Cluster,
) -> None:
    await installed(cluster, {**SPEC, "clients": {"overlapSeconds": 600}})
    ask(cluster, "June", {**SPEC, "clients": {"overlapSeconds": 600}})
    await cluster.reconcile()
    read_by(cluster, *IPS)
    await cluster.reconcile()
    read_by(cluster, *IPS)
    await cluster.reconcile()
    cluster.clock.seconds += 595
    cluster.forget()
    assert await cluster.look() == 5.0
    assert not [asked for asked in cluster.api.asked if asked.path.endswith("/secrets/events-client")]
    assert "accepted until" in cluster.message("TokenValid")
    cluster.clock.seconds += 5
    await cluster.look()
    assert data(cluster)["accepted"] == f"{data(cluster)['token']} name=events-client\n"
    cluster.clock.seconds += FIGURES_S
    await cluster.look()
    assert "accepted until" not in cluster.message("TokenValid")


async def test_an_operator_that_starts_anew_goes_on_with_a_rotation(cluster: Cluster) -> None:
    old = await installed(cluster)
    ask(cluster, "June")
    await cluster.reconcile()
    coming = data(cluster)["next"]
    cluster.reconciler = cluster.operator()
    await cluster.look()
    assert (data(cluster)["token"], data(cluster)["next"]) == (old, coming)
    read_by(cluster, *IPS)
    cluster.reconciler = cluster.operator()
    await cluster.look()
    assert data(cluster)["token"] == coming


async def test_a_rotation_goes_on_although_something_else_of_the_resource_is_wrong(cluster: Cluster) -> None:
    old = await installed(cluster)
    wrong = {**SPEC, "image": "stranger/image:1"}
    ask(cluster, "June", wrong)
    await cluster.reconcile()
    read_by(cluster, *IPS)
    cluster.clock.seconds += PODS_AGAIN_S
    await cluster.look()
    assert cluster.condition("Degraded") == ("True", "ImageNotAllowed")
    assert data(cluster)["token"] != old


async def test_a_refused_write_is_a_problem_with_its_reason_and_the_rest_goes_on(cluster: Cluster) -> None:
    old = await installed(cluster)
    ask(cluster, "June")
    cluster.api.fail(403, method="PATCH", path="/secrets/", message="may not patch secrets")
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("True", "ApplyRefused")
    assert data(cluster)["token"] == old
    await cluster.reconcile()
    assert "next" in data(cluster)


async def test_a_pod_that_is_on_no_node_has_read_nothing_and_is_not_waited_for(cluster: Cluster) -> None:
    old = await installed(cluster)
    pod = cluster.api.get("Pod", "events-1-1")
    cluster.api.put({**pod, "status": {"phase": "Pending"}})
    ask(cluster, "June")
    await cluster.reconcile()
    read_by(cluster, IPS[0])
    await cluster.reconcile()
    assert data(cluster)["token"] != old


async def test_a_deleted_secret_in_a_rotation_is_made_anew_and_is_not_rotated_once_more(cluster: Cluster) -> None:
    old = await installed(cluster)
    ask(cluster, "June")
    await cluster.reconcile()
    cluster.api.remove("Secret", "events-client")
    for _ in range(3):
        await cluster.reconcile()
    assert set(data(cluster)) == {"token", "accepted"}
    assert data(cluster)["token"] != old
    assert [reason for _, reason, _ in cluster.told()].count("ClientTokenReplaced") == 1
    assert rotations(cluster) == []


async def test_without_an_annotation_and_while_unmanaged_the_secret_is_left_alone(cluster: Cluster) -> None:
    await installed(cluster)
    before = cluster.api.get("Secret", "events-client")
    await cluster.reconcile()
    ask(cluster, "June", {**SPEC, "managementState": "Unmanaged"})
    await cluster.reconcile()
    assert cluster.api.get("Secret", "events-client") == before


async def test_a_users_own_client_secret_is_not_rotated_and_that_is_said(cluster: Cluster) -> None:
    cluster.secret("apps")
    await installed(cluster)
    before = cluster.api.get("Secret", "apps")
    spec = {**SPEC, "clients": {"tokenSecretRef": {"name": "apps"}}}
    ask(cluster, "June", spec)
    await cluster.reconcile()
    assert cluster.api.get("Secret", "apps") == before
    assert cluster.message("TokenValid").endswith("has no effect: it is for a client token that the operator made.")


async def test_of_an_immutable_secret_the_condition_says_what_can_be_done_and_keeps_its_status(
    cluster: Cluster,
) -> None:
    await installed(cluster)
    before = cluster.condition("TokenValid")
    cluster.api.put({**cluster.api.get("Secret", "tinybird"), "immutable": True})
    await cluster.reconcile()
    cluster.clock.seconds += FIGURES_S
    await cluster.reconcile()
    assert cluster.condition("TokenValid") == before
    assert "The Secret tinybird is immutable: its token cannot be changed." in cluster.message("TokenValid")
    ((kind, reason, message),) = cluster.told()
    assert (kind, reason) == ("Normal", "SecretImmutable")
    assert message.startswith("The Secret tinybird is immutable")


async def test_of_two_immutable_secrets_both_are_told(cluster: Cluster) -> None:
    await installed(cluster)
    cluster.secret("apps")
    for name in ("tinybird", "apps"):
        cluster.api.put({**cluster.api.get("Secret", name), "immutable": True})
    cluster.resource({**SPEC, "clients": {"tokenSecretRef": {"name": "apps"}}})
    await cluster.reconcile()
    ((_, _, message),) = [event for event in cluster.told() if event[1] == "SecretImmutable"]
    for name in ("tinybird", "apps"):
        assert f"The Secret {name} is immutable" in message


async def test_a_rotation_that_an_immutable_client_secret_forbids_is_told(cluster: Cluster) -> None:
    await installed(cluster)
    cluster.api.put({**cluster.api.get("Secret", "events-client"), "immutable": True})
    ask(cluster, "June")
    await cluster.reconcile()
    ((kind, reason, message),) = cluster.told()
    assert (kind, reason) == ("Warning", "SecretImmutable")
    assert message.startswith("Secret events-client is immutable: its client token cannot be rotated")


async def test_a_token_secret_that_somebody_deleted_is_told_and_what_runs_stays(cluster: Cluster) -> None:
    await installed(cluster)
    cluster.api.remove("Secret", "tinybird")
    cluster.forget()
    await cluster.reconcile()
    ((kind, reason, message),) = cluster.told()
    assert (kind, reason) == ("Warning", "SecretNotFound")
    assert message.startswith("Secret tinybird does not exist in namespace shop.")
    assert {path.rpartition("/")[2] for _, path in cluster.api.writes} == {"events", "status"}
    assert cluster.condition("TokenValid") == ("False", "SecretNotFound")
    cluster.secret()
    await cluster.reconcile()
    assert cluster.condition("TokenValid")[1] != "SecretNotFound"


async def test_a_retained_secret_outlives_its_resource_and_a_new_one_uses_it(cluster: Cluster) -> None:
    spec = {**SPEC, "clients": {"secretDeletionPolicy": "Retain"}}
    old = await installed(cluster)
    cluster.resource(spec)
    await cluster.reconcile()
    cluster.api.remove(KIND, "events")
    assert set(cluster.api.names("Secret")) == {"tinybird", "events-client"}
    await cluster.reconcile()
    cluster.resource(SPEC)
    await cluster.reconcile()
    assert data(cluster)["token"] == old
    cluster.api.remove(KIND, "events")
    assert cluster.api.names("Secret") == ["tinybird"]


async def test_while_the_deployment_is_new_and_its_pods_are_not_known_apps_keep_their_token(cluster: Cluster) -> None:
    old = await installed(cluster)
    ask(cluster, "June")
    await cluster.reconcile()
    sets = cluster.api.get("ReplicaSet", "events-1")
    sets["metadata"]["ownerReferences"] = []
    cluster.api.put(sets)
    cluster.api.remove("Deployment", "events")  # kubectl delete --cascade=orphan: its pods go on serving
    await cluster.reconcile()
    assert data(cluster)["token"] == old
    assert "no pod yet that could be asked" in cluster.message("TokenValid")
    deployment = cluster.api.get("Deployment", "events")
    cluster.api.put({**deployment, "status": {"observedGeneration": deployment["metadata"]["generation"]}})
    await cluster.reconcile()
    assert data(cluster)["token"] == old
    cluster.roll_out()
    read_by(cluster, *IPS)
    await cluster.reconcile()
    assert data(cluster)["token"] != old


async def test_without_a_wanted_pod_a_rotation_waits_for_none(cluster: Cluster) -> None:
    spec = {**SPEC, "replicas": 0}
    cluster.secret()
    await cluster.installed(spec, pods=0)
    old = data(cluster)["token"]
    ask(cluster, "June", spec)
    for _ in range(2):
        await cluster.reconcile()
    assert data(cluster)["token"] != old


async def test_a_broken_webhook_of_the_ingress_keeps_neither_rotation_nor_figures_waiting(cluster: Cluster) -> None:
    spec = {**SPEC, "ingress": {"policy": "Managed", "host": "a.example.com"}}
    old = await installed(cluster, spec)
    ask(cluster, "June", spec)
    await cluster.reconcile()
    read_by(cluster, *IPS)
    cluster.resource({**spec, "ingress": {"policy": "Managed", "host": "b.example.com"}})
    said = 'failed calling webhook "validate.nginx.ingress.kubernetes.io"'
    cluster.api.fail(500, method="PATCH", path="/ingresses", times=100, message=said)
    cluster.proxies.says[IPS[0]]["buffer"]["rows"] = 900
    try:
        await cluster.reconcile()
    except KubeError as error:
        pytest.fail(f"the whole look failed: {error}")
    assert data(cluster)["token"] != old
    assert cluster.status()["buffer"]["rows"] == 900
    assert cluster.condition("Degraded") == ("True", "ApplyRefused")
    assert said in cluster.message("Degraded")
