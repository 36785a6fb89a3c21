"""Kinds that a cluster may not have, and that the operator may have no right to make. Pure."""

from dataclasses import dataclass
from typing import Final

from tinybird_proxy_operator.manifests import KINDS
from tinybird_proxy_operator.settings import OperatorSettings


@dataclass(frozen=True, slots=True)
class _Optional:
    """``field`` asks for it, ``instead`` does not; ``right``: the chart's value; ``installs``: who brings the kind."""

    field: str
    instead: str
    right: str
    installs: str


_OPTIONAL: Final = {
    "PodMonitor": _Optional("spec.monitoring.podMonitor", "Disabled", "rbac.podMonitors", "prometheus-operator"),
    "ScaledObject": _Optional("spec.autoscaling.provider", "Builtin", "rbac.scaledObjects", "KEDA"),
}


def is_granted(kind: str, settings: OperatorSettings) -> bool:
    """Whether the operator may make any."""
    granted = {"PodMonitor": settings.pod_monitors, "ScaledObject": settings.scaled_objects}
    return granted.get(kind, True)


def granted_kinds(settings: OperatorSettings) -> list[str]:
    """Of the kinds that children are of, those that the operator may read and write."""
    return [kind for _, kind in KINDS if is_granted(kind, settings)]


def no_right(kind: str) -> str:
    """The sentence for a resource that asks for a kind which the operator may not make."""
    asked = _OPTIONAL[kind]
    return (
        f"{asked.field}: the operator has no right to make {kind}s. Set it to {asked.instead}, or ask whoever runs"
        f" the operator to set its chart's {asked.right} to true."
    )


def not_there(kind: str) -> str | None:
    """The sentence for a kind that the cluster does not have; None for one that every cluster has."""
    asked = _OPTIONAL.get(kind)
    if asked is None:
        return None
    return f"{asked.field}: the cluster has no {kind}s. Install {asked.installs}, or set it to {asked.instead}."
