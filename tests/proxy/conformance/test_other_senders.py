"""What all other senders post, as raw requests to Tinybird's emulator and to the proxy: both must take it alike.

Shapes of other libraries, webhooks, log shippers, browsers and curl, seen on the wire or in their source. Each is sent
to the letter, over a connection of its own.
"""

import asyncio
import gzip
import json
import re
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from tests.proxy.conformance.cases import BUFFER_ROWS, HEADROOM_ROWS
from tests.proxy.conformance.worlds import CLIENT_TOKEN, TOKEN, Way, World

from tinybird_proxy.emulator import Fault
from tinybird_proxy.emulator.tokens import token_hash

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.asyncio(loop_scope="module")

GetWorld = Callable[[str], Awaitable[World]]
ROW: Final = b'{"n":1,"path":"/a b","big":12345678901234567890,"exact":1.10}'
SECOND: Final = b'{"n": 2, "text": "\xc3\xa9\\u00e9"}'
TWO: Final = ROW + b"\n" + SECOND
PRETTY: Final = b'{\n  "id": "evt_1",\n  "data": {\n    "object": [1,\n 2]\n  }\n}\n'
BEARER: Final = {"Authorization": f"Bearer {TOKEN}"}
_TIMEOUT_S: Final = 10.0
_RATE_HEADERS: Final = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """A request as it stands on the wire. ``query`` follows the data source's name."""

    query: str = ""
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=lambda: BEARER)
    body: bytes = ROW
    version: str = "HTTP/1.1"
    pieces: Sequence[bytes] = ()
    """Send the body chunked, in these pieces, instead of whole."""
    asks_first: bool = False
    """Send the body only after ``100 Continue``."""

    def head(self, host: str, datasource: str | None) -> bytes:
        """Everything before the body."""
        name = "" if datasource is None else f"name={datasource}"
        lines = [f"{self.method} /v0/events?{name}{self.query} {self.version}"]
        headers = dict(self.headers)
        if self.version == "HTTP/1.1":
            headers = {"Host": host, **headers}
        if self.pieces:
            headers["Transfer-Encoding"] = "chunked"
        elif self.method == "POST":
            headers["Content-Length"] = str(len(self.body))
        return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "\r\n"]).encode()

    def payload(self) -> bytes:
        """The body, framed."""
        if not self.pieces:
            return self.body if self.method == "POST" else b""
        return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in self.pieces) + b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def document(self) -> Any:
        """The body, which must be JSON and say so."""
        assert self.headers["content-type"].startswith("application/json"), self
        return json.loads(self.body)


async def post(way: Way, request: Post, datasource: str | None) -> Reply:
    """Send ``request`` on a connection of its own and read the whole answer. Raises TimeoutError."""
    host, port = way.url.removeprefix("http://").split(":")
    async with asyncio.timeout(_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(request.head(f"{host}:{port}", datasource))
            if request.asks_first:
                assert (await _read_head(reader))[0] == 100
            writer.write(request.payload())
            await writer.drain()
            status, headers = await _read_head(reader)
            return Reply(status, headers, await reader.readexactly(int(headers.get("content-length", "0"))))
        finally:
            writer.close()
            await writer.wait_closed()


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    pairs = (line.split(":", 1) for line in lines)
    return int(status_line.split()[1]), {name.lower(): value.strip() for name, value in pairs}


def _typed(content_type: str, **more: str) -> dict[str, str]:
    return {**BEARER, "Content-Type": content_type, **{name.replace("_", "-"): value for name, value in more.items()}}


TAKEN: Final[Mapping[str, tuple[Post, Sequence[bytes]]]] = {
    "no Content-Type": (Post(), [ROW]),
    "NDJSON, its last line ended": (Post(headers=_typed("application/x-ndjson"), body=TWO + b"\n"), [ROW, SECOND]),
    "NDJSON, its last line open": (Post(headers=_typed("application/x-ndjson"), body=TWO), [ROW, SECOND]),
    "NDJSON that calls itself JSON": (Post(headers=_typed("application/json"), body=TWO), [ROW, SECOND]),
    "NDJSON with CRLF": (Post(body=ROW + b"\r\n" + SECOND + b"\r\n"), [ROW, SECOND]),
    "NDJSON with blank lines": (Post(body=b"\n" + ROW + b"\n\n" + SECOND + b"\n\n"), [ROW, SECOND]),
    "sendBeacon": (Post(headers={"Content-Type": "text/plain;charset=UTF-8"}, query=f"&token={TOKEN}"), [ROW]),
    "curl -d": (
        Post(headers=_typed("application/x-www-form-urlencoded", User_Agent="curl/7.88.1", Accept="*/*")),
        [ROW],
    ),
    "an octet stream": (Post(headers=_typed("application/octet-stream"), body=TWO), [ROW, SECOND]),
    "token in the query alone": (Post(headers={}, query=f"&token={TOKEN}"), [ROW]),
    "token in the query, another scheme in the header": (
        Post(headers={"Authorization": "Basic dXNlcjpwYXNz"}, query=f"&token={TOKEN}"),
        [ROW],
    ),
    "bearer in lower case": (Post(headers={"authorization": f"bearer {TOKEN}"}), [ROW]),
    "headers in lower case": (Post(headers={"authorization": f"Bearer {TOKEN}", "content-type": "text/plain"}), [ROW]),
    "wait=1": (Post(query="&wait=1"), [ROW]),
    "wait=True": (Post(query="&wait=True"), [ROW]),
    "wait=false": (Post(query="&wait=false"), [ROW]),
    "tinybird-python-sdk": (Post(query="&mode=append&format=ndjson&wait=false", body=TWO + b"\n"), [ROW, SECOND]),
    "the litellm handler": (Post(headers=_typed("text/plain; charset=utf-8")), [ROW]),
    "a tracker's parameters": (Post(query="&schema=page_hit&utm_source=a%20b&utm_medium=&from=ts-sdk&x"), [ROW]),
    "a command line's parameters": (Post(query="&cli_version=4.6.23&__tb__semver=1.2.3&debug=blocks"), [ROW]),
    "a webhook: the URL is all": (Post(headers=_typed("application/json"), query="&format=ndjson"), [ROW]),
    "a webhook with format=json": (
        Post(headers={}, query=f"&format=json&token={TOKEN}", body=PRETTY),
        [PRETTY.strip()],
    ),
    "format=json, one line": (Post(query="&format=json"), [ROW]),
    "format=json, an array": (Post(query="&format=json", body=b"[" + ROW + b", " + SECOND + b"]"), [ROW, SECOND]),
    "an array": (Post(body=b"[" + ROW + b",\n" + SECOND + b"]\n"), [ROW, SECOND]),
    "gzip": (
        Post(headers=_typed("application/x-ndjson", Content_Encoding="gzip"), body=gzip.compress(TWO)),
        [ROW, SECOND],
    ),
    "gzip in two members": (
        Post(
            headers=_typed("application/x-ndjson", Content_Encoding="gzip"),
            body=gzip.compress(ROW + b"\n") + gzip.compress(SECOND),
        ),
        [ROW, SECOND],
    ),
    "zstd": (
        Post(headers=_typed("application/x-ndjson", Content_Encoding="zstd"), body=zstd.compress(TWO)),
        [ROW, SECOND],
    ),
    "identity": (Post(headers=_typed("application/json", Content_Encoding="identity")), [ROW]),
    "chunked": (Post(pieces=[TWO[:20], TWO[20:50], TWO[50:]]), [ROW, SECOND]),
    "chunked gzip": (
        Post(headers={**BEARER, "Content-Encoding": "gzip"}, pieces=[gzip.compress(TWO)[:30], gzip.compress(TWO)[30:]]),
        [ROW, SECOND],
    ),
    "Expect: 100-continue": (Post(headers={**BEARER, "Expect": "100-continue"}, asks_first=True), [ROW]),
    "Expect, chunked": (
        Post(headers={**BEARER, "Expect": "100-continue"}, asks_first=True, pieces=[TWO]),
        [ROW, SECOND],
    ),
    "HTTP/1.0": (Post(version="HTTP/1.0"), [ROW]),
    "Connection: close": (Post(headers={**BEARER, "Connection": "close"}), [ROW]),
    "a body without a row": (Post(body=b""), []),
    "a body of line ends": (Post(body=b"\n\r\n\n"), []),
}


@pytest.mark.parametrize("shape", TAKEN)
async def test_what_other_senders_post_is_taken(shape: str, world: GetWorld) -> None:
    request, rows = TAKEN[shape]
    datasource = _datasource(shape)
    ways = (await world("plain")).ways
    replies = await asyncio.gather(*(post(way, request, datasource) for way in ways))
    status = 200 if re.search("wait=(1|t)", request.query, re.IGNORECASE) else 202
    for way, reply in zip(ways, replies, strict=True):
        assert reply.status == status, (way.name, reply)
        document = reply.document()
        assert document == {"successful_rows": len(rows), "quarantined_rows": 0}, way.name
        assert all(type(count) is int for count in document.values())
        # One client reads all three wherever it finds one, and sleeps if none remains.
        found = [int(reply.headers[name]) for name in _RATE_HEADERS if name in reply.headers]
        assert len(found) in (0, 3), (way.name, reply)
        assert reply.headers.get("x-ratelimit-remaining") != "0", way.name
        arrived = await way.tinybird.wait_for_rows(datasource, len(rows)) if rows else []
        assert [_flat(row) for row in arrived] == [_flat(row) for row in rows], way.name


def _flat(row: bytes) -> bytes:
    """Line ends are all that may change, and only inside of one pretty-printed document."""
    return re.sub(rb"[\r\n]", b" ", row)


REFUSED: Final[Mapping[str, tuple[Post, int]]] = {
    "no token": (Post(headers={}), 401),
    "a wrong token": (Post(headers={"Authorization": "Bearer wrong"}), 403),
    "a wrong token in the query": (Post(headers={}, query="&token=wrong"), 403),
    "no JSON": (Post(body=b"n=1&path=%2F"), 400),
    "no object": (Post(body=ROW + b"\n[1]\n"), 400),
    "half a row": (Post(body=TWO[:-5]), 400),
    "two rows on a line": (Post(body=ROW + SECOND), 400),
    "no UTF-8": (Post(body=b'{"name":"Gr\xf6\xdfe"}'), 400),
    "gzip that is none": (Post(headers={**BEARER, "Content-Encoding": "gzip"}), 400),
    "gzip cut short": (Post(headers={**BEARER, "Content-Encoding": "gzip"}, body=gzip.compress(TWO)[:-6]), 400),
    "an unknown encoding": (Post(headers={**BEARER, "Content-Encoding": "br"}), 415),
    "GET": (Post(method="GET"), 405),
    "PUT": (Post(method="PUT", headers={**BEARER, "Content-Length": "0"}), 405),
}


@pytest.mark.parametrize("shape", REFUSED)
async def test_what_is_wrong_is_refused_in_json(shape: str, world: GetWorld) -> None:
    request, status = REFUSED[shape]
    ways = (await world("plain")).ways
    for way, reply in zip(ways, await asyncio.gather(*(post(way, request, "refused") for way in ways)), strict=True):
        assert reply.status == status, (way.name, reply)
        assert isinstance(reply.document()["error"], str), way.name
        if status == 405:
            assert "POST" in reply.headers["allow"], way.name
        assert await way.tinybird.rows("refused") == [], way.name


async def test_a_missing_name_is_400(world: GetWorld) -> None:
    for way in (await world("plain")).ways:
        reply = await post(way, Post(), None)
        assert (reply.status, "name" in reply.document()["error"]) == (400, True), way.name


async def test_a_browser_may_post_from_any_page(world: GetWorld) -> None:
    asked = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    sent = {"Origin": "https://shop.example", "Content-Type": "application/json"}
    for way in (await world("plain")).ways:
        allowed = await post(way, Post(method="OPTIONS", headers=asked, query=f"&token={TOKEN}"), "browser")
        assert allowed.status in (200, 204), way.name
        assert allowed.headers["access-control-allow-origin"] == "*", way.name
        assert "POST" in allowed.headers["access-control-allow-methods"], way.name
        assert "content-type" in allowed.headers["access-control-allow-headers"].lower(), way.name
        reply = await post(way, Post(headers=sent, query=f"&token={TOKEN}"), "browser")
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (202, "*"), way.name
        assert await way.tinybird.wait_for_rows("browser", 1) == [ROW], way.name
        refused = await post(way, Post(headers=sent, query="&token=wrong"), "browser_refused")
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (403, "*"), way.name


async def test_vercel_gets_its_proof_back(world: GetWorld) -> None:
    for way in (await world("plain")).ways:
        reply = await post(way, Post(query="&x-vercel-verify=c0ffee.123-x"), "vercel")
        assert (reply.status, reply.headers["x-vercel-verify"]) == (202, "c0ffee.123-x"), way.name
        reply = await post(way, Post(query="&wait=true&x-vercel-verify=c0ffee"), "vercel")
        assert (reply.status, reply.headers["x-vercel-verify"]) == (200, "c0ffee"), way.name
        assert await way.tinybird.wait_for_rows("vercel", 2) == [ROW, ROW], way.name


async def test_a_client_that_shows_the_proxys_token_gets_its_rows_sent_with_tinybirds(world: GetWorld) -> None:
    here = (await world("own token")).proxied
    reply = await post(here, Post(headers={"Authorization": f"Bearer {CLIENT_TOKEN}"}, query="&wait=true"), "own")
    assert reply.status == 200
    (request,) = [request for request in here.tinybird.requests if request.datasource == "own"]
    assert request.headers["Authorization"] == f"Bearer {token_hash(TOKEN)}"


@pytest.mark.parametrize(("sentence", "status"), [("a wrong token", 403), ("an unknown data source", 404)])
async def test_what_tinybird_says_in_plain_text_reaches_the_client_as_json(
    sentence: str, status: int, world: GetWorld
) -> None:
    here = await world("plain text")
    headers = {"Authorization": "Bearer wrong"} if status == 403 else BEARER
    direct, proxied = [await post(way, Post(headers=headers), f"unknown_{status}") for way in here.ways]
    assert (direct.status, direct.headers["content-type"]) == (status, "text/plain; charset=utf-8"), sentence
    assert (proxied.status, proxied.document()["error"]) == (status, direct.body.decode()), sentence


async def test_every_refusal_for_want_of_room_says_in_integers_when_to_come_back(world: GetWorld) -> None:
    here = (await world("small buffer")).proxied
    refused_503, refused_429 = await _full(here), await _full_of_undelivered(here)
    assert (refused_503.status, refused_429.status) == (503, 429)
    assert isinstance(refused_503.document()["error"], str)
    assert 1 <= int(refused_503.headers["retry-after"]) <= 60
    assert not any(name in refused_503.headers for name in _RATE_HEADERS)
    assert isinstance(refused_429.document()["error"], str)
    # The official SDKs do not retry without one of these; another client spins without Remaining, and a third one
    # takes them for integers.
    after_s = int(refused_429.headers["retry-after"])
    assert 1 <= after_s <= 60
    limit, remaining, reset_s = (int(refused_429.headers[name]) for name in _RATE_HEADERS)
    assert (limit > 0, remaining, reset_s) == (True, 0, after_s)


async def test_no_refusal_asks_for_more_patience_than_the_official_sdk_has(world: GetWorld) -> None:
    refused = await _full_of_undelivered((await world("small buffer")).proxied)
    assert refused.status == 429
    assert 2 * int(refused.headers["retry-after"]) < 30  # all its attempts and sleeps must end within 30 s


async def test_after_a_429_the_next_success_says_that_there_is_room_again(world: GetWorld) -> None:
    # tinybird-python-sdk sleeps 2 s before every call, for ever, unless a later reply takes Remaining: 0 back.
    here = (await world("small buffer")).proxied
    assert (await _full_of_undelivered(here)).headers["x-ratelimit-remaining"] == "0"
    taken = await post(here, Post(), "room_again")
    assert taken.status == 202
    limit, remaining, reset_s = (int(taken.headers[name]) for name in _RATE_HEADERS)
    assert (limit, remaining, reset_s) == (100, 100, 1)


async def _full(way: Way) -> Reply:
    """What is answered while Tinybird takes its time and the buffer is full; it is empty again at the end."""
    assert way.proxy is not None
    assert (await post(way, Post(query="&wait=true"), "full")).status == 200
    way.tinybird.set_faults(Fault(datasource="full", delay_s=1.0))
    many = Post(body=b"\n".join([ROW] * BUFFER_ROWS))
    assert (await post(way, many, "full")).status == 202
    assert (await post(way, Post(body=b"\n".join([ROW] * HEADROOM_ROWS)), "full")).status == 202
    refused = await post(way, Post(), "full")
    way.tinybird.set_faults()
    await way.proxy.emptied()
    return refused


async def _full_of_undelivered(way: Way) -> Reply:
    """What is answered while Tinybird takes nothing and the buffer is full; it is empty again at the end."""
    assert way.proxy is not None
    assert (await post(way, Post(query="&wait=true"), "undelivered")).status == 200
    way.tinybird.set_faults(Fault(datasource="undelivered", status=503, retry_after=1))
    assert (await post(way, Post(), "undelivered")).status == 202
    await way.tinybird.wait_until(lambda: way.tinybird.requests[-1].status == 503)
    assert (await post(way, Post(body=b"\n".join([ROW] * (BUFFER_ROWS - 1))), "undelivered")).status == 202
    refused = await post(way, Post(), "undelivered")
    way.tinybird.set_faults()
    await way.proxy.emptied()
    return refused


def _datasource(shape: str) -> str:
    return "shape_" + re.sub(r"\W+", "_", shape)
