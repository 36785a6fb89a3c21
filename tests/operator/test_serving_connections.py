"""Connections of whoever: so many at once, and for so long, whatever comes over them."""

import asyncio
import ssl
from pathlib import Path

import pytest
from tests.operator.metrics_apis import Running, running

from tinybird_proxy_operator.serving.connections import Limits

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connected(it: Running) -> Stream:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return await asyncio.open_connection("127.0.0.1", it.port, ssl=context)


async def closed(stream: Stream) -> bool:
    """Whether the server has ended it, by and by."""
    try:
        async with asyncio.timeout(5):
            return await stream[0].read() == b""
    except ConnectionError:
        return True


def close(*streams: Stream) -> None:
    for _, writer in streams:
        writer.transport.abort()


async def test_there_are_so_many_and_one_more_is_closed_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(connections=3)) as it:
        await it.until_registered()
        kept = [await connected(it) for _ in range(3)]
        more = await silent(it)
        assert await closed(more)
        close(kept[0], more)
        while True:  # until the server has heard of it
            try:
                status, _ = await it.ask("/healthz")
            except OSError:
                continue
            break
        assert status == 200
        close(*kept)


async def silent(it: Running) -> Stream:
    """A TCP connection over which nothing comes, no handshake either."""
    return await asyncio.open_connection("127.0.0.1", it.port)


async def open_after(streams: list[Stream], wait_s: float) -> int:
    """How many of them the server has not ended by then."""
    reading = [asyncio.create_task(stream[0].read()) for stream in streams]
    ended, kept = await asyncio.wait(reading, timeout=wait_s)
    for task in kept:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    assert len(ended) + len(kept) == len(streams)
    return len(kept)


async def test_one_counts_before_its_handshake_and_until_the_handshakes_time_is_over(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(connections=5, handshake_s=2)) as it:
        await it.until_registered()
        streams = [await silent(it) for _ in range(100)]
        assert await open_after(streams, 0.5) == 5
        with pytest.raises(OSError):  # noqa: PT011 - whether it comes as a reset or as an end is the kernel's
            await it.ask("/healthz")
        assert await open_after(streams, 3.0) == 0
        assert (await it.ask("/healthz"))[0] == 200
        close(*streams)


async def test_a_handshake_that_fails_gives_its_place_back(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(connections=1)) as it:
        await it.until_registered()
        for _ in range(3):
            stream = await silent(it)
            stream[1].write(b"GET / HTTP/1.1\r\n\r\n")
            assert await closed(stream)
            close(stream)
        assert (await it.ask("/healthz"))[0] == 200


async def test_one_whose_client_goes_before_the_handshake_gives_its_place_back(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(connections=1)) as it:
        await it.until_registered()
        close(await silent(it))
        async with asyncio.timeout(3):  # shorter than the handshake's time
            while True:  # until the server has heard of it
                try:
                    assert (await it.ask("/healthz"))[0] == 200
                except OSError:
                    continue
                break


async def test_one_over_which_no_whole_request_comes_in_time_is_closed(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(head_s=0.2)) as it:
        await it.until_registered()
        idle, slow = await connected(it), await connected(it)
        slow[1].write(b"GET /healthz HTTP/1.1\r\nHost: ")
        assert await closed(idle)
        assert await closed(slow)
        assert (await it.ask("/healthz"))[0] == 200
        close(idle, slow)


async def test_one_whose_answer_takes_too_long_is_closed(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(whole_s=0.0)) as it:
        while True:  # until it has a certificate
            try:
                stream = await connected(it)
            except OSError:
                continue
            break
        stream[1].write(b"GET /apis HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer somebody\r\n\r\n")
        assert await closed(stream)
        close(stream)
