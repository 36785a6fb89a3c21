"""Metrics and probes on a port of their own."""

from collections.abc import Iterator

from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tinybird_proxy_operator.serving.probes import probes_app


class One(Collector):
    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("one", "One.", value=1.0)


async def test_ready_is_what_is_asked_at_that_moment() -> None:
    reasons: list[str | None] = ["No certificate.", None]
    app = probes_app(One(), why_not_ready=lambda: reasons.pop(0), more=lambda: {"registered": False})
    async with TestClient(TestServer(app)) as client:
        refused, ready = await client.get("/readyz"), await client.get("/readyz")
        assert (refused.status, ready.status) == (503, 200)
        assert await refused.json() == {"ready": False, "message": "No certificate.", "registered": False}
        assert await ready.json() == {"ready": True, "message": "Ready.", "registered": False}


async def test_live_and_metrics_do_not_depend_on_that() -> None:
    app = probes_app(One(), why_not_ready=lambda: "No certificate.", more=dict)
    async with TestClient(TestServer(app)) as client:
        assert [(await client.get(path)).status for path in ("/healthz", "/livez", "/metrics")] == [200] * 3
        assert "one 1.0" in await (await client.get("/metrics")).text()
