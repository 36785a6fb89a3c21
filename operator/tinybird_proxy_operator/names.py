"""Names that the operator, its charts and its tests share: API, labels, annotations, children, conditions. Pure."""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

GROUP: Final = "tinybird-proxy.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "TinybirdProxy"
PLURAL: Final = "tinybirdproxies"
FIELD_MANAGER: Final = "tinybird-proxy-operator"

NAME_LABEL: Final = "app.kubernetes.io/name"
INSTANCE_LABEL: Final = "app.kubernetes.io/instance"
MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
PROXY_LABEL: Final = f"{GROUP}/proxy"
# On the pod that tries a change.
PREFLIGHT_LABEL: Final = f"{GROUP}/preflight"
# On a Secret of a user's: the operator may mount it.
USE_LABEL: Final = f"{GROUP}/use"
USE_TOKEN: Final = "token"  # noqa: S105 - a label's value
# On a pod that is to go: the label is the decision, whatever its value, and the annotations say since when and to
# Kubernetes that it goes before others.
DRAINING_LABEL: Final = f"{GROUP}/draining"
DRAINING_SINCE_ANNOTATION: Final = f"{GROUP}/draining-since"
DELETION_COST_ANNOTATION: Final = "controller.kubernetes.io/pod-deletion-cost"
# On a Deployment: what its author had asked when its template went out, and the upgrade that let it out, if one did.
MADE_FOR_ANNOTATION: Final = f"{GROUP}/made-for"
UPGRADED_ANNOTATION: Final = f"{GROUP}/upgraded-to"
# On a resource: `now` lets a template that is held back go out. The operator takes it off when it has.
ROLL_ANNOTATION: Final = f"{GROUP}/roll"
# On a resource: `now` lets it be deleted with what its pods hold.
DELETE_ANNOTATION: Final = f"{GROUP}/delete"
# On a pod or a namespace: which resource of the pod's namespace its sidecar comes from, or that there is to be none.
INJECT_LABEL: Final = f"{GROUP}/inject"
INJECT_OFF: Final = "false"
# On a pod that got one: from which resource, and as it was rendered then.
INJECTED_LABEL: Final = f"{GROUP}/injected"
SIDECAR_HASH_ANNOTATION: Final = f"{GROUP}/sidecar-hash"
APP: Final = "tinybird-proxy"

CONTAINER: Final = "proxy"
SIDECAR_CONTAINER: Final = "tinybird-proxy"
# Whichever of them a sidecar brings along. The same names are in the chart's templates/injection/_cel.tpl.
SIDECAR_VOLUMES: Final = (f"{APP}-no-account", f"{APP}-token", f"{APP}-otlp-headers")
EVENTS_PORT: Final = 8000
ADMIN_PORT: Final = 8001
EVENTS_PORT_NAME: Final = "events"
ADMIN_PORT_NAME: Final = "admin"
TOKEN_DIR: Final = "/etc/tinybird-proxy/tinybird"  # noqa: S105 - a path
CLIENTS_DIR: Final = "/etc/tinybird-proxy/clients"
ADMIN_DIR: Final = "/etc/tinybird-proxy/admin"
OTLP_DIR: Final = "/etc/tinybird-proxy/otlp"
CLIENT_TOKEN_KEY: Final = "token"  # noqa: S105 - a key's name
CLIENT_ACCEPTED_KEY: Final = "accepted"
ADMIN_TOKEN_KEY: Final = "token"  # noqa: S105 - a key's name

# A resource's name is its Service's, so it is a DNS label that begins with a letter; and the longest label made of it
# (a StatefulSet's controller-revision-hash: the name, a dash and ten characters) must fit into 63.
NAME_MAX_LENGTH: Final = 52
NAME_PATTERN: Final = "[a-z]([-a-z0-9]*[a-z0-9])?"


def client_secret(name: str) -> str:
    """The Secret with the token for apps."""
    return f"{name}-client"


def admin_secret(name: str) -> str:
    """The Secret with the admin port's token."""
    return f"{name}-admin"


def metrics_service(name: str) -> str:
    """The Service by which KEDA finds the pods' admin ports."""
    return f"{name}-metrics"


def finalizer(controller_class: str) -> str:
    """What keeps a resource until it is drained. Each class has its own, so that no operator releases another's."""
    return f"{controller_class}.{GROUP}/drain" if controller_class else f"{GROUP}/drain"


def some(names: Sequence[str]) -> str:
    """The first three, and how many more there are, for sentences."""
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def two_digits(value: float) -> int:
    """``value`` with two significant digits, so that a status is not written for every row."""
    if value <= 0:
        return 0
    magnitude: int = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return round(value / magnitude) * magnitude


def selector_labels(name: str) -> dict[str, str]:
    """What the pods of a resource carry and its Service and Deployment select."""
    return {NAME_LABEL: APP, INSTANCE_LABEL: name, PROXY_LABEL: name}


def child_labels(name: str) -> dict[str, str]:
    """What every child carries."""
    return {**selector_labels(name), MANAGED_BY_LABEL: FIELD_MANAGER}


def sidecar_selector(name: str) -> str:
    """``status.selector`` in mode Sidecar: the pods that have one."""
    return f"{INJECTED_LABEL}={name}"


def status_selector(name: str) -> str:
    """``status.selector``: the pods that count, draining ones left out."""
    pairs = [f"{key}={value}" for key, value in sorted(selector_labels(name).items())]
    return ",".join([*pairs, f"!{DRAINING_LABEL}"])


class ConditionType(StrEnum):
    """Every condition, in the order in which people read them."""

    READY = "Ready"
    PROGRESSING = "Progressing"
    DEGRADED = "Degraded"
    TOKEN_VALID = "TokenValid"  # noqa: S105 - a condition
    BUFFER_HEALTHY = "BufferHealthy"
    UPSTREAM_THROTTLED = "UpstreamThrottled"
    AUTOSCALING = "Autoscaling"
    DRAINING = "Draining"
    SIDECARS_CURRENT = "SidecarsCurrent"


class Reason(StrEnum):
    """Every reason of a condition or an Event."""

    READY = "Ready"
    NOT_READY = "NotReady"
    UNMANAGED = "Unmanaged"
    UP_TO_DATE = "UpToDate"
    PRUNED = "Pruned"
    ROLLING_OUT = "RollingOut"
    ROLLOUT_HELD = "RolloutHeld"
    ROLLOUT_FAILED = "RolloutFailed"
    ROLL_ANNOTATION_REMOVED = "RollAnnotationRemoved"
    PREFLIGHT = "Preflight"
    PREFLIGHT_FAILED = "PreflightFailed"
    AS_EXPECTED = "AsExpected"
    NAME_TAKEN = "NameTaken"
    INVALID_SPEC = "InvalidSpec"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105
    SECRET_KEY_MISSING = "SecretKeyMissing"  # noqa: S105
    SECRET_NOT_SHARED = "SecretNotShared"  # noqa: S105
    SECRET_IMMUTABLE = "SecretImmutable"  # noqa: S105
    SECRET_MALFORMED = "SecretMalformed"  # noqa: S105
    UPSTREAM_NOT_ALLOWED = "UpstreamNotAllowed"
    COLLECTOR_NOT_ALLOWED = "CollectorNotAllowed"
    IMAGE_NOT_ALLOWED = "ImageNotAllowed"
    APPLY_REFUSED = "ApplyRefused"
    PODS_FAILING = "PodsFailing"
    ACCEPTED = "Accepted"
    REJECTED = "Rejected"
    CANDIDATE_REJECTED = "CandidateRejected"
    NOT_USED_YET = "NotUsedYet"
    CLIENTS_OWN_TOKENS = "ClientsOwnTokens"
    HEALTHY = "Healthy"
    FILLING = "Filling"
    FULL = "Full"
    NOT_DELIVERING = "NotDelivering"
    OUT_OF_MEMORY = "OutOfMemory"
    KILLED = "Killed"
    UNKNOWN = "Unknown"
    THROTTLED = "Throttled"
    NOT_THROTTLED = "NotThrottled"
    SCALING = "Scaling"
    NOT_SCALING = "NotScaling"
    AT_MAXIMUM = "AtMaximum"
    AT_MINIMUM = "AtMinimum"
    SCALED_TO_ZERO = "ScaledToZero"
    METRICS_UNAVAILABLE = "MetricsUnavailable"
    METRICS_API_OWNED_BY_OTHER = "MetricsAPIOwnedByOther"
    TARGETS_LEFT_OUT = "TargetsLeftOut"
    FOREIGN_HPA = "ForeignHPA"
    EXTERNAL = "External"
    CLIENT_TOKEN_REPLACED = "ClientTokenReplaced"  # noqa: S105
    CLIENT_TOKEN_ROTATED = "ClientTokenRotated"  # noqa: S105
    DELETING = "Deleting"
    SCALING_DOWN = "ScalingDown"
    WRONG_POD_REMOVED = "WrongPodRemoved"
    DRAIN_DEADLINE_EXCEEDED = "DrainDeadlineExceeded"
    ROWS_DROPPED = "RowsDropped"
    ROWS_LOST = "RowsLost"
    ROWS_UNACCOUNTED = "RowsUnaccounted"
    DEAD_LETTERS_DROPPED = "DeadLettersDropped"
    SIDECARS_CURRENT = "SidecarsCurrent"
    SIDECARS_MISSED = "SidecarsMissed"
    SIDECARS_REFUSED = "SidecarsRefused"
    SIDECARS_STALE = "SidecarsStale"
    INJECTION_OFF = "InjectionOff"
    INJECTED_BY_OTHERS = "InjectedByOthers"
    EVICTED = "Evicted"
    EVICTION_REFUSED = "EvictionRefused"
    EVICTION_USELESS = "EvictionUseless"
    GRACE_PERIOD_TOO_SHORT = "GracePeriodTooShort"
