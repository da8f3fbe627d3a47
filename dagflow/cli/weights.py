"""`dagflow weights`: the published files that plugins read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import JustifyMethod
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dagflow import weights
from dagflow.cli.console import fact, out, print_whole
from dagflow.errors import RunError, UserError, did_you_mean
from dagflow.plugins import load_plugins
from dagflow.weights import WeightFile

Names = Annotated[
    list[str] | None, typer.Argument(help="Plugins or files; see `dagflow weights list`.")
]

commands = typer.Typer(
    help="Show, fetch and check the published files that plugins read.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    app.add_typer(commands, name="weights")


@commands.command("list")
def list_files() -> None:
    """Show each file: its size and licence, which plugins read it, and whether it is here."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("file", "size", "licence", "read by", "here"):
        justify: JustifyMethod = "right" if heading == "size" else "left"
        table.add_column(heading, overflow="fold", justify=justify)
    for file, readers in _files().items():
        cells = file.name, weights.megabytes(file.size), file.licence, ", ".join(readers)
        table.add_row(*map(escape, cells), "yes" if weights.find(file) else "no")
    print_whole(table)


@commands.command()
def pull(
    names: Names = None,
    everything: Annotated[bool, typer.Option("--all", help="All files of all plugins.")] = False,
) -> None:
    """Fetch files that are not on this machine, and check them all."""
    if bool(names) == everything:
        raise UserError("Say what to fetch: either names of plugins or files, or --all.")
    for file in _chosen(names):
        path = weights.find(file)
        if path:
            weights.check(file, path)
        else:
            path = _pull_with_a_bar(file)
        fact("here", path)


@commands.command()
def verify(names: Names = None) -> None:
    """Compare the files on this machine with the published sha256. Exit code 1 if one differs."""
    wrong = 0
    for file in _chosen(names):
        path = weights.find(file)
        try:
            known = path and weights.check(file, path)
        except UserError as error:
            wrong += 1
            out.print(f"[bold red]wrong[/bold red]     {escape(str(error))}")
            continue
        state = "not here" if not path else "right" if known else "unchecked"
        where = path or f"{file.name}, from {file.source}"
        fact(state, where)
    if wrong:
        raise RunError(f"files that differ from what was published: {wrong}.")


def _pull_with_a_bar(file: WeightFile) -> Path:
    if not file.url:  # the hub's client has a bar of its own
        return weights.pull(file)
    columns = (TextColumn(file.filename), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task(file.filename, total=file.size)
        return weights.pull(file, lambda size: progress.advance(task, size))


def _chosen(names: list[str] | None) -> Iterator[WeightFile]:
    files = _files()
    known = {name for readers in files.values() for name in readers}
    known |= {file.name for file in files}
    for name in names or ():
        if name not in known:
            raise UserError(
                f"'{name}' is neither a plugin that reads published files nor such a file."
                f"{did_you_mean(name, known)} See `dagflow weights list`."
            )
    for file, readers in files.items():
        if not names or {file.name, *readers} & set(names):
            yield file


def _files() -> dict[WeightFile, list[str]]:
    """Every file that a plugin says it reads, and the names of those plugins."""
    files: dict[WeightFile, list[str]] = {}
    for item in load_plugins().provided:
        for file in weights.files_read_by(item.factory):
            files.setdefault(file, []).append(item.name)
    return files
