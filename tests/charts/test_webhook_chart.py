"""charts/tinybird-proxy-operator with injection: Webhook: what it is made of, who reaches it, and what it may do."""

import re
from pathlib import Path
from typing import Any

import pytest
from tests.charts.rendering import OPERATOR, Object, one, refusal, render
from tests.charts.test_injection_chart import EXCLUDED, selects
from tests.charts.test_operator_chart import lasting, notes, rights

from tinybird_proxy_operator.names import INJECT_LABEL, PROXY_LABEL
from tinybird_proxy_operator.serving import settings as serving_settings
from tinybird_proxy_operator.sidecars.injection import MIRROR_ANNOTATION, chosen
from tinybird_proxy_operator.webhook import settings
from tinybird_proxy_operator.webhook.injector import READS_TIMEOUT_S
from tinybird_proxy_operator.webhook.registration import registered_bundle, with_bundle
from tinybird_proxy_operator.webhook.server import PATH

VALUES = OPERATOR / "ci" / "injection-webhook-values.yaml"
CERT_MANAGER = {"certificates": {"certManager": {"enabled": True}}}
NAME = "release-tinybird-proxy-operator-webhook"
BY_NAME = ("get", "create", "patch")
CONFIGURATION = "MutatingWebhookConfiguration"


def enabled(**values: Any) -> list[Object]:
    return lasting(render(OPERATOR, given={"injection": "Webhook", "webhook": values}))


def ours(rendered: list[Object], kind: str) -> Object:
    return one(rendered, kind, "-webhook")


def environment(rendered: list[Object]) -> dict[str, str]:
    [container] = ours(rendered, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["webhook"]
    return {entry["name"]: entry.get("value", "here") for entry in container["env"]}


@pytest.mark.parametrize("injection", ["None", "Policy"])
def test_without_it_nothing_of_it_is_there(injection: str) -> None:
    assert not [
        each for each in render(OPERATOR, given={"injection": injection}) if "webhook" in each["metadata"]["name"]
    ]


def test_it_understands_the_environment_that_the_chart_gives_it() -> None:
    rendered = enabled()
    understood = settings.from_env(environment(rendered))
    least = {"POD_NAMESPACE": "here", "SERVICE_NAME": NAME, "WEBHOOK_CONFIGURATION": NAME, "LOG_FORMAT": "json"}
    assert understood == settings.from_env({**least, "CERTIFICATE_SECRET": f"{NAME}-certificates"})
    assert (understood.service, understood.namespace) == (NAME, ours(rendered, "Service")["metadata"]["namespace"])
    assert ours(rendered, CONFIGURATION)["metadata"]["name"] == NAME


def test_each_value_reaches_its_setting() -> None:
    rendered = lasting(render(OPERATOR, values=VALUES))
    understood = settings.from_env(environment(rendered))
    assert isinstance(understood.certificates, settings.OwnCertificates)
    assert (understood.port, understood.metrics_port) == (8443, 9091)
    lifetimes = understood.certificates.lifetimes
    assert (lifetimes.serving_s, lifetimes.overlap_s) == (86_400, 60)
    deployment = ours(rendered, "Deployment")["spec"]
    assert deployment["replicas"] == 3
    assert deployment["template"]["spec"]["serviceAccountName"] == "webhook"
    [container] = deployment["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "512Mi"}
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"https": 8443, "metrics": 9091}


def test_the_chart_sets_every_variable_that_it_reads() -> None:
    sources = "".join(Path(str(module.__file__)).read_text() for module in (settings, serving_settings))
    read = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', sources))
    assert read == set(environment(enabled())) | set(environment(enabled(**CERT_MANAGER)))


def asked_about(entry: Object, pod: dict[str, str], namespace: dict[str, str]) -> bool:
    return selects(entry["objectSelector"], pod) and selects(entry["namespaceSelector"], namespace)


def test_exactly_the_pods_that_ask_are_asked_about_and_each_once() -> None:
    entries = ours(enabled(), CONFIGURATION)["webhooks"]
    values = (None, "", "false", "events")
    for pod in ({}, *({INJECT_LABEL: value} for value in values if value is not None)):
        for proxy in ({}, {PROXY_LABEL: "events"}):
            for value in values:
                namespace = {"kubernetes.io/metadata.name": "apps"} | ({} if value is None else {INJECT_LABEL: value})
                asks = chosen(pod | proxy, namespace) is not None
                assert sum(asked_about(each, pod | proxy, namespace) for each in entries) == asks, (pod, namespace)


@pytest.mark.parametrize("namespace", EXCLUDED)
def test_what_a_cluster_needs_and_the_operator_never_wait_for_it(namespace: str) -> None:
    for labels in ({}, {INJECT_LABEL: "events"}):
        for entry in ours(enabled(), CONFIGURATION)["webhooks"]:
            assert not asked_about(entry, labels, {INJECT_LABEL: "events", "kubernetes.io/metadata.name": namespace})


@pytest.mark.parametrize("policy", ["Ignore", "Fail"])
def test_only_pods_that_are_made_are_asked_about_and_not_for_long(policy: str) -> None:
    rendered = render(OPERATOR, given={"injection": "Webhook", "injectionFailurePolicy": policy})
    for entry in ours(rendered, CONFIGURATION)["webhooks"]:
        [rule] = entry["rules"]
        assert (rule["operations"], rule["resources"], rule["apiGroups"]) == (["CREATE"], ["pods"], [""])
        [condition] = entry["matchConditions"]
        assert MIRROR_ANNOTATION in condition["expression"]
        assert (entry["sideEffects"], entry["reinvocationPolicy"]) == ("None", "IfNeeded")
        assert entry["admissionReviewVersions"] == ["v1"]
        assert entry["failurePolicy"] == policy
        assert 2 * READS_TIMEOUT_S <= entry["timeoutSeconds"] == 3


def test_what_keeps_a_pod_from_starting_without_its_sidecar_is_there_with_fail_and_only_then() -> None:
    for policy, count in (("Ignore", 0), ("Fail", 2)):
        rendered = render(OPERATOR, given={"injection": "Webhook", "injectionFailurePolicy": policy})
        assert len([each for each in rendered if each["kind"] == "ValidatingAdmissionPolicy"]) == count


def test_the_api_server_finds_it_by_the_service_and_its_ca_is_not_the_charts() -> None:
    rendered = enabled()
    [port] = ours(rendered, "Service")["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (443, "https")
    live = ours(rendered, CONFIGURATION)
    service = {"namespace": "here", "name": NAME, "path": PATH, "port": 443}
    assert [entry["clientConfig"] for entry in live["webhooks"]] == [{"service": service}] * 2
    assert registered_bundle(live, "here", NAME) is None
    applied = with_bundle(live, "here", NAME, "ca")["webhooks"]
    assert [entry["name"] for entry in applied] == [entry["name"] for entry in live["webhooks"]]
    assert all(entry["name"].count(".") >= 2 for entry in applied)


def test_selectors_find_it_and_only_it() -> None:
    rendered = lasting(render(OPERATOR, values=VALUES))
    labels = {
        name: one(rendered, "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        for name in ("-operator", "-webhook")
    }
    for name, service in (("-operator", "-operator-metrics"), ("-webhook", "-webhook")):
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
    assert all(each["labelSelector"]["matchLabels"].items() <= labels["-webhook"].items() for each in spread)


def test_it_gets_exactly_the_rights_that_it_uses() -> None:
    rendered = enabled()
    role = ours(rendered, "ClusterRole")
    assert rights(role) == {
        ("tinybird-proxy.io", "tinybirdproxies"): ("get",),
        ("", "namespaces"): ("get",),
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"): ("get", "patch"),
    }
    named = {rule["resources"][0]: rule["resourceNames"] for rule in role["rules"] if "resourceNames" in rule}
    assert named == {"mutatingwebhookconfigurations": [NAME]}
    [secrets] = ours(rendered, "Role")["rules"]
    assert secrets == {
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": [environment(rendered)["CERTIFICATE_SECRET"]],
        "verbs": [*BY_NAME],
    }


def test_its_bindings_are_for_its_own_account() -> None:
    rendered = enabled()
    bindings = [each for each in rendered if each["kind"].endswith("Binding") and "webhook" in each["metadata"]["name"]]
    found = {(each["roleRef"]["kind"], each["roleRef"]["name"], each["metadata"].get("namespace")) for each in bindings}
    assert found == {("ClusterRole", NAME, None), ("Role", NAME, "here")}
    account = {"kind": "ServiceAccount", "name": NAME, "namespace": "here"}
    assert all(each["subjects"] == [account] for each in bindings)
    assert ours(rendered, "ServiceAccount")["automountServiceAccountToken"] is False
    assert ours(rendered, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == NAME


def test_an_account_may_come_from_elsewhere_and_its_rights_too() -> None:
    rendered = enabled(serviceAccount={"create": False, "name": "mine"})
    assert not [each for each in rendered if each["kind"] == "ServiceAccount" and "webhook" in each["metadata"]["name"]]
    assert ours(rendered, "ClusterRoleBinding")["subjects"][0]["name"] == "mine"
    without = render(OPERATOR, given={"injection": "Webhook", "rbac": {"create": False}})
    assert not [each for each in without if "Role" in each["kind"] and "webhook" in each["metadata"]["name"]]


def test_certificates_of_cert_manager_are_those_that_it_shows_and_no_right_is_needed_for_them() -> None:
    rendered = enabled(**CERT_MANAGER)
    spec = ours(rendered, "Certificate")["spec"]
    pod = ours(rendered, "Deployment")["spec"]["template"]["spec"]
    [volume] = [each for each in pod["volumes"] if "secret" in each]
    [mount] = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == volume["name"]]
    assert volume["secret"]["secretName"] == spec["secretName"]
    understood = settings.from_env(environment(rendered))
    assert understood.certificates == mount["mountPath"]
    assert understood.server_names[0] in spec["dnsNames"]
    assert spec["duration"] == "7776000s"
    annotations = ours(rendered, CONFIGURATION)["metadata"]["annotations"]
    assert annotations == {"cert-manager.io/inject-ca-from": f"here/{NAME}"}
    assert set(rights(ours(rendered, "ClusterRole"))) == {("tinybird-proxy.io", "tinybirdproxies"), ("", "namespaces")}
    assert not [each for each in rendered if each["kind"] == "Role" and "webhook" in each["metadata"]["name"]]
    assert "annotations" not in ours(enabled(), CONFIGURATION)["metadata"]


def test_cert_managers_certificate_is_signed_by_a_ca_of_its_own_or_by_whom_one_says() -> None:
    rendered = enabled(**CERT_MANAGER)
    assert ours(rendered, "Certificate")["spec"]["issuerRef"]["name"] == f"{NAME}-ca"
    assert one(rendered, "Issuer", "-ca")["spec"]["ca"]["secretName"] == f"{NAME}-ca"
    authority = one(rendered, "Certificate", "-ca")["spec"]
    assert authority["isCA"] is True
    assert authority["secretName"] == f"{NAME}-ca"
    assert one(rendered, "Issuer", authority["issuerRef"]["name"])["spec"] == {"selfSigned": {}}
    reference = {"name": "corporate", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    given = enabled(certificates={"certManager": {"enabled": True, "issuerRef": reference}})
    assert ours(given, "Certificate")["spec"]["issuerRef"] == reference
    assert [each["kind"] for each in given if each["apiVersion"] == "cert-manager.io/v1"] == ["Certificate"]


def test_the_api_server_may_connect_from_where_it_is() -> None:
    anywhere, _ = ours(enabled(), "NetworkPolicy")["spec"]["ingress"]
    assert anywhere == {"ports": [{"port": "https", "protocol": "TCP"}]}
    named, metrics = ours(render(OPERATOR, values=VALUES), "NetworkPolicy")["spec"]["ingress"]
    assert [peer["ipBlock"]["cidr"] for peer in named["from"]] == ["10.0.0.0/28", "fd00::/64"]
    assert metrics["ports"] == [{"port": "metrics", "protocol": "TCP"}]


def test_no_pod_takes_anothers_place_before_it_answers() -> None:
    spec = ours(enabled(), "Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_longest_name_is_still_a_services() -> None:
    rendered = render(OPERATOR, given={"fullnameOverride": "x" * 52, "injection": "Webhook"})
    assert len(ours(rendered, "Service")["metadata"]["name"]) <= 63


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"injection": "Webhook", "watchNamespaces": ["a"], "crds": {"enabled": False}},
            "injection: must be None with watchNamespaces",
        ),
        ({"webhook": {"metricsPort": 6443}}, "webhook.metricsPort: must not be webhook.port"),
        (
            {"webhook": {"certificates": {"lifetimeSeconds": 100, "overlapSeconds": 26}}},
            "webhook.certificates.overlapSeconds: must be at most a quarter of",
        ),
        (
            {"webhook": {"certificates": {"lifetimeSeconds": 3599, "certManager": {"enabled": True}}}},
            "webhook.certificates.lifetimeSeconds: must be at least 3600 with certManager",
        ),
        ({"webhook": {"apiServerCIDRs": ["10.0.0.1"]}}, "at '/webhook/apiServerCIDRs/0': '10.0.0.1' does not match"),
        ({"webhook": {"enabled": True}}, "at '/webhook': additional properties 'enabled' not allowed"),
    ],
    ids=lambda part: part[:50] if isinstance(part, str) else "",
)
def test_a_wrong_value_is_refused_with_its_place_and_what_is_right(given: Object, message: str) -> None:
    assert message in refusal(OPERATOR, given)


def test_the_notes_say_how_to_see_why_pods_get_none() -> None:
    said = notes({"injection": "Webhook"})
    assert f"kubectl --namespace here logs deployment/{NAME}" in said
    assert "port 6443 of its pods" in said
    assert NAME not in notes({})
