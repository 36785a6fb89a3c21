"""Settings that every process has that the API server connects to. Pure."""

import re
from typing import Final

from tinybird_proxy_operator.serving.renewal import Lifetimes
from tinybird_proxy_operator.variables import Reader, integer, matching

_DAY_S: Final = 86_400
# Both overlaps of a new CA must end long before what they are for does.
_OVERLAPS_IN_LIFETIME: Final = 4
object_name = matching(
    re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"),
    "must be an object's name: lower-case letters, digits, dashes and dots",
)


def server_names(service: str, namespace: str) -> tuple[str, ...]:
    """The names of a Service, the one that the API server uses first."""
    with_namespace = f"{service}.{namespace}"
    return (f"{with_namespace}.svc", service, with_namespace, f"{with_namespace}.svc.cluster.local")


def ports(read: Reader) -> tuple[int, int]:
    """Of TLS, and of metrics and probes."""
    known = len(read.problems)
    port = read.one("TLS_PORT", integer(1, 65_535), "6443")
    metrics_port = read.one("METRICS_PORT", integer(1, 65_535), "8080")
    if len(read.problems) == known and port == metrics_port:
        read.problems.append("METRICS_PORT: must not be TLS_PORT")
    return port, metrics_port


def lifetimes(read: Reader) -> Lifetimes:
    """Of certificates that the process makes itself."""
    known = len(read.problems)
    found = Lifetimes(
        serving_s=read.one("CERTIFICATE_LIFETIME_SECONDS", integer(20, 3650 * _DAY_S), str(90 * _DAY_S)),
        overlap_s=read.one("CERTIFICATE_OVERLAP_SECONDS", integer(1, 30 * _DAY_S), "600"),
    )
    if len(read.problems) == known and found.serving_s < _OVERLAPS_IN_LIFETIME * found.overlap_s:
        text = f"must be at most a quarter of CERTIFICATE_LIFETIME_SECONDS ({found.serving_s})"
        read.problems.append(f"CERTIFICATE_OVERLAP_SECONDS: {found.overlap_s}: {text}")
    return found
