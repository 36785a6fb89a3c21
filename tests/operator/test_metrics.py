"""The operator's own metrics and probes, over HTTP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from tinybird_proxy_operator.metrics import STUCK_QUEUE_S, Meters, Telemetry


@dataclass
class Operator:
    """What is measured; the clock stands at 1000."""

    meters: Meters = field(default_factory=Meters)
    depth: int = 0
    age_s: float = 0.0
    leads: bool = True
    may_lead: bool = True
    rows_lost: int = 0
    port: int = 0

    async def get(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}{path}") as response,
        ):
            return response.status, await response.text()

    async def samples(self) -> dict[str, float]:
        _, text = await self.get("/metrics")
        return {
            "/".join([sample.name.removeprefix("tinybird_proxy_operator_"), *sample.labels.values()]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@asynccontextmanager
async def measured() -> AsyncIterator[Operator]:
    operator = Operator()
    telemetry = Telemetry(
        operator.meters,
        queue_depth=lambda: operator.depth,
        queue_age_s=lambda: operator.age_s,
        resources=lambda: 3,
        is_leader=lambda: operator.leads,
        now=lambda: 1000.0,
        may_lead=lambda: operator.may_lead,
        rows_lost=lambda: operator.rows_lost,
    )
    runner = web.AppRunner(telemetry.app(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        operator.port = runner.addresses[0][1]
        yield operator
    finally:
        await runner.cleanup()


async def test_everything_is_shown() -> None:
    async with measured() as operator:
        operator.meters.reconciles.update({"ok": 5, "error": 2})
        operator.meters.reconcile_seconds = 1.5
        operator.meters.heard_at, operator.meters.reconciled_at = 990.0, 995.0
        operator.depth, operator.age_s = 4, 2.5
        assert await operator.samples() == {
            "reconciles_total/ok": 5,
            "reconciles_total/error": 2,
            "reconcile_seconds_total": 1.5,
            "rows_lost_total": 0,
            "leader": 1,
            "resources": 3,
            "queue_depth": 4,
            "queue_oldest_age_seconds": 2.5,
            "watch_age_seconds": 10,
            "last_reconcile_age_seconds": 5,
        }


async def test_an_age_of_what_never_happened_is_not_shown() -> None:
    async with measured() as operator:
        assert not {"watch_age_seconds", "last_reconcile_age_seconds"} & set(await operator.samples())


@pytest.mark.parametrize(
    ("age_s", "ended_at", "live"),
    [
        (0.0, None, True),
        (STUCK_QUEUE_S, None, True),
        (STUCK_QUEUE_S + 1, None, False),  # keys wait, and nothing has ever come out
        (STUCK_QUEUE_S + 1, 1000.0 - STUCK_QUEUE_S - 1, False),
        (9999.0, 999.0, True),  # many keys wait for an API server that is away: reconciles fail, but they end
        (0.0, 1.0, True),  # nothing to do for long
    ],
)
async def test_it_is_live_unless_keys_wait_and_no_reconcile_ends(
    age_s: float, ended_at: float | None, live: bool
) -> None:
    async with measured() as operator:
        operator.age_s, operator.meters.reconciled_at = age_s, ended_at
        assert (await operator.get("/healthz"))[0] == (200 if live else 503)


async def test_whoever_waits_to_lead_is_ready_and_says_that_it_does_not_lead() -> None:
    async with measured() as operator:
        operator.leads = False
        assert await operator.get("/readyz") == (200, '{"ready": true, "leader": false}')
        assert (await operator.samples())["leader"] == 0


async def test_whoever_could_not_lead_is_not_ready_for_the_last_one_that_can_would_be_ended_for_it() -> None:
    async with measured() as operator:
        operator.leads = operator.may_lead = False
        assert await operator.get("/readyz") == (503, '{"ready": false, "leader": false}')
        assert (await operator.get("/healthz"))[0] == 200


async def test_a_leader_is_ready_once_the_watches_have_begun() -> None:
    async with measured() as operator:
        assert (await operator.get("/readyz"))[0] == 503
        operator.meters.synced = True
        assert (await operator.get("/readyz"))[0] == 200


async def test_rows_that_were_lost_are_counted_from_nothing_on() -> None:
    async with measured() as operator:
        assert (await operator.samples())["rows_lost_total"] == 0
        operator.rows_lost = 7
        assert (await operator.samples())["rows_lost_total"] == 7
