"""The preflight's Job: what it shares with the pods that are wanted, and that nobody takes its pod for one of them."""

from typing import Any, Final

import pytest
from hypothesis import given
from tests.operator.resources import EVERYTHING, IMAGE, OWN_TOKEN, changed, desired, valid_names, valid_specs

from tinybird_proxy_operator import manifests, names
from tinybird_proxy_operator.errors import SpecError
from tinybird_proxy_operator.manifests import deployment
from tinybird_proxy_operator.manifests.preflight import PREFLIGHT_LABEL, build

CHECKS: Final = "0123456789abcdef-69b6bc28"
SHARED: Final = (
    "serviceAccountName",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "securityContext",
    "nodeSelector",
    "tolerations",
    "priorityClassName",
    "imagePullSecrets",
    "volumes",
)


def job(spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    return build(desired(spec, **more), CHECKS)


def pod_of(spec: dict[str, Any]) -> dict[str, Any]:
    return dict(job(spec)["spec"]["template"]["spec"])


def env_of(container: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in container["env"] if entry["name"] != "UPSTREAM_TIMEOUT"]


def test_a_job_is_ours_and_says_what_it_checks() -> None:
    manifest = job(OWN_TOKEN)
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    metadata = manifest["metadata"]
    assert (metadata["name"], metadata["namespace"]) == ("events-preflight", "shop")
    assert metadata["annotations"] == {"tinybird-proxy.io/checks": CHECKS}
    assert metadata["labels"] == names.child_labels("events")
    assert [(owner["kind"], owner["name"], owner["controller"]) for owner in metadata["ownerReferences"]] == [
        ("TinybirdProxy", "events", True)
    ]


def test_it_tries_once_for_a_minute_and_is_not_kept_for_ever() -> None:
    spec = job(OWN_TOKEN)["spec"]
    assert (spec["activeDeadlineSeconds"], spec["backoffLimit"], spec["ttlSecondsAfterFinished"]) == (60, 0, 3600)
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    # Kubernetes adds selector and labels of its own.
    assert "selector" not in spec


@pytest.mark.parametrize("spec", [{}, OWN_TOKEN, EVERYTHING])
def test_it_runs_as_the_pods_would_with_their_image_environment_and_secrets(spec: dict[str, Any]) -> None:
    wanted = deployment.pod_template(desired(spec))["spec"]
    pod = pod_of(spec)
    assert {field: pod.get(field) for field in SHARED} == {field: wanted.get(field) for field in SHARED}
    [container], [other] = pod["containers"], wanted["containers"]
    for field in ("name", "image", "imagePullPolicy", "securityContext", "volumeMounts", "terminationMessagePolicy"):
        assert container[field] == other[field]
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert env_of(container) == env_of(other)
    assert container["args"] == ["check", "--upstream"]
    assert "command" not in container


def test_the_check_gives_up_before_the_job_does() -> None:
    spec = changed(OWN_TOKEN, "pod.env", [{"name": "UPSTREAM_TIMEOUT", "value": "10m"}])
    [container] = pod_of(spec)["containers"]
    assert [entry["value"] for entry in container["env"] if entry["name"] == "UPSTREAM_TIMEOUT"] == ["20s"]


@given(valid_specs(), valid_names)
def test_no_selector_of_ours_matches_its_pod(spec: dict[str, Any], name: str) -> None:
    wanted = desired(spec, name=name)
    labels = build(wanted, CHECKS)["spec"]["template"]["metadata"]["labels"]
    specs = [manifest["spec"] for manifest in manifests.build(wanted) if "spec" in manifest]
    found = [spec.get("selector") or spec.get("podSelector") for spec in specs]
    selectors = [each.get("matchLabels", each) for each in found if each]
    assert selectors
    assert not any(selector.items() <= labels.items() for selector in selectors)
    assert names.PROXY_LABEL not in labels
    assert labels[PREFLIGHT_LABEL] == name


def test_its_pod_carries_users_labels_and_annotations_for_policies_and_meshes() -> None:
    metadata = job(EVERYTHING)["spec"]["template"]["metadata"]
    assert metadata["labels"] == {
        "team": "data",
        "app.kubernetes.io/name": "tinybird-proxy-preflight",
        "app.kubernetes.io/instance": "events",
        "app.kubernetes.io/managed-by": "tinybird-proxy-operator",
        "tinybird-proxy.io/preflight": "events",
    }
    assert metadata["annotations"]["example.com/team"] == "data"


def test_its_pod_serves_nothing_and_is_never_ready_so_no_service_sends_it_rows() -> None:
    manifest = job(EVERYTHING)["spec"]
    [container] = manifest["template"]["spec"]["containers"]
    assert "ports" not in container
    assert not {"startupProbe", "livenessProbe"} & container.keys()
    assert container["readinessProbe"]["initialDelaySeconds"] > manifest["activeDeadlineSeconds"]


def test_it_takes_little_and_has_limits_for_what_the_pods_have_them_for() -> None:
    [container] = pod_of(OWN_TOKEN)["containers"]
    assert container["resources"] == {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}}
    limits = {"memory": "2Gi", "cpu": "2", "ephemeral-storage": "1Gi", "example.com/gpu": 1}
    [container] = pod_of(changed(OWN_TOKEN, "pod.resources", {"limits": limits}))["containers"]
    assert container["resources"]["limits"] == {"memory": "128Mi", "cpu": "500m", "ephemeral-storage": "1Gi"}


def test_pods_neither_draw_it_nor_keep_it_away_but_nodes_do() -> None:
    nodes: dict[str, Any] = {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": []}]}
    }
    affinity = {"nodeAffinity": nodes, **EVERYTHING["pod"]["affinity"]}
    assert pod_of(changed(EVERYTHING, "pod.affinity", affinity))["affinity"] == {"nodeAffinity": nodes}
    pod = pod_of(EVERYTHING)
    assert "affinity" not in pod
    assert "topologySpreadConstraints" not in pod


def test_the_longest_name_is_a_label_too_for_kubernetes_makes_it_one() -> None:
    name = job(OWN_TOKEN, name="e" * names.NAME_MAX_LENGTH)["metadata"]["name"]
    assert len(name) == 62


def test_it_takes_the_default_image_as_the_pods_do() -> None:
    assert pod_of({})["containers"][0]["image"] == IMAGE


def test_what_the_pods_cannot_have_is_refused() -> None:
    with pytest.raises(SpecError, match="belongs to the operator"):
        job(changed({}, "pod.labels", {names.PROXY_LABEL: "x"}))
