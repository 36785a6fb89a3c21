"""The operator chart's pre-delete hook: what runs before the operator goes, as whom, and with which rights."""

from pathlib import Path

import pytest
from tests.charts.rendering import OPERATOR, Object, one, render, values_files, with_each_file

from tinybird_proxy_operator import settings
from tinybird_proxy_operator.release_command import DEPLOYMENT_VARIABLE, STOP_TIMEOUT_S

HOOK, WEIGHT, POLICY = (f"helm.sh/hook{end}" for end in ("", "-weight", "-delete-policy"))
RELEASE = [{"apiGroups": ["tinybird-proxy.io"], "resources": ["tinybirdproxies"], "verbs": ["get", "list", "patch"]}]
DEFAULT, EVERYTHING, NAMESPACED, OWN_RBAC = (
    OPERATOR / "ci" / f"{name}-values.yaml" for name in ("default", "everything", "namespaced", "own-rbac")
)


def hooks(values: Path = DEFAULT, given: Object | None = None) -> list[Object]:
    """Everything that helm makes before it deletes the rest."""
    rendered = render(OPERATOR, values=values, given=given)
    return [each for each in rendered if each["metadata"].get("annotations", {}).get(HOOK) == "pre-delete"]


def pod(found: list[Object]) -> Object:
    template: Object = one(found, "Job")["spec"]["template"]
    return template


def environment(found: list[Object]) -> dict[str, str]:
    [container] = pod(found)["spec"]["containers"]
    return {each["name"]: each.get("value", "here") for each in container["env"]}


def kinds(found: list[Object]) -> list[tuple[str, str, str]]:
    """Kind, namespace and name."""
    return [(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in found]


def test_the_examples_are_all_here() -> None:
    assert {DEFAULT, EVERYTHING, NAMESPACED, OWN_RBAC} <= set(values_files(OPERATOR))


@with_each_file(OPERATOR)
def test_every_part_goes_with_success_and_is_replaced_after_a_failure(values: Path) -> None:
    for each in hooks(values):
        assert each["metadata"]["annotations"][POLICY] == "before-hook-creation,hook-succeeded"
        assert int(each["metadata"]["annotations"][WEIGHT]) == (0 if each["kind"] == "Job" else -10)
        assert len(each["metadata"]["name"]) <= 63


@with_each_file(OPERATOR)
def test_the_command_understands_its_environment_and_finds_what_the_operator_finds(values: Path) -> None:
    found, rendered = hooks(values), render(OPERATOR, values=values)
    understood = settings.from_env(environment(found))
    deployment = one(rendered, "Deployment", "-operator")
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    theirs = {each["name"]: each.get("value", "here") for each in container["env"]}
    by_the_operator = settings.from_env(theirs)
    for name in ("operator_namespace", "operator_pod_labels", "watch_namespaces", "controller_class"):
        assert getattr(understood, name) == getattr(by_the_operator, name)
    assert environment(found)[DEPLOYMENT_VARIABLE] == deployment["metadata"]["name"]
    [hook] = pod(found)["spec"]["containers"]
    assert (hook["image"], hook["args"]) == (container["image"], ["release"])


@with_each_file(OPERATOR)
def test_the_command_waits_for_the_operator_and_never_for_itself(values: Path) -> None:
    found, rendered = hooks(values), render(OPERATOR, values=values)
    selector = settings.from_env(environment(found)).operator_pod_labels
    template = one(rendered, "Deployment", "-operator")["spec"]["template"]
    assert selector.items() <= template["metadata"]["labels"].items()
    assert not selector.items() <= pod(found)["metadata"]["labels"].items()
    assert template["spec"]["terminationGracePeriodSeconds"] < STOP_TIMEOUT_S
    assert STOP_TIMEOUT_S < one(found, "Job")["spec"]["activeDeadlineSeconds"] < 300


def test_it_has_an_account_that_may_stop_the_operator_and_write_resources_and_nothing_else() -> None:
    found = hooks()
    name, fullname = "release-tinybird-proxy-operator-pre-delete", "release-tinybird-proxy-operator"
    role = one(found, "Role")
    assert role["metadata"]["namespace"] == "here"
    assert role["rules"] == [
        {"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": [fullname], "verbs": ["get", "patch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    ]
    assert one(found, "ClusterRole")["rules"] == RELEASE
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        binding = one(found, kind)
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": "here"}]
        assert binding["roleRef"]["name"] == one(found, binding["roleRef"]["kind"])["metadata"]["name"]
    assert pod(found)["spec"]["serviceAccountName"] == one(found, "ServiceAccount")["metadata"]["name"] == name


@pytest.mark.parametrize("namespaces", [["team-a", "team-b"], ["here"]])
def test_with_namespaces_it_runs_as_the_operator_and_makes_nothing_in_them_for_they_may_be_gone(
    namespaces: list[str],
) -> None:
    rendered, found = render(OPERATOR, values=NAMESPACED), hooks(NAMESPACED, {"watchNamespaces": namespaces})
    assert sorted(kind for kind, _, _ in kinds(found)) == ["Job", "Role", "RoleBinding"]
    assert {namespace for _, namespace, _ in kinds(found)} == {"here"}
    account = one(rendered, "Deployment", "-operator")["spec"]["template"]["spec"]["serviceAccountName"]
    assert pod(found)["spec"]["serviceAccountName"] == account
    assert one(found, "RoleBinding")["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "here"}]


def test_where_rights_come_from_elsewhere_it_runs_as_the_operator() -> None:
    found = hooks(OWN_RBAC)
    assert [each["kind"] for each in found] == ["Job"]
    assert pod(found)["spec"]["serviceAccountName"] == "from-elsewhere"


@with_each_file(OPERATOR)
def test_its_pod_meets_the_standard_restricted_and_goes_where_the_operator_may(values: Path) -> None:
    found = hooks(values)
    spec, theirs = (
        pod(found)["spec"],
        one(render(OPERATOR, values=values), "Deployment", "-operator")["spec"]["template"]["spec"],
    )
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = spec["containers"]
    assert container["securityContext"] == theirs["containers"][0]["securityContext"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "memory" in container["resources"]["limits"]
    for name in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert spec.get(name) == theirs.get(name)


def test_a_long_name_still_fits() -> None:
    found = hooks(given={"fullnameOverride": "x" * 52})
    assert max(len(name) for _, _, name in kinds(found)) == 63
