"""The composition root: what is measured, how often everything is looked at, and how it begins and ends."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import kopf
import pytest
from tests.operator.clusters import Cluster
from tests.operator.resources import OPERATOR_ENV

from tinybird_proxy_operator import __main__ as main_module
from tinybird_proxy_operator.__main__ import make_reconciler, measured, noticing, resync
from tinybird_proxy_operator.errors import Unavailable
from tinybird_proxy_operator.handlers import Watches
from tinybird_proxy_operator.metrics import Meters
from tinybird_proxy_operator.names import ADMIN_PORT, FIELD_MANAGER
from tinybird_proxy_operator.queue import Key, WorkQueue
from tinybird_proxy_operator.reconcile import Reconciler
from tinybird_proxy_operator.settings import from_env
from tinybird_proxy_operator.testing.fake_api import FakeApi

KEY = Key("shop", "events")


class Answers:
    """A reconciler that does as it is told."""

    def __init__(self, answer: float | Exception | None, *, takes_s: float = 0.0) -> None:
        self.answer = answer
        self.takes_s = takes_s

    async def reconcile(self, key: Key) -> float | None:
        await asyncio.sleep(self.takes_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def work(answers: Answers, meters: Meters) -> Any:
    return measured(cast(Reconciler, answers), meters, asyncio.get_running_loop().time)


@pytest.mark.looptime(idle_timeout=1)
async def test_a_reconcile_is_counted_and_timed() -> None:
    meters = Meters()
    assert await work(Answers(7.0, takes_s=3), meters)(KEY) == 7.0
    assert (meters.reconciles, meters.reconcile_seconds) == ({"ok": 1}, 3.0)
    assert meters.reconciled_at == 3.0


@pytest.mark.looptime(idle_timeout=1)
async def test_a_failed_reconcile_is_counted_told_and_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    meters = Meters()
    with pytest.raises(Unavailable):
        await work(Answers(Unavailable("no answer")), meters)(KEY)
    assert meters.reconciles == {"error": 1}
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)
    assert "shop/events could not be reconciled and is tried again: no answer" in record.message


@pytest.mark.looptime(idle_timeout=1)
async def test_a_fault_of_our_own_is_told_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyError):
        await work(Answers(KeyError("x")), Meters())(KEY)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


@pytest.mark.looptime(idle_timeout=1)
async def test_a_reconcile_that_does_not_end_is_ended() -> None:
    meters = Meters()
    with pytest.raises(TimeoutError):
        await work(Answers(None, takes_s=10_000), meters)(KEY)
    assert meters.reconciled_at == main_module.RECONCILE_TIMEOUT_S
    assert meters.reconciles == {"error": 1}


@pytest.mark.looptime(idle_timeout=1)
async def test_everything_known_is_looked_at_now_and_then_whatever_the_watches_say() -> None:
    loop = asyncio.get_running_loop()
    queue = WorkQueue(now=loop.time, jitter=lambda limit: limit)
    watches = Watches(changed=lambda key: None, alive=lambda: None, saw_pod=lambda body, deleted: None)
    for name in ("a", "b"):
        watches.resource({"metadata": {"name": name, "namespace": "shop"}}, False)
    task = asyncio.create_task(resync(queue.add, watches, 300))
    await asyncio.sleep(269)
    assert len(queue) == 0
    await asyncio.sleep(62)
    assert len(queue) == 2
    task.cancel()


async def test_news_about_a_resource_lead_to_a_look_at_everything(cluster: Cluster) -> None:
    queue = WorkQueue(now=asyncio.get_running_loop().time, jitter=lambda limit: limit)
    await cluster.installed()
    await cluster.reconcile()
    cluster.api.remove("Service", "events")
    noticing(cluster.reconciler, queue)(KEY)
    assert len(queue) == 1
    await cluster.look()
    assert cluster.api.names("Service") == ["events"]


async def test_the_reconciler_asks_the_pods_admin_port_and_makes_long_tokens(cluster: Cluster) -> None:
    reconciler = make_reconciler(cluster.kube, cluster.session, from_env(OPERATOR_ENV), cluster.clock.now)
    assert reconciler.pods._port == ADMIN_PORT
    tokens = {reconciler.make_token() for _ in range(10)}
    assert len(tokens) == 10
    assert min(map(len, tokens)) >= 43
    assert reconciler.utc_now().tzinfo is not None


async def start(env: Mapping[str, str]) -> asyncio.subprocess.Process:
    """An operator with ``env``."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tinybird_proxy_operator",
        env={**env, "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
        stderr=asyncio.subprocess.PIPE,
    )


async def process(env: Mapping[str, str]) -> tuple[int, str]:
    """Exit status and stderr of an operator that is started with ``env``."""
    started = await start(env)
    try:
        async with asyncio.timeout(60):
            _, said = await started.communicate()
    finally:
        if started.returncode is None:
            started.kill()
    assert started.returncode is not None
    return started.returncode, said.decode()


def connected(api: FakeApi, directory: Path) -> dict[str, str]:
    """Variables of an operator that finds ``api`` with a Lease that was released, and a free port."""
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {"leaseDurationSeconds": 1}}
    api.put({**lease, "metadata": {"name": FIELD_MANAGER, "namespace": OPERATOR_ENV["POD_NAMESPACE"]}})
    path = directory / "kubeconfig"
    path.write_text(api.kubeconfig())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return {**OPERATOR_ENV, "KUBECONFIG": str(path), "METRICS_PORT": str(port)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_well(api: FakeApi, tmp_path: Path, number: signal.Signals) -> None:
    api.fail(503, path="/apis?$", times=1000)
    started = await start(connected(api, tmp_path))
    try:
        async with asyncio.timeout(60):
            assert started.stderr is not None
            while b"Request attempt" not in await started.stderr.readline():
                pass  # not before kopf works, for it takes the signals when it begins
            started.send_signal(number)
            _, said = await started.communicate()
    finally:
        if started.returncode is None:
            started.kill()
    assert (started.returncode, b"ended by themselves" in said) == (0, False)
    lease = api.get("Lease", FIELD_MANAGER, OPERATOR_ENV["POD_NAMESPACE"])["spec"]
    assert (lease["holderIdentity"], lease["leaseDurationSeconds"]) == ("", 1)  # the next one begins at once


async def test_one_that_does_not_lead_watches_nothing_and_ends_well(api: FakeApi, tmp_path: Path) -> None:
    env = connected(api, tmp_path)
    lease = api.get("Lease", FIELD_MANAGER, OPERATOR_ENV["POD_NAMESPACE"])
    api.put({**lease, "spec": {"holderIdentity": "another", "leaseDurationSeconds": 3600}})
    started = await start(env)
    try:
        async with asyncio.timeout(60):
            assert started.stderr is not None
            while b"is held by another" not in await started.stderr.readline():
                pass
            started.send_signal(signal.SIGTERM)
            await started.communicate()
    finally:
        if started.returncode is None:
            started.kill()
    assert started.returncode == 0
    assert {asked.path.rpartition("/")[2] for asked in api.asked} == {FIELD_MANAGER}
    assert api.get("Lease", FIELD_MANAGER, OPERATOR_ENV["POD_NAMESPACE"])["spec"]["holderIdentity"] == "another"


async def test_a_leader_that_loses_its_lease_is_gone_at_once(api: FakeApi, tmp_path: Path) -> None:
    env = connected(api, tmp_path)
    api.fail(503, path="/apis?$", times=1000)
    times = {"LEASE_DURATION_SECONDS": "3", "LEASE_RENEW_DEADLINE_SECONDS": "2", "LEASE_RETRY_PERIOD_SECONDS": "1"}
    started = await start({**env, **times})
    try:
        async with asyncio.timeout(60):
            assert started.stderr is not None
            while b"leading: " not in await started.stderr.readline():
                pass
            lease = api.get("Lease", FIELD_MANAGER, OPERATOR_ENV["POD_NAMESPACE"])
            api.put({**lease, "spec": {**lease["spec"], "holderIdentity": "another"}})
            _, said = await started.communicate()
    finally:
        if started.returncode is None:
            started.kill()
    assert started.returncode == main_module.LEASE_LOST_STATUS
    assert b"it is held by another" in said


async def test_watches_that_fail_end_it_with_an_error(api: FakeApi, tmp_path: Path) -> None:
    status, said = await process(connected(api, tmp_path))  # the fake has no discovery
    assert status == main_module.WATCHES_ENDED_STATUS
    assert "the watches ended by themselves" in said
    assert "the watches failed" in said


async def test_watches_that_end_quietly_end_it_with_an_error(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def nothing(**_: Any) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(asyncio.sleep(0))]

    monkeypatch.setattr(kopf, "spawn_tasks", nothing)
    env = connected(api, tmp_path)
    monkeypatch.setenv("KUBECONFIG", env["KUBECONFIG"])
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert await main_module.run(from_env(env)) == main_module.WATCHES_ENDED_STATUS
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        "the watches ended by themselves: the operator would notice nothing more, and exits to be started again"
    ]


async def test_watches_that_break_and_do_not_end_do_not_keep_it(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    over = asyncio.Event()

    async def breaks() -> None:
        raise RuntimeError("a watch broke")

    async def stays() -> None:
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await over.wait()

    async def spawned(**_: Any) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(breaks()), asyncio.create_task(stays())]

    monkeypatch.setattr(kopf, "spawn_tasks", spawned)
    monkeypatch.setattr(main_module, "WATCHES_STOP_S", 0.2)
    env = connected(api, tmp_path)
    monkeypatch.setenv("KUBECONFIG", env["KUBECONFIG"])
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    try:
        async with asyncio.timeout(30):
            assert await main_module.run(from_env(env)) == main_module.WATCHES_ENDED_STATUS
    finally:
        over.set()
    assert "the watches failed" in [record.message for record in caplog.records]
    assert api.get("Lease", FIELD_MANAGER, OPERATOR_ENV["POD_NAMESPACE"])["spec"]["holderIdentity"] == ""


async def test_wrong_settings_end_it_at_once_with_every_problem() -> None:
    status, said = await process({"METRICS_PORT": "many"})
    assert status == main_module.CONFIGURATION_STATUS
    assert said.startswith("The settings have problems:\n")
    assert {"METRICS_PORT", "POD_NAMESPACE", "OPERATOR_POD_LABELS"} <= {
        line.strip().partition(":")[0] for line in said.splitlines()
    }
