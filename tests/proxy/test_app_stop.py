"""How a proxy stops: everything that it said yes to is delivered once, or counted, named and told as lost."""

import asyncio
import itertools
import os
import random
import re
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from tests.proxy.running import (
    Peer,
    ask,
    asked,
    connected,
    environment,
    post,
    request,
    running_process,
    running_tinybird,
    running_world,
    serving,
    until,
)

from tinybird_proxy.app.exit_status import ExitStatus
from tinybird_proxy.app.last_words import LastWords
from tinybird_proxy.app.run import drain
from tinybird_proxy.config import from_env
from tinybird_proxy.emulator import Fault, TokenEntry

LATER = {"FLUSH_INTERVAL": "1h"}
DRAIN = {"X-Tinybird-Proxy": "1"}


async def _fill(port: int, row_count: int, *, name: str = "hits") -> list[bytes]:
    """Have so many rows accepted, the first of them delivered before the others are sent."""
    rows = [b'{"n":%d}' % n for n in range(row_count)]
    assert (await post(port, f"name={name}", rows[0])).status == 202
    async with connected(port) as peer:
        for row in rows[1:]:
            await peer.send(request(f"/v0/events?name={name}", row))
            assert (await peer.answer()).status == 202
    return rows


# Nothing is lost.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_delivers_a_full_buffer_exactly_once(number: signal.Signals) -> None:
    env = {"BUFFER_SIZE": "300", "BATCH_SIZE": "300", **LATER}
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **env)) as proxy:
        names = ("hits", "clicks", "views")  # none of them fills a batch
        rows = {name: await _fill(proxy.port, 100, name=name) for name in names}
        for n in itertools.count():
            name, row = names[n % 3], b'{"more":%d}' % n
            if (await post(proxy.port, f"name={name}", row)).status != 202:
                break
            rows[name].append(row)
        status = await proxy.status()
        assert status["buffer"]["utilisation"] >= 1
        assert status["requests"]["refused"] == {"buffer_full": 1}
        assert await proxy.stop(number) == 0
        for name in names:
            assert sorted(await tinybird.rows(name)) == sorted(rows[name])
        stopped = await proxy.logged("stopped", balances=True)
        assert stopped["ledger"]["accepted"] == stopped["ledger"]["delivered"] == sum(map(len, rows.values()))
        assert stopped["ledger"]["buffered"] == 0
        assert {line["level"] for line in proxy.lines} == {"info"}


async def test_the_rows_at_risk_are_logged_at_the_signal() -> None:
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **LATER)) as proxy:
        await _fill(proxy.port, 10)
        left = (await proxy.status())["buffer"]["rows"]
        assert left > 0
        assert await proxy.stop() == 0
        await proxy.logged("stopping: delivering what is left", rows_left=left)


async def test_a_waiting_client_is_answered_before_the_end() -> None:
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **LATER)) as proxy:
        await _fill(proxy.port, 2)
        async with connected(proxy.port) as peer:
            await peer.send(request("/v0/events?name=hits&wait=true", b'{"waits":1}\n{"waits":2}'))
            await proxy.status_until(lambda status: status["requests"]["waiting"] == 1)
            proxy.terminate()
            answer = await peer.answer()
            assert answer.status == 200
            assert answer["X-Ack"] == "delivered"
            assert answer.json() == {"successful_rows": 2, "quarantined_rows": 0}
        assert await proxy.ended() == 0


async def test_a_stop_waits_out_no_flush_interval_and_no_pause_of_an_idle_connection() -> None:
    async with (
        running_tinybird() as tinybird,
        running_process(environment(tinybird.url, **LATER)) as proxy,
        connected(proxy.port) as idle,
        connected(proxy.port),  # and one that never asks anything
        connected(proxy.admin_port) as scraper,
    ):
        await idle.send(request("/v0/events?name=hits", b"{}"))
        assert (await idle.answer()).status == 202
        await scraper.send(request("/metrics", method="GET"))
        assert (await scraper.answer()).status == 200
        began_at = time.monotonic()
        assert await proxy.stop() == 0
        assert time.monotonic() - began_at < 3


async def test_an_upload_that_stands_still_holds_no_stop_up() -> None:
    async with (
        running_tinybird() as tinybird,
        running_process(environment(tinybird.url)) as proxy,
        connected(proxy.port) as peer,
        connected(proxy.admin_port) as admin,
    ):
        await peer.send(request("/v0/events?name=hits", headers={"Content-Length": "1000"}) + b"{")
        await admin.send(request("/drain", headers={**DRAIN, "Content-Length": "1000"}) + b"{")
        assert (await admin.answer()).status == 202
        await proxy.status_until(lambda status: status["drain"]["refusing"])
        began_at = time.monotonic()
        assert await proxy.stop() == 0
        assert time.monotonic() - began_at < 8
        assert await tinybird.rows("hits") == []


async def test_a_request_for_another_path_that_tinybird_does_not_answer_holds_no_stop_up() -> None:
    arrived = asyncio.Event()

    async def never(peer: Peer) -> None:
        await asked(peer)
        arrived.set()
        await peer.rest()

    async with serving(never) as port:
        env = environment(f"http://127.0.0.1:{port}", TINYBIRD_TOKEN=None)
        async with running_process(env) as proxy, connected(proxy.port) as peer:
            await peer.send(request("/v0/sql?q=select", method="GET"))
            async with asyncio.timeout(10):
                await arrived.wait()
            began_at = time.monotonic()
            assert await proxy.stop() == 0
            assert time.monotonic() - began_at < 8
            assert {line["level"] for line in proxy.lines} == {"info"}
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await peer.answer()


async def test_during_the_delay_it_is_unready_and_takes_rows_and_then_it_refuses_and_delivers() -> None:
    env = {**LATER, "DRAIN_DELAY": "1s", "SHUTDOWN_TIMEOUT": "20s"}
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **env)) as proxy:
        await _fill(proxy.port, 2)
        tinybird.set_faults(Fault(status=503))  # so that the drain lasts until this test has seen it
        proxy.terminate()
        await proxy.logged("stopping: delivering what is left")
        ready = await ask(proxy.admin_port, "/readyz", method="GET")
        during = await post(proxy.port, body=b'{"during":1}')
        assert (ready.status, ready.json()["phase"]) == (503, "stopping")
        assert during.status == 202, "the delay is over: this machine is too slow for this test"
        await proxy.status_until(lambda status: status["drain"]["refusing"])
        async with connected(proxy.port) as peer:
            await peer.send(request("/v0/events?name=hits", b'{"after":1}'))
            refused = await peer.answer()
            assert await peer.rest() == b""
        assert (refused.status, refused["Connection"], refused["Retry-After"]) == (503, "close", "1")
        assert "draining" in refused.error
        assert (await ask(proxy.admin_port, "/livez", method="GET")).status == 200
        tinybird.set_faults()
        assert await proxy.ended() == 0
        assert sorted(await tinybird.rows("hits")) == [b'{"during":1}', b'{"n":0}', b'{"n":1}']


async def test_a_stop_that_begins_while_it_drains_on_request_goes_on_from_there() -> None:
    env = {"DRAIN_DELAY": "300ms"}
    async with running_tinybird() as tinybird, running_process(environment(tinybird.url, **env)) as proxy:
        assert (await ask(proxy.admin_port, "/drain", headers=DRAIN)).status == 202
        proxy.terminate()
        await proxy.logged("stopping: delivering what is left")
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # it may be gone by now
            answer = await ask(proxy.admin_port, "/drain", method="DELETE", headers=DRAIN)
            assert answer.status == 409
            assert "stopping" in answer.error
        assert await proxy.ended() == 0


class _Load:
    """Clients that send without pause until they are refused, and remember what they were told yes for."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._numbers = itertools.count()
        self.sent: list[bytes] = []
        self.accepted: list[bytes] = []
        self.refused: set[int] = set()

    async def send(self, query: str, row_count: int) -> None:
        """Be one client."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            async with connected(self._port) as peer:
                while True:
                    rows = [b'{"n":%d}' % next(self._numbers) for _ in range(row_count)]
                    self.sent += rows
                    await peer.send(request(f"/v0/events?name=hits{query}", b"\n".join(rows)))
                    answer = await peer.answer()
                    if answer.status not in (200, 202):
                        self.refused.add(answer.status)
                        return
                    self.accepted += rows


@pytest.mark.parametrize("seed", range(4))
async def test_whenever_the_signal_comes_what_was_accepted_under_load_is_there_exactly_once(seed: int) -> None:
    chance = random.Random(seed)
    env = {"FLUSH_INTERVAL": f"{chance.randint(1, 50)}ms", "BATCH_SIZE": str(chance.choice((40, 500, 100_000)))}
    env["UPSTREAM_RATE"] = "1000"
    async with (
        running_tinybird(wait_delay_s=chance.uniform(0, 0.1)) as tinybird,
        running_process(environment(tinybird.url, **env)) as proxy,
        asyncio.TaskGroup() as group,
    ):
        load = _Load(proxy.port)
        kinds = (("", 1), ("", 1), ("&wait=true", 1), ("", 20), ("&wait=true", 3), ("", 300))
        clients = [group.create_task(load.send(query, row_count)) for query, row_count in kinds]
        await until(lambda: len(load.accepted) > 500)
        await asyncio.sleep(chance.uniform(0, 0.2))  # any moment will do
        assert await proxy.stop(chance.choice((signal.SIGTERM, signal.SIGINT))) == 0
        await asyncio.gather(*clients)
        assert load.refused <= {503}
        arrived = Counter(await tinybird.rows("hits"))
        assert Counter(load.accepted) - arrived == Counter()
        assert set(arrived.values()) == {1}
        assert arrived.keys() <= set(load.sent)
        await proxy.logged("stopped", balances=True)


# Something is lost, and said.


async def test_a_dead_tinybird_costs_the_rows_and_the_log_says_how_many_of_which_data_source() -> None:
    async def hang_up(_: Peer) -> None:
        return

    async with serving(hang_up) as dead:
        pass
    env = environment(f"http://127.0.0.1:{dead}", SHUTDOWN_TIMEOUT="300ms", **LATER)
    async with running_process(env) as proxy:
        await _fill(proxy.port, 3, name="hits")
        await _fill(proxy.port, 2, name="clicks")
        assert await proxy.stop() == 1
        lost = await proxy.logged("stopped with rows lost")
        assert lost["level"] == "error"
        assert (lost["rows_lost"], lost["of_them_may_have_arrived"]) == (5, 0)
        assert lost["data_sources"] == {"hits": 3, "clicks": 2}
        stopped = await proxy.logged("stopped", balances=True)
        assert stopped["ledger"]["dropped"] == {"shutdown": 5}


async def test_what_a_hanging_tinybird_was_sent_is_in_doubt_and_no_waiting_client_hears_yes() -> None:
    async with (
        running_tinybird() as tinybird,
        running_process(environment(tinybird.url, SHUTDOWN_TIMEOUT="500ms")) as proxy,
        connected(proxy.port) as peer,
    ):
        await _fill(proxy.port, 1)
        await tinybird.wait_for_rows("hits", 1)
        tinybird.set_faults(Fault(hang=True))
        await peer.send(request("/v0/events?name=hits&wait=true", b'{"waits":1}\n{"waits":2}'))
        await proxy.status_until(lambda status: status["destinations"][0]["in_flight"] == 1)
        proxy.terminate()
        answer = await peer.answer()
        assert (answer.status, answer["Retry-After"]) == (503, "1")
        assert "send them again" in answer.error
        assert await proxy.ended() == 1
        lost = await proxy.logged("stopped with rows lost")
        assert (lost["rows_lost"], lost["of_them_may_have_arrived"]) == (2, 2)
        tinybird.set_faults()


async def test_a_second_signal_stops_at_once_and_says_what_that_cost() -> None:
    async with (
        running_tinybird() as tinybird,
        running_process(environment(tinybird.url, SHUTDOWN_TIMEOUT="1h", DRAIN_DELAY="1m", **LATER)) as proxy,
    ):
        await _fill(proxy.port, 4)
        left = (await proxy.status())["buffer"]["rows"]
        proxy.terminate()
        await proxy.logged("stopping: delivering what is left")
        began_at = time.monotonic()
        assert await proxy.stop() == 1
        assert time.monotonic() - began_at < 3
        await proxy.logged("a second signal: stopping now", signal="SIGTERM")
        lost = await proxy.logged("stopped with rows lost")
        assert lost["rows_lost"] == left > 0


@pytest.mark.parametrize("on_request_first", [False, True], ids=["at once", "after a drain on request"])
async def test_the_termination_message_counts_what_is_at_risk_and_names_what_was_lost_of_all_clients(
    on_request_first: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    tokens = (TokenEntry("client-1"), TokenEntry("client-2"))
    async with running_world({"tokens": tokens}, TINYBIRD_TOKEN=None, **LATER) as world:
        world.tinybird.set_faults(Fault(status=503))
        words = LastWords(world.proxy.pipeline, message, deadline=0.0)
        for token, body in (("client-1", b"{}"), ("client-2", b"{}\n{}\n{}")):
            assert (await post(world.port, body=body, token=token)).status == 202
        if on_request_first:
            assert (await ask(world.proxy.admin_port, "/drain", headers=DRAIN)).json()["rows_left"] == 4
            await asyncio.sleep(0.1)
        now = asyncio.get_running_loop().time()
        await world.proxy.pipeline.drain(now, stop_now=asyncio.Event(), report=words.at_risk)
        assert message.read_text().startswith(
            "4 rows were not delivered when this was written, 0.0 s before the end; hits: "
        )
    assert words.farewell() is ExitStatus.ROWS_LOST
    # A last attempt is in flight or not.
    text = r"4 rows lost, [0-4] of them may have arrived; hits: 4 rows, Tinybird is unavailable for now \(503.*\n"
    assert re.fullmatch(text, message.read_text())
    (record,) = [record for record in caplog.records if record.getMessage() == "stopped with rows lost"]
    assert record.__dict__["fields"]["data_sources"] == {"hits": 4}


async def test_the_termination_message_says_so_when_nothing_was_lost(tmp_path: Path) -> None:
    message = tmp_path / "termination-log"
    message.touch()
    seen = []
    async with running_world(**LATER) as world:
        await _fill(world.port, 5)
        words = LastWords(world.proxy.pipeline, message, deadline=0.0)

        def report(row_count: int) -> None:
            words.at_risk(row_count)
            seen.append(message.read_text())

        deadline = asyncio.get_running_loop().time() + 10
        await world.proxy.pipeline.drain(deadline, stop_now=asyncio.Event(), report=report)
    assert seen[-1] == "0 rows were not delivered when this was written\n"
    assert words.farewell() is ExitStatus.NOTHING_LOST
    assert message.read_text() == "0 rows lost\n"


@pytest.mark.parametrize("on_request_first", [False, True], ids=["at once", "after a drain on request"])
async def test_the_termination_message_counts_the_rows_that_come_and_go_during_the_delay(
    on_request_first: bool, tmp_path: Path
) -> None:
    (message := tmp_path / "termination-log").touch()

    def says(rows: int) -> bool:
        return message.read_text().startswith(f"{rows} rows were not delivered when this was written")

    env = {"DRAIN_DELAY": "1h", "SHUTDOWN_TIMEOUT": "2h"}
    async with running_world(**env) as world:
        assert (await post(world.port)).status == 202
        await world.tinybird.wait_for_rows("hits", 1)
        world.tinybird.set_faults(Fault(status=503))
        if on_request_first:
            assert (await ask(world.proxy.admin_port, "/drain", headers=DRAIN)).status == 202
        words = LastWords(world.proxy.pipeline, message, deadline=asyncio.get_running_loop().time() + 7200)
        stop_now = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(drain(from_env(environment(world.tinybird.url, **env)), world.proxy, stop_now, words))
            await until(lambda: says(0))
            assert (await post(world.port, body=b"{}\n{}\n{}")).status == 202
            await until(lambda: says(3))
            assert not world.proxy.availability.refusing
            world.tinybird.set_faults()
            world.proxy.pipeline.probe_all()
            await until(lambda: says(0))
            assert not world.proxy.availability.refusing
            stop_now.set()
    assert words.farewell() is ExitStatus.NOTHING_LOST


async def test_without_a_termination_log_none_is_made(tmp_path: Path) -> None:
    async with running_world() as world:
        words = LastWords(world.proxy.pipeline, tmp_path / "termination-log", deadline=0.0)
        words.at_risk(0)
    assert words.farewell() is ExitStatus.NOTHING_LOST
    assert os.listdir(tmp_path) == []
