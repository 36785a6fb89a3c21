"""Load curves have the shape they say, and their noise is that of the seed."""

import random

import pytest
from tests.simulation.curves import Curve, daily_wave, drops, ramp, sampled, spike, steady


@pytest.mark.parametrize(
    ("curve", "points"),
    [
        (steady(5), {0: 5, 99: 5}),
        (spike(10, 90, start_s=30, length_s=60), {29: 10, 30: 90, 89: 90, 90: 10}),
        (daily_wave(100, 300, day_s=60), {0: 100, 15: 200, 30: 300, 60: 100}),
        (ramp(10, 30, start_s=10, rise_s=20, hold_s=5, fall_s=10), {0: 10, 20: 20, 30: 30, 35: 30, 40: 20, 90: 10}),
        (drops(7, every_s=50), {0: 7, 1: 0, 49: 0, 50: 7}),
    ],
)
def test_shapes(curve: Curve, points: dict[int, float]) -> None:
    assert {at_s: curve(at_s) for at_s in points} == pytest.approx(points)


def test_noise_is_some_percent_and_the_same_for_the_same_seed() -> None:
    rows = list(sampled(steady(1_000), range(2_000), random.Random(1)))
    assert rows == list(sampled(steady(1_000), range(2_000), random.Random(1)))
    assert rows != list(sampled(steady(1_000), range(2_000), random.Random(2)))
    assert sum(rows) / len(rows) == pytest.approx(1_000, rel=0.02)
    assert 800 < min(rows) < 960 < 1_040 < max(rows) < 1_200
