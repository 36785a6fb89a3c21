"""What the admin port answers with: JSON for a person to read, refusals included."""

from typing import Any

import msgspec
from aiohttp import web


class Refused(Exception):
    """This request is answered with ``status`` and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def as_json(status: int, body: Any, headers: dict[str, str] | None = None) -> web.Response:
    """``body`` as JSON, indented."""
    encoded = msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n"
    return web.Response(status=status, body=encoded, content_type="application/json", headers=headers)
