"""What connections take whose TLS handshake is not done, and which one ends for a new one."""

import asyncio
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop
from aiohttp import web
from tests.proxy.running import (
    Peer,
    ask,
    connected,
    environment,
    make_authority,
    make_certificate,
    request,
    running_process,
    running_tinybird,
    running_world,
    server_tls,
    until,
)

from tinybird_proxy.server import answers
from tinybird_proxy.server.doorkeeper import MAX_TOLD, SLOW_HANDSHAKE_S, Doorkeeper
from tinybird_proxy.server.http import ConnectionLimits, HttpServer
from tinybird_proxy.server.responses import respond
from tinybird_proxy.server.tls_door import TlsDoor

LIMITS = ConnectionLimits(
    max_header_bytes=8192, header_timeout_s=60.0, send_timeout_s=60.0, keepalive_timeout_s=600.0, max_age_s=600.0
)

# The hook that replaces this fixture is one for all tests of a directory, and only these are to run on both loops.
pytestmark = pytest.mark.filterwarnings(
    'ignore:Overriding the "event_loop_policy" fixture:pytest.PytestDeprecationWarning'
)


@pytest.fixture(
    params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"], scope="module"
)
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Each loop begins TLS in its own way."""
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the servers of these tests show, and the client that trusts it."""

    files: tuple[Path, Path]
    trusting: ssl.SSLContext

    @property
    def env(self) -> dict[str, str]:
        """A proxy's variables."""
        return {"TLS_CERT_FILE": str(self.files[0]), "TLS_KEY_FILE": str(self.files[1])}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    authority = make_authority(tmp_path_factory.mktemp("authority"))
    trusting = ssl.create_default_context(cafile=str(authority / "ca.pem"))
    return Certificate(make_certificate(authority, "localhost"), trusting)


@dataclass(slots=True)
class Door:
    """A TLS server behind a doorkeeper, whose clock is ``ahead_s``. ``/held`` is answered once ``go_on`` is set."""

    certificate: Certificate
    keeper: Doorkeeper
    server: HttpServer
    port: int = 0
    made: int = 0  # connections, handshakes left out
    ahead_s: float = 0.0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def silent(self) -> Peer:
        """A client that connects, is taken, and sends nothing."""
        taken = self.keeper.handshakes
        known = set(taken)
        peer = await self.stack.enter_async_context(connected(self.port))
        await until(lambda: not known.issuperset(taken))
        return peer

    async def user(self, sent: bytes = b"") -> Peer:
        """A client whose handshake is done, and which has sent this."""
        peer = await self.stack.enter_async_context(connected(self.port, tls=self.certificate.trusting))
        if sent:
            await peer.send(sent)
        return peer

    async def took(self, *, handshakes: int, connections: int) -> None:
        """Return once there are so many."""
        await until(lambda: (len(self.keeper.handshakes), len(self.server.connections)) == (handshakes, connections))

    @property
    def ended(self) -> tuple[int, int, int]:
        """How many handshakes, how many idle ones, and how many were turned away."""
        return self.keeper.ended_handshakes, self.keeper.ended_idle, self.keeper.turned_away


@asynccontextmanager
async def door(
    certificate: Certificate, max_connections: int, *, handshake_timeout_s: float = 60.0
) -> AsyncIterator[Door]:
    async def handle(asked: web.BaseRequest) -> web.StreamResponse:
        if asked.path == "/held":
            await at.go_on.wait()
        body = await asked.read()
        return respond(answers.error(404, f"nothing here for {len(body)} bytes"), asked)

    loop = asyncio.get_running_loop()

    def now() -> float:
        return loop.time() + at.ahead_s

    def chance() -> float:
        at.made += 1
        return 0.5

    server = HttpServer(handle, lane=None, limits=LIMITS, chance=chance)
    keeper = Doorkeeper(server, max_connections=max_connections, option="MAX_CONNECTIONS", now=now)
    at = Door(certificate, keeper, server)
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    at.port = listening.getsockname()[1]
    try:
        async with (
            at.stack,
            TlsDoor(keeper, server_tls(certificate.files), handshake_timeout_s=handshake_timeout_s, now=now).open(
                listening
            ),
        ):
            yield at
        assert not keeper.handshakes
    finally:
        listening.close()
        at.go_on.set()
        server.pre_shutdown()
        await server.shutdown(1.0)


async def _use(peer: Peer) -> None:
    await peer.send(request("/x", b""))
    assert (await peer.answer()).status == 404


async def _ends(peer: Peer) -> None:
    with suppress(ConnectionError):
        assert await peer.rest() == b""


async def test_handshakes_count_as_connections_and_the_oldest_ends_for_a_new_one(certificate: Certificate) -> None:
    async with door(certificate, 5) as at:
        peers = [await at.silent() for _ in range(12)]
        await at.took(handshakes=5, connections=0)
        for peer in peers[:7]:
            await _ends(peer)
        assert not any(peer.reader.at_eof() for peer in peers[7:])
        assert at.ended == (7, 0, 0)


async def test_silent_clients_keep_nobody_out(certificate: Certificate) -> None:
    async with door(certificate, 5) as at:
        for _ in range(3):
            for _ in range(10):
                await at.silent()
            await _use(await at.user())
        assert len(at.keeper.handshakes) + len(at.server.connections) == 5


async def test_silent_clients_push_no_more_than_half_of_the_idle_connections_out(certificate: Certificate) -> None:
    async with door(certificate, 10) as at:
        idle = []
        for _ in range(10):
            idle.append(await at.user())
            await _use(idle[-1])
        for _ in range(30):
            await at.silent()
        await at.took(handshakes=6, connections=4)
        for peer in idle[6:]:
            await _use(peer)
        assert at.ended == (24, 6, 0)


async def test_a_slow_handshake_ends_rather_than_an_idle_connection(certificate: Certificate) -> None:
    async with door(certificate, 4) as at:
        idle = [await at.user() for _ in range(3)]
        slow = await at.silent()
        at.ahead_s = SLOW_HANDSHAKE_S
        late = await at.user()
        await _ends(slow)
        for peer in (*idle, late):
            await _use(peer)
        assert at.ended == (1, 0, 0)


async def test_a_handshake_that_has_just_begun_does_not_end_where_a_connection_is_idle(
    certificate: Certificate,
) -> None:
    async with door(certificate, 4) as at:
        idle = [await at.user() for _ in range(3)]
        for peer in idle:
            await _use(peer)
        young = await at.silent()
        late = await at.user()
        await _ends(idle[0])
        for peer in (*idle[1:], late):
            await _use(peer)
        assert not young.reader.at_eof()
        assert at.ended == (0, 1, 0)


async def test_where_all_are_busy_the_oldest_handshake_ends(certificate: Certificate) -> None:
    async with door(certificate, 4) as at:
        busy = [await at.user(request("/held", b"")) for _ in range(3)]
        await until(lambda: all(at.keeper._idle_since(connection) is None for connection in at.server.connections))
        young = await at.silent()
        await _use(await at.user())
        await _ends(young)
        at.go_on.set()
        for peer in busy:
            assert (await peer.answer()).status == 404
        assert at.ended == (1, 0, 0)


@asynccontextmanager
async def full_door(certificate: Certificate) -> AsyncIterator[Door]:
    """Its two places are taken by clients that wait for their answers."""
    async with door(certificate, 2) as at:
        for _ in range(2):
            await at.user(request("/held", b""))
        await until(lambda: at.server.requests_count == 2)
        yield at


async def test_where_all_are_busy_and_no_handshake_is_under_way_the_new_one_hears_that_there_is_no_room(
    certificate: Certificate,
) -> None:
    async with full_door(certificate) as at:
        answer = await ask(at.port, "/x", b"{}", tls=certificate.trusting)
        assert (answer.status, answer["Retry-After"], answer["Connection"]) == (503, "1", "close")
        assert answer.error == "the proxy has as many connections as it may (MAX_CONNECTIONS); try again later"
        assert at.ended == (0, 0, 1)


async def test_only_so_many_wait_at_once_to_hear_that_there_is_no_room(certificate: Certificate) -> None:
    async with full_door(certificate) as at:
        peers = [await at.stack.enter_async_context(connected(at.port)) for _ in range(MAX_TOLD + 5)]
        await until(lambda: at.ended == (0, 0, MAX_TOLD + 5))
        for peer in peers[:5]:
            await _ends(peer)
        assert not any(peer.reader.at_eof() for peer in peers[5:])
        assert (await ask(at.port, "/x", b"{}", tls=certificate.trusting)).status == 503
        await _ends(peers[5])


async def test_a_crowd_ends_one_idle_connection_for_each_of_its_own(certificate: Certificate) -> None:
    async with door(certificate, 40) as at:
        old = [await at.user() for _ in range(40)]
        new = await asyncio.gather(*(at.user() for _ in range(20)))
        await at.took(handshakes=0, connections=40)
        for peer in (*old[20:], *new):
            await _use(peer)
        assert at.ended == (0, 20, 0)


async def test_a_crowd_in_the_listen_queue_is_served_to_the_last(certificate: Certificate) -> None:
    async with door(certificate, 1000) as at:
        for peer in await asyncio.gather(*(at.user(request("/x", b"")) for _ in range(300))):
            assert (await peer.answer()).status == 404
        await at.took(handshakes=0, connections=300)


async def test_what_comes_right_behind_the_handshake_arrives_whole(certificate: Certificate) -> None:
    async with door(certificate, 5) as at:
        sent = b"x" * 900_000
        peer = await at.user(request("/x", sent) + request("/x", b"123"))
        assert (await peer.answer()).error == "nothing here for 900000 bytes"
        assert (await peer.answer()).error == "nothing here for 3 bytes"


async def test_who_does_not_speak_tls_or_does_not_trust_us_or_leaves_keeps_no_place(certificate: Certificate) -> None:
    async with door(certificate, 5) as at:
        plain = await at.silent()
        await plain.send(request("/x", b""))
        await plain.rest()
        with pytest.raises(ssl.SSLCertVerificationError):
            async with connected(at.port, tls=ssl.create_default_context()):
                pass
        (await at.silent()).writer.transport.abort()
        (await at.silent()).writer.write_eof()
        await at.took(handshakes=0, connections=0)
        assert at.ended == (0, 0, 0)


async def test_a_handshake_that_is_ended_when_its_last_bytes_have_come_does_not_become_a_connection(
    certificate: Certificate,
) -> None:
    async with door(certificate, 5) as at:
        loop = asyncio.get_running_loop()
        received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = certificate.trusting.wrap_bio(received, to_send, server_hostname="localhost")
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", at.port))
            while True:
                with suppress(ssl.SSLWantReadError):
                    client.do_handshake()
                    break
                await loop.sock_sendall(sock, to_send.read())
                received.write(await loop.sock_recv(sock, 65536))
            (handshake,) = at.keeper.handshakes
            assert sock.send(to_send.read()) > 0
            handshake.end()
            with suppress(ConnectionError):
                while await loop.sock_recv(sock, 65536):
                    pass
        assert (at.made, len(at.keeper.handshakes)) == (0, 0)


async def test_a_handshake_that_takes_too_long_ends(certificate: Certificate) -> None:
    async with door(certificate, 5, handshake_timeout_s=0.2) as at:
        await _ends(await at.silent())
        await at.took(handshakes=0, connections=0)


async def test_a_client_that_is_gone_before_it_is_taken_is_no_trouble(certificate: Certificate) -> None:
    async with door(certificate, 5) as at:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", at.port)) as gone:
                gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        await _use(await at.user())
        await at.took(handshakes=0, connections=1)


async def test_who_cannot_be_taken_for_want_of_files_waits_and_is_taken_later(
    certificate: Certificate, caplog: pytest.LogCaptureFixture
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with door(certificate, 5) as at:
        with socket.socket() as waiting:
            waiting.setblocking(False)
            loop = asyncio.get_running_loop()
            resource.setrlimit(resource.RLIMIT_NOFILE, (waiting.fileno() + 1, hard))
            fillers = _fill_files()
            try:
                await loop.sock_connect(waiting, ("127.0.0.1", at.port))
                await until(lambda: len(_refused(caplog)) == 1)
                assert not at.keeper.handshakes
            finally:
                for file in fillers:
                    os.close(file)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await at.took(handshakes=1, connections=0)
            await _use(await at.user())
    assert len(_refused(caplog)) == 1


def _fill_files() -> list[int]:
    files = []
    with suppress(OSError):
        while True:
            files.append(os.open(os.devnull, os.O_RDONLY))
    return files


def _refused(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if text.startswith("new connections cannot be taken and wait")]


async def test_a_handshake_that_is_under_way_when_the_port_closes_ends_and_what_is_served_goes_on(
    certificate: Certificate,
) -> None:
    async with AsyncExitStack() as clients:
        async with door(certificate, 5) as at:
            peers = [await clients.enter_async_context(connected(at.port)) for _ in range(2)]
            await at.took(handshakes=2, connections=0)
            fresh = await clients.enter_async_context(connected(at.port))
        for peer in (*peers, fresh):
            await _ends(peer)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", at.port)


def _open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


async def test_a_proxy_takes_the_handshakes_for_connections_and_lets_its_clients_in(certificate: Certificate) -> None:
    async with running_tinybird() as tinybird, AsyncExitStack() as stack:
        env = environment(tinybird.url, MAX_CONNECTIONS="20", **certificate.env)
        proxy = await stack.enter_async_context(running_process(env))
        before = _open_files(proxy.pid)
        for _ in range(200):
            await stack.enter_async_context(connected(proxy.port))
        answer = await ask(proxy.port, "/v0/events?name=hits", b"{}", tls=certificate.trusting)
        assert answer.status == 202
        await until(lambda: _open_files(proxy.pid) <= before + 22)  # one to Tinybird, one that ends
        line = await proxy.logged(
            "no room for more connections: idle ones and slow TLS handshakes are ended, "
            "and where there are none new ones are refused"
        )
        assert line["ended_handshakes"] == 1
        assert await proxy.stop() == 0
        assert len(await tinybird.rows("hits")) == 1


async def test_a_pair_that_is_replaced_is_shown_to_the_next_client(tmp_path: Path) -> None:
    first, second = (make_authority(tmp_path / name) for name in _made(tmp_path, "first", "second"))
    cert, key = make_certificate(first, "localhost")
    env = {"TLS_CERT_FILE": str(cert), "TLS_KEY_FILE": str(key)}
    async with running_world(**env) as world:
        trusts = [ssl.create_default_context(cafile=str(authority / "ca.pem")) for authority in (first, second)]
        async with connected(world.port, tls=trusts[0]) as old:
            new_cert, new_key = make_certificate(second, "localhost")
            cert.write_bytes(new_cert.read_bytes())
            key.write_bytes(new_key.read_bytes())

            async def shown() -> bool:
                with suppress(ssl.SSLCertVerificationError):
                    return (await ask(world.port, "/v0/events?name=hits", b"{}", tls=trusts[1])).status == 202
                return False

            await until(shown)
            await old.send(request("/v0/events?name=hits", b"{}"))
            assert (await old.answer()).status == 202


def _made(directory: Path, *names: str) -> tuple[str, ...]:
    for name in names:
        (directory / name).mkdir()
    return names
