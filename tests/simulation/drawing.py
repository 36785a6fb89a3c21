"""Draws panels of series over time as an SVG that reads on light and dark ground. Pure; no library, a few kilobytes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

WIDTH: Final = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 62, 40
_GAP: Final = 40
_LINE_HEIGHT: Final = 16
_POINTS: Final = 240

# The picture brings its own ground, so that it reads wherever it is put.
_STYLE: Final = """
svg{--ground:#fff;--ink:#1f2328;--soft:#59636e;--grid:#d1d9e0;--band:#fff1d6;
--blue:#0969da;--green:#1a7f37;--red:#cf222e;--orange:#bc4c00;--purple:#8250df}
@media (prefers-color-scheme:dark){svg{--ground:#0d1117;--ink:#f0f6fc;--soft:#9198a1;--grid:#30363d;--band:#3a2d12;
--blue:#4493f8;--green:#3fb950;--red:#f85149;--orange:#f0883e;--purple:#ab7df8}}
text{font:12px -apple-system,BlinkMacSystemFont,"Segoe UI",Helvetica,Arial,sans-serif;fill:var(--soft)}
.title{font-size:15px;font-weight:600;fill:var(--ink)}.unit{fill:var(--ink)}.end{text-anchor:end}.mid{text-anchor:middle}
.ground{fill:var(--ground);stroke:var(--grid)}.grid{stroke:var(--grid);fill:none}.band{fill:var(--band)}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}.area{fill-opacity:.35;stroke-opacity:.7}
.dash{stroke-dasharray:5 3}
.dot{stroke-dasharray:1.5 3;stroke-width:2}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One value a second. ``mark``: line, dash, dot or area. ``steps``: drawn as they are and not as means."""

    label: str
    values: Sequence[float]
    colour: str
    mark: str = "line"
    steps: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Series over one axis: ``unit`` is what it is labelled with, ``most`` its end unless a value is larger."""

    unit: str
    series: Sequence[Series]
    height: int = 100
    most: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """``bands``: from and to in seconds, and what is going on then."""

    title: str
    subtitle: str
    panels: Sequence[Panel]
    duration_s: int
    bands: Sequence[tuple[float, float, str]] = ()


def draw(picture: Picture) -> str:
    """The SVG's text."""
    height = _TOP + sum(panel.height + _GAP for panel in picture.panels) - _GAP + _LINE_HEIGHT + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
        f' role="img" aria-label="{escape(picture.title + ". " + picture.subtitle)}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="ground" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
        f'<text class="title" x="14" y="24">{escape(picture.title)}</text>',
        f'<text x="14" y="42">{escape(picture.subtitle)}</text>',
    ]
    top = _TOP + _LINE_HEIGHT
    for panel in picture.panels:
        parts += _panel(picture, panel, top, first=panel is picture.panels[0])
        top += panel.height + _GAP
    parts += _time_axis(picture, top - _GAP)
    return "\n".join([*parts, "</svg>", ""])


def _panel(picture: Picture, panel: Panel, top: int, *, first: bool) -> Iterable[str]:
    drawn = [(series, _steps(series.values) if series.steps else _means(series.values)) for series in panel.series]
    ticks = nice_ticks(max([panel.most, *(value for _, points in drawn for _, value in points)]))
    bottom, most = top + panel.height, ticks[-1]

    def y(value: float) -> str:
        return _short(bottom - panel.height * min(value, most) / most)

    for start_s, end_s, label in picture.bands:
        left, right = _x(picture, start_s), _x(picture, end_s)
        width = _short(float(right) - float(left))
        yield f'<rect class="band" x="{left}" y="{top}" width="{width}" height="{panel.height}"/>'
        if first:
            yield f'<text x="{_short(float(left) + 4)}" y="{top + 13}">{escape(label)}</text>'
    for tick in ticks:
        yield f'<path class="grid" d="M{_LEFT} {y(tick)}H{WIDTH - _RIGHT}"/>'
        yield f'<text class="end" x="{_LEFT - 6}" y="{_short(float(y(tick)) + 4)}">{amount(tick)}</text>'
    for series, points in drawn:
        runs = _above_zero(points) if series.mark == "area" else [points]
        path = "".join(
            f"{'L' if index else 'M'}{_x(picture, at)} {y(value)}"
            for run in runs
            for index, (at, value) in enumerate(run)
        )
        if series.mark == "area" and path:
            yield f'<path class="area" stroke="var(--{series.colour})" fill="var(--{series.colour})" d="{path}"/>'
        elif path:
            yield f'<path class="line {series.mark}" stroke="var(--{series.colour})" d="{path}"/>'
    yield f'<text class="unit" x="14" y="{top - 8}">{escape(panel.unit)}</text>'
    yield from _legend(panel, top - 8)


def _legend(panel: Panel, base: int) -> Iterable[str]:
    """From the right, because the unit stands on the left."""
    right = float(WIDTH - _RIGHT)
    for series in reversed(panel.series):
        right -= 6.2 * len(series.label)
        yield f'<text x="{_short(right)}" y="{base}">{escape(series.label)}</text>'
        x, y = _short(right - 24), base - 4
        if series.mark == "area":
            yield f'<rect class="area" fill="var(--{series.colour})" x="{x}" y="{y - 4}" width="18" height="8"/>'
        else:
            yield f'<path class="line {series.mark}" stroke="var(--{series.colour})" d="M{x} {y}h18"/>'
        right -= 40


def _time_axis(picture: Picture, bottom: int) -> Iterable[str]:
    minutes = picture.duration_s / 60
    step = next(step for step in (1, 2, 5, 10, 20, 60) if minutes / step <= 8)
    for minute in range(0, int(minutes) + 1, step):
        yield f'<text class="mid" x="{_x(picture, minute * 60)}" y="{bottom + 16}">{minute}</text>'
    yield f'<text class="mid unit" x="{(_LEFT + WIDTH - _RIGHT) // 2}" y="{bottom + 34}">minutes</text>'


def nice_ticks(most: float) -> list[float]:
    """Three to six round numbers from 0 to ``most`` or a little above it."""
    power = 10.0 ** math.floor(math.log10(most))
    step = next(power * part for part in (0.2, 0.25, 0.5, 1.0, 2.0) if most / (power * part) <= 5)
    if most <= 10:  # pods, for instance: no halves
        step = max(1.0, math.ceil(step))
    return [step * index for index in range(math.ceil(most / step - 1e-9) + 1)]


def amount(value: float) -> str:
    """A number as an axis has it: 45k, 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _means(values: Sequence[float]) -> list[tuple[float, float]]:
    size = max(1, math.ceil(len(values) / _POINTS))
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return [(index * size + len(part) / 2, sum(part) / len(part)) for index, part in enumerate(parts)]


def _steps(values: Sequence[float]) -> list[tuple[float, float]]:
    points = [(0.0, values[0])]
    for second, (before, after) in enumerate(pairwise(values), start=1):
        if after != before:
            points += [(second, before), (second, after)]
    return [*points, (float(len(values)), values[-1])]


def _above_zero(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The parts that are more than nothing, each with where it begins and ends at nothing."""
    runs, run = list[list[tuple[float, float]]](), list[tuple[float, float]]()
    for index, (at_s, value) in enumerate(points):
        if value <= 0:
            continue
        before_s, _ = points[max(0, index - 1)]
        after_s, after = points[min(len(points) - 1, index + 1)]
        run += [(at_s, value)] if run else [(before_s, 0.0), (at_s, value)]
        if after <= 0 or index == len(points) - 1:
            runs.append([*run, (after_s, 0.0)])
            run = []
    return runs


def _x(picture: Picture, at_s: float) -> str:
    return _short(_LEFT + (WIDTH - _LEFT - _RIGHT) * at_s / picture.duration_s)


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
