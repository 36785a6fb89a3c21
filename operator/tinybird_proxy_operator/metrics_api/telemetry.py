"""The metrics API's own metrics and probes, over plain HTTP on a port of their own."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tinybird_proxy_operator.serving.probes import certificate_expiry, probes_app

_PREFIX = "tinybird_proxy_metrics_api_"


@dataclass(slots=True)
class Standing:
    """How it is: numbers, and what people are to know.

    ``registered``: both APIServices are ours. ``reached``: and at the last look the API server came through.
    ``sentence``: why not, or that it is so. ``not_ready``: why nothing can be answered, None if it can.
    ``certificate_ends_at``: the one in use.
    """

    requests: Counter[int] = field(default_factory=Counter)
    scrapes: Counter[str] = field(default_factory=Counter)
    registered: bool = False
    reached: bool = False
    sentence: str = "Not registered yet."
    not_ready: str | None = "The certificates and the API server's configuration were not read yet."
    certificate_ends_at: datetime | None = None


class Telemetry(Collector):
    """Shows a ``Standing``. ``utc_now`` tells how long the certificate is still good for."""

    def __init__(self, standing: Standing, *, utc_now: Callable[[], datetime]) -> None:
        self._standing = standing
        self._utc_now = utc_now

    def collect(self) -> Iterator[Metric]:
        """Every metric at this moment."""
        standing = self._standing
        requests = CounterMetricFamily(_PREFIX + "requests", "Requests over TLS, by their answer.", labels=["code"])
        for code, count in sorted(standing.requests.items()):
            requests.add_metric([str(code)], count)
        yield requests
        scrapes = CounterMetricFamily(_PREFIX + "scrapes", "Pods asked, by whether they answered.", labels=["result"])
        for result in ("ok", "error"):
            scrapes.add_metric([result], standing.scrapes[result])
        yield scrapes
        text = "1 if both APIServices are this release's; see /readyz for why not."
        yield GaugeMetricFamily(_PREFIX + "registered", text, value=float(standing.registered))
        text = "1 if the API server's answers to us about the group were ours at the last look."
        yield GaugeMetricFamily(_PREFIX + "reached", text, value=float(standing.reached))
        yield from certificate_expiry(_PREFIX, standing.certificate_ends_at, self._utc_now())

    def app(self) -> web.Application:
        """``/metrics``, ``/healthz``, ``/livez``, and ``/readyz``, which does not depend on being registered."""
        standing = self._standing
        return probes_app(
            self,
            why_not_ready=lambda: standing.not_ready,
            more=lambda: {"registered": standing.registered, "registration": standing.sentence},
        )
