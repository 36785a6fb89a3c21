"""The operator's own settings: environment variables, written by its chart, validated whole. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from tinybird_proxy import __version__
from tinybird_proxy_operator.errors import SettingsError
from tinybird_proxy_operator.lease import Timing
from tinybird_proxy_operator.names import FIELD_MANAGER
from tinybird_proxy_operator.spec import image_repository
from tinybird_proxy_operator.variables import Reader as _Reader
from tinybird_proxy_operator.variables import choice as _choice
from tinybird_proxy_operator.variables import dns_label as _dns_label
from tinybird_proxy_operator.variables import integer as _integer
from tinybird_proxy_operator.variables import label as _label
from tinybird_proxy_operator.variables import matching as _matching

DEFAULT_PROXY_IMAGE: Final = f"ghcr.io/tinybird-proxy/tinybird-proxy:{__version__}"
_HOST_PATTERN: Final = re.compile(r"\*|(\*\.)?[a-z0-9]([a-z0-9._-]*[a-z0-9])?|[0-9a-f:.]+")
_IMAGE_PATTERN: Final = re.compile(r"\*|[A-Za-z0-9][A-Za-z0-9._:/@-]*(/\*)?")

PullPolicy = Literal["Always", "IfNotPresent", "Never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """What whoever installs the operator sets.

    ``watch_namespaces`` empty: all. ``pod_monitors``, ``scaled_objects``: whether the operator has the right to make
    any. ``metrics_api_service``: in its namespace, serves the pods' metrics to HPAs, from pods with the labels
    ``metrics_api_pod_labels``; empty: none does. ``injection``: how sidecars come into pods.
    ``allowed_*`` are patterns, see ``spec.host_is_allowed`` and ``image_is_allowed``.
    """

    proxy_image: str
    proxy_image_pull_policy: PullPolicy
    allowed_upstreams: tuple[str, ...]
    allowed_collectors: tuple[str, ...]
    allowed_images: tuple[str, ...]
    controller_class: str
    operator_namespace: str
    operator_pod_name: str
    operator_pod_labels: Mapping[str, str]
    watch_namespaces: tuple[str, ...]
    resync_seconds: int
    metrics_port: int
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["auto", "json", "console"]
    upgrade_max_concurrent: int
    pod_monitors: bool = False
    scaled_objects: bool = False
    metrics_api_service: str = ""
    metrics_api_pod_labels: Mapping[str, str] = field(default_factory=dict)
    injection: Literal["None", "Webhook", "Policy"] = "None"
    lease_name: str = FIELD_MANAGER
    lease_timing: Timing = Timing()  # noqa: RUF009 - frozen


def from_env(env: Mapping[str, str]) -> OperatorSettings:
    """Read the settings from ``env``. Raises ``SettingsError`` with every problem at once.

    A list that is set but empty is an empty list; every other variable that is set but empty is a problem.
    """
    read = _Reader(env)
    proxy_image = read.one("PROXY_IMAGE", _image, DEFAULT_PROXY_IMAGE)
    settings = OperatorSettings(
        proxy_image=proxy_image,
        proxy_image_pull_policy=read.one(
            "PROXY_IMAGE_PULL_POLICY", _choice("Always", "IfNotPresent", "Never"), "IfNotPresent"
        ),
        allowed_upstreams=read.list("ALLOWED_UPSTREAMS", _host_pattern, "*.tinybird.co"),
        allowed_collectors=read.list("ALLOWED_COLLECTORS", _host_pattern, ""),
        allowed_images=read.list("ALLOWED_IMAGES", _image_pattern, image_repository(proxy_image)),
        controller_class=env.get("CONTROLLER_CLASS", "").strip(),
        operator_namespace=read.one("POD_NAMESPACE", _dns_label, None),
        operator_pod_name=read.one("POD_NAME", str, FIELD_MANAGER),
        operator_pod_labels=_labels(read),
        metrics_api_pod_labels=dict(read.list("METRICS_API_POD_LABELS", _label, "")),
        watch_namespaces=read.list("WATCH_NAMESPACES", _dns_label, ""),
        resync_seconds=read.one("RESYNC_SECONDS", _integer(1, 86_400), "300"),
        metrics_port=read.one("METRICS_PORT", _integer(1, 65_535), "8080"),
        log_level=read.one("LOG_LEVEL", _choice("debug", "info", "warning", "error"), "info"),
        log_format=read.one("LOG_FORMAT", _choice("auto", "json", "console"), "auto"),
        upgrade_max_concurrent=read.one("UPGRADE_MAX_CONCURRENT", _integer(1, 1000), "1"),
        lease_name=read.one("LEASE_NAME", _dns_label, FIELD_MANAGER),
        lease_timing=_lease_timing(read),
        pod_monitors=read.one("POD_MONITORS", _choice("true", "false"), "false") == "true",
        scaled_objects=read.one("SCALED_OBJECTS", _choice("true", "false"), "false") == "true",
        metrics_api_service=env.get("METRICS_API_SERVICE", "").strip(),
        injection=read.one("SIDECAR_INJECTION", _choice("None", "Webhook", "Policy"), "None"),
    )
    if read.problems:
        raise SettingsError(read.problems)
    return settings


def _labels(read: _Reader) -> Mapping[str, str]:
    labels = dict(read.list("OPERATOR_POD_LABELS", _label, ""))
    # Without them the NetworkPolicies would open the admin ports to every pod of the operator's namespace.
    if not labels and not any(problem.startswith("OPERATOR_POD_LABELS") for problem in read.problems):
        read.problems.append("OPERATOR_POD_LABELS: is missing; give the labels of the operator's pods as key=value,…")
    return labels


def _lease_timing(read: _Reader) -> Timing:
    before = len(read.problems)
    defaults = Timing()
    timing = Timing(
        lease_duration_s=read.one("LEASE_DURATION_SECONDS", _integer(1, 3600), str(defaults.lease_duration_s)),
        renew_deadline_s=read.one("LEASE_RENEW_DEADLINE_SECONDS", _integer(1, 3600), str(defaults.renew_deadline_s)),
        retry_period_s=read.one("LEASE_RETRY_PERIOD_SECONDS", _integer(1, 3600), str(defaults.retry_period_s)),
    )
    if len(read.problems) == before and (problem := timing.problem()) is not None:
        read.problems.append(problem)
    return timing


_image = _matching(re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*"), "must be an image such as ghcr.io/org/name:tag")
_image_pattern = _matching(
    _IMAGE_PATTERN, "must be an image, a repository (any tag or digest of it), a path ending in /*, or * alone"
)


def _host_pattern(text: str) -> str:
    return _matching(_HOST_PATTERN, "must be a host, *.domain or * alone; no scheme, port or path")(text.lower())
