"""The kinds that the operator touches, and where the API server has them. Pure: ``kube`` sends requests there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from tinybird_proxy_operator.names import API_VERSION, KIND, PLURAL


@dataclass(frozen=True, slots=True)
class ApiResource:
    """Where the objects of a kind live."""

    api_version: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """The path of one object, or of all of a namespace, or of all."""
        group = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        parts = [group]
        if namespace is not None:
            parts.append(f"namespaces/{quote(namespace, safe='')}")
        parts.append(self.plural)
        parts += [quote(part, safe="") for part in (name, subresource) if part is not None]
        return "/".join(parts)


RESOURCES: Final[Mapping[str, ApiResource]] = {
    KIND: ApiResource(API_VERSION, PLURAL),
    "ServiceAccount": ApiResource("v1", "serviceaccounts"),
    "Secret": ApiResource("v1", "secrets"),
    "Service": ApiResource("v1", "services"),
    "Pod": ApiResource("v1", "pods"),
    "Event": ApiResource("v1", "events"),
    "Lease": ApiResource("coordination.k8s.io/v1", "leases"),
    "Namespace": ApiResource("v1", "namespaces"),
    "Deployment": ApiResource("apps/v1", "deployments"),
    "ReplicaSet": ApiResource("apps/v1", "replicasets"),
    "StatefulSet": ApiResource("apps/v1", "statefulsets"),
    "Job": ApiResource("batch/v1", "jobs"),
    "PodDisruptionBudget": ApiResource("policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ApiResource("networking.k8s.io/v1", "networkpolicies"),
    "Ingress": ApiResource("networking.k8s.io/v1", "ingresses"),
    "HorizontalPodAutoscaler": ApiResource("autoscaling/v2", "horizontalpodautoscalers"),
    "ScaledObject": ApiResource("keda.sh/v1alpha1", "scaledobjects"),
    "MutatingWebhookConfiguration": ApiResource("admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations"),
    "APIService": ApiResource("apiregistration.k8s.io/v1", "apiservices"),
    "PodMonitor": ApiResource("monitoring.coreos.com/v1", "podmonitors"),
    "ConfigMap": ApiResource("v1", "configmaps"),
    "ClusterRole": ApiResource("rbac.authorization.k8s.io/v1", "clusterroles"),
    "TokenReview": ApiResource("authentication.k8s.io/v1", "tokenreviews"),
    "SubjectAccessReview": ApiResource("authorization.k8s.io/v1", "subjectaccessreviews"),
}
