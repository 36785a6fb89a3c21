"""charts/tinybird-proxy-operator with `injection`: which pods are asked about, by what, and what is refused."""

import re
from typing import Any

import pytest
import yaml
from tests.charts.rendering import OPERATOR, Object, helm, objects, one, refusal, render

from tinybird_proxy_operator.names import (
    GROUP,
    INJECT_LABEL,
    INJECTED_LABEL,
    KIND,
    PREFLIGHT_LABEL,
    PROXY_LABEL,
    SIDECAR_CONTAINER,
    SIDECAR_HASH_ANNOTATION,
    SIDECAR_VOLUMES,
    VERSION,
)
from tinybird_proxy_operator.sidecars.injection import MESHES, MIRROR_ANNOTATION, NEVER_IN, chosen

PODS, NAMESPACES = "-injection.labelled-pods", "-injection.labelled-namespaces"
MUTATING, VALIDATING = "MutatingAdmissionPolicy", "ValidatingAdmissionPolicy"
EXCLUDED = (*NEVER_IN, "here")


def policies(kind: str, **values: Any) -> list[Object]:
    return [each for each in render(OPERATOR, given={"injection": "Policy", **values}) if each["kind"] == kind]


def matches(labels: dict[str, str], key: str, operator: str, values: list[str]) -> bool:
    """As Kubernetes does."""
    if operator == "NotIn":
        return labels.get(key) not in values
    assert operator in ("Exists", "DoesNotExist")
    return (key in labels) == (operator == "Exists")


def selects(selector: Object, labels: dict[str, str]) -> bool:
    assert set(selector) == {"matchExpressions"}
    expressions = selector["matchExpressions"]
    return all(matches(labels, each["key"], each["operator"], each.get("values", [])) for each in expressions)


def asked_about(policy: Object, pod: dict[str, str], namespace: dict[str, str]) -> bool:
    constraints = policy["spec"]["matchConstraints"]
    return selects(constraints["objectSelector"], pod) and selects(constraints["namespaceSelector"], namespace)


def test_it_is_off_by_default_and_nothing_stands_between_anybody_and_their_pods() -> None:
    assert not [each["kind"] for each in render(OPERATOR) if "Admission" in each["kind"] or "Webhook" in each["kind"]]


@pytest.mark.parametrize("kind", [MUTATING, VALIDATING])
def test_exactly_the_pods_that_ask_are_asked_about_and_each_once(kind: str) -> None:
    found = policies(kind, injectionFailurePolicy="Fail")
    assert [each["metadata"]["name"].rpartition(".")[2] for each in found] == ["labelled-pods", "labelled-namespaces"]
    values = (None, "", "false", "events")
    for pod in ({}, *({INJECT_LABEL: value} for value in values if value is not None)):
        for proxy in ({}, {PROXY_LABEL: "events"}, {PREFLIGHT_LABEL: "events"}):
            for value in values:
                namespace = {"kubernetes.io/metadata.name": "apps"} | ({} if value is None else {INJECT_LABEL: value})
                asks = chosen(pod | proxy, namespace) is not None
                assert sum(asked_about(each, pod | proxy, namespace) for each in found) == asks, (pod, namespace)


@pytest.mark.parametrize("kind", [MUTATING, VALIDATING])
@pytest.mark.parametrize("namespace", EXCLUDED)
def test_what_a_cluster_needs_and_the_operator_never_wait_for_injection(kind: str, namespace: str) -> None:
    for labels in ({}, {INJECT_LABEL: "events"}):
        for policy in policies(kind, injectionFailurePolicy="Fail"):
            assert not asked_about(policy, labels, {INJECT_LABEL: "events", "kubernetes.io/metadata.name": namespace})


@pytest.mark.parametrize("kind", [MUTATING, VALIDATING])
def test_only_pods_that_are_made_are_asked_about(kind: str) -> None:
    for policy in policies(kind, injectionFailurePolicy="Fail"):
        [rule] = policy["spec"]["matchConstraints"]["resourceRules"]
        assert rule["operations"] == ["CREATE"]
        assert (rule["apiGroups"], rule["apiVersions"], rule["resources"]) == ([""], ["v1"], ["pods"])
        assert MIRROR_ANNOTATION in policy["spec"]["matchConditions"][0]["expression"]


def test_each_policy_reads_the_resources_of_the_pods_own_namespace() -> None:
    rendered = render(OPERATOR, given={"injection": "Policy"})
    for name in (PODS, NAMESPACES):
        policy, binding = one(rendered, MUTATING, name), one(rendered, f"{MUTATING}Binding", name)
        assert policy["spec"]["paramKind"] == {"apiVersion": f"{GROUP}/{VERSION}", "kind": KIND}
        assert binding["spec"] == {
            "policyName": policy["metadata"]["name"],
            "paramRef": {"selector": {}, "parameterNotFoundAction": "Allow"},
        }
        assert policy["spec"]["reinvocationPolicy"] == "IfNeeded"


def test_both_policies_say_the_same() -> None:
    for kind, parts in ((MUTATING, ("variables", "mutations")), (VALIDATING, ("variables", "validations"))):
        one_of_them, other = policies(kind, injectionFailurePolicy="Fail")
        for part in parts:
            assert one_of_them["spec"][part] == other["spec"][part]


def test_the_policies_know_the_names_that_the_operator_uses() -> None:
    for policy in policies(MUTATING):
        text = yaml.safe_dump(policy["spec"], width=10_000)
        for name in (INJECT_LABEL, INJECTED_LABEL, SIDECAR_HASH_ANNOTATION, SIDECAR_CONTAINER, *MESHES):
            assert re.search(rf'"{re.escape(name)}"', text.replace('\\"', '"')), name


@pytest.mark.parametrize("policy", ["Ignore", "Fail"])
@pytest.mark.parametrize("way", ["Webhook", "Policy"])
def test_a_pod_that_asks_is_made_without_or_not_at_all_as_it_was_chosen(way: str, policy: str) -> None:
    rendered = render(OPERATOR, given={"injection": way, "injectionFailurePolicy": policy})
    required = [each for each in rendered if each["kind"] == VALIDATING]
    bindings = [each["spec"] for each in rendered if each["kind"] == f"{VALIDATING}Binding"]
    names = [each["metadata"]["name"] for each in required]
    assert len(names) == (2 if policy == "Fail" else 0)
    assert bindings == [{"policyName": name, "validationActions": ["Deny"]} for name in names]
    assert {each["spec"]["failurePolicy"] for each in required} <= {"Fail"}
    injecting = [each for each in rendered if each["kind"] == MUTATING]
    assert [each["spec"]["failurePolicy"] for each in injecting] == ([policy, policy] if way == "Policy" else [])


# Of CEL as Kubernetes 1.30 has it. With its later libraries (flatten, transformList) 1.31 to 1.34
# would not take the policy at all.
KNOWN_TO_1_30 = {"exists", "filter", "hasValue", "map", "orValue", "size", "string"}


def test_with_the_webhook_refusing_pods_needs_no_newer_kubernetes_than_the_chart() -> None:
    required = [
        each
        for each in render(OPERATOR, given={"injection": "Webhook", "injectionFailurePolicy": "Fail"})
        if each["kind"] == VALIDATING
    ]
    assert len(required) == 2
    for policy in required:
        spec = policy["spec"]
        parts = [*spec["matchConditions"], *spec["variables"], *spec["validations"]]
        cel = " ".join(part.get("expression", "") + part.get("messageExpression", "") for part in parts)
        assert set(re.findall(r"(\w+)\(", re.sub(r'"[^"]*"', '""', cel))) <= KNOWN_TO_1_30


def test_the_longest_name_fits() -> None:
    for each in render(OPERATOR, given={"fullnameOverride": "x" * 52, "injection": "Policy"}):
        assert len(each["metadata"]["name"]) <= 253


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"injection": "Sometimes"}, "at '/injection': value must be one of 'None', 'Webhook', 'Policy'"),
        ({"injectionFailurePolicy": "Deny"}, "at '/injectionFailurePolicy': value must be one of 'Ignore', 'Fail'"),
        ({"injectionFailurePolicy": "Fail"}, "injectionFailurePolicy: must be Ignore with injection None"),
        (
            {"injection": "Policy", "watchNamespaces": ["a"], "crds": {"enabled": False}},
            "injection: must be None with watchNamespaces",
        ),
        (
            {"injection": "Webhook", "watchNamespaces": ["a"], "crds": {"enabled": False}},
            "injection: must be None with watchNamespaces",
        ),
    ],
    ids=lambda part: part[:50] if isinstance(part, str) else "",
)
def test_a_wrong_value_is_refused_with_its_place_and_what_is_right(given: Object, message: str) -> None:
    assert message in refusal(OPERATOR, given)


def rendered_for(*served: str) -> tuple[int, str, str]:
    """As for a cluster that serves these."""
    known = [argument for version in served for argument in ("--api-versions", version)]
    done = helm("template", "release", OPERATOR, "--set", "injection=Policy", "--kube-version", "1.35.0", *known)
    return done.returncode, done.stdout, done.stderr


def test_a_cluster_without_such_policies_is_told_what_it_needs() -> None:
    status, _, said = rendered_for("v1/Pod", "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy")
    assert status != 0
    assert "injection: must be Webhook here, for Policy needs MutatingAdmissionPolicy" in said
    assert "from 1.36 on, and this cluster (v1.35.0) does not" in said


@pytest.mark.parametrize("served", [(), ("v1/Pod", "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy")])
def test_a_cluster_with_them_or_none_at_all_gets_them(served: tuple[str, ...]) -> None:
    status, stdout, said = rendered_for(*served)
    assert status == 0, said
    assert [each for each in objects(stdout) if each["kind"] == MUTATING]


def test_both_policies_know_every_volume_of_a_sidecars() -> None:
    found = policies(MUTATING, injectionFailurePolicy="Fail") + policies(VALIDATING, injectionFailurePolicy="Fail")
    for policy in found:
        lists = re.findall(r"\[(\"tinybird-proxy-[^\]]*)\]", str(policy["spec"]["variables"]))
        assert [sorted(yaml.safe_load(f"[{each}]")) for each in lists] == [sorted(SIDECAR_VOLUMES)]
