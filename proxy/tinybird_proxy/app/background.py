"""What goes on in the background as long as the proxy runs."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

from tinybird_proxy.pipeline import Pipeline
from tinybird_proxy.telemetry.logs import get_logger
from tinybird_proxy.telemetry.meters import Meters

LOOP_LAG_INTERVAL_S = 0.5
LEDGER_CHECK_INTERVAL_S = 10.0
RESTART_DELAY_S = 1.0
_log = get_logger("app")
_Job = Callable[[], Coroutine[None, None, None]]


@asynccontextmanager
async def background(meters: Meters, *jobs: _Job) -> AsyncIterator[None]:
    """Run ``jobs`` until the block ends. One that breaks is counted, logged and begun anew."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_again_and_again(job, meters)) for job in jobs]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _again_and_again(job: _Job, meters: Meters) -> None:
    while True:
        try:
            await job()
        except Exception:  # noqa: BLE001 - it would end the process, and what is buffered with it
            meters.internal_errors += 1
            _log.error("a background job broke and is begun anew", exc_info=True)
        await asyncio.sleep(RESTART_DELAY_S)


async def watch_loop(meters: Meters, now: Callable[[], float], cpu_s: Callable[[], float]) -> None:
    """Measure how late the loop runs its timers, and how busy the process is. ``cpu_s`` reads its CPU time."""
    while True:
        began_at = now()
        meters.cpu.sample(began_at, cpu_s())
        due = began_at + LOOP_LAG_INTERVAL_S
        await asyncio.sleep(LOOP_LAG_INTERVAL_S)
        meters.loop_lag_s = max(0.0, now() - due)
        meters.loop_lag_max_s = max(meters.loop_lag_max_s, meters.loop_lag_s)


async def check_ledger(pipeline: Pipeline) -> None:
    """The ledger checks itself while the process runs."""
    while True:
        await asyncio.sleep(LEDGER_CHECK_INTERVAL_S)
        pipeline.check_ledger()
