"""The proxy's own rows: each minute one, apart from the users' rows in everything, and a last one at the stop."""

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from tests.proxy.running import (
    TOKEN,
    ProxyProcess,
    environment,
    post,
    running_process,
    running_tinybird,
    until,
)

from tinybird_proxy.app.run import Proxy
from tinybird_proxy.app.run import running as running_app
from tinybird_proxy.app.secrets import load_secrets
from tinybird_proxy.app.self_metrics import BUFFER_ROWS, LAST_ROW_S, BorrowedToken, SelfMetrics, read_snapshot
from tinybird_proxy.config import from_env
from tinybird_proxy.emulator import Emulator, Fault
from tinybird_proxy.pacing import State
from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.self_metrics import datasource_schema
from tinybird_proxy.telemetry.prometheus import Snapshot
from tinybird_proxy.testing.fake_upstream import Attempt, FakeUpstream, Script, after, hang, quarantining, reply
from tinybird_proxy.testing.pipelines import Client, Setup, imbalances, numbered, numbers_of
from tinybird_proxy.tokens import OwnToken

OWN = "proxy_metrics"
simulated = pytest.mark.looptime(idle_timeout=1)


def now() -> float:
    return asyncio.get_running_loop().time()


# In simulated time.


@dataclass(frozen=True, slots=True)
class Scene:
    """The users' pipeline, a client of it, the proxy's own rows, and the Tinybird that both reach."""

    tinybird: FakeUpstream
    users: Pipeline
    hits: Client
    own: SelfMetrics

    def rows(self) -> list[dict[str, Any]]:
        """Our own rows that Tinybird has."""
        return self.tinybird.taken(OWN)


def snapshot(users: Pipeline, *, uptime_s: float) -> Snapshot:
    held = users.surroundings.buffer.occupancy
    return Snapshot(
        version="1.2.3",
        instance=users.surroundings.upstream.instance,
        meters=users.surroundings.meters,
        ledger=users.ledger(),
        imbalance=users.check_ledger(),
        destinations=users.facts(),
        buffer_rows=users.buffered_rows(),
        buffer_bytes=held.size_bytes,
        capacity_rows=users.limits.capacity.max_rows,
        capacity_bytes=users.limits.capacity.max_bytes,
        utilisation=held.row_count / users.limits.capacity.max_rows,
        utilization_percent=0,
        oldest_age_s=users.oldest_age_s(),
        seconds_to_drain=users.seconds_to_drain(),
        drain_time_s=0,
        letters_rows=users.surroundings.letters.held_rows(),
        letters_bytes=users.surroundings.letters.held_bytes,
        letters_max_bytes=users.surroundings.letters.max_bytes,
        receiving_bytes=0,
        waiting_requests=users.waiter_count,
        ready=True,
        uptime_s=uptime_s,
    )


@asynccontextmanager
async def scene(
    setup: Setup | None = None, *, name: str = OWN, clock: Callable[[], float] = now
) -> AsyncIterator[Scene]:
    """Everything running; a row of our own is due each minute of ``clock`` from now."""
    tinybird, setup = FakeUpstream(), setup or Setup()
    started_at = clock()
    users = setup.pipeline(tinybird)
    users.surroundings = replace(users.surroundings, now=clock)

    def utc_ms() -> int:
        return int(setup.wall.now().timestamp() * 1000)

    own = SelfMetrics(
        name,
        users,
        lambda: read_snapshot(snapshot(users, uptime_s=clock() - started_at), node="node-7", time_ms=utc_ms()),
    )
    async with users.running(), own.running():
        task = asyncio.create_task(own.run())
        hits = Client(users)
        await hits.confirm()
        yield Scene(tinybird, users, hits, own)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert imbalances(users) == []


@simulated
async def test_a_row_is_written_each_minute_with_what_happened_in_it() -> None:
    async with scene() as s:
        assert s.own.status()["sentence"] == "No row was due yet."
        await asyncio.sleep(1)
        for minute in range(3):
            for _ in range(minute):
                s.hits.offer(numbered(range(10)))
            await asyncio.sleep(60.0)
        await asyncio.sleep(5)
        rows = s.rows()
        assert [(row["nodeId"], row["rows"], row["requests"]) for row in rows] == [
            ("node-7", 1, 1),
            ("node-7", 10, 1),
            ("node-7", 20, 2),
        ]
        assert [row["time"] - rows[0]["time"] for row in rows] == [0, 60_000, 120_000]
        assert [row["interval_s"] for row in rows] == [60.0, 60.0, 60.0]
        assert [row["starts"] for row in rows] == [1, 0, 0]
        assert [row["flushes"] for row in rows] == [1, 1, 1]
        assert [attempt.at % 60 < 1 for attempt in s.tinybird.of(OWN)] == [True, True, True]


@simulated
async def test_what_the_own_rows_do_is_not_in_the_users_counters() -> None:
    async with scene() as s:
        await asyncio.sleep(605)
        assert len(s.rows()) == 10
        assert s.users.ledger().accepted == 1
        assert s.users.surroundings.meters.upstream_replies == {"200": 1}
        assert s.users.surroundings.meters.requests_accepted == 1
        assert [d.key.name for d in s.users.destinations()] == ["hits"]
        assert s.rows()[-1]["upstream_requests"] == 0
        assert s.own.status()["ledger"]["delivered"] == 10


@simulated
async def test_a_data_source_that_users_write_to_is_shared_by_name_only() -> None:
    async with scene(name="hits") as s:
        for number in range(10):
            s.hits.offer(numbered([number]))
            await asyncio.sleep(61)
        assert s.users.ledger().accepted == s.users.ledger().delivered == 11
        assert s.own.status()["ledger"]["delivered"] == 10
        for attempt in s.tinybird.of("hits"):
            assert len({"nodeId" in row for row in attempt.rows}) == 1  # never in one batch
        # Ours are refused, theirs are not.
        s.tinybird.will(then=lambda attempt: 403 if "nodeId" in attempt.rows[0] else 200, name="hits")
        await asyncio.sleep(61)
        s.hits.offer(numbered([10]))
        await asyncio.sleep(2)
        assert s.own.status()["state"] is State.HELD
        assert s.hits.destination.pacing.state is State.DELIVERING
        assert s.users.ledger().delivered == 12


@simulated
async def test_while_the_users_data_source_is_down_the_own_rows_say_so() -> None:
    async with scene() as s:
        s.tinybird.will(then=500, name="hits")
        for number in range(180):
            s.hits.offer(numbered([number]))
            await asyncio.sleep(1)
        await asyncio.sleep(1)
        last = s.rows()[-1]
        assert last["buffered_rows"] > 100
        assert last["oldest_row_age_s"] > 100
        assert last["undelivered_destinations"] == 1
        assert last["delivered_rows"] == 0
        assert last["failed_upstream_requests"] == last["upstream_requests"] > 0
        assert last["ambiguous_rows"] >= 0
        s.tinybird.will(name="hits")
        await asyncio.sleep(120)
        assert sum(row["rows"] for row in s.rows()) == sum(row["delivered_rows"] for row in s.rows()) == 181


@simulated
@pytest.mark.parametrize("fault", [500, 429, 401, 404, hang()])
async def test_whatever_becomes_of_the_own_rows_the_users_rows_go_on(fault: Script) -> None:
    async with scene() as s:
        s.tinybird.will(then=fault, name=OWN)
        for number in range(200):
            assert s.hits.offer(numbered([number])) is None
            await asyncio.sleep(3)
        assert s.users.ledger().delivered == 201
        assert numbers_of(s.tinybird.taken("hits")[1:]) == list(range(200))
        assert s.hits.destination.pacing.state is State.DELIVERING
        assert len(s.tinybird.of(OWN)) < 30


@simulated
@pytest.mark.parametrize("fault", [500, 429, 401, 404, reply(429, {}, Retry_After="120")])
async def test_after_an_outage_the_rows_say_everything_that_happened(fault: Script) -> None:
    async with scene() as s:
        for trouble in (False, True, False):
            s.tinybird.will(then=fault if trouble else 200, name=OWN)
            for number in range(100):
                s.hits.offer(numbered([number]))
                await asyncio.sleep(4)
        await asyncio.sleep(100)
        rows = s.rows()
        assert sum(row["rows"] for row in rows) == 301
        assert sum(row["delivered_rows"] for row in rows) == 301
        assert sum(row["starts"] for row in rows) == 1
        times = [row["time"] for row in rows]
        assert sorted(set(times)) == sorted(times)
        assert s.own.status()["state"] is State.DELIVERING


@simulated
@pytest.mark.parametrize("fault", [400, 404])
async def test_rows_that_were_refused_at_first_contact_are_made_good(fault: int) -> None:
    async with scene() as s:
        s.tinybird.will(then=fault, name=OWN)
        await asyncio.sleep(290)
        assert s.rows() == []
        assert s.own.status()["rows_not_made"] == 4
        s.tinybird.will(name=OWN)
        await asyncio.sleep(120)
        first = s.rows()[0]
        assert (first["starts"], first["rows"]) == (1, 1)
        assert first["interval_s"] == first["uptime_s"] >= 300


@simulated
async def test_a_full_buffer_of_its_own_makes_no_more_rows_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    async with scene() as s:
        await asyncio.sleep(61)
        s.tinybird.will(then=503, name=OWN)
        await asyncio.sleep((BUFFER_ROWS + 20) * 60)
        assert s.own.status()["rows_not_made"] == 20
        assert s.own.status()["ledger"]["buffered"] == BUFFER_ROWS
        said = [record for record in caplog.records if "no more are made" in record.message]
        assert [record.levelname for record in said] == ["WARNING"]
        assert s.users.surroundings.buffer.occupancy.row_count == 0
        s.tinybird.will(name=OWN)
        s.hits.offer(numbered(range(7)))
        await asyncio.sleep(180)
        rows = s.rows()
        assert max(row["interval_s"] for row in rows) == 21 * 60
        assert sum(row["rows"] for row in rows) == 8


@simulated
@pytest.mark.parametrize("fault", [404, 403, 400, quarantining(1)])
async def test_what_a_person_has_to_put_right_is_told_once_an_hour(
    fault: Script, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tinybird_proxy")
    async with scene() as s:
        s.tinybird.will(then=fault, name=OWN)
        await asyncio.sleep(3 * 3600 + 90)
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert {record.name for record in warnings} == {"tinybird_proxy.self_metrics"}
        assert len(warnings) == 4
        assert "Create the data source with the schema that the README gives" in warnings[0].message
        caplog.clear()
        s.tinybird.will(name=OWN)
        await asyncio.sleep(180)
        assert [record.message for record in caplog.records] == [
            "Tinybird takes the rows of the proxy's own counters again"
        ]


@simulated
async def test_own_rows_that_tinybird_rejects_are_no_dead_letters_of_the_users(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scene() as s:
        await asyncio.sleep(61)
        s.tinybird.will(then=400, name=OWN)
        await asyncio.sleep(3 * 86_400)
        assert s.own.status()["ledger"]["letters_evicted"] == 0
        assert {record.name for record in caplog.records} == {"tinybird_proxy.self_metrics"}
        assert {record.levelname for record in caplog.records} == {"WARNING"}
        assert s.users.ledger().dead_lettered == 0
        assert s.users.surroundings.letters.held_rows() == 0
        assert s.hits.offer(numbered([1])) is None
        await asyncio.sleep(2)
        assert s.users.ledger().delivered == 2


@simulated
async def test_an_outage_of_everything_is_told_by_the_users_destinations_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with scene() as s:
        await asyncio.sleep(61)
        s.tinybird.will(then=500)
        s.hits.offer(numbered([1]))
        await asyncio.sleep(600)
        assert [record.name for record in caplog.records] == ["tinybird_proxy.destination"]
        s.tinybird.will()
        await asyncio.sleep(120)
        assert sum(row["delivered_rows"] for row in s.rows()) == 2
        assert len(s.rows()) == 13


@simulated
async def test_a_reading_that_breaks_ends_nothing_and_is_told_once_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    tinybird = FakeUpstream()
    users = Setup().pipeline(tinybird)

    def broken() -> Any:
        raise RuntimeError("made for a test")

    own = SelfMetrics(OWN, users, broken)
    async with users.running(), own.running():
        task = asyncio.create_task(own.run())
        await asyncio.sleep(1830)
        assert not task.done()
        assert len(caplog.records) == 1
        assert "could not be made" in caplog.records[0].message
        async with own.finishing(now() + 25, asyncio.Event()):
            pass
        task.cancel()


@simulated
async def test_an_error_inside_the_proxy_is_told_whosever_rows_it_hit(caplog: pytest.LogCaptureFixture) -> None:
    def breaks(_: Attempt) -> Script:
        raise RuntimeError("made for a test")

    async with scene() as s:
        s.tinybird.will(breaks, name=OWN)
        await asyncio.sleep(90)
        assert [record.message for record in caplog.records] == ["an attempt broke inside the proxy; the batch is kept"]
        assert len(s.rows()) == 1


@simulated
async def test_after_the_machine_slept_there_is_one_row_for_all_the_time() -> None:
    slept_s = 0.0
    async with scene(clock=lambda: now() + slept_s) as s:
        await asyncio.sleep(90)
        slept_s = 1000.0
        s.hits.offer(numbered(range(5)))
        await asyncio.sleep(80)
        assert [(row["interval_s"], row["rows"]) for row in s.rows()] == [(60.0, 1), (1060.0, 5)]
        await asyncio.sleep(20)
        assert s.rows()[2]["interval_s"] == 60.0


# The token.


def _changed() -> OwnToken:
    token = OwnToken("p.old", 0.0)
    token.offer("p.new", 1.0)
    return token


def test_a_borrowed_token_decides_nothing_about_a_changed_one() -> None:
    users = _changed()
    borrowed = BorrowedToken(users)
    secret = borrowed.choose(0.0)
    assert secret is users.current
    assert secret is not None
    borrowed.denied(secret, 5.0)
    assert secret.denied_at is None
    assert borrowed.choose(0.0) is users.candidate  # perhaps that one is good
    assert users.candidate is not None
    borrowed.accepted(users.candidate, 6.0)
    borrowed.reject_candidate(users.candidate, 6.0)
    assert users.choose(7.0) is users.candidate
    assert (users.candidate.accepted_at, users.rejected_at) == (None, None)


def test_a_borrowed_token_is_the_one_in_use_as_soon_as_it_changes() -> None:
    users = _changed()
    borrowed = BorrowedToken(users)
    assert users.candidate is not None
    users.accepted(users.candidate, 2.0)
    chosen = borrowed.choose(0.0)
    assert chosen is not None
    assert chosen.value == "p.new"
    assert BorrowedToken(OwnToken(None, 0.0)).choose(0.0) is None


@simulated
async def test_a_changed_token_that_may_not_write_the_own_rows_is_still_taken_for_the_users() -> None:
    token = OwnToken("p.old", 0.0)
    async with scene(Setup(own_token=token)) as s:
        await asyncio.sleep(61)
        s.tinybird.will(then=lambda attempt: 403 if attempt.token == "p.new" else 200, name=OWN)
        token.offer("p.new", now())
        await asyncio.sleep(120)
        assert token.rejected_at is None
        assert token.candidate is not None
        s.hits.offer(numbered([1]))
        await asyncio.sleep(2)
        assert token.current is not None
        assert token.current.value == "p.new"
        assert {attempt.token for attempt in s.tinybird.of(OWN)} == {"p.old"}


@simulated
async def test_while_nobody_else_writes_a_changed_token_is_tried_for_the_own_rows() -> None:
    token = OwnToken("p.old", 0.0)
    async with scene(Setup(own_token=token)) as s:
        await asyncio.sleep(61)
        s.tinybird.will(then=lambda attempt: 200 if attempt.token == "p.new" else 403)
        token.offer("p.new", now())
        await asyncio.sleep(300)
        assert len(s.rows()) >= 5
        assert token.candidate is not None


# The stop.


@simulated
async def test_a_last_row_is_written_once_the_users_rows_are_delivered() -> None:
    async with scene(Setup(flush_interval_s=3600)) as s:
        await asyncio.sleep(90)
        s.hits.offer(numbered(range(10)))
        s.tinybird.will(after(3, 200), name="hits")
        began_at = now()
        async with s.own.finishing(now() + 25, asyncio.Event()):
            await s.users.drain(now() + 25, stop_now=asyncio.Event(), report=lambda _: None)
        assert now() - began_at < 4
        last = s.rows()[-1]
        assert (last["stops"], last["rows"], last["delivered_rows"], last["buffered_rows"]) == (1, 10, 10, 0)
        assert last["interval_s"] < 60
        await asyncio.sleep(200)
        assert len(s.rows()) == 2


@simulated
async def test_a_process_that_lived_less_than_a_minute_leaves_a_row_too() -> None:
    async with scene() as s:
        async with s.own.finishing(now() + 25, asyncio.Event()):
            pass
        (row,) = s.rows()
        assert (row["starts"], row["stops"], row["rows"]) == (1, 1, 1)


@simulated
async def test_rows_at_risk_are_in_a_row_that_leaves_before_the_deadline() -> None:
    async with scene() as s:
        await asyncio.sleep(61)
        s.tinybird.will(then=503, name="hits")
        s.hits.offer(numbered(range(10)))
        await asyncio.sleep(5)
        began_at = now()
        async with s.own.finishing(began_at + 25, asyncio.Event()):
            await s.users.drain(began_at + 25, stop_now=asyncio.Event(), report=lambda _: None)
        assert now() - began_at == pytest.approx(25, abs=0.01)
        last = s.rows()[-1]
        assert (last["stops"], last["buffered_rows"]) == (1, 10)
        assert s.tinybird.of(OWN)[-1].at == pytest.approx(began_at + 25 - LAST_ROW_S, abs=0.1)


@simulated
@pytest.mark.parametrize("left_s", [0.0, 0.5, 1.5, 25.0])
async def test_own_rows_that_hang_delay_a_stop_by_two_seconds_at_most_and_never_beyond_the_deadline(
    left_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tinybird_proxy")
    async with scene() as s:
        s.tinybird.will(then=hang(), name=OWN)
        await asyncio.sleep(150)
        began_at = now()
        async with s.own.finishing(began_at + left_s, asyncio.Event()):
            await s.users.drain(began_at + left_s, stop_now=asyncio.Event(), report=lambda _: None)
        assert now() - began_at == pytest.approx(min(LAST_ROW_S, left_s), abs=0.01)
    assert s.users.ledger().dropped_total == 0
    assert [(record.levelname, record.name) for record in caplog.records] == [("INFO", "tinybird_proxy.self_metrics")]
    assert caplog.records[0].__dict__["fields"] == {"data_source": OWN, "rows": 3}


@simulated
async def test_a_second_signal_waits_for_no_row_of_our_own() -> None:
    stop_now = asyncio.Event()
    async with scene() as s:
        s.tinybird.will(then=hang())
        s.hits.offer(numbered([1]))
        await asyncio.sleep(61)
        began_at = now()
        asyncio.get_running_loop().call_later(1, stop_now.set)
        async with s.own.finishing(began_at + 25, stop_now):
            await s.users.drain(began_at + 25, stop_now=stop_now, report=lambda _: None)
        assert now() - began_at == pytest.approx(1, abs=0.01)


# With real ports.


@asynccontextmanager
async def running(tinybird: Emulator, *, interval_s: float = 0.05, **env: str | None) -> AsyncIterator[Proxy]:
    """A proxy in this process that writes a row of its own every ``interval_s``."""
    env = {"TINYBIRD_METRICS_DATASOURCE": OWN, "NODE_ID": "node-7", **env}
    config = from_env(environment(tinybird.url, **env))
    secrets = load_secrets(config, utc_now=time.time, hash_key=b"a key", on_new_token=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", os.devnull)
        async with running_app(
            config, secrets, instance="node-7-x", env={}, self_metrics_interval_s=interval_s
        ) as proxy:
            yield proxy
    assert proxy.pipeline.ledger().imbalance(proxy.pipeline.buffered_rows()) == 0


def columns() -> dict[str, str]:
    """The schema that the README gives, as the emulator takes it."""
    lines = [line.split() for line in datasource_schema().splitlines() if "`json:$." in line]
    return {name.strip("`"): kind for name, kind, _ in lines}


async def own_rows(tinybird: Emulator, name: str = OWN) -> list[dict[str, Any]]:
    rows = [json.loads(row) for row in await tinybird.rows(name)]
    return [row for row in rows if "nodeId" in row]


async def test_the_rows_fit_the_schema_and_say_what_users_wrote() -> None:
    async with running_tinybird(schemas={OWN: columns()}) as tinybird, running(tinybird) as proxy:
        for number in range(20):
            assert (await post(proxy.port, body=b'{"n":%d}\n{"n":0}' % number)).status == 202

        async def all_told() -> bool:
            return sum(int(row["delivered_rows"]) for row in await own_rows(tinybird)) == 40

        await until(all_told)
        rows = await own_rows(tinybird)
        assert await tinybird.quarantined_rows(OWN) == []
        assert {row["nodeId"] for row in rows} == {"node-7"}
        assert {row["instance"] for row in rows} == {"node-7-x"}
        assert sum(row["requests"] for row in rows) == 20
        assert sum(row["settled_wire_bytes"] for row in rows) > 0
        assert abs(rows[-1]["time"] / 1000 - time.time()) < 60
        status = proxy.reporter.status()
        assert status["ledger"]["accepted"] == 40
        assert status["self_metrics"]["data_source"] == OWN
        assert status["self_metrics"]["ledger"]["delivered"] >= len(rows) - 1
        assert [d["data_source"] for d in status["destinations"]] == ["hits"]


async def test_without_the_option_nothing_is_written() -> None:
    async with running_tinybird() as tinybird, running(tinybird, TINYBIRD_METRICS_DATASOURCE=None) as proxy:
        assert (await post(proxy.port, "name=hits&wait=true")).status == 200
        assert proxy.reporter.status()["self_metrics"] is None
        assert [found.name for found in await tinybird.datasources()] == ["hits"]


async def test_users_may_write_to_the_same_data_source() -> None:
    async with running_tinybird() as tinybird, running(tinybird, TINYBIRD_METRICS_DATASOURCE="hits") as proxy:
        for number in range(10):
            assert (await post(proxy.port, "name=hits&wait=true", b'{"n":%d}' % number)).status == 200

        async def some_of_both() -> bool:
            return len(await own_rows(tinybird, "hits")) >= 3

        await until(some_of_both)
        theirs = [json.loads(row) for row in await tinybird.rows("hits")]
        assert sorted(row["n"] for row in theirs if "n" in row) == list(range(10))
        assert proxy.reporter.status()["ledger"]["accepted"] == 10


@pytest.mark.parametrize("fault", [{"hang": True}, {"status": 503}, {"status": 404}, {"reset": "after_body"}])
async def test_users_rows_are_delivered_whatever_tinybird_does_with_ours(fault: dict[str, Any]) -> None:
    async with running_tinybird() as tinybird, running(tinybird, interval_s=0.01, MAX_DESTINATIONS="1") as proxy:
        tinybird.set_faults(Fault(datasource=OWN, **fault))
        await tinybird.wait_until(lambda: any(found.query["name"] == OWN for found in tinybird.requests))
        for number in range(50):
            answer = await post(proxy.port, "name=hits&wait=true", b'{"n":%d}' % number)
            assert (answer.status, answer["X-Ack"]) == (200, "delivered")
        assert proxy.reporter.status()["ledger"]["delivered"] == 50
        assert proxy.reporter.sentence() == "All is well."
        tinybird.set_faults()


async def _lines(proxy: ProxyProcess) -> list[tuple[str, str]]:
    return [(line["level"], line["logger"]) for line in proxy.lines if line["level"] != "info"]


async def test_a_process_leaves_a_last_row_with_everything_it_did() -> None:
    env = {"TINYBIRD_METRICS_DATASOURCE": OWN, "NODE_ID": "node-7", "FLUSH_INTERVAL": "1h"}
    async with running_tinybird(schemas={OWN: columns()}) as tinybird:
        async with running_process(environment(tinybird.url, **env)) as proxy:
            for _ in range(5):
                assert (await post(proxy.port)).status == 202
            assert (await proxy.status())["self_metrics"]["rows_not_made"] == 0
            assert await proxy.stop() == 0
            assert await _lines(proxy) == []
        (row,) = await own_rows(tinybird)
        assert (row["starts"], row["stops"]) == (1, 1)
        assert (row["nodeId"], row["requests"], row["rows"], row["delivered_rows"]) == ("node-7", 5, 5, 5)
        assert await tinybird.quarantined_rows(OWN) == []


async def test_own_rows_that_cannot_be_delivered_are_no_loss_of_a_stop() -> None:
    env = {"TINYBIRD_METRICS_DATASOURCE": OWN}
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **env)) as proxy:
        tinybird.set_faults(Fault(datasource=OWN, hang=True))
        assert (await post(proxy.port, "name=hits&wait=true")).status == 200
        assert await proxy.stop() == 0
        assert await _lines(proxy) == []
        told = [line for line in proxy.lines if line["logger"] == "tinybird_proxy.self_metrics"]
        assert [(line["level"], line["rows"]) for line in told] == [("info", 1)]
        stopped = await proxy.logged("stopped", balances=True)
        assert stopped["ledger"]["accepted"] == stopped["ledger"]["delivered"] == 1
        assert TOKEN.encode() not in proxy.output
        tinybird.set_faults()
