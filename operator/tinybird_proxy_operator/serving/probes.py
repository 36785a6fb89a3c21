"""Metrics and probes, over plain HTTP on a port of their own."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


def certificate_expiry(prefix: str, ends_at: datetime | None, now: datetime) -> Iterator[GaugeMetricFamily]:
    """The metric of the serving certificate; none while there is no certificate. ``prefix``: of its name."""
    if ends_at is not None:
        text = "Seconds until the serving certificate ends; it is renewed when two thirds of its life are over."
        left_s = (ends_at - now).total_seconds()
        yield GaugeMetricFamily(prefix + "certificate_expiry_seconds", text, value=left_s)


def probes_app(
    collector: Collector, *, why_not_ready: Callable[[], str | None], more: Callable[[], Mapping[str, object]]
) -> web.Application:
    """``/metrics``, ``/healthz``, ``/livez``, and ``/readyz``. ``more`` is what ``/readyz`` tells besides."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    app = web.Application()

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def readyz(request: web.Request) -> web.Response:
        why_not = why_not_ready()
        body = {"ready": why_not is None, "message": why_not or "Ready.", **more()}
        return web.json_response(body, status=200 if why_not is None else 503)

    app.router.add_get("/metrics", metrics)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/livez", healthz)
    app.router.add_get("/readyz", readyz)
    return app
