"""What the proxy's container has in common, in a pod of its own and in an app's."""

from typing import Any, Final

from tinybird_proxy_operator.manifests import environment
from tinybird_proxy_operator.manifests.desired import Desired
from tinybird_proxy_operator.spec import HeadersKey, ProxySpec

USER_ID: Final = 10001
SECURITY_CONTEXT: Final[dict[str, Any]] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
# The proxy writes its last words itself; the log's end stands in where it could not start at all.
TERMINATION_MESSAGE_POLICY: Final = "FallbackToLogsOnError"


def image(desired: Desired) -> dict[str, str]:
    """Which image, and when it is pulled."""
    spec, settings = desired.proxy.spec, desired.settings
    return {
        "image": spec.image or settings.proxy_image,
        "imagePullPolicy": spec.image_pull_policy or settings.proxy_image_pull_policy,
    }


def ports(spec: ProxySpec, events_name: str, admin_name: str) -> list[dict[str, Any]]:
    """Both ports, under these names."""
    return [
        {"name": events_name, "containerPort": environment.events_port(spec), "protocol": "TCP"},
        {"name": admin_name, "containerPort": environment.admin_port(spec), "protocol": "TCP"},
    ]


def headers_source(ref: HeadersKey, mode: int) -> dict[str, Any]:
    """What a volume with the collector's headers is made from. A Secret that is gone keeps no pod from starting."""
    items = [{"key": ref.key, "path": environment.HEADERS_FILE_NAME}]
    return {"secretName": ref.name, "defaultMode": mode, "optional": True, "items": items}


def startup_probe(port: str) -> dict[str, Any]:
    """``port``: the admin port's name."""
    return probe("/livez", port, period_s=1, failures=60, timeout_s=1)


def liveness_probe(port: str) -> dict[str, Any]:
    """A restart loses what is buffered, so it takes half a minute without one answer."""
    return probe("/livez", port, period_s=10, failures=4, timeout_s=5)


def probe(path: str, port: str, *, period_s: int, failures: int, timeout_s: int) -> dict[str, Any]:
    """A probe of the admin port."""
    return {
        "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
        "periodSeconds": period_s,
        "failureThreshold": failures,
        "timeoutSeconds": timeout_s,
    }
