"""The webhook's own metrics and probes."""

from datetime import UTC, datetime, timedelta

from aiohttp.test_utils import TestClient, TestServer

from tinybird_proxy_operator.webhook.injector import Result
from tinybird_proxy_operator.webhook.telemetry import Standing, Telemetry

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def texts(standing: Standing, *paths: str) -> list[tuple[int, str]]:
    async with TestClient(TestServer(Telemetry(standing, utc_now=lambda: NOW).app())) as client:
        return [(answer.status, await answer.text()) for answer in [await client.get(path) for path in paths]]


async def test_at_first_it_lives_and_is_not_ready() -> None:
    live, ready, metrics = await texts(Standing(), "/healthz", "/readyz", "/metrics")
    assert (live[0], ready[0]) == (200, 503)
    assert "There is no certificate yet." in ready[1]
    assert "tinybird_proxy_webhook_registered 0.0" in metrics[1]
    assert "certificate_expiry_seconds" not in metrics[1]


async def test_everything_is_counted() -> None:
    standing = Standing(not_ready=None, registered=True, certificate_ends_at=NOW + timedelta(hours=1))
    standing.count(Result.INJECTED, 0.25)
    standing.count(Result.REFUSED, 0.5)
    [(_, text), (status, _)] = await texts(standing, "/metrics", "/readyz")
    assert status == 200
    for line in (
        'tinybird_proxy_webhook_reviews_total{result="injected"} 1.0',
        'tinybird_proxy_webhook_reviews_total{result="refused"} 1.0',
        'tinybird_proxy_webhook_reviews_total{result="not_read"} 0.0',
        "tinybird_proxy_webhook_review_seconds_count 2.0",
        "tinybird_proxy_webhook_review_seconds_sum 0.75",
        "tinybird_proxy_webhook_registered 1.0",
        "tinybird_proxy_webhook_certificate_expiry_seconds 3600.0",
    ):
        assert line in text.splitlines()
