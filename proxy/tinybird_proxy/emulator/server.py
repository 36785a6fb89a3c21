"""The emulator's web application: its routes, the request log, errors as JSON."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp import hdrs, web

from tinybird_proxy.emulator import control, events, resources
from tinybird_proxy.emulator.control import redacted_headers, redacted_query
from tinybird_proxy.emulator.replies import Refused, error_reply, refusal
from tinybird_proxy.emulator.request_log import ReceivedRequest
from tinybird_proxy.emulator.settings import EmulatorSettings, read_schema_file
from tinybird_proxy.emulator.sql import QueryRunner
from tinybird_proxy.emulator.state import RECEIVED, STATE, EmulatorState
from tinybird_proxy.emulator.store import open_store

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_CHECKER_THREADS = 2
# A client that was refused early must get to read why before its connection is closed.
_LINGERING_S = 2.0


def create_app(settings: EmulatorSettings) -> web.Application:
    """The application. Run it with `create_runner`: bodies must reach it as they were sent."""
    app = web.Application(middlewares=[_log_and_explain])
    app[STATE] = EmulatorState(settings)
    app.cleanup_ctx.append(_open_state)
    app.add_routes(
        [
            web.post("/v0/events", events.post_events),
            web.options("/v0/events", events.preflight),
            web.get("/v0/sql", resources.run_sql),
            web.post("/v0/sql", resources.run_sql),
            web.get("/v0/datasources", resources.list_datasources),
            web.post("/v0/datasources", resources.create_datasource),
            web.get("/v0/datasources/{name}", resources.get_datasource),
            web.get("/v0/pipes/{name}.json", resources.get_pipe),
            web.get("/emulator/faults", control.get_faults),
            web.put("/emulator/faults", control.put_faults),
            web.delete("/emulator/faults", control.delete_faults),
            web.get("/emulator/requests", control.get_requests),
            web.get("/emulator/health", control.get_health),
            web.route(hdrs.METH_ANY, "/emulator/echo", control.echo),
        ]
    )
    return app


def create_runner(app: web.Application) -> web.AppRunner:
    """A runner that leaves bodies compressed and ends a handler when its client leaves."""
    return web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        handler_cancellation=True,
        lingering_time=_LINGERING_S,
        # Rows are committed before an answer is delayed, so nothing is worth waiting for.
        shutdown_timeout=0.1,
    )


@web.middleware
async def _log_and_explain(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Note each request, and turn every refusal into the error that Tinybird would send."""
    loop = asyncio.get_running_loop()
    state = request.app[STATE]
    received = ReceivedRequest(
        request_id=uuid.uuid4().hex[:16],
        received_at=time.time(),
        received_loop_s=loop.time(),
        method=request.method,
        path=request.path,
        query=redacted_query(request.query),
        headers=redacted_headers(request.headers),
    )
    request[RECEIVED] = received
    if request.path.startswith("/emulator/"):
        return await _explained(request, handler, state)
    state.log.add(received)
    try:
        response = await _explained(request, handler, state)
        if request.transport is not None and not request.transport.is_closing():
            received.status = response.status
        return response
    finally:
        state.log.finish(received, loop.time())


async def _explained(request: web.Request, handler: _Handler, state: EmulatorState) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as refused:
        return refusal(refused, is_text=state.settings.text_errors)
    except web.HTTPException as exc:
        allow = {"Allow": exc.headers["Allow"]} if "Allow" in exc.headers else None
        message = f"{request.method} {request.path}: {exc.reason}"
        return error_reply(exc.status, message, is_text=state.settings.text_errors, headers=allow)


async def _open_state(app: web.Application) -> AsyncIterator[None]:
    state = app[STATE]
    loop = asyncio.get_running_loop()
    if state.settings.schema_file is not None:
        state.schemas |= await loop.run_in_executor(None, read_schema_file, state.settings.schema_file)
    state.checkers = ThreadPoolExecutor(_CHECKER_THREADS, thread_name_prefix="emulator-check")
    try:
        async with open_store(state.settings.data_dir) as state.store:
            for datasource in state.schemas:
                await state.store.create(datasource)
            state.known_datasources = {found.name for found in await state.store.datasources()}
            async with QueryRunner(state.store.path, state.schemas) as state.queries:
                yield
    finally:
        await loop.run_in_executor(None, state.checkers.shutdown)
