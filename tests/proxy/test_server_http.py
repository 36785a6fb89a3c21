"""The public port byte by byte: what is HTTP and what is not, what could be read in two ways, and connections.

One proxy, a process of its own as in production, serves the whole module.
"""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from tests.proxy.running import (
    DEADLINE_S,
    TOKEN,
    ProxyProcess,
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

from tinybird_proxy import __version__
from tinybird_proxy.emulator import Emulator
from tinybird_proxy.server.http import ConnectionLimits, HttpServer

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url)) as proxy:
        yield Running(proxy, tinybird)
        assert await proxy.stop() == 0
        # Whatever clients do, it is no trouble of ours.
        assert [line for line in proxy.lines if line["level"] != "info"] == []


EVENTS = b"POST /v0/events?name=never HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n"
NOT_HTTP = {
    "not a request at all": b"GARBAGE\r\n\r\n",
    "TLS on a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
    "HTTP/2 without an upgrade": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a version that there never was": b"GET /v1/liveness HTTP/1.2\r\nHost: localhost\r\n\r\n",
    "a method in small letters": b"post /v0/events?name=never HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no Host": b"POST /v0/events?name=never HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
    "a header without a colon": EVENTS + b"Nonsense\r\n\r\n",
    "a NUL in a header": EVENTS + b"X-A: a\0b\r\nContent-Length: 2\r\n\r\n{}",
}
LARGE = 40_000
TOO_LARGE = {
    "a target": b"GET /" + b"a" * LARGE + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a header's value": EVENTS + b"X-A: " + b"a" * LARGE + b"\r\n\r\n",
    "a header's name": EVENTS + b"a" * LARGE + b": a\r\n\r\n",
    "headers that are small, but not together": EVENTS + (b"X-A: " + b"a" * 1000 + b"\r\n") * 40 + b"\r\n",
    "a head without an end": EVENTS + (b"X-A: " + b"a" * 1000 + b"\r\n") * 40,
    "a line without an end": b"POST /" + b"a" * LARGE,
    "spaces without an end": EVENTS + b"X-A:" + b" " * LARGE,
}
HEAD_TOO_LARGE = (
    "the head of the request (its first line and its headers) is larger than 32768 bytes (MAX_HEADER_BYTES)"
)
# Two servers in a row could disagree about where such a request ends.
SMUGGLED = {
    "a length and chunks": b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "the other way round": b"Transfer-Encoding: chunked\r\nContent-Length: 12\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
    "two lengths that are the same": b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a list of lengths": b"Content-Length: 2, 2\r\n\r\n{}",
    "a signed length": b"Content-Length: +2\r\n\r\n{}",
    "a negative length": b"Content-Length: -2\r\n\r\n{}",
    "a length in hexadecimal": b"Content-Length: 0x2\r\n\r\n{}",
    "an empty length": b"Content-Length: \r\n\r\n{}",
    "a length beyond any machine": b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "an encoding that only resembles": b"Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunked, but not at last": b"Transfer-Encoding: chunked, identity\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a space before the colon": b"Content-Length : 2\r\n\r\n{}",
    "a folded header": b"Content-Length:\r\n 2\r\n\r\n{}",
    "a bare line feed": b"X-A: a\nContent-Length: 2\r\n\r\n{}",
    "a chunk size that is no number": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk size with 0x": b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "a signed chunk size": b"Transfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n",
    "a chunk longer than it says": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}}\r\n0\r\n\r\n",
    "a chunk size that overflows": b"Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\n{}\r\n0\r\n\r\n",
    "a bare line feed after a chunk": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\n0\r\n\r\n",
}


@pytest.mark.parametrize("sent", NOT_HTTP.values(), ids=NOT_HTTP)
async def test_what_is_not_http_is_answered_with_400_and_json(world: Running, sent: bytes) -> None:
    async with connected(world.port) as peer:
        await peer.send(sent)
        answer = await peer.answer()
        assert (answer.status, answer.error) == (400, "the request is not valid HTTP")
        assert await peer.rest() == b""


@pytest.mark.parametrize("sent", TOO_LARGE.values(), ids=TOO_LARGE)
@pytest.mark.parametrize("cut", [None, 7, 30_000])
async def test_a_head_that_is_too_large_is_refused_with_the_option_that_says_so(
    world: Running, sent: bytes, cut: int | None
) -> None:
    async with connected(world.port) as peer:
        await peer.send(request("/v0/events?name=large_heads", b"{}"))
        assert (await peer.answer()).status == 202
        for piece in (sent[:cut], sent[cut:] if cut else b""):
            await peer.send(piece)
            await world.proxy.status()
        answer = await peer.answer()
        assert (answer.status, answer.error) == (431, HEAD_TOO_LARGE)
        assert await peer.rest() == b""


async def test_too_many_headers_are_refused_with_their_number(world: Running) -> None:
    async with connected(world.port) as peer:
        await peer.send(EVENTS + b"X-A: a\r\n" * 300 + b"\r\n")
        answer = await peer.answer()
        assert (answer.status, answer.error) == (431, "the request has more than 128 headers")
        assert await peer.rest() == b""


async def test_a_head_just_below_the_limit_is_taken_with_a_body_of_any_size(world: Running) -> None:
    head = EVENTS.replace(b"name=never", b"name=large_heads").replace(b"Bearer x", f"Bearer {TOKEN}".encode())
    body = b'{"text":"%s"}' % (b"x" * 100_000)
    head += b"Content-Length: %d\r\nX-A: " % len(body)
    head += b"a" * (32_768 - len(head) - 4) + b"\r\n\r\n"
    async with connected(world.port) as peer:
        for _ in range(2):
            await peer.send(head + body)
            assert (await peer.answer()).status == 202


async def test_a_client_that_still_sends_its_head_hears_why_it_is_not_taken(world: Running) -> None:
    async with connected(world.port) as peer:
        with suppress(ConnectionError):
            await peer.send(EVENTS + b"X-A: " + b"a" * 2_000_000)
        assert (await peer.answer()).status == 431


async def test_what_is_refused_behind_requests_takes_none_of_their_answers_away(world: Running) -> None:
    async with connected(world.port) as peer:
        good = request("/v0/events?name=large_heads", b"{}")
        await peer.send(good * 3 + TOO_LARGE["headers that are small, but not together"] + good)
        assert [(await peer.answer()).status for _ in range(4)] == [202, 202, 202, 431]
        assert await peer.rest() == b""


@pytest.mark.parametrize("rest", SMUGGLED.values(), ids=SMUGGLED)
async def test_a_request_that_could_be_read_in_two_ways_is_refused(world: Running, rest: bytes) -> None:
    async with connected(world.port) as peer:
        await peer.send(EVENTS + rest + request("/v0/events?name=never", b'{"smuggled":1}'))
        answer = await peer.answer()
        assert answer.status == 400
        assert answer.error
        assert await peer.rest() == b"", "one answer only, and then the end"
    assert await world.tinybird.rows("never") == []


@pytest.mark.parametrize("first", [b"", b"2\r\n{}\r\n", b"11170\r\n" + b" " * 0x11170 + b"\r\n"])
async def test_a_body_that_turns_out_not_to_be_http_later_on_is_refused_as_well(world: Running, first: bytes) -> None:
    async with connected(world.port) as peer:
        await peer.send(EVENTS + b"Transfer-Encoding: chunked\r\n\r\n" + first)
        await world.proxy.status()  # so that it has read as far as that
        await peer.send(b"zz\r\n")
        answer = await peer.answer()
        assert (answer.status, answer.error) == (400, "the request is not valid HTTP")
        assert answer["Connection"] == "close"
    await _nothing_is_reserved(world)
    assert await world.tinybird.rows("never") == []


async def _nothing_is_reserved(world: Running) -> None:
    async def asked() -> bool:
        return (
            b"\ntinybird_proxy_receiving_bytes 0.0\n"
            in (await ask(world.proxy.admin_port, "/metrics", method="GET")).body
        )

    await until(asked)


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten_silently(world: Running) -> None:
    async with connected(world.port) as peer:
        await peer.send(request("/v0/events?name=never", headers={"Content-Length": "1000000"}) + b"{" * 200_000)

        async def is_reserved() -> bool:
            page = (await ask(world.proxy.admin_port, "/metrics", method="GET")).body
            return b"\ntinybird_proxy_receiving_bytes 1e+06\n" in page

        await until(is_reserved)
        peer.writer.transport.abort()
    await _nothing_is_reserved(world)
    status = await world.proxy.status()
    assert status["requests"]["waiting"] == 0
    assert await world.tinybird.rows("never") == []


# Connections.


async def test_answers_to_pipelined_requests_come_in_order_and_their_rows_arrive(world: Running) -> None:
    bodies = [b"\n".join([b'{"pipelined":%d}' % n] * (n % 4)) for n in range(200)]
    bodies[50] = b'{"large":"%s"}' % (b"x" * 300_000)
    sent = [request("/v0/events?name=pipelined", body) for body in bodies]
    async with connected(world.port) as peer, asyncio.TaskGroup() as group:
        group.create_task(peer.send(b"".join(sent)))
        for n in range(len(bodies)):
            answer = await peer.answer()
            expected = {"successful_rows": 1 if n == 50 else n % 4, "quarantined_rows": 0}
            assert (answer.status, answer.json()) == (202, expected)
    rows = [row for body in bodies for row in body.split(b"\n") if row]
    assert sorted(await world.tinybird.wait_for_rows("pipelined", len(rows))) == sorted(rows)


CHUNKED = {"Transfer-Encoding": "chunked"}


@pytest.mark.parametrize("cut", [None, 1, 2, 3, 4, 5])
async def test_a_connection_goes_on_after_chunks(world: Running, cut: int | None) -> None:
    sent = request("/v0/events?name=chunks", headers=CHUNKED) + chunked(b'{"n":', b"1}", b"\n" * 300_000)
    async with connected(world.port) as peer:
        for _ in range(3):
            await peer.send(sent[: -cut if cut else None])
            if cut:
                await world.proxy.status()
                await peer.send(sent[-cut:])
            answer = await peer.answer()
            assert (answer.status, answer.json()["successful_rows"]) == (202, 1)
            assert "Connection" not in answer


async def test_what_comes_close_behind_chunks_is_not_answered_and_the_answer_says_so(world: Running) -> None:
    # Where such a body ends and what comes next is one piece to aiohttp, which mixes up what stands there.
    sent = request("/v0/events?name=chunks", headers=CHUNKED) + chunked(b"{}")
    for behind in (request("/v0/events?name=never", b"{}"), sent.replace(b"chunks", b"never_"), b"POST /v0"):
        async with connected(world.port) as peer:
            await peer.send(request("/v0/events?name=chunks", b"{}") + sent + behind)
            assert (await peer.answer()).status == 202
            answer = await peer.answer()
            assert (answer.status, answer["Connection"]) == (202, "close")
            assert await peer.rest() == b""
    assert await world.tinybird.rows("never") == []


@pytest.mark.parametrize("together", [True, False])
async def test_a_trailer_is_no_header_of_the_next_request(world: Running, together: bool) -> None:
    trailer = b"X-Nothing: x\r\nContent-Encoding: nonsense\r\n\r\n"
    first = request("/v0/events?name=trailers", headers=CHUNKED) + chunked(b"{}")[:-2] + trailer
    async with connected(world.port) as peer:
        for _ in range(2):
            if together:
                await peer.send(first)
            else:
                await peer.send(first[:-80])
                await world.proxy.status()
                await peer.send(first[-80:])
            assert (await peer.answer()).status == 202
            await peer.send(request("/v0/events?name=trailers", b"{}"))
            assert (await peer.answer()).status == 202, "415 would mean that it was taken for encoded"
    async with connected(world.port) as peer:
        await peer.send(first + request("/v0/events?name=trailers", b"{}"))
        assert (await peer.answer()).status == 202
        assert await peer.rest() == b""


async def test_a_head_that_comes_byte_by_byte_is_one_request(world: Running) -> None:
    async with connected(world.port) as peer:
        for byte in request("/v0/events?name=slow", b'{"slow":1}'):
            await peer.send(bytes([byte]))
        assert (await peer.answer()).status == 202
    assert await world.tinybird.wait_for_rows("slow", 1) == [b'{"slow":1}']


async def test_a_connection_stays_open_after_answers_and_most_refusals(world: Running) -> None:
    async with connected(world.port) as peer:
        for query, body, status in (
            ("name=kept", b"{}", 202),
            ("name=kept", b"not json", 400),
            ("", b"{}", 400),
            ("name=kept&ack=disk", b"{}", 400),
            ("name=kept", b"{}", 202),
        ):
            await peer.send(request(f"/v0/events?{query}", body))
            answer = await peer.answer()
            assert answer.status == status
            assert "Connection" not in answer
        await peer.send(request("/v0/events?name=kept", b"{}", headers={"Connection": "close"}))
        answer = await peer.answer()
        assert (answer.status, answer["Connection"]) == (202, "close")
        assert await peer.rest() == b""


async def test_http_1_0_is_answered_in_kind(world: Running) -> None:
    async with connected(world.port) as peer:
        await peer.send(request("/v0/events?name=old", b'{"old":1}', version="1.0"))
        answer = await peer.answer()
        assert (answer.version, answer.status) == ("HTTP/1.0", 202)
        assert answer.json() == {"successful_rows": 1, "quarantined_rows": 0}
        assert await peer.rest() == b""
    async with connected(world.port) as peer:
        for _ in range(2):
            await peer.send(
                request("/v0/events?name=old", b'{"old":2}', version="1.0", headers={"Connection": "keep-alive"})
            )
            answer = await peer.answer()
            assert (answer.status, answer["Connection"]) == (202, "keep-alive")
    assert len(await world.tinybird.wait_for_rows("old", 3)) == 3


async def test_head_is_answered_without_a_body(world: Running) -> None:
    async with connected(world.port) as peer:
        for target, status in (("/v1/liveness", 200), ("/v0/events?name=x", 405), ("/elsewhere", 404)):
            await peer.send(request(target, method="HEAD"))
            answer = await peer.answer(method="HEAD")
            assert answer.status == status
            assert int(answer["Content-Length"]) > 0
        await peer.send(request("/v0/events?name=head", b"{}"))
        assert (await peer.answer()).status == 202, "nothing of the bodies above was sent"


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
async def test_an_offer_to_upgrade_is_declined_by_answering(world: Running, protocol: str) -> None:
    headers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": protocol, "HTTP2-Settings": "AAMAAABkAAQAAP__"}
    head = request(f"/v0/events?name={protocol}", headers={**headers, "Content-Length": "11"})
    for pieces in ([head + b'{"first":1}'], [head, b'{"later":1}']):
        async with connected(world.port) as peer:
            for piece in pieces:
                await peer.send(piece)
                await world.proxy.status()
            answer = await peer.answer()
            assert (answer.status, answer["Connection"]) == (202, "close")
            assert await peer.rest() == b""
    assert await world.tinybird.wait_for_rows(protocol, 2) == [b'{"first":1}', b'{"later":1}']


@pytest.mark.parametrize("target", ["example.com:443", "/v0/events?name=never"])
async def test_connect_opens_no_tunnel(world: Running, target: str) -> None:
    answer = await ask(world.port, target, method="CONNECT")
    assert answer.status in (400, 405)
    assert answer.error


async def test_a_client_that_does_not_read_its_answers_is_not_answered_without_end(world: Running) -> None:
    # A preflight's answer repeats what was asked for, so it is as large as the request.
    asking = request("/v0/events", method="OPTIONS", headers={"Access-Control-Request-Headers": "x" * 8000})
    sent_bytes, limit_bytes = 0, 64 * 1024 * 1024
    before_bytes = world.proxy.peak_bytes
    async with connected(world.port) as peer:
        peer.writer.transport.set_write_buffer_limits(0)
        peer.pause()
        with suppress(TimeoutError):
            while sent_bytes < limit_bytes:
                peer.writer.write(asking * 16)
                async with asyncio.timeout(1):
                    await peer.writer.drain()
                sent_bytes += 16 * len(asking)
        assert sent_bytes < limit_bytes, "everything was read, though no answer was"
        assert (await ask(world.port, "/v1/liveness", method="GET")).status == 200
        peer.writer.transport.abort()
    assert world.proxy.peak_bytes - before_bytes < 32 * 1024 * 1024


# Time. A proxy in this process, which is less patient.


@pytest.mark.parametrize("before", [b"", request("/v0/events?name=hits", b"{}")], ids=["first", "kept"])
async def test_a_head_that_drips_is_refused_in_time(before: bytes) -> None:
    async with running_world(HEADER_TIMEOUT="300ms") as world, connected(world.port) as peer:
        if before:
            await peer.send(before)
            assert (await peer.answer()).status == 202
        answering = asyncio.create_task(peer.answer())
        for byte in request("/v0/events?name=never", b"{}") * 100:
            if answering.done():
                break
            with suppress(ConnectionError):
                await peer.send(bytes([byte]))
            await asyncio.sleep(0.02)
        answer = answering.result()
        assert answer.status == 408
        assert answer.error == "the head of the request did not end within 0.3 s (HEADER_TIMEOUT); send it again"
        assert await peer.rest() == b""
        assert world.status()["ledger"]["accepted"] == bool(before)


async def test_a_head_too_slow_behind_a_request_is_refused_after_its_answer() -> None:
    tinybird = {"wait_delay_s": 0.5}
    async with running_world(tinybird, HEADER_TIMEOUT="100ms") as world, connected(world.port) as peer:
        await peer.send(request("/v0/events?name=hits&wait=true", b"{}"))
        await until(lambda: world.proxy.pipeline.waiter_count == 1)
        await peer.send(b"POST /v0")
        assert [(await peer.answer()).status for _ in range(2)] == [200, 408]
        assert await peer.rest() == b""


async def test_an_idle_connection_is_ended_after_its_time_and_not_before_a_head_has_had_its_own() -> None:
    async with (
        running_world(KEEPALIVE_TIMEOUT="1s", HEADER_TIMEOUT="2s") as world,
        connected(world.port) as silent,
        connected(world.port) as used,
        connected(world.port) as begun,
    ):
        await used.send(request("/v0/events?name=hits", b"{}") + b"\r\n")  # some old browsers send such an end
        assert (await used.answer()).status == 202
        await begun.send(b"POST /v0")
        assert [await peer.rest() for peer in (silent, used)] == [b"", b""]
        await begun.send(request("/v0/events?name=hits", b"{}").removeprefix(b"POST /v0"))
        assert (await begun.answer()).status == 202


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_connection_past_its_age_ends_with_its_next_answer(version: str) -> None:
    async with running_world(KEEPALIVE_MAX_AGE="1s") as world, connected(world.port) as peer:
        asked = request("/v0/events?name=hits", b"{}", headers={"Connection": "keep-alive"}, version=version)
        answers = []
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await peer.send(asked)
                answers.append(await peer.answer())
        assert {answer.status for answer in answers} == {202}
        *kept, last = answers
        assert last.all("Connection") in (["close"], []), "HTTP/1.0 need not say it"
        assert version == "1.0" or last["Connection"] == "close"
        assert not any("close" in answer.all("Connection") for answer in kept)
        assert world.status()["ledger"]["accepted"] == len(answers)


async def test_the_age_at_which_a_connection_ends_is_by_chance_a_tenth_more_or_less() -> None:
    limits = ConnectionLimits(
        max_header_bytes=8192, header_timeout_s=1.0, send_timeout_s=1.0, keepalive_timeout_s=1.0, max_age_s=100.0
    )

    async def handle(asked: web.BaseRequest) -> web.StreamResponse:
        raise AssertionError

    now = asyncio.get_running_loop().time()
    for chance, age_s in ((0.0, 90.0), (0.5, 100.0), (1.0, 110.0)):
        server = HttpServer(handle, lane=None, limits=limits, chance=lambda chance=chance: chance)  # type: ignore[misc]
        assert server().ends_at_s - now == pytest.approx(age_s, abs=5.0)


async def test_pipelined_requests_are_all_answered_before_an_old_connection_ends() -> None:
    async with running_world(KEEPALIVE_MAX_AGE="1s") as world, connected(world.port) as peer:
        await asyncio.sleep(1.2)  # it may live for 1.1 s
        await peer.send(request("/v0/events?name=hits", b"{}") * 20)
        answers = [await peer.answer() for _ in range(20)]
        assert [answer.all("Connection") for answer in answers] == [[]] * 19 + [["close"]]
        assert await peer.rest() == b""


# Asking before sending.


async def test_a_client_that_asks_first_is_told_to_go_on(world: Running) -> None:
    async with connected(world.port) as peer:
        await peer.send(request("/v0/events?name=asks", headers={"Expect": "100-Continue", "Content-Length": "8"}))
        assert (await peer.answer()).status == 100
        await peer.send(b'{"a":1}\n')
        answer = await peer.answer()
        assert (answer.status, answer.json()["successful_rows"]) == (202, 1)
        # And the connection goes on.
        await peer.send(request("/v0/events?name=asks", b'{"a":2}'))
        assert (await peer.answer()).status == 202


async def test_a_client_of_http_1_0_is_never_told_to_go_on(world: Running) -> None:
    async with connected(world.port) as peer:
        headers = {"Expect": "100-continue", "Content-Length": "2"}
        await peer.send(request("/v0/events?name=asks", headers=headers, version="1.0"))
        await world.proxy.status()
        await peer.send(b"{}")
        assert (await peer.answer()).status == 202


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("", {"Content-Length": "100"}, 400),
        ("name=never", {"Content-Length": "10000001"}, 413),
        ("name=never", {"Content-Length": "100", "Content-Encoding": "br"}, 415),
    ],
)
async def test_a_client_that_asks_first_is_refused_before_it_sends(
    world: Running, query: str, headers: dict[str, str], status: int
) -> None:
    async with connected(world.port) as peer:
        await peer.send(request(f"/v0/events?{query}", headers={"Expect": "100-continue", **headers}))
        assert (await peer.answer()).status == status


async def test_curl_sends_two_megabytes_after_asking(world: Running, tmp_path: Path) -> None:
    rows = [b'{"n":%d,"text":"%s"}' % (n, b"x" * 1000) for n in range(2000)]
    body = tmp_path / "rows.ndjson"
    body.write_bytes(b"\n".join(rows) + b"\n")
    url = f"http://127.0.0.1:{world.port}/v0/events?name=curl"
    answer = await _curl("-v", "-H", "Expect: 100-continue", "--data-binary", f"@{body}", url)
    assert "< HTTP/1.1 100 Continue" in answer.stderr
    assert answer.stdout == '{"successful_rows":2000,"quarantined_rows":0}'
    assert sorted(await world.tinybird.wait_for_rows("curl", 2000)) == sorted(rows)


async def test_curl_uploads_in_chunks_when_it_does_not_know_the_length(world: Running) -> None:
    url = f"http://127.0.0.1:{world.port}/v0/events?name=curl_chunks&token={TOKEN}"
    answer = await _curl("-T", "-", "-X", "POST", url, text='{"n":1}\n{"n":2}\n')
    assert answer.stdout == '{"successful_rows":2,"quarantined_rows":0}'
    assert await world.tinybird.wait_for_rows("curl_chunks", 2) == [b'{"n":1}', b'{"n":2}']


async def _curl(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["curl", "--silent", "--show-error", "--max-time", str(DEADLINE_S), "--noproxy", "*", *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )

    return await asyncio.to_thread(run)


# What every answer carries.


async def test_answers_say_who_answers_when_and_how_long_they_are(world: Running) -> None:
    answer = await post(world.port)
    assert answer["Server"] == f"tinybird-proxy/{__version__}"
    assert answer["Date"].endswith(" GMT")
    assert int(answer["Content-Length"]) == len(answer.body)
    assert {name for name, _ in answer.headers} == {
        *("Content-Type", "Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "X-Ack"),
        *("Server", "Content-Length", "Date"),
    }
