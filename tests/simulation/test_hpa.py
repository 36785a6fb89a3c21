"""The HPA's algorithm: Kubernetes' documented examples, and the tables of its own tests (release 1.36)."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.simulation.hpa import (
    DEFAULT_SCALE_DOWN,
    DEFAULT_SCALE_UP,
    Autoscaler,
    Behavior,
    Changes,
    NoMetrics,
    PodsMetric,
    PodState,
    Policy,
    PolicyType,
    Rules,
    SelectPolicy,
    largest,
    limit_without_behavior,
    replicas_for,
    scale_down_limit,
    scale_up_limit,
)

PODS, PERCENT = PolicyType.PODS, PolicyType.PERCENT
NOW_S = 10_000.0


def rules(
    *policies: Policy, window_s: float = 0.0, select: SelectPolicy = SelectPolicy.MAX, tolerance: float = 0.1
) -> Rules:
    return Rules(policies=policies, stabilization_window_s=window_s, select_policy=select, tolerance=tolerance)


def pods(count: int, *, pending: int | None = None) -> list[PodState]:
    """pod-0, pod-1 and so on; that of the number ``pending`` is pending."""
    return [PodState(f"pod-{number}", pending=number == pending) for number in range(count)]


def metric(target_milli: int, *values_milli: int | None) -> PodsMetric:
    """Values of pod-0, pod-1 and so on; None does not answer."""
    values = {f"pod-{number}": value for number, value in enumerate(values_milli) if value is not None}
    return PodsMetric("qps", target_milli, values)


def spread(changes: list[int], period_s: float) -> Changes:
    """Changes evenly in the last ``period_s``, as generateEventsUniformDistribution has them."""
    part_s = period_s / len(changes)
    return Changes(
        [
            (NOW_S - math.floor(period_s - part_s * (index + 1) + part_s / 2), change, False)
            for index, change in enumerate(changes)
        ]
    )


@pytest.mark.parametrize(
    ("current", "wanted", "sample"),
    [
        pytest.param(2, 4, metric(100, 200, 200), id="200m for a target of 100m doubles"),
        pytest.param(4, 2, metric(100, 50, 50, 50, 50), id="50m for a target of 100m halves"),
        pytest.param(3, 4, metric(15_000, 20_000, 10_000, 30_000), id="ReplicaCalcScaleUpCM"),
        pytest.param(5, 3, metric(20_000, *[12_000] * 5), id="ReplicaCalcScaleDownCM"),
        pytest.param(3, 6, metric(15_000, 50_000, 10_000, 30_000), id="ReplicaCalcScaleUpCMUnreadyHotCpuNoLessScale"),
        pytest.param(3, 7, metric(15_000, 50_000, 15_000, 30_000), id="CMUnreadyHotCpuScaleWouldScaleDown"),
        pytest.param(3, 3, metric(1_000, 1_100, 1_100, 1_100), id="ten percent too much is tolerated"),
        pytest.param(3, 3, metric(1_000, 900, 900, 900), id="ten percent too little is tolerated"),
        pytest.param(3, 4, metric(1_000, 1_110, 1_110, 1_110), id="eleven percent too much is not tolerated"),
        pytest.param(2, 2, metric(100, 100, None), id="ReplicaCalcMissingMetricsNoChangeEq"),
        pytest.param(2, 2, metric(100, 190, None), id="ReplicaCalcMissingMetricsNoChangeGt"),
        pytest.param(2, 2, metric(100, 60, None), id="ReplicaCalcMissingMetricsNoChangeLt"),
        pytest.param(4, 3, metric(100, 40, 9, None, None), id="ReplicaCalcMissingMetrics"),
        pytest.param(3, 0, metric(100, 0, 0, 0), id="nothing at all: the least number is seen to later"),
    ],
)
def test_a_metric_asks_for_what_kubernetes_own_tests_expect(current: int, wanted: int, sample: PodsMetric) -> None:
    assert replicas_for(sample, current, pods(current), up=0.1, down=0.1) == wanted


@pytest.mark.parametrize(
    ("current", "wanted", "sample"),
    [
        pytest.param(3, 3, metric(500, 100, 450, None), id="MissingMetricsUnreadyChange"),
        pytest.param(3, 4, metric(500, 100, 2_000, None), id="MissingMetricsUnreadyScaleUp"),
        pytest.param(4, 2, metric(500, 100, 100, 100, None), id="down: it is left out, the missing one is the target"),
        pytest.param(3, 4, metric(500, None, 1_000, 1_000), id="up: it counts as nothing"),
        pytest.param(3, 1, metric(500, None, 100, 100), id="down: it is left out"),
    ],
)
def test_with_the_first_pod_pending(current: int, wanted: int, sample: PodsMetric) -> None:
    assert replicas_for(sample, current, pods(current, pending=0), up=0.1, down=0.1) == wanted


def test_during_a_rolling_update_with_surge_the_missing_pod_counts_as_the_target() -> None:
    sample = metric(17_000, 10_000, 10_000, None)
    assert replicas_for(sample, 2, pods(3), up=0.1, down=0.1) == 2


def test_leaving_pods_do_not_count() -> None:
    present = [*pods(2), PodState("gone", leaving=True)]
    sample = PodsMetric("qps", 1_000, {"pod-0": 500, "pod-1": 500, "gone": 90_000})
    assert replicas_for(sample, 2, present, up=0.1, down=0.1) == 1


def test_without_any_value_there_is_nothing_to_go_by() -> None:
    with pytest.raises(NoMetrics):
        replicas_for(metric(100, None, None), 2, pods(2), up=0.1, down=0.1)


def test_the_average_is_an_integer_of_milli_values() -> None:
    # 3,301 / 3 = 1,100.33 would be above the tolerance; 1,100 is not.
    assert replicas_for(metric(1_000, 1_100, 1_100, 1_101), 3, pods(3), up=0.1, down=0.1) == 3


SILENT = metric(100, None, None)


@pytest.mark.parametrize(
    ("metrics", "wanted"),
    [
        pytest.param([metric(100, 200, 200), metric(100, 300, 300)], 6, id="the largest"),
        pytest.param([metric(100, 200, 200), SILENT], 4, id="one that fails does not stop a scale-up"),
        pytest.param([metric(100, 10, 10), SILENT], None, id="one that fails stops a scale-down"),
        pytest.param([SILENT, SILENT], None, id="all fail"),
    ],
)
def test_several_metrics(metrics: list[PodsMetric], wanted: int | None) -> None:
    assert largest(metrics, 2, pods(2), up=0.1, down=0.1) == wanted


@pytest.mark.parametrize(
    ("current", "desired", "least", "most", "allowed"),
    [(5, 7, 3, 8, 7), (3, 1, 2, 8, 2), (20, 1000, 1, 10, 10), (3, 1000, 1, 2000, 6), (1, 1000, 1, 2000, 4)],
)
def test_an_hpa_without_behavior_doubles_or_goes_to_four(
    current: int, desired: int, least: int, most: int, allowed: int
) -> None:
    assert limit_without_behavior(current, desired, least, most) == allowed


def test_documented_example_80_replicas_go_down_by_ten_percent_and_below_40_by_four() -> None:
    """From "Horizontal Pod Autoscaling", scaling policies: 8, then 8 (7.2 rounded up), and 4 at a time below 40."""
    down = rules(Policy(PODS, 4, 60), Policy(PERCENT, 10, 60))
    steps, current = [], 80
    while current > 10:
        lower = max(10, scale_down_limit(current, Changes(), Changes(), down, NOW_S))
        steps.append(current - lower)
        current = lower
    assert steps[:2] == [8, 8]
    assert all(step == 4 for step, before in zip(steps, _before(80, steps), strict=True) if 14 <= before <= 40)


def _before(start: int, steps: list[int]) -> list[int]:
    return [start - sum(steps[:index]) for index in range(len(steps))]


def test_documented_example_ten_times_as_many_each_minute() -> None:
    """From the enhancement 853, "scale up as fast as possible": 900 percent in 60 s is 1, 10, 100, 1000."""
    up = rules(Policy(PERCENT, 900, 60))
    counts = [1]
    while counts[-1] < 1000:
        counts.append(scale_up_limit(counts[-1], Changes(), Changes(), up, NOW_S))
    assert counts == [1, 10, 100, 1000]


@pytest.mark.parametrize(
    ("current", "desired", "most", "up", "added", "removed", "allowed"),
    [
        pytest.param(100, 1000, 150, DEFAULT_SCALE_UP, [], [], 150, id="more than the most"),
        pytest.param(3, 1000, 2000, rules(Policy(PERCENT, 1, 60)), [], [], 4, id="a percent of three is one"),
        pytest.param(10, 50, 1000, DEFAULT_SCALE_UP, [], [], 20, id="default behavior"),
        pytest.param(
            10, 500, 1000, rules(Policy(PODS, 100, 60), Policy(PERCENT, 100, 60)), [], [], 110, id="pods are more"
        ),
        pytest.param(
            10, 500, 1000, rules(Policy(PODS, 2, 60), Policy(PERCENT, 100, 60)), [], [], 20, id="percents are more"
        ),
        pytest.param(10, 50, 1000, rules(Policy(PODS, 30, 60)), [], [], 40, id="pods"),
        pytest.param(10, 50, 1000, rules(Policy(PERCENT, 200, 60)), [], [], 30, id="percent"),
        pytest.param(100, 500, 200, rules(Policy(PODS, 300, 60)), [1, 5, 9], [], 200, id="the most with events"),
        pytest.param(
            100, 500, 1000, rules(Policy(PODS, 5, 120)), [1, 5, 9], [], 100, id="enough for this period: not below"
        ),
        pytest.param(100, 500, 1000, rules(Policy(PODS, 150, 120)), [1, 5, 9], [], 235, id="100 - 15 + 150"),
        pytest.param(100, 500, 1000, rules(Policy(PERCENT, 200, 120)), [1, 5, 9], [], 255, id="(100 - 15) + 200 %"),
        pytest.param(6, 24, 1000, rules(Policy(PERCENT, 300, 300)), [4], [2], 16, id="up and down before"),
        pytest.param(10, 99, 100, rules(Policy(PODS, 9, 60), select=SelectPolicy.DISABLED), [], [], 10, id="disabled"),
    ],
)
def test_policies_of_a_scale_up(
    current: int, desired: int, most: int, up: Rules, added: list[int], removed: list[int], allowed: int
) -> None:
    hpa = Autoscaler(1, most, Behavior(scale_up=up))
    hpa.added, hpa.removed = spread(added, 120) if added else Changes(), spread(removed, 120) if removed else Changes()
    assert hpa.limited(desired, current, NOW_S) == allowed


@pytest.mark.parametrize(
    ("current", "desired", "least", "down", "added", "removed", "allowed"),
    [
        pytest.param(1000, 3, 3, rules(Policy(PODS, 20, 60)), [], [], 980, id="twenty pods"),
        pytest.param(100, 2, 1, rules(Policy(PODS, 20, 60), Policy(PERCENT, 1, 60)), [], [], 80, id="pods are more"),
        pytest.param(100, 2, 1, rules(Policy(PODS, 2, 60), Policy(PERCENT, 1, 60)), [], [], 98, id="two pods"),
        pytest.param(10, 2, 5, rules(Policy(PERCENT, 100, 60)), [], [], 5, id="the least"),
        pytest.param(10, 5, 1, rules(Policy(PERCENT, 50, 60)), [], [], 5, id="within range"),
        pytest.param(10, 5, 1, DEFAULT_SCALE_DOWN, [], [1, 5, 9], 5, id="the default allows everything"),
        pytest.param(100, 2, 1, rules(Policy(PODS, 5, 120)), [], [1, 5, 9], 100, id="100 + 15 - 5 is not above 100"),
        pytest.param(100, 0, 1, rules(Policy(PERCENT, 50, 120)), [], [2, 4, 6], 56, id="(100 + 12) - 50 %"),
        pytest.param(10, 1, 1, rules(Policy(PERCENT, 50, 180)), [2], [4], 6, id="up and down before"),
        pytest.param(100, 0, 1, rules(Policy(PERCENT, 10, 120)), [], [10, 10, 10], 100, id="enough for this period"),
        pytest.param(10, 5, 1, rules(Policy(PERCENT, 1000, 120)), [], [10, 10, 10], 5, id="below nothing"),
        pytest.param(
            5,
            1,
            1,
            rules(Policy(PODS, 2, 60), Policy(PERCENT, 50, 60), select=SelectPolicy.MIN),
            [],
            [],
            3,
            id="the smaller change",
        ),
    ],
)
def test_policies_of_a_scale_down(
    current: int, desired: int, least: int, down: Rules, added: list[int], removed: list[int], allowed: int
) -> None:
    hpa = Autoscaler(least, 2000, Behavior(scale_down=down))
    hpa.added, hpa.removed = spread(added, 120) if added else Changes(), spread(removed, 120) if removed else Changes()
    assert hpa.limited(desired, current, NOW_S) == allowed


MINUTE_S = 60.0


@pytest.mark.parametrize(
    ("past", "current", "answer", "up_s", "down_s", "stabilized"),
    [
        pytest.param([], 100, 5, 0, 0, 5, id="nothing remembered"),
        pytest.param([(2, 4), (1, 5)], 100, 3, 0, 180, 5, id="down: the largest of the window"),
        pytest.param([(2, 4), (1, 5)], 1, 7, 300, 0, 4, id="up: the least of the window"),
        pytest.param([(2, 1), (1, 2)], 100, 3, 300, 0, 3, id="no window down"),
        pytest.param([(2, 4), (1, 5)], 1, 3, 0, 300, 3, id="no window up"),
        pytest.param([(10, 10), (9, 9)], 100, 3, 0, 0, 3, id="too old, down"),
        pytest.param([(10, 10), (9, 9)], 1, 100, 0, 0, 100, id="too old, up"),
        pytest.param([(10, 10), (1, 4), (2, 5), (9, 9)], 100, 3, 0, 180, 5, id="some are too old"),
        pytest.param([(100, 10), (1, 6), (2, 5), (3, 9)], 1, 100, 300, 0, 5, id="one is too old"),
        pytest.param([(100, 2), (3, 3)], 2, 1, 300, 300, 2, id="no scale-up when the answer falls"),
        pytest.param([(100, 2), (3, 1)], 2, 3, 300, 300, 2, id="no scale-down when the answer rises"),
    ],
)
def test_stabilisation(
    past: list[tuple[int, int]], current: int, answer: int, up_s: float, down_s: float, stabilized: int
) -> None:
    behavior = Behavior(
        scale_up=replace(DEFAULT_SCALE_UP, stabilization_window_s=up_s),
        scale_down=replace(DEFAULT_SCALE_DOWN, stabilization_window_s=down_s),
    )
    hpa = Autoscaler(1, 1000, behavior)
    hpa.recommendations = [(NOW_S - MINUTE_S * minutes, count) for minutes, count in past]
    assert hpa.stabilized(answer, current, NOW_S) == stabilized


def test_a_scale_down_waits_for_five_minutes_of_lower_answers() -> None:
    hpa = Autoscaler(1, 10, Behavior())
    assert hpa.sync(0.0, 4, pods(4), [metric(100, *[100] * 4)]) == 4
    seen = [hpa.sync(at_s, 4, pods(4), [metric(100, *[20] * 4)]) for at_s in (15.0, 285.0, 300.0, 301.0)]
    assert seen == [4, 4, 1, 1]


def test_default_policies_allow_four_pods_or_twice_as_many_in_fifteen_seconds() -> None:
    hpa = Autoscaler(1, 100, Behavior())
    current, seen = 1, []
    for at_s in (0.0, 1.0, 2.0, 15.0, 16.0, 31.0):
        current = hpa.sync(at_s, current, pods(current), [metric(100, *[9_000] * current)])
        seen.append(current)
    assert seen == [5, 5, 5, 10, 10, 20]


def test_a_disabled_scale_up_goes_down_but_not_up() -> None:
    hpa = Autoscaler(1, 10, Behavior().frozen())
    assert hpa.sync(0.0, 4, pods(4), [metric(100, *[900] * 4)]) == 4
    assert hpa.sync(400.0, 4, pods(4), [metric(100, *[20] * 4)]) == 1


@pytest.mark.parametrize(("current", "wanted"), [(0, 0), (1, 2), (9, 6)])
def test_what_is_out_of_range_is_brought_back_whatever_the_metrics_say(current: int, wanted: int) -> None:
    assert Autoscaler(2, 6, Behavior()).sync(0.0, current, [], []) == wanted


def test_without_an_answer_nothing_changes() -> None:
    assert Autoscaler(1, 6, Behavior()).sync(0.0, 3, pods(3), [metric(100, None, None, None)]) == 3


@given(
    st.lists(st.tuples(st.integers(1, 60), st.lists(st.integers(0, 500_000), min_size=1, max_size=12)), min_size=1),
    st.sampled_from([Behavior(), Behavior().frozen(), None]),
)
def test_an_hpa_never_leaves_its_range(syncs: list[tuple[int, list[int]]], behavior: Behavior | None) -> None:
    hpa, current, now_s = Autoscaler(2, 8, behavior), 3, 0.0
    for wait_s, values in syncs:
        now_s += wait_s
        before, current = current, hpa.sync(now_s, current, pods(len(values)), [metric(70_000, *values)])
        assert 2 <= current <= 8
        if behavior is not None and behavior.scale_up.select_policy is SelectPolicy.DISABLED:
            assert current <= before
