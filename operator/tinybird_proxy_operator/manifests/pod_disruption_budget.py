"""How many pods may be evicted at a time."""

from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests.desired import Desired, Manifest, metadata


def build(desired: Desired) -> Manifest | None:
    """None if the resource wants none.

    ``maxUnavailable``, never ``minAvailable``: with one pod that would block node drains for ever. A pod that is not
    ready protects nobody by staying, so it may always be evicted.
    """
    budget = desired.proxy.spec.pod_disruption_budget
    if budget.policy == "None":
        return None
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(desired),
        "spec": {
            "maxUnavailable": budget.max_unavailable,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": names.selector_labels(desired.proxy.name)},
        },
    }
