"""aiohttp's low-level server with our manners: errors are JSON, and nothing of a request is ever logged."""

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict

from tinybird_proxy import __version__
from tinybird_proxy.server import answers
from tinybird_proxy.server.answers import Answer
from tinybird_proxy.telemetry.logs import get_logger

SERVER_HEADER = ("Server", f"tinybird-proxy/{__version__}")
_log = get_logger("server")


def respond(answer: Answer) -> web.Response:
    """An ``Answer`` as aiohttp sends it."""
    headers = CIMultiDict(answer.headers)
    headers.add(*SERVER_HEADER)
    response = web.Response(status=answer.status, body=answer.body, headers=headers)
    if answer.close:
        response.force_close()
    return response


class Connection(RequestHandler):
    """One client connection."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP, or what broke inside, with JSON. The exception's text may hold what was sent."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer had begun; the connection ends")
        if status >= 500:
            _log.error("a request broke inside the proxy; the client was told 500", exc_info=exc)
            text = "an error inside the proxy; nothing of this request was taken"
        else:
            text = "the request is not valid HTTP"
        return respond(answers.error(status, text, close=True))

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """aiohttp would log the exception's text, in which headers may stand."""
        _log.warning("a connection broke", exc_info=kwargs.get("exc_info") or True)


class HttpServer(web.Server):
    """Makes a ``Connection`` for each client."""

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=asyncio.get_running_loop(), **self._kwargs)
