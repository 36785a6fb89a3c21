"""The HorizontalPodAutoscaler's algorithm as Kubernetes 1.36 has it. Pure: ``now_s`` is an argument.

After pkg/controller/podautoscaler: replica_calculator.go (what one metric asks for) and horizontal.go (the largest of
several, stabilisation, policies). Left out because nothing here uses it: resource, object and external metrics, scale
to zero. Metric values are milli-values, as there: its divisions are integer divisions of those.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

TOLERANCE: Final = 0.1
SYNC_PERIOD_S: Final = 15.0
# --horizontal-pod-autoscaler-downscale-stabilization
DOWNSCALE_STABILIZATION_S: Final = 300.0
# How far a scale-up may go in one sync where the HPA has no `behavior` at all.
_SCALE_UP_FACTOR: Final = 2.0
_SCALE_UP_LEAST: Final = 4.0


class NoMetrics(Exception):
    """A metric has no value for any pod that counts: the HPA reports it, and does not scale down."""


class PolicyType(StrEnum):
    PODS = "Pods"
    PERCENT = "Percent"


class SelectPolicy(StrEnum):
    MAX = "Max"
    MIN = "Min"
    DISABLED = "Disabled"


@dataclass(frozen=True, slots=True)
class Policy:
    """At most ``value`` pods, or percent of the pods, in ``period_s``."""

    type: PolicyType
    value: int
    period_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """One direction of ``behavior``."""

    policies: tuple[Policy, ...]
    stabilization_window_s: float
    select_policy: SelectPolicy = SelectPolicy.MAX
    tolerance: float = TOLERANCE


DEFAULT_SCALE_UP: Final = Rules(
    policies=(Policy(PolicyType.PODS, 4, 15), Policy(PolicyType.PERCENT, 100, 15)), stabilization_window_s=0.0
)
DEFAULT_SCALE_DOWN: Final = Rules(
    policies=(Policy(PolicyType.PERCENT, 100, 15),), stabilization_window_s=DOWNSCALE_STABILIZATION_S
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Behavior:
    """``spec.behavior``, with the API server's defaults."""

    scale_up: Rules = DEFAULT_SCALE_UP
    scale_down: Rules = DEFAULT_SCALE_DOWN

    def frozen(self) -> "Behavior":
        """The same with scale-up disabled: what the operator applies while Tinybird throttles."""
        return replace(self, scale_up=replace(self.scale_up, select_policy=SelectPolicy.DISABLED))


@dataclass(frozen=True, slots=True)
class PodState:
    """What the HPA knows of a pod that its selector finds. Ready or not makes no difference for a Pods metric."""

    name: str
    pending: bool = False
    leaving: bool = False  # deleted or failed


@dataclass(frozen=True, slots=True)
class PodsMetric:
    """A metric of type Pods with its AverageValue; ``values_milli`` by pod, without the pods that did not answer."""

    name: str
    target_milli: int
    values_milli: Mapping[str, int]


def replicas_for(metric: PodsMetric, current: int, pods: Sequence[PodState], *, up: float, down: float) -> int:
    """How many replicas one metric asks for, with tolerances ``up`` and ``down``. Raises ``NoMetrics``.

    A missing pod counts as nothing on the way up and as exactly the target on the way down; pending pods count as
    nothing on the way up. A correction that would turn the direction round leaves the count as it is.
    """
    unready = {pod.name for pod in pods if pod.pending and not pod.leaving}
    ignored = {pod.name for pod in pods if pod.leaving}
    present = [pod.name for pod in pods if not pod.pending and not pod.leaving]
    missing = {name for name in present if name not in metric.values_milli}
    values = {name: value for name, value in metric.values_milli.items() if name not in unready | ignored}
    if not pods or not values:
        raise NoMetrics(metric.name)
    ratio = _usage_ratio(values, metric.target_milli)
    up_with_unready = bool(unready) and ratio > 1.0
    if not up_with_unready and not missing:
        if _within(ratio, up, down):
            return current
        return math.ceil(ratio * (len(present) - len(missing)))
    if ratio < 1.0:
        values |= dict.fromkeys(missing, metric.target_milli)
    elif ratio > 1.0:
        values |= dict.fromkeys(missing, 0)
    if up_with_unready:
        values |= dict.fromkeys(unready, 0)
    corrected = _usage_ratio(values, metric.target_milli)
    if _within(corrected, up, down) or (ratio < 1.0 < corrected) or (corrected < 1.0 < ratio):
        return current
    wanted = math.ceil(corrected * len(values))
    if (corrected < 1.0 and wanted > current) or (corrected > 1.0 and wanted < current):
        return current
    return wanted


def largest(
    metrics: Sequence[PodsMetric], current: int, pods: Sequence[PodState], *, up: float, down: float
) -> int | None:
    """What the metrics ask for together; None if there is nothing to go by, and so no scaling.

    A metric that fails stops a scale-down, but not a scale-up.
    """
    wanted, failed = 0, 0
    for metric in metrics:
        try:
            wanted = max(wanted, replicas_for(metric, current, pods, up=up, down=down))
        except NoMetrics:
            failed += 1
    if failed == len(metrics) or (failed and wanted < current):
        return None
    return wanted


def limit_without_behavior(current: int, desired: int, least: int, most: int) -> int:
    """Where an HPA without ``behavior`` may go in one sync: twice as many, or four."""
    return max(least, min(desired, most, int(max(_SCALE_UP_FACTOR * current, _SCALE_UP_LEAST))))


def scale_up_limit(current: int, added: "Changes", removed: "Changes", rules: Rules, now_s: float) -> int:
    """The most replicas that the policies of a scale-up allow now."""
    if rules.select_policy is SelectPolicy.DISABLED:
        return current
    proposals = []
    for policy in rules.policies:
        start = current - added.within(policy.period_s, now_s) + removed.within(policy.period_s, now_s)
        if policy.type is PolicyType.PODS:
            proposals.append(start + policy.value)
        else:
            proposals.append(math.ceil(start * (1 + policy.value / 100)))
    return min(proposals) if rules.select_policy is SelectPolicy.MIN else max(proposals)


def scale_down_limit(current: int, added: "Changes", removed: "Changes", rules: Rules, now_s: float) -> int:
    """The fewest replicas that the policies of a scale-down allow now."""
    if rules.select_policy is SelectPolicy.DISABLED:
        return current
    proposals = []
    for policy in rules.policies:
        start = current - added.within(policy.period_s, now_s) + removed.within(policy.period_s, now_s)
        if policy.type is PolicyType.PODS:
            proposals.append(start - policy.value)
        else:
            proposals.append(int(start * (1 - policy.value / 100)))
    return max(proposals) if rules.select_policy is SelectPolicy.MIN else min(proposals)


@dataclass(slots=True)
class Changes:
    """What an HPA has done in one direction: ``[when, how many pods, outdated]``."""

    events: list[tuple[float, int, bool]] = field(default_factory=list)

    def within(self, period_s: float, now_s: float) -> int:
        return sum(pods for at_s, pods, _ in self.events if at_s > now_s - period_s)

    def note(self, pods: int, rules: Rules, now_s: float) -> None:
        """Remember a change. As in Kubernetes it takes the place of the last one that no policy looks at any more."""
        longest_s = max((policy.period_s for policy in rules.policies), default=0)
        self.events = [(at_s, count, old or at_s < now_s - longest_s) for at_s, count, old in self.events]
        outdated = [index for index, (_, _, old) in enumerate(self.events) if old]
        if outdated:
            self.events[outdated[-1]] = (now_s, pods, False)
        else:
            self.events.append((now_s, pods, False))


class Autoscaler:
    """One HPA between its syncs: what it recommended and did.

    ``behavior`` may be replaced between two syncs, as an apply does; None is an HPA that has none.
    """

    def __init__(self, least: int, most: int, behavior: Behavior | None) -> None:
        self.behavior = behavior
        self._least = least
        self._most = most
        self.recommendations: list[tuple[float, int]] = []
        self.added = Changes()
        self.removed = Changes()

    def sync(self, now_s: float, current: int, pods: Sequence[PodState], metrics: Sequence[PodsMetric]) -> int:
        """Return the replicas to ask for; ``current`` is ``spec.replicas`` of ``/scale``."""
        if not self.recommendations:
            self.recommendations.append((now_s, current))
        if current == 0:
            return 0
        if current > self._most:
            desired = self._most
        elif current < self._least:
            desired = self._least
        else:
            rules = self.behavior or Behavior()
            answer = largest(metrics, current, pods, up=rules.scale_up.tolerance, down=rules.scale_down.tolerance)
            if answer is None:
                return current
            desired = self._normalized(answer, current, now_s)
        if self.behavior and desired > current:
            self.added.note(desired - current, self.behavior.scale_up, now_s)
        elif self.behavior and desired < current:
            self.removed.note(current - desired, self.behavior.scale_down, now_s)
        return desired

    def _normalized(self, answer: int, current: int, now_s: float) -> int:
        if self.behavior is None:
            recent = [wanted for at_s, wanted in self.recommendations if at_s >= now_s - DOWNSCALE_STABILIZATION_S]
            self._recommend(now_s, answer, DOWNSCALE_STABILIZATION_S)
            return limit_without_behavior(current, max([answer, *recent]), self._least, self._most)
        return self.limited(self.stabilized(answer, current, now_s), current, now_s)

    def stabilized(self, answer: int, current: int, now_s: float) -> int:
        """Bring ``current`` within the least and the largest answer of the windows, and remember this answer."""
        assert self.behavior is not None
        up_s = self.behavior.scale_up.stabilization_window_s
        down_s = self.behavior.scale_down.stabilization_window_s
        lowest = min([answer, *(wanted for at_s, wanted in self.recommendations if at_s > now_s - up_s)])
        highest = max([answer, *(wanted for at_s, wanted in self.recommendations if at_s > now_s - down_s)])
        self._recommend(now_s, answer, max(up_s, down_s))
        return min(max(current, lowest), highest)

    def limited(self, desired: int, current: int, now_s: float) -> int:
        """Keep ``desired`` within the policies, the least and the most."""
        assert self.behavior is not None
        if desired > current:
            limit = scale_up_limit(current, self.added, self.removed, self.behavior.scale_up, now_s)
            return min(desired, self._most, max(limit, current))
        if desired < current:
            limit = scale_down_limit(current, self.added, self.removed, self.behavior.scale_down, now_s)
            return max(desired, self._least, min(limit, current))
        return desired

    def _recommend(self, now_s: float, answer: int, window_s: float) -> None:
        # Kubernetes overwrites one that is too old for both windows; such ones are looked at by neither.
        self.recommendations = [item for item in self.recommendations if item[0] >= now_s - window_s]
        self.recommendations.append((now_s, answer))


def _usage_ratio(values: Mapping[str, int], target_milli: int) -> float:
    return (sum(values.values()) // len(values)) / target_milli


def _within(ratio: float, up: float, down: float) -> bool:
    return 1.0 - down <= ratio <= 1.0 + up
