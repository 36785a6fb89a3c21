"""The simulation's pods as the operator sees them, for its decisions in ``scaling.shrink`` and ``scaling.throttle``."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from tests.simulation.pods import Pod
from tests.simulation.tinybird import TOO_MANY_REQUESTS

from tinybird_proxy_operator.observed import PodFacts, ProxyReport

_MIDNIGHT: Final = datetime(2026, 1, 1, tzinfo=UTC)


def utc(now_s: float) -> datetime:
    """The operator's time of a second of the simulation."""
    return _MIDNIGHT + timedelta(seconds=now_s)


def seen(pod: Pod, now_s: float) -> PodFacts:
    """What the API server and the pod's ``/status`` say of it."""
    return PodFacts(
        name=pod.name,
        ip="10.0.0.1",
        ready=pod.ready(now_s),
        waiting=None,
        out_of_memory=False,
        report=_report(pod, now_s) if pod.answers(now_s) else None,
        running=not pod.pending(now_s),
        labelled=pod.labelled,
        draining_since=None if pod.labelled_at_s is None else utc(pod.labelled_at_s),
        deletion_cost=pod.deletion_cost,
        created_at=utc(pod.created_s),
    )


def labelled_for_s(pods: Iterable[Pod], now_s: float) -> dict[str, float]:
    """For how long each victim has been one."""
    return {pod.name: now_s - pod.labelled_at_s for pod in pods if pod.labelled_at_s is not None}


def _report(pod: Pod, now_s: float) -> ProxyReport:
    proxy = pod.proxy
    rows, oldest_s = proxy.rows, proxy.oldest_s
    return ProxyReport(
        rows=rows,
        size_bytes=0,
        utilisation=proxy.buffer_utilization_percent() / 100,
        oldest_age_s=None if oldest_s is None else now_s - oldest_s,
        stuck_rows=0 if proxy.failing is None else rows,
        stuck=[],
        token_hash=None,
        token_accepted=True,
        token_denied=False,
        candidate_rejected=False,
        draining=proxy.draining_since_s is not None,
        refusing=proxy.refuses(now_s),
        delivered_rows_1m=proxy.delivered_1m,
        replies_1m=proxy.replies_1m,
        throttled_1m=proxy.throttled_1m,
        throttled_rows=rows if proxy.failing == TOO_MANY_REQUESTS else 0,
    )
