"""Read every token at the start, all problems at once, and keep the files watched afterwards."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tinybird_proxy.admin.app import AdminToken
from tinybird_proxy.config import Config
from tinybird_proxy.errors import ConfigError, Problem, TokenFileError
from tinybird_proxy.server.events import Gate
from tinybird_proxy.telemetry.logs import fields, get_logger
from tinybird_proxy.telemetry.otel_env import parse_headers
from tinybird_proxy.tokens import ClientTokens, OwnToken, WatchedFile, read_all, read_file, single_token

WATCH_INTERVAL_S = 1.0
_log = get_logger("tokens")


@dataclass(slots=True)
class Secrets:
    """Tokens in use, TLS for the public port, and the files that they came from.

    ``collector_headers``: what spans are exported with beside the environment's; None: no file is named for them.
    """

    own_token: OwnToken | None
    gate: Gate
    admin: AdminToken
    server_tls: ssl.SSLContext | None
    files: list[WatchedFile]
    collector_headers: Mapping[str, str] | None = field(default=None, repr=False)


def load_secrets(
    config: Config, *, utc_now: Callable[[], float], hash_key: bytes, on_new_token: Callable[[], None]
) -> Secrets:
    """Read all tokens. Raises ``ConfigError`` with every problem; blocks, so call it before the loop runs.

    ``utc_now`` is in UNIX seconds; ``on_new_token`` is called when Tinybird's token changes later on.
    """
    problems: list[Problem] = []
    secrets = Secrets(None, Gate(own_token_mode=config.own_token_mode), AdminToken(config.admin_token), None, [])

    def watch(
        variable: str,
        path: str,
        apply: Callable[[str], None],
        *,
        may_be_missing: bool = False,
        may_be_bad: bool = False,
    ) -> None:
        file = WatchedFile(variable, path, apply)
        try:
            text = read_file(path)
        except TokenFileError as error:
            file.problem = str(error)
            if not may_be_bad and not (may_be_missing and isinstance(error.__cause__, FileNotFoundError)):
                problems.append(Problem(variable, f"{path}: {error}"))
        else:
            file.update(text, None)
            if file.problem is not None and not may_be_bad:
                problems.append(Problem(variable, f"{path}: {file.problem}"))
        secrets.files.append(file)

    if config.own_token_mode:
        own = secrets.own_token = OwnToken(config.tinybird_token, utc_now())
        if config.tinybird_token_file is not None:

            def offer(text: str) -> None:
                if own.offer(single_token(text), utc_now()):
                    on_new_token()

            watch("TINYBIRD_TOKEN_FILE", config.tinybird_token_file, offer, may_be_missing=config.token_file_wait)
    if config.authorization_token is not None:
        try:
            secrets.gate.use_clients(ClientTokens(config.authorization_token, key=hash_key))
        except TokenFileError as error:
            problems.append(Problem("AUTHORIZATION_TOKEN", str(error)))
    if config.authorization_token_file is not None:

        def replace_clients(text: str) -> None:
            secrets.gate.use_clients(ClientTokens(text, key=hash_key))

        watch("AUTHORIZATION_TOKEN_FILE", config.authorization_token_file, replace_clients)
    if config.admin_token_file is not None:

        def replace_admin(text: str) -> None:
            secrets.admin.value = single_token(text)

        watch("ADMIN_TOKEN_FILE", config.admin_token_file, replace_admin)
    if config.otlp_headers_file is not None:
        secrets.collector_headers = {}

        def replace_headers(text: str) -> None:
            secrets.collector_headers = parse_headers(text)

        # Rows do not wait for traces: without a good file, spans go without these headers.
        watch("OTEL_EXPORTER_OTLP_HEADERS_FILE", config.otlp_headers_file, replace_headers, may_be_bad=True)
    if config.tls_cert_file is not None and config.tls_key_file is not None:
        _load_tls(config.tls_cert_file, config.tls_key_file, secrets, problems)
    if problems:
        raise ConfigError(problems)
    return secrets


def _load_tls(cert_path: str, key_path: str, secrets: Secrets, problems: list[Problem]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)

    def load(_: str) -> None:
        try:
            # A pair that fails leaves a context without any, so it is tried in another one first. And no passphrase:
            # without this argument OpenSSL would ask for it on the terminal, and everything would wait.
            for tried in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
                tried.load_cert_chain(cert_path, key_path, password="")
        except (OSError, ssl.SSLError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
            raise TokenFileError(f"certificate and key cannot be used together: {reason}".lower()) from error

    # Either file may be replaced first: whichever changes, both are read again.
    for variable, path in (("TLS_CERT_FILE", cert_path), ("TLS_KEY_FILE", key_path)):
        file = WatchedFile(variable, path, load)
        try:
            file.update(read_file(path), None)
        except TokenFileError as error:
            file.problem = str(error)
        if file.problem is not None:
            problems.append(Problem(variable, f"{path}: {file.problem}"))
        secrets.files.append(file)
    secrets.server_tls = context


async def watch_files(files: Sequence[WatchedFile], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    """Read the files again each second, in a thread; what is new is applied on the event loop."""
    for file in files:
        if file.problem is not None:
            _say_that_it_cannot_be_used(file)
    while files:
        await sleep(WATCH_INTERVAL_S)
        for file, text, problem in await asyncio.to_thread(read_all, files):
            if not file.update(text, problem):
                continue
            if file.problem is None:
                _log.info("a file was read again", extra=fields(variable=file.variable, path=file.path))
            else:
                _say_that_it_cannot_be_used(file)


def _say_that_it_cannot_be_used(file: WatchedFile) -> None:
    shown = fields(variable=file.variable, path=file.path, problem=file.problem)
    if file.last_text is None:  # and nothing that cannot do without it has started
        _log.warning("a file cannot be used yet; it is read again each second", extra=shown)
    else:
        _log.error("a file that changed cannot be used; its last good content stays in use", extra=shown)
