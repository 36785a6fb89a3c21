"""Tinybird's other endpoints, as far as the emulator has them: data sources, SQL, pipes."""

import json
from urllib.parse import parse_qs, unquote_plus

from aiohttp import web

from tinybird_proxy.emulator.control import redacted_query
from tinybird_proxy.emulator.intake import receive_body
from tinybird_proxy.emulator.replies import Refused
from tinybird_proxy.emulator.settings import is_datasource_name
from tinybird_proxy.emulator.sql import BadQuery
from tinybird_proxy.emulator.state import STATE, EmulatorState
from tinybird_proxy.emulator.store import Datasource

_MAX_QUERY_BODY_BYTES = 1_000_000


async def list_datasources(request: web.Request) -> web.Response:
    """All data sources with their row counts, the oldest first."""
    state = request.app[STATE]
    state.require_admin(request)
    datasources = await state.store.datasources()
    return web.json_response({"datasources": [_described(found, state) for found in datasources]})


async def get_datasource(request: web.Request) -> web.Response:
    """One data source, or 404."""
    state = request.app[STATE]
    state.require_admin(request)
    return web.json_response(await _described_by_name(request.match_info["name"], state))


async def create_datasource(request: web.Request) -> web.Response:
    """Create ``?name=``; it may exist already."""
    state = request.app[STATE]
    state.require_admin(request)
    name = request.query.get("name", "")
    if not is_datasource_name(name):
        raise Refused(400, f"name: {name[:256]!r} cannot be that of a data source")
    await state.keep(name, "", ())
    return web.json_response({"datasource": await _described_by_name(name, state)})


async def run_sql(request: web.Request) -> web.Response:
    """Answer the SELECT in ``?q=``, or in the body: a form or JSON with ``q``, or the bare text."""
    state = request.app[STATE]
    state.require_admin(request)
    query = request.query.get("q")
    if query is None and request.method == "POST":
        query = await _query_in_body(request)
    if not query:
        raise Refused(400, "the query is missing: q=SELECT …")
    try:
        return web.json_response(await state.queries.run(query))
    except BadQuery as exc:
        raise Refused(exc.status, str(exc)) from exc


async def get_pipe(request: web.Request) -> web.Response:
    """A pipe's answer without any data; says which parameters it was given."""
    request.app[STATE].authenticate(request)
    document = {
        "meta": [],
        "data": [],
        "rows": 0,
        "statistics": {"elapsed": 0.0, "rows_read": 0, "bytes_read": 0},
        "pipe": request.match_info["name"],
        "parameters": redacted_query(request.query),
    }
    return web.json_response(document)


async def _query_in_body(request: web.Request) -> str:
    body = await receive_body(request, max_bytes=_MAX_QUERY_BODY_BYTES)
    try:
        text = body.decode()
        match request.content_type:
            case "application/x-www-form-urlencoded":
                # Read here, not by aiohttp, whose own reading has another limit.
                return _form_value(text)
            case "application/json":
                document = json.loads(text)
                found = document.get("q") if isinstance(document, dict) else None
                return found if isinstance(found, str) else ""
    except (ValueError, RecursionError) as exc:
        raise Refused(400, "the body is not what its Content-Type says") from exc
    return text


def _form_value(text: str) -> str:
    parsed = parse_qs(text)
    # `curl -d 'SELECT 1'` says that it sends a form, too.
    return parsed["q"][0] if "q" in parsed else unquote_plus(text)


async def _described_by_name(name: str, state: EmulatorState) -> dict[str, object]:
    for found in await state.store.datasources():
        if found.name == name:
            return _described(found, state)
    raise Refused(404, f"Data Source {name[:256]!r} does not exist")


def _described(datasource: Datasource, state: EmulatorState) -> dict[str, object]:
    schema = state.schemas.get(datasource.name)
    return {
        "id": datasource.name,
        "name": datasource.name,
        "row_count": datasource.row_count,
        "quarantined_row_count": datasource.quarantined_count,
        "columns": [{"name": column.name, "type": column.type} for column in (schema.columns if schema else ())],
        "statistics": {"row_count": datasource.row_count, "bytes": datasource.size_bytes},
    }
