"""What answers over TLS: who asks, may they, and then the answer. Always JSON."""

import logging
from collections.abc import Callable

from aiohttp import web

from tinybird_proxy_operator.metrics_api.api import (
    Document,
    MetricQuery,
    Refused,
    find,
    metric_value_list,
    parts_of,
)
from tinybird_proxy_operator.metrics_api.authentication import Authenticator, peer_of
from tinybird_proxy_operator.metrics_api.authorization import ALWAYS_ALLOWED, Authorizer, attributes
from tinybird_proxy_operator.metrics_api.values import Values
from tinybird_proxy_operator.serving.connections import BoundedServer, Limits

_log = logging.getLogger(__name__)


class Server:
    """One handler for every path. ``count`` is told the code of each answer."""

    def __init__(
        self,
        authenticator: Authenticator,
        authorizer: Authorizer,
        values: Values,
        *,
        count: Callable[[int], None],
    ) -> None:
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._values = values
        self._count = count

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Any request."""
        code = 200
        try:
            document = await self._answer(request)
        except Refused as refused:
            code, document = refused.code, refused.status()
        except Exception:  # noqa: BLE001 - the client gets a Status, whatever it is
            _log.exception("a request could not be answered, by a fault of the metrics API's: %s", request.path)
            code, document = 500, Refused(500, "the metrics API has made a mistake; see its log").status()
        self._count(code)
        response = web.json_response(document, status=code)
        # A replica that is frozen would hold what comes over a connection that is already there until it times out; a
        # new connection is made with another one. And so each request has its own handshake, with what counts by then.
        response.force_close()
        return response

    async def _answer(self, request: web.BaseRequest) -> Document:
        parts = parts_of(request.rel_url.raw_path)
        if parts in ALWAYS_ALLOWED:
            return {"live": True}
        connection = None if request.transport is None else request.transport.get_extra_info("ssl_object")
        if connection is None:
            raise Refused(401, "Unauthorized")
        peer = peer_of(connection.getpeercert(), resumed=connection.session_reused)
        user = await self._authenticator.identify(peer, list(request.headers.items()))
        await self._authorizer.check(user, attributes(request.method, parts))
        if request.method not in ("GET", "HEAD"):
            raise Refused(405, f"{request.method} is not supported: metrics can only be read")
        found = find(parts, request.rel_url.query)
        if not isinstance(found, MetricQuery):
            return found
        return metric_value_list(found.version, found.metric, await self._values.answer(found))


def app_runner(server: Server, limits: Limits) -> web.ServerRunner:
    """The handler as a server, for ``BoundedSite``."""
    return web.ServerRunner(BoundedServer(server.handle, limits), shutdown_timeout=10.0)
