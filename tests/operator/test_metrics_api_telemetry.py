"""The metrics API's own metrics and probes."""

from datetime import UTC, datetime, timedelta

from aiohttp.test_utils import TestClient, TestServer

from tinybird_proxy_operator.metrics_api.telemetry import Standing, Telemetry

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def texts(standing: Standing, *paths: str) -> list[tuple[int, str]]:
    async with TestClient(TestServer(Telemetry(standing, utc_now=lambda: NOW).app())) as client:
        return [(answer.status, await answer.text()) for answer in [await client.get(path) for path in paths]]


async def test_at_first_it_lives_and_is_not_ready() -> None:
    live, ready, metrics = await texts(Standing(), "/healthz", "/readyz", "/metrics")
    assert live[0] == 200
    assert ready[0] == 503
    assert "were not read yet" in ready[1]
    assert "tinybird_proxy_metrics_api_registered 0.0" in metrics[1]
    assert "certificate_expiry_seconds" not in metrics[1]


async def test_it_may_be_ready_without_being_registered_and_says_why() -> None:
    standing = Standing(not_ready=None, sentence="Not registered, because of another.")
    [(status, text)] = await texts(standing, "/readyz")
    assert status == 200
    assert '"registered": false' in text
    assert "Not registered, because of another." in text


async def test_everything_is_counted() -> None:
    standing = Standing(registered=True, reached=True, certificate_ends_at=NOW + timedelta(hours=1))
    standing.requests.update({200: 3, 403: 1})
    standing.scrapes["error"] += 2
    [(_, text)] = await texts(standing, "/metrics")
    for line in (
        'tinybird_proxy_metrics_api_requests_total{code="200"} 3.0',
        'tinybird_proxy_metrics_api_requests_total{code="403"} 1.0',
        'tinybird_proxy_metrics_api_scrapes_total{result="ok"} 0.0',
        'tinybird_proxy_metrics_api_scrapes_total{result="error"} 2.0',
        "tinybird_proxy_metrics_api_registered 1.0",
        "tinybird_proxy_metrics_api_reached 1.0",
        "tinybird_proxy_metrics_api_certificate_expiry_seconds 3600.0",
    ):
        assert line in text.splitlines()
