"""The composition root: what is measured, how often everything is looked at, and how it begins and ends."""

import asyncio
import logging
import sys
from collections.abc import Mapping
from typing import Any, cast

import pytest
from tests.operator.clusters import Cluster
from tests.operator.resources import OPERATOR_ENV

from tinybird_proxy_operator import __main__ as main_module
from tinybird_proxy_operator.__main__ import make_reconciler, measured, resync
from tinybird_proxy_operator.errors import Unavailable
from tinybird_proxy_operator.handlers import Watches
from tinybird_proxy_operator.metrics import Meters
from tinybird_proxy_operator.names import ADMIN_PORT
from tinybird_proxy_operator.queue import Key, WorkQueue
from tinybird_proxy_operator.reconcile import Reconciler
from tinybird_proxy_operator.settings import from_env

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
    watches = Watches(changed=lambda key: None, alive=lambda: None)
    for name in ("a", "b"):
        watches.resource({"metadata": {"name": name, "namespace": "shop"}}, False)
    task = asyncio.create_task(resync(queue, watches, 300))
    await asyncio.sleep(269)
    assert len(queue) == 0
    await asyncio.sleep(62)
    assert len(queue) == 2
    task.cancel()


async def test_the_reconciler_asks_the_pods_admin_port_and_makes_long_tokens(cluster: Cluster) -> None:
    reconciler = make_reconciler(cluster.kube, cluster.session, from_env(OPERATOR_ENV), cluster.clock.now)
    assert reconciler.pods._port == ADMIN_PORT
    tokens = {reconciler.make_token() for _ in range(10)}
    assert len(tokens) == 10
    assert min(map(len, tokens)) >= 43
    assert reconciler.utc_now().tzinfo is not None


async def process(env: Mapping[str, str]) -> tuple[int, str]:
    """Exit status and stderr of an operator that is started with ``env``."""
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tinybird_proxy_operator",
        env={**env, "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await started.communicate()
    assert started.returncode is not None
    return started.returncode, said.decode()


async def test_wrong_settings_end_it_at_once_with_every_problem() -> None:
    status, said = await process({"METRICS_PORT": "many"})
    assert status == main_module.CONFIGURATION_STATUS
    assert said.startswith("The settings have problems:\n")
    assert {"METRICS_PORT", "POD_NAMESPACE", "OPERATOR_POD_LABELS"} <= {
        line.strip().partition(":")[0] for line in said.splitlines()
    }
