"""How many connections a port takes, which one ends for a new one, and what who is turned away hears."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiohttp import web
from tests.proxy.running import (
    Peer,
    ask,
    connected,
    make_authority,
    make_certificate,
    request,
    running_world,
    until,
)

from tinybird_proxy.server import answers
from tinybird_proxy.server.doorkeeper import MAX_TOLD, Doorkeeper
from tinybird_proxy.server.http import ConnectionLimits, HttpServer
from tinybird_proxy.server.responses import respond

LIMITS = ConnectionLimits(
    max_header_bytes=8192, header_timeout_s=60.0, send_timeout_s=60.0, keepalive_timeout_s=600.0, max_age_s=600.0
)


@dataclass(slots=True)
class Door:
    """A server behind a doorkeeper. ``/held`` is answered once ``go_on`` is set."""

    port: int
    keeper: Doorkeeper
    server: HttpServer
    go_on: asyncio.Event

    async def took(self, count: int) -> None:
        """Return once so many connections are open."""
        await until(lambda: len(self.server.connections) == count)


@asynccontextmanager
async def door(max_connections: int, limits: ConnectionLimits = LIMITS) -> AsyncIterator[Door]:
    go_on = asyncio.Event()

    async def handle(asked: web.BaseRequest) -> web.StreamResponse:
        if asked.path == "/held":
            await go_on.wait()
        return respond(answers.error(404, "nothing here"), asked)

    loop = asyncio.get_running_loop()
    server = HttpServer(handle, lane=None, limits=limits, chance=lambda: 0.5)
    keeper = Doorkeeper(server, max_connections=max_connections, option="MAX_CONNECTIONS", now=loop.time)
    listener = await loop.create_server(keeper, "127.0.0.1", 0)
    try:
        yield Door(listener.sockets[0].getsockname()[1], keeper, server, go_on)
    finally:
        listener.close()
        go_on.set()
        server.pre_shutdown()
        await server.shutdown(1.0)


async def _use(peer: Peer) -> None:
    await peer.send(request("/x", b""))
    assert (await peer.answer()).status == 404


async def test_the_connection_that_was_idle_for_longest_ends_for_a_new_one() -> None:
    async with AsyncExitStack() as stack, door(3) as at:
        peers = []
        for count in (1, 2, 3):
            peers.append(await stack.enter_async_context(connected(at.port)))
            await at.took(count)
        for n in (1, 0, 2):
            await _use(peers[n])
        async with connected(at.port) as fourth:
            await _use(fourth)
            assert await peers[1].rest() == b""
            await _use(peers[2])
            async with connected(at.port) as fifth:
                await _use(fifth)
                assert await peers[0].rest() == b"", "the two are the ones that had not been used for longest"
                for peer in (peers[2], fourth, fifth):
                    await _use(peer)
        assert (at.keeper.ended_idle, at.keeper.turned_away) == (2, 0)


async def test_connections_that_never_sent_anything_are_idle() -> None:
    async with AsyncExitStack() as stack, door(10) as at:
        peers = [await stack.enter_async_context(connected(at.port)) for _ in range(10)]
        await at.took(10)
        async with connected(at.port) as late:
            await _use(late)
        assert await peers[0].rest() == b""
        for peer in peers[1:]:
            await _use(peer)


@pytest.mark.parametrize(
    ("busy", "rest"),
    [
        (request("/held", b""), b""),
        (b"POST /x HT", b"TP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
        (request("/x", headers={"Content-Length": "9"}), b'{"n":123}'),
    ],
    ids=["an answer", "a head", "a body"],
)
async def test_nothing_that_is_under_way_is_ended(busy: bytes, rest: bytes) -> None:
    async with connected_to_full_door(busy) as (at, peers):
        answer = await ask(at.port, "/x", b"{}")
        assert (answer.status, answer["Retry-After"], answer["Connection"]) == (503, "1", "close")
        assert answer.error == "the proxy has as many connections as it may (MAX_CONNECTIONS); try again later"
        assert (at.keeper.ended_idle, at.keeper.turned_away) == (0, 1)
        at.go_on.set()
        for peer in peers:
            await peer.send(rest)
            assert (await peer.answer()).status == 404
        async with connected(at.port) as late:
            await _use(late)
        assert at.keeper.ended_idle == 1


@asynccontextmanager
async def connected_to_full_door(sent: bytes) -> AsyncIterator[tuple[Door, list[Peer]]]:
    async with door(2) as at, connected(at.port) as one, connected(at.port) as two:
        for peer in (one, two):
            await peer.send(sent)
        await until(lambda: all(at.keeper._idle_since(connection) is None for connection in at.server.connections))
        await at.took(2)
        yield at, [one, two]


async def test_who_is_turned_away_hears_it_though_it_sends_more_than_it_may() -> None:
    async with connected_to_full_door(request("/held", b"")) as (at, _), connected(at.port) as peer:
        await peer.send(request("/x", b"x" * 1_000_000))
        assert (await peer.answer()).status == 503
        assert await peer.rest() == b""


async def test_only_so_many_at_once_are_told() -> None:
    async with connected_to_full_door(request("/held", b"")) as (at, _), AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(connected(at.port)) for _ in range(MAX_TOLD + 5)]
        await until(lambda: at.keeper.turned_away == MAX_TOLD + 5)
        told = 0
        for peer in peers:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                told += (await peer.answer()).status == 503
        assert told == MAX_TOLD


async def test_a_crowd_ends_one_idle_connection_for_each_of_its_own() -> None:
    async with AsyncExitStack() as stack, door(40) as at:
        old = [await stack.enter_async_context(connected(at.port)) for _ in range(40)]
        await at.took(40)
        new = await asyncio.gather(*(stack.enter_async_context(connected(at.port)) for _ in range(25)))
        await until(lambda: at.keeper.ended_idle == 25)
        await at.took(40)
        for peer in (*old[25:], *new):
            await _use(peer)


async def test_a_client_that_does_not_read_its_answers_cannot_keep_its_connection() -> None:
    impatient = replace(LIMITS, send_timeout_s=0.2)
    async with door(2, impatient) as at, connected(at.port) as deaf:
        deaf.pause()
        deaf.writer.write(request("/x", b"") * 200_000)  # more answers than all buffers on the way hold
        await at.took(1)
        await at.took(0)
        deaf.writer.transport.abort()


async def test_an_answer_that_nobody_reads_does_not_keep_an_idle_connection_from_its_end() -> None:
    async with door(1) as at, connected(at.port) as deaf:
        deaf.pause()
        await deaf.send(request("/x", b""))
        await at.took(1)
        (connection,) = at.server.connections
        await until(lambda: at.server.requests_count == 1 and at.keeper._idle_since(connection) is not None)
        assert connection.transport is not None
        connection.transport.set_write_buffer_limits(10**9)
        connection.transport.write(b" " * 50_000_000)  # much more than the kernel takes
        async with connected(at.port) as late:
            await _use(late)
            await at.took(1)


async def test_idle_connections_cannot_exhaust_the_admin_port() -> None:
    async with running_world() as world, AsyncExitStack() as stack:
        for _ in range(200):
            await stack.enter_async_context(connected(world.proxy.admin_port))
        assert (await ask(world.proxy.admin_port, "/livez", method="GET")).status == 200


async def test_a_client_that_does_not_begin_tls_is_ended_in_time(tmp_path: Path) -> None:
    cert, key = make_certificate(make_authority(tmp_path), "localhost")
    tls = {"TLS_CERT_FILE": str(cert), "TLS_KEY_FILE": str(key)}
    async with running_world(HEADER_TIMEOUT="300ms", MAX_CONNECTIONS="2", **tls) as world:
        async with connected(world.port) as silent:
            with suppress(ConnectionError):
                assert await silent.rest() == b""
        trust = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        async with (
            connected(world.port, tls=trust) as one,
            connected(world.port, tls=trust) as two,
            connected(world.port, tls=trust) as three,
        ):
            for peer in (two, three):
                await peer.send(request("/v0/events?name=hits", b"{}"))
                assert (await peer.answer()).status == 202
            with suppress(ConnectionError):
                assert await one.rest() == b"", "it was idle for longest"
