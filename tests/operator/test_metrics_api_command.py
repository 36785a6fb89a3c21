"""`metrics-api`: how it begins, and how it ends."""

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.operator.metrics_apis import ENV, Running, client_context, running

from tinybird_proxy_operator.__main__ import main
from tinybird_proxy_operator.serving.process import CONFIGURATION_STATUS


def test_wrong_settings_are_told_before_anything_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ENV, "TLS_PORT": "x", "CLUSTER_ROLE": ""}.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, ["metrics-api"])
    assert result.exit_code == CONFIGURATION_STATUS
    assert "  CLUSTER_ROLE: is set but empty" in result.output
    assert "  TLS_PORT: 'x': must be a whole number" in result.output


def test_it_is_a_command_beside_the_others() -> None:
    assert "metrics-api" in CliRunner().invoke(main, ["--help"]).output


async def until(it: Running, status: int) -> str:
    async with asyncio.timeout(10):
        while True:
            answered, text = await it.probe("/readyz")
            if answered == status:
                return text
            await asyncio.sleep(0.01)


async def test_it_goes_on_answering_while_it_is_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path, unready_s=1.0) as it:
        await it.until_registered()
        await until(it, 200)
        it.stop.set()
        assert "It stops." in await until(it, 503)
        assert (await it.ask("/healthz"))[0] == 200
        bundle = it.server_ca()
    context = await asyncio.to_thread(client_context, bundle)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", it.port, ssl=context)


async def test_it_starts_without_an_api_server_and_waits_for_it(tmp_path: Path) -> None:
    async with running(tmp_path, faults=5) as it:
        assert (await it.probe("/healthz"))[0] == 200
        await until(it, 503)
        await until(it, 200)
        await it.until_registered()


async def test_it_stops_at_once_where_nobody_is_waited_for(tmp_path: Path) -> None:
    async with asyncio.timeout(5):
        async with running(tmp_path, faults=1000) as it:
            await until(it, 503)
