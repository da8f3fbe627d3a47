"""Charts: samples against a known target, and objectives against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from dagflow.files import whole
from dagflow.truth import Truth

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

SHOWN = 2000  # points in a scatter plot
COLOURS = {"base": "#999999", "trained": "#0072b2", "target": "#d55e00"}


def truth_chart(truth: Truth) -> Figure:
    """Class frequencies and the samples themselves, for base, trained and target."""
    from matplotlib.figure import Figure

    kind = {1: _densities, 2: _clouds}.get(truth.states["base"].shape[1], _digits)
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = cast(Any, figure.subfigures(1, 2, width_ratios=(2, 3)))
    _bars(left, truth)
    kind(right, truth)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG; the file appears whole or not at all."""
    with whole(path) as file:
        figure.savefig(file, format="png", dpi=100)


def _bars(place: Any, truth: Truth) -> None:
    axes = place.subplots()
    world, count = truth.world, len(truth.world.classes)
    for k, name in enumerate(COLOURS):
        if name == "target":
            heights = world.class_weights.tolist()
        else:
            classes = world.classify(truth.states[name])
            heights = (torch.bincount(classes, minlength=count) / len(classes)).tolist()
        places = [c + 0.27 * (k - 1) for c in range(count)]
        axes.bar(places, heights, 0.25, label=name, color=COLOURS[name])
    axes.set_xticks(range(count), world.classes, rotation=45 if count > 4 else 0)
    distances = {name: truth.distances[name].total_variation for name in ("base", "trained")}
    axes.set_title("TV " + ", ".join(f"{name} {value:.3f}" for name, value in distances.items()))
    axes.legend()


def _densities(place: Any, truth: Truth) -> None:
    axes = place.subplots()
    reach = truth.world.reach * 0.7
    for name in ("base", "trained"):
        values = truth.states[name][:, 0].numpy()
        axes.hist(
            values, 160, (-reach, reach), density=True, histtype="step", color=COLOURS[name],
            label=name,
        )  # fmt: skip
    x = torch.linspace(-reach, reach, 500)
    exact = truth.world.target.log_density(x[:, None]).exp()
    axes.plot(x.numpy(), exact.numpy(), color=COLOURS["target"], label="target")
    axes.set_xlabel("x")
    axes.legend()


def _clouds(place: Any, truth: Truth) -> None:
    panels = place.subplots(1, 3, sharex=True, sharey=True)
    for axes, name in zip(panels, COLOURS, strict=True):
        x, y = truth.states[name][:SHOWN].T.numpy()
        axes.scatter(x, y, s=2, alpha=0.4, color=COLOURS[name], linewidths=0)
        axes.set_title(name)
        axes.set_aspect("equal")


def _digits(place: Any, truth: Truth) -> None:
    panels = place.subplots(1, 3)
    for axes, name in zip(panels, COLOURS, strict=True):
        axes.imshow(_sheet(truth.states[name][:64]), cmap="gray_r", vmin=-1, vmax=1)
        axes.set_title(name)
        axes.set_axis_off()


def _sheet(states: Tensor) -> Any:
    """64 states as eight rows of eight pictures, separated by lines."""
    pictures = states.view(8, 8, 8, 8)
    framed = torch.nn.functional.pad(pictures, (1, 1, 1, 1), value=-1)
    return framed.permute(0, 2, 1, 3).reshape(80, 80).numpy()


def comparison_chart(found: dict[str, Any]) -> Figure:
    """Reward of objectives against diversity and, in worlds, against distance to the target.

    `found` is what `dagflow.compare.result` returned. Crosses are means with 95 % intervals over
    seeds, small dots are single runs, the star is the base model.
    """
    from matplotlib.figure import Figure

    entries = found["objectives"]
    in_world = all("distances" in e["reports"][0] for e in entries.values())
    figure = Figure(figsize=(11 if in_world else 6, 4.5), layout="constrained")
    panels = figure.subplots(1, 2 if in_world else 1, squeeze=False)[0]
    _pareto(panels[0], entries, ("diversity",), "diversity (distance of two images of a prompt)")
    if in_world:
        axis = "total variation from the target (lower is better)"
        _pareto(panels[1], entries, ("distances", "total_variation"), axis)
        reports = [report for entry in entries.values() for report in entry["reports"]]
        values = [report["distances"]["reference"]["total_variation"] for report in reports]
        panels[1].axvline(
            sum(values) / len(values), color="#d55e00", linestyle=":", label="exact x0hat"
        )
    panels[-1].legend(fontsize="small")
    return figure


def _pareto(axes: Any, entries: dict[str, Any], what: tuple[str, ...], label: str) -> None:
    from dagflow.compare import interval

    for k, (name, entry) in enumerate(entries.items()):
        x = [_of(report, what, "trained") for report in entry["reports"]]
        y = [report["reward"]["trained"] - report["reward"]["base"] for report in entry["reports"]]
        if any(value is None for value in x):
            continue
        colour = f"C{k % 10}"
        axes.plot(x, y, ".", color=colour, alpha=0.4, markersize=4)
        across, up = interval(x), interval(y)
        axes.errorbar(
            across["mean"], up["mean"], up["half_width"], across["half_width"],
            color=colour, label=name, capsize=2,
        )  # fmt: skip
    first = next(iter(entries.values()))["reports"][0]
    start = _of(first, what, "base")
    if start is not None:
        axes.plot(start, 0, "k*", markersize=9, label="base")
    axes.set_xlabel(label)
    axes.set_ylabel("reward above the base model's")


def _of(report: dict[str, Any], what: tuple[str, ...], whose: str) -> Any:
    numbers = report[what[0]][whose]
    return numbers[what[1]] if len(what) > 1 else numbers
