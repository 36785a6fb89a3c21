"""A process that the API server connects to: it begins with its environment and ends with a signal."""

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tinybird_proxy_operator.kube import Kube
from tinybird_proxy_operator.serving.process import keep_until, run
from tinybird_proxy_operator.testing.served import kubeconfig


@dataclass(frozen=True)
class Settings:
    log_level: str = "info"
    log_format: Literal["auto", "json", "console"] = "json"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_tells_it_to_stop_and_it_ends_when_it_has_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    (tmp_path / "kubeconfig").write_text(kubeconfig("http://127.0.0.1:1"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    seen: list[object] = []

    def from_env(env: Mapping[str, str]) -> Settings:
        seen.append(env["KUBECONFIG"])
        return Settings()

    async def serve(kube: Kube, settings: Settings, stop: asyncio.Event) -> None:
        os.kill(os.getpid(), number)
        await stop.wait()
        seen.append((type(kube), settings))

    run(from_env, serve)
    assert seen == [str(tmp_path / "kubeconfig"), (Kube, Settings())]


async def test_the_upkeep_ends_before_it_says_that_it_stops() -> None:
    stop, said = asyncio.Event(), list[str]()

    async def upkeep() -> None:
        try:
            stop.set()
            await asyncio.Event().wait()
        finally:
            said.append("ended")

    await keep_until(stop, upkeep, stopping=lambda: said.append("stops"), unready_s=0.0)
    assert said == ["ended", "stops"]
