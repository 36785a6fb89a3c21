"""Pods of apps for tests: as the API server gives them, with and without a sidecar."""

from typing import Any, Final

from tinybird_proxy_operator.names import INJECT_LABEL, INJECTED_LABEL, SIDECAR_CONTAINER, SIDECAR_HASH_ANNOTATION

Object = dict[str, Any]
HASH: Final = "0a1b2c3d"
SIDECAR: Final[Object] = {
    "hash": HASH,
    "container": {
        "name": SIDECAR_CONTAINER,
        "image": "proxy:1",
        "restartPolicy": "Always",
        "ports": [
            {"name": "tbp-events", "containerPort": 18000, "protocol": "TCP"},
            {"name": "tbp-admin", "containerPort": 18001, "protocol": "TCP"},
        ],
    },
    "volumes": [],
    "env": [],
    "gracePeriod": "Check",
    "gracePeriodSeconds": 30,
}
RUNNING: Final = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def app_pod(
    name: str = "app-5d4-x1",
    *,
    asks: str | None = "events",
    hash: str | None = None,
    owner: tuple[str, str] | None = ("ReplicaSet", "app-5d4"),
    ready: bool = True,
    ip: str | None = "10.0.0.1",
    admin_port: int = 18001,
    state: Object = RUNNING,
    spec: Object | None = None,
    **metadata: Any,
) -> Object:
    """A running pod of a Deployment. ``hash``: that of its sidecar; None: it has none. ``state``: of the sidecar."""
    labels = {"pod-template-hash": "5d4"} if owner is not None and owner[0] == "ReplicaSet" else {}
    found: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": labels, **metadata},
        "spec": {"containers": [{"name": "app", "image": "app:1"}], **(spec or {})},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }
    if asks is not None:
        labels[INJECT_LABEL] = asks
    if ip is not None:
        found["status"]["podIP"] = ip
    if owner is not None:
        kind, its_name = owner
        found["metadata"]["ownerReferences"] = [{"kind": kind, "name": its_name, "uid": "u", "controller": True}]
    if hash is not None:
        labels[INJECTED_LABEL] = asks or "events"
        found["metadata"]["annotations"] = {SIDECAR_HASH_ANNOTATION: hash}
        container = {"name": SIDECAR_CONTAINER, "ports": [{"name": "tbp-admin", "containerPort": admin_port}]}
        found["spec"]["initContainers"] = [container]
        ready_too = "running" in state
        found["status"]["initContainerStatuses"] = [{"name": SIDECAR_CONTAINER, "ready": ready_too, "state": state}]
    return found
