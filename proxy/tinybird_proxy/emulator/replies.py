"""The shape of answers: JSON or plain-text errors, CORS, and connections reset instead of answered."""

import json
import socket
import struct
from collections.abc import Mapping

from aiohttp import web

CORS_HEADERS: Mapping[str, str] = {"Access-Control-Allow-Origin": "*"}
_DOCUMENTATION = "https://www.tinybird.co/docs/api-reference"
# l_onoff = 1, l_linger = 0: closing discards what is unsent and sends RST.
_LINGER_RESET = struct.pack("ii", 1, 0)


class Refused(Exception):
    """A request is answered with an error status."""

    def __init__(self, status: int, message: str, *, closes: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.closes = closes
        """Whether the connection is closed after the answer, because its body was not read."""


def error_reply(
    status: int, message: str, *, is_text: bool = False, headers: Mapping[str, str] | None = None
) -> web.Response:
    """An error as Tinybird spells it: ``{"error": …}``, or the message alone as text/plain."""
    if is_text:
        return web.Response(status=status, text=message, headers=headers)
    body = json.dumps({"error": message, "documentation": _DOCUMENTATION})
    return web.Response(status=status, text=body, content_type="application/json", headers=headers)


def refusal(refused: Refused, *, is_text: bool, headers: Mapping[str, str] | None = None) -> web.Response:
    """The answer to a refused request."""
    reply = error_reply(refused.status, refused.message, is_text=is_text, headers=headers)
    if refused.closes:
        reply.force_close()
    return reply


def reset_connection(request: web.Request) -> web.Response:
    """Close the client's connection with RST. The response returned is never sent."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        transport.abort()
    return web.Response(status=502)
