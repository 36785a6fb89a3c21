"""`tinybird_proxy.emulator.running`: from the start to the end of an emulator."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
import uvloop

from tinybird_proxy.emulator import Emulator, EmulatorSettings, Fault, TokenEntry, running_emulator, serve

Start = Callable[..., Awaitable[Emulator]]


async def _post(session: aiohttp.ClientSession, emulator: Emulator) -> int:
    async with session.post(f"{emulator.url}/v0/events?name=hits", data=b'{"a":1}') as reply:
        return reply.status


async def test_rows_and_data_sources_survive_a_restart_on_the_same_port(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    settings = EmulatorSettings(token="T", port=0, data_dir=tmp_path)
    async with running_emulator(settings) as emulator:
        assert await _post(session, emulator) == 202
        port = emulator.port
    again = EmulatorSettings(token="T", port=port, data_dir=tmp_path, create_datasources=False)
    async with running_emulator(again) as emulator:
        assert emulator.url == f"http://127.0.0.1:{port}"
        assert await _post(session, emulator) == 202
        assert await emulator.rows("hits") == [b'{"a":1}', b'{"a":1}']


async def test_a_port_that_is_taken_is_an_oserror(start: Start) -> None:
    emulator = await start()
    with pytest.raises(OSError, match="in use"):
        async with running_emulator(EmulatorSettings(token="T", port=emulator.port)):
            pass


async def test_requests_that_hang_or_wait_do_not_delay_the_end(session: aiohttp.ClientSession) -> None:
    settings = EmulatorSettings(token="T", port=0, wait_delay_s=3600.0)
    async with running_emulator(settings) as emulator:
        emulator.set_faults(Fault(hang=True, times=1))
        hanging = asyncio.create_task(_post(session, emulator))
        await emulator.wait_until(lambda: emulator.faults[0][1] == 1)
        waiting = asyncio.create_task(_post(session, emulator))
        await emulator.wait_until(lambda: len(emulator.requests) == 2)
        ending_at = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - ending_at < 2.0
    with pytest.raises(aiohttp.ClientError):
        await hanging
    await asyncio.gather(waiting, return_exceptions=True)


async def test_tokens_can_be_replaced(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start()
    emulator.set_tokens(TokenEntry("another"))
    assert await _post(session, emulator) == 403
    emulator.set_tokens(TokenEntry("T"))
    assert await _post(session, emulator) == 202


async def test_waiting_for_what_does_not_come_ends_in_a_timeout(start: Start) -> None:
    emulator = await start()
    with pytest.raises(TimeoutError):
        await emulator.wait_for_rows("hits", 1, timeout_s=0.05)
    with pytest.raises(TimeoutError):
        await emulator.wait_for_requests(1, timeout_s=0.05)


async def test_rows_are_waited_for(start: Start, session: aiohttp.ClientSession) -> None:
    emulator = await start()
    waiting = asyncio.create_task(emulator.wait_for_rows("hits", 2))
    for _ in range(2):
        await _post(session, emulator)
    assert await waiting == [b'{"a":1}', b'{"a":1}']


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_serve_runs_until_a_signal(session: aiohttp.ClientSession, number: signal.Signals) -> None:
    ready: asyncio.Future[Emulator] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(EmulatorSettings(token="T", port=0), on_ready=ready.set_result))
    emulator = await ready
    assert await _post(session, emulator) == 202
    os.kill(os.getpid(), number)
    async with asyncio.timeout(5):
        await serving
    with pytest.raises(aiohttp.ClientConnectionError):
        await _post(session, emulator)


def test_resets_and_hangs_work_on_uvloop() -> None:
    async def scenario() -> None:
        settings = EmulatorSettings(token="T", port=0)
        async with (
            running_emulator(settings) as emulator,
            aiohttp.ClientSession(headers={"Authorization": "Bearer T"}) as session,
        ):
            emulator.set_faults(Fault(reset="before_body", times=1), Fault(reset="after_body", times=1))
            for _ in range(2):
                with pytest.raises(aiohttp.ClientOSError, match="reset"):
                    await _post(session, emulator)
            assert await _post(session, emulator) == 202

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
