"""Rewards of held-out images, base against trained."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean

from dagflow.page.charts import BASE, Chart, Entry
from dagflow.page.plot import Line, plot, shown, steps
from dagflow.page.read import RunData, at, number

BINS = 16


def histogram(run: RunData, identifier: str) -> Chart | None:
    """Rewards of the held-out images, base against trained."""
    values = {
        name: [v for v in map(number, at(run.report, "per_image", name) or []) if v is not None]
        for name in ("base", "trained")
    }
    every = [v for found in values.values() for v in found]
    if not all(values.values()):
        return None
    low, high = min(every), max(every)
    width = (high - low) / BINS or 1.0
    edges = [low + k * width for k in range(BINS + 1)]
    counts = {
        name: [sum(min(int((v - low) / width), BINS - 1) == b for v in found) for b in range(BINS)]
        for name, found in values.items()
    }
    lines = [
        Line(f"{name} model", steps(edges, found), colour=colour, dash=int(colour == BASE))
        for (name, found), colour in zip(counts.items(), (BASE, 0), strict=True)
    ]
    frame = plot(lines)
    spans = [f"{shown(a)} to {shown(b)}" for a, b in pairwise(edges)]
    height = frame.high - frame.low
    return Chart(
        id=identifier,
        title="Rewards of the held-out images",
        note="How many images have each reward: base and trained model, same prompts and noise.",
        key="",
        plot=frame,
        description=" ".join(
            f"{name} model: mean {shown(fmean(found))}, from {shown(min(found))} to "
            f"{shown(max(found))}, {len(found)} images."
            for name, found in values.items()
        ),
        legend=tuple(
            Entry(line.name, line.colour, line.dash, f"per_image.{name}")
            for name, line in zip(counts, lines, strict=True)
        ),
        head=("reward", *(line.name for line in lines)),
        rows=tuple(
            (span, *(str(found[b]) for found in counts.values())) for b, span in enumerate(spans)
        ),
        data={
            "x": [frame.across((a + b) / 2) for a, b in pairwise(edges)],
            "when": [f"reward {span}" for span in spans],
            "lines": [
                {
                    "name": line.name,
                    "colour": line.colour,
                    "text": [f"{n} images" for n in found],
                    "y": [round(100 * (frame.high - n) / height, 2) for n in found],
                }
                for line, found in zip(lines, counts.values(), strict=True)
            ],
        },
        kind="areas",
    )
