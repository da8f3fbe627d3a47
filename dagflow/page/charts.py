"""Charts of one run or several: their lines, texts and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dagflow.page.plans import Measure, Plan, name_of, plans
from dagflow.page.plot import Line, Plot, evenly, plot, shown
from dagflow.page.read import Record, RunData, number

ROWS = 100  # most rows of the table below a chart
BASE, TEXT = 7, 8  # colours: of the base model, and of text


@dataclass(frozen=True)
class Alarm:
    place: float  # percent from the left
    text: str
    colour: int
    is_own: bool  # whether it is about what this chart shows


@dataclass(frozen=True)
class Entry:
    """An entry of a legend."""

    name: str
    colour: int
    dash: int
    key: str = ""  # of the glossary


@dataclass(frozen=True)
class Chart:
    """A chart with its texts, its table and what a pointer reads."""

    id: str
    title: str
    note: str
    key: str  # of the glossary, if the chart shows only one thing
    plot: Plot
    description: str
    legend: tuple[Entry, ...]
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    data: Mapping[str, Any]  # for the script: places in percent, and texts
    alarms: tuple[Alarm, ...] = ()
    kind: str = "lines"
    more: int = 0  # rows that the table leaves out


def curves(runs: Sequence[RunData]) -> list[tuple[str, list[Chart]]]:
    """Charts of everything that the runs have logged, under their headings."""
    found: list[tuple[str, list[Chart]]] = []
    seen: Counter[str] = Counter()
    for heading, planned in plans(runs):
        charts = []
        for plan in planned:
            if chart := _chart(plan, runs):
                seen[chart.id] += 1
                again = f"-{seen[chart.id]}" if seen[chart.id] > 1 else ""
                charts.append(replace(chart, id=chart.id + again))
        if charts:
            found.append((heading, charts))
    return found


def _chart(plan: Plan, runs: Sequence[RunData]) -> Chart | None:
    measures = [m for m in plan.measures if any(m.source(run) for run in runs)]
    if not measures:
        return None
    lines = list(_lines(measures, runs))
    frame = plot(lines, plan.guide, epochs=max(1, *(run.epochs_done for run in runs)))
    head, rows, more = _table(lines)
    band = plan.band if any(line.band for line in lines) else ""
    return Chart(
        id=_identifier(plan.title),
        title=plan.title,
        note=" ".join(filter(None, [plan.note, band])),
        key=measures[0].key if len(measures) == 1 else "",
        plot=frame,
        description=describe(lines),
        legend=tuple(_legend(measures, runs)),
        head=head,
        rows=rows,
        more=more,
        data=readings(lines, frame),
        alarms=tuple(_alarms(runs, frame, plan.alarm)),
    )


def _lines(measures: Sequence[Measure], runs: Sequence[RunData]) -> Iterator[Line]:
    """A line for each run and measure that has points.

    Colours tell runs apart or, with only one run, measures. With several runs, bands are left out
    if a run would have more than one, as they would hide one another.
    """
    alone, banded = len(runs) == 1, len(runs) == 1 or len(measures) == 1
    for k, run in enumerate(runs):
        for m, measure in enumerate(measures):
            points = sorted(measure.source(run))
            if not points:
                continue
            label = name_of(measure.key)
            has_band = banded and any(half for _, _, half in points)
            yield Line(
                name=label if alone else run.name if banded else f"{run.name}: {label}",
                points=tuple((x, y) for x, y, _ in points),
                band=tuple((x, y - half, y + half) for x, y, half in points if has_band),
                colour=m if alone else k,
                dash=m,
            )


def _legend(measures: Sequence[Measure], runs: Sequence[RunData]) -> Iterator[Entry]:
    """Runs by colour, and measures by dash."""
    alone = len(runs) == 1
    if not alone:
        for k, run in enumerate(runs):
            if any(measure.source(run) for measure in measures):
                yield Entry(run.name, k, 0)
    if len(measures) > 1:
        for m, measure in enumerate(measures):
            yield Entry(name_of(measure.key), m if alone else TEXT, m, measure.key)


def describe(lines: Sequence[Line]) -> str:
    """A text for those who cannot see the chart: each line's start, end and extremes."""
    parts = []
    for line in lines:
        values = [y for _, y in line.points]
        first, last = line.points[0], line.points[-1]
        parts.append(
            f"{line.name}: from {shown(first[1])} ({when(first[0])}) to {shown(last[1])} "
            f"({when(last[0])}), lowest {shown(min(values))}, highest {shown(max(values))}."
        )
    return " ".join(parts)


def when(x: float) -> str:
    """A place on the axis of epochs, in words."""
    if x != int(x):
        return f"during epoch {int(x + 0.5)}"
    return "base model" if x == 0 else f"after {int(x)} epoch{'s' if x > 1 else ''}"


def readings(lines: Sequence[Line], frame: Plot) -> dict[str, Any]:
    """What a pointer reads: columns by place, with a text for each line that has a point there."""
    columns = sorted({x for line in lines for x, _ in line.points})
    values = [dict(line.points) for line in lines]
    bands = [{x: (low, high) for x, low, high in line.band} for line in lines]

    def text(k: int, x: float) -> str | None:
        if x not in values[k]:
            return None
        low, high = bands[k].get(x, (0.0, 0.0))
        return shown(values[k][x]) + (f" ± {shown((high - low) / 2)}" if high > low else "")

    height = frame.high - frame.low
    return {
        "x": [frame.across(x) for x in columns],
        "when": [when(x) for x in columns],
        "lines": [
            {
                "name": line.name,
                "colour": line.colour,
                "text": [text(k, x) for x in columns],
                "y": [
                    round(100 * (frame.high - values[k][x]) / height, 2) if x in values[k] else None
                    for x in columns
                ],
            }
            for k, line in enumerate(lines)
        ],
    }


def _table(lines: Sequence[Line]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...], int]:
    columns = sorted({x for line in lines for x, _ in line.points})
    kept = evenly(columns, ROWS)
    values = [dict(line.points) for line in lines]
    rows = tuple((when(x), *(shown(found.get(x)) for found in values)) for x in kept)
    return ("when", *(line.name for line in lines)), rows, len(columns) - len(kept)


def _alarms(runs: Sequence[RunData], frame: Plot, own: str) -> Iterator[Alarm]:
    for k, run in enumerate(runs):
        for record in run.alarms:
            epoch = number(record.get("epoch"))
            if epoch is not None and frame.left <= epoch <= frame.right:
                of_run = f"{run.name}: " if len(runs) > 1 else ""
                is_own = own == record["alarm"]
                yield Alarm(frame.across(epoch), of_run + alarm_text(record), k, is_own)


def alarm_text(record: Record) -> str:
    """An alarm as a sentence; the record names its statistic as `alarm`, and perhaps an epoch."""
    shift, gain = number(record.get("shift")), number(record.get("gain"))
    moved = f"moved by {shown(shift, signed=True)} deviations"
    if record["alarm"] == "diversity" and shift is not None:
        moved = f"fallen by {-100 * shift:.0f} %"
    when = f"by epoch {record['epoch']}" if "epoch" in record else "at the end"
    return (
        f"{name_of('held_out.' + str(record['alarm']))} had {moved} {when}, while the held-out "
        f"reward rose by {shown(gain)} deviations."
    )


def _identifier(text: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in text.lower()).strip("-")
