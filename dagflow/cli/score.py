"""`dagflow score`."""

from __future__ import annotations

import csv
import enum
import json
import sys
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from dagflow import UserError, config
from dagflow.cli import names, rewards
from dagflow.cli.console import err, out
from dagflow.plugins import Registry, load_plugins

if TYPE_CHECKING:
    from dagflow.engine.scoring import WeightedReward
    from dagflow.score import Scored


class Format(enum.StrEnum):
    table = "table"
    csv = "csv"
    json = "json"


def register(app: typer.Typer) -> None:
    app.command()(score)


def score(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Picture files, folders, or quoted patterns."),
    ],
    reward: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="May be repeated.", autocompletion=names.rewards),
    ],
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="For all. Default: what PICTURE.txt beside each says."),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("-s", "--set", metavar="NAME.KEY=VALUE", help="An option of a reward."),
    ] = None,
    output_format: Annotated[
        Format, typer.Option("--format", help="csv and json hold every digit.")
    ] = Format.table,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures of one size at once.")] = 16,
) -> None:
    """Score pictures with rewards.

    Example: dagflow score 'out/*.png' --reward imagereward --reward aesthetic --prompt "a cat"

    Options of a reward: -s hpsv2.version=v2.0
    """
    registry = load_plugins()
    tables = rewards.tables(reward, registry)
    labels = list(tables)
    config.override(tables, setting or [])
    if unasked := [label for label in tables if label not in labels]:
        raise UserError(f"-s {unasked[0]}: no such --reward. There are: {', '.join(labels)}.")
    makers = {label: _maker(registry, label, table) for label, table in tables.items()}

    from dagflow.score import find_pictures, prompt_beside, score_files

    found = find_pictures(images)
    texts = [prompt if prompt is not None else prompt_beside(path) for path in found]
    if bare := texts.count(None):
        err.print(f"{bare} pictures have neither --prompt nor a .txt beside them: scored without.")
    weighted, device = _place(makers)
    pictures = [(path, text or "") for path, text in zip(found, texts, strict=True)]
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task("scoring", total=len(pictures))
        results = list(
            score_files(weighted, pictures, batch_size, device, lambda n: bars.advance(task, n))
        )
    {Format.table: _table, Format.csv: _csv, Format.json: _json}[output_format](results)


def _maker(registry: Registry, label: str, table: Mapping[str, Any]) -> Any:
    options = {key: value for key, value in table.items() if key not in ("name", "weight")}
    return registry.maker("reward", table.get("name", label), options)


def _place(makers: Mapping[str, Any]) -> tuple[list[WeightedReward], Any]:
    from dagflow.engine.scoring import WeightedReward, place
    from dagflow.policies.loading import default_device

    device = default_device()
    placed = {label: place(make(), device) for label, make in makers.items()}
    return [WeightedReward(label, reward, 1.0) for label, reward in placed.items()], device


def _table(results: Sequence[Scored]) -> None:
    labels = list(results[0].scores)
    table = Table("picture", "prompt", box=None, padding=(0, 2, 0, 0))
    for label in labels:
        table.add_column(label, justify="right")
    for item in results:
        numbers = (f"{item.scores[label]:.4f}" for label in labels)
        table.add_row(escape(str(item.path)), escape(item.prompt), *numbers)
    if len(results) > 1:
        means = (f"{fmean(item.scores[label] for item in results):.4f}" for label in labels)
        table.add_row(f"mean of {len(results)}", "", *means, style="bold")
    out.print(table, soft_wrap=False)


def _csv(results: Sequence[Scored]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["picture", "prompt", *results[0].scores])
    writer.writerows([item.path, item.prompt, *item.scores.values()] for item in results)


def _json(results: Sequence[Scored]) -> None:
    records = [
        {"picture": str(item.path), "prompt": item.prompt, "scores": item.scores}
        for item in results
    ]
    typer.echo(json.dumps(records, indent=2, ensure_ascii=False))
