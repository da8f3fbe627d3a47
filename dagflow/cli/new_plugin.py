"""`dagflow new-plugin`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from dagflow import UserError, scaffold
from dagflow.cli.console import out
from dagflow.plugins import Kind, load_plugins

TRY = {"reward": "--reward", "prompts": "--prompts", "objective": "--objective"}


def register(app: typer.Typer) -> None:
    app.command("new-plugin")(new_plugin)


def new_plugin(
    name: Annotated[
        str, typer.Argument(help="Name of the distribution, such as dagflow-sharpness.")
    ],
    kind: Annotated[Kind, typer.Option(help="What it provides.")],
    output: Annotated[
        Path | None, typer.Option(help="A folder for the project. Default: ./NAME.")
    ] = None,
) -> None:
    """Write a small plugin project, with a test, that is ready to train with.

    Example: dagflow new-plugin dagflow-sharpness --kind reward
    """
    words = scaffold.words_for(name, kind)
    plugin = words["plugin"]
    if plugin in load_plugins().names(kind):
        raise UserError(f"{kind} '{plugin}' is already installed. Choose another name.")
    folder = output or Path(name)
    for file in scaffold.write_project(words, folder):
        out.print(escape(str(folder / file)))
    out.print(f"\nNow:\n  cd {escape(shlex.quote(str(folder)))}\n  pip install -e .")
    out.print("  dagflow list-plugins")
    out.print(f"  dagflow train {TRY[kind]} {plugin}")
    out.print("  pytest")
