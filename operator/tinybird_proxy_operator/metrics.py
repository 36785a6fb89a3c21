"""The operator's own metrics and probes: what it has reconciled, how long keys wait, when it last heard of anything."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PREFIX = "tinybird_proxy_operator_"
# Longer than any reconcile may take: keys that wait and no reconcile that ends mean that the workers are stuck.
STUCK_QUEUE_S = 300.0


@dataclass(slots=True)
class Meters:
    """Plain numbers. ``heard_at`` and ``reconciled_at`` are the clock's seconds."""

    reconciles: Counter[str] = field(default_factory=Counter)
    reconcile_seconds: float = 0.0
    heard_at: float | None = None
    reconciled_at: float | None = None
    synced: bool = False


class Telemetry(Collector):
    """Shows the meters and the queue. ``now`` is the loop's clock.

    ``may_lead``: whether the API server lets this process take part in the election.
    """

    def __init__(
        self,
        meters: Meters,
        *,
        queue_depth: Callable[[], int],
        queue_age_s: Callable[[], float],
        resources: Callable[[], int],
        is_leader: Callable[[], bool],
        now: Callable[[], float],
        may_lead: Callable[[], bool] = lambda: True,
        rows_lost: Callable[[], int] = lambda: 0,
    ) -> None:
        self._meters = meters
        self._queue_depth = queue_depth
        self._queue_age_s = queue_age_s
        self._resources = resources
        self._is_leader = is_leader
        self._now = now
        self._may_lead = may_lead
        self._rows_lost = rows_lost

    def collect(self) -> Iterator[Metric]:
        """Every metric at this moment."""
        meters, now = self._meters, self._now()
        reconciles = CounterMetricFamily(_PREFIX + "reconciles", "Reconciles, by how they ended.", labels=["result"])
        for result in ("ok", "error"):
            reconciles.add_metric([result], meters.reconciles[result])
        yield reconciles
        yield CounterMetricFamily(
            _PREFIX + "reconcile_seconds", "Time spent in reconciles.", value=meters.reconcile_seconds
        )
        yield CounterMetricFamily(
            _PREFIX + "rows_lost",
            "Rows that proxies' processes lost as they ended, which comes too late for a scrape of theirs.",
            value=self._rows_lost(),
        )
        yield _gauge("leader", "1 if this process holds the Lease and does the work.", float(self._is_leader()))
        yield _gauge("resources", "TinybirdProxies known.", self._resources())
        yield _gauge("queue_depth", "Resources that wait for a reconcile, now or later.", self._queue_depth())
        yield _gauge("queue_oldest_age_seconds", "For how long the oldest due one waits.", self._queue_age_s())
        if meters.heard_at is not None:
            yield _gauge("watch_age_seconds", "Since the last event of any watch.", now - meters.heard_at)
        if meters.reconciled_at is not None:
            yield _gauge("last_reconcile_age_seconds", "Since the last reconcile ended.", now - meters.reconciled_at)

    def app(self) -> web.Application:
        """``/metrics``, ``/readyz``, and ``/healthz``: fails if the workers are stuck, not if the API is away."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        app = web.Application()

        async def metrics(request: web.Request) -> web.Response:
            return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

        async def healthz(request: web.Request) -> web.Response:
            age_s, ended_at = self._queue_age_s(), self._meters.reconciled_at
            # While the API server is away reconciles fail, and keys wait; a restart would help nobody.
            idle_s = age_s if ended_at is None else self._now() - ended_at
            stuck = min(age_s, idle_s) > STUCK_QUEUE_S
            return web.json_response(
                {"live": not stuck, "queue_oldest_age_s": round(age_s, 1)}, status=503 if stuck else 200
            )

        async def readyz(request: web.Request) -> web.Response:
            # Whoever waits to lead is ready if it could: else an upgrade would end the last one that can.
            ready = self._meters.synced if self._is_leader() else self._may_lead()
            return web.json_response({"ready": ready, "leader": self._is_leader()}, status=200 if ready else 503)

        app.router.add_get("/metrics", metrics)
        app.router.add_get("/healthz", healthz)
        app.router.add_get("/readyz", readyz)
        return app


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, documentation, value=value)
