"""The kinds that the fake API server has, how clients find it, and label selectors. Pure.

The paths are written down here a second time, not taken from the client that is tested with them.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Served:
    """Where the objects of a kind live, and what they have."""

    api_version: str
    plural: str
    has_status: bool = False
    has_scale: bool = False
    has_generation: bool = True
    namespaced: bool = True


KINDS: Final = {
    "TinybirdProxy": Served("tinybird-proxy.io/v1alpha1", "tinybirdproxies", has_status=True, has_scale=True),
    "ServiceAccount": Served("v1", "serviceaccounts", has_generation=False),
    "Secret": Served("v1", "secrets", has_generation=False),
    "Service": Served("v1", "services", has_status=True, has_generation=False),
    "Pod": Served("v1", "pods", has_status=True),
    "Event": Served("v1", "events", has_generation=False),
    "Lease": Served("coordination.k8s.io/v1", "leases", has_generation=False),
    "Namespace": Served("v1", "namespaces", has_status=True, has_generation=False, namespaced=False),
    "Deployment": Served("apps/v1", "deployments", has_status=True),
    "ReplicaSet": Served("apps/v1", "replicasets", has_status=True),
    "StatefulSet": Served("apps/v1", "statefulsets", has_status=True),
    "Job": Served("batch/v1", "jobs", has_status=True),
    "PodDisruptionBudget": Served("policy/v1", "poddisruptionbudgets", has_status=True),
    "NetworkPolicy": Served("networking.k8s.io/v1", "networkpolicies"),
    "Ingress": Served("networking.k8s.io/v1", "ingresses", has_status=True),
    "HorizontalPodAutoscaler": Served("autoscaling/v2", "horizontalpodautoscalers", has_status=True),
    "ConfigMap": Served("v1", "configmaps", has_generation=False),
    "ClusterRole": Served("rbac.authorization.k8s.io/v1", "clusterroles", has_generation=False, namespaced=False),
    "APIService": Served(
        "apiregistration.k8s.io/v1", "apiservices", has_status=True, has_generation=False, namespaced=False
    ),
    "MutatingWebhookConfiguration": Served(
        "admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations", namespaced=False
    ),
    "TokenReview": Served("authentication.k8s.io/v1", "tokenreviews", namespaced=False),
    "SubjectAccessReview": Served("authorization.k8s.io/v1", "subjectaccessreviews", namespaced=False),
}
# What only some clusters have.
POD_MONITOR: Final = Served("monitoring.coreos.com/v1", "podmonitors")
SCALED_OBJECT: Final = Served("keda.sh/v1alpha1", "scaledobjects", has_status=True)


def kubeconfig(url: str) -> str:
    """A file for clients of the server at ``url``."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "clusters": [{"name": "fake", "cluster": {"server": url}}],
            "users": [{"name": "fake", "user": {"token": "operator-token"}}],
        }
    )


def selector(text: str) -> Callable[[Mapping[str, str]], bool]:
    """Whether labels match. Raises ``ValueError`` for what it does not know: sets, and !=."""
    terms = [term.strip() for term in text.split(",") if term.strip()]
    if any(not re.fullmatch(r"!?[\w./-]+|[\w./-]+={1,2}[\w.-]*", term) for term in terms):
        raise ValueError(f"the fake has no selector {text!r}")

    def matches(labels: Mapping[str, str]) -> bool:
        for term in terms:
            key, equals, value = term.partition("=")
            if (
                (labels.get(key) != value.lstrip("="))
                if equals
                else ((key.lstrip("!") in labels) == key.startswith("!"))
            ):
                return False
        return True

    return matches
