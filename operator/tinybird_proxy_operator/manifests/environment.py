"""The container's environment: what the spec says in the proxy's own options, then what users add.

Options are named by their field in ``tinybird_proxy.config``, so that a renamed one fails here, not in a pod.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from tinybird_proxy.config import OPTIONS
from tinybird_proxy_operator import names
from tinybird_proxy_operator.errors import SpecError
from tinybird_proxy_operator.manifests.desired import Desired
from tinybird_proxy_operator.spec import DRAIN_DELAY_S, Autoscaling, ProxySpec, quantity_bytes

# IPv4's is there in every pod, also where the pods' own addresses are of IPv6 alone.
LOOPBACK: Final = "127.0.0.1"
# Of both families: kubelet, Services and the operator use the one that the cluster gives its pods.
EVERY_ADDRESS: Final = "::"
TOKEN_FILE_NAME: Final = "token"  # noqa: S105 - a file's name
ACCEPTED_FILE_NAME: Final = "accepted"
HEADERS_FILE_NAME: Final = "headers"
_OPTIONS: Final = {option.field: option for option in OPTIONS}
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_NODE_ID: Final = _OPTIONS["node_id"].variable

# Requests a second to one data source, in all: Tinybird allows 100. The proxy's own default is the same.
RATE_PER_DATA_SOURCE: Final = 90


def has_own_token(spec: ProxySpec) -> bool:
    """Whether rows go to Tinybird with a token of the resource's, not with each client's."""
    return spec.tinybird.token_secret_ref is not None


def checks_clients(spec: ProxySpec) -> bool:
    """Whether clients must show a token of ours: wherever Tinybird does not judge theirs. On localhost nobody must."""
    return not is_sidecar(spec) and (has_own_token(spec) or spec.clients.token_secret_ref is not None)


def is_sidecar(spec: ProxySpec) -> bool:
    """Whether the proxy is a container in apps' pods."""
    return spec.mode == "Sidecar"


def events_port(spec: ProxySpec) -> int:
    """Where rows come in."""
    return spec.sidecar.ports.events if is_sidecar(spec) else names.EVENTS_PORT


def admin_port(spec: ProxySpec) -> int:
    """Where probes and the operator ask."""
    return spec.sidecar.ports.admin if is_sidecar(spec) else names.ADMIN_PORT


def _admin_host(spec: ProxySpec) -> str:
    # A sidecar's too: kubelet's probes and the operator do not come from inside the pod.
    return EVERY_ADDRESS


def _host(spec: ProxySpec) -> str:
    return LOOPBACK if is_sidecar(spec) else EVERY_ADDRESS


# The option's field in `config`, the spec's field it comes from ("": the operator's own choice), and its value.
_SETTINGS: Final[tuple[tuple[str, str, Callable[[ProxySpec], str | None]], ...]] = (
    ("port", "", lambda spec: str(events_port(spec))),
    ("host", "", _host),
    ("admin_port", "", lambda spec: str(admin_port(spec))),
    ("admin_host", "", _admin_host),
    # Nobody tells a sidecar to drain. Without a token the port's actions are for who is in the pod.
    ("admin_token_file", "", lambda spec: None if is_sidecar(spec) else f"{names.ADMIN_DIR}/{TOKEN_FILE_NAME}"),
    ("tinybird_url", "tinybird.url", lambda spec: spec.tinybird.url),
    (
        "tinybird_token_file",
        "tinybird.tokenSecretRef",
        lambda spec: f"{names.TOKEN_DIR}/{TOKEN_FILE_NAME}" if has_own_token(spec) else None,
    ),
    (
        "authorization_token_file",
        "clients.tokenSecretRef",
        lambda spec: f"{names.CLIENTS_DIR}/{ACCEPTED_FILE_NAME}" if checks_clients(spec) else None,
    ),
    ("batch_size", "batch.maxRows", lambda spec: str(spec.batch.max_rows)),
    ("batch_bytes", "batch.maxSize", lambda spec: _plain_bytes(spec.batch.max_size, "spec.batch.maxSize")),
    (
        "flush_interval_s",
        "batch.flushIntervalMilliseconds",
        lambda spec: f"{spec.batch.flush_interval_milliseconds}ms",
    ),
    ("buffer_size", "buffer.maxRows", lambda spec: str(spec.buffer.max_rows)),
    ("buffer_bytes", "buffer.maxSize", lambda spec: _plain_bytes(spec.buffer.max_size, "spec.buffer.maxSize")),
    # The apps of a sidecar's pod have ended when it is told to stop.
    ("drain_delay_s", "", lambda spec: f"{0 if is_sidecar(spec) else DRAIN_DELAY_S}s"),
    ("shutdown_timeout_s", "drain.shutdownTimeoutSeconds", lambda spec: f"{spec.drain.shutdown_timeout_seconds}s"),
    (
        "otlp_headers_file",
        "telemetry.otlpHeadersSecretRef",
        lambda spec: f"{names.OTLP_DIR}/{HEADERS_FILE_NAME}" if spec.telemetry.otlp_headers_secret_ref else None,
    ),
)

# What autoscaling sets beside, unless users add it themselves.
AUTOSCALED: Final[Mapping[str, Callable[[Autoscaling], str]]] = {
    # Tinybird's limit is all pods' together. Shared out among the most there may be: with the number of those that
    # there are, each scaling would replace them.
    _OPTIONS["upstream_rate"].variable: lambda autoscaling: str(
        max(1, math.floor(RATE_PER_DATA_SOURCE / autoscaling.max_replicas))
    ),
    # A new pod gets rows from connections that are new. In a simulation of a spike a quarter of the rows were refused
    # with the proxy's own 5 min, and a twentieth with this.
    _OPTIONS["keepalive_max_age_s"].variable: lambda _: "30s",
}

# What a sidecar has beside, unless users set it themselves: small pools of memory, for it is a guest.
SIDECAR_POOLS: Final[Mapping[str, str]] = {
    _OPTIONS["receive_bytes"].variable: "16MB",
    _OPTIONS["dead_letter_bytes"].variable: "16MB",
    _OPTIONS["max_inflated_bytes"].variable: "16MB",
}
_TOKEN_FILE_WAIT: Final = _OPTIONS["token_file_wait"].variable

# Which field of the spec a variable comes from.
SPEC_FIELDS: Final[Mapping[str, str]] = {
    **{_OPTIONS[option].variable: f"spec.{field}" for option, field, _ in _SETTINGS if field},
    "TINYBIRD_TOKEN": "spec.tinybird.tokenSecretRef",
    _ENDPOINT: "spec.telemetry.otlpEndpoint",
}


def _plain_bytes(quantity: str | int, field: str) -> str:
    # 512Mi is not 512MB, and only bytes mean the same to everyone.
    return str(quantity_bytes(quantity, field=field))


def _reserved() -> dict[str, str]:
    """Names that users may not set, and why."""
    reserved = {}
    for option in OPTIONS:
        for variable in (option.variable, *option.aliases):
            if option.secret:
                reserved[variable] = "would show a token to everyone who may read the resource; use a tokenSecretRef"
            elif variable.endswith("_FILE"):
                reserved[variable] = "names a file that nothing mounts"
    ours = [_OPTIONS[field] for field, _, _ in _SETTINGS] + [_OPTIONS["node_id"]]
    for option in ours:
        for variable in (option.variable, *option.aliases):
            field = SPEC_FIELDS.get(option.variable)
            reserved[variable] = f"is set by the operator; use {field}" if field else "is set by the operator"
    for variable in (_ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        reserved[variable] = f"is set by the operator; use {SPEC_FIELDS[_ENDPOINT]}"
    return reserved


RESERVED: Final[Mapping[str, str]] = _reserved()
# Nothing else: libraries read variables too, and with LOCALDOMAIN, HTTPS_PROXY or SSLKEYLOGFILE the token could be led
# past the operator's lists of allowed hosts. The last three prefixes are for names that others refer to as $(…).
ALLOWED: Final = frozenset(option.variable for option in OPTIONS) - RESERVED.keys()
ALLOWED_PATTERN: Final = "TZ|(OTEL|POD|NODE|K8S)_[A-Z0-9_]+"
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


_NOT_ALLOWED: Final = (
    "is none of the proxy's options, and might lead what it sends elsewhere. Others may be TZ, or begin with OTEL_, or,"
    " for use as $(…), with POD_, NODE_ or K8S_"
)


def problems(spec: ProxySpec) -> list[str]:
    """What is wrong with the entries that users add, as sentences."""
    found = []
    seen: set[str] = set()
    for index, entry in enumerate(spec.pod.env):
        name = entry.get("name")
        where = f"spec.pod.env[{index}]"
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            found.append(f"{where}.name: {name!r} is not the name of a variable")
        elif name in RESERVED:
            found.append(f"{where}: {name} {RESERVED[name]}")
        elif name not in ALLOWED and not re.fullmatch(ALLOWED_PATTERN, name):
            found.append(f"{where}: {name} {_NOT_ALLOWED}")
        elif name in seen:
            found.append(f"{where}: {name} is there twice; leave one of them out")
        elif not _is_plain(entry) and not _is_field(entry):
            found.append(f"{where}: {name} must have either a value or a valueFrom.fieldRef, nothing else")
        if isinstance(name, str):
            seen.add(name)
    return found


def _is_plain(entry: Mapping[str, Any]) -> bool:
    return entry.keys() <= {"name", "value"} and isinstance(entry.get("value", ""), str)


def _is_field(entry: Mapping[str, Any]) -> bool:
    # Nothing else: a secretKeyRef would hand any Secret of the namespace to whoever may write a TinybirdProxy.
    source = entry.get("valueFrom")
    return entry.keys() == {"name", "valueFrom"} and isinstance(source, dict) and source.keys() == {"fieldRef"}


def operator_env(spec: ProxySpec) -> list[dict[str, Any]]:
    """The entries that the operator sets. Raises ``SpecError`` for a size that is none."""
    entries: list[dict[str, Any]] = []
    for field, _, value_of in _SETTINGS:
        value = value_of(spec)
        if value is not None:
            entries.append({"name": _OPTIONS[field].variable, "value": value})
    if spec.autoscaling is not None:
        given = {entry.get("name") for entry in spec.pod.env}
        autoscaled = {name: value_of(spec.autoscaling) for name, value_of in AUTOSCALED.items() if name not in given}
        entries += ({"name": name, "value": value} for name, value in autoscaled.items())
    if is_sidecar(spec):
        given = {entry.get("name") for entry in spec.pod.env}
        # A Secret that is not there yet holds the rows. It must not keep the app from starting, which waits for us.
        beside = {_TOKEN_FILE_WAIT: "true"} if has_own_token(spec) else {}
        beside = {name: value for name, value in {**beside, **SIDECAR_POOLS}.items() if name not in given}
        entries += ({"name": name, "value": value} for name, value in beside.items())
    if spec.telemetry.otlp_endpoint:
        entries.append({"name": _ENDPOINT, "value": spec.telemetry.otlp_endpoint})
    entries.append({"name": _NODE_ID, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}})
    return entries


def user_values(spec: ProxySpec) -> dict[str, str]:
    """The plain values that users add."""
    plain = (entry for entry in spec.pod.env if _is_plain(entry) and isinstance(entry.get("name"), str))
    return {entry["name"]: entry.get("value", "") for entry in plain}


def container_env(desired: Desired) -> list[dict[str, Any]]:
    """The container's ``env``. Raises ``SpecError`` naming each entry of a user's that may not be."""
    spec = desired.proxy.spec
    if found := problems(spec):
        raise SpecError(found)
    return [*operator_env(spec), *(dict(entry) for entry in spec.pod.env)]
