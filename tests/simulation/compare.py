"""Compares targets and behaviors over the scenarios: ``python -m tests.simulation.compare [SECONDS]`` of a sync.

What the defaults were chosen with. Means over seeds, but the most of pods and of flapping.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from tests.simulation.hpa import DEFAULT_SCALE_DOWN, SYNC_PERIOD_S, Behavior
from tests.simulation.outcome import Outcome
from tests.simulation.run import simulate
from tests.simulation.scenarios import DEPTH_ALONE, QUIET, RECOMMENDED, SCENARIOS, Scenario, Target

_CPU, _DRAIN, _DEPTH = Target.CPU_PERCENT, Target.DRAIN_TIME_SECONDS, Target.BUFFER_UTILIZATION_PERCENT


def choices(scenario: Scenario) -> Mapping[str, Scenario]:
    """The recommended set, what is left out of it, and each of its numbers lower and higher."""

    def targets(**values: int) -> Scenario:
        return replace(scenario, targets={Target[name]: value for name, value in values.items()})

    def but(target: Target, value: int) -> Scenario:
        return replace(scenario, targets={**RECOMMENDED, target: value})

    def window(seconds: float) -> Scenario:
        down = replace(DEFAULT_SCALE_DOWN, stabilization_window_s=seconds)
        return replace(scenario, targets=RECOMMENDED, behavior=Behavior(scale_down=down))

    recommended = replace(scenario, targets=RECOMMENDED)
    return {
        "depth 50 %": replace(scenario, targets=DEPTH_ALONE),
        "200,000 rows": targets(BUFFER_ROWS_PER_POD=200_000),
        "CPU 70 %": targets(CPU_PERCENT=70),
        "drain 30 s": targets(DRAIN_TIME_SECONDS=30),
        "recommended": recommended,
        **{f"with CPU {value} %": but(_CPU, value) for value in (50, 60, 80, 90)},
        **{f"with drain {value} s": but(_DRAIN, value) for value in (10, 60, 120)},
        **{f"with depth {value} %": but(_DEPTH, value) for value in (30, 70)},
        **{f"stabilised {seconds:.0f} s": window(seconds) for seconds in (0.0, 60.0, 120.0)},
        "backlog of any age": replace(recommended, proxy=replace(scenario.proxy, backlog_age_s=0)),
        "no freeze": replace(recommended, freeze=False),
        **{
            f"connections of {age_s:.0f} s": replace(recommended, connection_age_s=age_s)
            for age_s in (0.0, 60.0, 300.0)
        },
    }


COLUMNS: Final = "| targets | refused | HPA asks | 1 more ready | refusing ends | most pods | pod-hours | flapping |"


def rows(named: Mapping[str, Scenario], seeds: Sequence[int]) -> Iterator[str]:
    """A Markdown table of one scenario's choices."""
    yield COLUMNS
    yield "|---|" + "--:|" * (COLUMNS.count("|") - 2)
    for name, scenario in named.items():
        outcomes = [simulate(scenario, seed) for seed in seeds]
        step_s = scenario.step_s
        cells = [
            f"{_mean([outcome.refused_percent for outcome in outcomes]):.2f} %",
            _seconds([outcome.asked_s(step_s) for outcome in outcomes]),
            _seconds([outcome.reaction_s(step_s) for outcome in outcomes]),
            f"{_mean([outcome.refusing_ends_s(step_s) for outcome in outcomes]):.0f} s",
            str(max(outcome.most_pods for outcome in outcomes)),
            f"{_mean([outcome.pod_hours for outcome in outcomes]):.2f}",
            str(max(outcome.flapping for outcome in outcomes)),
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def plainly(scenario: Scenario, seeds: Sequence[int]) -> Sequence[Outcome]:
    """The same with a plain Deployment under the HPA: pods go without draining."""
    return [simulate(scenario, seed, decide=None) for seed in seeds]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _seconds(values: Sequence[int | None]) -> str:
    """Mean and worst; a run where it never happens makes it never."""
    known = [value for value in values if value is not None]
    return f"{_mean(known):.0f}, at most {max(known)} s" if len(known) == len(values) else "never"


def main(arguments: Sequence[str]) -> None:
    sync_period_s = float(arguments[0]) if arguments else SYNC_PERIOD_S
    seeds = range(1, 6)
    for scenario in (*SCENARIOS, QUIET):
        synced = replace(scenario, sync_period_s=sync_period_s)
        risk = max(outcome.rows_at_risk for outcome in plainly(synced, seeds))
        print(f"\n{scenario.name}, sync each {sync_period_s:g} s; rows at risk without draining: {risk:,}")
        for line in rows(choices(synced), seeds):
            print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
