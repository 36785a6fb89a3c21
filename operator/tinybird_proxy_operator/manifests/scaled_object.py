"""KEDA's ScaledObject, from which KEDA makes an HPA.

KEDA asks each pod for its metrics, without Prometheus; ``networkPolicy.metricsFrom`` must let it in.
"""

from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests.desired import Desired, Manifest, metadata
from tinybird_proxy_operator.manifests.horizontal_pod_autoscaler import behavior, scale_target
from tinybird_proxy_operator.scaling.autoscaling import value_of


def build(desired: Desired) -> Manifest | None:
    """None unless the resource asks for KEDA."""
    proxy, autoscaling = desired.proxy, desired.proxy.spec.autoscaling
    if autoscaling is None or autoscaling.provider != "KEDA":
        return None
    service = f"{names.metrics_service(proxy.name)}.{proxy.namespace}.svc"
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata(desired),
        "spec": {
            "scaleTargetRef": scale_target(desired),
            "minReplicaCount": autoscaling.min_replicas,
            "maxReplicaCount": autoscaling.max_replicas,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior(desired)}},
            "triggers": [
                {
                    "type": "metrics-api",
                    "metricType": "AverageValue",  # the sum divided by the target is the number of pods
                    "metadata": {
                        "url": f"http://{service}:{names.ADMIN_PORT}/metrics",
                        "format": "prometheus",
                        "valueLocation": target.metric,
                        "targetValue": str(value_of(autoscaling, target)),
                        "aggregateFromKubeServiceEndpoints": "true",
                        "aggregationType": "sum",
                    },
                }
                for target in desired.plan.targets
            ],
        },
    }
