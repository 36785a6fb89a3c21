"""Clients that mean harm: what they send is bounded in memory and time, read in one way only, and disturbs nobody.

One proxy, a process of its own as in production, serves most of the module. Its memory is what the kernel says.
"""

import asyncio
import gzip
import itertools
import socket
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from tests.proxy.running import (
    DEADLINE_S,
    Answer,
    Peer,
    ProxyProcess,
    ask,
    connected,
    environment,
    post,
    request,
    running_process,
    running_tinybird,
    running_world,
    serving,
)

from tinybird_proxy import codec
from tinybird_proxy.emulator import Emulator

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEGABYTE: Final = 1_000_000
# How much the proxy may grow by, at its peak.
# 160 kB for each of 300 connections: its head (MAX_HEADER_BYTES, 32 KiB, twice while it grows, and what the parser
# makes of it) or a body of up to 64 KiB, which needs no reservation, twice while it grows; and the connection itself.
HEADS_BYTES: Final = 300 * 160_000
# RECEIVE_BYTES, 64 MB, twice, because a body that is complete is copied once; and what is read of a body that was
# refused before it is thrown away, at most 256 KiB for each of a hundred.
BODIES_BYTES: Final = 2 * 64_000_000 + 100 * 262_144
# Four bodies of 10 MB, twice, and one at a time that is inflated to MAX_INFLATED_BYTES, 64 MB, twice as well.
BOMBS_BYTES: Final = 2 * (4 * 10_000_000 + 64_000_000)
# 10,000,000 bytes inflated and counted; the rows of a body that has too many are never made.
ROWS_BYTES: Final = 100_000_000
# Twelve kilobytes for each connection.
IDLE_BYTES: Final = 10_000 * 12_000


@dataclass(frozen=True, slots=True)
class Running:
    """The proxy of this module and its Tinybird."""

    proxy: ProxyProcess
    tinybird: Emulator

    @property
    def port(self) -> int:
        """The public port."""
        return self.proxy.port


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[Running]:
    env = {"HEADER_TIMEOUT": "1s", "BODY_TIMEOUT": "2s"}
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **env)) as proxy:
        yield Running(proxy, tinybird)
        assert await proxy.stop() == 0
        # Whatever clients do, it is no trouble of ours.
        assert [line for line in proxy.lines if line["level"] != "info"] == []


_numbers = itertools.count(1)


@asynccontextmanager
async def undisturbed(world: Running) -> AsyncIterator[None]:
    """Well-behaved clients post all the while, one with a connection of its own for each request: nobody fails."""
    name = f"good_{next(_numbers)}"
    sent: list[bytes] = []
    done = asyncio.Event()

    async def keep(peer: Peer) -> None:
        while not done.is_set():
            await once(peer)
            await asyncio.sleep(0.01)

    async def once(peer: Peer) -> None:
        row = b'{"row":%d}' % len(sent)
        sent.append(row)
        await peer.send(request(f"/v0/events?name={name}", row))
        answer = await peer.answer()
        assert (answer.status, answer.json()["successful_rows"]) == (202, 1)

    async def come_and_go() -> None:
        while not done.is_set():
            async with connected(world.port) as peer:
                await once(peer)
            await asyncio.sleep(0.02)

    async with connected(world.port) as peer, asyncio.TaskGroup() as group:
        await once(peer)
        group.create_task(keep(peer))
        group.create_task(come_and_go())
        try:
            yield
        finally:
            done.set()
    assert sorted(await world.tinybird.wait_for_rows(name, len(sent))) == sorted(sent)


@contextmanager
def growing_less_than(proxy: ProxyProcess, max_bytes: int) -> Iterator[None]:
    """The proxy's memory, at its peak, against what it was before."""
    Path(f"/proc/{proxy.pid}/clear_refs").write_text("5")  # the peak is counted anew
    before_bytes = proxy.peak_bytes
    yield
    grown_bytes = proxy.peak_bytes - before_bytes
    print(f"GROWN {grown_bytes / 1e6:.1f} MB of {before_bytes / 1e6:.0f}")
    assert grown_bytes < max_bytes


async def answers_until_the_end(peer: Peer) -> list[Answer]:
    """Every answer on a connection, until the proxy closes it."""
    found = []
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            found.append(await peer.answer())
    return found


async def all_at_once(count: int, port: int, talk: Callable[[Peer], Awaitable[list[int]]]) -> list[list[int]]:
    """What ``talk`` returns, on so many connections at the same time."""

    async def one() -> list[int]:
        async with connected(port) as peer:
            return await talk(peer)

    return await asyncio.gather(*(one() for _ in range(count)))


async def drip(peer: Peer, first: bytes, more: bytes) -> list[int]:
    """Send ``first`` and then a byte now and then until the proxy has had enough; the statuses of its answers."""
    answering = asyncio.create_task(answers_until_the_end(peer))
    with suppress(ConnectionError):
        await peer.send(first)
        while not answering.done():
            await peer.send(more)
            await asyncio.sleep(0.2)
    return [answer.status for answer in await answering]


EVENTS: Final = request("/v0/events?name=never", headers={"X-Never": "x"})[:-2]


# Slow.


async def test_heads_that_drip_are_ended(world: Running) -> None:
    async with undisturbed(world):
        with growing_less_than(world.proxy, HEADS_BYTES):
            assert await all_at_once(300, world.port, lambda peer: drip(peer, EVENTS + b"X-A: ", b"a")) == [[408]] * 300
            assert await all_at_once(100, world.port, lambda peer: drip(peer, b"P", b"O")) == [[400]] * 100


async def test_bodies_that_drip_are_ended(world: Running) -> None:
    with_length = request("/v0/events?name=never", headers={"Content-Length": "60000"})
    in_chunks = request("/v0/events?name=never", headers={"Transfer-Encoding": "chunked"})
    async with undisturbed(world):
        with growing_less_than(world.proxy, HEADS_BYTES):
            of_length, of_chunks = await asyncio.gather(
                all_at_once(150, world.port, lambda peer: drip(peer, with_length, b" ")),
                all_at_once(150, world.port, lambda peer: drip(peer, in_chunks, b"1\r\n \r\n")),
            )
    assert of_length == of_chunks == [[408]] * 150


# Large.

HUGE: Final = {
    "one header": EVENTS + b"X-A: " + b"a" * MEGABYTE,
    "many headers": EVENTS + (b"X-A: " + b"a" * 7000 + b"\r\n") * 140,
    "very many small headers": EVENTS + b"a:\r\n" * 250_000,
    "a request line": b"POST /" + b"a" * MEGABYTE,
    "spaces": EVENTS + b"X-A:" + b" " * MEGABYTE,
}


@pytest.mark.parametrize("sent", HUGE.values(), ids=HUGE)
async def test_huge_heads_are_refused_before_they_cost_anything(world: Running, sent: bytes) -> None:
    async def talk(peer: Peer) -> list[int]:
        with suppress(ConnectionError):
            await peer.send(sent)
        return [answer.status for answer in await answers_until_the_end(peer)]

    async with undisturbed(world):
        with growing_less_than(world.proxy, HEADS_BYTES):
            assert await all_at_once(100, world.port, talk) == [[431]] * 100


async def test_trailers_without_an_end_are_refused(world: Running) -> None:
    async def talk(peer: Peer) -> list[int]:
        with suppress(ConnectionError):
            await peer.send(request("/v0/events?name=never", headers={"Transfer-Encoding": "chunked"}) + b"0\r\n")
            await peer.send(b"X-A: " + b"a" * MEGABYTE)
        return [answer.status for answer in await answers_until_the_end(peer)]

    async with undisturbed(world):
        with growing_less_than(world.proxy, HEADS_BYTES):
            found = await all_at_once(100, world.port, talk)
            assert {*map(tuple, found)} <= {(400,), (431,)}


async def test_a_hundred_bodies_without_an_end_are_refused_or_given_up(world: Running) -> None:
    body = b" " * 9_400_000

    async def talk(peer: Peer) -> list[int]:
        with suppress(ConnectionError):
            await peer.send(request("/v0/events?name=never", headers={"Content-Length": "9500000"}))
            await peer.send(body)
        return [answer.status for answer in await answers_until_the_end(peer)]

    async with undisturbed(world):
        with growing_less_than(world.proxy, BODIES_BYTES):
            found = await all_at_once(100, world.port, talk)
    assert {status for statuses in found for status in statuses} <= {503, 408}
    # Of RECEIVE_BYTES, 64 MB, each of them has taken 9.5 MB.
    assert found.count([408]) >= 6


# Bombs.


def _repeated(block: bytes) -> bytes:
    """One gzip member of about 10 MB with 10 GB in it; its end is not there."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = compressor.compress(block) + compressor.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + piece * (9_990_000 // len(piece))


def _zstd_frames() -> bytes:
    frame = codec.compress([b"\0" * 64_000_000], "zstd").body
    return frame * min(160, 9_990_000 // len(frame))


BOMBS: Final[dict[str, Callable[[], tuple[bytes, str]]]] = {
    "10 GB of zeros": lambda: (_repeated(b"\0" * MEGABYTE), "gzip"),
    "10 GB of line feeds": lambda: (_repeated(b"\n" * MEGABYTE), "gzip"),
    "10 GB of rows": lambda: (_repeated(b"{}\n" * (MEGABYTE // 3)), "gzip"),
    "10 GB of brackets": lambda: (_repeated(b"[" * MEGABYTE), "gzip"),
    "many members": lambda: (gzip.compress(b"\0" * 10_000_000) * 990, "gzip"),
    "nothing but empty members": lambda: (gzip.compress(b"") * 490_000, "gzip"),
    "a bomb in a bomb": lambda: (gzip.compress(_repeated(b"\0" * MEGABYTE)), "gzip"),
    "frames": lambda: (_zstd_frames(), "zstd"),
    "empty frames": lambda: (codec.compress([b""], "zstd").body * 500_000, "zstd"),
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
async def test_bombs_are_refused_when_they_begin_to_grow(world: Running, make: Callable[[], tuple[bytes, str]]) -> None:
    body, encoding = make()
    assert len(body) <= 10_000_000

    async def send() -> int:
        return (await post(world.port, "name=never", body, headers={"Content-Encoding": encoding})).status

    async with undisturbed(world):
        with growing_less_than(world.proxy, BOMBS_BYTES):
            assert set(await asyncio.gather(*(send() for _ in range(4)))) <= {400, 413}


async def test_ten_megabytes_of_empty_rows_three_times_a_second_leave_the_others_alone(world: Running) -> None:
    body = gzip.compress(b"{}\n" * 3_333_333)

    async def send() -> int:
        return (await post(world.port, "name=never", body, headers={"Content-Encoding": "gzip"})).status

    async with undisturbed(world):
        with growing_less_than(world.proxy, ROWS_BYTES):
            sending = []
            for _ in range(9):
                sending.append(asyncio.create_task(send()))
                await asyncio.sleep(1 / 3)
            assert set(await asyncio.gather(*sending)) == {413}


# Many.


async def test_ten_thousand_idle_connections_keep_nobody_out(world: Running) -> None:
    count = 10_000

    def connect(into: list[socket.socket]) -> None:
        for _ in range(count + 1000):
            into.append(socket.create_connection(("127.0.0.1", proxy.port), timeout=DEADLINE_S))

    async with running_process(environment(world.tinybird.url, MAX_CONNECTIONS=str(count))) as proxy:
        opened: list[socket.socket] = []
        try:
            async with undisturbed(Running(proxy, world.tinybird)):
                with growing_less_than(proxy, IDLE_BYTES):
                    await asyncio.to_thread(connect, opened)
                    assert (await post(proxy.port, "name=crowd")).status == 202
            assert opened[0].recv(1) == b"", "it was idle for longest"
            opened[-1].sendall(request("/v0/events?name=crowd", b"{}"))
            assert opened[-1].recv(12) == b"HTTP/1.1 202"
        finally:
            for one in opened:
                one.close()
        assert await proxy.stop() == 0
        (line,) = [line for line in proxy.lines if line["level"] != "info"]
        assert line["message"].startswith("no room for more connections")


# Read in two ways.

POST: Final = "POST /v0/events?name=read HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer tinybird-admin\r\n"
ONE_CHUNK: Final = b"2\r\n{}\r\n0\r\n\r\n"
REFUSED: Final[dict[str, bytes]] = {
    "TE behind a tab in its name": b"Transfer-Encoding\t: chunked\r\n\r\n" + ONE_CHUNK,
    "TE with a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n" + ONE_CHUNK,
    "TE with a NUL": b"Transfer-Encoding: chunked\x00\r\n\r\n" + ONE_CHUNK,
    "TE in quotes": b'Transfer-Encoding: "chunked"\r\n\r\n' + ONE_CHUNK,
    "TE with a comma": b"Transfer-Encoding: chunked,\r\n\r\n" + ONE_CHUNK,
    "TE with a parameter": b"Transfer-Encoding: chunked;a=b\r\n\r\n" + ONE_CHUNK,
    "TE folded": b"Transfer-Encoding:\r\n chunked\r\n\r\n" + ONE_CHUNK,
    "TE behind a line feed": b"X-A: a\nTransfer-Encoding: chunked\r\n\r\n" + ONE_CHUNK,
    "TE behind a carriage return": b"X-A: a\rTransfer-Encoding: chunked\r\n\r\n" + ONE_CHUNK,
    "TE identity and a length": b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}",
    "TE empty": b"Transfer-Encoding: \r\n\r\n",
    "TE empty and a length": b"Transfer-Encoding:\r\nContent-Length: 2\r\n\r\n{}",
    "a length and a TE that resembles": b"Content-Length: 2\r\nTransfer-Encoding: xchunked\r\n\r\n{}",
    "a length with a space": b"Content-Length: 2 2\r\n\r\n{}",
    "a length with a NUL": b"Content-Length: 2\x00\r\n\r\n{}",
    "a length with a point": b"Content-Length: 2.0\r\n\r\n{}",
    "a length with an underscore": b"Content-Length: 0_2\r\n\r\n{}",
    "a length folded": b"Content-Length: 2\r\n 0\r\n\r\n{}",
    "a header that begins with a space": b" X-A: a\r\nContent-Length: 2\r\n\r\n{}",
    "a header without a name": b": a\r\nContent-Length: 2\r\n\r\n{}",
    "a NUL in a name": b"X-\x00A: a\r\nContent-Length: 2\r\n\r\n{}",
    "two Hosts": b"Host: elsewhere\r\nContent-Length: 2\r\n\r\n{}",
    "a chunk size that is negative": b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "a chunk size with a space before it": b"Transfer-Encoding: chunked\r\n\r\n 2\r\n{}\r\n0\r\n\r\n",
    "a chunk size that overflows by one": b"Transfer-Encoding: chunked\r\n\r\n10000000000000000002\r\n{}\r\n0\r\n\r\n",
    "a chunk size with an underscore": b"Transfer-Encoding: chunked\r\n\r\n0_2\r\n{}\r\n0\r\n\r\n",
    "no chunk size": b"Transfer-Encoding: chunked\r\n\r\n\r\n{}\r\n0\r\n\r\n",
    "a line feed behind a chunk size": b"Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
    "a carriage return behind a chunk size": b"Transfer-Encoding: chunked\r\n\r\n2\r{}\r\n0\r\n\r\n",
    "a line feed in a chunk extension": b"Transfer-Encoding: chunked\r\n\r\n2;a\nb\r\n{}\r\n0\r\n\r\n",
    "a length in a trailer": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n",
    "a chunk that has no end": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n",
}
# What comes behind chunks at once is not answered, and that answer says that the connection ends.
READ_ONCE: Final[dict[str, bytes]] = {
    "chunk extensions": b'Transfer-Encoding: chunked\r\n\r\n2;a=b;c="d"\r\n{}\r\n0;e\r\n\r\n',
    "a trailer": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX-Ack: 5\r\n\r\n",
    "zeros before a chunk size": b"Transfer-Encoding: chunked\r\n\r\n0000000000000002\r\n{}\r\n0\r\n\r\n",
    "TE in large letters": b"TRANSFER-ENCODING:\tCHUNKED \r\n\r\n" + ONE_CHUNK,
}
READ_TWICE: Final[dict[str, bytes]] = {
    "a length with zeros": b"Content-Length: 0002\r\n\r\n{}",
    "a length in spaces": b"Content-Length: \t 2 \r\n\r\n{}",
    "a name that resembles": b"Content_Length: 200\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("rest", REFUSED.values(), ids=REFUSED)
async def test_what_two_servers_could_read_differently_is_refused(world: Running, rest: bytes) -> None:
    async with connected(world.port) as peer:
        await peer.send(POST.encode() + rest + request("/v0/events?name=never", b'{"smuggled":1}'))
        (answer,) = await answers_until_the_end(peer)
        assert 400 <= answer.status < 500
        assert answer.error
    assert await world.tinybird.rows("never") == []


@pytest.mark.parametrize("cut", [None, -1, 60, 120])
@pytest.mark.parametrize("rest", READ_ONCE.values(), ids=READ_ONCE)
async def test_what_is_odd_but_clear_is_read_and_ends_the_connection(
    world: Running, rest: bytes, cut: int | None
) -> None:
    sent = POST.encode() + rest + request("/v0/events?name=never", b'{"smuggled":1}')
    async with connected(world.port) as peer:
        await peer.send(sent[:cut])
        if cut is not None:
            await world.proxy.status()
            with suppress(ConnectionError):
                await peer.send(sent[cut:])
        found = await answers_until_the_end(peer)
    assert [(answer.status, answer["Connection"]) for answer in found] == [(202, "close")]
    assert found[0].json()["successful_rows"] == 1
    assert await world.tinybird.rows("never") == []


@pytest.mark.parametrize("rest", READ_TWICE.values(), ids=READ_TWICE)
async def test_what_is_clear_is_read_and_so_is_what_comes_behind(world: Running, rest: bytes) -> None:
    async with connected(world.port) as peer:
        await peer.send(POST.encode() + rest + request("/v0/events?name=read", b"{}", headers={"Connection": "close"}))
        found = await answers_until_the_end(peer)
    assert [(answer.status, answer.json()["successful_rows"]) for answer in found] == [(202, 1)] * 2


# Elsewhere.


async def test_nothing_but_tinybird_is_ever_contacted() -> None:
    visits: list[bytes] = []

    async def elsewhere(peer: Peer) -> None:
        visits.append(await peer.reader.read(1000))

    async with serving(elsewhere) as port, running_world(TINYBIRD_TOKEN=None) as world:
        other = f"127.0.0.1:{port}"
        targets = [
            *(f"http://{other}/x", f"//{other}/x", f"///{other}/x", f"/\\{other}/x", f"/@{other}/x", f"@{other}/x"),
            *(f"http://localhost@{other}/x", f"https://{other}/x", f"http:{other}/x", f"http:/{other}/x"),
            *(f"/..//{other}/x", f"/x?http://{other}/", f"/%2f%2f{other}/x", f"/x/../../{other}", f"/;//{other}"),
            *(f"/:{port}/x", f":{port}/x", f"#@{other}/x", f"/#@{other}/x", f"?@{other}/x", other),
        ]
        for target in targets:
            for method, host in (("GET", other), ("POST", "localhost"), ("CONNECT", other)):
                with suppress(asyncio.IncompleteReadError, ConnectionError):
                    answer = await ask(world.port, target, method=method, headers={"Host": host}, token="p.x")
                    assert answer.status >= 400
        assert visits == []
        assert "CONNECT" not in {asked.method for asked in world.tinybird.requests}
