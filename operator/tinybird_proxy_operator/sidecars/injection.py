"""Whether a pod gets a sidecar, and what is changed in it then. Pure.

The chart's templates/injection/_cel.tpl says the same in CEL; tests/operator/injection_cases.py is the table for both.
A ``sidecar`` is what ``status.sidecar`` of a TinybirdProxy holds: the operator renders it, here it is only put in.

An API server may ask more than once, after others have changed the pod, and pods are copied with what was put into
them. What is there already is known by the annotation with its hash: the same hash, and it stays, with the defaults
that the cluster has filled in since; another, and it is taken out first.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from tinybird_proxy_operator.names import (
    INJECT_LABEL,
    INJECT_OFF,
    INJECTED_LABEL,
    PREFLIGHT_LABEL,
    PROXY_LABEL,
    SIDECAR_CONTAINER,
    SIDECAR_HASH_ANNOTATION,
    SIDECAR_VOLUMES,
)

# What a cluster needs to come up never waits for injection, whatever its labels; nor does the operator's own namespace.
NEVER_IN: Final = ("kube-system", "kube-node-lease", "kube-public")
# On what a kubelet shows of its own static pods: the API server cannot change them.
MIRROR_ANNOTATION: Final = "kubernetes.io/config.mirror"
# Of every node; most pods for Windows say so by this alone.
OS_LABEL: Final = "kubernetes.io/os"
# Native sidecars of meshes: ours sends through them until its last row, so they start before it and end after it.
MESHES: Final = ("istio-proxy", "linkerd-proxy")
RAISE: Final = "Raise"
# What Kubernetes gives a pod that does not say.
DEFAULT_GRACE_S: Final = 30
_QUANTITY: Final = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)([numkMGTPE]|[KMGTPE]i)?")
_POWERS: Final = {
    **{"n": Decimal(10) ** -9, "u": Decimal(10) ** -6, "m": Decimal(10) ** -3},
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}

Pod = Mapping[str, Any]
Sidecar = Mapping[str, Any]
# Of a JSON patch (RFC 6902): op, path, and value or from.
Operation = dict[str, Any]


def chosen(labels: Mapping[str, str] | None, namespace_labels: Mapping[str, str] | None) -> str | None:
    """Which TinybirdProxy of its namespace a pod asks for a sidecar of; None: it asks for none.

    The pod's own label decides, also to have none. Pods that the operator makes never ask.
    """
    own, shared = labels or {}, namespace_labels or {}
    if PROXY_LABEL in own or PREFLIGHT_LABEL in own:
        return None
    name = own.get(INJECT_LABEL, shared.get(INJECT_LABEL, ""))
    return name if name not in ("", INJECT_OFF) else None


def is_mirror(pod: Pod) -> bool:
    """Whether it is only a kubelet's picture of a static pod, which nobody can change."""
    return MIRROR_ANNOTATION in _annotations(pod)


def injected_hash(pod: Pod) -> str | None:
    """The hash of the sidecar that the pod was given; None: it was given none."""
    found: str | None = _annotations(pod).get(SIDECAR_HASH_ANNOTATION)
    return found


def injected_name(pod: Pod) -> str | None:
    """Of which TinybirdProxy the pod has a sidecar; None: of none."""
    if injected_hash(pod) is None or not any(_is_ours(each) for each in _list(pod["spec"], "initContainers")):
        return None
    found: str | None = (pod["metadata"].get("labels") or {}).get(INJECTED_LABEL)
    return found


def refusal(pod: Pod, sidecar: Sidecar) -> str | None:
    """Why this pod cannot have that sidecar: a sentence for its author. None: it can."""
    spec = pod["spec"]
    if spec.get("hostNetwork"):
        return (
            "spec.hostNetwork: the sidecar would listen on the node's own ports;"
            " let the pod send to a TinybirdProxy with mode Deployment"
        )
    windows = (("os.name", spec.get("os"), "name"), ("nodeSelector", spec.get("nodeSelector"), OS_LABEL))
    for field, holder, key in windows:
        if (holder or {}).get(key) == "windows":
            return f"spec.{field}: the sidecar is for Linux; let the pod send to a TinybirdProxy with mode Deployment"
    if any((spec.get("resources") or {}).get(kind) for kind in ("limits", "requests")):
        return (
            "spec.resources: the resources of the whole pod leave no room that is known for the sidecar;"
            " set those of each container instead"
        )
    return next(_in_its_way(pod, sidecar), None)


def inject(pod: Pod, name: str, sidecar: Sidecar) -> list[Operation]:
    """What gives the pod the sidecar of the TinybirdProxy ``name``: the operations of a JSON patch.

    None if it has it as it should be, if it cannot have it (see ``refusal``), or if it is a mirror pod.
    """
    if is_mirror(pod) or refusal(pod, sidecar) is not None:
        return []
    metadata = pod["metadata"]
    return [
        *_container_operations(pod, sidecar),
        *_env_operations(pod, sidecar),
        *_volume_operations(pod, sidecar),
        *_entry_operations(metadata, "labels", INJECTED_LABEL, name),
        *_entry_operations(metadata, "annotations", SIDECAR_HASH_ANNOTATION, sidecar["hash"]),
        *_grace_operations(pod["spec"], sidecar),
    ]


def container_of(pod: Pod, sidecar: Sidecar) -> Mapping[str, Any]:
    """The container as this pod gets it: with limits like its requests in a pod that is Guaranteed without it."""
    container: Mapping[str, Any] = sidecar["container"]
    if "guaranteedResources" in sidecar and is_guaranteed(pod["spec"]):
        return {**container, "resources": sidecar["guaranteedResources"]}
    return container


def is_guaranteed(spec: Mapping[str, Any]) -> bool:
    """Whether each container but ours has limits for CPU and memory, and requests that are none or just as much."""
    containers = [*_list(spec, "containers"), *_others(_list(spec, "initContainers"))]
    return all(_has_what_it_may_use(each.get("resources") or {}) for each in containers)


def amount(quantity: str | float) -> Decimal | None:
    """A Kubernetes quantity (``100m``, ``1.5Gi``, ``2e3``) as a number; None: it is none."""
    match = _QUANTITY.fullmatch(str(quantity))
    try:
        return None if match is None else Decimal(match[1]) * _POWERS.get(match[2], Decimal(1))
    except ArithmeticError:  # an exponent beyond all bounds
        return None


def _in_its_way(pod: Pod, sidecar: Sidecar) -> Iterator[str]:
    """What of the pod's own has a name or a port that is the sidecar's."""
    spec, injected = pod["spec"], injected_hash(pod) is not None
    init = _list(spec, "initContainers")
    theirs = [*_list(spec, "containers"), *(_others(init) if injected else init)]
    if any(_is_ours(each) for each in theirs):
        yield (
            f"the pod has a container {SIDECAR_CONTAINER} of its own, and two of one name cannot be:"
            f" give it another name, or have no sidecar by the label {INJECT_LABEL}={INJECT_OFF}"
        )
    ports = _tcp_ports(sidecar["container"])
    for each in theirs:
        for port in _tcp_ports(each):
            if port in ports:
                yield f"container {each['name']}: port {port} is the sidecar's; let it listen on another"
    volumes = _names(sidecar.get("volumes", ()))
    for name in () if injected else _names(_list(spec, "volumes")):
        if name in volumes:
            yield f"volume {name}: the name is that of a volume of the sidecar's; give it another"


def _container_operations(pod: Pod, sidecar: Sidecar) -> Iterator[Operation]:
    containers, path = _list(pod["spec"], "initContainers"), "/spec/initContainers"
    place, wanted = _place(_others(containers)), container_of(pod, sidecar)
    found = [index for index, each in enumerate(containers) if _is_ours(each)]
    if len(found) == 1 and _is_as_rendered(pod, containers[found[0]], wanted, sidecar):
        if found != [place]:
            yield {"op": "move", "from": f"{path}/{found[0]}", "path": f"{path}/{place}"}
        return
    for index in reversed(found):
        yield {"op": "remove", "path": f"{path}/{index}"}
    if containers:
        yield {"op": "add", "path": f"{path}/{place}", "value": wanted}
    else:
        yield {"op": "add", "path": path, "value": [wanted]}


def _env_operations(pod: Pod, sidecar: Sidecar) -> Iterator[Operation]:
    """At the front, so that the pod's own variables may refer to them. Where a name is set already it stays.

    Where the first is set, the URL, the container sends elsewhere, and what belongs to ours would be in its way. One
    that leads to the sidecar that the pod was copied with follows it to its port.
    """
    spec, env = pod["spec"], sidecar.get("env", ())
    others, former = _others(_list(spec, "initContainers")), _former_urls(spec)
    place = _place(others)
    later = [(f"initContainers/{index + 1}", each) for index, each in enumerate(others) if index >= place]
    ordinary = [(f"containers/{index}", each) for index, each in enumerate(_list(spec, "containers"))]
    for path, container in [*later, *ordinary]:
        own = _list(container, "env")
        names = set(_names(own))
        for index, entry in enumerate(own):
            if env and entry["name"] == env[0]["name"] and entry.get("value") in former - {env[0]["value"]}:
                yield {"op": "replace", "path": f"/spec/{path}/env/{index}/value", "value": env[0]["value"]}
        missing = [] if env and env[0]["name"] in names else [entry for entry in env if entry["name"] not in names]
        if missing and not own:
            yield {"op": "add", "path": f"/spec/{path}/env", "value": missing}
        elif missing:
            for index, entry in enumerate(missing):
                yield {"op": "add", "path": f"/spec/{path}/env/{index}", "value": entry}


def _former_urls(spec: Mapping[str, Any]) -> set[str]:
    """Where the sidecar listens that is in the pod already."""
    ours = [each for each in _list(spec, "initContainers") if _is_ours(each)]
    return {f"http://127.0.0.1:{port}" for each in ours for port in _tcp_ports(each)}


def _volume_operations(pod: Pod, sidecar: Sidecar) -> Iterator[Operation]:
    volumes, wanted = _list(pod["spec"], "volumes"), sidecar.get("volumes", ())
    found = injected_hash(pod)
    # Of what was put in before, also what this sidecar has no more.
    ours, current = (*_names(wanted), *(() if found is None else SIDECAR_VOLUMES)), found == sidecar["hash"]
    stay = [each for each in volumes if each["name"] not in ours or current]
    for index in reversed(range(len(volumes))):
        if volumes[index] not in stay:
            yield {"op": "remove", "path": f"/spec/volumes/{index}"}
    missing = [each for each in wanted if each["name"] not in _names(stay)]
    if missing and not volumes:
        yield {"op": "add", "path": "/spec/volumes", "value": missing}
    elif missing:
        yield from ({"op": "add", "path": "/spec/volumes/-", "value": each} for each in missing)


def _entry_operations(metadata: Mapping[str, Any], field: str, key: str, value: str) -> Iterator[Operation]:
    entries = metadata.get(field)
    if not entries:
        yield {"op": "add", "path": f"/metadata/{field}", "value": {key: value}}
    elif entries.get(key) != value:
        yield {"op": "add", "path": f"/metadata/{field}/{_escaped(key)}", "value": value}


def _grace_operations(spec: Mapping[str, Any], sidecar: Sidecar) -> Iterator[Operation]:
    given, needed = spec.get("terminationGracePeriodSeconds"), sidecar.get("gracePeriodSeconds", 0)
    has = DEFAULT_GRACE_S if given is None else given
    if sidecar.get("gracePeriod") == RAISE and needed > has:
        yield {"op": "add", "path": "/spec/terminationGracePeriodSeconds", "value": needed}


def _is_as_rendered(pod: Pod, found: Mapping[str, Any], wanted: Mapping[str, Any], sidecar: Sidecar) -> bool:
    """Whether our container is the one of this hash, with the resources for what the pod is now."""
    if found == wanted:
        return True
    has, asked = found.get("resources") or {}, wanted.get("resources") or {}
    return injected_hash(pod) == sidecar["hash"] and all(
        amount((has.get(kind) or {}).get(what, "")) == amount(quantity)
        for kind in ("limits", "requests")
        for what, quantity in (asked.get(kind) or {}).items()
    )


def _place(others: Sequence[Mapping[str, Any]]) -> int:
    """Where ours goes among the other init containers: after the last native sidecar of a mesh, else first."""
    meshes = [
        index
        for index, each in enumerate(others)
        if each.get("name") in MESHES and each.get("restartPolicy") == "Always"
    ]
    return meshes[-1] + 1 if meshes else 0


def _has_what_it_may_use(resources: Mapping[str, Any]) -> bool:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    return all(
        bool(limit := amount(limits.get(what, 0))) and amount(requests.get(what, limits[what])) == limit
        for what in ("cpu", "memory")
    )


def _tcp_ports(container: Mapping[str, Any]) -> list[int]:
    return [each["containerPort"] for each in _list(container, "ports") if each.get("protocol", "TCP") == "TCP"]


def _is_ours(container: Mapping[str, Any]) -> bool:
    return container.get("name") == SIDECAR_CONTAINER


def _others(containers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [each for each in containers if not _is_ours(each)]


def _annotations(pod: Pod) -> Mapping[str, Any]:
    return pod["metadata"].get("annotations") or {}


def _list(holder: Mapping[str, Any], field: str) -> Sequence[Mapping[str, Any]]:
    """A list that may be missing, or null."""
    return holder.get(field) or ()


def _names(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    return [each["name"] for each in entries]


def _escaped(key: str) -> str:
    """A key as a step of a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")
