"""`dagflow score`."""

from __future__ import annotations

import csv
import enum
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from dagflow import RunError, UserError
from dagflow.cli import names, rewards
from dagflow.cli.console import err, print_whole
from dagflow.files import is_text
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
        typer.Option(
            metavar="TEXT",
            help="Prompt for all pictures. Default: the text of PICTURE.txt beside each.",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("-s", "--set", metavar="NAME.KEY=VALUE", help="An option of a reward."),
    ] = None,
    output_format: Annotated[
        Format, typer.Option("--format", help="csv and json hold every digit.")
    ] = Format.table,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Pictures of one size to score at once.")
    ] = 16,
) -> None:
    """Score pictures with rewards.

    Example: dagflow score 'out/*.png' --reward imagereward --reward aesthetic --prompt "a cat"

    Options of a reward: -s hpsv2.version=v2.0
    """
    with redirect_stdout(sys.stderr):  # what a reward prints is not a score
        results, unreadable = _scored(images, reward, prompt, setting or [], batch_size)
    {Format.table: _table, Format.csv: _csv, Format.json: _json}[output_format](results)
    if unreadable:
        raise RunError("\n".join(["some files were skipped.", *unreadable]))


def _scored(
    images: list[str], reward: list[str], prompt: str | None, settings: list[str], batch_size: int
) -> tuple[list[Scored], list[str]]:
    """The scores of the pictures that could be read, and messages about the others."""
    makers = _makers(reward, settings)

    from dagflow.score import find_pictures, prompt_beside, score_files

    found = find_pictures(images)
    texts = [prompt if prompt is not None else prompt_beside(path) for path in found]
    if bad := [text for text in texts if text is not None and not is_text(text)]:
        raise UserError(f"{bad[0]!r} cannot be a prompt: it is not plain text in UTF-8.")
    if bare := texts.count(None):
        some, it = ("1 picture has", "it") if bare == 1 else (f"{bare} pictures have", "them")
        err.print(f"{some} neither --prompt nor a .txt beside {it}: scored without a prompt.")
    weighted, device = _place(makers)
    pictures = [(path, text or "") for path, text in zip(found, texts, strict=True)]
    unreadable: list[str] = []
    scored = score_files(weighted, pictures, batch_size, device, unreadable)
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bars:
        results = _within_memory(bars.track(scored, total=len(pictures), description="scoring"))
    if not results:
        raise UserError("\n".join(unreadable))
    return results, unreadable


def _within_memory(scored: Iterable[Scored]) -> list[Scored]:
    import torch

    try:
        return list(scored)
    except torch.OutOfMemoryError as error:
        raise RunError(
            "the device is out of memory: lower --batch-size, or the reward's dtype (-s NAME.dtype)"
        ) from error


def _makers(texts: Sequence[str], settings: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """A maker for each reward, by its label. Raises UserError."""
    from dagflow import config

    registry = load_plugins()
    tables = rewards.tables(texts, registry, unweighted="scores are raw here")
    labels = list(tables)
    config.override(tables, settings)
    if unasked := [label for label in tables if label not in labels]:
        raise UserError(f"-s {unasked[0]}: no --reward has this name, only {', '.join(labels)}.")
    for setting in settings:
        path = setting.partition("=")[0].strip()
        if path in labels or path.endswith(".name"):
            raise UserError(
                f"-s {setting}: this names no option of the reward. See `dagflow list-plugins`."
            )
    return {label: _maker(registry, label, table) for label, table in tables.items()}


def _maker(registry: Registry, label: str, table: Mapping[str, Any]) -> Callable[[], Any]:
    options = {key: value for key, value in table.items() if key != "name"}
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
        table.add_column(label, justify="right", overflow="fold")
    for item in results:
        numbers = (f"{item.scores[label]:.4f}" for label in labels)
        table.add_row(escape(_shown(item.path)), escape(item.prompt), *numbers)
    if len(results) > 1:
        means = (f"{fmean(item.scores[label] for item in results):.4f}" for label in labels)
        table.add_row(f"mean of {len(results)}", "", *means, style="bold")
    print_whole(table)


def _csv(results: Sequence[Scored]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["picture", "prompt", *results[0].scores])
    writer.writerows([_shown(item.path), item.prompt, *item.scores.values()] for item in results)


def _json(results: Sequence[Scored]) -> None:
    records = [
        {"picture": _shown(item.path), "prompt": item.prompt, "scores": item.scores}
        for item in results
    ]
    typer.echo(json.dumps(records, indent=2, ensure_ascii=False))


def _shown(path: Path) -> str:
    """A name to print, even of a file whose name is not UTF-8."""
    return os.fsencode(path).decode(errors="replace")
