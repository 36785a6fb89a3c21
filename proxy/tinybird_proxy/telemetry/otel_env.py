"""What the standard ``OTEL_*`` variables ask for, read without importing OpenTelemetry.

The SDK reads most of them itself; here is only whether it is needed at all, and what would make it start in vain.
Pure: the environment is an argument. Values that may hold a secret (an endpoint's user name or query) are not shown.
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote, urlsplit

from tinybird_proxy.errors import Problem, TokenFileError

PROTOCOL: Final = "http/protobuf"
_COMPRESSIONS: Final = ("none", "gzip", "deflate")
_SAMPLERS: Final = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
# https://opentelemetry.io/docs/specs/otel/protocol/exporter/#specifying-headers-via-environment-variables
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[!-~ ]*")
_NOT_IN_A_VALUE: Final = frozenset('",;\\')


def wants_tracing(env: Mapping[str, str]) -> bool:
    """Whether spans are to be exported: a collector is named, and nothing switches tracing off."""
    _, endpoint = _for_traces("ENDPOINT", env)
    return bool(endpoint) and not (_word("OTEL_SDK_DISABLED", env) == "true" or _exporter(env) == "none")


def problems(env: Mapping[str, str]) -> list[Problem]:
    """What we do not support of what is asked for; none as long as tracing is off."""
    if not wants_tracing(env):
        return []
    return [
        *_endpoint_problems(env),
        *_protocol_problems(env),
        *_compression_problems(env),
        *_exporter_problems(env),
        *_sampler_problems(env),
    ]


def parse_headers(text: str) -> dict[str, str]:
    """Headers in the format of ``OTEL_EXPORTER_OTLP_HEADERS``: ``key=value,key2=value2``, percent-encoded.

    Good ones are what the SDK makes of that variable (a value with spaces is taken as it is). It leaves out what is
    malformed, and quotes it in its log; here that is a ``TokenFileError``, which says where, and quotes nothing.
    """
    headers = {}
    for number, entry in enumerate(text.split(","), 1):
        if not entry.strip():
            continue
        # The file may end with a line break, and have one between headers; within one it is malformed.
        name, equals, value = (part.strip(" \t") for part in entry.strip().partition("="))
        if not equals or not _HEADER_NAME.fullmatch(name):
            raise TokenFileError(f"header {number} is not key=value, as in OTEL_EXPORTER_OTLP_HEADERS")
        fits = _HEADER_VALUE.fullmatch(value) and not _NOT_IN_A_VALUE & set(value)
        if " " not in value:
            name, value = unquote(name), unquote(value).strip()
        if not fits or not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            # Encoded or not: a line break in a header would end it.
            raise TokenFileError(
                f"header {number} holds characters that cannot stand in a header, or only percent-encoded"
            )
        headers[name.lower()] = value
    if not headers:
        raise TokenFileError("holds no header")
    return headers


def _endpoint_problems(env: Mapping[str, str]) -> list[Problem]:
    variable, endpoint = _for_traces("ENDPOINT", env)
    try:
        parts = urlsplit(endpoint)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    fits = fits and endpoint.isprintable() and " " not in endpoint
    return [] if fits else [Problem(variable, "must be an http or https URL such as http://localhost:4318")]


def _protocol_problems(env: Mapping[str, str]) -> list[Problem]:
    variable, protocol = _for_traces("PROTOCOL", env)
    protocol = protocol.strip().lower()
    if protocol in ("", PROTOCOL):
        return []
    message = f"{protocol!r}: only {PROTOCOL} is supported"
    return [Problem(variable, f"{message}; use port 4318" if protocol == "grpc" else message)]


def _compression_problems(env: Mapping[str, str]) -> list[Problem]:
    variable, compression = _for_traces("COMPRESSION", env)
    compression = compression.strip().lower()
    if not compression or compression in _COMPRESSIONS:
        return []
    return [Problem(variable, f"{compression!r}: must be one of {', '.join(_COMPRESSIONS)}")]


def _exporter_problems(env: Mapping[str, str]) -> list[Problem]:
    exporter = _exporter(env)
    if exporter in ("", "otlp"):
        return []
    return [Problem("OTEL_TRACES_EXPORTER", f"{exporter!r}: must be otlp or none")]


def _sampler_problems(env: Mapping[str, str]) -> list[Problem]:
    # Unknown to the SDK it would mean "everything", with no more than a line in the log.
    sampler = _word("OTEL_TRACES_SAMPLER", env)
    if not sampler or sampler in _SAMPLERS:
        return []
    return [Problem("OTEL_TRACES_SAMPLER", f"{sampler!r}: must be one of {', '.join(_SAMPLERS)}")]


def _exporter(env: Mapping[str, str]) -> str:
    return _word("OTEL_TRACES_EXPORTER", env)


def _word(variable: str, env: Mapping[str, str]) -> str:
    return env.get(variable, "").strip().lower()


def _for_traces(setting: str, env: Mapping[str, str]) -> tuple[str, str]:
    """The variable in force and its value: the one for traces wins, and an empty one is as good as none."""
    own = f"OTEL_EXPORTER_OTLP_TRACES_{setting}"
    if env.get(own):
        return own, env[own]
    general = f"OTEL_EXPORTER_OTLP_{setting}"
    return general, env.get(general, "")
