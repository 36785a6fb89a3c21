"""What the builders are given, and what every child has in common."""

from dataclasses import dataclass
from typing import Any

from tinybird_proxy_operator import names
from tinybird_proxy_operator.scaling.autoscaling import NONE, Plan
from tinybird_proxy_operator.settings import OperatorSettings
from tinybird_proxy_operator.spec import Proxy

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """A resource, how many pods it is to have, the operator's settings, and what an HPA of it can be given.

    ``paused``: a rollout of its pods stands half-way.
    """

    proxy: Proxy
    replicas: int
    settings: OperatorSettings
    plan: Plan = NONE
    paused: bool = False


def metadata(desired: Desired, *, name: str | None = None, annotations: dict[str, str] | None = None) -> Manifest:
    """A child's metadata: ours by label for people and selectors, and by ownerReference for the garbage collector.

    Nothing is copied from the resource's own labels and annotations: they say things of the resource, not of a child.
    """
    proxy = desired.proxy
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": proxy.name,
        "uid": proxy.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "name": name or proxy.name,
        "namespace": proxy.namespace,
        "labels": names.child_labels(proxy.name),
        **({"annotations": dict(annotations)} if annotations else {}),
        "ownerReferences": [owner],
    }
