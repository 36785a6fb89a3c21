"""The metrics API's settings: environment variables, written by its chart, validated whole. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tinybird_proxy_operator.errors import SettingsError
from tinybird_proxy_operator.serving.renewal import Lifetimes
from tinybird_proxy_operator.serving.settings import lifetimes, object_name, ports, server_names
from tinybird_proxy_operator.variables import Reader, choice, dns_label


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
        return server_names(self.service, self.namespace)


def from_env(env: Mapping[str, str]) -> MetricsApiSettings:
    """Read the settings from ``env``. Raises ``SettingsError`` with every problem at once."""
    read = Reader(env)
    namespace, service = read.one("POD_NAMESPACE", dns_label, None), read.one("SERVICE_NAME", dns_label, None)
    cluster_role, secret = (read.one(name, object_name, None) for name in ("CLUSTER_ROLE", "CERTIFICATE_SECRET"))
    port, metrics_port = ports(read)
    settings = MetricsApiSettings(
        namespace=namespace,
        service=service,
        cluster_role=cluster_role,
        secret=secret,
        port=port,
        metrics_port=metrics_port,
        lifetimes=lifetimes(read),
        log_level=read.one("LOG_LEVEL", choice("debug", "info", "warning", "error"), "info"),
        log_format=read.one("LOG_FORMAT", choice("auto", "json", "console"), "auto"),
    )
    if read.problems:
        raise SettingsError(read.problems)
    return settings
