"""One attempt at Tinybird: what goes out, how each way of failing is told, and which connections are used for it."""

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.proxy.running import (
    Asked,
    Peer,
    PlainTinybird,
    answer_bytes,
    asked,
    environment,
    make_authority,
    make_certificate,
    plain_tinybird,
    post,
    running_process,
    server_tls,
    serving,
    until,
)

from tinybird_proxy.batch import DestinationKey, Payload
from tinybird_proxy.errors import ConnectFailed, ConnectionBroken, ResponseTimeout, UpstreamError
from tinybird_proxy.upstream import SESSION_AGE_MAX_S, Upstream, UpstreamSettings
from tinybird_proxy.verdict import Reply

TOKEN = "the-token"
COUNTS = b'{"successful_rows":1,"quarantined_rows":0}'
BODY = gzip.compress(b'{"n":1}', mtime=0)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def reaching(
    origin: str,
    *,
    timeout_s: float = 10.0,
    tls: ssl.SSLContext | None = None,
    proxies: Mapping[str, str] | None = None,
    no_proxy: tuple[str, ...] = (),
    now: Callable[[], float] | None = None,
) -> AsyncIterator[Upstream]:
    """An ``Upstream`` for ``origin``, closed at the end."""
    settings = UpstreamSettings(
        origin=origin,
        timeout_s=timeout_s,
        instance="proxy-1",
        user_agent="tinybird-proxy/test",
        proxies=proxies or {},
        bypasses_proxy=lambda host: host in no_proxy,
    )
    upstream = Upstream(settings, tls=tls or ssl.create_default_context(), now=now or asyncio.get_running_loop().time)
    try:
        yield upstream
    finally:
        await upstream.close()


async def send(upstream: Upstream, body: bytes = BODY, **options: object) -> Reply:
    """One attempt with one batch."""
    key = DestinationKey("/v0/events", "hits", (), None)
    payload = Payload(body, "gzip")
    return await upstream.send(upstream.url(key, wait=True), payload, token=TOKEN, batch_id="batch-1", **options)  # type: ignore[arg-type]


# What goes out, and what comes back.


async def test_an_attempt_is_one_post_with_the_token_in_its_header() -> None:
    async with plain_tinybird() as tinybird, reaching(tinybird.url) as upstream:
        reply = await send(upstream, vias=("other-1", "other-2"), traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
        assert (reply.status, reply.body) == (200, COUNTS.replace(b":1,", b": 1, ").replace(b":0", b": 0"))
    ((head, body),) = tinybird.asked
    assert body == BODY
    assert (head.method, head.target) == ("POST", "/v0/events?name=hits&wait=true")
    assert dict(head.headers) == {
        "Host": tinybird.url.removeprefix("http://"),
        "User-Agent": "tinybird-proxy/test",
        "Authorization": f"Bearer {TOKEN}",
        "Accept-Encoding": "identity",
        "Content-Type": "application/x-ndjson",
        "Content-Encoding": "gzip",
        "Content-Length": str(len(BODY)),
        "X-Batch-Id": "batch-1",
        "X-Batch-Via": "other-1, other-2, proxy-1",
        "traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01",
    }


async def test_it_is_told_once_that_the_body_begins_and_not_before_there_is_a_connection() -> None:
    begun = list[str]()
    async with plain_tinybird() as tinybird, reaching(tinybird.url) as upstream:
        await send(upstream, gzip.compress(b"{}\n" * 500_000, 0), begins=lambda: begun.append("begun"))
        assert begun == ["begun"]
    async with reaching(tinybird.url) as upstream:  # where nothing listens any more
        with pytest.raises(ConnectFailed):
            await send(upstream, begins=lambda: begun.append("without a connection"))
    assert begun == ["begun"]


async def test_an_empty_payload_is_sent_with_its_length() -> None:
    async with plain_tinybird() as tinybird, reaching(tinybird.url) as upstream:
        await upstream.send(f"{tinybird.url}/v0/events?name=x", Payload(b"", None), token="t", batch_id="b")
    assert tinybird.asked[0][0]["Content-Length"] == "0"
    assert tinybird.asked[0][0].all("Content-Encoding") == []


def _url(name: str, params: tuple[tuple[str, str], ...] = (), *, wait: bool = False) -> str:
    settings = UpstreamSettings(
        origin="https://api.tinybird.co",
        timeout_s=1.0,
        instance="i",
        user_agent="u",
        proxies={},
        bypasses_proxy=lambda _: False,
    )
    upstream = Upstream(settings, tls=ssl.create_default_context(), now=lambda: 0.0)
    return upstream.url(DestinationKey("/v0/events", name, params, "secret"), wait=wait)


def test_a_url_holds_name_and_parameters_quoted_and_never_the_token() -> None:
    assert _url("hits") == "https://api.tinybird.co/v0/events?name=hits"
    assert _url("hits", wait=True) == "https://api.tinybird.co/v0/events?name=hits&wait=true"
    assert _url("a b&c=d/#?é") == "https://api.tinybird.co/v0/events?name=a%20b%26c%3Dd%2F%23%3F%C3%A9"
    params = (("__tb__x", "1&2"), ("__tb__ü", ""))
    assert (
        _url("h", params, wait=True) == "https://api.tinybird.co/v0/events?name=h&__tb__x=1%262&__tb__%C3%BC=&wait=true"
    )


@pytest.mark.parametrize("status", [200, 202, 204, 301, 307, 308, 400, 401, 404, 413, 429, 500, 503, 508])
async def test_every_status_is_a_reply_and_redirects_are_not_followed(status: int) -> None:
    seen: list[Asked] = []

    async def handle(peer: Peer) -> None:
        seen.append(await asked(peer))
        await peer.reader.readexactly(len(BODY))
        body = b"" if status == 204 else b"said"
        headers = (("Location", "/elsewhere"), ("Retry-After", "7"), ("X-RateLimit-Reset", "3"))
        await peer.send(answer_bytes(status, body, *headers))

    async with serving(handle) as port, reaching(f"http://127.0.0.1:{port}") as upstream:
        reply = await send(upstream)
    assert reply.status == status
    assert reply.body == (b"" if status == 204 else b"said")
    assert (reply.headers["retry-after"], reply.headers["x-ratelimit-reset"]) == ("7", "3")
    assert len(seen) == 1


async def test_a_reply_without_end_is_cut() -> None:
    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.send(b"HTTP/1.1 500 Oh\r\nContent-Length: 100000000\r\n\r\n")
        while True:
            await peer.send(b"x" * 65536)

    async with serving(handle) as port, reaching(f"http://127.0.0.1:{port}") as upstream:
        assert len((await send(upstream)).body) == 64 * 1024


async def test_a_reply_before_the_whole_body_was_read_counts() -> None:
    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.send(answer_bytes(413, b"too large", ("Connection", "close")))
        await peer.rest()

    async with serving(handle) as port, reaching(f"http://127.0.0.1:{port}") as upstream:
        reply = await send(upstream, bytes(20_000_000))
    assert (reply.status, reply.body) == (413, b"too large")


async def test_a_reply_that_repeats_our_token_loses_it() -> None:
    async def handle(peer: Peer) -> None:
        head = await asked(peer)
        await peer.reader.readexactly(len(BODY))
        await peer.send(answer_bytes(403, b"bad token: " + head["Authorization"].encode()))

    async with serving(handle) as port, reaching(f"http://127.0.0.1:{port}") as upstream:
        reply = await send(upstream)
    assert TOKEN.encode() not in reply.body
    assert reply.body.startswith(b"bad token: Bearer ")


# How it fails. Nothing was written: ConnectFailed, and the same bytes may go again.


async def _failure(upstream: Upstream, body: bytes = BODY) -> UpstreamError:
    with pytest.raises(UpstreamError) as raised:
        await send(upstream, body)
    assert TOKEN not in str(raised.value)
    return raised.value


async def test_a_refused_connection_is_not_ambiguous() -> None:
    async def handle(_: Peer) -> None:
        return

    async with serving(handle) as port:
        pass
    async with reaching(f"http://127.0.0.1:{port}") as upstream:
        error = await _failure(upstream)
    assert isinstance(error, ConnectFailed)
    assert not error.ambiguous
    assert str(error) == f"no connection to 127.0.0.1:{port}: connection refused"


async def test_a_name_that_does_not_resolve_is_told_as_that() -> None:
    async with reaching("http://tinybird.invalid") as upstream:
        error = await _failure(upstream)
    assert isinstance(error, ConnectFailed)
    assert str(error) == "no connection to tinybird.invalid:80: the name cannot be resolved"


async def test_a_connection_that_is_never_answered_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinybird_proxy.upstream.CONNECT_TIMEOUT_S", 0.2)

    async def handle(peer: Peer) -> None:  # takes the connection, and no TLS
        await peer.rest()

    async with serving(handle) as port, reaching(f"https://127.0.0.1:{port}") as upstream:
        error = await _failure(upstream)
    assert isinstance(error, ConnectFailed)
    assert str(error) == f"no connection to 127.0.0.1:{port} within 0.2 s"


# Something was written: the outcome is unknown.


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 42\r\n\r\n{", b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\n"]
)
async def test_a_connection_that_breaks_after_the_body_is_ambiguous(said: bytes) -> None:
    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.reader.readexactly(len(BODY))
        await peer.send(said)

    async with serving(handle) as port, reaching(f"http://127.0.0.1:{port}") as upstream:
        error = await _failure(upstream)
    assert isinstance(error, ConnectionBroken)
    assert error.ambiguous
    assert str(error).startswith("the connection to 127.0.0.1 broke before the answer: ")


async def test_a_connection_that_breaks_in_the_middle_of_the_body_is_ambiguous() -> None:
    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.reader.readexactly(1)
        peer.writer.transport.abort()

    async with serving(handle) as port, reaching(f"http://127.0.0.1:{port}") as upstream:
        error = await _failure(upstream, bytes(20_000_000))
    assert isinstance(error, ConnectionBroken)


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",
    ],
)
async def test_an_answer_that_is_not_http_is_ambiguous(said: bytes) -> None:
    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.reader.readexactly(len(BODY))
        await peer.send(said)

    async with serving(handle) as port, reaching(f"http://127.0.0.1:{port}") as upstream:
        assert isinstance(await _failure(upstream), ConnectionBroken)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 42\r\n\r\n{"])
async def test_no_whole_answer_in_time_is_ambiguous(said: bytes) -> None:
    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.send(said)
        await peer.rest()

    async with serving(handle) as port, reaching(f"http://127.0.0.1:{port}", timeout_s=0.2) as upstream:
        error = await _failure(upstream)
    assert isinstance(error, ResponseTimeout)
    assert error.ambiguous
    assert str(error) == "no answer from 127.0.0.1 within 0.2 s"


async def test_a_chunk_that_is_not_http_does_not_wait_for_ever() -> None:
    go_on = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.reader.readexactly(len(BODY))
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
        await go_on.wait()
        await peer.send(b"zz\r\n")
        await peer.rest()

    async with serving(handle) as port, reaching(f"http://127.0.0.1:{port}", timeout_s=0.5) as upstream:
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        error = await _failure(upstream)
    assert error.ambiguous


async def test_a_server_that_stops_reading_is_a_timeout_and_a_slow_one_is_not() -> None:
    body = bytes(30_000_000)

    async def never(peer: Peer) -> None:
        await asked(peer)
        peer.pause()
        await asyncio.Event().wait()

    async with serving(never, limit=65536) as port, reaching(f"http://127.0.0.1:{port}", timeout_s=0.3) as upstream:
        assert isinstance(await _failure(upstream, body), ResponseTimeout)

    async def slow(peer: Peer) -> None:
        await asked(peer)
        left = len(body)
        while left:
            left -= len(await peer.reader.read(min(left, 131_072)))
            await asyncio.sleep(0.005)  # longer in all than the timeout
        await peer.send(answer_bytes(200, COUNTS))

    async with serving(slow, limit=65536) as port, reaching(f"http://127.0.0.1:{port}", timeout_s=1.0) as upstream:
        assert (await send(upstream, body)).status == 200


# TLS.


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_authority(tmp_path_factory.mktemp("authority"))


@asynccontextmanager
async def _tls_tinybird(authority: Path, name: str) -> AsyncIterator[tuple[PlainTinybird, int]]:
    tinybird = PlainTinybird()
    async with serving(tinybird.handle, tls=server_tls(make_certificate(authority, name))) as port:
        yield tinybird, port


async def test_a_certificate_of_a_known_authority_is_trusted(authority: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(authority / "ca.pem"))
    async with (
        _tls_tinybird(authority, "localhost") as (tinybird, port),
        reaching(f"https://localhost:{port}", tls=trusting) as upstream,
    ):
        assert (await send(upstream)).status == 200
    assert len(tinybird.asked) == 1


@pytest.mark.parametrize(("name", "trusted"), [("other.example", True), ("localhost", False)])
async def test_another_name_or_an_unknown_authority_is_told_in_a_sentence(
    authority: Path, name: str, trusted: bool
) -> None:
    tls = ssl.create_default_context(cafile=str(authority / "ca.pem") if trusted else None)
    async with (
        _tls_tinybird(authority, name) as (tinybird, port),
        reaching(f"https://localhost:{port}", tls=tls) as upstream,
    ):
        error = await _failure(upstream)
    assert isinstance(error, ConnectFailed)
    assert str(error) == (
        f"no connection to localhost:{port}: its TLS certificate is not valid for this name or not trusted "
        "(SSL_CERT_FILE names other authorities)"
    )
    assert tinybird.asked == []


async def test_a_server_without_tls_is_told_as_that() -> None:
    async def handle(peer: Peer) -> None:
        await peer.reader.read(1)
        await peer.send(answer_bytes(400, b"what?"))

    async with serving(handle) as port, reaching(f"https://127.0.0.1:{port}") as upstream:
        error = await _failure(upstream)
    assert isinstance(error, ConnectFailed)
    assert str(error) == f"no connection to 127.0.0.1:{port}: TLS failed"


async def test_the_process_takes_authorities_from_ssl_cert_file(authority: Path) -> None:
    async with _tls_tinybird(authority, "localhost") as (tinybird, port):
        env = environment(f"https://localhost:{port}", SSL_CERT_FILE=str(authority / "ca.pem"))
        async with running_process(env) as proxy:
            assert (await post(proxy.port, "name=hits&wait=true")).status == 200
        async with running_process({**env, "SSL_CERT_FILE": "/dev/null"}) as proxy:
            assert (await post(proxy.port)).status == 202
            status = await proxy.status_until(lambda status: bool(status["destinations"][0]["reason"]))
            assert "SSL_CERT_FILE" in status["destinations"][0]["reason"]
            assert status["destinations"][0]["state"] == "failing"
            assert status["ledger"]["ambiguous"] == 0
    assert len(tinybird.asked) == 1


# Proxies.


class ConnectProxy:
    """An HTTP proxy: CONNECT and absolute-form requests. ``status`` other than 200 refuses the first."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.asked: list[Asked] = []

    async def handle(self, peer: Peer) -> None:
        """Serve one connection."""
        head = await asked(peer)
        self.asked.append(head)
        if head.method != "CONNECT":
            await peer.reader.readexactly(int(head["Content-Length"]))
            await peer.send(answer_bytes(200, COUNTS))
            return
        await peer.send(b"HTTP/1.1 %d Whatever\r\n\r\n" % self.status)
        if self.status != 200:
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", int(head.target.rpartition(":")[2]))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(peer.reader, writer))
                group.create_task(_pump(reader, peer.writer))
        finally:
            writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while piece := await source.read(65536):
            sink.write(piece)
            await sink.drain()
    except ConnectionError:
        pass
    finally:
        sink.close()


async def test_https_goes_through_the_proxy_and_stays_between_us_and_tinybird(authority: Path) -> None:
    proxy = ConnectProxy()
    trusting = ssl.create_default_context(cafile=str(authority / "ca.pem"))
    async with _tls_tinybird(authority, "localhost") as (tinybird, port), serving(proxy.handle) as proxy_port:
        origin, proxies = f"https://localhost:{port}", {"https": f"http://user:word@127.0.0.1:{proxy_port}"}
        async with reaching(origin, tls=trusting, proxies=proxies) as upstream:
            assert (await send(upstream)).status == 200
        async with reaching(origin, tls=trusting, proxies=proxies, no_proxy=("localhost",)) as upstream:
            assert (await send(upstream)).status == 200
    assert [(head.method, head.target) for head in proxy.asked] == [("CONNECT", f"localhost:{port}")]
    assert proxy.asked[0]["Proxy-Authorization"] == "Basic dXNlcjp3b3Jk"
    assert proxy.asked[0].all("Authorization") == [], "the token is for Tinybird"
    assert [head.all("Proxy-Authorization") for head, _ in tinybird.asked] == [[], []]


async def test_http_goes_through_its_proxy_as_a_whole() -> None:
    proxy = ConnectProxy()
    async with serving(proxy.handle) as port:
        proxies = {"http": f"http://127.0.0.1:{port}", "https": "http://127.0.0.1:1"}
        async with reaching("http://tinybird.invalid:8080", proxies=proxies) as upstream:
            assert (await send(upstream)).status == 200
    (head,) = proxy.asked
    assert (head.method, head.target) == ("POST", "http://tinybird.invalid:8080/v0/events?name=hits&wait=true")


async def test_a_proxy_may_be_named_without_a_scheme() -> None:
    proxy = ConnectProxy()
    async with (
        serving(proxy.handle) as port,
        reaching("http://tinybird.invalid", proxies={"http": f"127.0.0.1:{port}"}) as upstream,
    ):
        assert (await send(upstream)).status == 200
    assert len(proxy.asked) == 1


@pytest.mark.parametrize("status", [403, 407, 502])
async def test_a_proxy_that_refuses_is_told_as_that(status: int) -> None:
    async with (
        serving(ConnectProxy(status).handle) as port,
        reaching("https://localhost:9", proxies={"https": f"http://127.0.0.1:{port}"}) as upstream,
    ):
        error = await _failure(upstream)
    assert isinstance(error, ConnectFailed)
    assert str(error) == f"no connection to localhost:9: the HTTP proxy refused ({status})"


async def test_a_proxy_that_is_not_there_is_told_as_that() -> None:
    async def handle(_: Peer) -> None:
        return

    async with serving(handle) as port:
        pass
    for origin in ("https://localhost:9", "http://localhost:9"):
        proxies = dict.fromkeys(("http", "https"), f"http://user:word@127.0.0.1:{port}")
        async with reaching(origin, proxies=proxies) as upstream:
            error = await _failure(upstream)
        assert isinstance(error, ConnectFailed)
        assert str(error) == "no connection to localhost:9: the HTTP proxy: connection refused"


async def test_the_process_takes_its_proxy_from_the_environment(authority: Path) -> None:
    proxy = ConnectProxy()
    async with _tls_tinybird(authority, "localhost") as (tinybird, port), serving(proxy.handle) as proxy_port:
        env = environment(
            f"https://localhost:{port}",
            SSL_CERT_FILE=str(authority / "ca.pem"),
            HTTPS_PROXY=f"http://127.0.0.1:{proxy_port}",
        )
        for no_proxy, tunnels in (("", 1), ("localhost", 1)):
            async with running_process({**env, "NO_PROXY": no_proxy}) as process:
                assert (await post(process.port, "name=hits&wait=true")).status == 200
            assert len(proxy.asked) == tunnels
    assert len(tinybird.asked) == 2


# Connections.


class Counting(PlainTinybird):
    """Counts connections."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = 0
        self.open = 0

    async def handle(self, peer: Peer) -> None:
        """Serve one connection."""
        self.opened += 1
        self.open += 1
        try:
            await super().handle(peer)
        finally:
            self.open -= 1


@pytest.fixture
def counting() -> Counting:
    return Counting()


async def test_a_connection_is_used_again_and_not_for_longer_than_a_minute(counting: Counting) -> None:
    clock = Clock()
    async with serving(counting.handle) as port:
        async with reaching(f"http://127.0.0.1:{port}", now=clock) as upstream:
            for _ in range(3):
                await send(upstream)
            assert counting.opened == 1
            clock.now += SESSION_AGE_MAX_S - 0.1
            await send(upstream)
            assert counting.opened == 1
            clock.now += 0.1
            await send(upstream)
            assert counting.opened == 2
            await until(lambda: counting.open == 1)
        await until(lambda: counting.open == 0)


async def test_a_request_under_way_keeps_its_old_connection_to_the_end() -> None:
    clock, go_on, arrived = Clock(), asyncio.Event(), asyncio.Event()
    opened: list[Peer] = []

    async def handle(peer: Peer) -> None:
        opened.append(peer)
        while True:
            await asked(peer)
            await peer.reader.readexactly(len(BODY))
            if len(opened) == 1:
                arrived.set()
                await go_on.wait()
            await peer.send(answer_bytes(200, COUNTS))

    async with serving(handle) as port, reaching(f"http://127.0.0.1:{port}", now=clock) as upstream:
        old = asyncio.create_task(send(upstream))
        await arrived.wait()
        clock.now += SESSION_AGE_MAX_S
        assert (await send(upstream)).status == 200
        assert len(opened) == 2
        go_on.set()
        assert (await old).status == 200
        await until(lambda: opened[0].reader.at_eof())
        assert not opened[1].reader.at_eof()


async def test_closing_twice_or_unused_is_fine_and_closes_everything(counting: Counting) -> None:
    async with serving(counting.handle) as port, reaching(f"http://127.0.0.1:{port}") as upstream:
        await upstream.close()
        await send(upstream)
        await upstream.close()
        await upstream.close()
        await until(lambda: counting.open == 0)


async def test_a_post_on_a_connection_that_was_closed_meanwhile_is_not_repeated_by_itself() -> None:
    bodies = 0

    async def handle(peer: Peer) -> None:
        nonlocal bodies
        for _ in range(2):
            await asked(peer)
            await peer.reader.readexactly(len(BODY))
            bodies += 1
            if bodies == 1:
                await peer.send(answer_bytes(200, COUNTS))

    async with serving(handle) as port, reaching(f"http://127.0.0.1:{port}") as upstream:
        assert (await send(upstream)).status == 200
        assert isinstance(await _failure(upstream), ConnectionBroken)
    assert bodies == 2
