"""A TinybirdProxy as Python values: the spec's fields with their defaults, read from what the API server gives.

The CRD's schema has refused most of what is wrong before; what it cannot say is refused here, in sentences. Pure.
"""

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from tinybird_proxy_operator.errors import SpecError

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(k|M|G|T|Ki|Mi|Gi|Ti)?")
DRAIN_DELAY_S = 5
GRACE_MARGIN_S = 10
Mode = Literal["Deployment", "Sidecar"]


class Headroom(msgspec.Struct, frozen=True):
    """Memory that a proxy needs beside its buffer: below ``least`` the kernel would end it, and what is buffered."""

    default_bytes: int
    least_bytes: int


MEMORY_HEADROOM: Final[Mapping[Mode, Headroom]] = {
    "Deployment": Headroom(default_bytes=384 * 2**20, least_bytes=256 * 2**20),
    "Sidecar": Headroom(default_bytes=192 * 2**20, least_bytes=128 * 2**20),
}
# What differs for a proxy that is a guest in an app's pod. 20 s, with GRACE_MARGIN_S, is the grace period that
# Kubernetes gives a pod by default.
SIDECAR_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "buffer": {"maxRows": 100_000, "maxSize": "64Mi"},
    "drain": {"shutdownTimeoutSeconds": 20},
}


class _Struct(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Fields are written in camelCase, as in Kubernetes."""


class SecretKey(_Struct, frozen=True):
    """One key of a Secret in the resource's namespace."""

    name: str
    key: str = "token"


class HeadersKey(SecretKey, frozen=True):
    """The same for headers, as ``name=value,name2=value2``."""

    key: str = "headers"


class Tinybird(_Struct, frozen=True):
    """Where rows go; ``token_secret_ref`` None: each client's own token is forwarded."""

    url: str = "https://api.tinybird.co"
    token_secret_ref: SecretKey | None = None


class Clients(_Struct, frozen=True):
    """What clients must show. None: a generated Secret ``<name>-client``, and the rest is about that one."""

    token_secret_ref: SecretKey | None = None
    overlap_seconds: int = 86_400
    secret_deletion_policy: Literal["Delete", "Retain"] = "Delete"  # noqa: S105 - no password


class Batch(_Struct, frozen=True):
    """What leaves in one request to Tinybird."""

    max_rows: int = 100_000
    max_size: str | int = "10M"
    flush_interval_milliseconds: int = 1000


class Buffer(_Struct, frozen=True):
    """What one proxy holds until Tinybird has answered. Defaults: mode Deployment's, see ``SIDECAR_DEFAULTS``."""

    max_rows: int = 1_000_000
    max_size: str | int = "512Mi"


class Targets(_Struct, frozen=True):
    """What one pod should come to, on average; see ``scaling.targets``. None: not a reason to scale."""

    buffer_utilization_percent: int | None = None
    buffer_rows_per_pod: int | None = None
    drain_time_seconds: int | None = None
    cpu_percent: int | None = None


class Autoscaling(_Struct, frozen=True):
    """Who writes ``replicas``, and from what. ``behavior``: as in autoscaling/v2, checked by the schema alone."""

    max_replicas: int
    min_replicas: int = 1
    targets: Targets = Targets()
    behavior: dict[str, Any] = {}
    provider: Literal["Builtin", "PrometheusAdapter", "KEDA", "External"] = "Builtin"


class Drain(_Struct, frozen=True):
    """How long a stopping pod may go on delivering, how long deletion and scale-down wait for rows, and what then."""

    shutdown_timeout_seconds: int = 50
    deadline_seconds: int = 300
    on_deadline: Literal["Keep", "Drop"] = "Keep"


class Telemetry(_Struct, frozen=True):
    """Where the flush spans go, and with what. Rows never wait for either."""

    otlp_endpoint: str | None = None
    otlp_headers_secret_ref: HeadersKey | None = None


class Monitoring(_Struct, frozen=True):
    """Objects of prometheus-operator."""

    pod_monitor: Literal["Enabled", "Disabled"] = "Disabled"


class Service(_Struct, frozen=True):
    """The Service in front of the pods."""

    policy: Literal["Managed", "None"] = "Managed"
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    port: int = 80
    annotations: dict[str, str] = {}


class NetworkPolicy(_Struct, frozen=True):
    """Who may reach the pods. ``from_peers`` empty: the whole cluster."""

    policy: Literal["Managed", "None"] = "Managed"
    from_peers: list[dict[str, Any]] = msgspec.field(default_factory=list, name="from")
    metrics_from: list[dict[str, Any]] = []


class PodDisruptionBudget(_Struct, frozen=True):
    """How many pods may be evicted at a time."""

    policy: Literal["Managed", "None"] = "Managed"
    max_unavailable: int | str = 1


class Ingress(_Struct, frozen=True):
    """A way in from outside; off unless asked for."""

    policy: Literal["Managed", "None"] = "None"
    class_name: str | None = None
    host: str | None = None
    tls_secret_name: str | None = None
    annotations: dict[str, str] = {}


class SidecarPorts(_Struct, frozen=True):
    """The ports that a sidecar takes in an app's pod."""

    events: int = 18000  # 8000 and 8001 are many an app's own
    admin: int = 18001


class Sidecar(_Struct, frozen=True):
    """How the container comes into apps' pods."""

    ports: SidecarPorts = SidecarPorts()
    set_url: Literal["Enabled", "Disabled"] = msgspec.field(default="Enabled", name="setURL")
    grace_period: Literal["Check", "Raise"] = "Check"
    rollout: Literal["Manual", "Evict"] = "Manual"


class Pod(_Struct, frozen=True):
    """What of the pods may be chosen: a bounded list, no raw template."""

    resources: dict[str, Any] = {}
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []
    affinity: dict[str, Any] = {}
    topology_spread_constraints: list[dict[str, Any]] = []
    priority_class_name: str | None = None
    annotations: dict[str, str] = {}
    labels: dict[str, str] = {}
    env: list[dict[str, Any]] = []


class ProxySpec(_Struct, frozen=True):
    """``spec`` of a TinybirdProxy."""

    mode: Mode = "Deployment"
    management_state: Literal["Managed", "Unmanaged"] = "Managed"
    controller_class: str = ""
    image: str | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: list[dict[str, str]] = []
    replicas: int | None = None
    autoscaling: Autoscaling | None = None
    tinybird: Tinybird = Tinybird()
    clients: Clients = Clients()
    batch: Batch = Batch()
    buffer: Buffer = Buffer()
    drain: Drain = Drain()
    telemetry: Telemetry = Telemetry()
    monitoring: Monitoring = Monitoring()
    service: Service = Service()
    network_policy: NetworkPolicy = NetworkPolicy()
    pod_disruption_budget: PodDisruptionBudget = PodDisruptionBudget()
    ingress: Ingress = Ingress()
    sidecar: Sidecar = Sidecar()
    pod: Pod = Pod()
    preflight: Literal["Enabled", "Disabled"] = "Enabled"


class Proxy(msgspec.Struct, frozen=True, kw_only=True):
    """A TinybirdProxy: who it is, and what it asks for."""

    name: str
    namespace: str
    uid: str
    generation: int
    resource_version: str
    annotations: dict[str, str]
    deleting: bool
    spec: ProxySpec


def parse(body: Mapping[str, Any]) -> Proxy:
    """Read a resource as the API server gives it. Raises ``SpecError``."""
    metadata = body["metadata"]
    try:
        spec = msgspec.convert(_with_mode_defaults(body.get("spec") or {}), ProxySpec)
    except msgspec.ValidationError as error:
        raise SpecError([f"spec: {error}"]) from error
    return Proxy(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        resource_version=metadata.get("resourceVersion", ""),
        annotations=dict(metadata.get("annotations") or {}),
        deleting="deletionTimestamp" in metadata,
        spec=spec,
    )


def without_spec(body: Mapping[str, Any]) -> Proxy:
    """The resource with nothing of a spec that cannot be read but the mode, which decides what there is to look at.

    Good for telling, not for carrying out.
    """
    given = body.get("spec")
    mode = given.get("mode") if isinstance(given, Mapping) else None
    return parse({**body, "spec": {"mode": "Sidecar"} if mode == "Sidecar" else {}})


def without_headers(proxy: Proxy) -> Proxy:
    """The resource as if it named no headers for its collector."""
    telemetry = msgspec.structs.replace(proxy.spec.telemetry, otlp_headers_secret_ref=None)
    return msgspec.structs.replace(proxy, spec=msgspec.structs.replace(proxy.spec, telemetry=telemetry))


def _with_mode_defaults(spec: Any) -> Any:
    """``spec`` as it was given, with what is absent and is not mode Deployment's default."""
    if not isinstance(spec, Mapping) or spec.get("mode") != "Sidecar":
        return spec
    filled = dict(spec)
    for part, defaults in SIDECAR_DEFAULTS.items():
        given = spec.get(part, {})
        filled[part] = {**defaults, **given} if isinstance(given, Mapping) else given
    return filled


def quantity_bytes(quantity: str | int, *, field: str) -> int:
    """A size as Kubernetes writes it (512Mi, 10M, 1000) in bytes. Raises ``SpecError``."""
    match = _QUANTITY.fullmatch(str(quantity))
    try:
        value = Decimal(match[1]) * _UNITS[match[2] or ""] if match else None
    except InvalidOperation:
        value = None
    if value is None:
        raise SpecError([f"{field}: {quantity!r} is not a size such as 512Mi or 10M"])
    return int(value)


def host_of(url: str) -> str:
    """The host of a URL, lower-case; empty if there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def image_repository(image: str) -> str:
    """``image`` without its tag and digest."""
    name = image.partition("@")[0]
    path, slash, last = name.rpartition("/")
    return f"{path}{slash}{last.partition(':')[0]}"


def image_is_allowed(image: str, patterns: Sequence[str]) -> bool:
    """Whether ``image`` equals one of ``patterns``, is of a repository among them, or begins like one in ``/*``."""
    for pattern in patterns:
        if pattern in ("*", image, image_repository(image)):
            return True
        if pattern.endswith("/*") and image.startswith(pattern[:-1]):
            return True
    return False


def host_is_allowed(host: str, patterns: Sequence[str]) -> bool:
    """Whether ``host`` equals one of ``patterns``, or ends like one that begins with ``*.``; ``*`` is any host."""
    for pattern in patterns:
        if pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:]) and host != pattern[2:]):
            return True
    return False
