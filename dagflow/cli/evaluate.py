"""`dagflow evaluate`, and how an evaluation is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dagflow import UserError
from dagflow.cli import rewards
from dagflow.cli.console import err, fact, out, print_whole
from dagflow.cli.options import EvalRewardOption
from dagflow.cli.report import write_page
from dagflow.intervals import student
from dagflow.plugins import Registry, load_plugins

if TYPE_CHECKING:
    from dagflow.config import Config
    from dagflow.outcome import Evaluation


def register(app: typer.Typer) -> None:
    app.command()(evaluate)


def evaluate(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN[@EPOCH]...",
            help="Run directories: the newest checkpoint of each, or that of an epoch.",
        ),
    ],
    images: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many held-out seeds. Default: the run's evaluate.images, or 64."
        ),
    ] = None,
    eval_reward: EvalRewardOption = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Features that diversity is measured in: pixels, dino, clip, or the folder or "
            "hub id of a vision model. Default: the run's evaluate.features."
        ),
    ] = None,
) -> None:
    """Compare a trained model with its base model on the same held-out prompts and noise.

    Prints rewards with the 95 % intervals of their change, win rate, diversity, drift, and
    statistics that no reward sees. Writes report.json and pictures into the run directory,
    replacing those of an earlier evaluation.

    Examples:

      dagflow evaluate runs/jpeg-compressibility-kl-001 --images 256

      dagflow evaluate runs/a@5 runs/b --eval-reward clip-score --features dino
    """
    from dagflow.cli.display import Display
    from dagflow.cli.run import Resumed
    from dagflow.folder import whole_checkpoint
    from dagflow.outcome import evaluate_checkpoint
    from dagflow.prepare import prepare

    registry = load_plugins()
    places = [Resumed.named(text) for text in runs]
    configs = [
        _with(place.folder, images, eval_reward or [], features, registry) for place in places
    ]
    for place in places:  # before anything is written
        whole_checkpoint(place.folder, place.place, lambda _: None)
    for place, config in zip(places, configs, strict=True):
        with Display(err) as display:
            evaluation = evaluate_checkpoint(prepare(config, registry, display), place.place)
        page = write_page(place.folder)  # first: printing fails if the reader has gone
        out.print(f"[bold]{escape(str(place.folder))}[/bold]  {evaluation.numbers['checkpoint']}")
        print_evaluation(evaluation)
        fact("report", place.folder / "report.json")
        fact("pictures", place.folder / "samples")
        if page:
            fact("page", page)


def _with(
    folder: Path,
    images: int | None,
    eval_rewards: list[str],
    features: str | None,
    registry: Registry,
) -> Config:
    """The run's configuration, with what to measure now."""
    from dagflow import config
    from dagflow.folder import read_config

    before = read_config(folder)
    tree = before.model_dump()
    table = tree["evaluate"]
    table["images"] = images or table["images"] or 64
    table["features"] = features or table["features"]
    more = rewards.tables(eval_rewards, registry, "--eval-reward", "it is only measured")
    if trained := [label for label in more if label in tree["rewards"]]:
        raise UserError(
            f"--eval-reward {trained[0]}: '{folder}' was trained on it, so it is measured anyway."
        )
    table["rewards"] |= more
    tree["machine"]["shard"] = False  # this is a single process
    tree["tracking"]["trackers"] = []  # an evaluation is not tracked
    return config.resolve(tree)


def print_evaluation(evaluation: Evaluation) -> None:
    """Print an evaluation as a table and a few lines."""
    from dagflow.alarms import Alarm

    numbers = evaluation.numbers
    print_whole(_table(numbers))
    drift = numbers["drift"]
    out.print(
        f"drift from the base model: {drift['kl']:.4g} nats along the path, noise predictions "
        f"{drift['noise_pred']:.3g}, latents {drift['latents']:.3g}"
    )
    for alarm in numbers["alarms"]:
        err.print(f"[bold red]ALARM:[/bold red] {escape(str(Alarm(**alarm)))}.")
    reward = numbers["reward"]
    out.print(
        f"reward on {numbers['images']} held-out seeds: base {reward['base']:.4f}, trained "
        f"{reward['trained']:.4f}, change {_change(reward, numbers['images'])}, "
        f"better in {reward['win_rate']:.0%}"
    )
    _print_temperature(numbers)
    if evaluation.truth is not None:
        distances = evaluation.truth.distances.items()
        parts = (f"{name} {value.total_variation:.3f}" for name, value in distances)
        out.print(f"total variation from the target: {', '.join(parts)}")


def _print_temperature(numbers: Mapping[str, Any]) -> None:
    """Slope and effective samples, with the least that the latter can be, if known."""
    temperature = numbers["temperature"]
    if "slope" not in temperature:
        return
    several = [count for count in Counter(numbers.get("prompts", ())).values() if count > 1]
    least = f" (at least {len(several) / sum(several):.0%})" if several else ""
    out.print(
        f"slope of log-density against reward: {temperature['slope']:.4g} (in proportion: "
        f"{temperature['due']:.4g}), effective samples {temperature['ess']:.0%}{least}"
    )


def _change(reward: Mapping[str, Any], images: int) -> str:
    """The change with half its 95 % interval, which a single image does not have."""
    change = f"{reward['trained'] - reward['base']:+.4f}"
    half = student(images) * reward["standard_error_of_change"] if images > 1 else 0.0
    return f"{change} +- {half:.4f} (95 %)" if images > 1 else change


def _table(numbers: Mapping[str, Any]) -> Table:
    """Base against trained, with a row for each thing measured."""
    table = Table("", "base", "trained", "change", box=None, padding=(0, 2, 0, 0))
    for label, reward in numbers["rewards"].items():
        change = _change(reward, numbers["images"])
        _row(table, label if reward["trained_on"] else f"{label} (measured)", reward, change)
    for name in ("diversity", "vendi"):
        pair = numbers[name]
        if pair["base"] is not None:
            change = f"{pair['trained'] / pair['base'] - 1:+.1%}" if pair["base"] else ""
            _row(table, name, pair, change)
    for name, look in numbers["statistics"].items():
        change = f"{look['shift']:+.2f} deviations" if numbers["images"] > 1 else ""
        _row(table, name.replace("_", " "), look, change)
    return table


def _row(table: Table, name: str, pair: Mapping[str, float], change: str) -> None:
    table.add_row(escape(name), f"{pair['base']:.4f}", f"{pair['trained']:.4f}", change)
