"""The fast lane answers exactly as the ordinary way does: the same bytes, the same rows, the same ledger."""

import asyncio
import gzip
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

import pytest
from aiohttp import StreamReader
from aiohttp.http_parser import RawRequestMessage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.proxy.running import until

from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.server.availability import Availability
from tinybird_proxy.server.events import EventsRoute, Gate
from tinybird_proxy.server.fast_lane import FastLane
from tinybird_proxy.server.handler import PublicHandler
from tinybird_proxy.server.http import ConnectionLimits, HttpServer
from tinybird_proxy.server.passthrough import PassThrough
from tinybird_proxy.server.receive import ReceiveLimits, Receiver
from tinybird_proxy.testing.fake_upstream import FakeUpstream
from tinybird_proxy.testing.pipelines import Setup, imbalances
from tinybird_proxy.tokens import ClientTokens
from tinybird_proxy.upstream import Upstream, UpstreamSettings

DEADLINE_S: Final = 10.0
TOKENS: Final = "secret name=app\nnarrow name=other allow=elsewhere"
CLOSE: Final = b"GET /v1/liveness HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def request(
    body: bytes = b'{"n":1}',
    *,
    query: str = "name=hits",
    headers: Sequence[str] = ("Authorization: Bearer secret",),
    method: str = "POST",
    version: str = "1.1",
    path: str = "/v0/events",
) -> bytes:
    """A request as it goes over the wire, with its Content-Length."""
    lines = [f"{method} {path}?{query} HTTP/{version}", "Host: x", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


PLAIN: Final = {
    "one row": request(),
    "three rows": request(b'{"n":1}\n{"n":2}\r\n\n{"n":3}\n'),
    "an array": request(b'[{"n":1},\n{"n":2}]'),
    "format=json": request(b'{"n":\n1}', query="name=hits&format=json"),
    "no rows": request(b""),
    "blank lines": request(b"\n \n"),
    "a broken row": request(b'{"n":1}\n{"n":'),
    "not UTF-8": request(b'{"n":"\xff"}'),
    "a scalar": request(b"5"),
    "a body of 4,097 bytes": request(b'{"n":"' + b"x" * 4089 + b'"}'),
    "too large": request(b'{"n":"' + b"x" * 70_000 + b'"}'),
    "token in the query": request(query="name=hits&token=secret", headers=()),
    "no token": request(headers=()),
    "wrong token": request(headers=("Authorization: Bearer wrong",)),
    "not for this data source": request(headers=("Authorization: Bearer narrow",)),
    "no name": request(query="wait=false"),
    "ack=memory": request(query="name=hits&ack=memory"),
    "ack=disk": request(query="name=hits&ack=disk"),
    "wait": request(query="name=hits&wait=true"),
    "verify": request(query="name=hits&x-vercel-verify=abc"),
    "other parameters": request(query="name=hits&__tb__min_deployment=7&from=sdk"),
    "gzip": request(
        gzip.compress(b'{"n":1}', mtime=0), headers=("Authorization: Bearer secret", "Content-Encoding: gzip")
    ),
    "loop": request(headers=("Authorization: Bearer secret", "X-Batch-Via: proxy-1")),
    "via another": request(headers=("Authorization: Bearer secret", "X-Batch-Via: proxy-2")),
    "traceparent": request(headers=("Authorization: Bearer secret", f"traceparent: 00-{'1' * 32}-{'2' * 16}-01")),
    "GET": request(b"", method="GET"),
    "OPTIONS": request(b"", method="OPTIONS"),
    "another path": request(path="/v0/sql"),
    "liveness": request(b"", method="GET", path="/v1/liveness"),
}
ENDING: Final = {
    "Connection: close": request(headers=("Authorization: Bearer secret", "Connection: close")),
    "HTTP/1.0": request(version="1.0"),
    "not HTTP": b"nonsense\r\n\r\n",
    "chunked": (
        b"POST /v0/events?name=hits HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nConnection: close\r\n"
        b'Transfer-Encoding: chunked\r\n\r\n7\r\n{"n":1}\r\n0\r\n\r\n'
    ),
    "a head too large": request(headers=("Authorization: Bearer secret", "X-A: " + "a" * 8192)),
}
LIMITS: Final = ConnectionLimits(
    max_header_bytes=8192, header_timeout_s=5.0, send_timeout_s=5.0, keepalive_timeout_s=60.0, max_age_s=60.0
)


@dataclass(frozen=True, slots=True)
class Port:
    """One public port; ``lane_answers`` counts what the lane took."""

    number: int
    pipeline: Pipeline
    upstream: FakeUpstream
    availability: Availability
    gate: Gate
    lane_answers: list[int]


@asynccontextmanager
async def running_port(*, with_lane: bool, limits: ConnectionLimits = LIMITS) -> AsyncIterator[Port]:
    """A public port before a pipeline that delivers to a fake; its destination ``hits`` is confirmed."""
    loop = asyncio.get_running_loop()
    fake = FakeUpstream()
    setup = Setup(flush_interval_s=0.01, max_body_bytes=65_536)
    pipeline = setup.pipeline(fake)
    gate = Gate(own_token_mode=True, clients=ClientTokens(TOKENS, key=b"key"))
    availability = Availability(drain_delay_s=0.0, now=loop.time)
    route = EventsRoute(pipeline, gate, availability, honor_wait=True, keep_traces=True)
    receiver = Receiver(
        ReceiveLimits(
            max_body_bytes=65_536,
            max_inflated_bytes=65_536,
            receive_bytes=1_000_000,
            max_lines=1000,
            body_timeout_s=5.0,
        )
    )
    nowhere = UpstreamSettings(
        origin="http://127.0.0.1:9",
        timeout_s=1.0,
        instance="proxy-1",
        user_agent="test",
        proxies={},
        bypasses_proxy=lambda host: True,
    )
    upstream = Upstream(nowhere, tls=ssl.create_default_context(), now=loop.time)
    passthrough = PassThrough(upstream, gate, pipeline.surroundings.meters, enabled=False, body_stall_s=5.0)
    counted = [0]
    lane = FastLane(route, small_max_bytes=receiver.small_max_bytes)

    def counting(message: RawRequestMessage, payload: StreamReader) -> bytes | None:
        answer = lane(message, payload)
        counted[0] += answer is not None
        return answer

    handler = PublicHandler(route, receiver, passthrough)
    server = HttpServer(handler, lane=counting if with_lane else None, limits=limits, chance=lambda: 0.5)
    async with pipeline.running():
        listener = await loop.create_server(server, "127.0.0.1", 0)
        port = Port(listener.sockets[0].getsockname()[1], pipeline, fake, availability, gate, counted)
        try:
            assert b" 202 " in await exchange(port, [request() + CLOSE])  # the first contact
            yield port
        finally:
            listener.close()
            server.pre_shutdown()
            await server.shutdown(1.0)
            await pipeline.drain(loop.time() + DEADLINE_S, stop_now=asyncio.Event(), report=lambda rows: None)
            assert imbalances(pipeline) == []
    await upstream.close()


async def exchange(port: Port, segments: Sequence[bytes]) -> bytes:
    """Send ``segments`` one after the other and return everything that comes until the server closes, without dates."""
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
        try:
            for segment in segments:
                writer.write(segment)
                await writer.drain()
                await asyncio.sleep(0)
            return re.sub(rb"Date: [^\r]*\r\n", b"", await reader.read())
        finally:
            writer.close()


async def told_and_kept(port: Port, segments: Sequence[bytes]) -> tuple[bytes, dict[str, object], list[bytes]]:
    """What the client hears, the ledger's terms and the refusals, and the rows that reach Tinybird."""
    before = len(port.upstream.attempts)
    heard = await exchange(port, segments)

    async def delivered() -> bool:
        return port.pipeline.buffered_rows() == 0

    await until(delivered)
    meters = port.pipeline.surroundings.meters
    counts: dict[str, object] = {
        **port.pipeline.ledger().as_dict(port.pipeline.buffered_rows(), 0),
        "refused": dict(meters.refused),
        "requests": meters.requests_accepted,
        "bytes": meters.bytes_accepted,
    }
    rows = [row for attempt in port.upstream.attempts[before:] for row in attempt.body.split(b"\n")]
    return heard, counts, sorted(rows)


@pytest.mark.parametrize("name", [*PLAIN, *ENDING])
async def test_both_ways_answer_alike(name: str) -> None:
    once = PLAIN.get(name) or ENDING[name]
    segments = [once, once + CLOSE] if name in PLAIN else [once]
    async with running_port(with_lane=True) as fast, running_port(with_lane=False) as ordinary:
        for _ in range(2):  # the second time the heading is known
            assert await told_and_kept(fast, segments) == await told_and_kept(ordinary, segments)
        assert ordinary.lane_answers == [0]


@pytest.mark.parametrize(
    ("name", "takes"), [("one row", True), ("a broken row", True), ("wait", False), ("gzip", False)]
)
async def test_the_lane_takes_the_everyday_request_and_leaves_the_others(name: str, takes: bool) -> None:
    async with running_port(with_lane=True) as port:
        await exchange(port, [request() + CLOSE])
        before = port.lane_answers[0]
        await exchange(port, [PLAIN[name] + CLOSE])  # two requests in one segment: the ordinary way
        assert port.lane_answers[0] == before
        reader, writer = await asyncio.open_connection("127.0.0.1", port.number)
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(2):
                writer.write(PLAIN[name])
                await reader.readuntil(b"\r\n\r\n")
                await reader.readuntil(b"}")
        writer.close()
        assert (port.lane_answers[0] > before) is takes


async def test_an_old_connection_ends_with_the_same_answer_on_both_ways() -> None:
    aged = replace(LIMITS, max_age_s=0.0)
    async with (
        running_port(with_lane=True, limits=aged) as fast,
        running_port(with_lane=False, limits=aged) as ordinary,
    ):
        heard = [await exchange(port, [request()]) for port in (fast, ordinary)]
        assert heard[0] == heard[1]
        assert b"202 Accepted" in heard[0]
        assert b"Connection: close" in heard[0]
        assert fast.lane_answers == [0]


@pytest.mark.parametrize("with_lane", [True, False])
async def test_what_comes_behind_a_refused_body_does_not_take_away_the_answer(with_lane: bool) -> None:
    stream = PLAIN["too large"]
    async with running_port(with_lane=with_lane) as port:
        heard = await exchange(port, [stream[:1], stream[1:100], stream[100:101], stream[101:], request() + CLOSE])
        assert heard.count(b"HTTP/1.1 ") == 1
        assert b" 413 " in heard


async def test_a_draining_proxy_refuses_on_both_ways() -> None:
    async with running_port(with_lane=True) as fast, running_port(with_lane=False) as ordinary:
        for port in (fast, ordinary):
            await exchange(port, [request() + CLOSE])
            port.availability.begin_drain()
        heard = [await exchange(port, [request()]) for port in (fast, ordinary)]
        assert heard[0] == heard[1]
        assert b" 503 " in heard[0]
        for port in (fast, ordinary):
            port.availability.cancel_drain()


async def test_tokens_that_were_replaced_open_nothing_any_more() -> None:
    async with running_port(with_lane=True) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port.number)

        async def status() -> bytes:
            writer.write(request())
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
            return head.split(b" ")[1]

        async with asyncio.timeout(DEADLINE_S):
            assert [await status(), await status()] == [b"202", b"202"]
            port.gate.use_clients(ClientTokens("another", key=b"key"))
            assert await status() == b"403"
        writer.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sequence_cut_anywhere_is_answered_alike(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(list(PLAIN)), min_size=1, max_size=5))
    stream = b"".join(PLAIN[name] for name in names) + CLOSE
    cuts = sorted(data.draw(st.lists(st.integers(1, len(stream) - 1), max_size=4)))
    segments = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    async def compare() -> None:
        async with running_port(with_lane=True) as fast, running_port(with_lane=False) as ordinary:
            assert await told_and_kept(fast, segments) == await told_and_kept(ordinary, segments)

    asyncio.run(compare())
