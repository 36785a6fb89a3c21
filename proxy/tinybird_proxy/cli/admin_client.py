"""Asks a running proxy's admin port. What goes wrong becomes a sentence that says what to do.

Plain ``http.client``: it follows no redirect and knows no proxy, so the token goes nowhere but to the admin port.
"""

import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import click

from tinybird_proxy.config import OPTIONS
from tinybird_proxy.errors import TokenFileError
from tinybird_proxy.tokens import read_file, single_token

CONNECT_TIMEOUT_S: Final = 10.0
# A replay of many letters takes its time.
ANSWER_TIMEOUT_S: Final = 120.0
_PIECE_BYTES: Final = 256 * 1024
_ERROR_MAX_BYTES: Final = 65536
_ERROR_MAX_CHARS: Final = 1000
# ``::`` too: the proxy listens on IPv4 as well, and on nothing else where there is no IPv6.
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}  # noqa: S104 - where a proxy listens, not we
_AGAIN_STATUS: Final = (409, 503)

Query = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class AdminClient:
    """Where the admin port is, and the token for it, if there is one."""

    url: str
    token: str | None = field(repr=False)

    def ask(self, method: str, path: str, query: Query = ()) -> Any:
        """One request, its answer decoded. Raises ``ClickException``."""
        with self.streamed(method, path, query, content_type="application/json") as answer:
            try:
                return json.loads(b"".join(answer.pieces()))
            except ValueError as error:
                raise _not_ours(self.url) from error

    @contextmanager
    def streamed(self, method: str, path: str, query: Query = (), *, content_type: str) -> Iterator["Streamed"]:
        """One request; its answer is there to be read while the block lasts. Raises ``ClickException``."""
        connection = self._connection()
        headers = {"X-Tinybird-Proxy": "1"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            response = self._begin(connection, method, f"{path}?{urlencode(query)}" if query else path, headers)
            if response.status != 200:
                raise self._refused(response)
            if response.getheader("Content-Type", "").partition(";")[0] != content_type:
                raise _not_ours(self.url)
            yield Streamed(self.url, response)
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https") or parts.path not in ("", "/") or parts.query:
            raise click.ClickException(f"{self.url!r} is no admin URL; it must look like http://127.0.0.1:8001")
        if parts.scheme == "https":
            return HTTPSConnection(host, port, timeout=CONNECT_TIMEOUT_S, context=ssl.create_default_context())
        return HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)

    def _begin(self, connection: HTTPConnection, method: str, target: str, headers: Mapping[str, str]) -> HTTPResponse:
        try:
            connection.connect()
        except ConnectionRefusedError as error:
            raise click.ClickException(
                f"nothing listens at {self.url}: is the proxy running, and is that its admin port?"
                " ADMIN_HOST and ADMIN_PORT, or --admin-url, say where it is"
            ) from error
        except (OSError, UnicodeError) as error:
            reason = "no answer in time" if isinstance(error, TimeoutError) else getattr(error, "strerror", None)
            raise click.ClickException(
                f"{self.url} cannot be reached: {reason or error}; ADMIN_HOST and ADMIN_PORT, or --admin-url, say"
                " where the admin port is"
            ) from error
        connection.sock.settimeout(ANSWER_TIMEOUT_S)
        with _broken_as_sentence(self.url):
            connection.request(method, target, headers=headers)
            return connection.getresponse()

    def _refused(self, response: HTTPResponse) -> click.ClickException:
        """What a status other than 200 means for whoever typed the command."""
        with _broken_as_sentence(self.url):
            said = _error_in(response.read(_ERROR_MAX_BYTES))
        if response.status == 401:
            return click.ClickException(
                "the proxy wants its ADMIN_TOKEN: set ADMIN_TOKEN, or ADMIN_TOKEN_FILE, to the one it was started with"
            )
        if response.status == 403 and self.token is not None:
            return click.ClickException(
                "the proxy refuses the token of ADMIN_TOKEN or ADMIN_TOKEN_FILE: it must be the one that the proxy has"
            )
        if response.status == 403:
            return click.ClickException(
                f"the proxy refuses: {said or 'no reason given'}. Ask from the machine it runs on, or give it an"
                " ADMIN_TOKEN and set the same here"
            )
        if said is None or response.status in (404, 405):
            return _not_ours(self.url, f" ({response.status})")
        if response.status in _AGAIN_STATUS:
            return click.ClickException(f"not now: {said}")
        return click.ClickException(f"{said} ({response.status})" if response.status != 400 else said)


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer with status 200, to be read piece by piece."""

    url: str
    _response: HTTPResponse

    def pieces(self) -> Iterator[bytes]:
        """Its body. Raises ``ClickException`` if it ends before its end."""
        while True:
            with _broken_as_sentence(self.url):
                piece = self._response.read(_PIECE_BYTES)
            if not piece:
                return
            yield piece

    def announced(self, header: str) -> int:
        """The number in a header."""
        return int(self._response.getheader(header, "0"))

    @property
    def as_of(self) -> str:
        """The moment that it shows: as ``until`` it leaves out what came later."""
        return self._response.getheader("X-As-Of", "")


@contextmanager
def _broken_as_sentence(url: str) -> Iterator[None]:
    """While an answer comes, and nothing else."""
    try:
        yield
    except TimeoutError as error:
        raise click.ClickException(f"{url} did not go on answering within {ANSWER_TIMEOUT_S:g} s") from error
    except (OSError, HTTPException) as error:
        raise click.ClickException(
            f"the answer of {url} broke off ({type(error).__name__}): did the proxy stop, and is that its admin port?"
            " Try again"
        ) from error


def _not_ours(url: str, status: str = "") -> click.ClickException:
    return click.ClickException(
        f"{url} does not answer as the admin port of this version does{status}: is it the public port, or an older"
        " proxy? ADMIN_HOST and ADMIN_PORT, or --admin-url, say where the admin port is"
    )


def make_client(admin_url: str | None, env: Mapping[str, str]) -> AdminClient:
    """The client that ``--admin-url`` and the environment mean. Raises ``ClickException``."""
    return AdminClient(admin_url if admin_url is not None else default_url(env), _token(env))


def default_url(env: Mapping[str, str]) -> str:
    """Where a proxy with this environment has its admin port. Raises ``ClickException``."""
    host, port = _value("ADMIN_HOST", env), _value("ADMIN_PORT", env)
    if not host:
        raise click.ClickException("ADMIN_HOST is set but empty")
    if port == 0:
        raise click.ClickException("ADMIN_PORT is 0, any free one: name it with --admin-url (the proxy's log has it)")
    host = _ANY_ADDRESS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _token(env: Mapping[str, str]) -> str | None:
    path = env.get("ADMIN_TOKEN_FILE")
    if path is None:
        token: str | None = _value("ADMIN_TOKEN", env)
        if token == "":
            raise click.ClickException("ADMIN_TOKEN is set but empty")
        return token
    if "ADMIN_TOKEN" in env:
        raise click.ClickException("ADMIN_TOKEN_FILE is set together with ADMIN_TOKEN; set one of them")
    try:
        return single_token(read_file(path))
    except TokenFileError as error:
        raise click.ClickException(f"ADMIN_TOKEN_FILE: {path}: {error}") from error


def _value(variable: str, env: Mapping[str, str]) -> Any:
    """An option as the proxy reads it."""
    option = next(option for option in OPTIONS if option.variable == variable)
    text = env.get(variable, option.default)
    if text is None:
        return None
    try:
        return option.parse(text)
    except ValueError as error:
        shown = "(not shown)" if option.secret else repr(text)
        raise click.ClickException(f"{variable}: {shown}: {error}") from error


def _error_in(body: bytes) -> str | None:
    """The sentence of one of our errors."""
    try:
        found = json.loads(body)
    except ValueError:
        return None
    said = found.get("error") if isinstance(found, dict) else None
    return said[:_ERROR_MAX_CHARS] if isinstance(said, str) else None
