"""`tinybird_proxy.emulator.resources`: data sources, SQL and pipes over HTTP."""

from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tinybird_proxy.emulator import Emulator, TokenEntry

Start = Callable[..., Awaitable[Emulator]]


async def _json(session: aiohttp.ClientSession, method: str, url: str, **options: Any) -> tuple[int, Any]:
    async with session.request(method, url, **options) as reply:
        return reply.status, await reply.json()


async def _fill(session: aiohttp.ClientSession, emulator: Emulator) -> None:
    body = b'{"a":1}\n{"a":"x"}\n{"a":2}'
    assert (await _json(session, "POST", f"{emulator.url}/v0/events?name=hits", data=body))[0] == 202


async def test_data_sources_are_listed_with_their_counts(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start(schemas={"hits": {"a": "Int64"}})
    await _fill(session, emulator)
    hits = {
        "id": "hits",
        "name": "hits",
        "row_count": 2,
        "quarantined_row_count": 1,
        "columns": [{"name": "a", "type": "Int64"}],
        "statistics": {"row_count": 2, "bytes": 14},
    }
    assert await _json(session, "GET", f"{emulator.url}/v0/datasources") == (200, {"datasources": [hits]})
    assert await _json(session, "GET", f"{emulator.url}/v0/datasources/hits") == (200, hits)
    assert (await _json(session, "GET", f"{emulator.url}/v0/datasources/clicks"))[0] == 404


async def test_a_data_source_can_be_created(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start(create_datasources=False)
    url = f"{emulator.url}/v0/datasources"
    assert (await _json(session, "POST", f"{url}?name=a-b"))[0] == 400
    status, document = await _json(session, "POST", f"{url}?name=hits")
    assert (status, document["datasource"]["name"]) == (200, "hits")
    await _fill(session, emulator)


@pytest.mark.parametrize(
    "request_options",
    [
        {"method": "GET", "params": {"q": "SELECT count() AS c FROM hits FORMAT JSON"}},
        {"method": "POST", "params": {"q": "SELECT count() AS c FROM hits"}},
        {"method": "POST", "data": {"q": "SELECT count() AS c FROM hits"}},
        {"method": "POST", "json": {"q": "SELECT count() AS c FROM hits"}},
        {"method": "POST", "data": b"SELECT count() AS c FROM hits", "headers": {"Content-Type": "text/plain"}},
        {
            "method": "POST",
            "data": b"SELECT count() AS c FROM hits",
            "headers": {"Content-Type": "application/x-www-form-urlencoded"},
        },
    ],
    ids=["query", "query of a post", "form", "json", "text", "text called a form"],
)
async def test_a_select_may_come_in_many_ways(
    start: Start, session: aiohttp.ClientSession, request_options: dict[str, Any]
) -> None:
    emulator = await start(schemas={"hits": {"a": "Int64"}})
    await _fill(session, emulator)
    status, document = await _json(session, url=f"{emulator.url}/v0/sql", **request_options)
    assert (status, document["data"]) == (200, [{"c": 2}])


@pytest.mark.parametrize(
    ("request_options", "status"),
    [
        ({"method": "GET"}, 400),
        ({"method": "POST", "data": b""}, 400),
        ({"method": "POST", "json": ["q"]}, 400),
        ({"method": "POST", "data": b"{", "headers": {"Content-Type": "application/json"}}, 400),
        ({"method": "POST", "data": b"\xff", "headers": {"Content-Type": "text/plain"}}, 400),
        ({"method": "GET", "params": {"q": "DROP TABLE hits"}}, 403),
        ({"method": "GET", "params": {"q": "SELECT * FROM nowhere"}}, 400),
    ],
)
async def test_a_query_that_is_missing_or_bad_is_refused_as_json(
    start: Start, session: aiohttp.ClientSession, request_options: dict[str, Any], status: int
) -> None:
    emulator = await start()
    answered, document = await _json(session, url=f"{emulator.url}/v0/sql", **request_options)
    assert answered == status
    assert document["error"]


@pytest.mark.parametrize("path", ["/v0/sql?q=SELECT+1", "/v0/datasources", "/v0/datasources/hits"])
async def test_reading_needs_an_admin_token(start: Start, path: str) -> None:
    emulator = await start(tokens=(TokenEntry("append", ("DATASOURCES:APPEND:*",)),))
    async with aiohttp.ClientSession() as session:
        url = f"{emulator.url}{path}"
        assert (await _json(session, "GET", url))[0] == 401
        assert (await _json(session, "GET", url, headers={"Authorization": "Bearer wrong"}))[0] == 403
        assert (await _json(session, "GET", url, headers={"Authorization": "Bearer append"}))[0] == 403


async def test_a_pipe_answers_without_data_and_echoes_its_parameters(
    start: Start, session: aiohttp.ClientSession
) -> None:
    emulator = await start()
    status, document = await _json(session, "GET", f"{emulator.url}/v0/pipes/top.json?days=7&token=T")
    assert (status, document["data"], document["pipe"]) == (200, [], "top")
    assert document["parameters"] == {"days": "7", "token": "e632b709"}
    async with aiohttp.ClientSession() as stranger:
        assert (await _json(stranger, "GET", f"{emulator.url}/v0/pipes/top.json"))[0] == 401
