"""The README's pictures of the simulation: ``python -m tests.simulation.pictures`` writes them into .github/."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.simulation.drawing import Panel, Picture, Series, draw
from tests.simulation.outcome import Outcome
from tests.simulation.run import simulate
from tests.simulation.scenarios import (
    DAILY_WAVE,
    DEPTH_ALONE,
    OUTAGE,
    SEEDS,
    SPIKE,
    THROTTLED,
    Scenario,
)

FOLDER: Final = Path(__file__).parents[2] / ".github"
_SEED: Final = SEEDS[0]


def picture(
    scenario: Scenario, title: str, *, other: Scenario | None = None, without: str = "", band: str = ""
) -> Picture:
    """``other``: the same with something left out, which ``without`` says."""
    outcome = simulate(scenario, _SEED)
    compared = simulate(other, _SEED) if other is not None else None
    windows = scenario.upstream.outages + scenario.upstream.throttled
    return Picture(
        title=title,
        subtitle=_subtitle(outcome, compared, without),
        duration_s=scenario.duration_s,
        bands=[(window.start_s, window.end_s, band) for window in windows],
        panels=[_rows(outcome), _pods(outcome, compared, without), _measured(outcome)],
    )


def _subtitle(outcome: Outcome, compared: Outcome | None, without: str) -> str:
    text = f"Rows in pods when they were removed: {outcome.rows_at_risk}. Refused: {_percent(outcome)} of the rows"
    return f"{text}." if compared is None else f"{text}; {without}: {_percent(compared)}."


def _percent(outcome: Outcome) -> str:
    return f"{outcome.refused_percent:.1f} %" if outcome.refused_percent else "none"


def _rows(outcome: Outcome) -> Panel:
    return Panel(
        unit="rows/s",
        height=120,
        series=[
            Series(label="refused", values=outcome.refused, colour="red", mark="area"),
            Series(label="delivered to Tinybird", values=outcome.delivered, colour="green"),
            Series(label="sent by clients", values=outcome.offered, colour="blue"),
        ],
    )


def _pods(outcome: Outcome, compared: Outcome | None, without: str) -> Panel:
    more = (
        [Series(label=f"ready, {without}", values=compared.ready, colour="red", mark="dot", steps=True)]
        if compared is not None
        else []
    )
    return Panel(
        unit="pods",
        most=6,
        series=[
            *more,
            Series(label="draining", values=outcome.draining, colour="purple", mark="area", steps=True),
            Series(label="wanted by the HPA", values=outcome.wanted, colour="orange", mark="dash", steps=True),
            Series(label="ready", values=outcome.ready, colour="blue", steps=True),
        ],
    )


def _measured(outcome: Outcome) -> Panel:
    return Panel(
        unit="%",
        most=100,
        series=[
            Series(label="CPU of a core, mean", values=outcome.cpu_percent, colour="orange"),
            Series(label="buffer of the fullest pod", values=outcome.utilization_percent, colour="purple"),
        ],
    )


def pictures() -> Mapping[str, str]:
    """File name → SVG."""
    alone = "by buffer depth alone"
    drawn = {
        SPIKE.name: picture(
            SPIKE,
            "A spike: nine times the load for ten minutes",
            other=replace(SPIKE, targets=DEPTH_ALONE),
            without=alone,
        ),
        DAILY_WAVE.name: picture(DAILY_WAVE, "Two days in an hour: load rises to 25 times and falls again"),
        OUTAGE.name: picture(
            OUTAGE,
            "Tinybird answers 503 for five minutes and recovers",
            other=replace(OUTAGE, targets=DEPTH_ALONE),
            without=alone,
            band="outage",
        ),
        THROTTLED.name: picture(
            THROTTLED,
            "Tinybird throttles for ten minutes: no pods are added",
            other=replace(THROTTLED, freeze=False),
            without="without the freeze",
            band="fewer requests/s than needed",
        ),
    }
    return {f"autoscaling-{name}.svg": draw(drawing) for name, drawing in drawn.items()}


def main() -> None:
    for name, text in pictures().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
