"""What answers over TLS: reviews at one path, and its own health.

Whoever reaches the port may ask, for API servers show no certificate of their own to webhooks. What they learn is what
they have sent, and the rendered sidecar of a TinybirdProxy whose name they know: no Secret, and nothing of other pods.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from aiohttp import web

from tinybird_proxy_operator.serving.connections import BoundedServer, Limits
from tinybird_proxy_operator.webhook.injector import Injector, Outcome, Result
from tinybird_proxy_operator.webhook.review import NotAReview, Review, answer, read

PATH: Final = "/inject"
# An API server takes 3 MiB of any object at most, and has so many changes going on at once as there are connections.
MAX_BODY_BYTES: Final = 3 * 2**20
# Of all that are there at once.
MAX_BODIES_BYTES: Final = 6 * 2**20
_BODY_TIMEOUT_S: Final = 0.8
# Nobody waits for longer than 3 s.
LIMITS: Final = Limits(connections=200, handshake_s=3, head_s=3.0, whole_s=5.0)
_log = logging.getLogger(__name__)


class _Declined(Exception):
    """Something that is not answered with a review."""

    def __init__(self, status: int, message: str, result: Result | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.result = result


class Server:
    """One handler for every path. ``count`` is told each result, and how many seconds it took. ``now``: a clock."""

    def __init__(self, injector: Injector, *, count: Callable[[Result, float], None], now: Callable[[], float]) -> None:
        self._injector = injector
        self._count = count
        self._now = now
        self._bodies_bytes = 0

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Any request."""
        began_at = self._now()
        try:
            result, response = await self._answer(request)
        except _Declined as declined:
            result = declined.result
            response = web.json_response({"message": str(declined)}, status=declined.status)
        if result is not None:
            self._count(result, self._now() - began_at)
        # API servers keep connections. A replica that is frozen would hold what comes over one that is there already
        # until the API server gives up, and the pod starts without its sidecar, or not; a new connection is made with
        # a replica that is ready. It costs a handshake for each pod that asks, and shows each the current certificate.
        response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest) -> tuple[Result | None, web.Response]:
        if request.path == "/healthz":
            return None, web.json_response({"live": True})
        if request.path != PATH:
            raise _Declined(404, f"there is nothing but {PATH} and /healthz")
        if request.method != "POST":
            raise _Declined(405, f"{request.method} is not supported: a review is a POST")
        size = self._size(request)
        self._bodies_bytes += size
        try:
            review = await self._read(request, size)
            outcome = await self._outcome(review)
        finally:
            self._bodies_bytes -= size
        warning = None if outcome.why_not is None else f"no tinybird-proxy sidecar: {outcome.why_not}"
        return outcome.result, web.json_response(answer(review.uid, outcome.operations, warning))

    def _size(self, request: web.BaseRequest) -> int:
        size = request.content_length
        if size is None:
            raise _Declined(411, "a review comes with its Content-Length", Result.NOT_A_REVIEW)
        if request.headers.get("Content-Encoding"):
            raise _Declined(415, "a review comes as it is, without a Content-Encoding", Result.NOT_A_REVIEW)
        if size > MAX_BODY_BYTES:
            raise _Declined(413, f"a review has at most {MAX_BODY_BYTES} bytes", Result.NOT_A_REVIEW)
        if self._bodies_bytes + size > MAX_BODIES_BYTES:
            raise _Declined(503, "there are too many reviews at once", Result.BUSY)
        return size

    async def _read(self, request: web.BaseRequest, size: int) -> Review:
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                body = await request.content.readexactly(size)
            return read(body)
        except TimeoutError:
            raise _Declined(408, "the review did not come in time", Result.NOT_A_REVIEW) from None
        except asyncio.IncompleteReadError:
            raise _Declined(400, "the review did not come whole", Result.NOT_A_REVIEW) from None
        except NotAReview as error:
            raise _Declined(400, str(error), Result.NOT_A_REVIEW) from error

    async def _outcome(self, review: Review) -> Outcome:
        try:
            return await self._injector.outcome(review)
        except NotAReview as error:
            raise _Declined(400, str(error), Result.NOT_A_REVIEW) from error
        except Exception as error:  # noqa: BLE001 - the pod is let in, whatever it is
            # Without the message, which may be a part of the pod.
            _log.error("a review could not be answered, by a fault of the webhook's: %s", _place_of(error))
            return Outcome(Result.FAULT, why_not="the webhook has made a mistake; see its log")


def _place_of(error: Exception) -> str:
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = "" if place is None else f" in {place.tb_frame.f_code.co_qualname}, line {place.tb_lineno}"
    return f"{type(error).__name__}{where}"


def app_runner(server: Server, limits: Limits) -> web.ServerRunner:
    """The handler as a server, for ``BoundedSite``."""
    return web.ServerRunner(BoundedServer(server.handle, limits), shutdown_timeout=3.0)
