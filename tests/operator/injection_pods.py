"""Pods and sidecars for the tests of injection: how they are made, and what of them counts."""

import copy
from collections.abc import Mapping
from typing import Any, Final

import jsonpatch

from tinybird_proxy_operator.names import INJECT_LABEL, INJECTED_LABEL, SIDECAR_CONTAINER, SIDECAR_HASH_ANNOTATION
from tinybird_proxy_operator.sidecars.injection import chosen, inject, refusal

Pod = dict[str, Any]

URL: Final = {"name": "TINYBIRD_URL", "value": "http://127.0.0.1:18000"}
TOKEN: Final = {"name": "TINYBIRD_TOKEN", "value": "sidecar"}
TOKEN_VOLUME: Final = {"name": "tinybird-proxy-token", "secret": {"secretName": "tinybird", "optional": True}}
HEADERS_VOLUME: Final = {"name": "tinybird-proxy-otlp-headers", "secret": {"secretName": "collector", "optional": True}}
NO_ACCOUNT_VOLUME: Final = {"name": "tinybird-proxy-no-account", "emptyDir": {}}
GUARANTEED: Final = {
    "requests": {"cpu": "200m", "memory": "128Mi"},
    "limits": {"cpu": "200m", "memory": "128Mi"},
}
SIDECAR: Final[dict[str, Any]] = {
    "hash": "1a2b3c4d",
    "container": {
        "name": SIDECAR_CONTAINER,
        "image": "ghcr.io/tinybird-proxy/tinybird-proxy:0.1.0",
        "imagePullPolicy": "IfNotPresent",
        "restartPolicy": "Always",
        "env": [
            {"name": "HOST", "value": "127.0.0.1"},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
        ],
        "ports": [
            {"name": "tbp-events", "containerPort": 18000, "protocol": "TCP"},
            {"name": "tbp-admin", "containerPort": 18001, "protocol": "TCP"},
        ],
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "startupProbe": {"httpGet": {"path": "/livez", "port": "tbp-admin"}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"path": "/livez", "port": "tbp-admin"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "tinybird-proxy-token", "mountPath": "/etc/tinybird-proxy/tinybird", "readOnly": True},
            {
                "name": "tinybird-proxy-no-account",
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                "readOnly": True,
            },
        ],
    },
    "guaranteedResources": GUARANTEED,
    "volumes": [TOKEN_VOLUME, NO_ACCOUNT_VOLUME],
    "env": [URL, TOKEN],
    "gracePeriod": "Check",
    "gracePeriodSeconds": 30,
}
# Each TinybirdProxy of the namespace, by name; None: it has no status.sidecar.
SIDECARS: Final[Mapping[str, dict[str, Any] | None]] = {
    "events": SIDECAR,
    "raising": {**SIDECAR, "hash": "00000001", "gracePeriod": "Raise", "gracePeriodSeconds": 60},
    "no-token": {
        **SIDECAR,
        "hash": "00000002",
        "container": {**SIDECAR["container"], "volumeMounts": SIDECAR["container"]["volumeMounts"][1:]},
        "volumes": [NO_ACCOUNT_VOLUME],
        "env": [URL],
    },
    "traced": {
        **SIDECAR,
        "hash": "00000004",
        "container": {
            **SIDECAR["container"],
            "volumeMounts": [
                *SIDECAR["container"]["volumeMounts"],
                {"name": "tinybird-proxy-otlp-headers", "mountPath": "/etc/tinybird-proxy/otlp", "readOnly": True},
            ],
        },
        "volumes": [TOKEN_VOLUME, NO_ACCOUNT_VOLUME, HEADERS_VOLUME],
    },
    "silent": {**SIDECAR, "hash": "00000003", "env": []},
    "waiting": None,
}


def container(name: str = "app", **more: Any) -> dict[str, Any]:
    return {"name": name, "image": "registry.example.com/app:1", **more}


def native(name: str, **more: Any) -> dict[str, Any]:
    """A native sidecar: it starts before what follows it, and ends after all."""
    return container(name, restartPolicy="Always", **more)


def limited(cpu: str | None, memory: str = "64Mi", *, requests: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Resources with these limits."""
    limits = {"memory": memory} if cpu is None else {"cpu": cpu, "memory": memory}
    return {"limits": limits} if requests is None else {"limits": limits, "requests": dict(requests)}


def port(number: int, **more: Any) -> dict[str, Any]:
    return {"containerPort": number, **more}


def variable(name: str, value: str = "mine") -> dict[str, str]:
    return {"name": name, "value": value}


def pod(*containers: dict[str, Any], asks: str | None = "events", **more: Any) -> Pod:
    """A pod that asks for a sidecar by a label of its own, or does not. ``more``: of its spec, or metadata."""
    metadata: dict[str, Any] = {"name": "app"}
    metadata |= {key: more.pop(key) for key in ("labels", "annotations", "generateName") if key in more}
    if "generateName" in metadata:
        del metadata["name"]
    if asks is not None:
        metadata["labels"] = {**metadata.get("labels", {}), INJECT_LABEL: asks}
    spec = {"containers": list(containers) or [container()], "automountServiceAccountToken": False, **more}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def patched(given: Pod, operations: list[dict[str, Any]]) -> Pod:
    """The pod with a JSON patch applied."""
    result: Pod = jsonpatch.apply_patch(given, operations)
    return result


def injected(given: Pod, namespace: Mapping[str, str] | None = None) -> Pod:
    """What sidecars/injection.py makes of it, in a namespace with these labels and all of ``SIDECARS``."""
    name = chosen(given["metadata"].get("labels"), namespace)
    sidecar = None if name is None else SIDECARS.get(name)
    return copy.deepcopy(given) if name is None or sidecar is None else patched(given, inject(given, name, sidecar))


def why_not(given: Pod, namespace: Mapping[str, str] | None = None) -> str | None:
    """What sidecars/injection.py says of a pod that asks and cannot have it."""
    name = chosen(given["metadata"].get("labels"), namespace)
    sidecar = None if name is None else SIDECARS.get(name)
    return None if sidecar is None else refusal(given, sidecar)


def earlier(given: Pod, hash_: str = "0ddba110", **changes: Any) -> Pod:
    """The pod as it was injected with another rendering, ``changes`` being of its container."""
    before = injected(given)
    before["metadata"]["annotations"][SIDECAR_HASH_ANNOTATION] = hash_
    for each in before["spec"]["initContainers"]:
        if each["name"] == SIDECAR_CONTAINER:
            each.update(changes)
    return before


def moved(given: Pod, first: dict[str, Any]) -> Pod:
    """The pod after somebody has put another init container before all others."""
    result = copy.deepcopy(given)
    result["spec"]["initContainers"].insert(0, first)
    return result


def seen(given: Pod) -> dict[str, Any]:
    """What injection may change of a pod."""
    metadata, spec = given["metadata"], given["spec"]
    init = spec.get("initContainers") or []
    [ours] = [each for each in init if each["name"] == SIDECAR_CONTAINER] or [{}]
    every = [*init, *spec["containers"]]
    return {
        "init": [each["name"] for each in init],
        "image": ours.get("image"),
        "resources": ours.get("resources"),
        "env": {
            each["name"]: [f"{entry['name']}={entry.get('value', '')}" for entry in each.get("env") or []]
            for each in every
            if each is not ours
        },
        "volumes": [each["name"] for each in spec.get("volumes") or [] if not each["name"].startswith("kube-api")],
        "injected": (metadata.get("labels") or {}).get(INJECTED_LABEL),
        "hash": (metadata.get("annotations") or {}).get(SIDECAR_HASH_ANNOTATION),
        "grace": spec.get("terminationGracePeriodSeconds", 30),
    }
