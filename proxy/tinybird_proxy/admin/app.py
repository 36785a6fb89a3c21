"""The admin port's routes, and who may use them."""

import ipaddress
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from tinybird_proxy.admin.answers import Refused, as_json
from tinybird_proxy.admin.dead_letters import DeadLetterRoutes
from tinybird_proxy.admin.status import Reporter
from tinybird_proxy.server.availability import Availability
from tinybird_proxy.server.events import bearer
from tinybird_proxy.telemetry import prometheus
from tinybird_proxy.telemetry.logs import get_logger
from tinybird_proxy.tokens import same

ACTION_HEADER = "X-Tinybird-Proxy"
# For aiohttp, which logs at ERROR whatever a port scanner sends.
SERVER_LOGGER = get_logger("admin.server")
_log = get_logger("admin")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _is_our_fault(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


SERVER_LOGGER.addFilter(_is_our_fault)


class AdminToken:
    """The token for actions; None: only callers on this machine that say so on purpose."""

    def __init__(self, value: str | None) -> None:
        self.value = value


def make_admin_app(reporter: Reporter, availability: Availability, token: AdminToken) -> web.Application:
    """Build the admin port's application."""
    app = web.Application(middlewares=[_errors_as_json])
    admin = _Admin(reporter, availability, token)
    app.router.add_get("/livez", admin.livez)
    app.router.add_get("/readyz", admin.readyz)
    app.router.add_get("/status", admin.status)
    app.router.add_get("/metrics", admin.metrics)
    app.router.add_post("/drain", admin.begin_drain)
    app.router.add_delete("/drain", admin.cancel_drain)
    DeadLetterRoutes(reporter.pipeline, availability, admin.authorise).add_to(app.router)
    return app


class _Admin:
    def __init__(self, reporter: Reporter, availability: Availability, token: AdminToken) -> None:
        self._reporter = reporter
        self._availability = availability
        self._token = token

    async def livez(self, request: web.Request) -> web.Response:
        """Answering is the proof: the event loop turns."""
        return as_json(200, {"live": True})

    async def readyz(self, request: web.Request) -> web.Response:
        """503 only while starting or draining. Trouble is said in the body, with 200."""
        ready = self._availability.ready
        body = {
            "ready": ready,
            "phase": self._availability.phase,
            "sentence": self._reporter.sentence(),
            "not_delivering": self._reporter.not_delivering(),
        }
        return as_json(200 if ready else 503, body)

    async def status(self, request: web.Request) -> web.Response:
        return as_json(200, self._reporter.status())

    async def metrics(self, request: web.Request) -> web.Response:
        page = prometheus.render(self._reporter.snapshot())
        return web.Response(body=page, headers={"Content-Type": prometheus.CONTENT_TYPE})

    async def begin_drain(self, request: web.Request) -> web.Response:
        self.authorise(request)
        if self._availability.draining_since is None:
            _log.info("draining on request")
        self._availability.begin_drain()
        return as_json(202, self._drain_state())

    async def cancel_drain(self, request: web.Request) -> web.Response:
        self.authorise(request)
        if not self._availability.cancel_drain():
            return as_json(409, {"error": "the process is stopping; a drain can no longer be cancelled"})
        _log.info("back to normal service on request")
        return as_json(200, self._drain_state())

    def _drain_state(self) -> dict[str, Any]:
        drain: dict[str, Any] = self._reporter.status()["drain"]
        return drain

    def authorise(self, request: web.Request) -> None:
        """Let the admin token in; without one set, only a deliberate call from this machine."""
        if self._token.value is not None:
            shown = bearer(request.headers.get("Authorization"))
            if shown is None:
                raise Refused(401, "this action needs the proxy's ADMIN_TOKEN as 'Authorization: Bearer …'")
            if not same(shown, self._token.value):
                raise Refused(403, "this is not the proxy's ADMIN_TOKEN")
            return
        if not (_is_loopback(request.remote or "") and _is_loopback(_host(request))):
            raise Refused(403, "without ADMIN_TOKEN this action is only allowed from localhost, by that name")
        if request.headers.get(ACTION_HEADER) != "1":
            raise Refused(403, f"without ADMIN_TOKEN this action needs the header '{ACTION_HEADER}: 1'")


@web.middleware
async def _errors_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as refused:
        return as_json(refused.status, {"error": refused.message})
    except web.HTTPException as error:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return as_json(error.status, {"error": f"{error.reason}: {request.method} {request.path[:200]}"}, headers)
    except Exception:  # noqa: BLE001 - told and logged here, without the request's content
        _log.error("an admin request broke inside the proxy", exc_info=True)
        return as_json(500, {"error": "an error inside the proxy"})


def _host(request: web.Request) -> str:
    try:
        return urlsplit(f"//{request.headers.get('Host', '')}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # A socket of both families shows 127.0.0.1 as ::ffff:127.0.0.1, which no Python before 3.13 takes for loopback.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
