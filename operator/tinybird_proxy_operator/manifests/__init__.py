"""The Kubernetes objects that a TinybirdProxy comes to, one file per kind.

Pure: the same resource, the same objects.
"""

from typing import Final

from tinybird_proxy_operator.manifests import (
    deployment,
    horizontal_pod_autoscaler,
    ingress,
    metrics_service,
    network_policy,
    pod_disruption_budget,
    pod_monitor,
    scaled_object,
    service,
    service_account,
)
from tinybird_proxy_operator.manifests.desired import Desired, Manifest

__all__ = ["KINDS", "Desired", "Manifest", "build"]

# In the order of application: what protects the pods is there before them, and what may be missing from the cluster
# (kinds of prometheus-operator and KEDA) comes last.
_BUILDERS: Final = (
    service_account.build,
    network_policy.build,
    pod_disruption_budget.build,
    service.build,
    deployment.build,
    ingress.build,
    horizontal_pod_autoscaler.build,
    metrics_service.build,
    scaled_object.build,
    pod_monitor.build,
)

# apiVersion and kind of everything that `build` may return; what is owned, of these, and not returned is pruned.
KINDS: Final = (
    ("v1", "ServiceAccount"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"),
    ("v1", "Service"),
    ("apps/v1", "Deployment"),
    ("networking.k8s.io/v1", "Ingress"),
    ("autoscaling/v2", "HorizontalPodAutoscaler"),
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
)


def build(desired: Desired) -> list[Manifest]:
    """Every child in the order of application. Raises ``SpecError``.

    The generated Secrets are not among them: they are created only if absent, see ``secrets``.
    """
    built = (builder(desired) for builder in _BUILDERS)
    return [manifest for manifest in built if manifest is not None]
