"""How a body gets in: encodings, ceilings before and after decompression, room for large uploads, turns for others."""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiohttp import web
from tests.proxy.running import (
    Peer,
    ask,
    chunked,
    connected,
    environment,
    post,
    request,
    running_process,
    running_tinybird,
    running_world,
    until,
)

from tinybird_proxy import codec
from tinybird_proxy.errors import BodyRefused
from tinybird_proxy.server import answers
from tinybird_proxy.server.http import ConnectionLimits, HttpServer
from tinybird_proxy.server.receive import ReceiveLimits, Receiver
from tinybird_proxy.server.responses import respond

MEGABYTE = 1_000_000
ROWS = b'{"n":1}\n{"n":2}\n'


def _zlib(body: bytes, wbits: int) -> bytes:
    compressor = zlib.compressobj(wbits=wbits)
    return compressor.compress(body) + compressor.flush()


def _zstd(body: bytes) -> bytes:
    return codec.compress([body], "zstd").body


def _gzip_members(body: bytes) -> bytes:
    return gzip.compress(body[:5]) + gzip.compress(b"") + gzip.compress(body[5:])


# What it is encoded with.


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        ("GZip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("gzip", _gzip_members),
        ("deflate", zlib.compress),
        ("deflate", lambda body: _zlib(body, -15)),
        ("zstd", _zstd),
        ("identity", bytes),
        ("", bytes),
    ],
)
async def test_a_body_is_decoded_as_its_content_encoding_says(encoding: str, encode: Callable[[bytes], bytes]) -> None:
    large = b"".join(b'{"n":%d,"text":"%s"}\n' % (n, b"x" * 500) for n in range(2000))
    async with running_world() as world:
        for name, body in (("small", ROWS), ("large", large)):
            answer = await post(world.port, f"name={name}", encode(body), headers={"Content-Encoding": encoding})
            rows = body.split(b"\n")[:-1]
            assert (answer.status, answer.json()["successful_rows"]) == (202, len(rows))
            assert await world.tinybird.wait_for_rows(name, len(rows)) == rows


@pytest.mark.parametrize("encoding", ["br", "gzip, deflate", "compress", "deflate, gzip"])
async def test_another_encoding_is_refused_with_those_that_are_known(encoding: str) -> None:
    async with running_world() as world:
        answer = await post(world.port, body=b"\x1f\x8b", headers={"Content-Encoding": encoding})
        assert answer.status == 415
        assert answer["Accept-Encoding"] == "gzip, deflate, zstd"
        assert "gzip, deflate, zstd" in answer.error


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
async def test_a_body_that_is_not_encoded_as_it_says_is_refused_whole(encoding: str) -> None:
    encoded = {"gzip": gzip.compress(ROWS), "deflate": zlib.compress(ROWS), "zstd": _zstd(ROWS)}[encoding]
    broken_bodies = [ROWS, encoded[:-1], encoded[:1], encoded + b"more", b"\0" * 20]
    if encoding != "zstd":  # which has no checksum unless somebody asks for one
        checksum_at = -8 if encoding == "gzip" else -4
        broken_bodies.append(encoded[:checksum_at] + bytes([encoded[checksum_at] ^ 1]) + encoded[checksum_at:][1:])
    async with running_world() as world:
        for broken in broken_bodies:
            answer = await post(world.port, body=broken, headers={"Content-Encoding": encoding})
            assert answer.status == 400, broken
            assert encoding in answer.error
        assert world.status()["ledger"]["accepted"] == 0


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "application/x-ndjson",
        "application/json",
        "text/plain;charset=UTF-8",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        'no/such; thing="',
    ],
)
async def test_the_content_type_means_nothing(content_type: str | None) -> None:
    async with running_world() as world:
        headers = {} if content_type is None else {"Content-Type": content_type}
        assert (await post(world.port, body=ROWS, headers=headers)).status == 202
        assert await world.tinybird.wait_for_rows("hits", 2) == [b'{"n":1}', b'{"n":2}']


# How large it may be.


async def test_a_body_larger_than_allowed_is_refused_by_its_length_before_it_is_sent() -> None:
    async with running_world(MAX_BODY_BYTES="1000") as world, connected(world.port) as peer:
        await peer.send(request("/v0/events?name=hits", headers={"Content-Length": "1001"}))
        answer = await peer.answer()
        assert (answer.status, answer["Connection"]) == (413, "close")
        assert "1000 bytes" in answer.error


async def test_a_chunked_body_larger_than_allowed_is_refused_as_soon_as_that_is_known() -> None:
    async with running_world(MAX_BODY_BYTES="1000") as world, connected(world.port) as peer:
        await peer.send(request("/v0/events?name=hits", headers={"Transfer-Encoding": "chunked"}))
        await peer.send(b"3e8\r\n" + b" " * 1000 + b"\r\n1\r\n")
        await peer.send(b" \r\n")  # and no end
        answer = await peer.answer()
        assert (answer.status, answer["Connection"]) == (413, "close")


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("in_chunks", [False, True])
async def test_the_ceiling_itself_is_allowed(in_chunks: bool, extra: int) -> None:
    body = b'{"text":"%s"}' % (b"x" * (1000 - 11 + extra))
    assert len(body) == 1000 + extra
    async with running_world(MAX_BODY_BYTES="1000") as world:
        if in_chunks:
            sent = chunked(body[:300], body[300:])
            answer = await post(world.port, body=sent, headers={"Transfer-Encoding": "chunked"})
        else:
            answer = await post(world.port, body=body)
        assert answer.status == (413 if extra else 202)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
async def test_the_ceiling_after_decompression_is_another_one(encoding: str) -> None:
    encodings: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": _zstd}
    encode = encodings[encoding]
    async with running_world(MAX_INFLATED_BYTES="1MB", MAX_BODY_BYTES="100kB") as world:
        fits = b'{"text":"%s"}\n' % (b"x" * 999) * 900
        assert (await post(world.port, body=encode(fits), headers={"Content-Encoding": encoding})).status == 202
        answer = await post(world.port, body=encode(fits + fits), headers={"Content-Encoding": encoding})
        assert answer.status == 413
        assert "1000000 bytes after decompression" in answer.error


@pytest.mark.parametrize("encoded", [False, True])
async def test_more_lines_than_the_buffer_takes_rows_are_refused_before_they_are_checked(encoded: bool) -> None:
    async with running_world(BUFFER_SIZE="20000", BATCH_SIZE="20000") as world:
        # None of them is a row: if they were checked, the answer would be another one.
        body = b"not a row\n" * 20_001
        headers = {"Content-Encoding": "gzip"} if encoded else {}
        answer = await post(world.port, body=gzip.compress(body) if encoded else body, headers=headers)
        assert answer.status == 413
        assert "20000 lines" in answer.error


async def test_a_bomb_of_a_gigabyte_takes_no_more_memory_than_the_ceiling_allows() -> None:
    bomb = gzip.compress(b"\n" * MEGABYTE) * 1000
    assert len(bomb) < 1_500_000
    env = {"MAX_INFLATED_BYTES": "16MB", "BUFFER_SIZE": "1000000000", "BATCH_SIZE": "1"}
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **env)) as proxy:
        for body in (gzip.compress(ROWS), bomb[:100_000]):  # what it takes for the code itself
            await post(proxy.port, body=body, headers={"Content-Encoding": "gzip"})
        before_bytes = proxy.peak_bytes
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(post(proxy.port, body=bomb, headers={"Content-Encoding": "gzip"})) for _ in range(4)
            ]
        for answer in asked:
            assert answer.result().status == 413
            assert "16000000 bytes after decompression" in answer.result().error
        assert proxy.peak_bytes - before_bytes < 64 * MEGABYTE


async def test_bodies_that_inflate_a_thousandfold_are_in_memory_one_at_a_time() -> None:
    # Small as sent, so that none of them reserves anything; and rows of a megabyte each take their time to be checked.
    row = b'{"text":"%s"}\n' % (b"x" * 999_000)
    body = gzip.compress(row * 40)
    assert len(body) < 64 * 1024
    count = 8
    # None is taken in the end: a buffer that is full of them would hide what inflating them takes.
    env = {"BUFFER_BYTES": "30MB", "BATCH_BYTES": "10MB"}
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **env)) as proxy:
        first = await post(proxy.port, body=body, headers={"Content-Encoding": "gzip"})
        assert first.status == 413
        alone_bytes = proxy.peak_bytes
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(post(proxy.port, body=body, headers={"Content-Encoding": "gzip"}))
                for _ in range(count)
            ]
        assert {answer.result().status for answer in asked} == {413}
        assert proxy.peak_bytes - alone_bytes < 100 * MEGABYTE, "each of them is 40 MB inflated"


async def test_bodies_that_wait_to_be_inflated_take_no_more_than_they_were_sent_as() -> None:
    # The first one takes its time, and all of the others wait for it. None is taken in the end.
    first, other = (gzip.compress(b'{"text":"' + b"x" * size) for size in (20 * MEGABYTE, 600_000))
    encoded = {"Content-Encoding": "gzip"}
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url)) as proxy:
        assert (await post(proxy.port, body=first, headers=encoded)).status == 400
        alone_bytes = proxy.peak_bytes
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(post(proxy.port, body=first, headers=encoded))]
            asked += [group.create_task(post(proxy.port, body=other, headers=encoded)) for _ in range(300)]
        assert {answer.result().status for answer in asked} == {400}
        assert proxy.peak_bytes - alone_bytes < 60 * MEGABYTE, "all of them are 180 MB inflated"


async def test_only_so_many_bodies_wait_to_be_inflated_and_more_are_refused() -> None:
    first, other = (gzip.compress(b'{"text":"' + b"x" * size) for size in (20 * MEGABYTE, 600_000))
    encoded = {"Content-Encoding": "gzip"}
    async with running_world(RECEIVE_BYTES="200000", MAX_BODY_BYTES="200000") as world:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(post(world.port, body=first, headers=encoded))]
            asked += [group.create_task(post(world.port, body=other, headers=encoded)) for _ in range(20)]
        statuses = [answer.result().status for answer in asked]
        assert statuses[0] == 400
        assert 503 in statuses
        refused = next(answer.result() for answer in asked if answer.result().status == 503)
        assert "too many large uploads" in refused.error
        assert refused["Retry-After"] == "1"
        assert (await post(world.port, body=gzip.compress(b"{}"), headers=encoded)).status == 202
        assert world.proxy.reporter.receiver.reserved_bytes == 0


async def test_a_small_body_may_inflate_to_a_large_one_with_the_least_room_for_uploads() -> None:
    body = gzip.compress(b'{"text":"%s"}' % (b"x" * 600_000))
    async with running_world(RECEIVE_BYTES="65536", MAX_BODY_BYTES="65536") as world:
        assert (await post(world.port, body=body, headers={"Content-Encoding": "gzip"})).status == 202


async def test_a_document_of_more_objects_than_the_buffer_takes_rows_is_refused_before_it_is_taken_apart() -> None:
    body = b"[" + b",".join([b'{"n":{},"text":"%s"}' % (b"x" * 20)] * 10_000) + b"]"
    async with running_world(BUFFER_SIZE="20000", BATCH_SIZE="20000") as world:
        taken = await post(world.port, body=body)
        assert (taken.status, taken.json()["successful_rows"]) == (202, 10_000)
        # Not even JSON: if it were looked at, the answer would be another one.
        for query, refused in (("name=hits", body[:-1] + b",{}"), ("name=hits&format=json", b" " + body + b"{}")):
            answer = await post(world.port, query, refused)
            assert answer.status == 413
            assert "20000 objects" in answer.error


async def test_a_document_that_inflates_to_millions_of_rows_takes_no_memory_for_each_of_them() -> None:
    bomb = gzip.compress(b"[" + b"{}," * 20_000_000 + b"{}]", 6)
    assert len(bomb) < 64 * 1024
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url)) as proxy:
        await post(proxy.port, body=gzip.compress(b"[{},{}]"), headers={"Content-Encoding": "gzip"})
        before_bytes = proxy.peak_bytes
        answer = await post(proxy.port, body=bomb, headers={"Content-Encoding": "gzip"})
        assert answer.status == 413
        assert proxy.peak_bytes - before_bytes < 200 * MEGABYTE


# Room for large uploads.


async def _stalled(port: int, size_bytes: int, stack: AsyncExitStack) -> Peer:
    """An upload of so many bytes, of which one has been sent."""
    peer = await stack.enter_async_context(connected(port))
    await peer.send(request("/v0/events?name=hits", headers={"Content-Length": str(size_bytes)}) + b" ")
    return peer


async def test_large_uploads_that_leave_no_room_refuse_large_ones_and_no_small_ones() -> None:
    async with running_world(RECEIVE_BYTES="1MB", MAX_BODY_BYTES="400kB") as world, AsyncExitStack() as stack:
        receiver = world.proxy.reporter.receiver
        for _ in range(2):
            await _stalled(world.port, 400_000, stack)
        await until(lambda: receiver.reserved_bytes == 800_000)
        for _ in range(5):  # as many as you like
            await _stalled(world.port, 65_536, stack)
        refused = await post(world.port, body=b'{"text":"%s"}' % (b"x" * 300_000))
        assert (refused.status, refused["Connection"]) == (503, "close")
        assert refused["Retry-After"] == "1"
        assert "X-RateLimit-Reset" not in refused
        assert "too many large uploads" in refused.error
        assert (await post(world.port, body=b'{"text":"%s"}' % (b"x" * 60_000))).status == 202
        assert (await post(world.port, body=b'{"text":"%s"}' % (b"x" * 150_000))).status == 202, "this one has room"
        assert world.status()["requests"]["refused"] == {"receive_full": 1}
        await world.tinybird.wait_for_rows("hits", 2)
    assert receiver.reserved_bytes == 0


async def test_a_chunked_upload_reserves_as_it_grows_and_is_refused_when_there_is_no_room_left() -> None:
    async with running_world(RECEIVE_BYTES="500kB", MAX_BODY_BYTES="400kB") as world, AsyncExitStack() as stack:
        receiver = world.proxy.reporter.receiver
        peer = await stack.enter_async_context(connected(world.port))
        await peer.send(request("/v0/events?name=hits", headers={"Transfer-Encoding": "chunked"}))
        await peer.send(b"c350\r\n" + b" " * 50_000 + b"\r\n")
        assert (await ask(world.port, "/v1/liveness", method="GET")).status == 200
        assert receiver.reserved_bytes == 0
        await peer.send(b"30d40\r\n" + b" " * 200_000 + b"\r\n")
        await until(lambda: receiver.reserved_bytes == 250_000)
        await _stalled(world.port, 250_000, stack)
        await until(lambda: receiver.reserved_bytes == 500_000)
        await peer.send(b"2\r\n{}\r\n")
        assert (await peer.answer()).status == 503
        await until(lambda: receiver.reserved_bytes == 250_000)


async def test_what_an_upload_has_reserved_is_given_back_however_it_ends() -> None:
    async with running_world(RECEIVE_BYTES="400kB", MAX_BODY_BYTES="400kB") as world, AsyncExitStack() as stack:
        receiver = world.proxy.reporter.receiver
        for ending in (b"{}" + b" " * 399_997, b"[" + b" " * 399_998, None):
            peer = await _stalled(world.port, 400_000, stack)
            await until(lambda: receiver.reserved_bytes == 400_000)
            if ending is None:
                peer.writer.transport.abort()
            else:
                await peer.send(ending)
                assert (await peer.answer()).status == (202 if ending.startswith(b"{") else 400)
            await until(lambda: receiver.reserved_bytes == 0)


async def test_a_waiting_client_has_nothing_reserved() -> None:
    async with running_world(RECEIVE_BYTES="400kB", MAX_BODY_BYTES="400kB", FLUSH_INTERVAL="1h") as world:
        assert (await post(world.port)).status == 202
        async with connected(world.port) as peer:
            await peer.send(request("/v0/events?name=hits&wait=true", b'{"text":"%s"}' % (b"x" * 300_000)))
            await until(lambda: world.proxy.pipeline.waiter_count == 1)
            assert world.proxy.reporter.receiver.reserved_bytes == 0


@asynccontextmanager
async def _receiving(body_timeout_s: float) -> AsyncIterator[tuple[int, Receiver]]:
    """A server of which each answer is the body, received by a ``Receiver`` that is less patient."""
    limits = ReceiveLimits(
        max_body_bytes=MEGABYTE,
        max_inflated_bytes=MEGABYTE,
        receive_bytes=MEGABYTE,
        max_lines=1000,
        body_timeout_s=body_timeout_s,
    )
    receiver = Receiver(limits)

    async def handle(asked: web.BaseRequest) -> web.StreamResponse:
        try:
            async with receiver.rows(asked, None, document=False) as rows:
                return respond(answers.taken(rows.row_count, "memory"), asked)
        except BodyRefused as refused:
            return respond(answers.error(refused.status, refused.message, close=True), asked)

    patient = ConnectionLimits(
        max_header_bytes=8192, header_timeout_s=60.0, send_timeout_s=60.0, keepalive_timeout_s=60.0, max_age_s=60.0
    )
    server = HttpServer(handle, lane=None, limits=patient, chance=lambda: 0.5)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1], receiver
    finally:
        listener.close()
        server.pre_shutdown()
        await server.shutdown(1.0)


async def test_a_body_that_does_not_end_is_given_up_and_its_bytes_are_free_again() -> None:
    async with _receiving(body_timeout_s=0.5) as (port, receiver), connected(port) as peer:
        await peer.send(request("/", headers={"Content-Length": "500000"}) + b"{")
        await until(lambda: receiver.reserved_bytes == 500_000)
        answer = await peer.answer()
        assert (answer.status, answer["Connection"]) == (408, "close")
        assert answer.error.startswith("the body did not end within 0.5 s (BODY_TIMEOUT)")
        assert receiver.reserved_bytes == 0


@pytest.mark.parametrize("head", [{"Content-Length": "500000"}, {"Transfer-Encoding": "chunked"}], ids=str)
async def test_a_body_that_drips_wins_no_time(head: dict[str, str]) -> None:
    async with _receiving(body_timeout_s=0.5) as (port, receiver), connected(port) as peer:
        await peer.send(request("/", headers=head))
        answering = asyncio.create_task(peer.answer())
        while not answering.done():
            await peer.send(b"1\r\n \r\n" if "Transfer-Encoding" in head else b" ")
            await asyncio.sleep(0.02)
        assert answering.result().status == 408
        assert receiver.reserved_bytes == 0


async def test_a_body_that_comes_byte_by_byte_is_taken_if_it_ends_in_time() -> None:
    async with _receiving(body_timeout_s=60.0) as (port, _), connected(port) as peer:
        await peer.send(request("/", headers={"Content-Length": "8"}))
        for byte in b'{"n":1}\n':
            await peer.send(bytes([byte]))
        assert (await peer.answer()).status == 202


# Turns for others.


async def test_ten_megabytes_are_checked_in_pieces_with_turns_for_others_between() -> None:
    body = b'{"n":1}\n' * 1_250_000
    async with running_world(BUFFER_SIZE="2000000", FLUSH_INTERVAL="1h") as world:
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with connected(world.port) as peer:
            await peer.send(request("/v0/events?name=hits", headers={"Content-Length": str(len(body))}))
            await peer.send(body[:-1])
            await until(lambda: world.proxy.reporter.receiver.reserved_bytes == len(body))
            # All but a byte is there: what turns from now on turns while it is checked.
            counting = asyncio.create_task(count_turns())
            await peer.send(body[-1:])
            answer = await peer.answer()
            counting.cancel()
        assert (answer.status, answer.json()["successful_rows"]) == (202, 1_250_000)
        assert turns > 1_250_000 // 4096


async def test_small_requests_are_answered_while_a_large_one_is_inflated_and_checked() -> None:
    large = gzip.compress(b'{"n":1}\n' * 900_000, 1)
    async with running_world(FLUSH_INTERVAL="1h") as world:
        assert (await post(world.port, "name=small")).status == 202
        done = asyncio.create_task(post(world.port, "name=large", large, headers={"Content-Encoding": "gzip"}))
        meanwhile = 0
        async with connected(world.port) as peer:
            while not done.done():
                await peer.send(request("/v0/events?name=small", b"{}"))
                assert (await peer.answer()).status == 202
                meanwhile += 1
        assert done.result().json()["successful_rows"] == 900_000
        assert meanwhile > 50
