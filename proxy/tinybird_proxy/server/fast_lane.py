"""The fast lane: a small, complete POST is answered as soon as it is parsed, without a task.

It looks at the message of aiohttp's own parser, before the task of the connection is woken, and takes the everyday
request only: HTTP/1.1, kept alive, plain body that came with its head, a heading that was admitted before, a confirmed
destination, nothing to wait for. Everything else it leaves as it is, for ``handler``. What it answers is what
``handler`` would have answered, because both call the same functions; a test compares them.
"""

from time import time

from aiohttp import HttpVersion11, StreamReader
from aiohttp.http_parser import RawRequestMessage

from tinybird_proxy.server import answers
from tinybird_proxy.server.answers import Answer
from tinybird_proxy.server.events import PATH, EventsRoute
from tinybird_proxy.server.responses import wire
from tinybird_proxy.telemetry.logs import get_logger
from tinybird_proxy.upstream import VIA_HEADER

_log = get_logger("server")


class FastLane:
    """Called by a connection with a message and its body."""

    def __init__(self, route: EventsRoute, *, small_max_bytes: int) -> None:
        self._route = route
        self._small_max_bytes = small_max_bytes
        self._now = route.pipeline.surroundings.now

    def __call__(self, message: RawRequestMessage, payload: StreamReader) -> bytes | None:
        """The whole answer, or None: the ordinary way has to take this request, which is untouched."""
        if (
            message.method != "POST"
            or not payload.is_eof()
            or payload.total_bytes > self._small_max_bytes
            or message.should_close
            or message.upgrade
            or message.version != HttpVersion11
        ):
            return None
        path, _, query_text = message.path.partition("?")
        headers = message.headers
        if path != PATH or "Content-Encoding" in headers or VIA_HEADER in headers or "Transfer-Encoding" in headers:
            return None
        heading = self._route.at_once(headers.get("Authorization"), query_text)
        if heading is None:
            return None
        traceparent = headers.get("traceparent") if self._route.keep_traces else None
        answer = self._route.take(
            heading, payload.read_nowait(), head_at=self._now(), traceparent=traceparent, vias=None
        )
        if not isinstance(answer, Answer):
            # ``at_once`` rules it out. The rows are taken, so the client must not hear anything else.
            _log.error("the fast lane took a request that has to wait; it was answered as buffered")
            answer = answers.taken(answer.row_count, "memory")
        return wire(answer, True, int(time()))
