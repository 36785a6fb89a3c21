"""Memory and CPU of the container. Pure."""

from collections.abc import Mapping
from typing import Any, Final

from tinybird_proxy.config import OPTIONS
from tinybird_proxy_operator.errors import SpecError
from tinybird_proxy_operator.manifests.environment import SIDECAR_POOLS, is_sidecar, user_values
from tinybird_proxy_operator.spec import (
    MEMORY_HEADROOM,
    Mode,
    ProxySpec,
    quantity_bytes,
)

_MI: Final = 2**20
_CPU_REQUEST: Final[Mapping[Mode, str]] = {"Deployment": "100m", "Sidecar": "50m"}
# A Guaranteed pod's containers have a limit of CPU: the least with which a busy sidecar answers its probes.
_GUARANTEED_CPU: Final = "250m"
_LIMIT: Final = "spec.pod.resources.limits.memory"
_REQUEST: Final = "spec.pod.resources.requests.memory"
# Memory beside the buffer, of which the headroom holds the default, and how often it is there at the same time.
_POOLS: Final = tuple((option, 1) for option in OPTIONS if option.field in ("receive_bytes", "dead_letter_bytes"))
_SIDECAR_POOLS: Final = (*_POOLS, *((option, 2) for option in OPTIONS if option.field == "max_inflated_bytes"))
# What an idle sidecar takes, and a little: measured 47 MiB.
_SIDECAR_IDLE_BYTES: Final = 64 * _MI


def resources(spec: ProxySpec) -> dict[str, Any]:
    """Requests and limits; what users give wins, name by name. Raises ``SpecError`` for a size that is none.

    Memory is requested in full: rows are in memory only, and a node that runs out of it ends first, without any grace,
    the pods that use more than they requested. A sidecar, which comes with every pod of an app, requests what it needs
    with a full buffer, and may use more while it takes large bodies. CPU has no limit: a throttled event loop would
    fail its probes and deliver late exactly when there is most to deliver; the request is small because an idle proxy
    needs little.
    """
    given_limits = dict(spec.pod.resources.get("limits") or {})
    limits = {"memory": format_bytes(memory_limit_bytes(spec)), **given_limits}
    # Kubernetes takes a CPU limit as the request, too, if there is none; ours might be above it and be refused.
    cpu = {} if "cpu" in given_limits else {"cpu": _CPU_REQUEST[spec.mode]}
    requests = {
        **cpu,
        "memory": _requested_memory(spec, limits["memory"]),
        **(spec.pod.resources.get("requests") or {}),
    }
    return {"requests": requests, "limits": limits}


def _requested_memory(spec: ProxySpec, limit: Any) -> Any:
    if not is_sidecar(spec):
        return limit
    full = quantity_bytes(spec.buffer.max_size, field="spec.buffer.maxSize") + _SIDECAR_IDLE_BYTES
    return format_bytes(full) if full < quantity_bytes(limit, field=_LIMIT) else limit


def guaranteed_resources(spec: ProxySpec) -> dict[str, Any]:
    """Of a sidecar in a pod of QoS class Guaranteed, which it stays only if requests are limits. Raises ``SpecError``.

    A CPU that is asked for is given; else one is chosen, for that class has no container without a limit.
    """
    asked = resources(spec)
    given = spec.pod.resources.get("requests") or {}
    limits = {"cpu": given.get("cpu", _GUARANTEED_CPU), **asked["limits"]}
    return {"requests": dict(limits), "limits": limits}


def memory_limit_bytes(spec: ProxySpec) -> int:
    """The limit where users give none: the buffer and what is needed beside it. Raises ``SpecError``."""
    values = user_values(spec)
    more = 0
    for option, times in _SIDECAR_POOLS if is_sidecar(spec) else _POOLS:
        if option.variable in values and option.default is not None:
            try:
                default = SIDECAR_POOLS[option.variable] if is_sidecar(spec) else option.default
                more += times * max(0, option.parse(values[option.variable].strip()) - option.parse(default))
            except ValueError:
                continue  # the proxy's own check of its options names it
    buffer = quantity_bytes(spec.buffer.max_size, field="spec.buffer.maxSize")
    return buffer + MEMORY_HEADROOM[spec.mode].default_bytes + more


def problems(spec: ProxySpec) -> list[str]:
    """What is wrong with the memory asked for, as sentences."""
    limits = spec.pod.resources.get("limits") or {}
    requests = spec.pod.resources.get("requests") or {}
    try:
        buffer = quantity_bytes(spec.buffer.max_size, field="spec.buffer.maxSize")
        default = memory_limit_bytes(spec)
        limit = quantity_bytes(limits["memory"], field=_LIMIT) if "memory" in limits else default
        request = quantity_bytes(requests["memory"], field=_REQUEST) if "memory" in requests else limit
    except SpecError as error:
        return list(error.problems)
    headroom = MEMORY_HEADROOM[spec.mode]
    least = default - headroom.default_bytes + headroom.least_bytes
    found = []
    if limit < least:
        found.append(
            f"{_LIMIT}: {limits['memory']} is less than {format_bytes(least)}, which a buffer of "
            f"{format_bytes(buffer)} needs: the kernel would end the proxy and its rows would be lost; "
            "raise the limit or lower spec.buffer.maxSize"
        )
    if request > limit:
        found.append(f"{_REQUEST}: {requests['memory']} is more than the limit, {format_bytes(limit)}")
    return found


def format_bytes(count: int) -> str:
    """``count`` as a quantity: in Mi if that is exact, else in bytes."""
    return f"{count // _MI}Mi" if count and count % _MI == 0 else str(count)
