"""A TLS proxy before the API server that fails on command, as a process of its own; see faulty_api.py for its use.

It runs on the node under the API server's own certificate, so that whoever trusts the cluster's authority trusts it.
What no fault is for is passed on as it comes: both ways unchanged, answers piece by piece, one connection to the API
server for each request; user agent and token are the client's own. Upgrades (exec, port-forward) are refused, with 501.
If the API server is away or goes in the middle of an answer, the client's connection is reset.

It ends by itself: after its lifetime, or when the test that started it does.
"""

import argparse
import asyncio
import json
import random
import signal
import socket
import ssl
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web
from tests.e2e.api_faults import BadFault, Fault, Script, parse
from yarl import URL

_MAX_BODY_BYTES: Final = 16 * 1024 * 1024
_MAX_LIFETIME_S: Final = 1800.0
_CONNECT_TIMEOUT_S: Final = 5.0
_SHUTDOWN_TIMEOUT_S: Final = 0.2  # 0 would be none
_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_HOP_BY_HOP: Final = frozenset(
    ("connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
)
_REASONS: Final = {
    408: "Timeout",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Where it listens, and what it stands before."""

    host: str
    port: int
    upstream: str
    """The API server's URL."""
    ca: Path
    """Who must have signed the API server's certificate."""
    certificate: Path
    key: Path
    seed: int = 0
    lifetime_s: float = 300.0


@dataclass(eq=False, slots=True)
class _OpenWatch:
    path: str
    struck: asyncio.Future[Fault]


class Proxy:
    """Passes requests on, and does what the script says. ``running`` makes one."""

    def __init__(self, upstream: str, session: aiohttp.ClientSession, script: Script) -> None:
        self._upstream = upstream.rstrip("/")
        self._session = session
        self.script = script
        self._changed = asyncio.Event()
        self._watches: set[_OpenWatch] = set()
        self._requests: Counter[str] = Counter()

    def inject(self, faults: Sequence[Fault]) -> None:
        """These faults from now on, for open watches too."""
        self.script.set(faults)
        self._changed.set()
        self._changed = asyncio.Event()
        for watch in self._watches:
            if watch.struck.done():
                continue
            fault = self.script.decide("GET", watch.path, is_watch=True, is_open=True)
            if fault is not None:
                watch.struck.set_result(fault)

    def counts(self) -> dict[str, Any]:
        """What has come and what was injected, as JSON."""
        return {
            "requests": self._requests["all"],
            "open_watches": len(self._watches),
            "upstream_failures": self._requests["upstream failures"],
            "injected": dict(self.script.injected),
            "recent": list(self.script.recent),
        }

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request to the API server."""
        self._requests["all"] += 1
        path = request.raw_path
        is_watch = request.method == "GET" and request.query.get("watch", "").lower() in ("1", "true")
        if "upgrade" in request.headers.get("Connection", "").lower():
            return web.Response(status=501, text="the fault proxy passes no upgrades on")
        fault = self.script.decide(request.method, path, is_watch=is_watch)
        if fault is not None:
            await asyncio.sleep(fault.delay_s)
            if not fault.reaches_the_api_server or fault.is_only_a_delay:
                self.script.count(fault, request.method, path)
            if fault.reset == "before_request":
                return _reset(request)
            if fault.hang:
                await self._changed.wait()
                return _reset(request)
            if fault.status is not None:
                await request.read()
                return _refusal(fault.status, fault.retry_after_s)
        try:
            return await self._pass_on(request, fault, is_watch=is_watch)
        except (aiohttp.ClientError, OSError):
            # Either the client went, or the API server is away or went in the middle of its answer.
            if request.transport is not None and not request.transport.is_closing():
                self._requests["upstream failures"] += 1
            return _reset(request)

    async def _pass_on(self, request: web.Request, fault: Fault | None, *, is_watch: bool) -> web.StreamResponse:
        asked = self._session.request(
            request.method,
            URL(self._upstream + request.raw_path, encoded=True),
            headers=[(name, value) for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP],
            data=await request.read() or None,
            allow_redirects=False,
        )
        async with asked as answer:
            if fault is not None and fault.reset == "before_answer":
                await answer.read()
                return self._cut(request, fault)
            passed = web.StreamResponse(status=answer.status, reason=answer.reason)
            for name, value in answer.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    passed.headers.add(name, value)
            if answer.content_length is not None:
                passed.content_length = answer.content_length
            await passed.prepare(request)
            if is_watch and answer.status == 200:
                return await self._pass_watch_on(request, answer, passed, fault)
            async for chunk in answer.content.iter_any():
                if fault is not None and fault.reset == "during_answer":
                    await passed.write(chunk[: len(chunk) // 2])
                    return self._cut(request, fault)
                await passed.write(chunk)
            if fault is not None and fault.reset == "during_answer":  # there was no body
                return self._cut(request, fault)
            await passed.write_eof()
            return passed

    async def _pass_watch_on(
        self, request: web.Request, answer: aiohttp.ClientResponse, passed: web.StreamResponse, fault: Fault | None
    ) -> web.StreamResponse:
        """Events as they come, until one side ends it or a fault strikes."""
        watch = _OpenWatch(request.raw_path, asyncio.get_running_loop().create_future())
        if fault is not None and fault.strikes_open_watches:
            watch.struck.set_result(fault)
        self._watches.add(watch)
        reading: asyncio.Task[bytes] | None = None
        is_between_events = True
        try:
            while True:
                reading = reading or asyncio.create_task(answer.content.readany())
                if is_between_events or not watch.struck.done():
                    both: set[asyncio.Future[Any]] = {reading, watch.struck}
                    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if watch.struck.done() and is_between_events:
                    return await self._strike(request, passed, watch.struck.result())
                chunk = await reading
                reading = None
                if not chunk:
                    await passed.write_eof()
                    return passed
                if watch.struck.done():  # in the middle of an event: pass it on to its end
                    chunk = chunk[: chunk.find(b"\n") + 1] or chunk
                await passed.write(chunk)
                is_between_events = chunk.endswith(b"\n")
        finally:
            self._watches.discard(watch)
            if reading is not None:
                reading.cancel()
                with suppress(asyncio.CancelledError, aiohttp.ClientError):
                    await reading

    async def _strike(self, request: web.Request, passed: web.StreamResponse, fault: Fault) -> web.StreamResponse:
        """End an open watch."""
        if fault.watch_error is None:
            return self._cut(request, fault)
        await passed.write(json.dumps({"type": "ERROR", "object": _status(fault.watch_error)}).encode() + b"\n")
        await passed.write_eof()
        self.script.count(fault, request.method, request.raw_path)
        return passed

    def _cut(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        self.script.count(fault, request.method, request.raw_path)
        return _reset(request)


def _status(code: int, retry_after_s: int | None = None) -> dict[str, Any]:
    message = f"injected by the fault proxy: {code}"
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    details = {} if retry_after_s is None else {"details": {"retryAfterSeconds": retry_after_s}}
    return {**status, "reason": _REASONS.get(code, "Unknown"), **details, "code": code}


def _refusal(code: int, retry_after_s: int | None) -> web.Response:
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return web.json_response(_status(code, retry_after_s), status=code, headers=headers)


def _reset(request: web.Request) -> web.Response:
    """End the connection with RST; the response returned goes nowhere."""
    if (transport := request.transport) is not None:
        connection = transport.get_extra_info("socket")
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        transport.abort()
    return web.Response()


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[Proxy, int, int]]:
    """The proxy, its port and the port of its control, which is on loopback:

    `PUT /faults` takes a list of faults in place of the last, `GET /counts` tells what came of them.
    """
    to_upstream = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    to_upstream.load_verify_locations(settings.ca)
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(settings.certificate, settings.key)
    served.set_alpn_protocols(["http/1.1"])
    session = aiohttp.ClientSession(
        # One connection for each request: the client library would repeat a request whose kept connection broke.
        connector=aiohttp.TCPConnector(ssl=to_upstream, limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        trust_env=False,
    )
    async with session:
        proxy = Proxy(settings.upstream, session, Script(random.Random(settings.seed)))
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        # A client that goes ends its watch at the API server as well.
        front = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT_S)
        back = web.AppRunner(_control(proxy), access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT_S)
        try:
            await front.setup()
            await web.TCPSite(front, settings.host, settings.port, ssl_context=served).start()
            await back.setup()
            await web.TCPSite(back, "127.0.0.1", 0).start()
            yield proxy, front.addresses[0][1], back.addresses[0][1]
        finally:
            proxy.inject([])  # whoever hangs is let go
            await back.cleanup()
            await front.cleanup()


def _control(proxy: Proxy) -> web.Application:
    async def put_faults(request: web.Request) -> web.Response:
        try:
            faults = parse(await request.json())
        except (BadFault, json.JSONDecodeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        proxy.inject(faults)
        return web.json_response(proxy.counts())

    async def get_counts(_: web.Request) -> web.Response:
        return web.json_response(proxy.counts())

    app = web.Application()
    app.router.add_put("/faults", put_faults)
    app.router.add_get("/counts", get_counts)
    return app


async def _serve(settings: Settings) -> None:
    """Until SIGTERM, the end of stdin or of the lifetime; says on stdout where it listens."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(sys.stdin.fileno(), stop.set)  # nothing is ever written there
    try:
        async with running(settings) as (_, port, control_port):
            print(json.dumps({"port": port, "control": control_port}), flush=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(settings.lifetime_s, _MAX_LIFETIME_S)):
                    await stop.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())


def main() -> None:
    """Serve as the command line says. stdin must be a pipe: its end is the proxy's end."""
    parser = argparse.ArgumentParser(description="A TLS proxy before the API server that fails on command.")
    for name in ("host", "upstream"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("ca", "certificate", "key"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lifetime-s", type=float, default=300.0)
    try:
        asyncio.run(_serve(Settings(**vars(parser.parse_args()))))
    except OSError as error:  # the port is taken, or a file is not there
        sys.exit(f"fault proxy: {error}")


if __name__ == "__main__":
    main()
