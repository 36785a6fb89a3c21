"""`reconcile`: resources that must not be carried out, and those that are not for it to carry out."""

import base64
from typing import Any

import pytest
from tests.operator.clusters import EPOCH, IPS, TOKEN_HASH, TRIES, Cluster, report
from tests.operator.resources import OWN_TOKEN

from tinybird_proxy.config import token_hash
from tinybird_proxy_operator.errors import KubeError
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


async def test_a_refused_child_keeps_no_other_waiting_and_every_refusal_is_told(cluster: Cluster) -> None:
    cluster.resource({"replicas": 1, "ingress": {"policy": "Managed", "host": "events.example.com"}})
    theirs = cluster.api.put({"kind": "Service", "metadata": {"name": "events", "namespace": "shop"}})
    cluster.api.fail(422, method="POST", path="/poddisruptionbudgets", message="maxUnavailable: no")
    await cluster.reconcile()
    assert cluster.api.get("Service", "events") == theirs
    assert cluster.api.names("PodDisruptionBudget") == []
    assert [cluster.api.names(kind) for kind in ("NetworkPolicy", "Deployment", "Ingress")] == [["events"]] * 3
    assert cluster.condition("Degraded") == ("True", "ApplyRefused")
    assert "maxUnavailable: no" in cluster.message("Degraded")
    assert "Service events exists and does not belong" in cluster.message("Degraded")
    assert {reason for _, reason, _ in cluster.told()} == {"ApplyRefused", "NameTaken"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ServiceAccount", "events"),
        ("NetworkPolicy", "events"),
        ("Secret", "events-admin"),
        ("Secret", "events-client"),
    ],
)
async def test_no_pods_are_made_without_what_they_need_or_what_protects_them(
    cluster: Cluster, kind: str, name: str
) -> None:
    cluster.secret()
    cluster.resource(WITH_TOKEN)
    theirs = cluster.api.put({"kind": kind, "metadata": {"name": name, "namespace": "shop"}})
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("True", "NameTaken")
    assert cluster.api.get(kind, name) == theirs
    assert cluster.api.names("Deployment") == []
    assert cluster.api.names("Service") == ["events"]
    cluster.api.remove(kind, name)
    await cluster.reconcile()
    assert cluster.api.names("Deployment") == ["events"]


async def test_while_something_that_pods_need_is_refused_only_their_number_is_followed(cluster: Cluster) -> None:
    await cluster.installed()
    before = cluster.api.get("Deployment", "events")["spec"]["template"]
    cluster.resource({"replicas": 3, "batch": {"maxRows": 7}, "networkPolicy": {"from": [{"podSelector": {}}]}})
    cluster.api.fail(422, method="PATCH", path="/networkpolicies", times=2, message="from: no")
    await cluster.reconcile()
    spec = cluster.api.get("Deployment", "events")["spec"]
    assert (spec["replicas"], spec["template"]) == (3, before)
    assert cluster.condition("Degraded") == ("True", "ApplyRefused")
    await cluster.reconcile()
    assert cluster.api.get("Deployment", "events")["spec"]["template"] != before
    assert cluster.condition("Degraded") == ("False", "AsExpected")


async def test_a_strangers_deployment_is_named_also_while_something_else_is_refused(cluster: Cluster) -> None:
    for kind in ("Deployment", "ServiceAccount"):
        cluster.api.put({"kind": kind, "metadata": {"name": "events", "namespace": "shop"}, "spec": {}})
    cluster.resource()
    await cluster.reconcile()
    assert "Deployment events exists and does not belong" in cluster.message("Degraded")
    assert "ServiceAccount events exists and does not belong" in cluster.message("Degraded")


async def test_nothing_is_pruned_while_something_is_refused(cluster: Cluster) -> None:
    await cluster.installed({"replicas": 2})
    ingress = {"policy": "Managed", "host": "events.example.com"}
    cluster.resource({"replicas": 2, "podDisruptionBudget": {"policy": "None"}, "ingress": ingress})
    cluster.api.fail(403, method="POST", path="/ingresses", message="no Ingress here")
    await cluster.reconcile()
    assert cluster.api.names("PodDisruptionBudget") == ["events"]
    await cluster.reconcile()
    assert cluster.api.names("PodDisruptionBudget") == []
    assert cluster.api.names("Ingress") == ["events"]


async def test_what_may_not_be_deleted_is_told_and_what_was_deleted_too(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.resource({"replicas": 2, "podDisruptionBudget": {"policy": "None"}, "service": {"policy": "None"}})
    cluster.api.fail(403, method="DELETE", path="/poddisruptionbudgets", message="cannot delete budgets")
    await cluster.reconcile()
    assert (cluster.api.names("Service"), cluster.api.names("PodDisruptionBudget")) == ([], ["events"])
    assert "cannot delete budgets" in cluster.message("Degraded")
    assert ("Normal", "Pruned", "Deleted: Service events.") in cluster.told()
    await cluster.look()
    assert cluster.api.names("PodDisruptionBudget") == []


async def test_a_conflict_that_lasts_is_told_and_one_that_does_not_is_not(cluster: Cluster) -> None:
    await cluster.installed()
    for times, degraded in ((1, ("False", "AsExpected")), (2, ("True", "ApplyRefused"))):
        cluster.resource({"replicas": 2, "service": {"port": 8080 + times}})
        cluster.api.fail(409, method="PATCH", path="/services", times=times)
        await cluster.reconcile()
        assert cluster.condition("Degraded") == degraded
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("False", "AsExpected")


async def test_a_kind_that_may_not_be_listed_is_told_and_the_others_are_made(cluster: Cluster) -> None:
    cluster.resource({"replicas": 1})
    cluster.api.fail(403, method="GET", path="/ingresses", message="cannot list ingresses")
    await cluster.reconcile()
    assert "cannot list ingresses" in cluster.message("Degraded")
    assert cluster.api.names("Deployment") == ["events"]


@pytest.mark.parametrize("path", ["/services", "/deployments", "/secrets", "/ingresses"])
async def test_an_api_server_that_does_not_answer_has_refused_nothing(cluster: Cluster, path: str) -> None:
    await cluster.installed()
    before = cluster.status()
    cluster.resource({"replicas": 2, "service": {"port": 8080}})
    cluster.api.fail(503, path=path, times=TRIES)
    with pytest.raises(KubeError):
        await cluster.reconcile()
    assert cluster.status() == before


# A namespace that is being deleted.


async def test_in_a_namespace_that_is_being_deleted_nothing_is_made_told_or_tried_again(cluster: Cluster) -> None:
    await cluster.installed()
    before = cluster.status()
    cluster.api.terminating.add("shop")
    for kind in ("Deployment", "Service"):
        cluster.api.remove(kind, "events")
    cluster.forget()
    assert await cluster.reconcile() is None
    assert [method for method, _ in cluster.api.writes] == ["POST"]
    assert cluster.status() == before
    assert cluster.told() == []
    cluster.forget()
    assert await cluster.reconcile() is None
    assert [asked.method for asked in cluster.api.asked] == ["GET"]


async def test_a_resource_that_is_made_anew_after_its_namespace_was_is_carried_out(cluster: Cluster) -> None:
    await cluster.installed()
    cluster.api.terminating.add("shop")
    cluster.api.remove("Deployment", "events")
    assert await cluster.reconcile() is None
    cluster.api.remove(KIND, "events")
    cluster.api.terminating.clear()
    cluster.resource()
    await cluster.reconcile()
    assert cluster.api.names("Deployment") == ["events"]


async def test_an_event_that_a_dying_namespace_refuses_is_not_tried_again(cluster: Cluster) -> None:
    cluster.resource(WITH_TOKEN)
    cluster.api.terminating.add("shop")
    assert await cluster.reconcile() is None
    cluster.forget()
    assert await cluster.reconcile() is None
    assert cluster.api.writes == []


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
    cluster.proxies.says = dict.fromkeys(IPS, report(hash=token_hash("token"), accepted_at=EPOCH.isoformat()))
    await cluster.reconcile()
    assert cluster.condition("Degraded") == ("True", "SecretNotFound")
    assert "Secret apps" in cluster.message("Degraded")
    assert cluster.condition("TokenValid") == ("True", "Accepted")


# The headers of spans, for which nothing waits.

TRACED: dict[str, Any] = {
    "replicas": 2,
    "telemetry": {
        "otlpEndpoint": "http://collector.observability.svc:4318",
        "otlpHeadersSecretRef": {"name": "collector"},
    },
}
HEADERS = base64.b64encode(b"x-api-key=key").decode()


def mounted(cluster: Cluster) -> list[str]:
    return [each["name"] for each in cluster.api.get("Deployment", "events")["spec"]["template"]["spec"]["volumes"]]


async def test_headers_of_spans_are_mounted_from_a_shared_secret(cluster: Cluster) -> None:
    cluster.secret("collector", key="headers", value=HEADERS)
    await cluster.installed(TRACED)
    assert "otlp-headers" in mounted(cluster)
    assert cluster.condition("Degraded") == ("False", "AsExpected")
    cluster.forget()
    await cluster.look()
    assert cluster.api.writes == []


@pytest.mark.parametrize(
    ("secret", "reason", "there"),
    [
        (None, "SecretNotFound", False),
        ({"shared": False}, "SecretNotShared", False),
        ({"key": "other"}, "SecretKeyMissing", True),
        ({"value": base64.b64encode(b"key").decode()}, "SecretMalformed", True),
    ],
)
async def test_headers_that_cannot_be_used_are_told_keep_nothing_waiting_and_work_when_they_are_put_right(
    cluster: Cluster, secret: dict[str, Any] | None, reason: str, there: bool
) -> None:
    if secret is not None:
        cluster.secret("collector", **{"key": "headers", "value": HEADERS, **secret})
    await cluster.installed(TRACED)
    assert cluster.condition("Ready") == ("True", "Ready")
    assert cluster.condition("Degraded") == ("True", reason)
    assert "no row waits for it" in cluster.message("Degraded")
    assert cluster.condition("TokenValid") == ("True", "ClientsOwnTokens")
    assert [kind for kind, told, _ in cluster.told() if told == reason] == ["Warning"]
    assert ("otlp-headers" in mounted(cluster)) is there
    # What else is changed goes out meanwhile.
    cluster.resource({**TRACED, "replicas": 3})
    await cluster.reconcile()
    assert cluster.api.get("Deployment", "events")["spec"]["replicas"] == 3
    cluster.secret("collector", key="headers", value=HEADERS)
    await cluster.look()  # without an event: what is said of the Secret is enough
    assert "otlp-headers" in mounted(cluster)
    assert cluster.condition("Degraded") == ("False", "AsExpected")


async def test_a_label_that_is_taken_away_takes_the_headers_away_from_pods_and_a_deletion_does_not(
    cluster: Cluster,
) -> None:
    cluster.secret("collector", key="headers", value=HEADERS)
    await cluster.installed(TRACED)
    before = cluster.api.get("Deployment", "events")
    cluster.api.remove("Secret", "collector")
    await cluster.reconcile()
    assert cluster.api.get("Deployment", "events") == before
    assert cluster.condition("Degraded") == ("True", "SecretNotFound")
    cluster.secret("collector", key="headers", value=HEADERS, shared=False)
    await cluster.reconcile()
    assert "otlp-headers" not in mounted(cluster)
    assert cluster.condition("Degraded") == ("True", "SecretNotShared")


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
