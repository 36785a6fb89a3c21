"""The metrics API's settings: environment variables, written by its chart, validated whole. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tinybird_proxy_operator.errors import SettingsError
from tinybird_proxy_operator.metrics_api.renewal import Lifetimes
from tinybird_proxy_operator.variables import Reader, choice, dns_label, integer, matching

_DAY_S: Final = 86_400
# Both overlaps of a new CA must end long before what they are for does.
_OVERLAPS_IN_LIFETIME: Final = 4
_name = matching(
    re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"),
    "must be an object's name: lower-case letters, digits, dashes and dots",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsApiSettings:
    """Where it runs, and under which names others find it."""

    namespace: str
    service: str
    cluster_role: str
    secret: str
    port: int
    metrics_port: int
    lifetimes: Lifetimes
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["auto", "json", "console"]

    @property
    def server_names(self) -> tuple[str, ...]:
        """The names of the Service, the one that the API server uses first."""
        service = f"{self.service}.{self.namespace}"
        return (f"{service}.svc", self.service, service, f"{service}.svc.cluster.local")


def from_env(env: Mapping[str, str]) -> MetricsApiSettings:
    """Read the settings from ``env``. Raises ``SettingsError`` with every problem at once."""
    read = Reader(env)
    settings = MetricsApiSettings(
        namespace=read.one("POD_NAMESPACE", dns_label, None),
        service=read.one("SERVICE_NAME", dns_label, None),
        cluster_role=read.one("CLUSTER_ROLE", _name, None),
        secret=read.one("CERTIFICATE_SECRET", _name, None),
        port=read.one("TLS_PORT", integer(1, 65_535), "6443"),
        metrics_port=read.one("METRICS_PORT", integer(1, 65_535), "8080"),
        lifetimes=Lifetimes(
            serving_s=read.one("CERTIFICATE_LIFETIME_SECONDS", integer(20, 3650 * _DAY_S), str(90 * _DAY_S)),
            overlap_s=read.one("CERTIFICATE_OVERLAP_SECONDS", integer(1, 30 * _DAY_S), "600"),
        ),
        log_level=read.one("LOG_LEVEL", choice("debug", "info", "warning", "error"), "info"),
        log_format=read.one("LOG_FORMAT", choice("auto", "json", "console"), "auto"),
    )
    if not read.problems and settings.port == settings.metrics_port:
        read.problems.append("METRICS_PORT: must not be TLS_PORT")
    lifetimes = settings.lifetimes
    if not read.problems and lifetimes.serving_s < _OVERLAPS_IN_LIFETIME * lifetimes.overlap_s:
        text = f"must be at most a quarter of CERTIFICATE_LIFETIME_SECONDS ({lifetimes.serving_s})"
        read.problems.append(f"CERTIFICATE_OVERLAP_SECONDS: {lifetimes.overlap_s}: {text}")
    if read.problems:
        raise SettingsError(read.problems)
    return settings
