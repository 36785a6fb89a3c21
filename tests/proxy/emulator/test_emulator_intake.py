"""`tinybird_proxy.emulator.intake`: bodies are received within limits and stored before the answer."""

import asyncio
import gzip
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest

from tinybird_proxy.emulator import Emulator, Fault, intake

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Start = Callable[..., Awaitable[Emulator]]


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_small_and_large_bodies_arrive_byte_for_byte(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start()
    small = [b'{"a":1e400}', b' {"a" : 9007199254740993} ']
    large = [b'{"id":%d,"s":"%s"}' % (number, b"x" * 100) for number in range(5000)]
    for rows in (small, large):
        async with session.post(f"{emulator.url}/v0/events?name=hits", data=b"\n".join(rows)) as reply:
            assert await reply.json() == {"successful_rows": len(rows), "quarantined_rows": 0}
    assert await emulator.rows("hits") == small + large


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
async def test_compressed_bodies_are_understood_and_logged_as_sent(
    start: Start, session: aiohttp.ClientSession, encoding: str
) -> None:
    emulator = await start()
    raw = b'{"a":1}\n' * 100
    body = {"gzip": gzip.compress(raw), "deflate": zlib.compress(raw), "zstd": zstd.compress(raw)}[encoding]
    headers = {"Content-Encoding": encoding}
    async with session.post(f"{emulator.url}/v0/events?name=hits", data=body, headers=headers) as reply:
        assert reply.status == 202
    assert await emulator.rows("hits") == [b'{"a":1}'] * 100
    assert (emulator.requests[0].body_bytes, emulator.requests[0].raw_bytes) == (len(body), len(raw))
    assert emulator.requests[0].row_count == 100


async def test_an_unknown_encoding_is_415(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start()
    headers = {"Content-Encoding": "br"}
    async with session.post(f"{emulator.url}/v0/events?name=hits", data=b"{}", headers=headers) as reply:
        assert reply.status == 415
        assert "must be gzip" in (await reply.json())["error"]


async def test_a_body_without_content_length_is_taken(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start()
    async with session.post(f"{emulator.url}/v0/events?name=hits", data=_chunks(b'{"a"', b":1}")) as reply:
        assert reply.status == 202
    assert await emulator.rows("hits") == [b'{"a":1}']


async def test_one_bad_row_costs_the_whole_body(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start()
    async with session.post(f"{emulator.url}/v0/events?name=hits", data=b'{"a":1}\nx') as reply:
        assert reply.status == 400
        assert (await reply.json())["error"] == "line 2 is not valid JSON"
    assert await emulator.rows("hits") == []
    assert emulator.requests[0].row_count is None


async def test_format_json_takes_one_document(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start()
    for body in (b'{\n"a":1\n}', b'[{"a":2},\n{"a":3}]'):
        async with session.post(f"{emulator.url}/v0/events?name=hits&format=json", data=body) as reply:
            assert reply.status == 202
    assert await emulator.rows("hits") == [b'{\n"a":1\n}', b'{"a":2}', b'{"a":3}']


async def test_the_size_limit_counts_bytes_as_sent(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start(max_body_bytes=100)
    fits, exceeds = (b'{"a":"%s"}' % (b"x" * count) for count in (92, 93))
    url = f"{emulator.url}/v0/events?name=hits"
    async with session.post(url, data=fits) as reply:
        assert reply.status == 202
    async with session.post(url, data=gzip.compress(exceeds), headers={"Content-Encoding": "gzip"}) as reply:
        assert reply.status == 202
    for body in (exceeds, _chunks(exceeds[:50], exceeds[50:])):
        async with session.post(url, data=body) as reply:
            assert reply.status == 413
            assert "larger than 100 bytes" in (await reply.json())["error"]
            assert reply.headers["Connection"] == "close"


async def test_too_large_is_said_before_the_body_is_sent(start: Start) -> None:
    emulator = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", emulator.port)
    head = "POST /v0/events?name=hits&token=T HTTP/1.1\r\nHost: a\r\nContent-Length: 10000001\r\n\r\n"
    writer.write(head.encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
    writer.close()
    await writer.wait_closed()


async def test_a_body_that_stalls_is_given_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_RECEIVE_TIMEOUT_S", 0.05)
    emulator = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", emulator.port)
    writer.write(b"POST /v0/events?name=hits&token=T HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{")
    assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    writer.close()
    await writer.wait_closed()
    assert await emulator.rows("hits") == []


async def test_a_schema_sends_rows_to_quarantine(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start(schemas={"hits": {"a": "Int64"}})
    body = b'{"a":1}\n{"a":"x"}\n{"b":1}\n{"a":2,"b":1}'
    async with session.post(f"{emulator.url}/v0/events?name=hits", data=body) as reply:
        assert await reply.json() == {"successful_rows": 2, "quarantined_rows": 2}
    assert await emulator.rows("hits") == [b'{"a":1}', b'{"a":2,"b":1}']
    assert [row for row, _ in await emulator.quarantined_rows("hits")] == [b'{"a":"x"}', b'{"b":1}']


async def test_a_fault_quarantines_the_first_rows(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start()
    url = f"{emulator.url}/v0/events?name=hits"
    for fault, successful in ((Fault(quarantine=1), 1), (Fault(quarantine="all"), 0)):
        emulator.set_faults(fault)
        async with session.post(url, data=b'{"a":1}\n{"a":2}') as reply:
            assert await reply.json() == {"successful_rows": successful, "quarantined_rows": 2 - successful}
    assert await emulator.rows("hits") == [b'{"a":2}']


async def test_a_poisoned_row_costs_its_request_only(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start()
    emulator.set_faults(Fault(row_matches='"poison":true'))
    url = f"{emulator.url}/v0/events?name=hits"
    large = b'{"a":1}\n' * 3000
    for body, status in (
        (b'{"a":1}', 202),
        (b'{"a":1}\n{"poison":true}', 400),
        (large + b'{"poison":true}', 400),
        (large, 202),
    ):
        async with session.post(url, data=body) as reply:
            assert reply.status == status
    assert len(await emulator.rows("hits")) == 3001


async def test_an_outage_hides_what_is_wrong_with_the_rows(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start()
    emulator.set_faults(Fault(status=503, times=1))
    for status in (503, 400):
        async with session.post(f"{emulator.url}/v0/events?name=hits", data=b"x") as reply:
            assert reply.status == status


async def test_the_loop_answers_while_a_large_body_is_checked(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start()
    body = gzip.compress(b'{"id":1,"path":"/a/b/c","s":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}\n' * 100_000, 1)

    async def post_large() -> None:
        headers = {"Content-Encoding": "gzip"}
        async with session.post(f"{emulator.url}/v0/events?name=hits", data=body, headers=headers) as reply:
            assert (await reply.json())["successful_rows"] == 100_000

    large = asyncio.create_task(post_large())
    answered = 0
    while not large.done():
        async with session.get(f"{emulator.url}/emulator/health") as reply:
            answered += reply.status == 200
    await large
    assert answered > 5
