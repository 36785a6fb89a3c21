"""The HPA: it reads the pods' metrics and writes ``replicas`` of the TinybirdProxy, never of the Deployment."""

from typing import Any, Final

from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests.desired import Desired, Manifest, metadata
from tinybird_proxy_operator.scaling.autoscaling import value_of
from tinybird_proxy_operator.scaling.targets import fraction, quantity

# Kubernetes' own defaults, stated: what is stated is repaired, and is there again after a throttling.
BEHAVIOR: Final = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "selectPolicy": "Max",
        "policies": [
            {"type": "Pods", "value": 4, "periodSeconds": 15},
            {"type": "Percent", "value": 100, "periodSeconds": 15},
        ],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": 300,
        "selectPolicy": "Max",
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
    },
}


def build(desired: Desired) -> Manifest | None:
    """None unless the resource asks for one of the operator's, and a metric is served."""
    autoscaling, plan = desired.proxy.spec.autoscaling, desired.plan
    if autoscaling is None or autoscaling.provider in ("KEDA", "External") or not plan.targets:
        return None
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(desired),
        "spec": {
            "scaleTargetRef": scale_target(desired),
            "minReplicas": autoscaling.min_replicas,
            "maxReplicas": autoscaling.max_replicas,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": target.metric},
                        "target": {
                            "type": "AverageValue",
                            "averageValue": quantity(value_of(autoscaling, target) or 0),
                        },
                    },
                }
                for target in plan.targets
            ],
            "behavior": behavior(desired),
        },
    }


def scale_target(desired: Desired) -> dict[str, str]:
    """What is scaled: the resource, whose replicas only the operator carries out."""
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": desired.proxy.name}


def behavior(desired: Desired) -> dict[str, Any]:
    """How fast and how far, as the spec says; what it does not say is Kubernetes' default."""
    autoscaling = desired.proxy.spec.autoscaling
    given = {} if autoscaling is None else autoscaling.behavior
    rules = {direction: {**default, **given.get(direction, {})} for direction, default in BEHAVIOR.items()}
    for rule in rules.values():
        if "tolerance" in rule:
            rule["tolerance"] = fraction(str(rule["tolerance"]))
    if desired.plan.throttled:
        rules["scaleUp"]["selectPolicy"] = "Disabled"
    return rules
