"""TinybirdProxies with mode Sidecar, workloads that ask for one, and how many have it."""

import copy
from collections.abc import Mapping
from typing import Any, Final

from tests.e2e import sidecar_pods
from tests.e2e.kubectl import Namespace, resource, until

from tinybird_proxy_operator.names import INJECT_LABEL, INJECTED_LABEL, SIDECAR_CONTAINER, SIDECAR_HASH_ANNOTATION

Object = dict[str, Any]
NOBODY: Final = {"injected": 0, "stale": 0, "missed": 0, "refused": 0, "unknown": 0}


def sidecar(namespace: Namespace, name: str = "events", **spec: Any) -> Object:
    """A TinybirdProxy whose sidecars deliver to the namespace's Tinybird with the token in the Secret `tinybird`."""
    upstream = {"url": namespace.tinybird_url, "tokenSecretRef": {"name": "tinybird"}}
    asked = {"mode": "Sidecar", "tinybird": upstream, "batch": {"flushIntervalMilliseconds": 200}}
    return resource(name, **{**asked, **spec})


def rendered(namespace: Namespace, name: str = "events") -> Object:
    """What pods get from now on, once there is something."""
    found: Object = until(
        f"a rendered sidecar of {name}", lambda: namespace.get("tinybirdproxy", name).get("status", {}).get("sidecar")
    )
    return found


def asking(workload: Mapping[str, Any], name: str = "events") -> Object:
    """The same Deployment or Job, its pods with the label."""
    found: Object = copy.deepcopy(dict(workload))
    found["spec"]["template"]["metadata"]["labels"][INJECT_LABEL] = name
    return found


def app_deployment(*arguments: str, name: str = "app", replicas: int = 1, grace_s: int = 30, **fields: Any) -> Object:
    """A Deployment of an app that sends rows, and asks for the sidecar of `events`."""
    pod: Object = {
        "terminationGracePeriodSeconds": grace_s,
        "containers": [sidecar_pods.app(*arguments, **fields)],
        "volumes": [sidecar_pods.app_volume()],
    }
    found = asking(sidecar_pods.deployment(pod, name))
    found["spec"]["replicas"] = replicas
    return found


def roll_out(namespace: Namespace, *workloads: Mapping[str, Any]) -> None:
    """Make these Deployments or StatefulSets, and wait until they are available."""
    namespace.apply(sidecar_pods.app_script(), *workloads)
    for each in workloads:
        namespace.kubectl("rollout", "status", f"{each['kind']}/{each['metadata']['name']}", "--timeout=80s")


def pods(namespace: Namespace, app: str = "app") -> list[Object]:
    """Of an app, those that stay."""
    return [each for each in namespace.find("pods", f"app={app}") if "deletionTimestamp" not in each["metadata"]]


def has_sidecar(pod: Mapping[str, Any]) -> bool:
    """As the pod's spec says it."""
    return SIDECAR_CONTAINER in [str(each["name"]) for each in pod["spec"].get("initContainers", [])]


def sidecar_of(pod: Mapping[str, Any]) -> tuple[str, str]:
    """Of which resource the pod has one, and its hash."""
    metadata = pod["metadata"]
    return metadata["labels"][INJECTED_LABEL], metadata["annotations"][SIDECAR_HASH_ANNOTATION]


def until_counted(namespace: Namespace, name: str = "events", *, timeout_s: float = 40, **expected: int) -> None:
    """Wait until ``status.sidecars`` is this, and 0 where nothing is said."""
    wanted, last = {**NOBODY, **expected}, dict[str, int]()

    def as_wanted() -> bool:
        nonlocal last
        last = namespace.get("tinybirdproxy", name).get("status", {}).get("sidecars", {})
        return bool(last == wanted)

    try:
        until(f"sidecars {wanted}", as_wanted, timeout_s=timeout_s)
    except AssertionError as error:
        raise AssertionError(f"{error}; they are {last}; {namespace.condition('SidecarsCurrent', name)}") from error


def until_rows(namespace: Namespace, prefix: str) -> None:
    """Wait until Tinybird has a row whose id begins like this."""
    until(f"rows of {prefix}", lambda: [each for each in namespace.rows() if each.startswith(prefix)])
