"""Whose objects are whose: strangers' stay untouched, ours are repaired."""

from typing import Any

import pytest
from tests.e2e.kubectl import Namespace, token_secret, until


def _stranger(kind: str, name: str) -> dict[str, Any]:
    container = {"name": "theirs", "image": "ghcr.io/tinybird-proxy/tinybird-proxy:0.1.0", "command": ["sleep", "600"]}
    template = {"metadata": {"labels": {"app": "theirs"}}, "spec": {"containers": [container]}}
    labels = {"app": "theirs"}
    rest: dict[str, dict[str, Any]] = {
        "Deployment": {"spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}},
        "Service": {"spec": {"selector": labels, "ports": [{"port": 5432}]}},
        "Secret": {"stringData": {"token": "theirs"}},
    }
    version = "apps/v1" if kind == "Deployment" else "v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels}, **rest[kind]}


def _without_status(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "metadata": {key: found["metadata"].get(key) for key in ("uid", "labels", "annotations", "ownerReferences")},
        **{key: found.get(key) for key in ("spec", "data")},
    }


@pytest.mark.parametrize(
    ("kind", "name"), [("Deployment", "events"), ("Service", "events"), ("Secret", "events-client")]
)
def test_somebody_elses_object_of_a_childs_name_is_left_untouched(namespace: Namespace, kind: str, name: str) -> None:
    namespace.create(_stranger(kind, name))
    if kind == "Deployment":  # its controller notes the revision on it first
        until("its controller", lambda: namespace.get(kind, name).get("status", {}).get("observedGeneration"))
    before = _without_status(namespace.get(kind, name))
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird())
    message = namespace.until_condition("Degraded", "True", "NameTaken")
    assert f"{kind} {name}" in message
    assert namespace.condition("Ready")[:2] == ("False", "NameTaken")
    assert _without_status(namespace.get(kind, name)) == before
    events = until("an Event", lambda: [each for each in namespace.find("events") if each["reason"] == "NameTaken"])
    assert name in events[0]["message"]
    namespace.kubectl("delete", kind, name)
    namespace.wait_ready()
    namespace.post("x")
    namespace.until_arrived("x")


def test_what_somebody_changes_or_deletes_is_put_right_and_the_clients_token_stays(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    token, pods = namespace.client_token(), namespace.pods()
    namespace.patch("service", "events", [{"op": "replace", "path": "/spec/ports/0/port", "value": 8123}])
    namespace.patch("deployment", "events", {"spec": {"replicas": 3}})
    namespace.kubectl("delete", "poddisruptionbudget", "events")
    until(
        "the Service's port", lambda: namespace.get("service", "events")["spec"]["ports"][0]["port"] == 80, timeout_s=10
    )
    until("one replica", lambda: namespace.get("deployment", "events")["spec"]["replicas"] == 1)  # they drain first
    until("the budget", lambda: namespace.get("poddisruptionbudget", "events"), timeout_s=10)
    namespace.kubectl("delete", "service", "events")
    until("the Service", lambda: namespace.get("service", "events"), timeout_s=10)
    until("the pod of before alone", lambda: namespace.pods() == pods)
    assert namespace.client_token() == token
    namespace.kubectl("delete", "deployment", "events", "--cascade=foreground")
    until("other pods", lambda: namespace.pods() and namespace.pods() != pods)
    namespace.wait_ready()
    assert namespace.client_token() == token
    namespace.post("x", token=token)
    namespace.until_arrived("x")


def test_a_field_that_is_no_longer_asked_for_goes(namespace: Namespace) -> None:
    service = {"annotations": {"example.com/internal": "true"}}
    ingress = {"policy": "Managed", "host": "events.example.com"}
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird(service=service, ingress=ingress))
    namespace.wait_ready()
    assert namespace.find("ingress")
    assert namespace.get("service", "events")["metadata"]["annotations"] == service["annotations"]
    namespace.apply(namespace.forwarding_to_tinybird(podDisruptionBudget={"policy": "None"}))
    until("no annotation", lambda: not namespace.get("service", "events")["metadata"].get("annotations"))
    until("no budget", lambda: not namespace.find("poddisruptionbudget"))
    until("no Ingress", lambda: not namespace.find("ingress"))
    namespace.apply(
        namespace.forwarding_to_tinybird(service={"policy": "None"}, networkPolicy={"policy": "None"}),
    )
    until("no Service", lambda: [each["metadata"]["name"] for each in namespace.find("service")] == ["tinybird"])
    until("no NetworkPolicy", lambda: not namespace.find("networkpolicy"))


def test_what_a_resource_made_goes_with_it(namespace: Namespace) -> None:
    namespace.apply(token_secret(), namespace.forwarding_to_tinybird())
    namespace.wait_ready()
    namespace.kubectl("delete", "tinybirdproxy", "events")
    kinds = "deployments,services,serviceaccounts,poddisruptionbudgets,networkpolicies,pods"
    until("nothing of it", lambda: not namespace.find(kinds, "tinybird-proxy.io/proxy=events"))
    until("no Secret of ours", lambda: [each["metadata"]["name"] for each in namespace.find("secrets")] == ["tinybird"])
