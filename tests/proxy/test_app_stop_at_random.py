"""Stops at random moments under load, with real processes: what clients were told is what became of every row."""

import asyncio
import gzip
import itertools
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import pytest
from tests.proxy.running import (
    TOKEN,
    Peer,
    ProxyProcess,
    connected,
    environment,
    post,
    request,
    running_process,
    running_tinybird,
    until,
)

from tinybird_proxy.emulator import Emulator, Fault, TokenEntry

RUNS_AT_ONCE: Final = 3
SOURCES: Final = ("hits", "clicks", "views")
_STOPPED_TOO_EARLY: Final = "the proxy stopped before Tinybird had confirmed these rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Client:
    """One client's habits."""

    source: str
    query: str = ""
    row_count: int = 1
    form: str = "lines"  # lines | array | gzip | slow (a body that comes in two pieces)
    token: str | None = TOKEN
    is_stranger: bool = False  # whatever it sends is refused
    pause_s: float = 0.01


class _Load:
    """Clients of one proxy that send without end, and what they heard of which row."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._chance = random.Random(seed)
        self._numbers = itertools.count()
        self._over = asyncio.Event()
        self.accepted: dict[str, list[bytes]] = {source: [] for source in SOURCES}  # told 2xx
        self.delivered: dict[str, list[bytes]] = {source: [] for source in SOURCES}  # told 200
        self.dropped: dict[str, list[bytes]] = {source: [] for source in SOURCES}  # waited, and heard: lost
        self.others: dict[str, list[bytes]] = {source: [] for source in SOURCES}  # refused, or never answered
        self.statuses: Counter[int] = Counter()
        self.open_count = 0  # requests begun and not answered

    @property
    def accepted_count(self) -> int:
        """Rows with a 2xx."""
        return sum(map(len, self.accepted.values()))

    def lost(self) -> dict[str, int]:
        """Rows by data source that a proxy must count as lost if it delivers nothing."""
        counts = {source: len(self.accepted[source]) + len(self.dropped[source]) for source in SOURCES}
        return {source: count for source, count in counts.items() if count}

    @asynccontextmanager
    async def running(self, clients: tuple[_Client, ...]) -> AsyncIterator[None]:
        """Have the clients send. The block must end the proxy: those that wait for an answer would go on waiting."""
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(self._be(client))
            yield
            self._over.set()

    async def _be(self, client: _Client) -> None:
        while not self._over.is_set():
            try:
                async with connected(self._port) as peer:
                    while await self._send(client, peer):
                        await self._pause(client)
            except ConnectionRefusedError:
                return  # it has stopped listening
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            await self._pause(client)

    async def _pause(self, client: _Client) -> None:
        await asyncio.sleep(self._chance.uniform(0, 2 * client.pause_s))

    async def _send(self, client: _Client, peer: Peer) -> bool:
        """One request; whether the connection may be used again."""
        rows = [b'{"id":%d,"of":"%s"}' % (next(self._numbers), b"x" * self._chance.randint(0, 60))]
        rows += [b'{"id":%d}' % next(self._numbers) for _ in range(client.row_count - 1)]
        heard = self.others
        self.open_count += 1
        try:
            wire = _wire(client, rows)
            if client.form == "slow":
                middle = len(wire) - len(rows[-1]) // 2
                await peer.send(wire[:middle])
                await asyncio.sleep(self._chance.uniform(0.01, 0.06))
                wire = wire[middle:]
            await peer.send(wire)
            answer = await peer.answer()
            self.statuses[answer.status] += 1
            if answer.status in (200, 202):
                assert not client.is_stranger, answer
                assert answer.json() == {"successful_rows": len(rows), "quarantined_rows": 0}
                assert answer["X-Ack"] == {200: "delivered", 202: "memory"}[answer.status]
                heard = self.accepted
                if answer.status == 200:
                    self.delivered[client.source] += rows
            elif _STOPPED_TOO_EARLY in answer.error:
                heard = self.dropped
            return "Connection" not in answer
        finally:
            self.open_count -= 1
            heard[client.source] += rows


def _wire(client: _Client, rows: list[bytes]) -> bytes:
    body = b"[" + b",".join(rows) + b"]" if client.form == "array" else b"\n".join(rows)
    headers = {}
    if client.form == "gzip":
        body, headers = gzip.compress(body, 1), {"Content-Encoding": "gzip"}
    if client.is_stranger and client.token is not None:
        body += b'\n{"not":'
    return request(f"/v0/events?name={client.source}{client.query}", body, token=client.token, headers=headers)


# Whenever it is stopped, nothing is lost, nothing comes twice, and nothing that was refused comes.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One run. Times are seconds after the load began."""

    seed: int
    stop_at_s: float
    env: Mapping[str, str | None]
    clients: tuple[_Client, ...]
    tokens: tuple[str, ...]
    latency_s: float
    fault: Fault | None
    fault_from_s: float
    fault_for_s: float

    @property
    def may_double(self) -> bool:
        """Whether Tinybird takes a batch and does not say so."""
        return self.fault is not None and self.fault.reset == "after_body"


def _make_plan(seed: int) -> _Plan:
    chance = random.Random(seed)
    latency_s = chance.uniform(0.03, 0.15)
    batch_size = chance.choice((7, 40, 500, 100_000))
    env: dict[str, str | None] = {
        "BATCH_SIZE": str(batch_size),
        "FLUSH_INTERVAL": f"{chance.randint(1, 200)}ms",
        "COMPRESSION": chance.choice(("gzip", "zstd", "none")),
        "DRAIN_DELAY": chance.choice(("0s", "0s", f"{chance.randint(20, 300)}ms")),
        "BUFFER_SIZE": str(chance.choice((max(300, batch_size), 1_000_000))),
        "UPSTREAM_RATE": "1000",
    }
    tokens: tuple[str, ...] = (TOKEN,)
    stranger_token: str | None = TOKEN
    match chance.choice(("anybody", "ours", "each client's own")):
        case "ours":
            tokens, stranger_token = ("app-1", "app-2"), "somebody"
            env["AUTHORIZATION_TOKEN"] = "\n".join(tokens)
        case "each client's own":
            tokens, stranger_token = ("client-1", "client-2"), None
            env["TINYBIRD_TOKEN"] = None
    wait_share = chance.choice((0.2, 0.5, 0.8))

    def one(form: str, row_count: int, *, waits: bool | None = None, pause_s: float = 0.01) -> _Client:
        waits = chance.random() < wait_share if waits is None else waits
        query = ("&wait=true" if waits else "") + chance.choice(("", "", "&__tb_x=1", "&format=ndjson"))
        source, token = chance.choice(SOURCES), chance.choice(tokens)
        if chance.random() < 0.3:
            return _Client(source=source, query=f"{query}&token={token}", row_count=row_count, form=form, token=None)
        return _Client(source=source, query=query, row_count=row_count, form=form, token=token, pause_s=pause_s)

    clients = (
        one("lines", 1, waits=False),
        one("lines", 1, waits=True),
        one("slow", chance.randint(2, 5)),
        one("lines", chance.randint(2, 20)),
        one("gzip", chance.randint(1, 60), pause_s=0.03),
        one("array", chance.randint(1, 20)),
        *(one("lines", 1) for _ in range(chance.randint(0, 3))),
        _Client(source=SOURCES[0], token=stranger_token, is_stranger=True, pause_s=0.05),
    )
    stop_at_s = chance.uniform(0.05, 1.5)
    faults = (
        None,
        Fault(status=503, delay_s=latency_s),
        Fault(status=429, delay_s=latency_s, share=0.5),
        Fault(reset="before_body"),
        Fault(reset="after_body", ingest=True, times=1),
    )
    return _Plan(
        seed=seed,
        stop_at_s=stop_at_s,
        env=env,
        clients=clients,
        tokens=tuple(token for token in tokens if token != TOKEN),
        latency_s=latency_s,
        fault=faults[seed % len(faults)],
        fault_from_s=chance.uniform(0.0, stop_at_s),
        fault_for_s=chance.uniform(0.1, 0.4),
    )


async def _have_faults(plan: _Plan, tinybird: Emulator) -> None:
    if plan.fault is not None:
        await asyncio.sleep(plan.fault_from_s)
        tinybird.set_faults(plan.fault)
        await asyncio.sleep(plan.fault_for_s)
        tinybird.set_faults()


async def _stop_at_random(plan: _Plan) -> None:
    tokens = tuple(map(TokenEntry, plan.tokens))
    async with (
        running_tinybird(wait_delay_s=plan.latency_s, tokens=tokens, seed=plan.seed) as tinybird,
        running_process(environment(tinybird.url, **plan.env)) as proxy,
        asyncio.TaskGroup() as group,
    ):
        load = _Load(proxy.port, plan.seed)
        async with load.running(plan.clients):
            group.create_task(_have_faults(plan, tinybird))
            await asyncio.sleep(plan.stop_at_s)
            # Whoever has a 2xx for rows that Tinybird has not answered for: those are in the buffer.
            await until(lambda: load.open_count > 0 and load.accepted_count > _answered_rows(tinybird))
            open_count = load.open_count
            proxy.terminate()
            assert await proxy.ended() == 0, proxy.output.decode()
        assert open_count > 0
        assert proxy.lines[-1]["message"] == "stopped"
        assert (await proxy.logged("stopping: delivering what is left"))["rows_left"] > 0
        await _check_conservation(load, tinybird, proxy, may_double=plan.may_double)


def _answered_rows(tinybird: Emulator) -> int:
    return sum(asked.row_count or 0 for asked in tinybird.requests if asked.status == 200)


async def _check_conservation(load: _Load, tinybird: Emulator, proxy: ProxyProcess, *, may_double: bool) -> None:
    stopped = proxy.lines[-1]
    ledger = stopped["ledger"]
    doubled_count = 0
    for source in SOURCES:
        arrived = Counter(await tinybird.rows(source))
        assert set(load.accepted[source]) - arrived.keys() == set(), "rows with a 2xx that did not arrive"
        assert arrived.keys() - set(load.accepted[source]) == set(), "rows without a 2xx that arrived"
        doubled_count += arrived.total() - len(arrived)
    assert doubled_count <= (ledger["ambiguous"] if may_double else 0)
    assert stopped["balances"]
    assert ledger["accepted"] == ledger["delivered"] == load.accepted_count
    assert (ledger["buffered"], ledger["dropped"]) == (0, {})
    assert (ledger["quarantined"], ledger["unverified"], ledger["dead_lettered"]) == (0, 0, 0)
    assert load.dropped == {source: [] for source in SOURCES}
    assert load.statuses.keys() <= {200, 202, 400, 401, 403, 429, 503}
    assert {line["level"] for line in proxy.lines} <= {"info", "warning"}


@pytest.mark.parametrize("first_seed", range(0, 36, RUNS_AT_ONCE))
async def test_whenever_a_loaded_proxy_is_stopped_each_row_with_a_2xx_arrives_once_and_no_other(
    first_seed: int,
) -> None:
    async def run(plan: _Plan) -> None:
        try:
            await _stop_at_random(plan)
        except Exception as error:
            error.add_note(f"in the run of {plan}")
            raise

    async with asyncio.TaskGroup() as group:
        for seed in range(first_seed, first_seed + RUNS_AT_ONCE):
            group.create_task(run(_make_plan(seed)))


# Tinybird is dead: what is lost is told to the row.


class _LastStatus:
    """Asks for ``/status`` without pause and keeps the last answer."""

    def __init__(self) -> None:
        self.status: dict[str, Any] = {}

    async def watch(self, proxy: ProxyProcess) -> None:
        """Until nobody answers any longer."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            async with connected(proxy.admin_port) as peer:
                while True:
                    await peer.send(request("/status", method="GET"))
                    self.status = (await peer.answer()).json()
                    await asyncio.sleep(0.01)

    def buffered(self) -> dict[str, int]:
        """Rows by data source."""
        found: Counter[str] = Counter()
        for destination in self.status["destinations"]:
            found[destination["data_source"]] += destination["buffered_rows"]
        return dict(found)


WRITERS: Final = (
    _Client(source="hits"),
    _Client(source="hits", query="&wait=true", row_count=3),
    _Client(source="clicks", row_count=5, form="gzip"),
    _Client(source="clicks", query="&__tb_x=1", row_count=2, form="slow"),
    _Client(source="views", row_count=20, form="array"),
    _Client(source="views", query="&wait=true"),
)


async def _confirm(port: int) -> int:
    """Have a row delivered to each destination of ``WRITERS``; how many."""
    queries = {f"name={client.source}{client.query.replace('&wait=true', '')}" for client in WRITERS}
    for query in queries:
        assert (await post(port, f"{query}&wait=true", b"{}")).status == 200
    return len(queries)


async def _check_losses(load: _Load, proxy: ProxyProcess, *, in_doubt: int, delivered: int = 0) -> None:
    """The log says of each data source how much of what clients were promised is lost."""
    total = sum(load.lost().values())
    told = await proxy.logged("stopped with rows lost", level="error")
    assert told["data_sources"] == load.lost()
    assert (told["rows_lost"], told["of_them_may_have_arrived"]) == (total, in_doubt)
    stopped = proxy.lines[-1]
    assert (stopped["message"], stopped["balances"]) == ("stopped", True)
    ledger = stopped["ledger"]
    dropped = {"in_doubt": in_doubt, "shutdown": total - in_doubt}
    assert ledger["dropped"] == {reason: count for reason, count in dropped.items() if count}
    assert (ledger["delivered"], ledger["buffered"]) == (delivered, 0)
    assert ledger["accepted"] == total + delivered


def _hanging_rows(tinybird: Emulator) -> int:
    """Rows that Tinybird has and never answered for."""
    return sum(asked.row_count or 0 for asked in tinybird.requests if asked.fault == {"hang": True})


def _everywhere(status: Mapping[str, Any], field: str, least: int) -> bool:
    found = [destination[field] for destination in status["destinations"]]
    return len(found) == 4 and min(found) >= least


@pytest.mark.parametrize("seed", range(3))
async def test_where_nothing_listens_log_and_status_name_every_row_that_clients_were_promised(seed: int) -> None:
    chance = random.Random(seed)
    async with running_tinybird() as tinybird:
        nowhere = tinybird.url
    env = {"SHUTDOWN_TIMEOUT": f"{chance.randint(300, 700)}ms", "DRAIN_DELAY": f"{chance.choice((0, 100))}ms"}
    async with running_process(environment(nowhere, **env)) as proxy, asyncio.TaskGroup() as group:
        load, last = _Load(proxy.port, seed), _LastStatus()
        async with load.running(WRITERS):
            await proxy.status_until(lambda status: _everywhere(status, "batches_waiting", 1))
            await asyncio.sleep(chance.uniform(0, 0.5))
            group.create_task(last.watch(proxy))
            assert load.open_count > 0
            assert await proxy.stop() == 1
    assert last.status["phase"] == "stopping"
    assert last.buffered() == load.lost()
    await _check_losses(load, proxy, in_doubt=0)


@pytest.mark.parametrize("confirmed", [True, False])
async def test_what_a_tinybird_that_never_answers_has_been_sent_is_in_doubt_and_the_rest_is_not(
    confirmed: bool,
) -> None:
    env = {"BATCH_SIZE": "20", "FLUSH_INTERVAL": "10ms", "SHUTDOWN_TIMEOUT": "700ms", "UPSTREAM_CONCURRENCY": "3"}
    async with (
        running_tinybird() as tinybird,
        running_process(environment(tinybird.url, **env)) as proxy,
        asyncio.TaskGroup() as group,
    ):
        load, last = _Load(proxy.port, 0), _LastStatus()
        delivered = await _confirm(proxy.port) if confirmed else 0
        tinybird.set_faults(Fault(hang=True))
        async with load.running(WRITERS):
            await proxy.status_until(lambda status: _everywhere(status, "batches_waiting", 1))
            group.create_task(last.watch(proxy))
            assert load.open_count > 0
            assert await proxy.stop() == 1
        in_doubt = _hanging_rows(tinybird)
        assert 0 < in_doubt < load.accepted_count
        assert last.buffered() == load.lost()
        await _check_losses(load, proxy, in_doubt=in_doubt, delivered=delivered)
        tinybird.set_faults()


async def test_a_batch_that_tinybird_may_have_taken_once_is_in_doubt_though_it_was_not_in_flight_at_the_end() -> None:
    env = {"UPSTREAM_TIMEOUT": "100ms", "FLUSH_INTERVAL": "10ms", "SHUTDOWN_TIMEOUT": "300ms", "BATCH_SIZE": "20"}
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **env)) as proxy:
        tinybird.set_faults(Fault(hang=True))
        load = _Load(proxy.port, 0)
        async with load.running(WRITERS):
            await proxy.status_until(lambda status: _everywhere(status, "batches_waiting", 1))
            assert await proxy.stop() == 1
        in_doubt = proxy.lines[-1]["ledger"]["ambiguous"]
        assert 0 < in_doubt < load.accepted_count
        await _check_losses(load, proxy, in_doubt=in_doubt)
        tinybird.set_faults()


@pytest.mark.parametrize("delay", ["0s", "1m"])
async def test_a_second_signal_stops_a_loaded_proxy_at_once_and_is_as_honest(delay: str) -> None:
    env = {"BATCH_SIZE": "20", "FLUSH_INTERVAL": "10ms", "UPSTREAM_CONCURRENCY": "3"}
    env |= {"SHUTDOWN_TIMEOUT": "1h", "DRAIN_DELAY": delay}
    async with (
        running_tinybird() as tinybird,
        running_process(environment(tinybird.url, **env)) as proxy,
        asyncio.TaskGroup() as group,
    ):
        load, last = _Load(proxy.port, 0), _LastStatus()
        delivered = await _confirm(proxy.port)
        tinybird.set_faults(Fault(hang=True))
        async with load.running(WRITERS):
            await proxy.status_until(lambda status: _everywhere(status, "in_flight", 3))
            proxy.terminate()
            await proxy.logged("stopping: delivering what is left")
            is_refusing = delay == "0s"
            await proxy.status_until(lambda status: status["drain"]["refusing"] is is_refusing)
            group.create_task(last.watch(proxy))
            await until(lambda: last.status != {})
            assert await proxy.stop() == 1
        await proxy.logged("a second signal: stopping now", signal="SIGTERM")
        if is_refusing:
            assert last.buffered() == load.lost()
        await _check_losses(load, proxy, in_doubt=_hanging_rows(tinybird), delivered=delivered)
        tinybird.set_faults()


# Nobody asks a process that is killed.


@pytest.mark.parametrize("seed", range(3))
async def test_a_proxy_killed_under_load_hangs_nobody_and_keeps_what_it_said_was_delivered(seed: int) -> None:
    chance = random.Random(seed)
    async with running_tinybird(wait_delay_s=0.05) as tinybird:
        env = environment(tinybird.url, FLUSH_INTERVAL=f"{chance.randint(5, 100)}ms")
        async with running_process(env) as proxy:
            load = _Load(proxy.port, seed)
            async with load.running(WRITERS):
                await until(lambda: load.accepted_count > 0)
                await asyncio.sleep(chance.uniform(0, 0.5))
                await until(lambda: load.open_count > 0 and load.accepted_count > _answered_rows(tinybird))
                assert await proxy.stop(signal.SIGKILL) == -signal.SIGKILL
            assert load.open_count == 0
        for source in SOURCES:
            arrived = Counter(await tinybird.rows(source))
            assert set(load.delivered[source]) <= arrived.keys()
            assert arrived.keys() <= {*load.accepted[source], *load.others[source]}
            assert set(arrived.values()) <= {1}
        async with running_process({**env, "PORT": str(proxy.port), "ADMIN_PORT": str(proxy.admin_port)}) as next_one:
            assert (await next_one.status())["ledger"]["accepted"] == 0
            assert (await post(next_one.port, "name=hits&wait=true", b'{"next":1}')).status == 200
            assert await next_one.stop() == 0
        assert b'{"next":1}' in await tinybird.rows("hits")


async def test_what_was_in_the_memory_of_a_killed_proxy_is_lost_and_does_not_come_back() -> None:
    async with running_tinybird() as tinybird:
        env = environment(tinybird.url, FLUSH_INTERVAL="1h")
        async with running_process(env) as proxy:
            assert (await post(proxy.port, body=b'{"first":1}')).status == 202
            await tinybird.wait_for_rows("hits", 1)
            assert (await post(proxy.port, body=b'{"in":"memory"}')).status == 202
            assert await proxy.stop(signal.SIGKILL) == -signal.SIGKILL
        async with running_process(env) as next_one:
            assert (await next_one.status())["buffer"]["rows"] == 0
            assert await next_one.stop() == 0
        assert await tinybird.rows("hits") == [b'{"first":1}']
