"""Whether Tinybird throttles a resource's pods: from the answers of the last minute, and from what waits. Pure.

Tinybird limits requests a second for each data source, whoever sends them: more pods would only share them. A proxy
that is throttled backs off, so 429s are few beside the answers of the minute before, and an HPA is faster than a large
share of them: a simulation has shown that with a fifth. Where Tinybird asks for a long pause there are hardly any, and
what waits because of it tells. It takes two quiet minutes to take that back, so that scale-up does not go on and off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tinybird_proxy_operator.names import ConditionType, Reason
from tinybird_proxy_operator.observed import PodFacts

LEAST_THROTTLED: Final = 3
THROTTLED_SHARE: Final = 0.05
THROTTLED_ROWS_SHARE: Final = 0.5
CALM_SHARE: Final = 0.05
CALM_FOR_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Throttle:
    """``calm_since``: while throttled, since when hardly any 429 came. ``replies`` None: no pod has told.

    ``replies`` and ``refused``: what Tinybird answered in the last minute, and how often that was 429.
    """

    throttled: bool = False
    calm_since: float | None = None
    replies: int | None = None
    refused: int = 0


def look(before: Throttle, pods: Sequence[PodFacts], now: float) -> Throttle:
    """What the pods say now, after what was known ``before``. Pods that do not answer change nothing."""
    reports = [pod.report for pod in pods if pod.report is not None]
    if not reports:
        return Throttle(before.throttled, before.calm_since)
    replies = sum(report.replies_1m for report in reports)
    refused = sum(report.throttled_1m for report in reports)
    rows, held_up = sum(report.rows for report in reports), sum(report.throttled_rows for report in reports)
    share = refused / replies if replies else 0.0
    many = share > THROTTLED_SHARE and refused >= LEAST_THROTTLED
    # A proxy waits as long as it is asked to after 503 too, which is no limit of requests: one 429 must have come.
    by_429 = bool(refused) or (before.throttled and not replies)
    if many or (by_429 and held_up and held_up >= THROTTLED_ROWS_SHARE * rows):
        return Throttle(True, None, replies, refused)
    if not before.throttled:
        return Throttle(False, None, replies, refused)
    if share >= CALM_SHARE:
        return Throttle(True, None, replies, refused)
    calm_since = now if before.calm_since is None else before.calm_since
    if now - calm_since >= CALM_FOR_S:
        return Throttle(False, None, replies, refused)
    return Throttle(True, calm_since, replies, refused)


def remembered(status: Mapping[str, Any]) -> Throttle:
    """What another process of the operator left in a resource's status."""
    conditions = {found.get("type"): found.get("status") for found in status.get("conditions", [])}
    return Throttle(conditions.get(ConditionType.UPSTREAM_THROTTLED) == "True")


def judge(throttle: Throttle, *, autoscaled: bool) -> tuple[str, Reason, str]:
    """Status, reason and message of the condition."""
    figures = f"{throttle.refused:,} of {throttle.replies or 0:,} requests"
    if throttle.throttled:
        now = f"In the last minute it refused {figures} with 429. " if throttle.replies else ""
        then = "Scale-up is off until that ends." if autoscaled else "More pods would not help."
        text = f"Tinybird throttles: its limit of requests is shared by all pods. {now}Rows wait meanwhile. {then}"
        advice = " Send larger batches (batch.flushIntervalMilliseconds), or ask Tinybird for a higher limit."
        return "True", Reason.THROTTLED, text + advice
    if throttle.replies is None:
        return "Unknown", Reason.UNKNOWN, "No pod answers."
    if throttle.refused:
        return "False", Reason.NOT_THROTTLED, f"Tinybird refused {figures} with 429 in the last minute."
    return "False", Reason.NOT_THROTTLED, "Tinybird does not throttle."
