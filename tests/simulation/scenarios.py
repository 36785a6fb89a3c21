"""The scenarios and seeds that the tests assert and the pictures show."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from tests.simulation.curves import Curve, daily_wave, drops, ramp, spike, steady
from tests.simulation.hpa import SYNC_PERIOD_S, Behavior
from tests.simulation.proxy import ProxyModel
from tests.simulation.tinybird import Upstream, Window


class Target(StrEnum):
    """Targets of ``spec.autoscaling``, each with the name of its metric as value."""

    BUFFER_UTILIZATION_PERCENT = "tinybird_proxy_buffer_utilization_percent"
    BUFFER_ROWS_PER_POD = "tinybird_proxy_buffer_rows"
    DRAIN_TIME_SECONDS = "tinybird_proxy_drain_time_seconds"
    CPU_PERCENT = "tinybird_proxy_cpu_percent"


Targets = Mapping[Target, int]

DEPTH_ALONE: Final[Targets] = {Target.BUFFER_UTILIZATION_PERCENT: 50}
RECOMMENDED: Final[Targets] = {
    Target.BUFFER_UTILIZATION_PERCENT: 50,
    Target.DRAIN_TIME_SECONDS: 30,
    Target.CPU_PERCENT: 70,
}

SEEDS: Final = (1, 2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Load, Tinybird, and how the resource is set."""

    name: str
    curve: Curve
    duration_s: int
    step_s: int = 0  # when something happens that pods are wanted for
    least: int = 1
    most: int = 6
    targets: Targets = field(default_factory=lambda: RECOMMENDED)
    behavior: Behavior = field(default_factory=Behavior)
    sync_period_s: float = SYNC_PERIOD_S
    freeze: bool = True
    look_s: int = 10  # how often the operator asks the pods for their answers' statuses
    upstream: Upstream = field(default_factory=Upstream)
    proxy: ProxyModel = field(default_factory=ProxyModel)
    connection_age_s: float = 30.0  # KEEPALIVE_MAX_AGE, as the operator sets it
    probe_failures: float = 0.0  # chance a second and pod


# One pod takes about 17,500 single-row requests/s on its one core.
SPIKE: Final = Scenario(
    name="spike", curve=spike(5_000, 45_000, start_s=300, length_s=600), duration_s=1_800, step_s=300
)
DAILY_WAVE: Final = Scenario(name="daily-wave", curve=daily_wave(2_000, 50_000, day_s=1_800), duration_s=3_600)
OUTAGE: Final = Scenario(
    name="outage",
    curve=steady(12_000),
    duration_s=1_800,
    step_s=300,
    least=2,
    upstream=Upstream(outages=(Window(300, 600),)),
)
# 16,000 rows/s of 2 kB are 3.2 requests/s of 10 MB; Tinybird takes 2.5 for a while.
THROTTLED: Final = Scenario(
    name="throttled",
    curve=steady(16_000),
    duration_s=1_800,
    step_s=300,
    least=2,
    proxy=ProxyModel(row_bytes=2_000),
    upstream=Upstream(low_limit=2.5, throttled=(Window(300, 900),)),
)
RAMP: Final = Scenario(
    name="ramp",
    curve=ramp(3_000, 50_000, start_s=120, rise_s=600, hold_s=300, fall_s=600),
    duration_s=2_400,
    step_s=120,
)
# Tinybird answers when its own flush is done, which takes longer than two of ours.
QUIET: Final = Scenario(
    name="quiet", curve=drops(10, every_s=97), duration_s=1_800, upstream=Upstream(latency_s=(2, 4))
)
# Pods are to go while Tinybird is down: those that hold rows must not.
STRANDED: Final = Scenario(
    name="stranded",
    curve=spike(5_000, 45_000, start_s=120, length_s=300),
    duration_s=2_100,
    step_s=120,
    targets={Target.CPU_PERCENT: 70},
    upstream=Upstream(outages=(Window(700, 1_400),)),
)
SCENARIOS: Final = (SPIKE, DAILY_WAVE, OUTAGE, THROTTLED, RAMP, STRANDED)
