"""charts/tinybird-proxy-operator: what it renders from which values, what it refuses, and what it may do."""

import re
from pathlib import Path

import pytest
import yaml
from tests.charts.rendering import (
    OPERATOR,
    Object,
    helm,
    is_named,
    keys,
    objects,
    one,
    refusal,
    render,
    schema_names,
    values_files,
    with_each_file,
)

from tinybird_proxy import __version__
from tinybird_proxy_operator import handlers, settings
from tinybird_proxy_operator.api_resources import RESOURCES
from tinybird_proxy_operator.autoscalers import API_SERVICES
from tinybird_proxy_operator.manifests import KINDS
from tinybird_proxy_operator.names import GROUP
from tinybird_proxy_operator.scaling.targets import TARGETS, adapter_rule

CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
CLUSTER_WIDE |= {f"{what}AdmissionPolicy{part}" for what in ("Mutating", "Validating") for part in ("", "Binding")}
CLUSTER_WIDE.add("MutatingWebhookConfiguration")
CHILD = ("get", "list", "watch", "create", "patch", "delete")
READ = ("get", "list", "watch")
# Every right of the operator's, and no other.
RIGHTS = {
    ("tinybird-proxy.io", "tinybirdproxies"): (*READ, "patch"),
    ("tinybird-proxy.io", "tinybirdproxies/status"): ("patch",),
    ("tinybird-proxy.io", "tinybirdproxies/scale"): ("patch",),
    ("tinybird-proxy.io", "tinybirdproxies/finalizers"): ("update",),
    ("apps", "deployments"): CHILD,
    ("apps", "replicasets"): ("list",),
    ("batch", "jobs"): ("get", "list", "watch", "create", "delete"),
    ("", "services"): CHILD,
    ("", "serviceaccounts"): CHILD,
    ("policy", "poddisruptionbudgets"): CHILD,
    ("networking.k8s.io", "networkpolicies"): CHILD,
    ("networking.k8s.io", "ingresses"): CHILD,
    ("autoscaling", "horizontalpodautoscalers"): CHILD,
    ("", "pods"): ("list", "watch", "patch"),
    ("", "secrets"): ("get", "list", "watch", "create", "patch"),
    ("", "events"): ("list", "create"),
    ("", "namespaces"): ("get",),
}
# In the operator's own namespace, by name.
LEASE = {("coordination.k8s.io", "leases"): ("get", "create", "update")}
# What the chart's values add. Kinds that a cluster may not have are not watched.
UNWATCHED = tuple(verb for verb in CHILD if verb != "watch")
ASKED_FOR = {("monitoring.coreos.com", "podmonitors"): UNWATCHED, ("keda.sh", "scaledobjects"): UNWATCHED}
# With injection, for evictions.
EVICTS = {("", "pods/eviction"): ("create",), ("apps", "statefulsets"): ("get",)}
# Of the whole cluster, by name.
CLUSTER = {("apiregistration.k8s.io", "apiservices"): ("get",)}
# What the metrics API alone reads and writes; see test_metrics_api_chart.py.
METRICS_API = {
    ("", "configmaps"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
    ("rbac.authorization.k8s.io", "clusterroles"),
}
# And the webhook alone; see test_webhook_chart.py.
WEBHOOK = {("admissionregistration.k8s.io", "mutatingwebhookconfigurations")}


def rights(role: Object) -> dict[tuple[str, str], tuple[str, ...]]:
    found = {}
    for rule in role["rules"]:
        assert set(rule) - {"resourceNames"} == {"apiGroups", "resources", "verbs"}
        for resource in rule["resources"]:
            [group] = rule["apiGroups"]
            assert (group, resource) not in found
            found[group, resource] = tuple(rule["verbs"])
    return found


def lasting(rendered: list[Object]) -> list[Object]:
    """Without what is there only while the chart is uninstalled; see test_pre_delete_hook.py."""
    hook = "helm.sh/hook"
    return [each for each in rendered if each["metadata"].get("annotations", {}).get(hook) != "pre-delete"]


def container(rendered: list[Object]) -> Object:
    [found] = one(rendered, "Deployment", "-operator")["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def environment(rendered: list[Object]) -> dict[str, str]:
    """The operator's environment, with what Kubernetes fills in."""
    filled = {"metadata.name": "operator-abc", "metadata.namespace": "here"}
    entries = container(rendered)["env"]
    assert len({entry["name"] for entry in entries}) == len(entries)
    return {e["name"]: e["value"] if "value" in e else filled[e["valueFrom"]["fieldRef"]["fieldPath"]] for e in entries}


def test_there_are_examples_of_values() -> None:
    assert len(values_files(OPERATOR)) >= 4


def test_the_chart_has_the_versions_of_the_package() -> None:
    chart = yaml.safe_load((OPERATOR / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
    images = yaml.safe_load(chart["annotations"]["artifacthub.io/images"])
    assert {image["image"].rpartition(":")[2] for image in images} == {__version__}


@with_each_file(OPERATOR)
def test_helm_has_nothing_to_complain_of(values: Path) -> None:
    linted = helm("lint", "--strict", OPERATOR, "--values", values)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "[WARNING]" not in linted.stdout + linted.stderr


@with_each_file(OPERATOR)
def test_every_object_says_where_it_belongs(values: Path) -> None:
    rendered = render(OPERATOR, values=values)
    common = yaml.safe_load(values.read_text() or "{}") or {}
    names = {(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in rendered}
    assert len(names) == len(rendered)
    for each in rendered:
        metadata = each["metadata"]
        if each["kind"] == "CustomResourceDefinition":
            assert metadata["labels"]["app.kubernetes.io/part-of"] == "tinybird-proxy"
            continue
        assert metadata["labels"]["app.kubernetes.io/instance"] == "release"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        assert metadata["labels"]["app.kubernetes.io/version"] == __version__
        assert metadata["labels"].items() >= common.get("commonLabels", {}).items()
        assert ("namespace" in metadata) == (each["kind"] not in CLUSTER_WIDE)
        assert len(metadata["name"]) <= 63


@with_each_file(OPERATOR)
def test_the_operator_understands_the_environment_that_the_chart_gives_it(values: Path) -> None:
    rendered = render(OPERATOR, values=values)
    understood = settings.from_env(environment(rendered))
    assert understood.operator_namespace == "here"
    template = one(rendered, "Deployment", "-operator")["spec"]["template"]
    assert understood.operator_pod_labels.items() <= template["metadata"]["labels"].items()
    port = understood.metrics_port
    assert container(rendered)["ports"] == [{"name": "metrics", "containerPort": port, "protocol": "TCP"}]
    assert one(rendered, "Service", "-metrics")["spec"]["ports"][0]["port"] == port


def test_each_value_reaches_its_setting() -> None:
    understood = settings.from_env(environment(render(OPERATOR, values=OPERATOR / "ci" / "everything-values.yaml")))
    assert understood.proxy_image == f"registry.example.com:5000/mirror/tinybird-proxy@sha256:{'0' * 64}"
    assert understood.proxy_image_pull_policy == "Never"
    assert understood.allowed_upstreams == ("*.tinybird.co", "tinybird.internal")
    assert understood.allowed_collectors == ("collector.monitoring.svc",)
    assert understood.allowed_images == ("registry.example.com/mirror/*",)
    assert understood.controller_class == "blue"
    assert understood.upgrade_max_concurrent == 3
    assert understood.resync_seconds == 60
    assert (understood.log_level, understood.log_format) == ("debug", "console")
    namespaced = settings.from_env(environment(render(OPERATOR, values=OPERATOR / "ci" / "namespaced-values.yaml")))
    assert namespaced.watch_namespaces == ("team-a", "team-b")


def test_the_defaults_of_the_chart_are_those_of_the_operator() -> None:
    given = environment(render(OPERATOR))
    least = {name: given[name] for name in ("POD_NAMESPACE", "POD_NAME", "OPERATOR_POD_LABELS", "LEASE_NAME")}
    by_itself = settings.from_env({**least, "LOG_FORMAT": "json"})
    assert settings.from_env(given) == by_itself


def test_the_chart_sets_every_variable_that_the_operator_reads() -> None:
    read = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', Path(settings.__file__).read_text()))
    everything = render(OPERATOR, values=OPERATOR / "ci" / "everything-values.yaml")
    assert read == set(environment(everything)) - {"HTTPS_PROXY"}


@pytest.mark.parametrize("name", ["default", "everything"])
def test_the_operator_gets_exactly_the_rights_that_it_uses(name: str) -> None:
    rendered = lasting(render(OPERATOR, values=OPERATOR / "ci" / f"{name}-values.yaml"))
    expected = RIGHTS | CLUSTER if name == "default" else RIGHTS | CLUSTER | ASKED_FOR
    role = one(rendered, "ClusterRole", "-operator")
    assert rights(role) == expected
    assert [rule["resourceNames"] for rule in role["rules"] if "resourceNames" in rule] == [sorted(API_SERVICES)]
    lease = one(rendered, "Role", "-operator-lease")
    assert (rights(lease), lease["metadata"]["namespace"]) == (LEASE, "here")
    named = environment(rendered)["LEASE_NAME"]
    assert [rule["resourceNames"] for rule in lease["rules"]] == [[named]]
    binding = one(rendered, "ClusterRoleBinding")
    account = one(rendered, "ServiceAccount")["metadata"]
    assert binding["roleRef"]["name"] == one(rendered, "ClusterRole", "-operator")["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["name"], "namespace": "here"}]
    assert one(rendered, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == account["name"]


@pytest.mark.parametrize("way", ["Policy", "Webhook"])
def test_with_injection_it_may_evict_and_read_what_lacks_pods(way: str) -> None:
    role = one(render(OPERATOR, given={"injection": way}), "ClusterRole", "release-tinybird-proxy-operator")
    assert rights(role) == RIGHTS | CLUSTER | EVICTS


def test_there_is_a_right_for_every_kind_that_the_operator_knows() -> None:
    known = {(r.api_version.rpartition("/")[0], r.plural) for r in RESOURCES.values()} - METRICS_API - WEBHOOK
    assert known == {key for key in RIGHTS | CLUSTER | ASKED_FOR | EVICTS | LEASE if "/" not in key[1]}
    plurals = {kind: (resource.api_version.rpartition("/")[0], resource.plural) for kind, resource in RESOURCES.items()}
    for _, kind in KINDS:
        assert (RIGHTS | ASKED_FOR)[plurals[kind]] == (UNWATCHED if plurals[kind] in ASKED_FOR else CHILD)


def test_what_may_be_watched_is_watched_and_nothing_else() -> None:
    allowed = {key for key, verbs in (RIGHTS | ASKED_FOR).items() if "watch" in verbs}
    children = {(group, plural) for group, _, plural in (*handlers.CHILDREN, handlers.AUTOSCALERS)}
    assert allowed == children | {("", "pods"), ("", "secrets"), (GROUP, "tinybirdproxies")}


def test_with_namespaces_there_are_roles_in_them_and_nothing_of_the_whole_cluster() -> None:
    rendered = lasting(render(OPERATOR, values=OPERATOR / "ci" / "namespaced-values.yaml"))
    assert not CLUSTER_WIDE & {each["kind"] for each in rendered}
    roles = [each for each in rendered if each["kind"] == "Role"]
    expected = {"team-a": RIGHTS, "team-b": RIGHTS, "here": LEASE}
    assert {role["metadata"]["namespace"]: rights(role) for role in roles} == expected
    bindings = [each for each in rendered if each["kind"] == "RoleBinding"]
    assert {binding["metadata"]["namespace"] for binding in bindings} == set(expected)
    assert all(binding["subjects"][0]["namespace"] == "here" for binding in bindings)


def test_nobody_but_the_operator_may_write_a_status() -> None:
    rendered = render(OPERATOR)
    view, edit = one(rendered, "ClusterRole", "-view"), one(rendered, "ClusterRole", "-edit")
    aggregate = "rbac.authorization.k8s.io/aggregate-to-"
    assert {label for label in view["metadata"]["labels"] if label.startswith(aggregate)} == {
        f"{aggregate}view",
        f"{aggregate}edit",
        f"{aggregate}admin",
    }
    assert {label for label in edit["metadata"]["labels"] if label.startswith(aggregate)} == {
        f"{aggregate}edit",
        f"{aggregate}admin",
    }
    assert set(rights(view).values()) == {READ}
    assert {resource for _, resource in rights(edit)} == {"tinybirdproxies", "tinybirdproxies/scale"}
    assert all(group == GROUP for group, _ in rights(view) | rights(edit))


@with_each_file(OPERATOR)
def test_every_pod_meets_the_standard_restricted(values: Path) -> None:
    rendered = render(OPERATOR, values=values)
    deployments = [each["spec"]["template"]["spec"] for each in rendered if each["kind"] == "Deployment"]
    pods = [*deployments, one(rendered, "Pod")["spec"]]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any(pod.get(host) for host in ("hostNetwork", "hostPID", "hostIPC"))
        for each in pod["containers"]:
            assert each["securityContext"]["allowPrivilegeEscalation"] is False
            assert each["securityContext"]["readOnlyRootFilesystem"] is True
            assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in each["resources"]["limits"]
    assert [pod["automountServiceAccountToken"] for pod in pods] == [*(True for _ in deployments), False]


def test_selectors_find_the_operator_and_only_it() -> None:
    rendered = render(OPERATOR, values=OPERATOR / "ci" / "everything-values.yaml")
    pod = one(rendered, "Deployment")["spec"]["template"]["metadata"]["labels"]
    tester = one(rendered, "Pod")["metadata"]["labels"]
    selectors = [
        one(rendered, "Deployment")["spec"]["selector"]["matchLabels"],
        one(rendered, "Service")["spec"]["selector"],
        one(rendered, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(rendered, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        one(rendered, "PodMonitor")["spec"]["selector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= pod.items()
        assert not selector.items() <= tester.items()
    peers = one(rendered, "NetworkPolicy")["spec"]["ingress"][0]["from"]
    assert any(peer.get("podSelector", {}).get("matchLabels", {"": ""}).items() <= tester.items() for peer in peers)


def test_an_image_is_named_by_digest_tag_or_version() -> None:
    repository = "ghcr.io/tinybird-proxy/tinybird-proxy-operator"
    assert container(render(OPERATOR))["image"] == f"{repository}:{__version__}"
    assert container(render(OPERATOR, given={"image": {"tag": "7"}}))["image"] == f"{repository}:7"
    digest = f"sha256:{'a' * 64}"
    given = {"image": {"tag": "7", "digest": digest}}
    assert container(render(OPERATOR, given=given))["image"] == f"{repository}@{digest}"


def test_the_pod_changes_with_nothing_but_what_it_consumes() -> None:
    """Else a chart upgrade would restart the operator for a label."""
    template = one(render(OPERATOR), "Deployment")["spec"]["template"]
    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(template["metadata"]["labels"])
    more = {"monitoring": {"dashboard": {"enabled": True}, "prometheusRule": {"enabled": True}}}
    assert one(render(OPERATOR, given=more), "Deployment")["spec"]["template"] == template


def test_labels_that_are_given_twice_are_there_once_and_the_closest_value_wins() -> None:
    parts = {"podMonitor": "PodMonitor", "prometheusRule": "PrometheusRule", "dashboard": "ConfigMap"}
    aggregate = "rbac.authorization.k8s.io/aggregate-to-view"
    given = {
        "commonLabels": {"team": "a", "sub-component": "operator", aggregate: "false"},
        "monitoring": {part: {"enabled": True, "labels": {"team": part}} for part in parts},
    }
    rendered = render(OPERATOR, given=given)
    for part, kind in parts.items():
        assert one(rendered, kind)["metadata"]["labels"]["team"] == part
    assert one(rendered, "ClusterRole", "-view")["metadata"]["labels"][aggregate] == "true"
    for kind in ("Service", "Pod"):
        labels = one(rendered, kind)["metadata"]["labels"]
        assert (labels["team"], labels["sub-component"]) == ("a", "operator")
    assert one(rendered, "Pod")["metadata"]["labels"]["app.kubernetes.io/component"] == "test"


def test_labels_of_a_part_may_be_left_out() -> None:
    given: Object = {"monitoring": {"dashboard": {"enabled": True, "labels": None}}}
    assert "grafana_dashboard" not in one(render(OPERATOR, given=given), "ConfigMap")["metadata"]["labels"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"replicaCount": 2}, "additional properties 'replicaCount' not allowed"),
        ({"lease": {"durationSeconds": 10}}, "lease.renewDeadlineSeconds: must be less than lease.durationSeconds, or"),
        ({"lease": {"retryPeriodSeconds": 6}}, "lease.retryPeriodSeconds: must be at most half of"),
        ({"image": {"name": "x"}}, "at '/image': additional properties 'name' not allowed"),
        ({"image": {"tag": 5}}, "at '/image/tag': got number, want string"),
        ({"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match pattern"),
        ({"proxy": {"image": {"repository": "https://x"}}}, "at '/proxy/image/repository': 'https://x' does not match"),
        ({"image": {"pullPolicy": "always"}}, "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent'"),
        ({"allowedUpstreams": ["https://api.tinybird.co"]}, "at '/allowedUpstreams/0': 'https://api.tinybird.co' does"),
        ({"allowedUpstreams": "*"}, "at '/allowedUpstreams': got string, want array"),
        ({"allowedCollectors": ["collector:4318"]}, "at '/allowedCollectors/0': 'collector:4318' does not match"),
        ({"allowedImages": ["*/x"]}, "at '/allowedImages/0': '*/x' does not match pattern"),
        ({"watchNamespaces": ["Team"]}, "at '/watchNamespaces/0': 'Team' does not match pattern"),
        ({"watchNamespaces": ["a"]}, "crds.enabled: must be false with watchNamespaces, for a CRD is the whole"),
        ({"log": {"level": "loud"}}, "at '/log/level': value must be one of 'debug', 'info', 'warning', 'error'"),
        ({"resyncSeconds": 0}, "at '/resyncSeconds': minimum: got 0, want 1"),
        ({"metrics": {"port": 80}}, "at '/metrics/port': minimum: got 80, want 1,024"),
        ({"upgrade": {"maxConcurrent": 0}}, "at '/upgrade/maxConcurrent': minimum: got 0, want 1"),
        ({"fullnameOverride": "x" * 53}, "at '/fullnameOverride': maxLength: got 53, want 52"),
        ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "commonLabels: app.kubernetes.io/name is set by the chart"),
        ({"commonLabels": {"pod-template-hash": "x"}}, "commonLabels: pod-template-hash is set by the chart, by Kub"),
        ({"commonLabels": {"tinybird-proxy.io/proxy": "x"}}, "commonLabels: tinybird-proxy.io/proxy is set by"),
        (
            {"monitoring": {"podMonitor": {"labels": {"helm.sh/chart": "x"}}}},
            "monitoring.podMonitor.labels: helm.sh/chart is set by the chart",
        ),
        ({"extraEnv": [{"name": "PROXY_IMAGE", "value": "x"}]}, "extraEnv: PROXY_IMAGE is set from a value of its own"),
        ({"monitoring": {"podMonitor": {"interval": "often"}}}, "at '/monitoring/podMonitor/interval': 'often' does"),
    ],
    ids=lambda part: part[:40] if isinstance(part, str) else "",
)
def test_a_wrong_value_is_refused_with_its_place_and_what_is_right(given: Object, message: str) -> None:
    assert message in refusal(OPERATOR, given)


def test_every_value_has_a_comment_and_a_place_in_the_schema() -> None:
    text = (OPERATOR / "values.yaml").read_text()
    lines, commented = text.splitlines(), set[str]()
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    for path, line, value in keys(root):
        inherited = any(path.startswith(f"{above}.") for above in commented)
        if lines[line - 1].strip().startswith("#") and not inherited:
            commented.add(path)
        elif not inherited:
            assert isinstance(value, yaml.MappingNode), f"{path} has no comment"
    schema = yaml.safe_load((OPERATOR / "values.schema.json").read_text())
    assert schema_names(schema) - {"global"} == {path for path, _, _ in keys(root) if is_named(schema, path)}


def notes(given: Object) -> str:
    """Without a cluster helm only shows them in a dry run."""
    asked = ("install", "release", OPERATOR, "--namespace", "here", "--dry-run=client", "--values", "-")
    shown = helm(*asked, given=yaml.safe_dump(given))
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.partition("NOTES:")[2]


def test_without_rbac_the_notes_name_both_sets_of_rights() -> None:
    assert "operator.rules" not in notes({})
    assert "templates/_helpers.tpl (operator.rules)" in notes({"rbac": {"create": False}})
    assert "in here those of templates/lease-rbac.yaml" in notes({"rbac": {"create": False}})


def test_the_notes_name_the_next_command() -> None:
    said = notes({})
    assert "kubectl --namespace here rollout status deployment/release-tinybird-proxy-operator" in said
    [example] = objects(said.partition("<<END\n")[2].partition("\nEND\n")[0])
    minimal = objects((OPERATOR / "examples" / "minimal.yaml").read_text())[1]
    assert example == minimal


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "For spec.autoscaling set metricsAPI.enabled, or give"),
        ({"metricsAPI": {"enabled": True}}, "Where another server of custom.metrics.k8s.io is registered already"),
        (
            {"watchNamespaces": ["a"], "crds": {"enabled": False}},
            "the metrics API of this chart is not for watchNamespaces",
        ),
    ],
)
def test_the_notes_show_the_rule_for_prometheus_adapter_and_when_it_is_needed(values: Object, sentence: str) -> None:
    said = notes(values)
    assert sentence in said
    rule = said[said.index("- seriesQuery") :]
    assert yaml.safe_load(rule) == [yaml.safe_load(adapter_rule(TARGETS))]
