"""What is put into apps' pods: a golden one compared whole, then the rules behind it."""

from typing import Any, Final

import pytest
from tests.operator.resources import IMAGE, OWN_TOKEN, desired

from tinybird_proxy.config import from_env
from tinybird_proxy_operator.manifests.sidecar import build
from tinybird_proxy_operator.names import SIDECAR_VOLUMES

SIDECAR: Final[dict[str, Any]] = {"mode": "Sidecar", **OWN_TOKEN}


def rendered(**spec: Any) -> dict[str, Any]:
    return build(desired({**SIDECAR, **spec}))


def container(**spec: Any) -> dict[str, Any]:
    found: dict[str, Any] = rendered(**spec)["container"]
    return found


def env(**spec: Any) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(**spec)["env"] if "value" in entry}


def test_a_sidecar_with_its_defaults() -> None:
    found = rendered()
    assert found["hash"] == build(desired(SIDECAR))["hash"]
    assert len(found["hash"]) == 8
    probe = {"httpGet": {"path": "/livez", "port": "tbp-admin", "scheme": "HTTP"}}
    assert {key: value for key, value in found.items() if key != "hash"} == {
        "container": {
            "name": "tinybird-proxy",
            "image": IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "restartPolicy": "Always",
            "env": [
                {"name": "PORT", "value": "18000"},
                {"name": "HOST", "value": "127.0.0.1"},
                {"name": "ADMIN_PORT", "value": "18001"},
                {"name": "ADMIN_HOST", "value": "::"},
                {"name": "TINYBIRD_URL", "value": "https://api.tinybird.co"},
                {"name": "TINYBIRD_TOKEN_FILE", "value": "/etc/tinybird-proxy/tinybird/token"},
                {"name": "BATCH_SIZE", "value": "100000"},
                {"name": "BATCH_BYTES", "value": "10000000"},
                {"name": "FLUSH_INTERVAL", "value": "1000ms"},
                {"name": "BUFFER_SIZE", "value": "100000"},
                {"name": "BUFFER_BYTES", "value": "67108864"},
                {"name": "DRAIN_DELAY", "value": "0s"},
                {"name": "SHUTDOWN_TIMEOUT", "value": "20s"},
                {"name": "TOKEN_FILE_WAIT", "value": "true"},
                {"name": "RECEIVE_BYTES", "value": "16MB"},
                {"name": "DEAD_LETTER_BYTES", "value": "16MB"},
                {"name": "MAX_INFLATED_BYTES", "value": "16MB"},
                {"name": "NODE_ID", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
            ],
            "ports": [
                {"name": "tbp-events", "containerPort": 18000, "protocol": "TCP"},
                {"name": "tbp-admin", "containerPort": 18001, "protocol": "TCP"},
            ],
            "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "startupProbe": {**probe, "periodSeconds": 1, "failureThreshold": 60, "timeoutSeconds": 1},
            "livenessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 4, "timeoutSeconds": 5},
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "volumeMounts": [
                {
                    "name": "tinybird-proxy-no-account",
                    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                    "readOnly": True,
                },
                {"name": "tinybird-proxy-token", "mountPath": "/etc/tinybird-proxy/tinybird", "readOnly": True},
            ],
        },
        "guaranteedResources": {
            "requests": {"cpu": "250m", "memory": "256Mi"},
            "limits": {"cpu": "250m", "memory": "256Mi"},
        },
        "volumes": [
            {"name": "tinybird-proxy-no-account", "emptyDir": {"sizeLimit": "1Mi"}},
            {
                "name": "tinybird-proxy-token",
                "secret": {
                    "secretName": "tinybird",
                    "defaultMode": 0o444,
                    "optional": True,
                    "items": [{"key": "token", "path": "token"}],
                },
            },
        ],
        "env": [
            {"name": "TINYBIRD_URL", "value": "http://127.0.0.1:18000"},
            {"name": "TINYBIRD_TOKEN", "value": "sidecar"},
        ],
        "gracePeriod": "Check",
        "gracePeriodSeconds": 30,
    }


@pytest.mark.parametrize("given", [{}, {"tinybird": {}}, {"sidecar": {"ports": {"events": 1999, "admin": 2000}}}])
def test_the_proxy_starts_with_what_it_is_given(given: dict[str, Any]) -> None:
    config = from_env(env(**given))
    assert config.host == "127.0.0.1"
    assert config.token_file_wait == config.own_token_mode
    assert not config.checks_clients


def test_without_a_token_of_its_own_it_mounts_no_secret_and_the_app_keeps_its_token() -> None:
    found = rendered(tinybird={})
    assert [volume["name"] for volume in found["volumes"]] == ["tinybird-proxy-no-account"]
    assert [entry["name"] for entry in found["env"]] == ["TINYBIRD_URL"]
    assert "TOKEN_FILE_WAIT" not in env(tinybird={})


def test_headers_for_a_collector_come_from_a_secret_that_the_app_does_not_wait_for() -> None:
    found = rendered(telemetry={"otlpEndpoint": "http://c:4318", "otlpHeadersSecretRef": {"name": "collector"}})
    assert {volume["name"] for volume in found["volumes"]} == set(SIDECAR_VOLUMES)
    assert found["volumes"][-1] == {
        "name": "tinybird-proxy-otlp-headers",
        "secret": {
            "secretName": "collector",
            "defaultMode": 0o444,
            "optional": True,
            "items": [{"key": "headers", "path": "headers"}],
        },
    }
    assert found["container"]["volumeMounts"][-1] == {
        "name": "tinybird-proxy-otlp-headers",
        "mountPath": "/etc/tinybird-proxy/otlp",
        "readOnly": True,
    }
    assert {"name": "OTEL_EXPORTER_OTLP_HEADERS_FILE", "value": "/etc/tinybird-proxy/otlp/headers"} in found[
        "container"
    ]["env"]
    assert [entry["name"] for entry in found["env"]] == ["TINYBIRD_URL", "TINYBIRD_TOKEN"]


def test_other_ports_are_everywhere_the_same() -> None:
    found = rendered(sidecar={"ports": {"events": 1999, "admin": 2000}})
    assert [port["containerPort"] for port in found["container"]["ports"]] == [1999, 2000]
    assert found["env"][0]["value"] == "http://127.0.0.1:1999"
    assert {"PORT": "1999", "ADMIN_PORT": "2000"}.items() <= env(
        sidecar={"ports": {"events": 1999, "admin": 2000}}
    ).items()


def test_the_app_gets_nothing_if_it_is_not_to() -> None:
    assert rendered(sidecar={"setURL": "Disabled"})["env"] == []


def test_the_grace_period_is_what_it_may_take_and_a_margin() -> None:
    found = rendered(drain={"shutdownTimeoutSeconds": 50}, sidecar={"gracePeriod": "Raise"})
    assert (found["gracePeriod"], found["gracePeriodSeconds"]) == ("Raise", 60)


def test_what_users_set_wins_over_the_small_pools() -> None:
    given = env(pod={"env": [{"name": "RECEIVE_BYTES", "value": "64MB"}]})
    assert given["RECEIVE_BYTES"] == "64MB"
    # And what they set needs memory.
    limits = container(pod={"env": [{"name": "RECEIVE_BYTES", "value": "64MB"}]})["resources"]["limits"]
    assert limits == {"memory": str(256 * 2**20 + 48_000_000)}


def test_larger_bodies_need_memory_twice() -> None:
    limits = container(pod={"env": [{"name": "MAX_INFLATED_BYTES", "value": "64MB"}]})["resources"]["limits"]
    assert limits == {"memory": str(256 * 2**20 + 2 * 48_000_000)}


def test_a_small_limit_is_requested_in_full() -> None:
    found = container(pod={"resources": {"limits": {"memory": "100Mi"}}}, buffer={"maxSize": "1Mi"})["resources"]
    assert found["requests"]["memory"] == "65Mi"
    found = container(pod={"resources": {"limits": {"memory": "60Mi"}}}, buffer={"maxSize": "1Mi"})["resources"]
    assert found["requests"]["memory"] == "60Mi"


def test_in_a_guaranteed_pod_what_is_asked_for_is_the_limit() -> None:
    asked = {"requests": {"cpu": "2", "memory": "200Mi"}, "limits": {"memory": "1Gi"}}
    found = rendered(pod={"resources": asked})["guaranteedResources"]
    assert found == {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}}


@pytest.mark.parametrize(
    "change",
    [
        {"image": "ghcr.io/tinybird-proxy/tinybird-proxy:9"},
        {"tinybird": {"url": "https://api.us-east.tinybird.co", **OWN_TOKEN["tinybird"]}},
        {"tinybird": {"tokenSecretRef": {"name": "other"}}},
        {"sidecar": {"gracePeriod": "Raise"}},
        {"sidecar": {"setURL": "Disabled"}},
        {"drain": {"shutdownTimeoutSeconds": 30}},
        {"pod": {"resources": {"requests": {"cpu": "1"}}}},
    ],
    ids=str,
)
def test_every_change_of_what_a_pod_gets_is_another_hash(change: dict[str, Any]) -> None:
    assert rendered(**change)["hash"] != rendered()["hash"]


@pytest.mark.parametrize("change", [{"sidecar": {"rollout": "Evict"}}, {"preflight": "Disabled"}], ids=str)
def test_a_change_of_how_it_is_looked_after_is_not(change: dict[str, Any]) -> None:
    assert rendered(**change)["hash"] == rendered()["hash"]
