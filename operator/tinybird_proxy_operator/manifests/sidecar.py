"""What is put into an app's pod in mode Sidecar, as ``status.sidecar`` holds it: rendered once, inserted as it is.

Webhook and MutatingAdmissionPolicy decide nothing of this, for the latter can neither hash nor look anything up.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests import container, environment, pod_resources
from tinybird_proxy_operator.manifests.desired import Desired
from tinybird_proxy_operator.spec import GRACE_MARGIN_S, ProxySpec

EVENTS_PORT_NAME: Final = "tbp-events"
ADMIN_PORT_NAME: Final = "tbp-admin"
TOKEN_VOLUME: Final = f"{names.APP}-token"
NO_ACCOUNT_VOLUME: Final = f"{names.APP}-no-account"
HEADERS_VOLUME: Final = f"{names.APP}-otlp-headers"
_ACCOUNT_DIR: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
# What clients that cannot go without a token get: the sidecar sends its own.
PLACEHOLDER_TOKEN: Final = "sidecar"  # noqa: S105


def build(desired: Desired) -> dict[str, Any]:
    """``status.sidecar``. The same resource, the same hash. Raises ``SpecError``."""
    spec = desired.proxy.spec
    rendered = {
        "container": _container(desired),
        "guaranteedResources": pod_resources.guaranteed_resources(spec),
        "volumes": _volumes(spec),
        "env": _app_env(spec),
        "gracePeriod": spec.sidecar.grace_period,
        "gracePeriodSeconds": spec.drain.shutdown_timeout_seconds + GRACE_MARGIN_S,
    }
    canonical = json.dumps(rendered, sort_keys=True, separators=(",", ":"))
    return {"hash": hashlib.sha256(canonical.encode()).hexdigest()[:8], **rendered}


def secrets(rendered: Mapping[str, Any]) -> list[str]:
    """The names of those that it brings into pods."""
    return [volume["secret"]["secretName"] for volume in rendered.get("volumes", ()) if "secret" in volume]


def _container(desired: Desired) -> dict[str, Any]:
    spec = desired.proxy.spec
    mounts = [{"name": NO_ACCOUNT_VOLUME, "mountPath": _ACCOUNT_DIR, "readOnly": True}]
    if environment.has_own_token(spec):
        mounts.append({"name": TOKEN_VOLUME, "mountPath": names.TOKEN_DIR, "readOnly": True})
    if spec.telemetry.otlp_headers_secret_ref is not None:
        mounts.append({"name": HEADERS_VOLUME, "mountPath": names.OTLP_DIR, "readOnly": True})
    return {
        "name": names.SIDECAR_CONTAINER,
        **container.image(desired),
        "restartPolicy": "Always",  # a native sidecar: up before the app's own init containers, down after the app
        "env": environment.container_env(desired),
        "ports": container.ports(spec, EVENTS_PORT_NAME, ADMIN_PORT_NAME),
        "resources": pod_resources.resources(spec),
        "securityContext": {
            **container.SECURITY_CONTEXT,
            "runAsNonRoot": True,
            "runAsUser": container.USER_ID,
            "runAsGroup": container.USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        # The app's init containers begin when it has answered. No readiness probe: it would be the pod's readiness,
        # and the app must not leave its Services because Tinybird does not answer.
        "startupProbe": container.startup_probe(ADMIN_PORT_NAME),
        "livenessProbe": container.liveness_probe(ADMIN_PORT_NAME),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": container.TERMINATION_MESSAGE_POLICY,
        "volumeMounts": mounts,
    }


def _volumes(spec: ProxySpec) -> list[dict[str, Any]]:
    # It hides the account of the app's pod, which is mounted into every container that has nothing in its place.
    volumes: list[dict[str, Any]] = [{"name": NO_ACCOUNT_VOLUME, "emptyDir": {"sizeLimit": "1Mi"}}]
    if (token := spec.tinybird.token_secret_ref) is not None:
        secret = {
            "secretName": token.name,
            # There is no fsGroup of ours in somebody's pod. No other container of it mounts this.
            "defaultMode": 0o444,
            "optional": True,  # else the app would never start without it
            "items": [{"key": token.key, "path": environment.TOKEN_FILE_NAME}],
        }
        volumes.append({"name": TOKEN_VOLUME, "secret": secret})
    if (headers := spec.telemetry.otlp_headers_secret_ref) is not None:
        volumes.append({"name": HEADERS_VOLUME, "secret": container.headers_source(headers, 0o444)})
    return volumes


def _app_env(spec: ProxySpec) -> list[dict[str, str]]:
    if spec.sidecar.set_url == "Disabled":
        return []
    env = [{"name": "TINYBIRD_URL", "value": f"http://{environment.LOOPBACK}:{environment.events_port(spec)}"}]
    if environment.has_own_token(spec):
        env.append({"name": "TINYBIRD_TOKEN", "value": PLACEHOLDER_TOKEN})
    return env
