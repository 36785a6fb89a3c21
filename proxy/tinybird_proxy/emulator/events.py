"""``/v0/events``: answer for the rows that were taken in, or as a fault says."""

import asyncio
import json
import re

from aiohttp import web

from tinybird_proxy.emulator.faults import Fault
from tinybird_proxy.emulator.intake import Taken, take_in
from tinybird_proxy.emulator.limits import Allowance
from tinybird_proxy.emulator.replies import CORS_HEADERS, Refused, refusal, reset_connection
from tinybird_proxy.emulator.settings import is_datasource_name
from tinybird_proxy.emulator.state import RECEIVED, STATE, EmulatorState

_TRUE = ("true", "1", "yes", "on")
_ECHOED = re.compile(r"[\x21-\x7e]{1,200}")


async def preflight(request: web.Request) -> web.Response:
    """Answer a browser's ``OPTIONS``: any origin may post."""
    headers = {
        **CORS_HEADERS,
        "Access-Control-Allow-Methods": "POST, OPTIONS",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, Content-Encoding",
        "Access-Control-Max-Age": "600",
    }
    return web.Response(status=204, headers=headers)


async def post_events(request: web.Request) -> web.StreamResponse:
    """Answer one ``POST /v0/events``."""
    state = request.app[STATE]
    headers = dict(CORS_HEADERS)
    headers["x-tinybird-request-id"] = request[RECEIVED].request_id
    # Vercel's log drains ask for this value back.
    if _ECHOED.fullmatch(echoed := request.query.get("x-vercel-verify", "")):
        headers["x-vercel-verify"] = echoed
    try:
        return await _answer(request, state, headers)
    except Refused as refused:
        return refusal(refused, is_text=state.settings.text_errors, headers=headers)


async def _answer(request: web.Request, state: EmulatorState, headers: dict[str, str]) -> web.StreamResponse:
    received = request[RECEIVED]
    datasource = _authorised_datasource(request, state)
    received.datasource = datasource
    allowance = state.limiter.take(datasource, asyncio.get_running_loop().time())
    headers.update(allowance.headers() if allowance else {})
    if allowance and not allowance.allowed:
        raise Refused(429, f"more than {allowance.limit} requests a second to {datasource!r}")
    if fault := state.faults.take_before_body(datasource, request.content_length):
        received.fault = fault.to_json()
        state.log.note_progress()
        await asyncio.sleep(fault.delay_s)
        if fault.reset == "during_body":
            await request.content.readany()
        return reset_connection(request)
    taken = await take_in(request, datasource)
    is_waiting = request.query.get("wait", "").lower() in _TRUE
    await _delay(state, taken.fault, is_waiting=is_waiting)
    if taken.fault and (taken.fault.hang or taken.fault.reset):
        return reset_connection(request)
    return _reply(taken, 200 if is_waiting else 202, allowance, headers)


def _authorised_datasource(request: web.Request, state: EmulatorState) -> str:
    entry = state.authenticate(request)
    name = request.query.get("name")
    if not name:
        raise Refused(400, "the parameter 'name' is missing: name=<data source>")
    if not is_datasource_name(name):
        raise Refused(400, f"name: {name[:256]!r} cannot be that of a data source")
    if not entry.may_append_to(name):
        raise Refused(403, f"this token may not append to {name!r}")
    state.require_datasource(name)
    return name


async def _delay(state: EmulatorState, fault: Fault | None, *, is_waiting: bool) -> None:
    """Take as long as the write would, and as long as the fault says: for ever, if it hangs."""
    while fault and fault.hang and any(fault is in_force for in_force, _ in state.faults.applied()):
        await state.faults_changed.wait()
    delay_s = fault.delay_s if fault else 0.0
    if is_waiting and (fault is None or fault.ingests):
        delay_s += state.settings.wait_delay_s
    await asyncio.sleep(delay_s)


def _reply(taken: Taken, status: int, allowance: Allowance | None, headers: dict[str, str]) -> web.Response:
    counts = {"successful_rows": taken.successful_count, "quarantined_rows": taken.quarantined_count}
    fault = taken.fault
    if fault is None:
        return web.json_response(counts, status=status, headers=headers)
    status = fault.status or status
    body = fault.body
    if body is None and status < 300:
        body = json.dumps({**counts, **(fault.counts or {})})
    elif body is None:
        body = f"fault: {status}" if fault.text else json.dumps({"error": f"fault: {status}"})
    content_type = "text/plain" if fault.text else "application/json"
    reply = web.Response(status=status, text=body, content_type=content_type, headers=headers)
    if status == 429 and allowance:
        reply.headers["X-RateLimit-Remaining"] = "0"
        if isinstance(fault.retry_after, int):
            reply.headers["X-RateLimit-Reset"] = str(fault.retry_after)
    if not fault.rate_headers:
        for name in allowance.headers() if allowance else ():
            reply.headers.pop(name, None)
    if fault.retry_after is not None:
        reply.headers["Retry-After"] = str(fault.retry_after)
    reply.headers.update(fault.headers or {})
    return reply
