"""A real proxy, and clients that send what they like: damaged requests, cut anywhere, one behind another, many at once.

Each connection begins with requests whose answers are known, and may go on with others to which something happened.
Whatever that was: answers are whole and honest, rows with a 2xx arrive once and byte for byte and no others do, nobody
else notices, and nothing is left behind. How long it looks: see ``fuzzing``; what is sent is made from the seed alone.
"""

import asyncio
import json
import random
import re
import socket
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import pytest
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from tests.proxy.fuzz_requests import MAX_BODY_BYTES, MAX_INFLATED_BYTES, TWO_WAYS, Planned, damaged, plan
from tests.proxy.fuzzing import bounded, named, seeds
from tests.proxy.running import (
    DEADLINE_S,
    TOKEN,
    ProxyProcess,
    ask,
    connected,
    environment,
    request,
    running_process,
    running_world,
    until,
)

from tinybird_proxy.codec import inflate
from tinybird_proxy.server.http import HttpServer

pytestmark = bounded
CONNECTIONS: Final = 40
# Longer than it takes the proxy to see that the rest of a body is not HTTP, which it looks for twice a second.
QUIET_S: Final = 0.7
SHOWN_BYTES: Final = 2048
# Nothing is read behind a chunked request, because of what a parser makes of its trailers.
CHUNKED: Final = b"Transfer-Encoding: chunked"
NOT_HTTP: Final = b'{"error":"the request is not valid HTTP"}'
PASSED_ON: Final = b'{"passed":"on"}'
KNOWN: Final = frozenset((200, 202, 204, 400, 401, 403, 404, 405, 408, 413, 415, 431, 501, 503, 508))


# What stands for Tinybird: any name and any path will do.


@dataclass(slots=True)
class Tinybird:
    """Keeps the rows of each data source."""

    url: str = ""
    rows: defaultdict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Take a batch, or answer something else that was passed on."""
        body = await request.content.read()
        if "X-Batch-Id" not in request.headers:
            return web.Response(body=PASSED_ON, content_type="application/json")
        rows = b"".join(inflate(body, request.headers["Content-Encoding"], 10**9)).split(b"\n")
        self.rows[request.rel_url.query["name"]] += rows
        return web.json_response({"successful_rows": len(rows), "quarantined_rows": 0})


@asynccontextmanager
async def running_tinybird() -> AsyncIterator[Tinybird]:
    tinybird = Tinybird()
    runner = web.ServerRunner(web.Server(tinybird.handle, auto_decompress=False, access_log=None))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        tinybird.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield tinybird
    finally:
        await runner.cleanup()


# One connection.


@dataclass(slots=True)
class Conversation:
    """What is sent over one connection, in which fragments, and what is heard.

    ``known`` are requests whose answers are known; what follows them in ``stream`` may be anything.
    """

    name: str
    known: list[Planned]
    follows: list[Planned]
    stream: bytes
    fragments: list[bytes]
    pauses: list[float]
    leaves: bool
    heard: bytearray = field(default_factory=bytearray)
    ended: bool = False
    changed_at: float = 0.0

    @property
    def tail(self) -> bytes:
        """What is sent after the known requests."""
        return self.stream[sum(len(planned.wire) for planned in self.known) :]

    async def talk(self, port: int) -> None:
        """Send everything, and listen until nothing more is to be expected."""
        loop = asyncio.get_running_loop()
        self.changed_at = loop.time()
        with socket.socket() as connection:
            connection.setblocking(False)
            await loop.sock_connect(connection, ("127.0.0.1", port))
            listening = asyncio.create_task(self._listen(connection))
            try:
                with suppress(ConnectionError):  # what was answered before that is heard all the same
                    for fragment, pause in zip(self.fragments, self.pauses, strict=True):
                        async with asyncio.timeout(DEADLINE_S):
                            await loop.sock_sendall(connection, fragment)
                        self.changed_at = loop.time()
                        await asyncio.sleep(pause)
                if not self.leaves:
                    await until(lambda: self.ended or self._said_all(loop.time()))
            except TimeoutError:
                pass  # what is missing is seen by whoever looks at the answers
            finally:
                listening.cancel()
                with suppress(asyncio.CancelledError):
                    await listening

    def _said_all(self, now: float) -> bool:
        if self.tail:
            return now - self.changed_at > QUIET_S and len(self.answers()) >= len(self.known)
        return len(self.answers()) >= len(self.known)

    async def _listen(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):
            while data := await loop.sock_recv(connection, 65536):
                self.heard += data
                self.changed_at = loop.time()
        self.ended = True

    def answers(self) -> "list[Heard]":
        """The whole answers so far."""
        return read_answers(bytes(self.heard), b"HEAD " in self.stream)[0]


@dataclass(frozen=True, slots=True)
class Heard:
    """One answer; ``closes`` says that the connection ends with it."""

    status: int
    body: bytes
    closes: bool
    has_json: bool

    @property
    def row_count(self) -> int:
        """How many rows were taken, as the client was told."""
        if self.status not in (200, 202) or b"successful_rows" not in self.body:
            return 0
        return int(json.loads(self.body)["successful_rows"])


def read_answers(data: bytes, has_head: bool) -> tuple[list[Heard], bytes]:
    """The whole answers in ``data``, and what is left of it. Interim answers are left out."""
    found = []
    while (end := data.find(b"\r\n\r\n")) >= 0:
        first, *lines = data[:end].decode("latin-1").split("\r\n")
        version, status = re.fullmatch(r"HTTP/(0\.9|1\.[01]) (\d{3}) .*", first).groups()  # type: ignore[union-attr]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert len(headers) == len(lines), f"a header twice: {lines}"
        rest = data[end + 4 :]
        if status == "100":
            assert not lines
            data = rest
            continue
        length = 0 if status == "204" else int(headers["content-length"])
        if has_head and (not rest or rest.startswith((b"HTTP/1.", b"HTTP/0."))):
            length = 0  # an answer to HEAD
        if len(rest) < length:
            break
        connection = headers.get("connection", "keep-alive" if version == "1.1" else "close").lower()
        has_json = headers.get("content-type", "").startswith("application/json")
        found.append(Heard(int(status), rest[:length], connection == "close", has_json))
        data = rest[length:]
    return found, data


def make_conversation(chance: random.Random, name: str, *, own_token: bool, leaves: bool) -> Conversation:
    """A connection's worth of requests, all from ``chance``."""
    planned = [
        plan(chance, name, f"{name}.{number}", own_token=own_token) for number in range(chance.choice((1, 2, 5)))
    ]
    count = next((number for number, one in enumerate(planned, 1) if one.may_end or CHUNKED in one.wire), len(planned))
    if is_damaged := chance.random() < 0.75:
        count = min(count, chance.randrange(len(planned)))
    known, follows = planned[:count], planned[count:]
    head = b"".join(one.wire for one in known)
    tail = damaged(chance, [one.wire for one in follows]) if is_damaged else b"".join(one.wire for one in follows)
    stream = head + tail
    cuts = chance.choice((0, 0, 1, 3, 10, 60))
    places = sorted({0, len(stream), *(chance.randrange(len(stream) + 1) for _ in range(cuts))})
    fragments = [stream[start:end] for start, end in pairwise(places)]
    if leaves:
        fragments = fragments[: chance.randint(1, max(1, len(fragments)))]
        fragments[-1:] = [part[: chance.randint(0, len(part))] for part in fragments[-1:]]
    pauses = [chance.choice((0.0, 0.0, 0.0, 0.001, 0.02)) for _ in fragments]
    return Conversation(name, known, follows, stream, fragments, pauses, leaves)


# What must hold.


def check_answers(conversation: Conversation) -> None:
    """Every answer is whole, known ones are right, and the connection ended only where one said so."""
    found, rest = read_answers(bytes(conversation.heard), b"HEAD " in conversation.stream)
    if not conversation.leaves:
        assert not rest, f"half an answer: {rest[:300]!r}"
        unanswered = len(conversation.known) - len(found)
        assert unanswered <= 0 or gave_up(conversation, found), f"{unanswered} answers are missing behind {found}"
    for answer, planned in zip(found, conversation.known, strict=False):
        if answer is found[-1] and gave_up(conversation, found):
            break
        assert answer.status in planned.statuses, (answer, planned.what)
        if answer.status in (200, 202) and planned.rows is not None:
            assert answer.row_count == len(planned.rows), (answer, planned.what)
    for number, answer in enumerate(found, 1):
        assert answer.status in KNOWN, answer
        assert not answer.closes or number == len(found), f"another answer behind the last one: {found[number - 1 :]}"
        if answer.status >= 400 and answer.body:
            assert answer.has_json, answer
            assert json.loads(answer.body)["error"], answer
    if conversation.ended and not conversation.leaves:
        assert found, "the connection was closed without an answer"
        # A refusal that left before the chunks of its request came could not know that something would follow them.
        last = conversation.known[len(found) - 1].wire if len(found) <= len(conversation.known) else conversation.tail
        assert found[-1].closes or CHUNKED in last, f"closed behind an answer that did not say so: {found[-1]}"


def gave_up(conversation: Conversation, found: Sequence[Heard]) -> bool:
    """Whether the last answer is about something that cannot be read.

    What came together with it is not looked at, although requests before it may be good: none of it is taken.
    """
    is_due = conversation.tail or (conversation.known and conversation.known[-1].statuses == TWO_WAYS)
    return bool(is_due and found and (found[-1].status == 431 or found[-1].body == NOT_HTTP))


def check_rows(conversations: Sequence[Conversation], arrived: dict[str, list[bytes]], *, exactly: bool) -> None:
    """What arrived are the rows that were promised, once each, and otherwise only what damaged requests may hold."""
    counts = Counter((name, row) for name, rows in arrived.items() for row in rows)
    told = 0
    for conversation in conversations:
        found = conversation.answers()
        told += sum(answer.row_count for answer in found)
        for number, planned in enumerate(conversation.known):
            taken = number < len(found) and found[number].status in (200, 202)
            for row in planned.rows or ():
                count = counts.pop((conversation.name, row), 0)
                if exactly:
                    assert count == taken, f"{row[:200]!r} arrived {count} times: {planned.what}"
                assert count <= 1
    if exactly:
        assert sum(map(len, arrived.values())) == told, "the number of rows that arrived is not that of all answers"
    haystacks = [part for c in conversations for part in (c.tail, *(one.plain for one in c.follows))]
    dechunked = [re.sub(rb"\r\n[0-9a-fA-F]+(?:;[^\r\n]*)?\r\n", b"", part) for part in haystacks]
    known = {row for c in conversations for one in c.follows for row in one.rows or ()}
    for (_, row), _count in counts.items():
        assert b"\n" not in row
        assert isinstance(json.loads(row), dict)
        if row not in known:
            assert any(row in part.translate(_SPACES) or row in part for part in (*haystacks, *dechunked)), row[:300]


_SPACES: Final = bytes.maketrans(b"\r\n", b"  ")


async def behave_well(port: int, tag: str, until_set: asyncio.Event) -> list[bytes]:
    """Post row after row over one connection, each answered at once; the rows."""
    rows: list[bytes] = []
    async with connected(port) as peer:
        while not until_set.is_set():
            rows.append(b'{"good":"%s-%d"}' % (tag.encode(), len(rows)))
            await peer.send(request("/v0/events?name=good", rows[-1]))
            answer = await peer.answer()
            assert (answer.status, answer.json()["successful_rows"]) == (202, 1)
            await asyncio.sleep(0.005)
    return rows


async def settled(proxy: ProxyProcess) -> dict[str, Any]:
    """What ``/status`` says once everything that was taken is delivered, nobody waits and nothing is received."""

    async def nothing_is_received() -> bool:
        page = (await ask(proxy.admin_port, "/metrics", method="GET")).body
        return b"\ntinybird_proxy_receiving_bytes 0.0\n" in page

    await until(nothing_is_received)
    return await proxy.status_until(
        lambda s: s["buffer"]["rows"] == s["buffer"]["bytes"] == s["requests"]["waiting"] == 0
    )


async def run_round(proxy: ProxyProcess, tinybird: Tinybird, seed: int, *, own_token: bool) -> None:
    """Many connections at once, some of which leave early in every fourth round, beside a client that behaves well."""
    chance = random.Random(seed)
    leaves = chance.random() < 0.25
    conversations = [
        make_conversation(chance, f"c{number}", own_token=own_token, leaves=leaves) for number in range(CONNECTIONS)
    ]
    tinybird.rows.clear()
    accepted_before = (await settled(proxy))["ledger"]["accepted"]
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        good = group.create_task(behave_well(proxy.port, str(seed), over))
        async with asyncio.TaskGroup() as talks:
            for conversation in conversations:
                talks.create_task(conversation.talk(proxy.port))
        over.set()
    status = await settled(proxy)
    for conversation in conversations:
        try:
            check_answers(conversation)
        except Exception as error:
            heard = bytes(conversation.heard[-SHOWN_BYTES:])
            raise AssertionError(
                f"{error!r}\nheard {heard!r}\nconnection {conversation.name} sent (hex) "
                f"{conversation.stream[:SHOWN_BYTES].hex()} in fragments of {[*map(len, conversation.fragments)]}"
            ) from error
    arrived = dict(tinybird.rows)
    ledger = status["ledger"]
    assert ledger["balances"] is True
    assert ledger["accepted"] - accepted_before == sum(map(len, arrived.values()))
    assert sorted(arrived.pop("good")) == sorted(good.result())
    try:
        check_rows(conversations, arrived, exactly=not leaves)
    except AssertionError as error:
        odd = [
            f"{c.name}: told {sum(a.row_count for a in c.answers())}, arrived {len(arrived.get(c.name, ()))}, "
            f"sent (hex) {c.stream[:SHOWN_BYTES].hex()}"
            for c in conversations
            if sum(a.row_count for a in c.answers()) != len(arrived.get(c.name, ()))
        ]
        raise AssertionError("\n".join(["rows:", *odd])) from error


def trouble(proxy: ProxyProcess) -> str:
    """The lines of the log that should not be there: whatever clients do, it is no trouble of ours."""
    return "\n".join(str(line) for line in proxy.lines if line["level"] != "info")


@pytest.mark.parametrize("own_token", [True, False], ids=["our token", "clients' own tokens and passing through"])
async def test_whatever_clients_send_the_proxy_answers_honestly_and_serves_the_others(own_token: bool) -> None:
    limits = {"MAX_BODY_BYTES": str(MAX_BODY_BYTES), "MAX_INFLATED_BYTES": str(MAX_INFLATED_BYTES)}
    rates = {"RECEIVE_BYTES": "400000", "UPSTREAM_RATE": "10000", "MAX_DESTINATIONS": "10000"}
    mode = {"AUTHORIZATION_TOKEN": TOKEN} if own_token else {"TINYBIRD_TOKEN": None}
    async with (
        running_tinybird() as tinybird,
        running_process(environment(tinybird.url, **limits, **rates, **mode)) as proxy,
    ):
        for seed in seeds(0.19):
            with named(seed):
                await run_round(proxy, tinybird, seed, own_token=own_token)
                assert trouble(proxy) == ""
        assert await proxy.stop() == 0
        assert trouble(proxy) == ""
        assert proxy.output.count(b"\n") == len(proxy.lines), "nothing but lines of the log"


# Found by it.


@pytest.mark.parametrize("target", ["/v0/events?name=never", "/v0/elsewhere"])
@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_a_client_that_leaves_just_when_its_request_is_looked_at_is_no_error_of_ours(
    target: str, turns: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[RequestHandler] = []
    make = HttpServer.__call__

    def remember(server: HttpServer) -> RequestHandler:
        made.append(make(server))
        return made[-1]

    monkeypatch.setattr(HttpServer, "__call__", remember)
    async with running_world(TINYBIRD_TOKEN=None) as world, connected(world.port):
        await until(lambda: bool(made))
        made[0].data_received(request(target, headers={"Content-Length": "2000"}) + b"{")
        for _ in range(turns):  # how far the proxy has come with it
            await asyncio.sleep(0)
        made[0].connection_lost(ConnectionResetError())
        await settled_down()
        assert [record.message for record in caplog.records if record.levelname != "INFO"] == []


async def settled_down() -> None:
    """Everything that was about to happen has happened, once nothing but this has run for some turns."""
    for _ in range(50):
        await asyncio.sleep(0)
