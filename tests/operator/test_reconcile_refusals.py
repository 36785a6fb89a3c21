"""`reconcile`: resources that must not be carried out, and those that are not for it to carry out."""

import base64
from typing import Any

import pytest
from tests.operator.clusters import IPS, TOKEN_HASH, Cluster, report
from tests.operator.resources import OWN_TOKEN

from tinybird_proxy.config import token_hash
from tinybird_proxy_operator.names import KIND

CHILDREN = ("ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "Service", "Deployment")
WITH_TOKEN: dict[str, Any] = {"replicas": 2, **OWN_TOKEN}


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
