"""`tinybird_proxy.emulator.server`: routes, errors as JSON, the request log, the start."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from tinybird_proxy.emulator import Emulator, EmulatorSettings, StoreError, running_emulator

Start = Callable[..., Awaitable[Emulator]]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v0/nowhere", 404),
        ("GET", "/", 404),
        ("GET", "/v0/events?name=hits", 405),
        ("PUT", "/v0/events?name=hits", 405),
        ("POST", "/emulator/faults", 405),
    ],
)
async def test_what_does_not_exist_is_said_in_json(
    start: Start, session: aiohttp.ClientSession, method: str, path: str, status: int
) -> None:
    emulator = await start()
    async with session.request(method, f"{emulator.url}{path}") as reply:
        assert reply.status == status
        assert (await reply.json())["error"].startswith(f"{method} /")
        assert ("Allow" in reply.headers) == (status == 405)


async def test_every_request_but_those_to_the_emulator_itself_is_logged(
    start: Start, session: aiohttp.ClientSession
) -> None:
    emulator = await start()
    for path in ("/v0/nowhere", "/emulator/health", "/v0/events", "/v0/pipes/a.json"):
        async with session.get(f"{emulator.url}{path}"):
            pass
    logged = [(received.path, received.status) for received in emulator.requests]
    assert logged == [("/v0/nowhere", 404), ("/v0/events", 405), ("/v0/pipes/a.json", 200)]


async def test_refusals_are_logged_too(start: Start) -> None:
    emulator = await start()
    async with aiohttp.ClientSession() as session, session.post(f"{emulator.url}/v0/events?name=hits") as reply:
        assert reply.status == 401
    assert emulator.requests[0].status == 401


async def test_schemas_come_from_the_settings_and_the_file(
    tmp_path: Path, start: Start, session: aiohttp.ClientSession
) -> None:
    path = tmp_path / "schemas.json"
    await asyncio.to_thread(path.write_text, json.dumps({"clicks": {"b": "Int64"}}))
    emulator = await start(schemas={"hits": {"a": "Int64"}}, schema_file=path)
    for name in ("hits", "clicks"):
        async with session.post(f"{emulator.url}/v0/events?name={name}", data=b'{"a":"x","b":"x"}') as reply:
            assert await reply.json() == {"successful_rows": 0, "quarantined_rows": 1}
    assert [found.name for found in await emulator.datasources()] == ["hits", "clicks"]


async def test_a_bad_schema_file_stops_the_start(tmp_path: Path) -> None:
    path = tmp_path / "schemas.json"
    await asyncio.to_thread(path.write_text, "[]")
    with pytest.raises(ValueError, match="schema_file"):
        async with running_emulator(EmulatorSettings(token="T", port=0, schema_file=path)):
            pass


async def test_a_bad_database_stops_the_start(tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "emulator.db").write_bytes, b"something else" * 100)
    with pytest.raises(StoreError):
        async with running_emulator(EmulatorSettings(token="T", port=0, data_dir=tmp_path)):
            pass
