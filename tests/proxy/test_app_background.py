"""What goes on in the background: jobs that break are begun anew, and the ledger is checked while the process runs."""

import asyncio
import logging
import sys
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.proxy.running import ask, environment, post, running_process, running_tinybird, until

from tinybird_proxy.app.background import (
    LEDGER_CHECK_INTERVAL_S,
    LOOP_LAG_INTERVAL_S,
    RESTART_DELAY_S,
    background,
    check_ledger,
    watch_loop,
)
from tinybird_proxy.app.exit_status import ExitStatus
from tinybird_proxy.telemetry.meters import Meters
from tinybird_proxy.testing.fake_upstream import FakeUpstream
from tinybird_proxy.testing.pipelines import Client, Setup

simulated = pytest.mark.looptime(idle_timeout=1)
UNBALANCED = "the ledger does not balance: rows are missing (positive) or too many (negative)"


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@simulated
async def test_a_job_that_breaks_is_counted_logged_and_begun_anew_and_the_others_go_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun = {"fragile": 0, "steady": 0}
    meters = Meters(0.0)

    async def fragile() -> None:
        begun["fragile"] += 1
        await asyncio.sleep(1)
        raise OSError(5, "by script")

    async def steady() -> None:
        begun["steady"] += 1
        await asyncio.get_running_loop().create_future()

    async with background(meters, fragile, steady):
        await asyncio.sleep(3 * (1 + RESTART_DELAY_S) + 0.5)
    assert begun == {"fragile": 4, "steady": 1}
    assert meters.internal_errors == 3
    assert errors(caplog) == ["a background job broke and is begun anew"] * 3


@simulated
async def test_a_job_that_ends_is_begun_anew_after_a_pause_and_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    times: list[float] = []
    meters = Meters(0.0)

    async def once() -> None:
        times.append(asyncio.get_running_loop().time())

    async with background(meters, once):
        await asyncio.sleep(2.5 * RESTART_DELAY_S)
    assert [round(later - times[0], 1) for later in times] == [0.0, RESTART_DELAY_S, 2 * RESTART_DELAY_S]
    assert (meters.internal_errors, errors(caplog)) == (0, [])


@simulated
async def test_jobs_end_with_the_block_also_when_it_fails() -> None:
    ended: list[str] = []

    async def job() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("job")

    async with background(Meters(0.0), job):
        await asyncio.sleep(0)
    assert ended == ["job"]

    async def fail() -> None:
        async with background(Meters(0.0), job):
            await asyncio.sleep(0)
            raise KeyError("the block's own")

    with pytest.raises(ExceptionGroup) as raised:
        await fail()
    assert isinstance(raised.value.exceptions[0], KeyError)
    assert ended == ["job", "job"]


async def test_a_loop_that_stood_still_is_measured() -> None:
    meters = Meters(0.0)
    times = iter([0.0, LOOP_LAG_INTERVAL_S + 0.25, 1.0, 1.0 + LOOP_LAG_INTERVAL_S, 2.0])
    looking = asyncio.create_task(watch_loop(meters, lambda: next(times), lambda: 0.0))
    await until(lambda: looking.done())
    assert isinstance(looking.exception(), RuntimeError)  # there were no more times
    assert (meters.loop_lag_s, meters.loop_lag_max_s) == (0.0, 0.25)


@simulated
async def test_the_cpu_is_sampled_from_the_start_and_read_as_it_was_lately() -> None:
    meters, now = Meters(0.0), asyncio.get_running_loop().time
    began_at = now()

    def cpu_s() -> float:
        """A quarter of a core for the first minute, then nothing."""
        return min(60.0, now() - began_at) / 4

    async with background(meters, lambda: watch_loop(meters, now, cpu_s)):
        await asyncio.sleep(0.1)
        assert meters.cpu.percent() == 0
        await asyncio.sleep(LOOP_LAG_INTERVAL_S)
        assert meters.cpu.percent() == 25
        await asyncio.sleep(59.4 - LOOP_LAG_INTERVAL_S)
        assert meters.cpu.percent() == 25
        await asyncio.sleep(7.5)
        assert 12 <= meters.cpu.percent() <= 15
        await asyncio.sleep(8.5)
        assert meters.cpu.percent() == 0


# The ledger.


@simulated
@pytest.mark.parametrize(
    ("damage", "where", "rows"),
    [
        pytest.param("accepted", "buffer", 3, id="the first equation"),
        pytest.param("letters_deleted", "dead letters", -3, id="the second equation"),
        pytest.param("row_count", "buffer's count", -3, id="the buffer's rows"),
    ],
)
async def test_an_imbalance_is_found_by_the_next_check_and_logged_as_an_error(
    damage: str, where: str, rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Setup().pipeline(FakeUpstream()).running() as pipeline,
        background(pipeline.surroundings.meters, lambda: check_ledger(pipeline)),
    ):
        hits = Client(pipeline, "hits")
        await hits.confirm()
        await asyncio.sleep(3 * LEDGER_CHECK_INTERVAL_S)
        assert errors(caplog) == []
        target: Any = hits.destination.ledger
        if damage == "row_count":
            target = pipeline.surroundings.buffer.occupancy
        setattr(target, damage, getattr(target, damage) + 3)
        await asyncio.sleep(LEDGER_CHECK_INTERVAL_S)
        found = [r.__dict__["fields"] for r in caplog.records if r.getMessage() == UNBALANCED]
        assert ("hits" if where in ("buffer", "dead letters") else "(all)", where, rows) in [
            (fields["data_source"], fields["where"], fields["rows"]) for fields in found
        ]
        setattr(target, damage, getattr(target, damage) - 3)


async def test_a_wrong_count_of_bytes_is_found_too(caplog: pytest.LogCaptureFixture) -> None:
    async with Setup().pipeline(FakeUpstream()).running() as pipeline:
        await Client(pipeline, "hits").confirm()
        occupancy = pipeline.surroundings.buffer.occupancy
        occupancy.size_bytes += 3
        assert pipeline.check_ledger() == 1
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        occupancy.size_bytes -= 3
        assert pipeline.check_ledger() == 0


_DAMAGED = """
import sys
from tinybird_proxy import pipeline
from tinybird_proxy.app import background

background.LEDGER_CHECK_INTERVAL_S = 0.05
make = pipeline.Pipeline._make

def damaged(self, key):
    destination = make(self, key)
    {damage}
    return destination

pipeline.Pipeline._make = damaged
from tinybird_proxy.cli.main import main
sys.argv = ["tinybird-proxy", "run"]
main()
"""


@pytest.mark.parametrize(
    ("damage", "where", "shown"),
    [
        pytest.param("destination.ledger.accepted += 3", "buffer", 3.0, id="the first equation"),
        pytest.param("destination.ledger.letters_recovered += 3", "dead letters", 6.0, id="the second equation"),
        pytest.param(
            "self.surroundings.buffer.occupancy.row_count += 3", "buffer's count", 3.0, id="the buffer's occupancy"
        ),
    ],
)
async def test_a_process_whose_ledger_does_not_balance_says_so_while_it_runs_and_exits_with_3(
    damage: str, where: str, shown: float
) -> None:
    async with (
        running_tinybird() as tinybird,
        running_process(environment(tinybird.url), sys.executable, "-c", _DAMAGED.format(damage=damage)) as proxy,
    ):
        assert (await post(proxy.port, "name=hits&wait=true")).status == 200
        told = await proxy.logged(UNBALANCED, where=where)
        assert told["level"] == "error"
        page = (await ask(proxy.admin_port, "/metrics", method="GET")).body.decode()
        values = {
            sample.name: sample.value for family in text_string_to_metric_families(page) for sample in family.samples
        }
        assert values["tinybird_proxy_ledger_imbalance_rows"] == shown
        status = await proxy.status()
        assert status["ledger"]["balances"] is False
        assert f"The ledger is off by {shown:.0f} rows: a fault of the proxy" in status["sentence"]
        assert await proxy.stop() == ExitStatus.LEDGER_DOES_NOT_BALANCE
        stopped = await proxy.logged("stopped", balances=False)
        assert stopped["level"] == "error"
        assert await tinybird.rows("hits") == [b'{"n":1}']
