"""The Deployment: the pods, how they are kept, and how they are replaced.

The template holds only what a pod consumes: anything else in it would roll the pods for nothing.
"""

from typing import Any, Final

from tinybird_proxy_operator import names
from tinybird_proxy_operator.errors import SpecError
from tinybird_proxy_operator.manifests import container, environment, pod_resources
from tinybird_proxy_operator.manifests.desired import Desired, Manifest, metadata
from tinybird_proxy_operator.spec import GRACE_MARGIN_S, Pod

_RESERVED_LABELS: Final = (
    names.NAME_LABEL,
    names.INSTANCE_LABEL,
    names.MANAGED_BY_LABEL,
    "pod-template-hash",
)
_DEFAULT_CONTAINER: Final = "kubectl.kubernetes.io/default-container"
_RESERVED_ANNOTATIONS: Final = (_DEFAULT_CONTAINER, names.DELETION_COST_ANNOTATION)
_PROGRESS_DEADLINE_S: Final = 600  # Kubernetes' default
_HEADERS_VOLUME: Final = "otlp-headers"
_NEVER_S: Final = 1_000_000_000  # some 30 years


def build(desired: Desired) -> Manifest:
    """Raises ``SpecError``."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(desired),
        "spec": {
            "replicas": desired.replicas,
            **pace(paused=desired.paused),
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": names.selector_labels(desired.proxy.name)},
            # A pod goes only after its successor is available: clients always find as many as were asked for.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": pod_template(desired),
        },
    }


def pace(*, paused: bool) -> Manifest:
    """The fields of ``spec`` that let a rollout go on, or make it stand.

    ``paused`` alone does not: a paused Deployment is scaled all the same, and as soon as there are as many new pods as
    are wanted and they are available, that takes every old one away. With one pod that is the whole rollout. So no new
    pod counts as available meanwhile; old ones keep the number with which they were made. Services look at readiness.
    The deadline must be the greater number. It is not counted during the pause, and begins anew after it.
    """
    if paused:
        return {"paused": True, "minReadySeconds": _NEVER_S, "progressDeadlineSeconds": _NEVER_S + 1}
    return {
        "paused": False,
        # kube-proxy gathers changes for up to a second before it sends connections to a pod that became ready.
        # Kubernetes compares times in whole seconds, so 2 means at least 1.
        "minReadySeconds": 2,
        "progressDeadlineSeconds": _PROGRESS_DEADLINE_S,
    }


def pod_template(desired: Desired) -> Manifest:
    """``spec.template``. Raises ``SpecError``."""
    proxy = desired.proxy
    pod = proxy.spec.pod
    if found := metadata_problems(pod):
        raise SpecError(found)
    volumes, mounts = _secret_mounts(desired)
    scheduling = {
        "nodeSelector": dict(pod.node_selector),
        "tolerations": list(pod.tolerations),
        "affinity": dict(pod.affinity),
        "priorityClassName": pod.priority_class_name,
        "imagePullSecrets": list(proxy.spec.image_pull_secrets),
    }
    return {
        "metadata": {
            "labels": {**pod.labels, **names.child_labels(proxy.name)},
            "annotations": {**pod.annotations, _DEFAULT_CONTAINER: names.CONTAINER},
        },
        "spec": {
            "serviceAccountName": proxy.name,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": proxy.spec.drain.shutdown_timeout_seconds + GRACE_MARGIN_S,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": container.USER_ID,
                "runAsGroup": container.USER_ID,
                # Secret files are root's; this group may read them, and nobody else.
                "fsGroup": container.USER_ID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **{field: value for field, value in scheduling.items() if value},
            "topologySpreadConstraints": _spread(desired),
            "containers": [_container(desired, mounts)],
            "volumes": volumes,
        },
    }


def metadata_problems(pod: Pod) -> list[str]:
    """Labels and annotations of users that would collide with the operator's, as sentences."""
    asked = (("labels", pod.labels, _RESERVED_LABELS), ("annotations", pod.annotations, _RESERVED_ANNOTATIONS))
    return [
        f"spec.pod.{field}: {key} belongs to the operator; leave it out"
        for field, given, reserved in asked
        for key in given
        if key in reserved or key.startswith(f"{names.GROUP}/")
    ]


def _container(desired: Desired, mounts: list[dict[str, Any]]) -> dict[str, Any]:
    spec = desired.proxy.spec
    return {
        "name": names.CONTAINER,
        **container.image(desired),
        "env": environment.container_env(desired),
        "ports": container.ports(spec, names.EVENTS_PORT_NAME, names.ADMIN_PORT_NAME),
        "resources": pod_resources.resources(spec),
        "securityContext": dict(container.SECURITY_CONTEXT),
        "startupProbe": container.startup_probe(names.ADMIN_PORT_NAME),
        # A draining pod leaves the Service at once. An event loop may be busy for a second without being unready.
        "readinessProbe": container.probe("/readyz", names.ADMIN_PORT_NAME, period_s=2, failures=1, timeout_s=2),
        "livenessProbe": container.liveness_probe(names.ADMIN_PORT_NAME),
        "terminationMessagePolicy": container.TERMINATION_MESSAGE_POLICY,
        "volumeMounts": mounts,
    }


def _secret_mounts(desired: Desired) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and their mounts: whole directories, for a file mounted by subPath never changes with its Secret."""
    name, spec = desired.proxy.name, desired.proxy.spec
    sources = []
    if token := spec.tinybird.token_secret_ref:
        sources.append(("tinybird-token", token.name, token.key, environment.TOKEN_FILE_NAME, names.TOKEN_DIR))
    if environment.checks_clients(spec):
        given = spec.clients.token_secret_ref
        secret = given.name if given else names.client_secret(name)
        key = given.key if given else names.CLIENT_ACCEPTED_KEY
        sources.append(("client-tokens", secret, key, environment.ACCEPTED_FILE_NAME, names.CLIENTS_DIR))
    admin = names.admin_secret(name)
    sources.append(("admin-token", admin, names.ADMIN_TOKEN_KEY, environment.TOKEN_FILE_NAME, names.ADMIN_DIR))
    volumes = [
        {
            "name": volume,
            "secret": {"secretName": secret, "defaultMode": 0o440, "items": [{"key": key, "path": file}]},
        }
        for volume, secret, key, file, _ in sources
    ]
    mounts = [{"name": volume, "mountPath": directory, "readOnly": True} for volume, _, _, _, directory in sources]
    if headers := spec.telemetry.otlp_headers_secret_ref:
        volumes.append({"name": _HEADERS_VOLUME, "secret": container.headers_source(headers, 0o440)})
        mounts.append({"name": _HEADERS_VOLUME, "mountPath": names.OTLP_DIR, "readOnly": True})
    return volumes, mounts


def _spread(desired: Desired) -> list[dict[str, Any]]:
    """Over nodes and zones where there are several; never a reason for a pod to wait."""
    selector = {"matchLabels": names.selector_labels(desired.proxy.name)}
    given = desired.proxy.spec.pod.topology_spread_constraints
    if given:
        # Without a selector a constraint counts no pod, and spreads nothing.
        return [{"labelSelector": selector, **constraint} for constraint in given]
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": selector,
            # Each rollout's pods spread among themselves, not around those that are about to go.
            "matchLabelKeys": ["pod-template-hash"],
        }
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]
