"""The Job that tries a changed template: its image, environment and Secrets, and ``check --upstream`` instead of a run.

Its pod is none of the resource's: no selector of ours matches it, it serves no port, and it never becomes ready.
"""

from typing import Any, Final

from tinybird_proxy.config import OPTIONS
from tinybird_proxy_operator import names
from tinybird_proxy_operator.manifests.deployment import pod_template
from tinybird_proxy_operator.manifests.desired import Desired, Manifest, metadata
from tinybird_proxy_operator.preflight import CHECKS_ANNOTATION, DEADLINE_S, job_name

APP: Final = f"{names.APP}-preflight"
# On the pod: what selects it, for NetworkPolicies too.
PREFLIGHT_LABEL: Final = names.PREFLIGHT_LABEL
# The check says what is wrong itself, before the Job's deadline takes its pod away.
UPSTREAM_TIMEOUT: Final = "20s"
# A safety net: the operator deletes the Job itself.
KEPT_S: Final = 3600
# What the check takes, and no more, so that a quota that is almost used up has room for it; measured: 48 Mi.
_REQUESTS: Final = {"cpu": "10m", "memory": "64Mi"}
_LIMITS: Final = {"cpu": "500m", "memory": "128Mi"}
# Of the template's fields, what the check needs to run where the pods would, as whom they would.
_POD_FIELDS: Final = (
    "serviceAccountName",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "securityContext",
    "nodeSelector",
    "tolerations",
    "priorityClassName",
    "imagePullSecrets",
    "volumes",
)
_CONTAINER_FIELDS: Final = (
    "name",
    "image",
    "imagePullPolicy",
    "securityContext",
    "terminationMessagePolicy",
    "volumeMounts",
)
_TIMEOUT_OPTION: Final = next(option for option in OPTIONS if option.field == "upstream_timeout_s")


def build(desired: Desired, checks: str) -> Manifest:
    """``checks``: what it says of itself, see ``preflight.checks``. Raises ``SpecError``."""
    name = desired.proxy.name
    wanted = pod_template(desired)
    pod = wanted["spec"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(desired, name=job_name(name), annotations={CHECKS_ANNOTATION: checks}),
        "spec": {
            "activeDeadlineSeconds": DEADLINE_S,
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": KEPT_S,
            "template": {
                "metadata": {"labels": _labels(desired), "annotations": wanted["metadata"]["annotations"]},
                "spec": {
                    **{field: pod[field] for field in _POD_FIELDS if field in pod},
                    **_node_affinity(pod.get("affinity", {})),
                    "restartPolicy": "Never",
                    # A first process has no handler for SIGTERM, and there is nothing to bring to an end.
                    "terminationGracePeriodSeconds": 1,
                    "containers": [_container(pod["containers"][0])],
                },
            },
        },
    }


def _labels(desired: Desired) -> dict[str, str]:
    """Users' labels, for policies that select by them; and ours without the one that every selector of ours has."""
    name = desired.proxy.name
    return {
        **desired.proxy.spec.pod.labels,
        names.NAME_LABEL: APP,
        names.INSTANCE_LABEL: name,
        names.MANAGED_BY_LABEL: names.FIELD_MANAGER,
        PREFLIGHT_LABEL: name,
    }


def _node_affinity(affinity: dict[str, Any]) -> dict[str, Any]:
    # Affinity to pods would keep it away from the very nodes on which the pods are.
    return {"affinity": {"nodeAffinity": affinity["nodeAffinity"]}} if "nodeAffinity" in affinity else {}


def _container(wanted: dict[str, Any]) -> dict[str, Any]:
    hidden = (_TIMEOUT_OPTION.variable, *_TIMEOUT_OPTION.aliases)
    env = [entry for entry in wanted["env"] if entry["name"] not in hidden]
    return {
        **{field: wanted[field] for field in _CONTAINER_FIELDS if field in wanted},
        "args": ["check", "--upstream"],
        "env": [*env, {"name": _TIMEOUT_OPTION.variable, "value": UPSTREAM_TIMEOUT}],
        "resources": _resources(wanted["resources"]),
        # Never ready: a Service of somebody's that selects by users' labels must not send it rows.
        "readinessProbe": {"tcpSocket": {"port": names.EVENTS_PORT}, "initialDelaySeconds": 2 * DEADLINE_S},
    }


def _resources(wanted: dict[str, Any]) -> dict[str, Any]:
    """Small, with limits for the same things: a quota may demand them. A limit of users' that is none of ours stays."""
    return {
        "requests": {**_others(wanted["requests"]), **_REQUESTS},
        "limits": {**_others(wanted["limits"]), **{key: _LIMITS[key] for key in _LIMITS if key in wanted["limits"]}},
    }


def _others(given: dict[str, Any]) -> dict[str, Any]:
    # Not devices: there may be one for each pod.
    return {key: value for key, value in given.items() if key == "ephemeral-storage"}
