"""The webhook's own metrics and probes."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from aiohttp import web
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from tinybird_proxy_operator.serving.probes import certificate_expiry, probes_app
from tinybird_proxy_operator.webhook.injector import Result

_PREFIX = "tinybird_proxy_webhook_"


@dataclass(slots=True)
class Standing:
    """How it is: numbers, and what people are to know.

    ``registered``: the API server knows the CA of the certificate that is shown, as far as that is ours to say.
    ``sentence``: why not, or that it is so. ``not_ready``: why nothing can be answered, None if it can.
    ``certificate_ends_at``: the one in use.
    """

    reviews: Counter[Result] = field(default_factory=Counter)
    review_seconds: float = 0.0
    registered: bool = False
    sentence: str = "Not registered yet."
    not_ready: str | None = "There is no certificate yet."
    certificate_ends_at: datetime | None = None

    def count(self, result: Result, seconds: float) -> None:
        """A review was answered."""
        self.reviews[result] += 1
        self.review_seconds += seconds


class Telemetry(Collector):
    """Shows a ``Standing``. ``utc_now`` tells how long the certificate is still good for."""

    def __init__(self, standing: Standing, *, utc_now: Callable[[], datetime]) -> None:
        self._standing = standing
        self._utc_now = utc_now

    def collect(self) -> Iterator[Metric]:
        """Every metric at this moment."""
        standing = self._standing
        text = "Reviews, by what came of them. All but injected, unchanged and not_asked: a pod that asks got nothing."
        reviews = CounterMetricFamily(_PREFIX + "reviews", text, labels=["result"])
        for result in Result:
            reviews.add_metric([result], standing.reviews[result])
        yield reviews
        seconds = SummaryMetricFamily(_PREFIX + "review_seconds", "How long answers to reviews took.")
        seconds.add_metric([], standing.reviews.total(), standing.review_seconds)
        yield seconds
        text = "1 if the API server knows the CA of the certificate that is shown; see /readyz for why not."
        yield GaugeMetricFamily(_PREFIX + "registered", text, value=float(standing.registered))
        yield from certificate_expiry(_PREFIX, standing.certificate_ends_at, self._utc_now())

    def app(self) -> web.Application:
        """``/metrics``, ``/healthz``, ``/livez``, and ``/readyz``, which does not depend on being registered."""
        standing = self._standing
        return probes_app(
            self,
            why_not_ready=lambda: standing.not_ready,
            more=lambda: {"registered": standing.registered, "registration": standing.sentence},
        )
