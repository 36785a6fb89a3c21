"""The public port's one handler: which request is for us, and the awaited steps of an events request."""

from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from tinybird_proxy import codec
from tinybird_proxy.errors import BodyRefused
from tinybird_proxy.server import answers
from tinybird_proxy.server.answers import Answer
from tinybird_proxy.server.events import PATH, EventsRoute
from tinybird_proxy.server.http import Connection
from tinybird_proxy.server.passthrough import PassThrough
from tinybird_proxy.server.receive import Receiver, answer_expect, small_body_at_hand
from tinybird_proxy.server.responses import respond
from tinybird_proxy.ticket import Buffered
from tinybird_proxy.upstream import VIA_HEADER
from tinybird_proxy.waiting import Waiting

LIVENESS_PATH = "/v1/liveness"


class PublicHandler:
    """Called by the server for every request."""

    def __init__(self, route: EventsRoute, receiver: Receiver, passthrough: PassThrough) -> None:
        self._route = route
        self._receiver = receiver
        self._passthrough = passthrough
        self._small_max_bytes = receiver.small_max_bytes
        self._now = route.pipeline.surroundings.now
        self._buffer = route.pipeline.surroundings.buffer

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        target = request.raw_path
        path, _, query = target.partition("?")
        if path == PATH:
            return respond(await self._events(request, query), request)
        if not target.startswith("/") or target.startswith("//") or "#" in target:
            message = "the request's target must be a path that begins with one slash"
            return respond(answers.error(400, message), request)
        if path == LIVENESS_PATH:
            return respond(_liveness(request.method), request)
        if request.method == "CONNECT":
            return respond(answers.error(405, "this proxy opens no tunnels"), request)
        refusal = self._passthrough.refuse(request.headers, target)
        if refusal is not None:
            return respond(refusal, request)
        await answer_expect(request)
        return await self._passthrough.carry(request, target)

    async def _events(self, request: web.BaseRequest, query_text: str) -> Answer:
        headers = request.headers
        if request.method != "POST":
            if request.method == "OPTIONS":
                return answers.preflight(headers.get("Access-Control-Request-Headers"))
            return answers.error(405, "this path takes POST", ("Allow", "POST, OPTIONS"))
        head_at = self._now()
        vias = headers.get(VIA_HEADER)
        heading = self._route.head(headers.get("Authorization"), query_text, vias)
        if isinstance(heading, Answer):
            return heading
        traceparent = headers.get("traceparent") if self._route.keep_traces else None
        query = heading.query
        encoding = headers.get("Content-Encoding")
        body = small_body_at_hand(request, self._small_max_bytes) if encoding is None else None
        if body is not None:  # the everyday case: nothing to wait for
            admitted = self._route.take(heading, body, head_at=head_at, traceparent=traceparent, vias=vias)
        else:
            try:
                coding = codec.content_encoding(encoding or "")
                async with self._receiver.rows(request, coding, document=query.document) as rows:
                    admitted = self._route.admit(
                        heading, rows, head_at=head_at, now=self._now(), traceparent=traceparent, vias=vias
                    )
            except BodyRefused as refused:
                return self._route.refuse_body(refused, body_ended=request.content.is_eof())
        if self._buffer.ack != "memory" and query.ack != "memory":
            await self._buffer.commit()
        if isinstance(admitted, Waiting):
            with _leaving(request, admitted):
                outcome = await self._route.pipeline.hear(admitted)
            return self._route.heard(outcome, admitted.row_count, query)
        return admitted


@contextmanager
def _leaving(request: web.BaseRequest, waiting: Waiting) -> Iterator[None]:
    """Who leaves waits no longer: its rows stay, it hears of nothing, and others have its place.

    A first contact goes on: whether its rows are taken is not decided by who leaves.
    """
    connection = request.protocol
    if waiting.contact or not isinstance(connection, Connection):
        yield
        return
    connection.on_gone = lambda: waiting.ticket.resolve(Buffered())
    if not connection.connected:
        connection.on_gone()
    try:
        yield
    finally:
        connection.on_gone = None


def _liveness(method: str) -> Answer:
    if method not in ("GET", "HEAD"):
        return answers.error(405, "this path takes GET", ("Allow", "GET, HEAD"))
    return Answer(200, (("Content-Type", "text/plain; charset=utf-8"),), b"OK")
