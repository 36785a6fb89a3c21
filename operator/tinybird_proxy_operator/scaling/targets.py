"""The one table of what a resource may be scaled by: field of the spec → custom metric → Prometheus series.

Custom metric and series have one name, and the proxy measures it: whoever serves it (the operator itself, an adapter,
KEDA) passes the same number on. All are whole numbers of one pod, so that their sum and average mean something.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

METRICS_GROUP: Final = "custom.metrics.k8s.io"
# In the order of preference, which is that of the group's own priorities.
METRICS_VERSIONS: Final = ("v1beta2", "v1beta1")
_SUFFIXES: Final = ("", "k", "M", "G")
_MULTIPLES: Final = {
    **{"n": Decimal(10) ** -9, "u": Decimal(10) ** -6, "m": Decimal(10) ** -3},
    **{"k": Decimal(10) ** 3, "M": Decimal(10) ** 6, "G": Decimal(10) ** 9, "T": Decimal(10) ** 12},
}


@dataclass(frozen=True, slots=True)
class Target:
    """``field``: of ``spec.autoscaling.targets``. ``metric``: of the custom metrics API, and of Prometheus."""

    field: str
    metric: str
    unit: str
    description: str


TARGETS: Final = (
    Target(
        "bufferUtilizationPercent",
        "tinybird_proxy_buffer_utilization_percent",
        "%",
        "How full the buffer is, by rows or by bytes, whichever is fuller.",
    ),
    Target("bufferRowsPerPod", "tinybird_proxy_buffer_rows", "rows", "Rows that wait."),
    Target(
        "drainTimeSeconds",
        "tinybird_proxy_drain_time_seconds",
        "s",
        "How long the rows that wait would take at the pace of the last minute.",
    ),
    Target("cpuPercent", "tinybird_proxy_cpu_percent", "%", "CPU that the proxy uses, of one core."),
)
METRICS: Final = tuple(target.metric for target in TARGETS)

_METRICS_QUERY: Final = "sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)"


def served_as(target: Target) -> str:
    """How the custom metrics API lists what it knows of pods."""
    return f"pods/{target.metric}"


def adapter_rule(targets: Sequence[Target]) -> str:
    """A rule for prometheus-adapter that serves these, on one line, to be copied. The chart's NOTES show the whole."""
    series = "|".join(target.metric for target in targets)
    return (
        f"""{{seriesQuery: '{{__name__=~"{series}",namespace!="",pod!=""}}',"""
        " resources: {overrides: {namespace: {resource: namespace}, pod: {resource: pod}}},"
        f" metricsQuery: '{_METRICS_QUERY}'}}"
    )


def quantity(count: int) -> str:
    """A count as the API server gives it back: 200000 is ``200k`` there, and else would look like drift."""
    for suffix in _SUFFIXES[:-1]:
        if count == 0 or count % 1000:
            return f"{count}{suffix}"
        count //= 1000
    return f"{count}{_SUFFIXES[-1]}"


def fraction(text: str) -> str:
    """A tolerance as the API server gives it back: ``0.05`` is ``50m`` there."""
    milli = int(read_quantity(text) * 1000)
    return quantity(milli // 1000) if milli % 1000 == 0 else f"{milli}m"


def read_quantity(text: str | int) -> Decimal:
    """A number as Kubernetes writes it (``200k``, ``1500m``). Raises ``ArithmeticError`` if it is none."""
    given = str(text)
    if given[-1:] in _MULTIPLES:
        return Decimal(given[:-1]) * _MULTIPLES[given[-1]]
    return Decimal(given)
