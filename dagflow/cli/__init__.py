"""The command line: parse, call, print. torch is imported only inside the commands that need it."""

from __future__ import annotations

import io
import os
import sys

import typer

from dagflow import RunError, UserError, __version__
from dagflow.cli.console import complain
from dagflow.cli.launch import is_launched

USER_ERROR, RUN_ERROR = 2, 1

app = typer.Typer(
    name="dagflow",
    help="""Align text-to-image diffusion models with GFlowNets: sample images in proportion to
their reward.

Try: [bold]dagflow train[/bold] (ten minutes on a laptop, no downloads), then
[bold]dagflow sample RUN --prompt "a cat"[/bold].""",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dagflow {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def complete() -> typer.Typer:
    """The application with all its commands."""
    from dagflow.cli import (
        compare,
        doctor,
        evaluate,
        export,
        listing,
        new_plugin,
        report,
        sample,
        score,
        serve,
        train,
        weights,
    )

    for command in (
        *(train, sample, evaluate, report, export, score, compare, doctor),
        *(serve, listing, weights, new_plugin),
    ):
        command.register(app)
    return app


def main() -> None:
    """The `dagflow` command. Exits: 0 done, 1 the run failed, 2 wrong input, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no run ends over a character it cannot encode
            stream.reconfigure(errors="backslashreplace")
    try:
        _require_folder()
        complete()()
    except UserError as error:
        _complain("Error", error)
        sys.exit(USER_ERROR)
    except (RunError, OSError) as error:  # OSError: a full disk, a folder without permission
        _complain("Failed", error)
        sys.exit(RUN_ERROR)


def _require_folder() -> None:
    """Raise UserError if the current folder has been deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder no longer exists: change to another.") from None


def _complain(word: str, error: Exception) -> None:
    """Print the error once: of several processes that know it, only the main one does."""
    if not is_launched() or os.environ.get("RANK", "0") == "0":
        complain(word, str(error))
