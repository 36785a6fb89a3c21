"""Who may reach which port: as data, and as a table of who gets through."""

from dataclasses import replace
from typing import Any, Final

import pytest
from tests.operator.resources import EVERYTHING, desired, operator_settings
from tests.operator.test_manifests_service import SELECTOR

from tinybird_proxy_operator.manifests import Manifest
from tinybird_proxy_operator.manifests.network_policy import build

OPERATOR_PEER: Final = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tinybird-system"}},
    "podSelector": {"matchLabels": {"app.kubernetes.io/name": "tinybird-proxy-operator"}},
}


def built(spec: dict[str, Any] | None = None) -> Manifest:
    manifest = build(desired(spec))
    assert manifest is not None
    return manifest


def test_by_default_the_cluster_reaches_the_events_port_and_the_operator_the_admin_port() -> None:
    manifest = built()
    assert (manifest["apiVersion"], manifest["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    assert manifest["spec"] == {
        "podSelector": {"matchLabels": SELECTOR},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": 8000}]},
            {"from": [OPERATOR_PEER], "ports": [{"protocol": "TCP", "port": 8001}]},
        ],
    }


def test_from_and_metrics_from_are_taken_as_they_are() -> None:
    events, admin = built(EVERYTHING)["spec"]["ingress"]
    assert events["from"] == [{"namespaceSelector": {"matchLabels": {"team": "web"}}}]
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert admin["from"] == [OPERATOR_PEER, monitoring]


@pytest.mark.parametrize("service_type", ["NodePort", "LoadBalancer"])
def test_a_service_for_clients_from_outside_lets_everyone_in_unless_from_says_who(service_type: str) -> None:
    service = {"type": service_type}
    assert "from" not in built({"service": service})["spec"]["ingress"][0]
    peers = [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
    limited = built({"service": service, "networkPolicy": {"from": peers}})
    assert limited["spec"]["ingress"][0]["from"] == peers
    assert "from" in built({"service": {**service, "policy": "None"}})["spec"]["ingress"][0]


# A pod that calls: its namespace, that namespace's labels, its own labels.
Peer = tuple[str, dict[str, str], dict[str, str]]
APP: Final[Peer] = ("shop", {}, {"app": "web"})
WEB_TEAM: Final[Peer] = ("web", {"team": "web"}, {"app": "web"})
OPERATOR: Final[Peer] = ("tinybird-system", {}, {"app.kubernetes.io/name": "tinybird-proxy-operator", "x": "y"})
OPERATORS_NEIGHBOUR: Final[Peer] = ("tinybird-system", {}, {"app": "other"})
IMPOSTOR: Final[Peer] = ("shop", {}, {"app.kubernetes.io/name": "tinybird-proxy-operator"})
PROMETHEUS: Final[Peer] = ("monitoring", {}, {"app": "prometheus"})


@pytest.mark.parametrize(
    ("spec", "peer", "port", "may"),
    [
        ({}, APP, 8000, True),
        ({}, PROMETHEUS, 8000, True),
        ({}, APP, 8001, False),
        ({}, PROMETHEUS, 8001, False),
        ({}, OPERATOR, 8001, True),
        ({}, OPERATORS_NEIGHBOUR, 8001, False),
        ({}, IMPOSTOR, 8001, False),
        (EVERYTHING, APP, 8000, False),
        (EVERYTHING, WEB_TEAM, 8000, True),
        (EVERYTHING, WEB_TEAM, 8001, False),
        (EVERYTHING, PROMETHEUS, 8001, True),
        (EVERYTHING, OPERATOR, 8001, True),
        (EVERYTHING, APP, 9999, False),
    ],
)
def test_who_reaches_which_port(spec: dict[str, Any], peer: Peer, port: int, may: bool) -> None:
    assert any(_lets_in(rule, peer, port) for rule in built(spec)["spec"]["ingress"]) is may


def _lets_in(rule: dict[str, Any], peer: Peer, port: int) -> bool:
    return any(each["port"] == port for each in rule["ports"]) and (
        "from" not in rule or any(_selects(source, peer) for source in rule["from"])
    )


def _selects(source: dict[str, Any], peer: Peer) -> bool:
    """As the API defines it: without a namespaceSelector only the policy's own namespace is meant."""
    namespace, namespace_labels, pod_labels = peer
    labels = {**namespace_labels, "kubernetes.io/metadata.name": namespace}
    if "namespaceSelector" in source:
        if not source["namespaceSelector"].get("matchLabels", {}).items() <= labels.items():
            return False
    elif namespace != "shop":
        return False
    return bool(source.get("podSelector", {}).get("matchLabels", {}).items() <= pod_labels.items())


def test_the_metrics_api_reaches_the_admin_port_where_there_is_one() -> None:
    labels = {"app.kubernetes.io/component": "metrics-api"}
    settings = operator_settings(METRICS_API_POD_LABELS="app.kubernetes.io/component=metrics-api")
    manifest = build(replace(desired(), settings=settings))
    assert manifest is not None
    events, admin = manifest["spec"]["ingress"]
    peer: Peer = ("tinybird-system", {}, labels)
    assert _lets_in(admin, peer, 8001)
    assert _lets_in(admin, OPERATOR, 8001)
    assert not _lets_in(admin, OPERATORS_NEIGHBOUR, 8001)
    assert not _lets_in(admin, ("shop", {}, labels), 8001)
    assert not any(_lets_in(rule, peer, 8001) for rule in built()["spec"]["ingress"])
    assert events == built()["spec"]["ingress"][0]


def test_policy_none_means_no_network_policy() -> None:
    assert build(desired({"networkPolicy": {"policy": "None"}})) is None
