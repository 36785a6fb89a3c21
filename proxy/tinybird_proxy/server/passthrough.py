"""Every other path: passed to Tinybird as it came, streaming both ways, or refused with a reason."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Final
from urllib.parse import parse_qsl

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from tinybird_proxy.errors import BodyRefused, ResponseTimeout, UpstreamError
from tinybird_proxy.server import answers
from tinybird_proxy.server.answers import Answer
from tinybird_proxy.server.events import Gate, bearer
from tinybird_proxy.server.receive import next_piece
from tinybird_proxy.server.responses import is_last, respond
from tinybird_proxy.telemetry.logs import get_logger
from tinybird_proxy.telemetry.meters import Meters
from tinybird_proxy.upstream import VIA_HEADER, Upstream

# RFC 9110, section 7.6.1, and what belongs to one connection by use.
HOP_BY_HOP: Final = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
# l_onoff 1, l_linger 0: closing sends a reset and nothing that may look like a proper end.
_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_log = get_logger("passthrough")


def end_to_end(headers: Iterable[tuple[str, str]], *, also_without: Iterable[str] = ()) -> list[tuple[str, str]]:
    """``headers`` without those that are meant for one connection only, and those that ``Connection`` names."""
    headers = list(headers)
    named = (
        part.strip().lower() for name, value in headers if name.lower() == "connection" for part in value.split(",")
    )
    dropped = HOP_BY_HOP.union(named, also_without)
    return [(name, value) for name, value in headers if name.lower() not in dropped]


class PassThrough:
    """Knows when a request may pass and carries it.

    ``body_stall_s``: for so long a client may send nothing of its body, or take nothing of an answer's. There is no
    limit on the whole of either: nothing is kept of it here, and a long import into Tinybird may take its time.
    """

    def __init__(self, upstream: Upstream, gate: Gate, meters: Meters, *, enabled: bool, body_stall_s: float) -> None:
        self._upstream = upstream
        self._gate = gate
        self._meters = meters
        self._enabled = enabled
        self._body_stall_s = body_stall_s

    def refuse(self, headers: CIMultiDictProxy[str], target: str) -> Answer | None:
        """Why this request may not pass, or None if it may."""
        if not self._enabled:
            return answers.error(
                404,
                "this proxy serves POST /v0/events only; for other paths use Tinybird's own URL, "
                "or set PASS_THROUGH=true on the proxy",
            )
        clients = self._gate.clients
        if clients is not None and any(clients.find(token) for token in _tokens_shown(headers, target)):
            return answers.error(404, "this token is the proxy's, not Tinybird's: it is good for POST /v0/events only")
        if headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
            # The header ends here, so Tinybird would not know how to read the body.
            return answers.error(501, "of all transfer codings this proxy knows chunked only")
        if self._upstream.instance in headers.get(VIA_HEADER, ""):
            return answers.error(508, "this request came from this very proxy: TINYBIRD_URL leads back to it")
        return None

    async def carry(self, request: web.BaseRequest, target: str) -> web.StreamResponse:
        """Send the request on and stream the answer back. ``target`` begins with a single slash."""
        headers = end_to_end(request.headers.items(), also_without=("host", "expect"))
        via = request.headers.get(VIA_HEADER)
        headers = [pair for pair in headers if pair[0].lower() != VIA_HEADER.lower()]
        headers.append((VIA_HEADER, f"{via}, {self._upstream.instance}" if via else self._upstream.instance))
        body = _Upload(request, self._body_stall_s) if request.body_exists else None
        try:
            async with self._upstream.stream(request.method, target, headers=headers, body=body) as reply:
                self._meters.passed_through[str(reply.status)] += 1
                response = _PassedOn(
                    status=reply.status,
                    reason=reply.reason,
                    headers=CIMultiDict(end_to_end(reply.headers.items())),
                )
                if is_last(request):
                    response.force_close()
                await response.prepare(request)
                try:
                    async for piece in self._upstream.pieces(reply):
                        async with asyncio.timeout(self._body_stall_s):
                            await response.write(piece)
                    async with asyncio.timeout(self._body_stall_s):
                        await response.write_eof()
                except UpstreamError:
                    _log.warning("Tinybird broke off in the middle of an answer that was passed through")
                    _break_off(request)
                except TimeoutError:
                    _log.warning("a client took nothing of an answer that was passed through and was cut off")
                    _break_off(request)
                return response
        except UpstreamError as error:
            if body is not None and body.refused is not None:
                return respond(answers.error(body.refused.status, body.refused.message, close=True), request)
            if request.transport is None:
                raise ConnectionResetError("the client left before Tinybird answered") from error
            status = 504 if isinstance(error, ResponseTimeout) else 502
            self._meters.passed_through[str(status)] += 1
            return respond(answers.error(status, f"passed on, but {error}"), request)


class _Upload:
    """A client's body as it comes; ``refused`` says why it could not be read to its end, if that is its own fault."""

    def __init__(self, request: web.BaseRequest, stall_s: float) -> None:
        self._request = request
        self._stall_s = stall_s
        self.refused: BodyRefused | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        now = asyncio.get_running_loop().time
        too_slow = f"nothing of the body came for {self._stall_s:g} s (BODY_TIMEOUT); send the same request again"
        try:
            while piece := await next_piece(self._request, give_up_at=now() + self._stall_s, too_slow=too_slow):
                yield piece
        except BodyRefused as refused:
            self.refused = refused
            raise


class _PassedOn(web.StreamResponse):
    """Tinybird's answer, to which aiohttp adds neither a type that nobody named nor its own name."""

    async def _prepare_headers(self) -> None:
        not_said = [name for name in ("Content-Type", "Server") if name not in self.headers]
        await super()._prepare_headers()
        for name in not_said:
            self.headers.pop(name, None)


def _tokens_shown(headers: CIMultiDictProxy[str], target: str) -> Iterator[str]:
    """Every token that a request holds, however odd the rest of it is."""
    for value in headers.getall("Authorization", ()):
        if (token := bearer(value)) is not None:
            yield token
    for name, value in parse_qsl(target.partition("?")[2], errors="replace"):
        if name == "token":
            yield value


def _break_off(request: web.BaseRequest) -> None:
    """End the connection so that the client cannot take half an answer for a whole one: with a reset."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        transport.abort()
