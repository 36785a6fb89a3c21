"""Every other path: passed on to Tinybird as it came and answered as Tinybird answers, or refused with a reason."""

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.proxy.running import (
    TOKEN,
    Answer,
    Asked,
    Peer,
    answer_bytes,
    ask,
    asked,
    chunked,
    connected,
    environment,
    request,
    running_process,
    running_proxy,
    running_world,
    serving,
    until,
)

from tinybird_proxy.app.run import Proxy

OURS = "alpha name=alpha\nbeta allow=hits\n"


class Recorder:
    """Answers each request with ``answer`` and keeps what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.bodies: list[bytes] = []

    async def handle(self, peer: Peer) -> None:
        """Serve one connection."""
        while True:
            head = await asked(peer)
            self.asked.append(head)
            body = b""
            if head.all("Content-Length"):
                body = await peer.reader.readexactly(int(head["Content-Length"]))
            elif head.all("Transfer-Encoding"):
                while piece := await peer.piece():
                    body += piece
            self.bodies.append(body)
            await peer.send(self.answer)


@asynccontextmanager
async def passing(handle: Callable[[Peer], Awaitable[None]], **env: str | None) -> AsyncIterator[tuple[Proxy, int]]:
    """A proxy for clients' own tokens before a server that does what ``handle`` does; and the server's port."""
    async with serving(handle) as port:
        url = f"http://127.0.0.1:{port}"
        async with running_proxy(environment(url, **{"TINYBIRD_TOKEN": None, **env})) as proxy:
            yield proxy, port


async def _exchange(
    answer: bytes, sent: bytes, *, method: str = "GET", **env: str | None
) -> tuple[Answer, Asked, bytes]:
    recorder = Recorder(answer)
    async with passing(recorder.handle, **env) as (proxy, _), connected(proxy.port) as peer:
        await peer.send(sent)
        got = await peer.answer(method=method)
    (head,), (body,) = recorder.asked, recorder.bodies
    return got, head, body


# There.


async def test_methods_and_bodies_go_through() -> None:
    recorder = Recorder(answer_bytes(200, b'{"data":[]}'))
    async with passing(recorder.handle) as (proxy, _), connected(proxy.port) as peer:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            for body in (None, b"", b"select 1"):
                await peer.send(request("/v0/sql", body, method=method, token="clients"))
                answer = await peer.answer()
                assert (answer.status, answer.body) == (200, b'{"data":[]}')
                head, arrived = recorder.asked[-1], recorder.bodies[-1]
                assert (head.method, head.target, arrived) == (method, "/v0/sql", body or b"")
                assert head["Authorization"] == "Bearer clients"
    assert len(recorder.asked) == 18


TARGETS = (
    "/",
    "/v0/pipes/top_pages.json?date=2026-01-01&limit=10",
    "/v0/pipes/a%2Fb%2fc.json?q=a+b%20c&d=%2B%26%3D",
    "/v0/sql?q=SELECT%20%27%C3%A9%F0%9F%90%A6%27",
    "/v0//datasources///x",
    "/v0/../v1/./workspace/..",
    "/v0/%2e%2e/x",
    "/a;b=c;d/e,f:g@h",
    "/a?b?c/d?",
    "/a?&&b&=c&b=",
    "/a?b=1&b=2&B=3",
    "/%7Euser/~user/%41",
    "/a'(b)!*$/-._~",
    "/a%zz?b=%",
    '/a|b\\c^d`e{f}[g]"h<i>?j|k\\l^m`n{o}[p]"q<r>',
    "/v0/events/../sql",
    "/v0/%65vents?name=hits",
    "/x?" + "a" * 8000,
)


async def test_path_and_query_go_through_unchanged() -> None:
    recorder = Recorder(answer_bytes(200))
    async with passing(recorder.handle) as (proxy, _), connected(proxy.port) as peer:
        for target in TARGETS:
            await peer.send(request(target, method="GET"))
            assert (await peer.answer()).status == 200
    assert [head.target for head in recorder.asked] == [*TARGETS]


@pytest.mark.parametrize("target", ["/a#b", "/a?b#c?d", "/a#", "/v0/events#?name=hits"])
async def test_a_fragment_which_would_get_lost_is_refused(target: str) -> None:
    recorder = Recorder(answer_bytes(200))
    async with passing(recorder.handle) as (proxy, _):
        assert (await ask(proxy.port, target, method="GET")).status == 400
    assert recorder.asked == []


async def test_headers_go_through_and_those_of_the_connection_do_not() -> None:
    headers = [
        ("Host", "tinybird.shop.example"),
        ("User-Agent", "tb-cli/1.2"),
        ("Accept", "application/json"),
        ("Accept-Encoding", "gzip, br"),
        ("Cookie", "a=1; b=2"),
        ("X-Many", "one"),
        ("X-Many", "two"),
        ("x-odd-CASE", "\u00fc"),
        ("X-Empty", ""),
        ("Connection", "keep-alive, X-Private"),
        ("Connection", "x-other"),
        ("X-Private", "secret"),
        ("X-Other", "secret"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authorization", "Basic secret"),
        ("Proxy-Connection", "keep-alive"),
        ("TE", "trailers"),
        ("Upgrade", "h2c"),
        ("Expect", "100-continue"),
        ("X-Forwarded-For", "10.0.0.1"),
    ]
    recorder = Recorder(answer_bytes(200))
    async with passing(recorder.handle) as (proxy, port):
        assert (await ask(proxy.port, "/v0/pipes", method="GET", headers=headers)).status in (100, 200)
        await until(lambda: bool(recorder.asked))
    (head,) = recorder.asked
    assert sorted(head.headers) == sorted(
        [
            ("Host", f"127.0.0.1:{port}"),
            ("User-Agent", "tb-cli/1.2"),
            ("Accept", "application/json"),
            ("Accept-Encoding", "gzip, br"),
            ("Authorization", f"Bearer {TOKEN}"),
            ("Cookie", "a=1; b=2"),
            ("X-Many", "one"),
            ("X-Many", "two"),
            ("x-odd-CASE", "\u00fc".encode().decode("latin-1")),
            ("X-Empty", ""),
            ("X-Forwarded-For", "10.0.0.1"),
            ("X-Batch-Via", "proxy-1"),
        ]
    )


async def test_nothing_is_added_that_the_client_did_not_say() -> None:
    _, head, _ = await _exchange(answer_bytes(200), request("/v0/sql", b"select 1", token=None))
    added = {name for name, _ in head.headers} - {"Host", "Content-Length", "X-Batch-Via", "User-Agent"}
    assert added == set()


async def test_the_token_in_the_query_goes_through() -> None:
    _, head, _ = await _exchange(answer_bytes(200), request("/v0/pipes/x.json?token=clients", method="GET", token=None))
    assert head.target == "/v0/pipes/x.json?token=clients"
    assert head.all("Authorization") == []


async def test_an_encoded_body_stays_as_it_is_both_ways() -> None:
    there, back = gzip.compress(b"there" * 100), gzip.compress(b"back" * 100)
    reply = answer_bytes(200, back, ("Content-Encoding", "gzip"), ("Content-Type", "application/json"))
    answer, head, arrived = await _exchange(reply, request("/v0/x", there, headers={"Content-Encoding": "gzip"}))
    assert (arrived, head["Content-Encoding"], head["Content-Length"]) == (there, "gzip", str(len(there)))
    assert (answer.body, answer["Content-Encoding"], answer["Content-Length"]) == (back, "gzip", str(len(back)))


async def test_a_chunked_upload_stays_chunked_and_is_streamed() -> None:
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def handle(peer: Peer) -> None:
        head = await asked(peer)
        assert (head["Transfer-Encoding"], head.all("Content-Length")) == ("chunked", [])
        while piece := await peer.piece():
            arrived.put_nowait(piece)
        await peer.send(answer_bytes(201))

    async with passing(handle) as (proxy, _), connected(proxy.port) as peer:
        await peer.send(request("/v0/datasources", headers={"Transfer-Encoding": "chunked"}))
        for piece in (b"first", b"second"):
            await peer.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            async with asyncio.timeout(10):
                assert await arrived.get() == piece
        await peer.send(b"0\r\n\r\n")
        assert (await peer.answer()).status == 201


async def test_a_large_upload_and_a_large_answer_are_not_collected() -> None:
    size_bytes = 60_000_000
    piece = bytes(range(256)) * 4000

    async def handle(peer: Peer) -> None:
        head = await asked(peer)
        found = hashlib.sha256()
        left = int(head["Content-Length"])
        while left:
            got = await peer.reader.read(min(left, 1 << 20))
            found.update(got)
            left -= len(got)
        await peer.send(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Hash: %s\r\n\r\n" % (size_bytes, found.hexdigest().encode())
        )
        for start in range(0, size_bytes, len(piece)):
            await peer.send(piece[: size_bytes - start])

    async with serving(handle) as port:
        env = environment(f"http://127.0.0.1:{port}", TINYBIRD_TOKEN=None)
        async with running_process(env) as proxy, connected(proxy.port) as peer:
            before_bytes = proxy.peak_bytes
            await peer.send(request("/v0/x", headers={"Content-Length": str(size_bytes)}))
            there = hashlib.sha256()
            for start in range(0, size_bytes, len(piece)):
                there.update(piece[: size_bytes - start])
                await peer.send(piece[: size_bytes - start])
            answer = await peer.answer()
            assert answer["X-Hash"] == there.hexdigest()
            assert hashlib.sha256(answer.body).hexdigest() == there.hexdigest()
            assert proxy.peak_bytes - before_bytes < 24_000_000


async def test_a_server_that_does_not_read_makes_the_client_wait() -> None:
    may_read = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await asked(peer)
        peer.pause()
        await may_read.wait()

    size_bytes, sent_bytes = 64 * 1024 * 1024, 0
    async with passing(handle) as (proxy, _), connected(proxy.port) as peer:
        peer.writer.transport.set_write_buffer_limits(0)
        await peer.send(request("/v0/x", headers={"Content-Length": str(size_bytes)}))
        try:
            while sent_bytes < size_bytes:
                peer.writer.write(bytes(1 << 20))
                async with asyncio.timeout(1):
                    await peer.writer.drain()
                sent_bytes += 1 << 20
        except TimeoutError:
            pass
        assert sent_bytes < size_bytes
        peer.writer.transport.abort()
        may_read.set()


async def test_an_answer_that_comes_before_the_end_of_the_upload_is_passed_on() -> None:
    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.send(answer_bytes(413, b"too large", ("Connection", "close")))
        await peer.rest()

    async with passing(handle) as (proxy, _), connected(proxy.port) as peer, asyncio.TaskGroup() as group:
        size_bytes = 20_000_000
        await peer.send(request("/v0/x", headers={"Content-Length": str(size_bytes)}))
        group.create_task(peer.send(bytes(size_bytes)))
        answer = await peer.answer()
        assert (answer.status, answer.body) == (413, b"too large")


async def test_an_upload_slower_than_tinybird_may_be_is_not_cut_off() -> None:
    recorder = Recorder(answer_bytes(200))
    async with passing(recorder.handle, UPSTREAM_TIMEOUT="200ms") as (proxy, _), connected(proxy.port) as peer:
        await peer.send(request("/v0/x", headers={"Content-Length": "5"}))
        for byte in b"hello":
            await asyncio.sleep(0.12)
            await peer.send(bytes([byte]))
        assert (await peer.answer()).status == 200
    assert recorder.bodies == [b"hello"]


async def test_what_a_client_breaks_off_is_broken_off_for_tinybird_too() -> None:
    ends: asyncio.Queue[BaseException | bytes] = asyncio.Queue()

    async def handle(peer: Peer) -> None:
        await asked(peer)
        try:
            while piece := await peer.piece():
                ends.put_nowait(piece)
            ends.put_nowait(b"")
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            ends.put_nowait(error)

    async with passing(handle) as (proxy, _):
        async with connected(proxy.port) as peer:
            await peer.send(request("/v0/x", headers={"Transfer-Encoding": "chunked"}) + b"3\r\nabc\r\n")
            assert await asyncio.wait_for(ends.get(), 10) == b"abc"
            peer.writer.transport.abort()
        assert isinstance(await asyncio.wait_for(ends.get(), 10), BaseException), "it must not look like a whole body"


async def test_a_body_that_turns_out_not_to_be_http_is_refused_and_broken_off() -> None:
    ends: asyncio.Queue[BaseException | bytes] = asyncio.Queue()

    async def handle(peer: Peer) -> None:
        await asked(peer)
        try:
            while await peer.piece():
                pass
            ends.put_nowait(b"")
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            ends.put_nowait(error)

    async with passing(handle) as (proxy, _), connected(proxy.port) as peer:
        await peer.send(request("/v0/x", headers={"Transfer-Encoding": "chunked"}) + b"3\r\nabc\r\n")
        assert (await ask(proxy.port, "/v1/liveness", method="GET")).status == 200
        await peer.send(b"zz\r\n")
        answer = await peer.answer()
        assert (answer.status, answer.error) == (400, "the request is not valid HTTP")
        assert isinstance(await asyncio.wait_for(ends.get(), 10), BaseException)


async def test_a_body_of_which_nothing_comes_is_given_up_and_one_that_is_only_slow_is_not() -> None:
    async def handle(peer: Peer) -> None:
        await asked(peer)
        while await peer.piece():
            pass
        await peer.send(answer_bytes(200))

    async with passing(handle, BODY_TIMEOUT="500ms") as (proxy, _):
        async with connected(proxy.port) as peer:
            await peer.send(request("/v0/x", headers={"Transfer-Encoding": "chunked"}))
            for _ in range(20):
                await peer.send(b"1\r\na\r\n")
                await asyncio.sleep(0.05)  # longer in all than nothing may come
            await peer.send(b"0\r\n\r\n")
            assert (await peer.answer()).status == 200
        async with connected(proxy.port) as peer:
            await peer.send(request("/v0/x", headers={"Transfer-Encoding": "chunked"}) + b"3\r\nabc\r\n")
            answer = await peer.answer()
            assert (answer.status, answer["Connection"]) == (408, "close")
            assert answer.error.startswith("nothing of the body came for 0.5 s (BODY_TIMEOUT)")


async def test_a_connection_past_its_age_ends_with_what_is_passed_through_as_well() -> None:
    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.send(answer_bytes(200, b"whole"))

    async with passing(handle, KEEPALIVE_MAX_AGE="1s") as (proxy, _), connected(proxy.port) as peer:
        await asyncio.sleep(1.2)  # it may live for 1.1 s
        await peer.send(request("/v0/x", method="GET"))
        answer = await peer.answer()
        assert (answer.status, answer.body, answer["Connection"]) == (200, b"whole", "close")
        assert await peer.rest() == b""


@pytest.mark.parametrize("coding", ["gzip, chunked", "deflate, chunked"])
async def test_a_transfer_coding_that_the_proxy_would_drop_is_refused(coding: str) -> None:
    recorder = Recorder(answer_bytes(200))
    async with passing(recorder.handle) as (proxy, _), connected(proxy.port) as peer:
        await peer.send(request("/v0/x", headers={"Transfer-Encoding": coding}) + chunked(gzip.compress(b"{}")))
        answer = await peer.answer()
        assert answer.status in (400, 501)
        assert answer.error
    assert recorder.asked == []


# And back.


@pytest.mark.parametrize("status", [200, 201, 302, 404, 429, 503])
async def test_status_headers_and_body_come_back_as_they_are(status: int) -> None:
    reply = answer_bytes(
        status,
        b"plain text",
        ("Content-Type", "text/plain"),
        ("Location", "https://elsewhere.example/v0/sql"),
        ("Retry-After", "7"),
        ("X-RateLimit-Remaining", "0"),
        ("Set-Cookie", "a=1; Path=/"),
        ("Set-Cookie", "b=2, c=3"),
        ("Server", "Tinybird"),
        ("Date", "Mon, 01 Jan 2024 00:00:00 GMT"),
        ("ETag", '"x"'),
        ("Connection", "X-Private"),
        ("X-Private", "secret"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authenticate", "Basic"),
        ("Trailer", "X-T"),
    )
    answer, _, _ = await _exchange(reply, request("/v0/sql", method="GET"))
    assert (answer.status, answer.body) == (status, b"plain text")
    assert sorted((name.title(), value) for name, value in answer.headers) == sorted(
        [
            ("Content-Type", "text/plain"),
            ("Location", "https://elsewhere.example/v0/sql"),
            ("Retry-After", "7"),
            ("X-Ratelimit-Remaining", "0"),
            ("Set-Cookie", "a=1; Path=/"),
            ("Set-Cookie", "b=2, c=3"),
            ("Server", "Tinybird"),
            ("Date", "Mon, 01 Jan 2024 00:00:00 GMT"),
            ("Etag", '"x"'),
            ("Content-Length", "10"),
        ]
    )


async def test_no_type_and_no_name_is_made_up() -> None:
    answer, _, _ = await _exchange(answer_bytes(200, b"\0\1"), request("/v0/x", method="GET"))
    assert {name for name, _ in answer.headers} == {"Content-Length", "Date"}


@pytest.mark.parametrize(
    ("method", "reply"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nContent-Type: text/plain\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n'),
    ],
)
async def test_an_answer_without_a_body_has_none_and_the_connection_goes_on(method: str, reply: bytes) -> None:
    recorder = Recorder(reply)
    async with passing(recorder.handle) as (proxy, _), connected(proxy.port) as peer:
        for _ in range(2):
            await peer.send(request("/v0/x", method=method))
            answer = await peer.answer(method=method)
            assert answer.status == int(reply.split()[1])
            if method == "HEAD":
                assert answer["Content-Length"] == "1234"


async def test_an_answer_that_trickles_is_passed_on_as_it_comes() -> None:
    go_on: asyncio.Queue[bytes] = asyncio.Queue()

    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while piece := await go_on.get():
            await peer.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        await peer.send(b"0\r\n\r\n")

    async with passing(handle) as (proxy, _), connected(proxy.port) as peer:
        await peer.send(request("/v0/x", method="GET"))
        _, headers = await peer.head()
        assert ("Transfer-Encoding", "chunked") in headers
        for piece in (b"one", b"two", b""):
            go_on.put_nowait(piece)
            assert await peer.piece() == piece


BROKEN_OFF = {
    "with a length": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nhalf",
}


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("reply", BROKEN_OFF.values(), ids=BROKEN_OFF)
async def test_an_answer_that_tinybird_breaks_off_does_not_look_whole(
    reply: bytes, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.send(reply)

    async with passing(handle) as (proxy, _), connected(proxy.port) as peer:
        await peer.send(request("/v0/x", method="GET", version=version))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await peer.answer(method="GET")
    assert "broke off" in caplog.text


async def test_an_answer_that_turns_out_not_to_be_http_does_not_look_whole() -> None:
    go_on, gone = asyncio.Event(), asyncio.Event()

    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await go_on.wait()
        await peer.send(b"zz\r\n")
        await gone.wait()

    async with passing(handle, UPSTREAM_TIMEOUT="500ms") as (proxy, _), connected(proxy.port) as peer:
        await peer.send(request("/v0/x", method="GET"))
        await peer.head()
        assert await peer.piece() == b"half"
        go_on.set()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await peer.piece()
        gone.set()


async def test_an_answer_that_is_not_http_at_all_is_502() -> None:
    for reply in (b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n"):
        recorder = Recorder(reply)
        async with passing(recorder.handle) as (proxy, _):
            answer = await ask(proxy.port, "/v0/x", method="GET")
            assert answer.status == 502
            assert "127.0.0.1" in answer.error


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_answer_that_ends_with_its_connection_is_whole(version: str) -> None:
    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end")

    async with passing(handle) as (proxy, _), connected(proxy.port) as peer:
        await peer.send(request("/v0/x", method="GET", version=version))
        assert (await peer.answer(method="GET")).body == b"until the end"


async def test_a_client_that_leaves_in_the_middle_of_an_answer_is_no_fault_of_tinybirds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await asked(peer)
        await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                await peer.send(b"4000\r\n" + bytes(0x4000) + b"\r\n")
        finally:
            left.set()

    async with passing(handle) as (proxy, _):
        async with connected(proxy.port) as peer:
            await peer.send(request("/v0/x", method="GET"))
            await peer.head()
            peer.writer.transport.abort()
        async with asyncio.timeout(10):
            await left.wait()
        assert (await ask(proxy.port, "/v1/liveness", method="GET")).status == 200
    assert caplog.text == ""


@pytest.mark.parametrize("size_bytes", [8_000_000, 60_000_000])
async def test_a_client_that_takes_nothing_of_an_answer_is_cut_off(
    size_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    left = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await asked(peer)
        try:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size_bytes + bytes(size_bytes))
            await peer.rest()
        except ConnectionError:
            pass
        finally:
            left.set()

    async with serving(handle) as port:
        env = environment(f"http://127.0.0.1:{port}", TINYBIRD_TOKEN=None, BODY_TIMEOUT="300ms")
        async with running_proxy(env) as proxy, connected(proxy.port) as peer:
            peer.pause()
            await peer.send(request("/v0/x", method="GET"))
            async with asyncio.timeout(10):
                await left.wait()
            assert "took nothing of an answer" in caplog.text


async def test_a_tinybird_that_cannot_be_reached_or_does_not_answer_is_told_in_a_sentence() -> None:
    async def hang_up(peer: Peer) -> None:
        await asked(peer)

    async def never(peer: Peer) -> None:
        await asked(peer)
        await peer.rest()

    async with passing(hang_up) as (proxy, _):
        answer = await ask(proxy.port, "/v0/x?token=secret", method="POST", body=b"x")
        assert answer.status == 502
        assert "secret" not in answer.error
        assert "127.0.0.1" in answer.error
    async with passing(never, UPSTREAM_TIMEOUT="200ms") as (proxy, _):
        answer = await ask(proxy.port, "/v0/x", method="GET")
        assert (answer.status, "within 0.2 s" in answer.error) == (504, True)
    async with serving(never) as port:
        pass
    async with running_proxy(environment(f"http://127.0.0.1:{port}", TINYBIRD_TOKEN=None)) as proxy:
        answer = await ask(proxy.port, "/v0/x", method="GET")
        assert answer.status == 502
        assert "refused" in answer.error
        assert proxy.reporter.snapshot().meters.passed_through == {"502": 1}


async def test_a_request_that_is_not_safe_to_repeat_is_never_repeated() -> None:
    heads: list[Asked] = []

    async def handle(peer: Peer) -> None:
        heads.append(await asked(peer))
        if len(heads) == 1:
            await peer.send(answer_bytes(200))
            heads.append(await asked(peer))  # and no answer: a connection that was kept alive for too long

    async with passing(handle) as (proxy, _):
        assert (await ask(proxy.port, "/v0/first", method="GET")).status == 200
        assert (await ask(proxy.port, "/v0/second", b"body")).status == 502
    assert [head.target for head in heads] == ["/v0/first", "/v0/second"]


async def test_a_put_on_a_stale_connection_never_arrives_as_another_body() -> None:
    bodies: list[bytes] = []

    async def handle(peer: Peer) -> None:
        first = await asked(peer)
        if first.target == "/v0/first":
            await peer.send(answer_bytes(200))
            await asked(peer)
            await peer.piece()
            return  # in the middle of the body
        body = b""
        while piece := await peer.piece():
            body += piece
        bodies.append(body)
        await peer.send(answer_bytes(200))

    async with passing(handle) as (proxy, _):
        assert (await ask(proxy.port, "/v0/first", method="GET")).status == 200
        async with connected(proxy.port) as peer:
            await peer.send(request("/v0/put", method="PUT", headers={"Transfer-Encoding": "chunked"}))
            await peer.send(b"5\r\nfirst\r\n")
            await asyncio.sleep(0)
            await peer.send(b"6\r\nsecond\r\n0\r\n\r\n")
            answer = await peer.answer()
    assert answer.status == 502 or bodies == [b"firstsecond"]


# Not at all.


@pytest.mark.parametrize("env", [{}, {"AUTHORIZATION_TOKEN": OURS}])
async def test_with_a_token_of_ours_nothing_passes_unless_it_is_said(env: dict[str, str]) -> None:
    async with running_world(**env) as world:
        for token in (None, "alpha", "other"):
            answer = await ask(world.port, "/v0/datasources", method="GET", token=token)
            assert answer.status == 404
            assert "PASS_THROUGH=true" in answer.error
        assert [*world.tinybird.requests] == []


async def test_pass_through_sends_the_clients_token_and_never_ours() -> None:
    recorder = Recorder(answer_bytes(200))
    async with passing(recorder.handle, TINYBIRD_TOKEN=TOKEN, PASS_THROUGH="true") as (proxy, _):
        assert (await ask(proxy.port, "/v0/x", method="GET", token="clients")).status == 200
        assert (await ask(proxy.port, "/v0/x", method="GET", token=None)).status == 200
    assert [head.all("Authorization") for head in recorder.asked] == [["Bearer clients"], []]


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/v0/x", [("Authorization", "Bearer alpha")]),
        ("/v0/x", [("Authorization", "bearer  alpha ")]),
        ("/v0/x?token=alpha", []),
        ("/v0/x?a=b&token=%61lpha&c=d", []),
        ("/v0/x?token=alpha", [("Authorization", "Bearer clients")]),
        ("/v0/x?token=clients", [("Authorization", "Bearer alpha")]),
        ("/v0/x?token=alpha&token=clients", []),
        ("/v0/x?token=clients&token=alpha", []),
        ("/v0/x?token=alpha&q=%ff", []),
        ("/v0/x?token=beta&" + "&".join(f"p{n}=" for n in range(300)), []),
        ("/v0/x?to%6ben=alpha", []),
    ],
)
async def test_a_token_of_our_clients_goes_nowhere(target: str, headers: Sequence[tuple[str, str]]) -> None:
    recorder = Recorder(answer_bytes(200))
    env = {"TINYBIRD_TOKEN": TOKEN, "PASS_THROUGH": "true", "AUTHORIZATION_TOKEN": OURS}
    async with passing(recorder.handle, **env) as (proxy, _):
        answer = await ask(proxy.port, target, method="GET", token=None, headers=headers)
        assert answer.status == 404
        assert "the proxy's, not Tinybird's" in answer.error
        for other in (None, "clients"):
            assert (await ask(proxy.port, "/v0/x", method="GET", token=other)).status == 200
    assert len(recorder.asked) == 2


async def test_a_request_that_passed_this_very_proxy_is_a_loop() -> None:
    recorder = Recorder(answer_bytes(200))
    async with passing(recorder.handle) as (proxy, _):
        answer = await ask(proxy.port, "/v0/x", method="GET", headers={"X-Batch-Via": "other, proxy-1"})
        assert answer.status == 508
        assert "TINYBIRD_URL leads back to it" in answer.error
        assert (await ask(proxy.port, "/v0/x", method="GET", headers={"x-batch-via": "other"})).status == 200
    assert [head["X-Batch-Via"] for head in recorder.asked] == ["other, proxy-1"]


async def test_it_goes_on_during_a_drain() -> None:
    async with running_world(TINYBIRD_TOKEN=None) as world:
        world.proxy.availability.begin_drain()
        answer = await ask(world.port, "/v0/datasources", method="GET")
        assert answer.status == 200
        assert json.loads(answer.body)["datasources"] == []


async def test_what_the_emulated_tinybird_gets_is_what_was_sent() -> None:
    async with running_world(TINYBIRD_TOKEN=None) as world:
        body = gzip.compress(b"x" * 100_000)
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        answer = await ask(world.port, "/emulator/echo?a=%C3%A9", body, headers=headers)
        echoed: dict[str, Any] = json.loads(answer.body)
    assert (echoed["method"], echoed["query"]) == ("POST", {"a": "\u00e9"})
    assert echoed["body_sha256"] == hashlib.sha256(body).hexdigest()
    assert echoed["headers"]["Content-Encoding"] == "gzip"
