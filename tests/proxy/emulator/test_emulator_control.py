"""`tinybird_proxy.emulator.control`: faults and the request log over HTTP, health, echo."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tinybird_proxy.emulator import Emulator, Fault

Start = Callable[..., Awaitable[Emulator]]


async def _json(session: aiohttp.ClientSession, method: str, url: str, **options: Any) -> tuple[int, Any]:
    async with session.request(method, url, **options) as reply:
        return reply.status, await reply.json()


async def test_faults_are_set_shown_with_their_count_and_cleared_without_a_token(start: Start) -> None:
    emulator = await start()
    url = f"{emulator.url}/emulator/faults"
    async with aiohttp.ClientSession() as session:
        wanted = {"status": 503, "times": 2}
        assert await _json(session, "PUT", url, json={"faults": [wanted]}) == (
            200,
            {"faults": [{**wanted, "applied": 0}]},
        )
        await _json(session, "POST", f"{emulator.url}/v0/events?name=hits&token=T", data=b"{}")
        assert await _json(session, "GET", url) == (200, {"faults": [{**wanted, "applied": 1}]})
        assert await _json(session, "DELETE", url) == (200, {"faults": []})
    assert emulator.faults == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"faults":[{"status":1}]}', "fault 1: status: 1, must be an HTTP status from 200 to 599"),
        (b'{"faults":[{"statsu":1}]}', "fault 1: statsu: unknown, must be one of datasource"),
        (b"{}", "the body must be"),
        (b"x", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
    ],
)
async def test_a_bad_fault_is_400_says_what_is_allowed_and_changes_nothing(
    start: Start, session: aiohttp.ClientSession, body: bytes, message: str
) -> None:
    emulator = await start()
    emulator.set_faults(Fault(status=503))
    status, document = await _json(session, "PUT", f"{emulator.url}/emulator/faults", data=body)
    assert status == 400
    assert document["error"].startswith(message)
    assert len(emulator.faults) == 1


async def test_the_request_log_shows_what_arrived_without_the_token(
    start: Start, session: aiohttp.ClientSession
) -> None:
    emulator = await start()
    for name in ("first", "second"):
        url = f"{emulator.url}/v0/events?name={name}&token=T"
        await _json(session, "POST", url, data=b'{"a":1}\n{}', headers={"X-Batch-Id": name})
    status, document = await _json(session, "GET", f"{emulator.url}/emulator/requests?limit=1")
    assert status == 200
    (received,) = document["requests"]
    assert received["path"] == "/v0/events"
    assert received["query"] == {"name": "second", "token": "e632b709"}
    assert received["headers"]["Authorization"] == "Bearer e632b709"
    assert received["headers"]["X-Batch-Id"] == "second"
    assert received["datasource"] == "second"
    assert received["row_count"] == 2
    assert received["status"] == 202
    assert received["body_sha256"] == hashlib.sha256(b'{"a":1}\n{}').hexdigest()


@pytest.mark.parametrize("limit", ["0", "-1", "x", "10001", "9" * 5000, "²"])
async def test_a_limit_that_cannot_be_is_400(start: Start, session: aiohttp.ClientSession, limit: str) -> None:
    emulator = await start()
    assert (await _json(session, "GET", f"{emulator.url}/emulator/requests?limit={limit}"))[0] == 400


async def test_health_is_200_without_a_token(start: Start) -> None:
    emulator = await start()
    async with aiohttp.ClientSession() as session:
        assert await _json(session, "GET", f"{emulator.url}/emulator/health") == (200, {"status": "ok"})


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_the_echo_tells_what_arrived(start: Start, session: aiohttp.ClientSession, method: str) -> None:
    emulator = await start()
    body = b"" if method == "GET" else b"\x00\xff" * 100_000
    url = f"{emulator.url}/emulator/echo?a=1&token=T"
    status, document = await _json(session, method, url, data=body, headers={"X-Custom": "v"})
    assert status == 200
    assert (document["method"], document["path"]) == (method, "/emulator/echo")
    assert document["query"] == {"a": "1", "token": "e632b709"}
    assert (document["headers"]["X-Custom"], document["headers"]["Authorization"]) == ("v", "Bearer e632b709")
    assert (document["body_bytes"], document["body_sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


async def test_the_echo_takes_bodies_as_they_are_compressed_or_not(
    start: Start, session: aiohttp.ClientSession
) -> None:
    emulator = await start()
    headers = {"Content-Encoding": "gzip"}
    _, document = await _json(session, "POST", f"{emulator.url}/emulator/echo", data=b"not gzip", headers=headers)
    assert document["body_bytes"] == 8


async def test_the_echo_ends_at_64_megabytes(start: Start, session: aiohttp.ClientSession) -> None:
    async def megabytes(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield bytes(1_000_000)

    emulator = await start()
    url = f"{emulator.url}/emulator/echo"
    status, document = await _json(session, "POST", url, data=megabytes(64))
    assert (status, document["body_bytes"]) == (200, 64_000_000)
    assert (await _json(session, "POST", url, data=megabytes(65)))[0] == 413
