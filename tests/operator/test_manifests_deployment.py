"""The Deployment: golden ones compared whole, then the rules behind them."""

from dataclasses import replace
from typing import Any, Final

import pytest
from tests.operator.resources import EVERYTHING, IMAGE, OWN_TOKEN, changed, desired
from tests.operator.test_manifests_service import SELECTOR

from tinybird_proxy_operator import names
from tinybird_proxy_operator.errors import SpecError
from tinybird_proxy_operator.manifests.deployment import build

POD_LABELS: Final = {**SELECTOR, "app.kubernetes.io/managed-by": "tinybird-proxy-operator"}
SPREAD: Final = {
    "maxSkew": 1,
    "whenUnsatisfiable": "ScheduleAnyway",
    "labelSelector": {"matchLabels": SELECTOR},
    "matchLabelKeys": ["pod-template-hash"],
}
ENV: Final = [
    {"name": "PORT", "value": "8000"},
    {"name": "HOST", "value": "::"},
    {"name": "ADMIN_PORT", "value": "8001"},
    {"name": "ADMIN_HOST", "value": "::"},
    {"name": "ADMIN_TOKEN_FILE", "value": "/etc/tinybird-proxy/admin/token"},
    {"name": "TINYBIRD_URL", "value": "https://api.tinybird.co"},
    {"name": "TINYBIRD_TOKEN_FILE", "value": "/etc/tinybird-proxy/tinybird/token"},
    {"name": "AUTHORIZATION_TOKEN_FILE", "value": "/etc/tinybird-proxy/clients/accepted"},
    {"name": "BATCH_SIZE", "value": "100000"},
    {"name": "BATCH_BYTES", "value": "10000000"},
    {"name": "FLUSH_INTERVAL", "value": "1000ms"},
    {"name": "BUFFER_SIZE", "value": "1000000"},
    {"name": "BUFFER_BYTES", "value": "536870912"},
    {"name": "DRAIN_DELAY", "value": "5s"},
    {"name": "SHUTDOWN_TIMEOUT", "value": "50s"},
    {"name": "NODE_ID", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
]


def probe(path: str, period_s: int, failures: int, timeout_s: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "admin", "scheme": "HTTP"},
        "periodSeconds": period_s,
        "failureThreshold": failures,
        "timeoutSeconds": timeout_s,
    }


def secret_volume(name: str, secret: str, key: str, file: str) -> dict[str, Any]:
    items = [{"key": key, "path": file}]
    return {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440, "items": items}}


GOLDEN: Final = {
    "replicas": 2,
    "paused": False,
    "minReadySeconds": 2,
    "progressDeadlineSeconds": 600,
    "revisionHistoryLimit": 3,
    "selector": {"matchLabels": SELECTOR},
    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
    "template": {
        "metadata": {
            "labels": POD_LABELS,
            "annotations": {"kubectl.kubernetes.io/default-container": "proxy"},
        },
        "spec": {
            "serviceAccountName": "events",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 60,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "topologySpreadConstraints": [
                {**SPREAD, "topologyKey": "kubernetes.io/hostname"},
                {**SPREAD, "topologyKey": "topology.kubernetes.io/zone"},
            ],
            "containers": [
                {
                    "name": "proxy",
                    "image": IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "env": ENV,
                    "ports": [
                        {"name": "events", "containerPort": 8000, "protocol": "TCP"},
                        {"name": "admin", "containerPort": 8001, "protocol": "TCP"},
                    ],
                    "resources": {"requests": {"cpu": "100m", "memory": "896Mi"}, "limits": {"memory": "896Mi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "startupProbe": probe("/livez", 1, 60, 1),
                    "readinessProbe": probe("/readyz", 2, 1, 2),
                    "livenessProbe": probe("/livez", 10, 4, 5),
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "volumeMounts": [
                        {"name": "tinybird-token", "mountPath": "/etc/tinybird-proxy/tinybird", "readOnly": True},
                        {"name": "client-tokens", "mountPath": "/etc/tinybird-proxy/clients", "readOnly": True},
                        {"name": "admin-token", "mountPath": "/etc/tinybird-proxy/admin", "readOnly": True},
                    ],
                }
            ],
            "volumes": [
                secret_volume("tinybird-token", "tinybird", "token", "token"),
                secret_volume("client-tokens", "events-client", "accepted", "accepted"),
                secret_volume("admin-token", "events-admin", "token", "token"),
            ],
        },
    },
}


def pod_spec(spec: dict[str, Any]) -> dict[str, Any]:
    return dict(build(desired(spec))["spec"]["template"]["spec"])


def test_a_resource_with_a_token_and_defaults_comes_to_this() -> None:
    manifest = build(desired(OWN_TOKEN))
    assert (manifest["apiVersion"], manifest["kind"]) == ("apps/v1", "Deployment")
    assert manifest["spec"] == GOLDEN


def test_everything_set_reaches_the_pods() -> None:
    spec = build(desired(EVERYTHING, replicas=3))["spec"]
    assert spec["replicas"] == 3
    template = spec["template"]
    assert template["metadata"]["labels"] == {"team": "data", **POD_LABELS}
    assert template["metadata"]["annotations"] == {
        "example.com/team": "data",
        "kubectl.kubernetes.io/default-container": "proxy",
    }
    pod = template["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    asked = EVERYTHING["pod"]
    for field in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert pod[field] == asked[field]
    assert pod["topologySpreadConstraints"] == [
        {**asked["topologySpreadConstraints"][0], "labelSelector": {"matchLabels": SELECTOR}}
    ]
    container = pod["containers"][0]
    assert (container["image"], container["imagePullPolicy"]) == (EVERYTHING["image"], "Always")
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "2Gi"},
        "limits": {"memory": "2Gi", "cpu": "2"},
    }
    assert container["env"][-2:] == asked["env"]
    assert pod["volumes"] == [
        secret_volume("tinybird-token", "tinybird", "ingest", "token"),
        secret_volume("client-tokens", "apps", "list", "accepted"),
        secret_volume("admin-token", "events-admin", "token", "token"),
        {
            "name": "otlp-headers",
            "secret": {
                "secretName": "collector",
                "defaultMode": 0o440,
                "optional": True,
                "items": [{"key": "all", "path": "headers"}],
            },
        },
    ]
    assert container["volumeMounts"][-1] == {
        "name": "otlp-headers",
        "mountPath": "/etc/tinybird-proxy/otlp",
        "readOnly": True,
    }


def test_without_a_token_of_its_own_the_proxy_mounts_only_the_admin_token() -> None:
    pod = pod_spec({})
    assert [volume["name"] for volume in pod["volumes"]] == ["admin-token"]
    assert [mount["name"] for mount in pod["containers"][0]["volumeMounts"]] == ["admin-token"]


def test_no_secret_is_mounted_by_sub_path_or_read_into_a_variable() -> None:
    container = pod_spec(EVERYTHING)["containers"][0]
    assert not any("subPath" in mount for mount in container["volumeMounts"])
    assert not any("secretKeyRef" in entry.get("valueFrom", {}) for entry in container["env"])
    assert "envFrom" not in container


def test_the_grace_period_outlives_the_shutdown_timeout() -> None:
    for seconds in (5, 50, 3600):
        pod = pod_spec({"drain": {"shutdownTimeoutSeconds": seconds}})
        assert pod["terminationGracePeriodSeconds"] == seconds + 10


def test_liveness_fails_only_after_half_a_minute_without_an_answer() -> None:
    liveness = pod_spec({})["containers"][0]["livenessProbe"]
    assert (liveness["failureThreshold"] - 1) * liveness["periodSeconds"] >= 30


def test_a_constraint_of_a_users_keeps_the_selector_that_it_has() -> None:
    constraint = {
        "maxSkew": 1,
        "topologyKey": "rack",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"team": "data"}},
    }
    assert pod_spec({"pod": {"topologySpreadConstraints": [constraint]}})["topologySpreadConstraints"] == [constraint]


@pytest.mark.parametrize(
    ("field", "key"),
    [
        *(("labels", key) for key in POD_LABELS),
        ("labels", "pod-template-hash"),
        ("labels", names.DRAINING_LABEL),
        ("labels", "tinybird-proxy.io/anything"),
        ("annotations", "tinybird-proxy.io/anything"),
        ("annotations", "kubectl.kubernetes.io/default-container"),
        ("annotations", "controller.kubernetes.io/pod-deletion-cost"),
    ],
)
def test_what_belongs_to_the_operator_cannot_be_set_on_pods(field: str, key: str) -> None:
    with pytest.raises(SpecError, match=f"spec.pod.{field}: {key} belongs to the operator"):
        build(desired(changed({}, f"pod.{field}", {key: "x"})))


def test_a_rollout_that_stands_has_no_new_pod_that_counts_and_a_deadline_that_kubernetes_accepts() -> None:
    """Else a paused Deployment whose new pods are as many as wanted, and available, loses its old ones."""
    spec = build(replace(desired(), paused=True))["spec"]
    assert spec["paused"] is True
    assert 600 < spec["minReadySeconds"] < spec["progressDeadlineSeconds"] < 2**31 - 1
    # Go counts these in nanoseconds.
    assert spec["progressDeadlineSeconds"] * 10**9 < 2**63
    assert spec["template"] == build(desired())["spec"]["template"]
