"""Configuration: one table of options, read from environment variables and validated whole.

The README's table, ``tinybird-proxy check`` and the parser are all made from ``OPTIONS``. Pure: the environment
is an argument, and files that options name are read elsewhere (``tokens``, ``app``).
"""

import difflib
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from tinybird_proxy.errors import ConfigError, Problem

_SIZE_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_DURATION_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([a-zA-Z]*)", re.ASCII)
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII)

Compression = Literal["gzip", "zstd", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What users set. Sizes are bytes, durations seconds; every value has passed its option's check."""

    port: int
    host: str
    admin_port: int
    admin_host: str
    admin_token: str | None = field(repr=False)
    admin_token_file: str | None
    tls_cert_file: str | None
    tls_key_file: str | None
    tinybird_url: str
    tinybird_token: str | None = field(repr=False)
    tinybird_token_file: str | None
    authorization_token: str | None = field(repr=False)
    authorization_token_file: str | None
    token_file_wait: bool
    pass_through: bool
    batch_size: int
    batch_bytes: int
    flush_interval_s: float
    buffer_size: int
    buffer_bytes: int
    receive_bytes: int
    max_body_bytes: int
    max_inflated_bytes: int
    max_destinations: int
    max_age_s: float | None
    dead_letter_bytes: int
    upstream_wait: bool
    upstream_rate: float
    upstream_concurrency: int
    upstream_timeout_s: float
    compression: Compression
    client_wait: Literal["honor", "ack"]
    wait_timeout_s: float
    max_waiters: int
    drain_delay_s: float
    shutdown_timeout_s: float
    max_connections: int
    max_header_bytes: int
    header_timeout_s: float
    body_timeout_s: float
    keepalive_timeout_s: float
    keepalive_max_age_s: float
    node_id: str | None
    tinybird_metrics_datasource: str | None
    otlp_headers_file: str | None
    log_level: str
    log_format: Literal["auto", "json", "console"]

    @property
    def own_token_mode(self) -> bool:
        """Whether rows go to Tinybird with our own token, not with each client's."""
        return self.tinybird_token is not None or self.tinybird_token_file is not None

    @property
    def checks_clients(self) -> bool:
        """Whether clients must show a token of ours."""
        return self.authorization_token is not None or self.authorization_token_file is not None


@dataclass(frozen=True, slots=True)
class Option:
    """One environment variable: how it is read, what it defaults to, and what the README says of it."""

    variable: str
    field: str
    parse: Callable[[str], Any]
    default: str | None
    help: str
    aliases: tuple[str, ...] = ()
    secret: bool = False


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,20}", text) or not low <= (value := int(text)) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not low <= (value := float(text)) <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return value

    return parse


def _size(low: int, high: int = 10**12) -> Callable[[str], int]:
    def parse(text: str) -> int:
        match = _SIZE.fullmatch(text)
        unit = _SIZE_UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise ValueError("must be a size such as 10MB, 512Ki or 1000000 (kB/MB/GB are 1000ⁿ, Ki/Mi/Gi 1024ⁿ)")
        value = int(Fraction(match[1]) * unit)
        if not low <= value <= high:
            raise ValueError(f"must be at least {low} and at most {high} bytes")
        return value

    return parse


def _duration(low_s: float, high_s: float, *, bare_is_ms: bool = False) -> Callable[[str], float]:
    def parse(text: str) -> float:
        match = _DURATION.fullmatch(text)
        unit = match[2] if match else ""
        if unit == "" and bare_is_ms:
            unit = "ms"
        if match is None or unit not in _DURATION_UNITS_S:
            raise ValueError("must be a duration such as 250ms, 1s or 5m")
        value = float(match[1]) * _DURATION_UNITS_S[unit]
        if not low_s <= value <= high_s:
            raise ValueError(f"must be from {format_duration(low_s)} to {format_duration(high_s)}")
        return value

    return parse


def _flag(text: str) -> bool:
    if (
        value := {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower())
    ) is None:
        raise ValueError("must be true or false")
    return value


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text.lower()

    return parse


def _origin(text: str) -> str:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or port == 0:
        raise ValueError("must be a URL such as https://api.us-east.tinybird.co")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user name or password")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("must be an origin alone, without a path: the proxy adds /v0/events itself")
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + (f":{port}" if port is not None else "")


def _text(text: str) -> str:
    return text


def _token(text: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("holds characters that cannot stand in an Authorization header")
    return text


def _node_id(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", text):
        raise ValueError("must be 1 to 128 letters, digits, dots, dashes or underscores")
    return text


def _data_source(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]{0,255}", text):
        raise ValueError("must be a data source's name: letters, digits and underscores")
    return text


def token_hash(token: str) -> str:
    """What is shown of a token: 8 hex digits of its SHA-256, without the white space around it."""
    # Environment variables that are not UTF-8 come with lone surrogates.
    return hashlib.sha256(token.strip().encode(errors="surrogatepass")).hexdigest()[:8]


def format_duration(seconds: float) -> str:
    """``seconds`` as a person would write it in an option: 250ms, 1s, 5m."""
    if seconds == 0:
        return "0s"
    for unit, factor in (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0)):
        if seconds >= factor and seconds % factor == 0:
            return f"{seconds / factor:g}{unit}"
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"


# fmt: off
OPTIONS: tuple[Option, ...] = (
    Option("PORT", "port", _integer(0, 65535), "8000", "Public port (0: any free one)."),
    Option("HOST", "host", _text, "0.0.0.0", "Address of the public port. `::`: every address, of IPv6 and IPv4 (of IPv4 alone where there is no IPv6)."),  # noqa: S104 - a container must be reachable
    Option("ADMIN_PORT", "admin_port", _integer(0, 65535), "8001", "Port of health, status, metrics, drain and dead letters (0: any free one)."),
    Option("ADMIN_HOST", "admin_host", _text, "127.0.0.1", "Address of the admin port; `::` as with `HOST`."),
    Option("ADMIN_TOKEN", "admin_token", _token, None, "Token for the admin port's actions. Without it: only from localhost, with the header `X-Tinybird-Proxy: 1`.", secret=True),
    Option("ADMIN_TOKEN_FILE", "admin_token_file", _text, None, "The same from a file, read again when it changes."),
    Option("TLS_CERT_FILE", "tls_cert_file", _text, None, "Certificate chain (PEM) for TLS on the public port, read again when it changes."),
    Option("TLS_KEY_FILE", "tls_key_file", _text, None, "Its private key (PEM)."),
    Option("TINYBIRD_URL", "tinybird_url", _origin, "https://api.tinybird.co", "Tinybird's API for your region.", aliases=("TINYBIRD_BASE_URL",)),
    Option("TINYBIRD_TOKEN", "tinybird_token", _token, None, "Token that the proxy sends to Tinybird. Without it each client's own token is forwarded.", secret=True),
    Option("TINYBIRD_TOKEN_FILE", "tinybird_token_file", _text, None, "The same from a file, read again when it changes."),
    Option("AUTHORIZATION_TOKEN", "authorization_token", _text, None, "Tokens that clients must show, one a line: `TOKEN [name=NAME] [allow=ds1,ds2]`; `#` begins a comment. Needs `TINYBIRD_TOKEN`.", secret=True),
    Option("AUTHORIZATION_TOKEN_FILE", "authorization_token_file", _text, None, "The same from a file, read again when it changes."),
    Option("TOKEN_FILE_WAIT", "token_file_wait", _flag, "false", "A `TINYBIRD_TOKEN_FILE` that is not there yet holds the rows instead of stopping the start."),
    Option("PASS_THROUGH", "pass_through", _flag, "false", "With `TINYBIRD_TOKEN`: pass requests for other paths to Tinybird with the client's own token."),
    Option("BATCH_SIZE", "batch_size", _integer(1, 10_000_000), "100000", "Most rows in a request to Tinybird."),
    Option("BATCH_BYTES", "batch_bytes", _size(1000, 10**9), "10MB", "Most bytes in a request to Tinybird, before compression."),
    Option("FLUSH_INTERVAL", "flush_interval_s", _duration(0.001, 3600.0, bare_is_ms=True), "1s", "Longest a row waits for company (a bare number: milliseconds)."),
    Option("BUFFER_SIZE", "buffer_size", _integer(1, 1_000_000_000), "1000000", "Rows held until Tinybird has answered for them."),
    Option("BUFFER_BYTES", "buffer_bytes", _size(1000), "512MB", "Bytes of such rows, before compression."),
    Option("RECEIVE_BYTES", "receive_bytes", _size(65536), "64MB", "Bytes of all larger bodies (over 64 KiB, or 256 KiB after decompression) being received at once."),
    Option("MAX_BODY_BYTES", "max_body_bytes", _size(1, 10**9), "10MB", "Largest body of a client, as sent."),
    Option("MAX_INFLATED_BYTES", "max_inflated_bytes", _size(1, 10**9), "64MB", "Largest body of a client after decompression."),
    Option("MAX_DESTINATIONS", "max_destinations", _integer(1, 10_000), "1000", "Most destinations (data source, `__tb` parameters, client's own token) at once. Clients' own tokens that Tinybird has not confirmed may take half of them."),
    Option("MAX_AGE", "max_age_s", _duration(1.0, 365 * 86400.0), None, "A batch whose youngest row is older becomes a dead letter (default: rows are tried for ever)."),
    Option("DEAD_LETTER_BYTES", "dead_letter_bytes", _size(0), "64MB", "Memory for dead letters; beyond it the oldest are lost, which is counted and logged."),
    Option("UPSTREAM_WAIT", "upstream_wait", _flag, "true", "Ask Tinybird with `wait=true`, so that its answer means written."),
    Option("UPSTREAM_RATE", "upstream_rate", _number(0.01, 100_000), "90", "Most requests a second to Tinybird for each destination."),
    Option("UPSTREAM_CONCURRENCY", "upstream_concurrency", _integer(1, 1000), "16", "Most requests in flight to Tinybird for each destination."),
    Option("UPSTREAM_TIMEOUT", "upstream_timeout_s", _duration(0.1, 3600.0), "60s", "How long Tinybird may take to answer."),
    Option("COMPRESSION", "compression", _choice("gzip", "zstd", "none"), "gzip", "Compression towards Tinybird: gzip, zstd or none."),
    Option("CLIENT_WAIT", "client_wait", _choice("honor", "ack"), "honor", "`ack`: answer clients' `wait=true` at once, as if they had not asked."),
    Option("WAIT_TIMEOUT", "wait_timeout_s", _duration(0.1, 3600.0), "25s", "Longest a client's `wait=true` is kept waiting; then 202."),
    Option("MAX_WAITERS", "max_waiters", _integer(0, 1_000_000), "2000", "Most requests waiting so at once; beyond that 202."),
    Option("DRAIN_DELAY", "drain_delay_s", _duration(0.0, 3600.0), "0s", "How long a draining proxy is unready before it refuses requests; meanwhile each answer ends its connection."),
    Option("SHUTDOWN_TIMEOUT", "shutdown_timeout_s", _duration(0.0, 86400.0), "25s", "From the first signal to the exit, `DRAIN_DELAY` included."),
    Option("MAX_CONNECTIONS", "max_connections", _integer(1, 1_000_000), "10000", "Most connections of clients; a new one then ends the one that was idle for longest."),
    Option("MAX_HEADER_BYTES", "max_header_bytes", _size(1024, 10**6), "32Ki", "Largest head (request line and headers) of a client's request."),
    Option("HEADER_TIMEOUT", "header_timeout_s", _duration(0.1, 3600.0), "10s", "How long a client may take to send a request's head once it has begun."),
    Option("BODY_TIMEOUT", "body_timeout_s", _duration(0.1, 3600.0), "60s", "How long a client may take to send a body."),
    Option("KEEPALIVE_TIMEOUT", "keepalive_timeout_s", _duration(1.0, 86400.0), "650s", "How long a client's connection may be idle; longer than a load balancer keeps its own."),
    Option("KEEPALIVE_MAX_AGE", "keepalive_max_age_s", _duration(1.0, 86400.0), "5m", "A connection so old (10 % more or less, by chance) ends after its next answer, so that load balancers spread clients anew."),
    Option("NODE_ID", "node_id", _node_id, None, "Name of this instance in logs, batch ids and spans (default: the host's name)."),
    Option("TINYBIRD_METRICS_DATASOURCE", "tinybird_metrics_datasource", _data_source, None, "Data source for the proxy's own counters, a row each minute. Needs `TINYBIRD_TOKEN`."),
    Option("OTEL_EXPORTER_OTLP_HEADERS_FILE", "otlp_headers_file", _text, None, "Headers for the collector, in the format of `OTEL_EXPORTER_OTLP_HEADERS`, from a file, read again when it changes."),
    Option("LOG_LEVEL", "log_level", _choice("debug", "info", "warning", "error"), "info", "debug, info, warning or error."),
    Option("LOG_FORMAT", "log_format", _choice("auto", "json", "console"), "auto", "json, console, or auto: console on a terminal."),
)
# fmt: on

_OUR_PREFIXES = (
    "TINYBIRD_",
    "DEAD_LETTER_",
    "KEEPALIVE_",
    "BATCH_",
    "BUFFER_",
    "UPSTREAM_",
    "FLUSH_",
    "AUTHORIZATION_TOKEN",
    "ADMIN_",
)
# A Service named tinybird-proxy injects TINYBIRD_PROXY_PORT=tcp://… and its like into every pod of its namespace.
_NOT_OURS_PREFIX = "TINYBIRD_PROXY_"


def from_env(env: Mapping[str, str]) -> Config:
    """Read a ``Config`` from ``env``; raise ``ConfigError`` with every problem at once."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for option in OPTIONS:
        given = [name for name in (option.variable, *option.aliases) if name in env]
        variable = given[0] if given else option.variable
        if len(given) > 1 and env[given[0]] != env[given[1]]:
            problems.append(Problem(given[1], f"differs from {given[0]}, which means the same; set one of them"))
        text = env[given[0]].strip() if given else option.default
        if text is None:
            values[option.field] = None
            continue
        if not text:
            problems.append(Problem(variable, "is set but empty; give it a value or leave it unset"))
            continue
        try:
            values[option.field] = option.parse(text)
        except ValueError as error:
            # A URL may hold a password or, copied from a webhook's settings, a token.
            hidden = option.secret or (option.parse is _origin and re.search("[@?#]", text))
            shown = "(not shown)" if hidden else repr(text)
            problems.append(Problem(variable, f"{shown}: {error}"))
    problems += _contradictions(values, env)
    if problems:
        raise ConfigError(problems)
    return Config(**values)


def _contradictions(values: Mapping[str, Any], env: Mapping[str, str]) -> list[Problem]:
    """What is wrong between options that are each right; options that failed their own check are left out."""
    problems = []

    def has(*names: str) -> bool:
        return all(values.get(name) is not None for name in names)

    for variable in ("TINYBIRD_TOKEN", "AUTHORIZATION_TOKEN", "ADMIN_TOKEN"):
        if variable in env and f"{variable}_FILE" in env:
            problems.append(Problem(f"{variable}_FILE", f"is set together with {variable}; set one of them"))
    if "TINYBIRD_TOKEN" not in env and "TINYBIRD_TOKEN_FILE" not in env:
        without = "needs TINYBIRD_TOKEN: without it clients send Tinybird's own tokens"
        gates = [name for name in ("AUTHORIZATION_TOKEN", "AUTHORIZATION_TOKEN_FILE") if name in env]
        problems += [Problem(name, without) for name in gates[:1]]
    if "TINYBIRD_METRICS_DATASOURCE" in env and "TINYBIRD_TOKEN" not in env and "TINYBIRD_TOKEN_FILE" not in env:
        problems.append(
            Problem("TINYBIRD_METRICS_DATASOURCE", "needs TINYBIRD_TOKEN: the proxy's own rows need a token of ours")
        )
    if has("token_file_wait") and values["token_file_wait"] and "TINYBIRD_TOKEN_FILE" not in env:
        problems.append(Problem("TOKEN_FILE_WAIT", "needs TINYBIRD_TOKEN_FILE: there is no file to wait for"))
    if has("tls_cert_file") != has("tls_key_file"):
        missing = "TLS_KEY_FILE" if has("tls_cert_file") else "TLS_CERT_FILE"
        problems.append(Problem(missing, "is missing: TLS needs both TLS_CERT_FILE and TLS_KEY_FILE"))
    if has("port", "admin_port") and values["port"] == values["admin_port"] != 0:
        problems.append(Problem("ADMIN_PORT", f"{values['admin_port']}: must differ from PORT"))
    for small, large in (
        ("batch_size", "buffer_size"),
        ("batch_bytes", "buffer_bytes"),
        ("max_body_bytes", "receive_bytes"),
        ("drain_delay_s", "shutdown_timeout_s"),
    ):
        if has(small, large) and values[small] > values[large]:
            ours, theirs = _variable(small), _variable(large)
            problems.append(Problem(ours, f"{_written(ours, env)}: must be at most {theirs}, {_written(theirs, env)}"))
    return problems


def _variable(field: str) -> str:
    return next(option.variable for option in OPTIONS if option.field == field)


def _written(variable: str, env: Mapping[str, str]) -> str:
    return env.get(variable) or cast("str", next(o.default for o in OPTIONS if o.variable == variable))


def suspicious_variables(env: Mapping[str, str]) -> list[Problem]:
    """Variables that are not ours but look like a misspelt one of ours; worth a warning, never an error."""
    known = {name for option in OPTIONS for name in (option.variable, *option.aliases)}
    found = []
    for name in sorted(env):
        if name in known or name.startswith((_NOT_OURS_PREFIX, "OTEL_")):
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.86)
        if close:
            found.append(Problem(name, f"is not an option of tinybird-proxy; did you mean {close[0]}?"))
        elif name.startswith(_OUR_PREFIXES):
            found.append(Problem(name, "is not an option of tinybird-proxy and has no effect"))
    return found


def describe(config: Config) -> list[tuple[str, str]]:
    """Each option's variable and value in force, secrets hidden, in the table's order."""
    shown = []
    for option in OPTIONS:
        value = getattr(config, option.field)
        if value is None:
            text = "(not set)"
        elif option.secret:
            text = "(set, not shown)"
        elif option.field.endswith("_s"):
            text = format_duration(value)
        elif isinstance(value, bool):
            text = str(value).lower()
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
        shown.append((option.variable, text))
    return shown
