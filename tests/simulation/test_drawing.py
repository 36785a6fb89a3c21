"""SVG from panels of series."""

import xml.etree.ElementTree as ElementTree

import pytest
from tests.simulation.drawing import Panel, Picture, Series, amount, draw, nice_ticks


@pytest.mark.parametrize(
    ("most", "ticks"),
    [
        (6, [0, 2, 4, 6]),
        (3, [0, 1, 2, 3]),
        (1, [0, 1]),
        (100, [0, 20, 40, 60, 80, 100]),
        (52_000, [0, 20_000, 40_000, 60_000]),
        (240_000, [0, 50_000, 100_000, 150_000, 200_000, 250_000]),
    ],
)
def test_ticks_are_few_and_round(most: float, ticks: list[float]) -> None:
    assert nice_ticks(most) == ticks


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (20, "20"), (45_000, "45k"), (1_500_000, "1.5M")])
def test_amounts_are_short(value: float, text: str) -> None:
    assert amount(value) == text


def test_a_picture_has_title_units_and_legend_and_is_well_formed() -> None:
    series = Series(label="sent <by> clients", values=[1.0, 2.0, 3.0], colour="blue")
    bars = Series(label="draining", values=[0, 1, 0], colour="purple", mark="area", steps=True)
    text = draw(
        Picture(
            title="A & B",
            subtitle="few rows",
            panels=[Panel(unit="rows/s", series=[series]), Panel(unit="pods", series=[bars])],
            duration_s=180,
            bands=[(60, 120, "outage")],
        )
    )
    root = ElementTree.fromstring(text)  # noqa: S314 - our own text
    words = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"A & B", "few rows", "rows/s", "pods", "sent <by> clients", "draining", "outage", "minutes"} <= set(words)
    assert words.count("outage") == 1
