"""Proxies for tests that take the order to drain and to serve again, with the admin token."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from tests.operator.clusters import IPS, Proxies, report, running, stuck


@dataclass(slots=True)
class Buffer:
    """A proxy that can be drained. ``stands_still``: what it holds is not delivered, and it says so.

    ``not_promised``: rows of a first contact, besides.
    """

    rows: int = 0
    draining: bool = False
    refusing: bool = False
    answers: bool = True
    stopping: bool = False
    stands_still: bool = True
    dead_letters: int = 0
    not_promised: int = 0
    orders: int = 0


class Drainable(Proxies):
    """Proxies that drain. ``delays``: for a while a proxy that drains takes rows nevertheless, until ``refuse``."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers = {ip: Buffer() for ip in IPS}
        self.token = "token-1"
        self.delays = False
        self.shown: list[tuple[str, str | None]] = []
        self.told: list[tuple[str, str]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        ip = request.transport.get_extra_info("sockname")[0]
        buffer = self.buffers[ip]
        if not buffer.answers:
            request.transport.close()
            return web.Response()
        if request.method in ("POST", "DELETE"):
            return self._told(request, ip, buffer)
        self.asked.append(ip)
        said = self.says.get(ip) or (stuck(buffer.rows) if buffer.rows and buffer.stands_still else report())
        said = {**said, "buffer": {**said["buffer"], "rows": buffer.rows}}
        return web.json_response({**said, "drain": _state(buffer), "dead_letters": {"rows": buffer.dead_letters}})

    def _told(self, request: web.Request, ip: str, buffer: Buffer) -> web.Response:
        shown = request.headers.get("Authorization")
        self.shown.append((ip, shown))
        if shown != f"Bearer {self.token}":
            return web.json_response({"error": "this is not the proxy's ADMIN_TOKEN"}, status=403)
        self.told.append((request.method, ip))
        if request.method == "DELETE" and buffer.stopping:
            return web.json_response({"error": "the process is stopping"}, status=409)
        buffer.draining = request.method == "POST"
        buffer.refusing = buffer.draining and (buffer.refusing or not self.delays)
        buffer.orders += buffer.draining
        return web.json_response(_state(buffer), status=202 if buffer.draining else 200)

    def refuse(self) -> None:
        """The delay is over."""
        for buffer in self.buffers.values():
            buffer.refusing = buffer.draining

    def hold(self, *rows: int) -> None:
        """So many rows in each."""
        for ip, count in zip(IPS, rows, strict=False):
            self.buffers[ip].rows = count


def _state(buffer: Buffer) -> dict[str, bool | int]:
    return {"draining": buffer.draining, "refusing": buffer.refusing, "rows_left": buffer.rows + buffer.not_promised}


@asynccontextmanager
async def running_drainable() -> AsyncIterator[Drainable]:
    """Proxies until the block ends."""
    proxies, app = Drainable(), web.Application()
    app.router.add_get("/status", proxies.handle)
    app.router.add_post("/drain", proxies.handle)
    app.router.add_delete("/drain", proxies.handle)
    async with running(app, proxies):
        yield proxies
