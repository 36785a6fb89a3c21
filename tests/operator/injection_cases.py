"""Pods, and what becomes of them: one table for sidecars/injection.py and, by real admission, for each way to inject.

See test_sidecars_injection.py and tests/e2e/test_injection_table.py.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jsonpatch

from tinybird_proxy_operator.names import (
    INJECT_LABEL,
    INJECTED_LABEL,
    PREFLIGHT_LABEL,
    PROXY_LABEL,
    SIDECAR_CONTAINER,
    SIDECAR_HASH_ANNOTATION,
)
from tinybird_proxy_operator.sidecars.injection import MIRROR_ANNOTATION, chosen, inject, refusal

Pod = dict[str, Any]

URL: Final = {"name": "TINYBIRD_URL", "value": "http://127.0.0.1:18000"}
TOKEN: Final = {"name": "TINYBIRD_TOKEN", "value": "sidecar"}
TOKEN_VOLUME: Final = {"name": "tinybird-proxy-token", "secret": {"secretName": "tinybird", "optional": True}}
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
    "silent": {**SIDECAR, "hash": "00000003", "env": []},
    "waiting": None,
}
VOLUMES: Final = ["tinybird-proxy-token", "tinybird-proxy-no-account"]


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


@dataclass(frozen=True, kw_only=True)
class Case:
    """``expected``: of ``seen`` afterwards; None: the pod stays as it was. ``refused``: how the sentence begins."""

    name: str
    pod: Pod
    namespace: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, Any] | None = None
    refused: str | None = None


_BOTH: Final = ["TINYBIRD_URL=http://127.0.0.1:18000", "TINYBIRD_TOKEN=sidecar"]
_IN_EVENTS: Final = {INJECT_LABEL: "events"}
_GETS_IT: Final = {
    "init": [SIDECAR_CONTAINER],
    "image": SIDECAR["container"]["image"],
    "resources": SIDECAR["container"]["resources"],
    "env": {"app": _BOTH},
    "volumes": VOLUMES,
    "injected": "events",
    "hash": "1a2b3c4d",
    "grace": 30,
}
_ASKED: Final = SIDECAR["container"]["resources"]["requests"]
_ISTIO: Final = native("istio-proxy", ports=[port(15090)])
_MANY: Final = [container(f"app-{i}", env=[variable(f"V{n}") for n in range(50)]) for i in range(30)]

WHICH: Final = (
    Case(name="a pod asks", pod=pod(), expected=_GETS_IT),
    Case(name="its namespace asks", pod=pod(asks=None), namespace=_IN_EVENTS, expected=_GETS_IT),
    Case(name="nobody asks", pod=pod(asks=None)),
    Case(name="the pod does not want what its namespace wants", pod=pod(asks="false"), namespace=_IN_EVENTS),
    Case(name="an empty label of the pod means none", pod=pod(asks=""), namespace=_IN_EVENTS),
    Case(name="the namespace wants none", pod=pod(asks=None), namespace={INJECT_LABEL: "false"}),
    Case(
        name="the pod wants one where its namespace wants none",
        pod=pod(),
        namespace={INJECT_LABEL: "false"},
        expected=_GETS_IT,
    ),
    Case(
        name="the pod wants another than its namespace",
        pod=pod(asks="no-token"),
        namespace=_IN_EVENTS,
        expected={
            "injected": "no-token",
            "hash": "00000002",
            "env": {"app": _BOTH[:1]},
            "volumes": ["tinybird-proxy-no-account"],
        },
    ),
    Case(name="there is no TinybirdProxy of that name", pod=pod(asks="nowhere")),
    Case(name="the TinybirdProxy has nothing to give yet", pod=pod(asks="waiting")),
    Case(name="a proxy's own pod", pod=pod(asks=None, labels={PROXY_LABEL: "events"}), namespace=_IN_EVENTS),
    Case(
        name="a pod that tries a change of a proxy's",
        pod=pod(asks=None, labels={PREFLIGHT_LABEL: "events"}),
        namespace=_IN_EVENTS,
    ),
    Case(name="a proxy's own pod that is labelled", pod=pod(labels={PROXY_LABEL: "events"})),
    Case(name="a mirror pod", pod=pod(annotations={MIRROR_ANNOTATION: "x"}, nodeName="somewhere")),
    Case(
        name="a pod without a name of its own, as of a Deployment",
        pod=pod(generateName="app-5d4f8-", labels={"app": "a", "pod-template-hash": "5d4f8"}),
        expected=_GETS_IT,
    ),
    Case(
        name="a pod with annotations",
        pod=pod(annotations={"example.com/a": "b"}),
        expected=_GETS_IT,
    ),
)

REFUSED: Final = (
    Case(name="host network", pod=pod(hostNetwork=True), refused="spec.hostNetwork: "),
    Case(name="Windows", pod=pod(os={"name": "windows"}), refused="spec.os.name: "),
    Case(name="resources of the pod", pod=pod(resources={"limits": {"memory": "1Gi"}}), refused="spec.resources: "),
    Case(
        name="a port of the sidecar's",
        pod=pod(container(), container("web", ports=[port(80), port(18001)])),
        refused="container web: port 18001 is the sidecar's",
    ),
    Case(
        name="a port of the sidecar's, of an init container",
        pod=pod(initContainers=[native("mesh", ports=[port(18000, protocol="TCP")])]),
        refused="container mesh: port 18000 is the sidecar's",
    ),
    Case(
        name="a port of the sidecar's, by UDP, is free",
        pod=pod(container(ports=[port(18000, protocol="UDP"), port(8000)])),
        expected=_GETS_IT,
    ),
    Case(
        name="a container of that name",
        pod=pod(container(SIDECAR_CONTAINER)),
        refused=f"the pod has a container {SIDECAR_CONTAINER} of its own",
    ),
    Case(
        name="an init container of that name",
        pod=pod(initContainers=[native(SIDECAR_CONTAINER)]),
        refused=f"the pod has a container {SIDECAR_CONTAINER} of its own",
    ),
    Case(
        name="a container of that name in a pod that says that it was injected",
        pod=pod(container(SIDECAR_CONTAINER), annotations={SIDECAR_HASH_ANNOTATION: "1a2b3c4d"}),
        refused=f"the pod has a container {SIDECAR_CONTAINER} of its own",
    ),
    Case(
        name="a volume of that name",
        pod=pod(volumes=[{"name": "cache", "emptyDir": {}}, {"name": "tinybird-proxy-token", "emptyDir": {}}]),
        refused="volume tinybird-proxy-token: the name is that of a volume of the sidecar's",
    ),
)

PLACE: Final = (
    Case(
        name="before ordinary init containers, which send through it",
        pod=pod(initContainers=[container("migrate"), native("logs")]),
        expected={
            **_GETS_IT,
            "init": [SIDECAR_CONTAINER, "migrate", "logs"],
            "env": {"migrate": _BOTH, "logs": _BOTH, "app": _BOTH},
        },
    ),
    Case(
        name="after a mesh's native sidecar",
        pod=pod(initContainers=[container("istio-init"), _ISTIO, container("migrate")]),
        expected={
            **_GETS_IT,
            "init": ["istio-init", "istio-proxy", SIDECAR_CONTAINER, "migrate"],
            "env": {"istio-init": [], "istio-proxy": [], "migrate": _BOTH, "app": _BOTH},
        },
    ),
    Case(
        name="after that of another mesh",
        pod=pod(initContainers=[native("linkerd-proxy"), container("migrate")]),
        expected={"init": ["linkerd-proxy", SIDECAR_CONTAINER, "migrate"]},
    ),
    Case(
        name="after the last of two",
        pod=pod(initContainers=[native("linkerd-proxy"), container("migrate"), _ISTIO]),
        expected={"init": ["linkerd-proxy", "migrate", "istio-proxy", SIDECAR_CONTAINER]},
    ),
    Case(
        name="a mesh's container that is no native sidecar does not count",
        pod=pod(container(), container("istio-proxy"), initContainers=[container("linkerd-proxy")]),
        expected={"init": [SIDECAR_CONTAINER, "linkerd-proxy"]},
    ),
)

ENV: Final = (
    Case(
        name="in front, so that the pod's own variables may refer to it",
        pod=pod(container(env=[variable("EVENTS", "$(TINYBIRD_URL)/v0/events")])),
        expected={**_GETS_IT, "env": {"app": [*_BOTH, "EVENTS=$(TINYBIRD_URL)/v0/events"]}},
    ),
    Case(
        name="what is set already stays",
        pod=pod(container(env=[variable("A"), variable("TINYBIRD_URL")]), container("other", env=[variable("B")])),
        expected={
            "env": {"app": ["TINYBIRD_TOKEN=sidecar", "A=mine", "TINYBIRD_URL=mine"], "other": [*_BOTH, "B=mine"]}
        },
    ),
    Case(
        name="everything is set already",
        pod=pod(container(env=[variable("TINYBIRD_TOKEN"), variable("TINYBIRD_URL")])),
        expected={"env": {"app": ["TINYBIRD_TOKEN=mine", "TINYBIRD_URL=mine"]}},
    ),
    Case(
        name="a name that is there twice stays twice",
        pod=pod(container(env=[variable("TINYBIRD_URL", "a"), variable("TINYBIRD_URL", "b")])),
        expected={"env": {"app": ["TINYBIRD_TOKEN=sidecar", "TINYBIRD_URL=a", "TINYBIRD_URL=b"]}},
    ),
    Case(
        name="what comes by envFrom cannot be seen",
        pod=pod(container(envFrom=[{"configMapRef": {"name": "settings"}}])),
        expected=_GETS_IT,
    ),
    Case(
        name="a value that comes from a Secret",
        pod=pod(
            container(env=[{"name": "TINYBIRD_TOKEN", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "token"}}}])
        ),
        expected={"env": {"app": [_BOTH[0], "TINYBIRD_TOKEN="]}},
    ),
    Case(name="none is to be set", pod=pod(asks="silent"), expected={"env": {"app": []}, "volumes": VOLUMES}),
    Case(
        name="30 containers with 50 variables each",
        pod=pod(*_MANY),
        expected={"env": {each["name"]: [*_BOTH, *(f"V{n}=mine" for n in range(50))] for each in _MANY}},
    ),
)

RESOURCES: Final = (
    Case(
        name="a pod that is Guaranteed stays it",
        pod=pod(
            container(resources=limited("1", requests={"cpu": "1", "memory": "64Mi"})),
            container("other", resources=limited("2")),
        ),
        expected={**_GETS_IT, "resources": GUARANTEED, "env": {"app": _BOTH, "other": _BOTH}},
    ),
    Case(
        name="equal as quantities",
        pod=pod(container(resources=limited("0.5", "1Gi", requests={"cpu": "500m", "memory": "1024Mi"}))),
        expected={**_GETS_IT, "resources": GUARANTEED},
    ),
    Case(
        name="less is asked for",
        pod=pod(container(resources=limited("1", requests={"cpu": "500m"}))),
        expected=_GETS_IT,
    ),
    Case(name="no limit for CPU", pod=pod(container(resources=limited(None))), expected=_GETS_IT),
    Case(
        name="an init container without limits",
        pod=pod(container(resources=limited("1")), initContainers=[container("migrate")]),
        expected={"resources": SIDECAR["container"]["resources"]},
    ),
    Case(
        name="a limit of nothing counts as none",
        pod=pod(container(resources=limited("0"))),
        expected=_GETS_IT,
    ),
)

GRACE: Final = (
    Case(name="it is raised", pod=pod(asks="raising"), expected={"grace": 60, "hash": "00000001"}),
    Case(
        name="it is raised from little",
        pod=pod(asks="raising", terminationGracePeriodSeconds=5),
        expected={"grace": 60},
    ),
    Case(
        name="more than enough",
        pod=pod(asks="raising", terminationGracePeriodSeconds=90),
        expected={"grace": 90},
    ),
    Case(
        name="it is only to be checked",
        pod=pod(terminationGracePeriodSeconds=5),
        expected={**_GETS_IT, "grace": 5},
    ),
)

AGAIN: Final = (
    Case(name="a pod that was injected", pod=injected(pod()), expected=_GETS_IT),
    Case(
        name="a pod that was injected with another rendering",
        pod=earlier(pod(initContainers=[container("migrate")]), image="registry.example.com/old:1"),
        expected={
            **_GETS_IT,
            "init": [SIDECAR_CONTAINER, "migrate"],
            "env": {"migrate": _BOTH, "app": _BOTH},
        },
    ),
    Case(
        name="a mesh has come in before it",
        pod=moved(injected(pod(initContainers=[container("migrate")])), _ISTIO),
        expected={
            **_GETS_IT,
            "init": ["istio-proxy", SIDECAR_CONTAINER, "migrate"],
            "env": {"istio-proxy": [], "migrate": _BOTH, "app": _BOTH},
        },
    ),
    Case(
        name="a mesh has come in after it",
        pod={
            **injected(pod()),
            "spec": {
                **injected(pod())["spec"],
                "initContainers": [*injected(pod())["spec"]["initContainers"], _ISTIO],
            },
        },
        expected={
            **_GETS_IT,
            "init": ["istio-proxy", SIDECAR_CONTAINER],
            "env": {"istio-proxy": [], "app": _BOTH},
        },
    ),
    Case(
        name="a mesh has come in after it, and one before",
        pod=moved(
            {
                **injected(pod()),
                "spec": {
                    **injected(pod())["spec"],
                    "initContainers": [*injected(pod())["spec"]["initContainers"], _ISTIO],
                },
            },
            native("linkerd-proxy"),
        ),
        expected={
            **_GETS_IT,
            "init": ["linkerd-proxy", "istio-proxy", SIDECAR_CONTAINER],
            "env": {"linkerd-proxy": [], "istio-proxy": [], "app": _BOTH},
        },
    ),
    Case(
        name="a mesh has come in after it, and what a LimitRange gave it stays",
        pod={
            **injected(pod()),
            "spec": {
                **injected(pod())["spec"],
                "initContainers": [
                    {
                        **injected(pod())["spec"]["initContainers"][0],
                        "resources": limited("1", "128Mi", requests=_ASKED),
                    },
                    _ISTIO,
                ],
            },
        },
        expected={
            **_GETS_IT,
            "init": ["istio-proxy", SIDECAR_CONTAINER],
            "resources": limited("1", "128Mi", requests=_ASKED),
            "env": {"istio-proxy": [], "app": _BOTH},
        },
    ),
    Case(
        name="it is Guaranteed now",
        pod={
            **injected(pod()),
            "spec": {**injected(pod())["spec"], "containers": [container(resources=limited("1"))]},
        },
        expected={**_GETS_IT, "resources": GUARANTEED},
    ),
    Case(
        name="it wants that of another TinybirdProxy now",
        pod={
            **injected(pod()),
            "metadata": {**injected(pod())["metadata"], "labels": {INJECT_LABEL: "raising", INJECTED_LABEL: "events"}},
        },
        expected={**_GETS_IT, "injected": "raising", "hash": "00000001", "grace": 60},
    ),
    Case(
        name="its container was taken out",
        pod={
            **injected(pod()),
            "spec": {
                key: value for key, value in injected(pod())["spec"].items() if key not in ("initContainers", "volumes")
            },
        },
        expected=_GETS_IT,
    ),
    Case(
        name="a copy of its metadata alone, with a volume of its own in between",
        pod=earlier(pod(volumes=[{"name": "cache", "emptyDir": {}}])),
        expected={**_GETS_IT, "volumes": ["cache", *VOLUMES]},
    ),
)

CASES: Final = (*WHICH, *REFUSED, *PLACE, *ENV, *RESOURCES, *GRACE, *AGAIN)
