"""The webhook's settings: environment variables, written by its chart, validated whole. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tinybird_proxy_operator.errors import SettingsError
from tinybird_proxy_operator.serving.renewal import Lifetimes
from tinybird_proxy_operator.serving.settings import lifetimes, object_name, ports, server_names
from tinybird_proxy_operator.variables import Reader, choice, dns_label


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCertificates:
    """It makes them itself, keeps them in ``secret``, and writes their CA into ``configuration``."""

    configuration: str
    secret: str
    lifetimes: Lifetimes


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """Where it runs, and how it is found. ``certificates``: a directory if somebody else makes them."""

    namespace: str
    service: str
    port: int
    metrics_port: int
    certificates: OwnCertificates | str
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["auto", "json", "console"]

    @property
    def server_names(self) -> tuple[str, ...]:
        """The names of the Service, the one that the API server uses first."""
        return server_names(self.service, self.namespace)


def from_env(env: Mapping[str, str]) -> WebhookSettings:
    """Read the settings from ``env``. Raises ``SettingsError`` with every problem at once."""
    read = Reader(env)
    namespace, service = read.one("POD_NAMESPACE", dns_label, None), read.one("SERVICE_NAME", dns_label, None)
    port, metrics_port = ports(read)
    settings = WebhookSettings(
        namespace=namespace,
        service=service,
        port=port,
        metrics_port=metrics_port,
        certificates=_certificates(env, read),
        log_level=read.one("LOG_LEVEL", choice("debug", "info", "warning", "error"), "info"),
        log_format=read.one("LOG_FORMAT", choice("auto", "json", "console"), "auto"),
    )
    if read.problems:
        raise SettingsError(read.problems)
    return settings


def _certificates(env: Mapping[str, str], read: Reader) -> OwnCertificates | str:
    if "CERTIFICATE_DIRECTORY" in env:
        return read.one("CERTIFICATE_DIRECTORY", str, None)
    configuration = read.one("WEBHOOK_CONFIGURATION", object_name, None)
    secret = read.one("CERTIFICATE_SECRET", object_name, None)
    return OwnCertificates(configuration=configuration, secret=secret, lifetimes=lifetimes(read))
