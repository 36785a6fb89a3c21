"""What an API server would refuse of a sidecar's container: it would refuse the whole pod, and that is somebody's app.

A proxy's own Deployment it refuses itself, where everybody can see it.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from tinybird_proxy_operator.errors import SpecError
from tinybird_proxy_operator.manifests.pod_resources import resources
from tinybird_proxy_operator.sidecars.injection import amount
from tinybird_proxy_operator.spec import ProxySpec

# Others come in whole pieces, with a limit that is the request, or are of the node's.
_RESOURCES: Final = ("cpu", "memory", "ephemeral-storage")
_KEY: Final = r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_FIELD: Final = re.compile(
    r"metadata\.(name|namespace|uid)|spec\.(nodeName|serviceAccountName)|status\.(hostIP|hostIPs|podIP|podIPs)"
    rf"|metadata\.(labels|annotations)\['{_KEY}'\]"
)


def problems(spec: ProxySpec) -> list[str]:
    """As sentences for the resource's author."""
    return [*_of_resources(spec), *_of_fields(spec)]


def _of_resources(spec: ProxySpec) -> Iterator[str]:
    try:
        rendered = resources(spec)
    except SpecError:
        return  # pod_resources names it
    for kind in ("requests", "limits"):
        for name, quantity in rendered[kind].items():
            where, value = f"spec.pod.resources.{kind}.{name}", amount(quantity)
            if name not in _RESOURCES:
                yield f"{where}: a sidecar may ask for {', '.join(_RESOURCES)} alone; leave it out"
            elif value is None or value < 0:
                yield f"{where}: {quantity!r} is not an amount such as 500m, 1 or 1Gi"
    for name, quantity in rendered["requests"].items():
        limit = rendered["limits"].get(name)
        request, most = amount(quantity), None if limit is None else amount(limit)
        # Of memory it is said already.
        if name != "memory" and request is not None and most is not None and request > most:
            yield f"spec.pod.resources.requests.{name}: {quantity} is more than the limit, {limit}"


def _of_fields(spec: ProxySpec) -> Iterator[str]:
    for index, entry in enumerate(spec.pod.env):
        source: Any = entry.get("valueFrom")
        field: Any = source.get("fieldRef") if isinstance(source, dict) else None
        if not isinstance(field, dict):
            continue
        path, version = field.get("fieldPath"), field.get("apiVersion", "v1")
        if version != "v1" or not isinstance(path, str) or not _FIELD.fullmatch(path):
            yield (
                f"spec.pod.env[{index}].valueFrom.fieldRef: {path!r} is no field of a pod that a variable may have,"
                " such as metadata.name, metadata.labels['KEY'], spec.nodeName or status.podIP"
            )
