"""`webhook`: how it begins, and how it ends."""

import asyncio
import ssl
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.operator.injection_pods import injected, pod
from tests.operator.metrics_apis import ClientCA, client_context
from tests.operator.test_webhook_upkeep import write
from tests.operator.webhooks import ENV, SERVER_NAME, bundles, made_of, review, running

from tinybird_proxy_operator.__main__ import main
from tinybird_proxy_operator.serving.process import CONFIGURATION_STATUS


def test_wrong_settings_are_told_before_anything_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**ENV, "TLS_PORT": "x", "WEBHOOK_CONFIGURATION": ""}.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, ["webhook"])
    assert result.exit_code == CONFIGURATION_STATUS
    assert "  WEBHOOK_CONFIGURATION: is set but empty" in result.output
    assert "  TLS_PORT: 'x': must be a whole number" in result.output


def test_it_is_a_command_beside_the_others() -> None:
    assert "webhook" in CliRunner().invoke(main, ["--help"]).output


async def test_it_goes_on_answering_while_it_is_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path, unready_s=1.0) as it:
        await it.until_registered()
        await it.until("/readyz", 200)
        it.stop.set()
        assert "It stops." in await it.until("/readyz", 503)
        assert made_of(pod(), await it.ask(review(pod()))) == injected(pod())
        context = await asyncio.to_thread(client_context, bundles(it.api)[0])
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", it.port, ssl=context)


async def test_it_starts_without_an_api_server_and_waits_for_it(tmp_path: Path) -> None:
    async with running(tmp_path, faults=8) as it:
        assert (await it.probe("/healthz"))[0] == 200
        await it.until("/readyz", 503)
        await it.until("/readyz", 200)
        await it.until_registered()


async def test_it_shows_the_certificate_of_files_and_writes_nothing(tmp_path: Path) -> None:
    authority = await asyncio.to_thread(write, tmp_path)
    async with running(tmp_path, env={"CERTIFICATE_DIRECTORY": str(tmp_path)}) as it:
        it.server_ca = authority
        await it.until("/readyz", 200)
        assert made_of(pod(), await it.ask(review(pod()))) == injected(pod())
        assert it.api.writes == []


async def test_an_api_server_may_show_a_certificate_that_nobody_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.until_registered()
        certificate = ClientCA().client(tmp_path, "kube-apiserver")
        context = await asyncio.to_thread(client_context, bundles(it.api)[0], certificate)
        _, writer = await asyncio.open_connection("127.0.0.1", it.port, ssl=context, server_hostname=SERVER_NAME)
        assert isinstance(writer.get_extra_info("ssl_object"), ssl.SSLObject)
        writer.close()
