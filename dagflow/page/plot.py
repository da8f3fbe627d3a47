"""The geometry of a chart: ticks in percent, and SVG paths that stretch with their box.

Lines keep their width when they are stretched (non-scaling strokes), and all text is HTML, so a
chart is readable at any width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, isfinite, log10
from typing import TypeVar

WIDTH, HEIGHT = 1000, 400  # of the viewBox
TICKS = 5
T = TypeVar("T")
Point = tuple[float, float]
Place = Callable[[float, float], str]  # path data of a point


@dataclass(frozen=True)
class Line:
    """Points of one run and measure, by x, and perhaps a band around them."""

    name: str
    points: tuple[Point, ...]
    band: tuple[tuple[float, float, float], ...] = ()  # x, lowest, highest
    colour: int = 0
    dash: int = 0


@dataclass(frozen=True)
class Tick:
    place: float  # percent from the left or from the top
    text: str


@dataclass(frozen=True)
class Drawn:
    """A line as SVG path data."""

    name: str
    path: str
    band: str
    colour: int
    dash: int


@dataclass(frozen=True)
class Plot:
    """Everything drawn of a chart."""

    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Drawn, ...]
    guide: float | None  # percent from the top
    low: float
    high: float
    left: float
    right: float

    def across(self, x: float) -> float:
        """Percent from the left."""
        return round(100 * (x - self.left) / (self.right - self.left), 3)


def plot(lines: Sequence[Line], guide: float | None = None, epochs: int | None = None) -> Plot:
    """Draw lines in one frame. `guide`: a height to mark; `epochs`: how many x counts."""
    xs = [x for line in lines for x, _ in line.points] + ([] if epochs is None else [0, epochs])
    ys = [y for line in lines for _, y in line.points] + ([] if guide is None else [guide])
    ys += [y for line in lines for _, *ends in line.band for y in ends]
    left, right = _range(xs)
    marks = _marks(*_range(ys))
    low, high = min(marks[0], *ys), max(marks[-1], *ys)
    across = _marks(left, right, least=0.0 if epochs is None else 1.0)

    def place(x: float, y: float) -> str:
        right_by = WIDTH * (x - left) / (right - left)
        return f"{right_by:.1f} {HEIGHT * (high - y) / (high - low):.1f}"

    def percent(y: float) -> float:
        return round(100 * (high - y) / (high - low), 3)

    frame = Plot((), (), (), None, low, high, left, right)
    return Plot(
        x_ticks=tuple(Tick(frame.across(x), shown(x)) for x in across if left <= x <= right),
        y_ticks=tuple(Tick(percent(y), _tick(y, marks)) for y in marks),
        lines=tuple(
            Drawn(line.name, _path(line, place), _band(line, place), line.colour, line.dash)
            for line in lines
        ),
        guide=None if guide is None else percent(guide),
        low=low,
        high=high,
        left=left,
        right=right,
    )


def steps(edges: Sequence[float], counts: Sequence[float]) -> tuple[Point, ...]:
    """The outline of a histogram, from the floor to the floor."""
    outline: list[Point] = [(edges[0], 0.0)]
    for (low, high), count in zip(pairwise(edges), counts, strict=True):
        outline += [(low, float(count)), (high, float(count))]
    return (*outline, (edges[-1], 0.0))


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` items, evenly spaced, including the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def shown(value: float | None, signed: bool = False) -> str:
    """A number for people: four digits (three for a change), a true minus sign, a dash for none."""
    if value is None or not isfinite(value):
        return "–"
    text = f"{value:+.3g}" if signed else f"{value:.4g}"
    mantissa, e, exponent = text.partition("e")
    text = f"{mantissa} × 10^{int(exponent)}" if e else text
    return text.replace("-", "−")


def _tick(value: float, marks: Sequence[float]) -> str:
    step = marks[1] - marks[0]
    biggest = max(abs(marks[0]), abs(marks[-1]))
    if biggest >= 1e5 or step < 1e-4:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    decimals = max(0, -floor(log10(step) + 1e-9))
    return f"{value:.{decimals}f}".replace("-", "−")


def _range(values: Iterable[float]) -> tuple[float, float]:
    """From the smallest to the largest, with room around a single value."""
    every = list(values) or [0.0]
    low, high = min(every), max(every)
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _marks(low: float, high: float, least: float = 0.0) -> list[float]:
    """Round numbers, two or more, that enclose the range. `least`: the smallest distance."""
    rough = (high - low) / TICKS
    power = 10.0 ** floor(log10(rough))
    step = max(least, next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    digits = 2 - floor(log10(step))
    return [round(k * step, digits) for k in range(first, max(last, first + 1) + 1)]


def _path(line: Line, place: Place) -> str:
    if len(line.points) == 1:  # a dot: a line of no length with round ends
        return f"M{place(*line.points[0])}h0"
    return "M" + "L".join(place(x, y) for x, y in line.points) if line.points else ""


def _band(line: Line, place: Place) -> str:
    if len(line.band) < 2:
        return ""
    upper = [place(x, high) for x, _, high in line.band]
    lower = [place(x, low) for x, low, _ in reversed(line.band)]
    return f"M{'L'.join([*upper, *lower])}Z"
