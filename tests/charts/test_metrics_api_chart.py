"""charts/tinybird-proxy-operator with metricsAPI.enabled: what it is made of, who reaches it, and what it may do."""

import re
from pathlib import Path
from typing import Any

import pytest
from tests.charts.rendering import OPERATOR, Object, one, refusal, render
from tests.charts.test_operator_chart import environment as operators_environment
from tests.charts.test_operator_chart import lasting, notes, rights

from tinybird_proxy_operator import settings as operators_settings
from tinybird_proxy_operator.metrics_api import settings
from tinybird_proxy_operator.metrics_api.api import PODS, PROXIES
from tinybird_proxy_operator.metrics_api.registration import API_SERVICES
from tinybird_proxy_operator.scaling.targets import METRICS
from tinybird_proxy_operator.serving import settings as serving_settings

VALUES = OPERATOR / "ci" / "metrics-api-values.yaml"
NAME = "release-tinybird-proxy-operator-metrics-api"
LIST, BY_NAME = ("list",), ("get", "create", "patch")
RIGHTS = {
    ("tinybird-proxy.io", "tinybirdproxies"): LIST,
    ("apps", "deployments"): LIST,
    ("apps", "replicasets"): LIST,
    ("", "pods"): LIST,
    ("apiregistration.k8s.io", "apiservices"): (*BY_NAME, "delete"),
    ("rbac.authorization.k8s.io", "clusterroles"): ("get",),
}


def enabled(**values: Any) -> list[Object]:
    return lasting(render(OPERATOR, given={"metricsAPI": {"enabled": True, **values}}))


def ours(rendered: list[Object], kind: str) -> Object:
    return one(rendered, kind, "-metrics-api")


def environment(rendered: list[Object]) -> dict[str, str]:
    [container] = ours(rendered, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["metrics-api"]
    return {entry["name"]: entry.get("value", "here") for entry in container["env"]}


def test_it_is_off_by_default_and_leaves_nothing_behind() -> None:
    assert not [each for each in render(OPERATOR) if "metrics-api" in each["metadata"]["name"]]
    assert operators_environment(render(OPERATOR))["METRICS_API_POD_LABELS"] == ""


def test_it_understands_the_environment_that_the_chart_gives_it() -> None:
    rendered = enabled()
    understood = settings.from_env(environment(rendered))
    least = {key: environment(rendered)[key] for key in ("POD_NAMESPACE", "SERVICE_NAME", "CLUSTER_ROLE")}
    least |= {"CERTIFICATE_SECRET": f"{NAME}-certificates", "LOG_FORMAT": "json"}
    assert understood == settings.from_env(least)
    assert (understood.service, understood.namespace) == (NAME, ours(rendered, "Service")["metadata"]["namespace"])
    assert understood.cluster_role == ours(rendered, "ClusterRole")["metadata"]["name"]


def test_each_value_reaches_its_setting() -> None:
    rendered = lasting(render(OPERATOR, values=VALUES))
    understood = settings.from_env(environment(rendered))
    assert (understood.port, understood.metrics_port) == (8443, 9091)
    assert (understood.lifetimes.serving_s, understood.lifetimes.overlap_s) == (86_400, 60)
    deployment = ours(rendered, "Deployment")["spec"]
    assert deployment["replicas"] == 3
    assert deployment["template"]["spec"]["serviceAccountName"] == "metrics"
    [container] = deployment["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "512Mi"}
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"https": 8443, "metrics": 9091}


def test_the_chart_sets_every_variable_that_it_reads() -> None:
    sources = "".join(Path(str(module.__file__)).read_text() for module in (settings, serving_settings))
    read = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', sources))
    assert read == set(environment(enabled()))


def test_the_api_server_finds_its_port_by_the_service() -> None:
    rendered = enabled()
    [port] = ours(rendered, "Service")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (443, "https")


def test_selectors_find_it_and_only_it() -> None:
    rendered = lasting(render(OPERATOR, values=VALUES))
    labels = {
        name: one(rendered, "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        for name in ("-operator", "-metrics-api")
    }
    for name, service in (("-operator", "-operator-metrics"), ("-metrics-api", "-metrics-api")):
        selectors = [
            one(rendered, "Deployment", name)["spec"]["selector"]["matchLabels"],
            one(rendered, "Service", service)["spec"]["selector"],
            one(rendered, "PodDisruptionBudget", name)["spec"]["selector"]["matchLabels"],
            one(rendered, "NetworkPolicy", name)["spec"]["podSelector"]["matchLabels"],
            one(rendered, "PodMonitor", name)["spec"]["selector"]["matchLabels"],
        ]
        for selector in selectors:
            assert [found for found, its in labels.items() if selector.items() <= its.items()] == [name]
    spread = ours(rendered, "Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert all(each["labelSelector"]["matchLabels"].items() <= labels["-metrics-api"].items() for each in spread)


def test_the_proxies_let_its_pods_in() -> None:
    rendered = lasting(render(OPERATOR, values=VALUES))
    known = operators_settings.from_env(operators_environment(rendered)).metrics_api_pod_labels
    labels = ours(rendered, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert known
    assert known.items() <= labels.items()


def test_it_gets_exactly_the_rights_that_it_uses() -> None:
    rendered = enabled()
    role = ours(rendered, "ClusterRole")
    assert rights(role) == RIGHTS
    named = {rule["resources"][0]: rule["resourceNames"] for rule in role["rules"] if "resourceNames" in rule}
    assert named == {"apiservices": sorted(API_SERVICES), "clusterroles": [NAME]}
    [secrets] = ours(rendered, "Role")["rules"]
    assert secrets == {
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": [environment(rendered)["CERTIFICATE_SECRET"]],
        "verbs": [*BY_NAME],
    }


def test_its_bindings_are_for_its_own_account() -> None:
    rendered = enabled()
    bindings = [
        each for each in rendered if each["kind"].endswith("Binding") and "metrics-api" in each["metadata"]["name"]
    ]
    found = {(each["roleRef"]["kind"], each["roleRef"]["name"], each["metadata"].get("namespace")) for each in bindings}
    assert found == {
        ("ClusterRole", NAME, None),
        ("ClusterRole", "system:auth-delegator", None),
        ("Role", "extension-apiserver-authentication-reader", "kube-system"),
        ("Role", NAME, "here"),
    }
    account = {"kind": "ServiceAccount", "name": NAME, "namespace": "here"}
    assert all(each["subjects"] == [account] for each in bindings)
    assert ours(rendered, "ServiceAccount")["automountServiceAccountToken"] is False
    assert ours(rendered, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == NAME


def test_an_account_may_come_from_elsewhere() -> None:
    rendered = enabled(serviceAccount={"create": False, "name": "mine"})
    assert not [each for each in rendered if each["kind"] == "ServiceAccount" and "metrics" in each["metadata"]["name"]]
    assert ours(rendered, "ClusterRoleBinding")["subjects"][0]["name"] == "mine"


def test_whoever_may_view_a_namespace_may_see_its_metrics() -> None:
    role = one(enabled(), "ClusterRole", "-metrics-api-view")
    assert rights(role) == {
        ("custom.metrics.k8s.io", f"{resource}/{metric}"): ("get",)
        for resource in (PODS, PROXIES)
        for metric in METRICS
    }
    for whose in ("view", "edit", "admin"):
        assert role["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{whose}"] == "true"
    given = {"metricsAPI": {"enabled": True}, "rbac": {"aggregateClusterRoles": False}}
    names = [each["metadata"]["name"] for each in render(OPERATOR, given=given)]
    assert f"{NAME}-view" not in names


def test_the_api_server_may_connect_from_where_it_is() -> None:
    anywhere, _ = ours(enabled(), "NetworkPolicy")["spec"]["ingress"]
    assert anywhere == {"ports": [{"port": "https", "protocol": "TCP"}]}
    named, metrics = ours(render(OPERATOR, values=VALUES), "NetworkPolicy")["spec"]["ingress"]
    assert [peer["ipBlock"]["cidr"] for peer in named["from"]] == ["10.0.0.0/28", "fd00::/64"]
    assert metrics["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    assert metrics["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}


def test_no_pod_takes_anothers_place_before_it_answers() -> None:
    spec = ours(enabled(), "Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_longest_name_is_still_a_services() -> None:
    rendered = render(OPERATOR, given={"fullnameOverride": "x" * 52, "metricsAPI": {"enabled": True}})
    assert len(ours(rendered, "Service")["metadata"]["name"]) == 63


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"metricsAPI": {"enabled": True}, "watchNamespaces": ["a"], "crds": {"enabled": False}},
            "metricsAPI.enabled: must be false with watchNamespaces",
        ),
        (
            {"metricsAPI": {"enabled": True}, "rbac": {"create": False}},
            "metricsAPI.enabled: must be false without rbac.create",
        ),
        ({"metricsAPI": {"enabled": True, "metricsPort": 6443}}, "metricsAPI.metricsPort: must not be metricsAPI.port"),
        (
            {"metricsAPI": {"certificates": {"lifetimeSeconds": 100, "overlapSeconds": 26}}},
            "metricsAPI.certificates.overlapSeconds: must be at most a quarter of",
        ),
        (
            {"metricsAPI": {"apiServerCIDRs": ["10.0.0.1"]}},
            "at '/metricsAPI/apiServerCIDRs/0': '10.0.0.1' does not match",
        ),
        ({"metricsAPI": {"on": True}}, "at '/metricsAPI': additional properties 'on' not allowed"),
        ({"extraEnv": [{"name": "METRICS_API_POD_LABELS"}]}, "extraEnv: METRICS_API_POD_LABELS is set from a value"),
    ],
    ids=lambda part: part[:50] if isinstance(part, str) else "",
)
def test_a_wrong_value_is_refused_with_its_place_and_what_is_right(given: Object, message: str) -> None:
    assert message in refusal(OPERATOR, given)


def test_the_notes_say_how_to_see_that_it_is_registered() -> None:
    said = notes({"metricsAPI": {"enabled": True}})
    assert f"kubectl get apiservices {' '.join(sorted(API_SERVICES))}" in said
    assert f"kubectl --namespace here logs deployment/{NAME}" in said
    assert "apiservices" not in notes({})
