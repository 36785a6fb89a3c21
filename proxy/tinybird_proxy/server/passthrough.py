"""Every other path: passed to Tinybird as it came, streaming both ways, or refused with a reason."""

from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Final

from aiohttp import ClientError, web
from multidict import CIMultiDict, CIMultiDictProxy

from tinybird_proxy.errors import ResponseTimeout, UpstreamError
from tinybird_proxy.server import answers
from tinybird_proxy.server.answers import Answer
from tinybird_proxy.server.events import Gate, bearer
from tinybird_proxy.server.http import respond
from tinybird_proxy.server.query import parse_query
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
    """Knows when a request may pass and carries it."""

    def __init__(self, upstream: Upstream, gate: Gate, meters: Meters, *, enabled: bool) -> None:
        self._upstream = upstream
        self._gate = gate
        self._meters = meters
        self._enabled = enabled

    def refuse(self, headers: CIMultiDictProxy[str], target: str) -> Answer | None:
        """Why this request may not pass, or None if it may."""
        if not self._enabled:
            return answers.error(
                404,
                "this proxy serves POST /v0/events only; for other paths use Tinybird's own URL, "
                "or set PASS_THROUGH=true on the proxy",
            )
        if self._gate.clients is not None:
            shown = (bearer(headers.get("Authorization")), parse_query(target.partition("?")[2]).token)
            if any(token is not None and self._gate.clients.find(token) for token in shown):
                return answers.error(
                    404, "this token is the proxy's, not Tinybird's: it is good for POST /v0/events only"
                )
        if self._upstream.instance in headers.get(VIA_HEADER, ""):
            return answers.error(508, "this request came from this very proxy: TINYBIRD_URL leads back to it")
        return None

    async def carry(self, request: web.BaseRequest, target: str) -> web.StreamResponse:
        """Send the request on and stream the answer back. ``target`` begins with a single slash."""
        headers = end_to_end(request.headers.items(), also_without=("host", "expect"))
        via = request.headers.get(VIA_HEADER)
        headers = [pair for pair in headers if pair[0].lower() != VIA_HEADER.lower()]
        headers.append((VIA_HEADER, f"{via}, {self._upstream.instance}" if via else self._upstream.instance))
        body = _body(request) if request.body_exists else None
        try:
            async with self._upstream.stream(request.method, target, headers=headers, body=body) as reply:
                self._meters.passed_through[str(reply.status)] += 1
                response = web.StreamResponse(
                    status=reply.status,
                    reason=reply.reason,
                    headers=CIMultiDict(end_to_end(reply.headers.items())),
                )
                await response.prepare(request)
                try:
                    async for piece in reply.content.iter_any():
                        await response.write(piece)
                except (ClientError, OSError):
                    # The client must not take half an answer for a whole one.
                    _log.warning("Tinybird broke off in the middle of an answer that was passed through")
                    if request.transport is not None:
                        request.transport.abort()
                    return response
                with suppress(ConnectionError):
                    await response.write_eof()
                return response
        except UpstreamError as error:
            status = 504 if isinstance(error, ResponseTimeout) else 502
            self._meters.passed_through[str(status)] += 1
            return respond(answers.error(status, f"passed on, but {error}"), request)


async def _body(request: web.BaseRequest) -> AsyncIterator[bytes]:
    async for piece in request.content.iter_any():
        yield piece
