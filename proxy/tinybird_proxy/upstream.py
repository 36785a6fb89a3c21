"""Tinybird: the only module that knows its URL and its headers.

``Upstream.send`` makes one attempt with one batch and answers with a ``Reply`` or raises an ``UpstreamError`` whose
type says whether Tinybird may have taken the rows. It never retries, follows no redirect and puts no token in a query.
"""

import asyncio
import os
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from tinybird_proxy.batch import DestinationKey, Payload
from tinybird_proxy.errors import ConnectFailed, ConnectionBroken, ResponseTimeout, UpstreamError
from tinybird_proxy.verdict import Reply

BATCH_ID_HEADER: Final = "X-Batch-Id"
VIA_HEADER: Final = "X-Batch-Via"
CONNECT_TIMEOUT_S: Final = 10.0
# Connections and resolved names are not used for longer, so that a moved endpoint is found.
SESSION_AGE_MAX_S: Final = 60.0
_REPLY_MAX_BYTES: Final = 64 * 1024
_WRITE_PIECE_BYTES: Final = 256 * 1024
# Anything shorter is no secret, and may stand in an answer by chance.
_TOKEN_MIN_CHARS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSettings:
    """``origin`` as in https://api.tinybird.co; ``proxies`` as ``urllib.request.getproxies`` gives them."""

    origin: str
    timeout_s: float
    instance: str
    user_agent: str
    proxies: Mapping[str, str]
    bypasses_proxy: Callable[[str], bool]


class _Session:
    """A client session and how many requests use it."""

    def __init__(self, client: aiohttp.ClientSession, made_at: float) -> None:
        self.client = client
        self.made_at = made_at
        self.users = 0
        self.retired = False


class _Attempt:
    """How far an attempt got: decides whether its failure is ambiguous, and which deadline is running."""

    def __init__(
        self,
        timeout_s: float,
        deadline: asyncio.Timeout,
        now: Callable[[], float],
        begins: Callable[[], None] | None,
    ) -> None:
        self._timeout_s = timeout_s
        self._deadline = deadline
        self._now = now
        self._begins = begins
        self.body_begun = False

    def progress(self) -> None:
        """A part of the body is being written, or all of it was: what follows has the whole timeout again."""
        if self._begins is not None and not self.body_begun:
            self._begins()
        self.body_begun = True
        self._deadline.reschedule(self._now() + self._timeout_s)


class _Body(aiohttp.payload.Payload):
    """A batch's bytes, written in pieces with back pressure; tells the attempt when the first one goes."""

    _autoclose = True

    def __init__(self, value: bytes, attempt: _Attempt) -> None:
        super().__init__(value, content_type="application/x-ndjson")
        self._size = len(value)
        self._attempt = attempt

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The interface wants it; nobody should print a batch."""
        return f"({self._size} bytes)"

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all of it."""
        view = memoryview(self._value)
        for start in range(0, len(view), _WRITE_PIECE_BYTES):
            self._attempt.progress()
            await writer.write(view[start : start + _WRITE_PIECE_BYTES])
        self._attempt.progress()

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """The length is always that of the whole body."""
        await self.write(writer)


class Upstream:
    """Owns the connections to Tinybird. Close it with ``close``, which may be called twice."""

    def __init__(self, settings: UpstreamSettings, *, tls: ssl.SSLContext, now: Callable[[], float]) -> None:
        self._settings = settings
        self._tls = tls
        self._now = now
        self._session: _Session | None = None
        self._retired: set[_Session] = set()
        parts = urlsplit(settings.origin)
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        proxy = settings.proxies.get(parts.scheme)
        if proxy is not None and "://" not in proxy:
            proxy = f"http://{proxy}"  # as curl takes it
        self._proxy = None if proxy is None or settings.bypasses_proxy(self.host) else proxy
        # Counts that were readable once: this URL answers like Tinybird.
        self.counts_seen = False
        self.instance = settings.instance

    def url(self, key: DestinationKey, *, wait: bool) -> str:
        """Where a batch of ``key`` goes. Never holds a token."""
        pairs = [("name", key.name), *key.params]
        if wait:
            pairs.append(("wait", "true"))
        query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in pairs)
        return f"{self._settings.origin}{key.path}?{query}"

    async def send(
        self,
        url: str,
        payload: Payload,
        *,
        token: str,
        batch_id: str,
        vias: tuple[str, ...] = (),
        traceparent: str | None = None,
        begins: Callable[[], None] | None = None,
    ) -> Reply:
        """Make one attempt. Raises ``ConnectFailed``, ``ConnectionBroken`` or ``ResponseTimeout``.

        ``begins`` is called before the first byte of the payload is written: from then on Tinybird may take it.
        """
        headers = {
            "Authorization": f"Bearer {token}",
            "Accept-Encoding": "identity",
            BATCH_ID_HEADER: batch_id,
            VIA_HEADER: ", ".join((*vias, self.instance)),
        }
        if payload.encoding is not None:
            headers["Content-Encoding"] = payload.encoding
        if traceparent is not None:
            headers["traceparent"] = traceparent
        async with self._use() as client:
            deadline = asyncio.timeout(CONNECT_TIMEOUT_S)
            attempt = _Attempt(self._settings.timeout_s, deadline, asyncio.get_running_loop().time, begins)
            try:
                async with (
                    deadline,
                    client.post(
                        URL(url, encoded=True),
                        data=_Body(payload.body, attempt),
                        headers=headers,
                        proxy=self._proxy,
                        allow_redirects=False,
                    ) as response,
                ):
                    body = _without(token, await _read_at_most(response.content, _REPLY_MAX_BYTES))
                    return Reply(
                        response.status, {name.lower(): value for name, value in response.headers.items()}, body
                    )
            except (aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
                # TimeoutError is an OSError too.
                raise self._translated(error, attempt) from error

    def _translated(self, error: Exception, attempt: _Attempt) -> UpstreamError:
        if isinstance(error, TimeoutError):
            if attempt.body_begun:
                return ResponseTimeout(f"no answer from {self.host} within {self._settings.timeout_s:g} s")
            return ConnectFailed(f"no connection to {self.host}:{self.port} within {CONNECT_TIMEOUT_S:g} s")
        what = _what_broke(error)
        if attempt.body_begun:
            return ConnectionBroken(f"the connection to {self.host} broke before the answer: {what}")
        return ConnectFailed(f"no connection to {self.host}:{self.port}: {what}")

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path_and_query: str,
        *,
        headers: list[tuple[str, str]],
        body: AsyncIterable[bytes] | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Pass a request on as it is, streaming both ways. Raises ``ConnectFailed`` or ``ResponseTimeout``.

        ``path_and_query`` begins with a single slash and goes out unchanged. ``pieces`` reads the answer's body.
        """
        async with self._use() as client:
            try:
                response = await client.request(
                    method,
                    URL(self._settings.origin + path_and_query, encoded=True),
                    data=body,
                    headers=headers,
                    skip_auto_headers=("Content-Type", "User-Agent"),
                    proxy=self._proxy,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(
                        total=None, connect=CONNECT_TIMEOUT_S, sock_read=self._settings.timeout_s
                    ),
                )
            except TimeoutError as error:
                raise ResponseTimeout(f"no answer from {self.host} within {self._settings.timeout_s:g} s") from error
            except (aiohttp.ClientError, ssl.SSLError, OSError, ValueError) as error:
                raise ConnectFailed(f"no answer from {self.host}:{self.port}: {_what_broke(error)}") from error
            try:
                yield response
            finally:
                response.close()

    async def pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The body of an answer as it comes. Raises ``ConnectionBroken`` or ``ResponseTimeout``."""
        try:
            while True:
                # aiohttp's own read timeout ends where a body turns out not to be HTTP: it would wait for ever.
                async with asyncio.timeout(self._settings.timeout_s):
                    piece = await response.content.readany()
                if not piece:
                    return
                yield piece
        except TimeoutError as error:
            raise ResponseTimeout(f"nothing more came from {self.host} for {self._settings.timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionBroken(f"the connection to {self.host} broke: {_what_broke(error)}") from error

    @asynccontextmanager
    async def _use(self) -> AsyncIterator[aiohttp.ClientSession]:
        session = self._current()
        session.users += 1
        for idle in [other for other in self._retired if other.users == 0]:
            self._retired.discard(idle)
            await idle.client.close()
        try:
            yield session.client
        finally:
            session.users -= 1
            if session.retired and session.users == 0:
                self._retired.discard(session)
                await session.client.close()

    def _current(self) -> _Session:
        now = self._now()
        session = self._session
        if session is not None and now - session.made_at < SESSION_AGE_MAX_S:
            return session
        if session is not None:
            session.retired = True
            self._retired.add(session)
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0, limit_per_host=0, ttl_dns_cache=60)
        client = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
            skip_auto_headers=("Accept-Encoding", "Accept"),
            headers={"User-Agent": self._settings.user_agent},
            max_line_size=64 * 1024,
            max_field_size=64 * 1024,
        )
        self._session = _Session(client, now)
        return self._session

    async def close(self) -> None:
        """Close every connection."""
        sessions = [*self._retired, *([self._session] if self._session else [])]
        self._session = None
        self._retired.clear()
        for session in sessions:
            await session.client.close()


async def _read_at_most(content: aiohttp.StreamReader, max_bytes: int) -> bytes:
    found = bytearray()
    while len(found) < max_bytes and (piece := await content.read(max_bytes - len(found))):
        found += piece
    return bytes(found)


def _without(token: str, body: bytes) -> bytes:
    """``body`` without our token: what an answer says is logged and shown, and some repeat what they were asked."""
    return body.replace(token.encode(), b"(token)") if len(token) >= _TOKEN_MIN_CHARS else body


def _what_broke(error: Exception) -> str:
    """A short clause without addresses of ours or anything that was sent."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        return "its TLS certificate is not valid for this name or not trusted (SSL_CERT_FILE names other authorities)"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the name cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorSSLError | ssl.SSLError):
        return "TLS failed"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the HTTP proxy refused ({error.status})"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"the HTTP proxy: {os.strerror(error.errno).lower() if error.errno else 'cannot be reached'}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it was closed without an answer"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return type(error).__name__
