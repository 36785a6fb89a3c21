"""Load curves: rows a second that clients send, over time. Pure; noise comes from a seeded generator."""

import math
import random
from collections.abc import Callable, Iterator
from typing import Final

Curve = Callable[[float], float]

# Noise is a slow drift of some percent, as traffic has it, and not new dice each second, which pods would average out.
_NOISE_SHARE: Final = 0.05
_NOISE_KEPT: Final = 0.9


def steady(rows_per_s: float) -> Curve:
    return lambda _: rows_per_s


def spike(base: float, peak: float, *, start_s: float, length_s: float) -> Curve:
    """A step up at ``start_s`` and down again after ``length_s``."""
    return lambda at_s: peak if start_s <= at_s < start_s + length_s else base


def daily_wave(low: float, high: float, *, day_s: float) -> Curve:
    """A sine from ``low`` (midnight) to ``high`` (noon) and back in ``day_s``."""
    return lambda at_s: low + (high - low) * (1 - math.cos(2 * math.pi * at_s / day_s)) / 2


def ramp(base: float, peak: float, *, start_s: float, rise_s: float, hold_s: float, fall_s: float) -> Curve:
    """Straight up in ``rise_s``, ``hold_s`` there, and straight down in ``fall_s``."""

    def at(at_s: float) -> float:
        up = (at_s - start_s) / rise_s
        down = 1 - (at_s - start_s - rise_s - hold_s) / fall_s
        return base + (peak - base) * max(0.0, min(1.0, up, down))

    return at


def drops(rows_per_s: float, *, every_s: float) -> Curve:
    """Quiet: nothing but one second's rows each ``every_s``."""
    return lambda at_s: rows_per_s if at_s % every_s < 1 else 0.0


def sampled(curve: Curve, seconds: range, rng: random.Random) -> Iterator[int]:
    """Whole rows for each of ``seconds``, with noise."""
    drift = 0.0
    spread = _NOISE_SHARE * math.sqrt(1 - _NOISE_KEPT**2)
    for second in seconds:
        # Near enough to a normal distribution, and the same on every machine: no logarithm, no cosine.
        normal = (sum(rng.random() for _ in range(4)) - 2.0) * math.sqrt(3.0)
        drift = _NOISE_KEPT * drift + spread * normal
        yield max(0, round(curve(float(second)) * (1 + drift)))
