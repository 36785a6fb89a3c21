"""``/emulator/…``: faults, the request log, health and an echo. None of it needs a token."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from aiohttp import web

from tinybird_proxy.emulator.faults import BadFault, faults_from_json
from tinybird_proxy.emulator.intake import receive_body
from tinybird_proxy.emulator.replies import Refused
from tinybird_proxy.emulator.request_log import MAX_REQUESTS
from tinybird_proxy.emulator.state import STATE, EmulatorState
from tinybird_proxy.emulator.tokens import token_hash

_MAX_FAULTS_BODY_BYTES = 1_000_000
MAX_ECHO_BYTES = 64_000_000
_DEFAULT_REQUEST_COUNT = 100


async def get_faults(request: web.Request) -> web.Response:
    """The faults in force, each with the number of requests it was ``applied`` to."""
    return web.json_response(_faults_document(request.app[STATE]))


async def put_faults(request: web.Request) -> web.Response:
    """Replace all faults by those of the body, ``{"faults": [{…}, …]}``."""
    state = request.app[STATE]
    body = await receive_body(request, max_bytes=_MAX_FAULTS_BODY_BYTES)
    try:
        state.set_faults(faults_from_json(json.loads(body)))
    except BadFault as exc:
        raise Refused(400, str(exc)) from exc
    except (ValueError, RecursionError) as exc:
        raise Refused(400, "the body is not JSON") from exc
    return web.json_response(_faults_document(state))


async def delete_faults(request: web.Request) -> web.Response:
    """Clear all faults; requests that hang are let go."""
    request.app[STATE].set_faults([])
    return web.json_response(_faults_document(request.app[STATE]))


async def get_requests(request: web.Request) -> web.Response:
    """The last ``limit`` requests, the oldest of them first."""
    limit = request.query.get("limit", str(_DEFAULT_REQUEST_COUNT))
    if not (limit.isascii() and limit.isdecimal() and 0 < int(limit[:6]) <= MAX_REQUESTS):
        raise Refused(400, f"limit: must be a number from 1 to {MAX_REQUESTS}")
    requests = list(request.app[STATE].log.requests)[-int(limit[:6]) :]
    return web.json_response({"requests": [asdict(received) for received in requests]})


async def get_health(request: web.Request) -> web.Response:
    """Says that the emulator answers."""
    return web.json_response({"status": "ok"})


async def echo(request: web.Request) -> web.Response:
    """What arrived: method, path, query, headers, and the size and SHA-256 of the body, which is not kept."""
    digest = hashlib.sha256()
    size_bytes = 0
    while piece := await request.content.readany():
        size_bytes += len(piece)
        if size_bytes > MAX_ECHO_BYTES:
            raise Refused(413, f"the body is larger than {MAX_ECHO_BYTES} bytes", closes=True)
        digest.update(piece)
    document = {
        "method": request.method,
        "path": request.path,
        "query": redacted_query(request.query),
        "headers": redacted_headers(request.headers),
        "body_bytes": size_bytes,
        "body_sha256": digest.hexdigest(),
    }
    return web.json_response(document)


def redacted_query(query: Mapping[str, str]) -> dict[str, str]:
    """The first value of each parameter, the token replaced by the start of its SHA-256."""
    return {name: token_hash(query[name]) if name == "token" else query[name] for name in query}


def redacted_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The first value of each header in its own spelling, the credential replaced likewise."""
    redacted = {}
    for name in headers:
        value = headers[name]
        if name.lower() == "authorization":
            scheme, _, credential = value.partition(" ")
            value = f"{scheme} {token_hash(credential.strip())}" if credential else token_hash(scheme)
        redacted[str(name)] = value
    return redacted


def _faults_document(state: EmulatorState) -> dict[str, Any]:
    return {"faults": [{**fault.to_json(), "applied": applied} for fault, applied in state.faults.applied()]}
