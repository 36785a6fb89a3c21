"""Pods, and what becomes of them: one table for sidecars/injection.py and, by real admission, for each way to inject.

See test_sidecars_injection.py and tests/e2e/test_injection_table.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.operator.injection_pods import (
    GUARANTEED,
    HEADERS_VOLUME,
    SIDECAR,
    Pod,
    container,
    earlier,
    injected,
    limited,
    moved,
    native,
    pod,
    port,
    variable,
)

from tinybird_proxy_operator.names import (
    INJECT_LABEL,
    INJECTED_LABEL,
    PREFLIGHT_LABEL,
    PROXY_LABEL,
    SIDECAR_CONTAINER,
    SIDECAR_HASH_ANNOTATION,
)
from tinybird_proxy_operator.sidecars.injection import MIRROR_ANNOTATION

VOLUMES: Final = [each["name"] for each in SIDECAR["volumes"]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """``expected``: of ``seen`` afterwards; None: the pod stays as it was. ``refused``: how the sentence begins."""

    name: str
    pod: Pod
    namespace: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, Any] | None = None
    refused: str | None = None


def altered(given: Pod, **spec: Any) -> Pod:
    """The pod with other fields in its spec."""
    return {**given, "spec": {**given["spec"], **spec}}


def asking_for(name: str, given: Pod) -> Pod:
    """The pod, injected before, asking for the sidecar of that TinybirdProxy now."""
    labels = {**given["metadata"]["labels"], INJECT_LABEL: name}
    return {**given, "metadata": {**given["metadata"], "labels": labels}}


_GIVEN: Final = injected(pod())
_OURS: Final = _GIVEN["spec"]["initContainers"]
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
    Case(
        name="Windows by its nodes",
        pod=pod(nodeSelector={"kubernetes.io/os": "windows"}),
        refused="spec.nodeSelector: ",
    ),
    Case(name="Linux by its nodes", pod=pod(nodeSelector={"kubernetes.io/os": "linux"}), expected=_GETS_IT),
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

TRACED: Final = (
    Case(
        name="headers for a collector",
        pod=pod(asks="traced"),
        expected={**_GETS_IT, "injected": "traced", "hash": "00000004", "volumes": [*VOLUMES, HEADERS_VOLUME["name"]]},
    ),
    Case(
        name="a volume of that name where there are headers",
        pod=pod(asks="traced", volumes=[{"name": "tinybird-proxy-otlp-headers", "emptyDir": {}}]),
        refused="volume tinybird-proxy-otlp-headers: the name is that of a volume of the sidecar's",
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
        expected={"env": {"app": ["A=mine", "TINYBIRD_URL=mine"], "other": [*_BOTH, "B=mine"]}},
    ),
    Case(
        name="everything is set already",
        pod=pod(container(env=[variable("TINYBIRD_TOKEN"), variable("TINYBIRD_URL")])),
        expected={"env": {"app": ["TINYBIRD_TOKEN=mine", "TINYBIRD_URL=mine"]}},
    ),
    Case(
        name="a name that is there twice stays twice",
        pod=pod(container(env=[variable("TINYBIRD_URL", "a"), variable("TINYBIRD_URL", "b")])),
        expected={"env": {"app": ["TINYBIRD_URL=a", "TINYBIRD_URL=b"]}},
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
    Case(name="a pod that was injected", pod=_GIVEN, expected=_GETS_IT),
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
        name="a pod that was injected with other ports: what led to the sidecar there follows it",
        pod=earlier(
            pod(
                container(env=[variable("A"), variable("TINYBIRD_URL", "http://127.0.0.1:17000")]),
                container("elsewhere", env=[variable("TINYBIRD_URL", "http://127.0.0.1:8000")]),
                initContainers=[container("migrate", env=[variable("TINYBIRD_URL", "http://127.0.0.1:17000")])],
            ),
            ports=[port(17000, name="tbp-events"), port(17001, name="tbp-admin")],
        ),
        expected={
            **_GETS_IT,
            "init": [SIDECAR_CONTAINER, "migrate"],
            "env": {
                "migrate": _BOTH[:1],
                "app": ["A=mine", _BOTH[0]],
                "elsewhere": ["TINYBIRD_URL=http://127.0.0.1:8000"],
            },
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
        pod=altered(_GIVEN, initContainers=[*_OURS, _ISTIO]),
        expected={
            **_GETS_IT,
            "init": ["istio-proxy", SIDECAR_CONTAINER],
            "env": {"istio-proxy": [], "app": _BOTH},
        },
    ),
    Case(
        name="a mesh has come in after it, and one before",
        pod=altered(_GIVEN, initContainers=[native("linkerd-proxy"), *_OURS, _ISTIO]),
        expected={
            **_GETS_IT,
            "init": ["linkerd-proxy", "istio-proxy", SIDECAR_CONTAINER],
            "env": {"linkerd-proxy": [], "istio-proxy": [], "app": _BOTH},
        },
    ),
    Case(
        name="a mesh has come in after it, and what a LimitRange gave it stays",
        pod=altered(_GIVEN, initContainers=[{**_OURS[0], "resources": limited("1", "128Mi", requests=_ASKED)}, _ISTIO]),
        expected={
            **_GETS_IT,
            "init": ["istio-proxy", SIDECAR_CONTAINER],
            "resources": limited("1", "128Mi", requests=_ASKED),
            "env": {"istio-proxy": [], "app": _BOTH},
        },
    ),
    Case(
        name="it is Guaranteed now",
        pod=altered(_GIVEN, containers=[container(resources=limited("1"))]),
        expected={**_GETS_IT, "resources": GUARANTEED},
    ),
    Case(
        name="it wants that of another TinybirdProxy now",
        pod={
            **_GIVEN,
            "metadata": {**_GIVEN["metadata"], "labels": {INJECT_LABEL: "raising", INJECTED_LABEL: "events"}},
        },
        expected={**_GETS_IT, "injected": "raising", "hash": "00000001", "grace": 60},
    ),
    Case(
        name="its container was taken out",
        pod=altered(_GIVEN, initContainers=[], volumes=[]),
        expected=_GETS_IT,
    ),
    Case(
        name="it has headers for a collector now",
        pod=asking_for("traced", _GIVEN),
        expected={**_GETS_IT, "injected": "traced", "hash": "00000004", "volumes": [*VOLUMES, HEADERS_VOLUME["name"]]},
    ),
    Case(
        name="it has no headers for a collector any more",
        pod=asking_for("events", injected(pod(asks="traced", volumes=[{"name": "cache", "emptyDir": {}}]))),
        expected={**_GETS_IT, "volumes": ["cache", *VOLUMES]},
    ),
    Case(
        name="it has neither a token nor headers any more",
        pod=asking_for("no-token", injected(pod(asks="traced"))),
        expected={
            **{"injected": "no-token", "hash": "00000002"},
            "volumes": ["tinybird-proxy-no-account"],
        },
    ),
    Case(
        name="a copy of its metadata alone, with a volume of its own in between",
        pod=earlier(pod(volumes=[{"name": "cache", "emptyDir": {}}])),
        expected={**_GETS_IT, "volumes": ["cache", *VOLUMES]},
    ),
)

CASES: Final = (*WHICH, *REFUSED, *TRACED, *PLACE, *ENV, *RESOURCES, *GRACE, *AGAIN)
